"""Tiny runs: 4 boards of 3 x 3, 3 steps, colocated unless said otherwise."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.on_ray import session as ray_session
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.checkpoint import restore_newest
from metagrad.networks import SnakeCnn


def tiny_experiment(**changes: Any) -> Experiment:
    """snake-6x6 made tiny; `meta` may be a dictionary of changes."""
    experiment = EXPERIMENTS["snake-6x6"]()
    meta = changes.pop("meta", {})
    return replace(
        experiment,
        **{
            "env": SnakeConfig(rows=3, columns=3, time_limit=20),
            "network": SnakeCnn(channels=4, policy_hidden=8, value_hidden=8),
            "meta": replace(experiment.meta, **meta),
            "environments": 4,
            "rollout_length": 3,
            "updates": 6,
            "topology": "colocated",
            "learner_threads": 1,
            "log_every": 2,
            "checkpoint": CheckpointConfig(every=1_000, keep=2),
        }
        | changes,
    )


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    return tiny_experiment


@pytest.fixture
def console() -> Console:
    """Its text is `console.file.getvalue()`."""
    return Console(file=StringIO(), width=200)


@pytest.fixture(scope="module")
def embedded_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """One Ray for a whole file, that of a run itself, with its RAY_CPUS; what the file defines is sent by value."""
    with ray_session.ray_session(ray_session.Demand(least=0, wanted=request.module.RAY_CPUS, gpus=0)):
        ray.cloudpickle.register_pickle_by_value(request.module)
        yield


@pytest.fixture
def runs_use_embedded_ray(embedded_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "ray_session", lambda _experiment: nullcontext())


@pytest.fixture
def learner_of() -> Callable[[Path], dict[str, Any]]:
    """run folder -> learner state and counters of its newest checkpoint, tensors by name."""

    def read(run_dir: Path) -> dict[str, Any]:
        tree = restore_newest(run_dir / "checkpoints").tree
        return flatten({key: tree[key] for key in ("learner", "actors", "account", "episodes")})

    return read


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; tensors as lists, so that == compares all of it bit for bit."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {prefix: (tree.dtype, tree.tolist()) if isinstance(tree, torch.Tensor) else tree}
    leaves: dict[str, Any] = {}
    for key, value in items:
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
