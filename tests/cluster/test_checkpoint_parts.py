"""Checkpoints as a tiny run writes them, with one part changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.checkpoint_parts import misfit
from metagrad.learner import batch
from metagrad.learner.checkpoint import restore_newest
from metagrad.learner.training import CHECKPOINT_PARTS
from metagrad.types import Trajectory

Tiny = Callable[..., Experiment]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the two runs below left, so that each is made once."""
    return {}


def tree_of(kept: dict[str, Any], experiment: Experiment, folder: Path, console: Console) -> dict[str, Any]:
    if experiment.meta.strategy not in kept:
        run(experiment, folder, False, console)
        kept[experiment.meta.strategy] = restore_newest(folder / "checkpoints").tree
    tree: dict[str, Any] = kept[experiment.meta.strategy]
    return tree


def changed(tree: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The tree with another value at a dotted place; a function is applied to what is there."""
    name, _, rest = place.partition(".")
    old = tree[name] if isinstance(tree, dict) else tree[int(name)]
    new = changed(old, rest, value) if rest else value(old) if callable(value) else value
    if isinstance(tree, dict):
        return tree | {name: new}
    return [new if i == int(name) else x for i, x in enumerate(tree)]


def window(steps: int, environments: int) -> list[dict[str, Any]]:
    """One streamed batch of this shape."""
    rows, flags = torch.zeros(steps, environments), torch.zeros(steps, environments, dtype=torch.bool)
    observation, action = torch.zeros(steps + 1, environments, 3, 3, 5), rows.long()
    trajectory = Trajectory(observation, action, rows, flags, flags, flags, rows, policy_version=5)
    return [{"trajectory": batch.tree_of(trajectory), "versions": [5]}]


CHANGES: list[tuple[str, Any, str]] = [
    ("device", "meta", "device"),
    ("device", None, "device"),
    ("counters", None, "counters"),
    ("counters.frames_real", "12", "counters"),
    ("counters.frames_real", -1, "counters"),
    ("counters.wall_seconds", float("nan"), "counters"),
    ("account", {}, "account"),
    ("account.sampled", 1.5, "account"),
    ("account.dropped", {"lost": "3"}, "account"),
    ("account.dropped", {3: 3}, "account"),
    ("episodes", [], "episodes"),
    ("episodes.returns", lambda old: [*old, 1.0], "episodes"),
    ("episodes.returns", lambda old: ["x" for _ in old] + ["x"], "episodes"),
    ("episodes.count", "many", "episodes"),
    ("window", None, "window"),
    ("window", [{"trajectory": {}, "versions": []}], "window"),
    ("window", window(3, 5), "window"),
    ("window", window(2, 4), "window"),
    ("actors", None, "actors"),
    ("actors", [], "actors"),
    ("actors.0", {"x": 3}, "actors"),
    ("actors.0", {"x": torch.zeros(1)}, "actors"),
    ("actors.0.real/episode_return", lambda old: old[:-1], "actors"),
    ("actors.0.real/episode_return", lambda old: old.double(), "actors"),
    ("actors.0.real/policy_generator", lambda old: torch.zeros_like(old), "actors"),
    ("actors.0.real/policy_generator", lambda old: old.float(), "actors"),
    ("actors.0.real/policy_generator", lambda old: old[:17], "actors"),
    ("interval", None, "interval"),
    ("interval.means", {"sums": {"loss/inner": 1.0}, "counts": {}}, "interval"),
    ("interval.means", {"sums": {"loss/inner": "1"}, "counts": {"loss/inner": 1}}, "interval"),
    ("interval.means", {"sums": {"loss/inner": 1.0}, "counts": {"loss/inner": 0}}, "interval"),
    ("interval.variance", {"count": 1, "mean": torch.zeros(2), "m2": torch.zeros(2)}, "interval"),
    ("interval.lags", [1.5], "interval"),
    ("interval.throughput", {}, "interval"),
    ("interval.is_row_partial", 1, "interval"),
    ("interval.evaluation", "soon", "interval"),
    ("learner", None, "update"),
    ("learner.update", "6", "update"),
    ("learner.update", True, "update"),
    ("learner.update", 5, "update"),
    ("learner.version", -1, "version"),
    ("learner.theta", lambda old: old.long(), "theta"),
    ("learner.theta", lambda old: old.to("meta"), "theta"),
    ("learner.theta", lambda old: torch.full_like(old, float("nan")), "theta"),
    ("learner.eta", lambda old: old.tolist(), "eta"),
    ("learner.optimizer.count", 1.0, "optimizer"),
    ("learner.optimizer.moments", None, "optimizer"),
    ("learner.meta_optimizer", lambda old: old | {"more": 1}, "meta_optimizer"),
    ("learner.carry", {"observation": torch.zeros(1)}, "carry"),
    ("learner.carry", 3, "carry"),
]


@pytest.mark.parametrize(("place", "value", "part"), CHANGES)
def test_a_part_that_no_run_writes_is_named(
    kept: dict[str, Any], tiny: Tiny, tmp_path: Path, console: Console, place: str, value: Any, part: str
) -> None:
    experiment = tiny()
    algorithm = experiment.algorithm(probe(experiment.env))
    tree = tree_of(kept, experiment, tmp_path, console)
    assert misfit(tree, 6, experiment, algorithm) is None
    assert misfit(changed(tree, place, value), 6, experiment, algorithm) == part


def test_a_part_that_is_not_there_is_named(kept: dict[str, Any], tiny: Tiny, tmp_path: Path, console: Console) -> None:
    experiment = tiny()
    tree = tree_of(kept, experiment, tmp_path, console)
    for part in CHECKPOINT_PARTS:
        without = {name: x for name, x in tree.items() if name != part}
        assert misfit(without, 6, experiment, experiment.algorithm(probe(experiment.env))) == part


def test_a_window_of_the_runs_shape_fits(kept: dict[str, Any], tiny: Tiny, tmp_path: Path, console: Console) -> None:
    experiment = tiny()
    tree = tree_of(kept, experiment, tmp_path, console)
    assert misfit(tree | {"window": window(3, 4)}, 6, experiment, experiment.algorithm(probe(experiment.env))) is None


def test_what_runs_of_other_kinds_write_fits(tiny: Tiny, tmp_path: Path, console: Console) -> None:
    kinds = [{"meta": {"strategy": "sequential", "n": 2}}, {"lookahead": "fork"}]
    for number, changes in enumerate(kinds):
        experiment = tiny(**changes)
        algorithm = experiment.algorithm(probe(experiment.env))
        run(experiment, tmp_path / str(number), False, console)
        tree = restore_newest(tmp_path / str(number) / "checkpoints").tree
        assert misfit(tree, 6, experiment, algorithm) is None
        away = tree | {"actors": [{} for _ in tree["actors"]]}  # of actors that were lost at that moment
        assert misfit(away, 6, experiment, algorithm) is None
        on_a_gpu = [{k: x[:16] if k.endswith("generator") else x for k, x in state.items()} for state in tree["actors"]]
        assert misfit(tree | {"actors": on_a_gpu}, 6, experiment, algorithm) is None, "with --actor-gpus"
    assert "lookahead/episode_return" in tree["actors"][0]
