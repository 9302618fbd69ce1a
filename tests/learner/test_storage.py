import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from metagrad.errors import ConfigurationError, reason
from metagrad.learner.storage import CannotWrite, Location, RemotePath, inside, location, names, write_whole


class Broken(MemoryFileSystem):
    """A store whose library raises what it likes."""

    protocol = "broken"

    def info(self, path: str, **_: object) -> dict[str, object]:
        raise RuntimeError(f"no credentials for {path}\nand a second line")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        raise PermissionError("Access Denied")


class Folders(MemoryFileSystem):
    """Files go into folders that are there, as on a disk."""

    protocol = "folders"
    made: tuple[str, ...] = ()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        if path.rpartition("/")[0] not in self.made:
            raise FileNotFoundError(path)
        super().pipe_file(path, value, mode)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Folders.made += (path,)


class Bucket(Folders):
    """One whose `makedirs` would make a bucket."""

    protocol = "s3"


for kind in (Broken, Folders):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that is not there yet."""
    prefix = {"path": "", "file": "file://", "memory": "memory://"}[request.param]
    return location(f"{prefix}{tmp_path}/a/run")


def test_what_was_written_is_read_and_replaced(folder: Location) -> None:
    place = inside(folder, "x.json")
    assert not place.exists()
    assert names(folder) == []
    for content in (b"one", b"two"):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert (place.exists(), place.name, place.stem, names(folder)) == (True, "x.json", "x", ["x.json"])
    place.unlink()
    assert names(folder) == []
    place.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        place.unlink()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    for text in (str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}", tmp_path):
        assert location(text) == tmp_path
    assert location("runs/x") == Path("runs/x")
    assert location("~/x") == Path.home() / "x"
    assert location("~no-such-user-here/x") == Path("~no-such-user-here/x")
    assert location(RemotePath("memory://x")) == RemotePath("memory://x")
    assert location("memory://x/run/") / "y" == RemotePath("memory://x/run/y")


def test_names_are_taken_as_they_are(folder: Location) -> None:
    for name in ("a[1].json", "a1.json", "b*.json"):
        write_whole(inside(folder, name), b"")
    inside(folder, "b*.json").unlink()
    inside(folder, "a[1].json").unlink()
    assert names(folder) == ["a1.json"]


def test_a_new_file_is_claimed_once(tmp_path: Path) -> None:
    place = RemotePath(f"memory://{tmp_path}/x")
    place.write_bytes(b"first", is_new=True)
    with pytest.raises(FileExistsError):
        place.write_bytes(b"second", is_new=True)
    assert place.read_bytes() == b"first"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIAKEY:seCret@bucket/run", "s3://***@bucket/run"),
        ("s3://AKIAKEY:seCr/et/x@bucket/run", "s3://***@bucket/run"),
        ("sftp://me:seCret@host/run", "sftp://***@host/run"),
        ("file://me:seCret@host/run", "file://***@host/run"),
        ("https://host/run?token=seCret", r"https://host/run\?\*\*\*"),
        ("https://me:seCret@host/run?token=seCret", r"https://\*\*\*@host/run\?\*\*\*"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(text: str, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^run-dir = '.*': holds credentials, .*; leave them to") as refusal:
        location(text)
    assert shown.replace("\\", "") in str(refusal.value)
    assert "seCr" not in str(refusal.value)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_url_that_was_read_as_a_path_is_refused(protocol: str) -> None:
    for place in (Path(f"{protocol}://x/run"), f"{protocol}:/x/run"):
        with pytest.raises(
            ConfigurationError, match=rf"was read as a path; a training run's is written {protocol}://x"
        ):
            location(place)
    with pytest.raises(ConfigurationError) as refusal:
        location(Path("s3://key:seCret@bucket/run"))
    assert "seCret" not in str(refusal.value)
    assert location("notes:/x") == Path("notes:/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing://x/run", r"^run-dir = 'nothing://x/run': no file system is known for nothing://; use a path"),
        ("simplecache::s3://key:seCret@x", r"^run-dir = 'simplecache:…': is a chain of file systems; name the last"),
        ("missing://x", r"^run-dir = 'missing://x': missing:// needs a package that is missing; pip install nowhere$"),
        ("extra://x", r'; pip install "fsspec\[extra\]"$'),
    ],
)
def test_what_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    for name, place in (("missing", "nowhere.core.Files"), ("extra", "fsspec.implementations.nowhere.Files")):
        monkeypatch.setitem(known_implementations, name, {"class": place, "err": "install it"})
    with pytest.raises(ConfigurationError, match=message) as refusal:
        location(text)
    assert "seCret" not in str(refusal.value)


def test_whatever_a_store_raises_is_an_os_error_of_one_line() -> None:
    with pytest.raises(OSError, match="no credentials for broken://x") as failure:
        RemotePath("broken://x").exists()
    assert failure.value.errno == errno.EIO
    assert reason(failure.value) == "no credentials for broken://x"
    with pytest.raises(CannotWrite) as refused:
        write_whole(RemotePath("broken://x"), b"")
    assert str(refused.value) == "broken://x: cannot be written (Access Denied); fix that and continue"


def test_folders_are_made_where_a_store_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(RemotePath("folders://a/b/x"), b"1")
    assert (RemotePath("folders://a/b/x").read_bytes(), Folders.made) == (b"1", ("folders://a/b",))
    monkeypatch.setitem(_registry, "s3", Bucket)
    with pytest.raises(CannotWrite, match=r"^s3://bucket/x: cannot be written"):
        write_whole(RemotePath("s3://bucket/x"), b"1")
    assert Folders.made == ("folders://a/b",)


@pytest.mark.parametrize("crash_in", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    place = tmp_path / "x.json"
    write_whole(place, b"before")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        match crash_in:
            case "write":
                patch.setattr(os, "fdopen", full)
            case "fsync":
                patch.setattr(os, "fsync", full)
            case _:
                patch.setattr(os, "replace", full)
        with pytest.raises(CannotWrite) as refused:
            write_whole(place, b"after")
    assert str(refused.value) == (
        f"{place}: cannot be written (No space left on device); free some space there and continue"
    )
    assert place.read_bytes() == b"before"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("make", [pickle.dumps, lambda error: pickle.dumps(error, protocol=2)])
def test_the_refusal_crosses_processes(make: Callable[[object], bytes]) -> None:
    refused = CannotWrite(errno.ENOSPC, "No space left on device", "/x")
    copy = pickle.loads(make(refused))
    assert (type(copy), str(copy), copy.errno) == (CannotWrite, str(refused), errno.ENOSPC)
