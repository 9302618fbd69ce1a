import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import Experiment
from cluster.run_config import CheckpointConfig
from cluster.run_folder import RunFolder
from metagrad.errors import ConfigurationError

Tiny = Callable[..., Experiment]


def test_a_claimed_folder_gives_its_experiment_back(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b c")
    assert not folder.has_run()
    folder.open_new(tiny())
    assert folder.has_run()
    assert folder.experiment() == tiny()
    assert [p.name for p in folder.path.iterdir()] == ["config.json"]


def test_a_folder_is_claimed_once(tiny: Tiny, tmp_path: Path) -> None:
    RunFolder(tmp_path).open_new(tiny())
    with pytest.raises(ConfigurationError, match=r"^run-dir = '.*': already holds a run; continue it with --resume"):
        RunFolder(tmp_path).open_new(tiny(seed=1))
    assert RunFolder(tmp_path).experiment().seed == 0


@pytest.mark.parametrize("was_there", [False, True])
def test_a_withdrawn_claim_leaves_what_was_there(tiny: Tiny, tmp_path: Path, was_there: bool) -> None:
    folder = RunFolder(tmp_path / "run")
    if was_there:
        folder.path.mkdir()
        (folder.path / "notes.txt").write_text("mine")
    folder.open_new(tiny())
    folder.withdraw()
    assert folder.path.exists() == was_there
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


def test_checkpoints_without_a_config_are_in_the_way(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigurationError, match=r"holds checkpoints of another run; choose another folder$"):
        RunFolder(tmp_path).open_new(tiny())


def test_a_config_that_cannot_be_written_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder(tmp_path).open_new(tiny())

    def full(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("cluster.run_folder.os.fsync", full)
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


def test_no_config_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run"):
        RunFolder(tmp_path / "absent").experiment()


def test_only_how_and_how_long_it_is_run_may_change(tiny: Tiny, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
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

    def crash(*_args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(OSError, match="no space left"):
            folder.write_summary({"updates": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"updates": 1}
