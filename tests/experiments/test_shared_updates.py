"""Every experiment's update, made by two learners that have three and two of its columns."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.actor_critic import ActorCritic, LearnerState
from metagrad.shares import group_shares
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot

SHARES = {0: slice(0, 3), 1: slice(3, 5)}
COLUMNS = 5
MOST_ERRORS_OF_ONE = 10  # as tests/gpu has it for another device, which adds in another order too
NAMES = [name for name, make in EXPERIMENTS.items() if isinstance(make(), Experiment)]


def batch(experiment: Experiment, spec: Any, seed: int, dtype: torch.dtype) -> Trajectory:
    """Random steps as the experiment's environment could have given them."""
    generator = torch.Generator().manual_seed(seed)
    rows = min(experiment.rollout_length, 8)
    if experiment.name == "discounting-chain":
        rows = experiment.rollout_length  # its values are of whole episodes

    def uniform() -> Tensor:
        return torch.rand(rows, COLUMNS, generator=generator, dtype=dtype)

    shape = (rows + 1, COLUMNS, *spec.observation_shape)
    if spec.observation_dtype.is_floating_point:
        observation = torch.rand(shape, generator=generator, dtype=dtype)
    else:
        observation = torch.randint(256, shape, generator=generator).to(spec.observation_dtype)
    return Trajectory(
        observation=observation,
        action=torch.randint(spec.actions.outputs, (rows, COLUMNS), generator=generator),
        reward=uniform(),
        is_terminal=uniform() < 0.05,
        is_truncated=torch.zeros(rows, COLUMNS, dtype=torch.bool),
        valid=uniform() < torch.tensor([0.3, 0.9, 1.0, 0.6, 1.0]),
        behaviour_log_prob=-0.7 - 0.1 * uniform(),
        policy_version=0,
    )


def updated(
    experiment: Experiment, spec: Any, dtype: torch.dtype, own: slice, share: Callable[[ActorCritic], ActorCritic]
) -> LearnerState:
    algorithm = experiment.algorithm(spec)
    assert isinstance(algorithm, ActorCritic)
    algorithm = share(algorithm)

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        whole = batch(experiment, spec, 100 * snapshot.version + step, dtype)
        return Trajectory(*(x[:, own] if isinstance(x, Tensor) else x for x in whole))

    fresh: Any = algorithm.init(0, torch.device("cpu"))
    state = LearnerState(*map_tensors(lambda x: x.to(dtype), tuple(fresh)))
    for _ in range(2):
        state, _ = algorithm.update(state, sample)
    return state


def vectors(state: LearnerState) -> list[Tensor]:
    return [state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments]


def largest(one: LearnerState, other: LearnerState) -> float:
    """The largest distance between two learners' numbers."""
    pairs = zip(vectors(one), vectors(other), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs if x.numel())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize("name", NAMES)
def test_two_learners_make_the_update_of_one(in_group: Any, name: str, schedule: str) -> None:
    """In float64 to 1e-12; in float32 two are as near to float64 as one is, up to the chance of a few roundings."""
    experiment: Any = replace(EXPERIMENTS[name](), precision="float32")
    try:
        experiment = replace(experiment, schedule=schedule)
    except ConfigurationError:
        pytest.skip("no losses for --schedule peek")
    spec = probe(experiment.env)
    exact, rounded = (
        updated(experiment, spec, dtype, slice(0, COLUMNS), lambda algorithm: algorithm)
        for dtype in (torch.float64, torch.float32)
    )

    def work() -> list[LearnerState]:
        shares = group_shares()
        dtypes = (torch.float64, torch.float32)
        return [updated(experiment, spec, x, SHARES[shares.rank], lambda y: y.sharing(shares)) for x in dtypes]

    (first, first_rounded), (second, second_rounded) = in_group(2, work)
    assert all(map(torch.equal, vectors(first), vectors(second)))
    assert all(map(torch.equal, vectors(first_rounded), vectors(second_rounded)))
    assert largest(exact, first) < 1e-12
    assert largest(exact, first_rounded) < MOST_ERRORS_OF_ONE * max(largest(exact, rounded), 2.0**-24)
