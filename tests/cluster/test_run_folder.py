import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.run.events import EventLog
from metagrad.cluster.run.folder import RunFolder
from metagrad.errors import ConfigurationError
from metagrad.learner.checkpoint import NoCheckpoint, restore_newest
from metagrad.learner.storage import CannotWrite, Location, location, names, write_whole

Tiny = Callable[..., Experiment]


@pytest.fixture(params=["", "memory://"], ids=["path", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that is not there yet."""
    return location(f"{request.param}{tmp_path}/a/b c")


def test_a_claimed_folder_gives_its_experiment_back(tiny: Tiny, place: Location) -> None:
    folder = RunFolder(str(place))
    assert not folder.has_run()
    with folder.held():
        folder.open_new(tiny())
        assert folder.has_run()
        assert folder.experiment() == tiny()
    assert names(place) == ["config.json"]


def test_a_folder_is_claimed_once(tiny: Tiny, place: Location) -> None:
    RunFolder(place).open_new(tiny())
    with pytest.raises(ConfigurationError, match=r"^run-dir = '.*': already holds a run; continue it with --resume"):
        RunFolder(place).open_new(tiny(seed=1))
    assert RunFolder(place).experiment().seed == 0


def test_two_claims_of_a_url_at_the_same_moment(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (RunFolder(f"memory://{tmp_path}") for _ in range(2))
    first.open_new(tiny())
    monkeypatch.setattr(second, "has_run", lambda: False)  # what it saw before the first one was there
    with pytest.raises(ConfigurationError, match=r"another process has begun a run in it at this moment; choose"):
        second.open_new(tiny(seed=1))
    first.write_summary({})


def test_who_continues_a_run_at_a_url_takes_it_over(tiny: Tiny, tmp_path: Path) -> None:
    first, second = (RunFolder(f"memory://{tmp_path}") for _ in range(2))
    with first.held():
        first.open_new(tiny())
        first.write_checkpoint(1, {"by": "first"}, keep=3)
        with pytest.raises(ConfigurationError), second.held():
            second.open_new(tiny())  # refused, and the first one goes on
        first.write_checkpoint(2, {"by": "first"}, keep=3)
        with second.held():
            second.open_resumed(tiny(updates=7))
            message = rf"^memory://.*: cannot be written \(process {os.getpid()} on .* continues this run since .*\); "
            for write in (partial(first.write_checkpoint, 3, {}, 3), partial(first.write_summary, {"by": "first"})):
                with pytest.raises(CannotWrite, match=message):
                    write()
            second.write_checkpoint(3, {"by": "second"}, keep=3)
            second.write_summary({"by": "second"})
            holder = second.path / "holder.json"
            own = holder.read_bytes()
            holder.write_bytes(b"{")
            with pytest.raises(CannotWrite, match=r"holder.json cannot be read"):
                second.write_summary({})
            holder.write_bytes(own)
        with pytest.raises(CannotWrite, match=r"\(another process has continued this run and ended\); this process"):
            first.write_summary({})
    assert restore_newest(first.checkpoints).tree == {"by": "second"}
    assert json.loads((first.path / "summary.json").read_text()) == {"by": "second"}
    assert names(first.path) == ["checkpoints", "config.json", "summary.json"]


def test_a_held_path_needs_no_name_in_it(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.held():
        folder.open_new(tiny())
        folder.write_checkpoint(1, {}, keep=1)
        folder.write_checkpoint(2, {}, keep=1)
        folder.write_summary({"updates": 2})
    assert names(folder.checkpoints) == ["update-000000002.pt"]
    assert sorted(names(tmp_path)) == ["checkpoints", "config.json", "summary.json"]


def test_a_url_that_cannot_be_used_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="holds credentials") as refusal:
        RunFolder("s3://KEY:secret@bucket/run")
    assert "secret" not in str(refusal.value)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    folder = RunFolder(f"memory://{tmp_path}")
    with pytest.raises(ConfigurationError, match=r"cannot be written \(Access Denied\); choose another folder$"):
        folder.open_new(tiny())
    monkeypatch.setattr(MemoryFileSystem, "info", denied)
    with pytest.raises(ConfigurationError, match=r"cannot be read \(Access Denied\); choose another folder$"):
        folder.experiment()


def test_a_withdrawn_claim_of_a_url_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(f"memory://{tmp_path}")
    with folder.held():
        folder.open_new(tiny())
        folder.withdraw()
    assert names(folder.path) == []
    folder.open_new(tiny())


@pytest.mark.parametrize("was_there", [False, True])
def test_a_withdrawn_claim_leaves_what_was_there(tiny: Tiny, tmp_path: Path, was_there: bool) -> None:
    path = tmp_path / "run"
    folder = RunFolder(path)
    if was_there:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with folder.held():
        folder.open_new(tiny())
        folder.withdraw()
    assert path.exists() == was_there
    assert not folder.has_run()
    folder.open_new(tiny())


def test_a_file_in_the_way_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"cannot be written \(.+\); choose another folder$"):
        RunFolder(tmp_path / "run").open_new(tiny())


def test_a_name_that_is_too_long_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / ("x" * 300))
    for use in (folder.has_run, folder.experiment, lambda: folder.open_new(tiny())):
        with pytest.raises(ConfigurationError, match=r"cannot be read \(File name too long\); choose another folder$"):
            use()


def test_checkpoints_without_a_config_are_in_the_way(tiny: Tiny, place: Location) -> None:
    folder = RunFolder(place)
    folder.write_checkpoint(1, {}, keep=1)
    with pytest.raises(ConfigurationError, match=r"holds checkpoints of another run; choose another folder$"):
        folder.open_new(tiny())


def test_a_config_that_cannot_be_written_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder(tmp_path).open_new(tiny())

    def full(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(Read-only file system\); choose another"):
        RunFolder(tmp_path).open_resumed(tiny())


def test_a_config_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for content in (b"\xff\xfe", b"[" * 100_000):
        config.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"its config.json cannot be read .*; restore that file"):
            RunFolder(tmp_path).experiment()
    config.unlink()
    config.mkdir()
    with pytest.raises(ConfigurationError, match=r"its config.json cannot be read .*; restore that file"):
        RunFolder(tmp_path).experiment()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"type": "Experiment"}', '{"type": "os.system"}', '{"type": "Mlp", "hidden": 3}']
)
def test_a_damaged_config_is_refused_in_one_line(tiny: Tiny, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError) as refusal:
        RunFolder(tmp_path).experiment()
    assert "\n" not in str(refusal.value)


def test_no_config_no_run(place: Location) -> None:
    with pytest.raises(ConfigurationError, match="does not hold a run"):
        RunFolder(place).experiment()


def test_only_how_and_how_long_it_is_run_may_change(tiny: Tiny, place: Location) -> None:
    folder = RunFolder(place)
    folder.open_new(tiny())
    changed = tiny(updates=99, device="cuda:7", log_every=3, checkpoint=CheckpointConfig(every=7))
    folder.open_resumed(changed)
    assert folder.experiment() == changed
    other = replace(changed, optimizer=replace(tiny().optimizer, learning_rate=0.5))
    with pytest.raises(ConfigurationError, match=r"^optimizer.learning_rate = 0.5: .*was started with 0.0005"):
        folder.open_resumed(other)
    assert folder.experiment() == changed


def test_files_are_replaced_whole(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary({"updates": 1})

    def crash(*_args: object, **_names: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(CannotWrite, match=r"^/.*/summary.json: cannot be written \(no space left"):
            folder.write_summary({"updates": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"updates": 1}


@pytest.mark.parametrize("is_moved", [False, True], ids=["removed", "moved"])
def test_a_run_whose_folder_is_replaced_writes_nothing_into_the_other_one(
    tiny: Tiny, tmp_path: Path, is_moved: bool
) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "second")
    second.open_new(tiny(seed=1))
    second.write_checkpoint(1, {"by": "second"}, keep=3)
    with first.held():
        first.open_new(tiny())
        log = EventLog(first.path, 0)
        first.write_checkpoint(1, {"by": "first"}, keep=3)
        first.path.rename(tmp_path / "moved")
        if not is_moved:
            shutil.rmtree(tmp_path / "moved")
        writes = [
            partial(first.write_checkpoint, 2, {"by": "first"}, 3),
            partial(first.write_summary, {"by": "first"}),
            partial(log.scalars, {"x": 1.0}, 2),
            partial(write_whole, first.path / "evaluation.json", b"first"),
        ]
        message = r"^/.*/run.*: cannot be written \(the folder .* was removed, moved or replaced\); this process ends"
        for write in writes:
            with pytest.raises(CannotWrite, match=message):
                write()
        assert not first.path.exists()
        second.path.rename(first.path)  # as another process begins it there
        before = contents(first.path)
        for write in writes:
            with pytest.raises(CannotWrite, match=message):
                write()
    assert contents(first.path) == before
    with first.held():
        first.write_checkpoint(2, {"by": "second"}, keep=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_may_be_named_by_a_link_of_the_users(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").mkdir()
    (tmp_path / "latest").symlink_to("runs/one")
    folder = RunFolder(tmp_path / "latest")
    with folder.held():
        folder.open_new(tiny())
        folder.write_checkpoint(1, {"by": "link"}, keep=1)
        with pytest.raises(ConfigurationError, match="another process is working in it"), RunFolder(folder.path).held():
            pass
    assert folder.path == tmp_path / "runs" / "one"
    assert restore_newest(RunFolder(tmp_path / "latest").checkpoints).tree == {"by": "link"}
    (tmp_path / "loop").symlink_to("loop")
    looped = RunFolder(tmp_path / "loop")
    for use in (looped.experiment, partial(looped.open_new, tiny()), looped.held().__enter__):
        with pytest.raises(ConfigurationError):
            use()


def test_folders_that_are_links_are_neither_read_nor_emptied(tiny: Tiny, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    other.open_new(tiny())
    for update in (1, 2, 3):
        other.write_checkpoint(update, {}, keep=9)
    before = contents(other.path)
    folder = RunFolder(tmp_path / "run")
    folder.open_new(tiny())
    folder.checkpoints.symlink_to(other.checkpoints)
    with pytest.raises(ConfigurationError, match="checkpoints is a link, which is not followed"), folder.held():
        pass
    with pytest.raises(CannotWrite, match="checkpoints is a link, which is not followed"):
        folder.write_checkpoint(4, {}, keep=1)
    with pytest.raises(NoCheckpoint, match="checkpoints is a link, which is not followed"):
        restore_newest(folder.checkpoints)
    assert contents(other.path) == before
