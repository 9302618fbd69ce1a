"""Runs in processes of their own that are asked to end, at whatever time and in whatever way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metagrad.learner.checkpoint import checkpoint_path, paths, update_of

pytestmark = pytest.mark.slow
Metagrad = Callable[..., Any]
Words = tuple[str, ...]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_what_a_terminal_sends_to_all_processes_of_a_ray_run_leaves_a_checkpoint(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path, number: signal.Signals
) -> None:
    """Ray's own processes must not hear of it: the checkpoint needs them."""
    command = metagrad(*tiny_words)
    command.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 5))
    os.killpg(command.process.pid, number)
    assert command.wait() == 0, command.output
    assert f"{number.name}: the run ends after the update at hand, with a checkpoint" in command.output
    newest = update_of(paths(tmp_path / "run" / "checkpoints")[-1])
    assert f"stopped by {number.name} at update {newest}; continue with --resume" in command.output
    assert command.survivors() == []


def test_a_run_that_is_stopped_while_ray_starts_is_continued_at_update_0(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path
) -> None:
    first = metagrad(*tiny_words)
    first.wait_until(lambda: any("gcs_server" in line for line in first.relatives().values()))
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 0, first.output
    assert "stopped by SIGTERM at update 0; continue with --resume" in first.output
    assert first.survivors() == []
    words = ("train", "snake-6x6", "--resume", "--run-dir", "run", "--topology", "colocated", "--updates", "3")
    second = metagrad(*words)
    assert second.wait() == 0, second.output
    assert "this run has no checkpoint yet: it begins at update 0" in second.output


def test_a_learner_that_is_frozen_is_not_waited_for_for_ever(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path
) -> None:
    command = metagrad(*tiny_words)
    command.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 5))
    (learner,) = (pid for pid, line in command.relatives().items() if "ray::" in line and "Learner" in line)
    os.kill(learner, signal.SIGSTOP)
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 1, command.output
    assert "SIGTERM: the learner does not answer; the run ends without it in" in command.output
    assert command.output.splitlines()[-1].startswith("metagrad: the learner's process was lost (no answer for ")
    assert "Traceback" not in command.output
    assert command.survivors() == []


@pytest.mark.parametrize("topology", ["colocated", "ray"])
def test_signals_change_nothing_in_the_last_second_of_a_finished_run(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path, topology: str
) -> None:
    command = metagrad(*tiny_words, "--updates", "3", "--topology", topology)
    command.wait_for(tmp_path / "run" / "summary.json")
    while command.process.poll() is None:
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert command.wait() == 0, command.output
    assert "3 updates, 36 real frames" in command.output


def test_a_run_goes_on_without_its_console(tiny_words: Words, tmp_path: Path) -> None:
    metagrad = str(Path(sys.executable).with_name("metagrad"))
    program = [metagrad, *tiny_words, *("--topology", "colocated", "--updates", "9")]
    process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "run folder: run\n"
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, said
    assert said == "metagrad: standard output is gone (Broken pipe); metagrad continues without it\n"
    assert update_of(paths(tmp_path / "run" / "checkpoints")[-1]) == 9
