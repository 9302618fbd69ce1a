"""A run is never lost: what it leaves whenever it ends, and that its continuation comes to what it would have been."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from rich.console import Console

from metagrad.actors.evaluate import MAX_EPISODE_STEPS, EvaluationResult
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, EvaluationConfig
from metagrad.cluster.launch import supervise
from metagrad.cluster.launch.launch import default_run_dir, run
from metagrad.cluster.on_ray import evaluator
from metagrad.cluster.on_ray import private as ray_private
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.plot import logged_scalars
from metagrad.errors import ConfigurationError, RunLost
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.checkpoint import load, paths, save
from metagrad.learner.storage import CannotWrite
from metagrad.networks import Mlp

Tiny = Callable[..., Experiment]
QUIET = Console(quiet=True)


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """(update, happens): something happens in the middle of this update."""

    own_update = ActorCritic.update

    def arrange(update: int, happens: Callable[[], None]) -> None:
        def watched(algorithm: Any, state: Any, sample: Any) -> Any:
            if state.update + 1 == update:
                happens()
            return own_update(algorithm, state, sample)

        monkeypatch.setattr(ActorCritic, "update", watched)

    return arrange


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def switched_off() -> None:
    raise OSError("switched off")


def rows(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """All that was logged but times: updates and values, each update once or several times with the same value."""
    found = {}
    for name, (updates, values) in logged_scalars(folder).items():
        if not name.startswith(("time/", "throughput/")):
            assert len(set(zip(updates.tolist(), values.tolist(), strict=True))) == len(set(updates.tolist())), name
            unique, first = np.unique(updates, return_index=True)
            found[name] = (unique.tolist(), values[first].tolist())
    return found


def experiment_of(tiny: Tiny, log_every: int, every: int, updates: int = 11) -> Experiment:
    return tiny(
        network=Mlp(hidden=4),
        updates=updates,
        meta={"n": 1},
        log_every=log_every,
        checkpoint=CheckpointConfig(every=every, keep=20),
        evaluation=EvaluationConfig(every=3, episodes=2),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Experiment], dict[str, Any]]:
    """Rows of the uninterrupted run, by its `log_every`."""

    @cache
    def played(log_every: int, experiment: Experiment) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole")
        run(experiment, folder, False, QUIET)
        return rows(folder)

    return lambda experiment: played(
        experiment.log_every, replace(experiment, checkpoint=CheckpointConfig(every=100, keep=1))
    )


@pytest.mark.parametrize(
    ("log_every", "every", "ends"),
    [
        (2, 3, ("terminated", 5)),
        (2, 3, ("terminated", 6)),  # where an evaluation is due
        (4, 6, ("terminated", 11)),  # in the last update
        (4, 3, ("switched off", 8)),  # behind the checkpoint of update 6, between the rows of 4 and 8
        (5, 4, ("shorter", 7)),  # its last row is of two updates
        (5, 4, ("shorter", 9)),  # the same, where an evaluation was due
        (100, 2, ("terminated", 3)),
    ],
)
@pytest.mark.thinned(3)
def test_the_rows_of_a_run_that_goes_on_are_those_of_the_uninterrupted_one(
    tiny: Tiny, tmp_path: Path, whole: Any, at_update: Any, log_every: int, every: int, ends: tuple[str, int]
) -> None:
    experiment = experiment_of(tiny, log_every, every)
    how, update = ends
    expected = whole(experiment)
    if how == "shorter":
        run(replace(experiment, updates=update), tmp_path, False, QUIET)
    elif how == "terminated":
        at_update(update, terminated)
        run(experiment, tmp_path, False, QUIET)
    else:
        at_update(update, switched_off)
        with pytest.raises(OSError, match="switched off"):
            run(experiment, tmp_path, False, QUIET)
    at_update(0, switched_off)
    run(experiment, tmp_path, True, QUIET)
    assert rows(tmp_path) == expected
    assert expected["evaluation/return_mean"][0] == [3, 6, 9]


def test_a_row_that_is_taken_back_stays_taken_back_when_the_next_life_is_short_too(
    tiny: Tiny, tmp_path: Path, whole: Any, at_update: Any
) -> None:
    """Its first checkpoint comes before its first row, and then it is killed."""
    experiment = experiment_of(tiny, 5, 1)
    run(replace(experiment, updates=6), tmp_path, False, QUIET)
    at_update(8, switched_off)
    with pytest.raises(OSError, match="switched off"):
        run(experiment, tmp_path, True, QUIET)
    at_update(0, switched_off)
    run(experiment, tmp_path, True, QUIET)
    assert rows(tmp_path) == whole(experiment)


def test_a_finished_run_that_is_resumed_keeps_its_last_row(tiny: Tiny, tmp_path: Path) -> None:
    experiment = experiment_of(tiny, 5, 4, updates=6)
    run(experiment, tmp_path, False, QUIET)
    before = rows(tmp_path)
    run(experiment, tmp_path, True, QUIET)
    assert rows(tmp_path) == before
    assert before["loss/inner"][0] == [5, 6]


def test_a_checkpoint_without_an_interval_can_be_continued(tiny: Tiny, tmp_path: Path) -> None:
    experiment = experiment_of(tiny, 4, 3, updates=6)
    run(replace(experiment, updates=3), tmp_path, False, QUIET)
    tree = load(paths(tmp_path / "checkpoints")[-1])
    del tree["interval"]
    save(tmp_path / "checkpoints", 3, tree, keep=9)
    assert run(experiment, tmp_path, True, QUIET)["updates"] == 6


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGXCPU])
def test_whatever_asks_a_run_to_end_leaves_a_checkpoint(
    tiny: Tiny, console: Console, tmp_path: Path, at_update: Any, number: signal.Signals
) -> None:
    at_update(2, lambda: os.kill(os.getpid(), number))
    summary = run(tiny(meta={"n": 0}), tmp_path, False, console)
    assert (summary["stopped_by"], summary["updates"]) == (number.name, 2)
    assert [path.name for path in paths(tmp_path / "checkpoints")] == ["update-000000002.pt"]
    assert f"stopped by {number.name} at update 2; continue with --resume" in text(console)


def test_a_run_without_a_checkpoint_goes_on_from_update_0(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, at_update: Any
) -> None:
    """It was killed inside its first one, or the disk was full there."""
    experiment = tiny(meta={"n": 0}, updates=4)
    run(experiment, tmp_path / "whole", False, QUIET)
    at_update(3, switched_off)
    with pytest.raises(OSError, match="switched off"):
        run(experiment, tmp_path / "run", False, QUIET)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "update-000000002.partial").write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match=r"already holds a run; continue it with --resume"):
        run(experiment, tmp_path / "run", False, QUIET)
    at_update(0, switched_off)
    run(experiment, tmp_path / "run", True, console)
    assert "this run has no checkpoint yet: it begins at update 0" in text(console)
    assert learner_of(tmp_path / "run") == learner_of(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("has_notes", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, ConfigurationError, KeyboardInterrupt])
def test_a_run_of_which_nothing_came_gives_its_folder_back(
    tiny: Tiny, tmp_path: Path, at_update: Any, error: type[BaseException], has_notes: bool
) -> None:
    folder = tmp_path / "runs" / "run"
    if has_notes:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")

    def fail() -> None:
        raise error("inside")

    at_update(1, fail)
    with pytest.raises(error):
        run(tiny(), folder, False, QUIET)
    assert [path.name for path in tmp_path.rglob("*")] == (["runs", "run", "notes.txt"] if has_notes else [])


@pytest.mark.parametrize("error", [RunLost("lost; continue with --resume"), CannotWrite(28, "full", "place")])
def test_a_run_that_is_to_be_resumed_keeps_its_folder(
    tiny: Tiny, tmp_path: Path, at_update: Any, error: Exception
) -> None:
    def fail() -> None:
        raise error

    at_update(1, fail)
    with pytest.raises(type(error)):
        run(tiny(), tmp_path / "run", False, QUIET)
    at_update(0, fail)
    assert run(tiny(), tmp_path / "run", True, QUIET)["updates"] == 6


@pytest.mark.parametrize("changes", [{"actors": 4}, {"network": Mlp(hidden=5)}, {"outer": "value"}], ids=str)
def test_another_configuration_is_never_a_checkpoints_fault(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The checkpoint is good: nothing may say that it should go."""
    run(tiny(updates=2), tmp_path, False, QUIET)
    if "outer" in changes:
        changes = {"outer": replace(tiny().outer, critic="inner" if tiny().outer.critic == "outer" else "outer")}
    with pytest.raises(ConfigurationError, match=r"was started with .*, which --resume cannot change; leave it out"):
        run(tiny(**changes), tmp_path, True, QUIET)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tiny: Tiny) -> None:
    assert len({default_run_dir(tiny()) for _ in range(100)}) == 100


class Endless:
    """Evaluation of games that never end, and what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None] = lambda: None):
        self.limits: list[int] = []

        def evaluate(*_: Any, max_steps: int, is_stopped: Any = lambda: False) -> EvaluationResult:
            from metagrad.actors.evaluate import EvaluationStopped

            self.limits.append(max_steps)
            happens()
            if is_stopped():
                raise EvaluationStopped
            return EvaluationResult([1.0, 3.0], [max_steps] * 2, cut=1)

        monkeypatch.setattr(evaluator, "evaluate", evaluate)
        monkeypatch.setattr("metagrad.cluster.run.evaluation.evaluate", evaluate)


def test_an_evaluation_that_was_cut_says_so(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    endless = Endless(monkeypatch)
    evaluation = EvaluationConfig(every=1, episodes=2, max_steps=70)
    run(tiny(updates=1, evaluation=evaluation), tmp_path, False, console)
    said = "return 2.00; 1 of 2 episodes had not ended after 70 steps (evaluation.max_steps) and were cut"
    assert f"evaluation at update 1: {said}" in text(console)
    evaluate_run(tmp_path, None, 2, 0, False, False)
    line = f"1 of 2 episodes had not ended after {MAX_EPISODE_STEPS} steps (--max-steps) and were cut"
    assert line in capsys.readouterr().out
    assert endless.limits == [70, MAX_EPISODE_STEPS]


def test_a_signal_ends_an_evaluation_and_it_is_played_when_the_run_goes_on(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(updates=3, evaluation=EvaluationConfig(every=2, episodes=2))
    with monkeypatch.context() as patch:
        Endless(patch, terminated)
        assert run(experiment, tmp_path, False, console)["updates"] == 2
    assert "evaluation at update 2 stopped by SIGTERM; --resume plays it again" in text(console)
    run(experiment, tmp_path, True, console)
    assert rows(tmp_path)["evaluation/return_mean"][0] == [2]


def test_an_evaluation_is_there_as_soon_as_it_has_been_played(tiny: Tiny, tmp_path: Path, at_update: Any) -> None:
    """Also for a run that is killed later."""
    at_update(3, switched_off)
    with pytest.raises(OSError, match="switched off"):
        run(tiny(evaluation=EvaluationConfig(every=2, episodes=2)), tmp_path, False, QUIET)
    assert rows(tmp_path)["evaluation/return_mean"][0] == [2]


def test_a_run_that_is_stopped_while_ray_starts_can_be_continued(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: terminated())
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray_private, "endpoints", dict)
    experiment = tiny(topology="ray")
    summary = run(experiment, tmp_path, False, console)
    assert (summary["updates"], summary["stopped_by"], summary["sampled"]) == (0, "SIGTERM", 0)
    assert "stopped by SIGTERM at update 0; continue with --resume" in text(console)
    assert RunFolder(tmp_path).experiment() == experiment
    assert run(replace(experiment, topology="colocated"), tmp_path, True, console)["updates"] == 6


class Silent:
    """A learner that never answers, on a clock that Ray's waiting moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: Any, signal_at: float | None):
        self.now = 0.0
        monkeypatch.setattr(supervise.time, "monotonic", lambda: self.now)

        def wait(_references: Any, timeout: float) -> tuple[list[Any], list[Any]]:
            self.now += timeout
            if signal_at is not None and self.now >= signal_at:
                stop.signal_name = "SIGTERM"
            return [], []

        monkeypatch.setattr(ray, "wait", wait)


@pytest.mark.parametrize(("signal_at", "seconds"), [(None, 120.0), (3.0, 33.0), (100.0, 120.0)])
def test_a_learner_that_does_not_answer_is_waited_for_so_long(
    monkeypatch: pytest.MonkeyPatch, signal_at: float | None, seconds: float
) -> None:
    stop = SimpleNamespace(signal_name=None)
    clock = Silent(monkeypatch, stop, signal_at)
    said: list[str] = []
    patience = supervise._Patience(120.0, stop, said.append)

    def wait() -> None:
        while not ray.wait(["reference"], timeout=0.5)[0]:
            patience.spend()

    with pytest.raises(RuntimeError, match="no answer for"):
        wait()
    assert clock.now == pytest.approx(seconds, abs=1.0)
    assert [line.partition(" ends without it")[0] for line in said] == (
        [] if signal_at is None else ["SIGTERM: the learner does not answer; the run"]
    )
