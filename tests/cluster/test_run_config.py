from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest

from metagrad.actors.envs import AtariConfig
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import (
    OPERATIONAL_FIELDS,
    BaseExperiment,
    CheckpointConfig,
    EvaluationConfig,
    FaultConfig,
)
from metagrad.errors import ConfigurationError
from metagrad.learner.algorithm import Algorithm
from metagrad.networks import Mlp

Tiny = Callable[..., Experiment]
PLAIN: dict[str, Any] = {
    "name": "plain",
    "description": "Nothing beyond what every experiment says.",
    "env": MarkovRewardProcessConfig(states=5),
    "network": Mlp(hidden=3),
    "environments": 4,
    "rollout_length": 3,
    "updates": 2,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyPlainExperiment(BaseExperiment):
    """An experiment of somebody else's algorithm."""

    def algorithm(self, spec: EnvironmentSpec) -> Algorithm[Any]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"actors": 0}, "actors = 0: "),
        ({"environments": 7}, "environments = 7: must be a positive multiple of actors = 2; use --environments 8"),
        ({"environments": 0}, "environments = 0: .*; use --environments 2"),
        ({"environments": 4, "actors": 3}, "environments = 4: .* actors = 3; use --environments 3"),
        ({"rollout_length": 0}, "rollout_length = 0: "),
        ({"rollout_length": 2**29}, f"environments x rollout_length = '4 x {2**29}': "),
        ({"updates": 0}, "updates = 0: "),
        ({"seed": -1}, "seed = -1: "),
        ({"seed": 2**63}, f"seed = {2**63}: "),
        ({"log_every": 0}, "log_every = 0: "),
        ({"actor_threads": 0}, "actor_threads = 0: "),
        ({"actor_threads": 1_025}, "actor_threads = 1025: "),
        ({"actor_processes": 0, "topology": "ray"}, "actor_processes = 0: "),
        ({"actor_processes": 1_025, "topology": "ray", "environments": 2_050}, "actor_processes = 1025: "),
        (
            {"actor_processes": 4, "topology": "ray", "environments": 12},
            "actor_processes = 4: must divide the 6 environments of an actor; ",
        ),
        (
            {"actor_processes": 2, "topology": "colocated"},
            "actor_processes = 2: has no effect with --topology colocated; use --topology ray",
        ),
        (
            {"actor_processes": 2, "topology": "ray", "env": AtariConfig(game="Pong")},
            "actor_processes = 2: AtariConfig steps in threads of its own; use --actor-threads",
        ),
        ({"actor_gpus": 0.5, "topology": "colocated"}, "actor_gpus = 0.5: has no effect with --topology colocated; "),
        ({"actor_gpus": 2.0, "topology": "ray"}, "actor_gpus = 2.0: must be 0 or lie in .0.001, 1.; use 0.1"),
        ({"actor_gpus": float("nan"), "topology": "ray"}, "actor_gpus = nan: must be 0 or lie in "),
        (
            {"actor_gpus": 0.1, "actor_device": "cpu", "topology": "ray"},
            "actor_gpus = 0.1: has no effect with --actor-device cpu; ",
        ),
        (
            {"actor_device": "cuda", "topology": "ray"},
            "actor_device = 'cuda': actors on Ray see a GPU only where they ask for a part of it; add --actor-gpus 0.1",
        ),
        (
            {"actor_device": "cuda", "device": "cpu", "topology": "colocated"},
            "actor_device = 'cuda': colocated actors use the learner's GPU, and --device is cpu; ",
        ),
        ({"actor_device": "tpu"}, "actor_device = 'tpu': must be one of auto, cpu, cuda"),
        ({"learner_threads": 0}, "learner_threads = 0: "),
        ({"learner_threads": 1_025}, "learner_threads = 1025: "),
        ({"wait_for_resources": 0.5}, "wait_for_resources = 0.5: must lie in"),
        ({"wait_for_resources": 1e7}, "wait_for_resources = 10000000.0: must lie in"),
        (
            {"wait_for_resources": 60.0, "topology": "colocated"},
            "wait_for_resources = 60.0: has no effect with --topology colocated; use",
        ),
        ({"learner_cpus": 0, "topology": "ray"}, "learner_cpus = 0: must lie in \\[1, 1024\\]"),
        ({"learner_restarts": -1, "topology": "ray"}, "learner_restarts = -1: must be 0 or more"),
        (
            {"learner_cpus": 2, "topology": "colocated"},
            "learner_cpus = 2: has no effect with --topology colocated; use --topology ray",
        ),
        ({"learner_restarts": 1, "topology": "colocated"}, "learner_restarts = 1: .*; use --topology ray"),
        (
            {"faults": FaultConfig(learner_seconds=9.0), "topology": "colocated"},
            "faults.learner_seconds = 9.0: .*; use ",
        ),
        ({"max_lag": 9}, "max_lag = 9: belongs to --schedule peek.*; leave it out"),
        ({"environments_per_actor": 2}, "environments_per_actor = 2: belongs to --schedule peek.*; leave it out"),
        ({"environments_per_actor": 0}, "environments_per_actor = 0: must be at least 1"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_whatever_the_algorithm(tiny: Tiny, changes: dict[str, Any], line: str) -> None:
    for make in (tiny, lambda **changed: ToyPlainExperiment(**PLAIN | changed)):
        with pytest.raises(ConfigurationError, match=rf"^{line}") as refusal:
            make(**changes)
        assert "; " in str(refusal.value), "no remedy"


def test_an_algorithm_of_somebody_else_is_not_streamed_to(tiny: Tiny) -> None:
    line = r"^schedule = 'peek': needs losses that correct for rollouts of older policies, .*; use lockstep$"
    with pytest.raises(ConfigurationError, match=line):
        ToyPlainExperiment(**PLAIN, schedule="peek")
    assert tiny(schedule="peek").takes_streamed_rollouts, "the actor-critic is"


def test_bounds_are_inside() -> None:
    experiment = ToyPlainExperiment(
        **PLAIN, seed=2**63 - 1, actor_threads=1_024, learner_threads=1, log_every=1, actors=1
    )
    assert experiment.steps_per_rollout == 4 * 3
    assert not experiment.has_outer_critic, "only who has one says so"


def test_without_an_algorithm_there_is_no_experiment() -> None:
    with pytest.raises(TypeError, match="algorithm"):
        BaseExperiment(**PLAIN)  # type: ignore[abstract]


def test_what_may_change_on_resumption_is_a_field() -> None:
    assert {field.name for field in fields(BaseExperiment)} >= OPERATIONAL_FIELDS


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CheckpointConfig, {"every": 0}),
        (CheckpointConfig, {"keep": 0}),
        (FaultConfig, {"rollout_seconds": 0.0}),
        (FaultConfig, {"learner_seconds": 0.0}),
        (FaultConfig, {"learner_seconds": float("inf")}),
        (FaultConfig, {"rollout_seconds": float("nan")}),
        (FaultConfig, {"rollout_seconds": float("inf")}),
        (FaultConfig, {"restarts_without_progress": -1}),
        (EvaluationConfig, {"every": -1}),
        (EvaluationConfig, {"episodes": 0, "every": 1}),
        (EvaluationConfig, {"episodes": 65}),
        (EvaluationConfig, {"is_greedy": True}),
    ],
)
def test_wrong_supervision_is_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"\.{next(iter(values))} = "):
        kind(**values)
