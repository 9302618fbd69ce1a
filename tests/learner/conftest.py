"""A small learner: a network of a hundred parameters, and a sampler that records what it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.actors import Account
from metagrad.learner.config import LearnerConfig, MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, build_network
from metagrad.optimizers import Adam
from metagrad.types import Episodes, Rollout, Trajectory, WeightSnapshot

T, B, FEATURES, ACTIONS = 4, 3, 5, 3


def make_trajectory(version: int, salt: int = 0) -> Trajectory:
    """Random steps, a function of the version alone."""
    generator = torch.Generator().manual_seed(1_000 * salt + version)

    def uniform() -> Tensor:
        return torch.rand(T, B, generator=generator)

    return Trajectory(
        observation=torch.randn(T + 1, B, FEATURES, generator=generator),
        action=torch.randint(ACTIONS, (T, B), generator=generator),
        reward=uniform(),
        is_terminal=uniform() < 0.2,
        is_truncated=torch.zeros(T, B, dtype=torch.bool),
        valid=uniform() < 0.9,
        behaviour_log_prob=-uniform(),
        policy_version=version,
    )


def make_pictures(version: int) -> Trajectory:
    """Stacks of four pictures, a function of the version alone; a game begins anew, its stack repeated or zeros."""
    frames = torch.randint(256, (T + 4, B, 3, 3), generator=torch.Generator().manual_seed(version)).to(torch.uint8)
    stacks = frames.unfold(0, 4, 1).permute(0, 1, 4, 2, 3).contiguous()
    stacks[-1, 0], stacks[-1, 1, :3] = stacks[-1, 0, 3].clone(), 0
    return make_trajectory(version)._replace(observation=stacks)


class Sampler:
    """Gives `make_trajectory(version)`, and remembers the snapshots and look-ahead steps asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.thetas: list[Tensor] = []

    def __call__(self, snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        self.calls.append((snapshot.version, lookahead_step))
        self.thetas.append(snapshot.theta.clone())
        return make_trajectory(snapshot.version)


class FakeActors:
    """Actors without environments: `take(snapshot, j or oldest)` gives the trajectories of a batch."""

    def __init__(self, take: Callable[[WeightSnapshot, int], Sequence[Trajectory]]) -> None:
        self.account = Account()
        self._take = take

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        rollouts = []
        for index, trajectory in enumerate(self._take(snapshot, lookahead_step)):
            self.account.order(trajectory.action.numel())
            ended = trajectory.reward[trajectory.is_terminal] if not lookahead_step else trajectory.reward[:0, 0]
            lengths = torch.ones(len(ended), dtype=torch.int64)
            rollouts.append(Rollout(trajectory, Episodes(ended, lengths), index, lookahead_step > 0))
        return rollouts

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        return [rollout._replace(is_lookahead=False) for rollout in self.sample(snapshot, oldest)]

    def states(self) -> list[dict[str, Tensor]]:
        return [{}]


def learner_config(**meta: object) -> LearnerConfig:
    """Adam, outer critic, γ and the entropy coefficient learnt; `meta` are fields of MetaGradientConfig."""
    return LearnerConfig(
        optimizer=Adam(learning_rate=0.01, max_gradient_norm=0.5),
        meta=MetaGradientConfig(**{"n": 3, "optimizer": Adam(learning_rate=0.1)} | meta),
        outer=OuterObjective(gamma=0.99, lambda_=0.95, critic="outer"),
        meta_parameters=A2cLoss(
            gamma=MetaParameter(initial=0.8),
            lambda_=MetaParameter(initial=0.9, is_learnt=False),
            value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=0.01),
        ),
    )


def fixed_meta_parameters(config: LearnerConfig) -> LearnerConfig:
    """Configure the same learner with nothing learnt."""
    declared = config.meta_parameters
    fixed = {name: replace(getattr(declared, name), is_learnt=False) for name in ("gamma", "entropy_coefficient")}
    return replace(config, meta_parameters=replace(declared, **fixed))


@pytest.fixture
def make_algorithm() -> Callable[..., ActorCritic]:
    """(is_learnt=True, **fields of MetaGradientConfig) -> algorithm."""

    def make(is_learnt: bool = True, **meta: object) -> ActorCritic:
        config = learner_config(**meta)
        config = config if is_learnt else fixed_meta_parameters(config)
        return build_actor_critic(
            config, build_network(Mlp(hidden=8), (FEATURES,), ACTIONS, True), (FEATURES,), ACTIONS
        )

    return make


@pytest.fixture
def sampler() -> Sampler:
    return Sampler()


@pytest.fixture
def fake_actors() -> Callable[..., FakeActors]:
    """(take) -> actors."""
    return FakeActors


@pytest.fixture
def trajectory() -> Callable[[int], Trajectory]:
    """version -> the trajectory that every sampler gives for it."""
    return make_trajectory


@pytest.fixture
def pictures() -> Callable[[int], Trajectory]:
    """version -> a trajectory whose observations are stacks of pictures."""
    return make_pictures


@pytest.fixture
def config() -> Callable[..., LearnerConfig]:
    """(**fields of MetaGradientConfig) -> configuration."""
    return learner_config


@pytest.fixture
def derivative() -> Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor]:
    """(function, point, step) -> its gradient by central differences of fourth order."""

    def differences(function: Callable[[Tensor], Tensor], point: Tensor, step: float) -> Tensor:
        def along(direction: Tensor) -> float:
            near, far = (
                (function(point + h * direction) - function(point - h * direction)).item() / (2 * h)
                for h in (step, 2 * step)
            )
            return (4 * near - far) / 3

        return torch.tensor([along(each) for each in torch.eye(len(point), dtype=point.dtype)], dtype=point.dtype)

    return differences
