"""The loop on colocated actors: what it counts, logs, keeps, and what stands when it ends."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.rollout import Actor, EnvironmentFault, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment, CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.checkpoint_parts import check_fits
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.folder import RunFolder
from metagrad.errors import ConfigurationError
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.algorithm import Algorithm, NonFinite, Sample, UpdateMetrics
from metagrad.learner.checkpoint import checkpoint_path, paths, update_of
from metagrad.learner.config import BootstrapConfig
from metagrad.learner.training import CHECKPOINT_PARTS
from metagrad.networks import Network, build_network
from metagrad.types import WeightSnapshot

Tiny = Callable[..., Experiment]

# Keys and types that scripts rely on.
SUMMARY: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "seed": int,
    "updates": int,
    "frames_real": int,
    "frames_lookahead": int,
    "frames_per_second": float,
    "return_mean": float,
    "return_count": int,
    "eta": dict,
    "sampled": int,
    "consumed": int,
    "dropped": int,
    "in_flight": int,
    "actors_restarted": int,
    "wall_seconds": float,
}


def summary_of(run_dir: Path) -> dict[str, Any]:
    """summary.json, its account checked."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    return summary


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """SIGTERM to this process in the middle of the meta-update that follows `updates` others."""
    done, update = [0], ActorCritic.update

    def counted(*args: Any) -> Any:
        if done[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        done[0] += 1
        return update(*args)

    monkeypatch.setattr(ActorCritic, "update", counted)


def test_the_summary_holds_what_is_promised(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    returned = run(tiny(meta={"n": 2}), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary == returned
    for key, kind in SUMMARY.items():
        assert isinstance(summary[key], kind), key
    assert set(summary["eta"]) == {"gamma", "lambda", "value_coefficient", "entropy_coefficient"}
    assert summary["updates"] == 6
    assert (summary["frames_real"], summary["frames_lookahead"]) == (6 * 12, 2 * 6 * 12)
    assert summary["sampled"] == summary["consumed"] == 3 * 6 * 12
    assert summary["in_flight"] == summary["dropped"] == summary["actors_restarted"] == 0
    assert summary["stopped_by"] is None
    assert summary["return_count"] > 0


def test_sequential_updates_use_real_frames_and_hold_one_batch(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(meta={"n": 3, "strategy": "sequential"}), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 6
    assert (summary["frames_real"], summary["frames_lookahead"]) == (7 * 12, 0)
    assert summary["in_flight"] == 12


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_frames_beyond_the_look_ahead_are_looked_ahead_too(
    tiny: Tiny, console: Console, tmp_path: Path, strategy: str
) -> None:
    run(tiny(meta={"n": 2, "strategy": strategy, "bootstrap": BootstrapConfig(updates=2)}), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 6
    frames = {"discard": (6 * 12, 6 * (2 + 2) * 12), "sequential": (7 * 12, 3 * 2 * 12)}[strategy]
    assert (summary["frames_real"], summary["frames_lookahead"]) == frames
    assert summary["in_flight"] == (0 if strategy == "discard" else 12)
    assert summary["sampled"] == sum(frames)


@pytest.mark.parametrize(
    "meta",
    [
        {"n": 0},
        {"n": 1},
        {"n": 2, "strategy": "sequential"},
        {"n": 1, "bootstrap": BootstrapConfig(updates=1)},
        {"n": 2, "strategy": "sequential", "bootstrap": BootstrapConfig(updates=2, value_coefficient=0.5)},
    ],
    ids=str,
)
@pytest.mark.thinned(3)
def test_a_stopped_run_continues_bitwise(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch, meta: dict[str, Any]
) -> None:
    continues_bitwise(tiny(meta=meta, updates=8), console, tmp_path, learner_of, monkeypatch)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
def test_a_stopped_run_continues_bitwise_in_bfloat16_too(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    experiment = tiny(meta={"n": 2}, updates=8, precision="bf16-mixed", schedule=schedule)
    continues_bitwise(experiment, console, tmp_path, learner_of, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"meta": {"n": 0}},
        {"meta": {"n": 3, "estimator": "mix"}},
        {"meta": {"n": 1, "bootstrap": BootstrapConfig(updates=2)}},
        # Batches of two rollouts from three actors in turn: a run may stop in the middle of a round.
        {"meta": {"n": 2}, "actors": 3, "environments_per_actor": 2},
    ],
    ids=str,
)
@pytest.mark.thinned(3)
def test_a_stopped_window_continues_bitwise(
    tiny: Tiny,
    console: Console,
    tmp_path: Path,
    learner_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    experiment = tiny(schedule="peek", updates=8, **changes)
    continues_bitwise(experiment, console, tmp_path, learner_of, monkeypatch)
    summary = summary_of(tmp_path / "parts")
    held = experiment.look_ahead_batches * 12
    assert (summary["consumed"], summary["in_flight"], summary["dropped"]) == (8 * 12, held, 0)
    assert (summary["frames_real"], summary["frames_lookahead"]) == (8 * 12 + held, 0)


@pytest.mark.parametrize(("schedule", "n"), [("lockstep", 0), ("lockstep", 1), ("peek", 2)])
def test_a_stopped_run_that_uses_batches_again_continues_bitwise(
    tiny: Tiny,
    console: Console,
    tmp_path: Path,
    learner_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    n: int,
) -> None:
    """Eight updates of four batches: accounts and versions count batches, all else updates."""
    experiment = tiny(meta={"n": n}, schedule=schedule, reuse=2, updates=8)
    continues_bitwise(experiment, console, tmp_path, learner_of, monkeypatch)
    summary, is_peek = summary_of(tmp_path / "parts"), schedule == "peek"
    held = n * 12 if is_peek else 0
    assert (summary["updates"], summary["dropped"], summary["in_flight"]) == (8, 0, held)
    assert (summary["frames_real"], summary["frames_lookahead"]) == (4 * 12 + held, 0 if is_peek else 4 * n * 12)
    versions = torch.load(checkpoint_path(tmp_path / "parts" / "checkpoints", 8))["window"]
    assert [x["versions"] for x in versions] == ([[2] * 2, [3] * 2] if is_peek else [])


def continues_bitwise(
    experiment: Experiment, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight updates are those that were stopped after three or four and went on."""
    run(experiment, tmp_path / "whole", False, console)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = run(experiment, tmp_path / "parts", False, console)
    assert stopped["stopped_by"] == "SIGTERM"
    assert 3 <= stopped["updates"] < 8, "the update under way is finished, the others are not begun"
    assert summary_of(tmp_path / "parts") == stopped
    resumed = run(experiment, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    whole = summary_of(tmp_path / "whole")
    for key in SUMMARY.keys() - {"wall_seconds", "frames_per_second"}:
        assert resumed[key] == whole[key], key
    assert resumed["wall_seconds"] > stopped["wall_seconds"]


def test_the_last_k_checkpoints_stay(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=11, checkpoint=CheckpointConfig(every=2, keep=3)), tmp_path, False, console)
    assert [update_of(path) for path in paths(tmp_path / "checkpoints")] == [8, 10, 11]


def scalars(run_dir: Path) -> dict[str, list[int]]:
    """TensorBoard tag to the updates it has values for, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_row_of_scalars_is_written_once(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=7, meta={"n": 2}), tmp_path, False, console)
    written = scalars(tmp_path)
    for tag in (
        "loss/inner",
        "loss/outer",
        "eta/gamma",
        "eta/lambda",
        "norm/meta_gradient",
        "advantage/outer_mean",
        "episode/return_mean",
        "throughput/real_frames_per_second",
        "throughput/lookahead_frames_per_second",
        "transport/lag_versions",
        "transport/in_flight_steps",
        "time/sample_seconds",
    ):
        assert written[tag] == [2, 4, 6, 7], tag
    assert written["meta_gradient/variance"] == [2, 4, 6], "one update has no variance"


def test_rows_written_after_the_checkpoint_are_not_shown_twice_after_a_resumption(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    run(tiny(updates=12, checkpoint=CheckpointConfig(every=5, keep=3)), tmp_path, False, console)
    paths(tmp_path / "checkpoints")[-1].unlink()  # as if killed after update 12 was logged, before it was saved
    run(tiny(updates=16, checkpoint=CheckpointConfig(every=5, keep=3)), tmp_path, True, console)
    assert scalars(tmp_path)["loss/inner"] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_an_error_in_the_learner_ends_the_run_and_the_account_still_holds(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [0]

    update = ActorCritic.update

    def failing(algorithm: Any, state: Any, sample: Any) -> Any:
        updates[0] += 1
        if updates[0] == 4:
            sample(state.snapshot(), 0)
            raise NonFinite("loss/inner became nan at update 4")
        return update(algorithm, state, sample)

    monkeypatch.setattr(ActorCritic, "update", failing)
    with pytest.raises(NonFinite, match="at update 4"):
        run(tiny(checkpoint=CheckpointConfig(every=2, keep=3)), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 3
    assert summary["in_flight"] == 12
    assert [update_of(path) for path in paths(tmp_path / "checkpoints")] == [2]


def test_an_environments_fault_ends_the_run(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = Actor.rollout
    calls = [0]

    def broken(self: Actor, snapshot: Any, lookahead_step: int) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise EnvironmentFault("Snake: environment 1 of 2 returned a non-finite reward at step 9")
        return rollout(self, snapshot, lookahead_step)

    monkeypatch.setattr(Actor, "rollout", broken)
    with pytest.raises(EnvironmentFault, match="environment 1 of 2"):
        run(tiny(), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["consumed"], summary["in_flight"]) == (1, 24, 24)


class ToyState(NamedTuple):
    """State of an algorithm that is none of ours."""

    update: int
    theta: Tensor
    held_batches: int = 0


class ToyAlgorithm(NamedTuple):
    """θ grows by the mean reward."""

    network: Network
    rate: float

    def init(self, seed: int, device: torch.device) -> ToyState:
        return ToyState(0, self.network.init(torch.Generator().manual_seed(seed)).to(device))

    def update(self, state: ToyState, sample: Sample) -> tuple[ToyState, UpdateMetrics]:
        batch = sample(WeightSnapshot(state.update, state.theta, torch.zeros(0)), 0)
        growth = self.rate * batch.reward.mean()
        return ToyState(state.update + 1, state.theta + growth), UpdateMetrics({"toy/growth": growth.item()}, ())

    def shown(self, state: ToyState) -> dict[str, float]:
        return {"size": state.theta.norm().item()}

    def learnt(self, state: ToyState) -> dict[str, float]:
        return self.shown(state)

    def to_tree(self, state: ToyState) -> dict[str, Any]:
        return {"update": state.update, "theta": state.theta}

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> ToyState:
        return ToyState(tree["update"], tree["theta"].to(device))

    def misfit(self, tree: Any) -> str | None:
        return None if tree.keys() == {"update", "theta"} else "toy"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyGrowthExperiment(BaseExperiment):
    """An experiment of that algorithm."""

    rate: float

    def algorithm(self, spec: EnvironmentSpec) -> ToyAlgorithm:
        return ToyAlgorithm(build_network(self.network, spec.observation_shape, spec.num_actions, False), self.rate)


def test_another_algorithm_trains_stops_continues_and_plays(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shared = {field.name: getattr(tiny(), field.name) for field in fields(BaseExperiment)}
    experiment = ToyGrowthExperiment(**shared, rate=0.5)
    assert isinstance(experiment.algorithm(probe(experiment.env)), Algorithm)
    run(experiment, tmp_path / "whole", False, console)

    update = ToyAlgorithm.update

    def stopping(self: ToyAlgorithm, state: ToyState, sample: Sample) -> Any:
        if state.update == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, state, sample)

    with monkeypatch.context() as patch:
        patch.setattr(ToyAlgorithm, "update", stopping)
        assert run(experiment, tmp_path / "parts", False, console)["updates"] == 3
    run(experiment, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    assert RunFolder(tmp_path / "parts").experiment() == experiment
    summary = summary_of(tmp_path / "parts")
    assert (summary["updates"], summary["frames_real"], summary["frames_lookahead"]) == (6, 72, 0)
    assert set(summary["eta"]) == {"size"}
    assert scalars(tmp_path / "whole")["toy/growth"] == [2, 4, 6]
    evaluate_run(tmp_path / "parts", None, 2, 0, False, False)
    assert "update 6, sampled policy" in capsys.readouterr().out
    path, tree = checkpoint_path(tmp_path, 6), {name: {} for name in CHECKPOINT_PARTS}
    with pytest.raises(ConfigurationError, match=r"its toy is not as this run has it"):
        check_fits(path, tree, experiment, experiment.algorithm(probe(experiment.env)))
