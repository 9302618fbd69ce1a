"""Real processes, real signals: what a run leaves on disk and in the process table when it is stopped or killed."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.learner.checkpoint import checkpoint_path, paths, restore_newest, update_of

Metagrad = Callable[..., Any]
Here = Callable[..., str]
Words = tuple[str, ...]


def summary_of(folder: Path) -> dict[str, Any]:
    """summary.json, its account checked."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    return summary


def content(folder: Path) -> dict[str, Any]:
    """All of the newest checkpoint but times; tensors as lists, so that == compares every bit."""

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return (str(x.dtype), x.tolist())
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        return [plain(value) for value in x] if isinstance(x, list | tuple) else x

    tree: dict[str, Any] = plain(restore_newest(folder / "checkpoints").tree)
    interval = tree["interval"]
    del tree["counters"]["wall_seconds"], interval["throughput"]["seconds"]
    sums = interval["means"]["sums"]
    interval["means"]["sums"] = {name: total for name, total in sums.items() if not name.startswith("time/")}
    return tree


def stop(command: Any, number: signal.Signals) -> None:
    if number == signal.SIGINT:
        command.press_ctrl_c()
    else:
        command.process.send_signal(number)


def resumed(words: Words, updates: int) -> Words:
    """Words that continue `run` up to `updates`."""
    return ("train", words[1], "--run-dir", "run", "--resume", "--updates", str(updates))


def whole(here: Here, words: Words, updates: int, tmp_path: Path) -> Path:
    """Folder of the uninterrupted, colocated run."""
    here(*words, "--topology", "colocated", "--updates", str(updates), "--run-dir", "whole")
    return tmp_path / "whole"


@pytest.mark.slow  # as test_a_ray_run_… below
@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (signal.SIGTERM, ("--meta.n", "2")),
        (signal.SIGINT, ("--meta.n", "3", "--meta.strategy", "sequential")),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_colocated_run_stops_and_continues_bitwise(
    metagrad: Metagrad, here: Here, tiny_words: Words, tmp_path: Path, number: signal.Signals, changes: Words
) -> None:
    words = (*tiny_words, *changes)
    first = metagrad(*words, "--topology", "colocated")
    first.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 5 if number == signal.SIGTERM else 6))
    stop(first, number)
    assert first.wait() == 0, first.output
    stopped = summary_of(tmp_path / "run")
    assert stopped["stopped_by"] == number.name
    assert f"stopped by {number.name} at update {stopped['updates']}; continue with --resume" in first.output
    assert update_of(paths(tmp_path / "run" / "checkpoints")[-1]) == stopped["updates"]

    until = stopped["updates"] + 6
    here(*resumed(words, until))
    expected = whole(here, words, until, tmp_path)
    assert content(tmp_path / "run") == content(expected)
    for key in ("updates", "frames_real", "frames_lookahead", "sampled", "consumed", "in_flight", "return_count"):
        assert summary_of(tmp_path / "run")[key] == summary_of(expected)[key], key


def test_a_colocated_run_that_was_killed_continues_bitwise_from_its_last_checkpoint(
    metagrad: Metagrad, here: Here, tiny_words: Words, tmp_path: Path
) -> None:
    first = metagrad(*tiny_words, "--topology", "colocated")
    first.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 10))
    stop(first, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    killed_at = update_of(paths(tmp_path / "run" / "checkpoints")[-1])
    assert f"at update {killed_at}" in here(*resumed(tiny_words, killed_at + 5))
    assert content(tmp_path / "run") == content(whole(here, tiny_words, killed_at + 5, tmp_path))


@pytest.mark.slow
def test_atari_continues_bitwise_where_its_games_can_be_copied(here: Here, pong_words: Words, tmp_path: Path) -> None:
    words = (*pong_words, "--env.max-episode-steps", "12", "--rollout-length", "3", "--topology", "colocated")
    here(*words, "--updates", "3")
    here(*resumed(words, 6))
    assert content(tmp_path / "run") == content(whole(here, words, 6, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_pong_on_ray_that_is_killed_at_a_random_moment_continues_bitwise(
    metagrad: Metagrad, here: Here, pong_words: Words, tmp_path: Path
) -> None:
    words = (*pong_words, "--updates", "200", "--checkpoint.every", "10")
    moment = random.Random(1)
    first = metagrad(*words)
    first.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 10 * moment.randrange(1, 18)))
    time.sleep(2 * moment.random())
    for pid in first.relatives():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, first.output
    killed_at = update_of(paths(tmp_path / "run" / "checkpoints")[-1])
    assert 0 < killed_at < 200
    second = metagrad(*resumed(words, 200))
    assert second.wait(1_500) == 0, second.output
    assert f"at update {killed_at}" in second.output
    assert content(tmp_path / "run") == content(whole(here, words, 200, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_ray_run_continues_bitwise_and_leaves_no_process(
    metagrad: Metagrad, here: Here, tiny_words: Words, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped on Ray, it goes on without it, with the same bits; tests/cluster/test_ray_actors.py resumes on Ray."""
    checkpoints = tmp_path / "run" / "checkpoints"
    first = metagrad(*tiny_words)
    first.wait_for(checkpoint_path(checkpoints, 10))
    stop(first, number)
    assert first.wait() == (0 if number == signal.SIGTERM else -number), first.output
    # Two helpers of a Ray node try for a minute to tell a killed driver of its own death.
    assert first.survivors(seconds=90 if number == signal.SIGTERM else 100) == []
    stopped_at = update_of(paths(checkpoints)[-1])
    if number == signal.SIGTERM:
        stopped = summary_of(tmp_path / "run")
        assert (stopped["stopped_by"], stopped["updates"]) == ("SIGTERM", stopped_at)

    printed = here(*resumed(tiny_words, stopped_at + 5), "--topology", "colocated")
    assert f"at update {stopped_at}" in printed
    expected = whole(here, tiny_words, stopped_at + 5, tmp_path)
    assert content(tmp_path / "run") == content(expected)
    assert summary_of(tmp_path / "run")["sampled"] == summary_of(expected)["sampled"]


@pytest.mark.slow
def test_ctrl_c_on_a_ray_run_leaves_a_checkpoint_and_no_process(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path
) -> None:
    command = metagrad(*tiny_words)
    command.wait_for(checkpoint_path(tmp_path / "run" / "checkpoints", 5))
    stop(command, signal.SIGINT)
    assert command.wait() == 0, command.output
    assert command.survivors() == []
    summary = summary_of(tmp_path / "run")
    assert (summary["stopped_by"], summary["actors_restarted"]) == ("SIGINT", 0)
    assert update_of(paths(tmp_path / "run" / "checkpoints")[-1]) == summary["updates"]


FAILING_LEARNER = """
from metagrad.learner.actor_critic import ActorCritic
update = ActorCritic.update
updates = [0]
def failing_update(*args):
    updates[0] += 1
    if updates[0] == 8:
        raise RuntimeError("the learner's own")
    return update(*args)
ActorCritic.update = failing_update
"""


@pytest.mark.parametrize("topology", ["colocated", pytest.param("ray", marks=pytest.mark.slow)])
def test_an_error_in_the_learner_ends_the_run_with_its_traceback(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path, topology: str
) -> None:
    command = metagrad(*tiny_words, "--topology", topology, prelude=FAILING_LEARNER)
    assert command.wait() == 1
    assert "in failing_update" in command.output
    assert command.output.rstrip().endswith("RuntimeError: the learner's own")
    assert command.survivors() == []
    assert summary_of(tmp_path / "run")["updates"] == 7
    assert update_of(paths(tmp_path / "run" / "checkpoints")[-1]) == 5


@pytest.mark.slow
def test_an_actor_killed_from_outside_is_replaced_within_ten_seconds(
    metagrad: Metagrad, tiny_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = metagrad(*tiny_words, "--checkpoint.every", "1")
    checkpoints = tmp_path / "run" / "checkpoints"
    command.wait_for(checkpoint_path(checkpoints, 5))
    victims = [pid for pid, line in command.relatives().items() if "ray::_RolloutActor" in line]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    killed = time.monotonic()
    time.sleep(0.2)  # what was under way when it died may still end
    update = update_of(paths(checkpoints)[-1])
    command.wait_for(checkpoint_path(checkpoints, update + 2))
    seconds = time.monotonic() - killed
    stop(command, signal.SIGTERM)
    assert command.wait() == 0, command.output
    assert summary_of(tmp_path / "run")["actors_restarted"] == 1
    with capsys.disabled():
        print(f"\nrecovery took {seconds:.1f} s")
    assert seconds < 10
