import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metagrad.learner import local_files
from metagrad.learner.local_files import append_whole, held, names, opened, read, remove, remove_partial, write_whole

LIMIT = 1_000


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's with a file in it, which nothing here may touch."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "secret").write_bytes(b"mine")
    yield folder
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("secret", b"mine")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stranger's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_a_link_is_replaced_and_never_written_through(run: Path, outside: Path) -> None:
    for name, target in (("there", outside / "secret"), ("nowhere", outside / "new"), ("loop", run / "loop")):
        (run / name).symlink_to(target)
        write_whole(run / name, b"ours")
        assert (run / name).read_bytes() == b"ours"
        assert not (run / name).is_symlink()


def test_a_planted_name_of_a_partial_file_is_not_used(
    run: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "config.partial").symlink_to(outside / "secret")  # what these files were once called
    write_whole(run / "config.json", b"ours")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0123456789abcdef")
    (run / ".0123456789abcdef.partial").symlink_to(outside / "secret")
    with pytest.raises(FileExistsError):
        write_whole(run / "config.json", b"never")
    assert (run / "config.json").read_bytes() == b"ours"


def test_a_linked_folder_is_no_folder(run: Path, outside: Path) -> None:
    (run / "checkpoints").symlink_to(outside)
    place = run / "checkpoints" / "secret"
    uses: list[Callable[[], object]] = [
        lambda: write_whole(place, b""),
        lambda: append_whole(place, b"", is_new=False),
        lambda: remove(place),
        lambda: remove_partial(place.parent, 0.0),
        lambda: read(place, LIMIT),
        lambda: names(place.parent),
    ]
    for use in uses:
        with pytest.raises(OSError, match="checkpoints is a link, which is not followed"):
            use()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "socket", "device", "large", "looped link"])
def test_only_regular_files_of_bounded_size_are_read(run: Path, outside: Path, kind: str) -> None:
    place = run / "config.json"
    match kind:
        case "link":
            place.symlink_to(outside / "secret")
        case "looped link":
            place.symlink_to(place)
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(place))
        case "device":
            place = Path("/dev/zero")
        case _:
            with place.open("wb") as file:
                file.truncate(2**40)
    with pytest.raises(OSError, match=rf"^\[Errno \d+\] it is (a {kind.split()[-1]}|larger than)"):
        read(place, LIMIT)


def test_a_file_that_grows_while_it_is_read_is_bounded(run: Path) -> None:
    place = run / "x"
    place.write_bytes(b"0" * LIMIT)
    assert len(read(place, LIMIT)) == LIMIT
    with opened(place, LIMIT) as file:
        assert file.read() == b"0" * LIMIT
    with pytest.raises(OSError, match="larger than") as refused:
        read(Path("/proc/kallsyms"), LIMIT)  # which says of itself that it is empty
    assert refused.value.errno == errno.EFBIG


def test_a_private_file_stays_private(run: Path) -> None:
    place = run / "config.json"
    write_whole(place, b"1")
    assert stat.S_IMODE(place.stat().st_mode) == 0o666 & ~_umask()
    place.chmod(0o600)
    write_whole(place, b"2")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_rows_are_appended_to_files_of_ones_own(run: Path, outside: Path) -> None:
    place = run / "events"
    with pytest.raises(FileNotFoundError):
        append_whole(place, b"1", is_new=False)
    append_whole(place, b"1", is_new=True)
    append_whole(place, b"2", is_new=False)
    assert place.read_bytes() == b"12"
    with pytest.raises(FileExistsError):
        append_whole(place, b"1", is_new=True)
    place.unlink()
    place.symlink_to(outside / "secret")
    for is_new in (True, False):
        with pytest.raises(OSError, match=os.strerror(errno.EEXIST if is_new else errno.ELOOP)):
            append_whole(place, b"3", is_new)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(OSError, match="No such device"):  # a pipe that nobody reads from
        append_whole(place, b"3", is_new=False)


def test_a_held_folder_that_is_replaced_is_never_written_again(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with held(place):
        write_whole(place / "checkpoints" / "x", b"1")
        place.rename(tmp_path / "moved")
        (place / "checkpoints").mkdir(parents=True)  # another run's
        uses: list[Callable[[], object]] = [
            lambda: write_whole(place / "checkpoints" / "x", b"2"),
            lambda: write_whole(place / "x", b"2"),
            lambda: append_whole(place / "events", b"2", is_new=True),
            lambda: remove(place / "x"),
        ]
        for use in uses:
            with pytest.raises(OSError, match="was removed, moved or replaced") as refused:
                use()
            assert refused.value.errno == errno.ESTALE
        with held(place):  # which the other run may hold
            pass
    assert list(place.iterdir()) == [place / "checkpoints"]
    assert names(place / "checkpoints") == []
    write_whole(place / "x", b"3")


def test_what_is_written_goes_into_the_folder_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    with held(place):

        def replace_it(path: Path) -> None:  # in the moment between the look and the write
            path.rename(tmp_path / "moved")
            path.mkdir()

        monkeypatch.setattr(local_files, "_require_same", replace_it)
        write_whole(place / "x", b"1")
    assert list(place.iterdir()) == []
    assert (tmp_path / "moved" / "x").read_bytes() == b"1"


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(BlockingIOError), held(tmp_path):
            pass
        write_whole(tmp_path / "x", b"1")  # the refusal let go of nothing
        assert local_files._held


def test_partial_files_of_dead_processes_go(run: Path) -> None:
    (run / ".0123456789abcdef.partial").touch()
    (run / "notes.partial").touch()
    remove_partial(run, older_than=3_600.0)
    assert len(names(run)) == 2
    remove_partial(run, older_than=0.0)
    assert names(run) == ["notes.partial"]
