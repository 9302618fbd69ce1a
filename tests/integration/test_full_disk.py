"""A disk that is full, or may not be written, for real: a small tmpfs."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metagrad.cli import main as cli
from metagrad.learner.checkpoint import paths, restore_newest, update_of
from metagrad.learner.storage import CannotWrite

Metagrad = Callable[..., Any]
Words = tuple[str, ...]
FULL = "cannot be written (No space left on device)"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave nothing, while a run may be writing there."""
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                return


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(
    metagrad: Metagrad, here: Callable[..., str], tiny_words: Words, disk: Path
) -> None:
    run = disk / "run"
    words = (*tiny_words, "--topology", "colocated", "--checkpoint.every", "20", "--checkpoint.keep", "2")
    first = metagrad(*words, "--run-dir", str(run))
    first.wait_for(run / "checkpoints" / "update-000000020.pt")
    fill(disk)
    assert first.wait() == 1
    last_line = first.output.splitlines()[-1]
    assert f": {run}/" in last_line
    assert last_line.endswith(f"{FULL}; free some space there and continue")
    assert [path.name for path in run.rglob("*.partial")] == []
    restored = restore_newest(run / "checkpoints")
    assert restored.unreadable == ()

    (disk / "filler").unlink()
    last = update_of(restored.path) + 20
    printed = here("train", words[1], "--run-dir", str(run), "--resume", "--updates", str(last))
    assert f"at update {update_of(restored.path)}" in printed
    assert json.loads((run / "summary.json").read_text())["updates"] == last
    assert update_of(paths(run / "checkpoints")[-1]) == last


def test_a_file_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise CannotWrite(errno.ENOSPC, "No space left on device", "/run/checkpoints/update-000000020.pt")

    monkeypatch.setattr("metagrad.cli.commands.list.run", refuse)
    assert cli.main(["list"]) == 1
    line = f"metagrad: /run/checkpoints/update-000000020.pt: {FULL}; free some space there and continue\n"
    assert capsys.readouterr().err == line


def test_a_disk_that_is_full_from_the_start_is_refused(
    tiny_words: Words, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk)
    assert cli.main((*tiny_words, "--topology", "colocated", "--run-dir", str(disk / "run"))) == 2
    printed = capsys.readouterr()
    (line,) = (printed.out + printed.err).splitlines()
    assert line == f"metagrad: run-dir = '{disk / 'run'}': {FULL}; choose another folder"


def test_a_disk_that_may_not_be_written_is_refused(
    tiny_words: Words, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert cli.main((*tiny_words, "--topology", "colocated", "--run-dir", str(disk / "run"))) == 2
    printed = capsys.readouterr()
    (line,) = (printed.out + printed.err).splitlines()
    rule = "cannot be written (Read-only file system)"
    assert line == f"metagrad: run-dir = '{disk / 'run'}': {rule}; choose another folder"
