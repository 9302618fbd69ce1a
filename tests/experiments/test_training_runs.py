"""A tiny run as a part of a study: whatever interrupts it, it comes to what the uninterrupted one does, bit for bit."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.evaluate import evaluate
from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.training.runs import checkpoints, curves, evaluate_newest, evaluations, train
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.checkpoint import load, paths, update_of
from metagrad.networks import Mlp

CPU = torch.device("cpu")
LOGGED = ("eta/gamma", "advantage/outer_mean", "episode/return_mean")
COUNTED = ("updates", "frames_real", "frames_lookahead", "return_mean", "return_count", "eta", "sampled", "consumed")
EPISODES = 5


def tiny(**changes: Any) -> Experiment:
    """Six updates, rows and checkpoints after every second."""
    return replace(
        snake_6x6(),
        **{
            "env": SnakeConfig(rows=3, columns=3, time_limit=20),
            "network": Mlp(hidden=4),
            "environments": 4,
            "actors": 1,
            "rollout_length": 3,
            "updates": 6,
            "topology": "colocated",
            "learner_threads": 1,
            "seed": 3,
            "log_every": 2,
            "checkpoint": CheckpointConfig(every=2, keep=1_000),
        }
        | changes,
    )


class Found(NamedTuple):
    """Return all that a study takes from a run."""

    curves: Any
    evaluations: Any
    checkpoints: list[int]
    summary: dict[str, Any]


def found(folder: Path, summary: dict[str, Any]) -> Found:
    return Found(
        curves(folder, LOGGED),
        evaluations(tiny(), folder, EPISODES, ("sampled", "greedy")),
        list(checkpoints(tiny(), folder)),
        {name: summary[name] for name in COUNTED},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """The uninterrupted run: its folder, and what it came to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, found(folder, train(tiny(), folder))


@contextmanager
def at_update(
    monkeypatch: pytest.MonkeyPatch, update: int, happens: Callable[[Callable[[], Any]], None]
) -> Iterator[list[int]]:
    """Something happens in the middle of this update; gives those that were begun."""
    begun: list[int] = []

    own_update = ActorCritic.update

    def watched(algorithm: Any, state: Any, sample: Any) -> Any:
        begun.append(state.update + 1)
        if begun[-1] == update:
            happens(lambda: sample(state.snapshot(), 0))
        return own_update(algorithm, state, sample)

    with monkeypatch.context() as patch:
        patch.setattr(ActorCritic, "update", watched)
        yield begun


def switched_off(sample: Callable[[], Any]) -> None:
    sample()  # the environments have moved on by then
    raise OSError("switched off")


@pytest.mark.parametrize(("update", "begun_again"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 2, 3, 4, 5, 6]), (6, [5, 6])])
def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint_or_starts_anew(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int, begun_again: list[int]
) -> None:
    folder = tmp_path / "work" / "run"
    with at_update(monkeypatch, update, switched_off), pytest.raises(OSError, match="switched off"):
        train(tiny(), folder)
    with at_update(monkeypatch, 0, switched_off) as begun:
        summary = train(tiny(), folder)
    assert begun == begun_again
    assert found(folder, summary) == whole[1]


@pytest.mark.parametrize("update", [1, 3])
def test_a_signal_is_raised_again_and_leaves_no_trace_in_what_the_run_comes_to(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """It ends the run between two regular checkpoints, and the means that are logged there are of a part."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with at_update(monkeypatch, update, lambda _: os.kill(os.getpid(), signal.SIGTERM)) as begun:
            train(tiny(), tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert begun[-1] in (update, update + 1), "the update under way is finished, and no more than that"
    assert [update_of(path) for path in paths(tmp_path / "run" / "checkpoints")][-1] == begun[-1]
    assert found(tmp_path / "run", train(tiny(), tmp_path / "run")) == whole[1]


def test_a_longer_run_goes_on_from_the_shorter_one(whole: Any, tmp_path: Path) -> None:
    train(tiny(updates=3), tmp_path / "run")
    assert found(tmp_path / "run", train(tiny(), tmp_path / "run")) == whole[1]


def test_a_finished_run_is_not_run_again(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = whole
    with at_update(monkeypatch, 0, switched_off) as begun:
        summary = train(tiny(), folder)
    assert begun == []
    assert found(folder, summary) == expected


def test_a_curve_has_what_was_logged_under_a_name(whole: Any) -> None:
    folder, expected = whole
    assert expected.curves.keys() == set(LOGGED)
    assert expected.curves["eta/gamma"]["updates"] == [2, 4, 6]
    assert curves(folder, ("eta/gamma", "no/such_name")) == {"eta/gamma": expected.curves["eta/gamma"]}
    for curve in expected.curves.values():
        assert all(value == float(f"{value:.7g}") for value in curve["values"]), "single precision has no more digits"


def test_checkpoints_begin_with_the_state_before_the_first_update(whole: Any) -> None:
    folder, expected = whole
    states = checkpoints(tiny(), folder)
    assert list(states) == expected.checkpoints == [0, 2, 4, 6]
    assert torch.equal(states[0]["theta"], tiny().algorithm(probe(tiny().env)).init(3, CPU).theta)
    for path in paths(folder / "checkpoints"):
        assert torch.equal(states[update_of(path)]["theta"], load(path)["learner"]["theta"])


def test_every_checkpoint_plays_the_same_games(whole: Any) -> None:
    folder, expected = whole
    network = tiny().algorithm(probe(tiny().env)).network
    for policy in ("sampled", "greedy"):
        means = [
            evaluate(network, tree["theta"], tiny().env, EPISODES, 1_003, policy == "greedy", CPU, 1).mean
            for tree in checkpoints(tiny(), folder).values()
        ]
        assert expected.evaluations[policy] == {"updates": [0, 2, 4, 6], "values": pytest.approx(means, rel=1e-6)}
    assert expected.evaluations["sampled"] != expected.evaluations["greedy"]
    newest = evaluate_newest(tiny(), folder, EPISODES)
    assert newest.mean == pytest.approx(expected.evaluations["sampled"]["values"][-1], rel=1e-6)
    assert len(newest.returns) == EPISODES


@pytest.mark.parametrize("update", [3, 5])
def test_checkpoints_between_two_rows_lose_nothing_of_them(tmp_path: Path, update: int) -> None:
    """As those of a probe after every 166 updates, with a row after every 50."""
    experiment = tiny(log_every=4, checkpoint=CheckpointConfig(every=3, keep=1_000), updates=9)
    train(experiment, tmp_path / "whole")
    train(replace(experiment, updates=update), tmp_path / "run")
    train(experiment, tmp_path / "run")
    logged = ("norm/meta_gradient", "meta_gradient/variance", *LOGGED)
    assert curves(tmp_path / "run", logged) == curves(tmp_path / "whole", logged)
    assert curves(tmp_path / "run", logged)["norm/meta_gradient"]["updates"] == [4, 8, 9]
