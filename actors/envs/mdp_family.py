"""Defines a family of random tabular MDPs, drawn as those of `tabular_mdp` are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS
from metagrad.actors.envs.families import (
    LIFETIME,
    TaskBatch,
    TaskEnvironment,
    TaskFamily,
    log_uniform,
    log_uniform_whole,
    one_hot,
)
from metagrad.actors.envs.tabular_mdp import START_STATE, advance, cumulative_transition, random_mdp, reward_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomMdpFamily(TaskFamily):
    """Describes random MDPs; a task draws its tables, how random its transitions are, and the length of its episodes.

    The parameter of the Dirichlet is log-uniform in [.001, 1], from all but deterministic to widely spread; the horizon
    is log-uniform. Observations are one-hot float32 [S]; episodes begin in state 0.
    """

    states: int = 10
    actions: int = 5
    min_horizon: int = 10
    """Steps of the shortest episodes."""
    max_horizon: int = 50
    """Steps of the longest ones."""

    def __post_init__(self) -> None:
        TaskFamily.__post_init__(self)
        self.require_whole("states", 1, 2**10)
        self.require_whole("actions", 1, 2**6)
        self.require_whole("max_horizon", 1, MAX_STEPS)
        self.require_whole("min_horizon", 1, self.max_horizon, "use at most env.max_horizon")

    @property
    def is_tabular(self) -> bool:
        """Return True: states are numbered."""
        return True

    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "RandomMdps":
        return RandomMdps(self, TaskBatch(seeds, batch_size, device, streams))

    def lifetime(self, seed: int) -> int:
        del seed
        return LIFETIME


class RandomMdp(NamedTuple):
    """Holds one MDP, or N of them in front of these dimensions."""

    cumulative: Float64[Tensor, "S A S"]  # of P(s'|s, a)
    reward: Float32[Tensor, "S A"]
    horizon: Int32[Tensor, ""]


class RandomMdpState(NamedTuple):
    """Holds N x B episodes."""

    state: Int64[Tensor, "N B"]
    step_count: Int32[Tensor, "N B"]


class RandomMdps(TaskEnvironment[RandomMdp, RandomMdpState]):
    """Steps B episodes of each of N MDPs with SAME_STEP autoreset."""

    def __init__(self, family: RandomMdpFamily, batch: TaskBatch) -> None:
        self._config = family
        super().__init__(
            family,
            batch,
            name="RandomMdps",
            observation_shape=(family.states,),
            action_names=tuple(f"action {i}" for i in range(family.actions)),
            draws=(0, 1),
        )

    def observe(self) -> Float[Tensor, "columns S"]:
        """Return the observation of the present states, without stepping."""
        return one_hot(self.state_numbers(), self._config.states)

    def state_numbers(self) -> Int64[Tensor, "columns"]:
        """Return the states."""
        return self._running().state.flatten()

    def _draw(self, seed: int) -> RandomMdp:
        random, config = self.family.random_numbers(seed), self._config
        concentration = float(log_uniform(random, 1e-3, 1.0, 1)[0])
        horizon = log_uniform_whole(random, (config.min_horizon, config.max_horizon))
        tables = random_mdp(config.states, config.actions, concentration, int(random.integers(2**63)))
        horizon_steps = torch.tensor(horizon, dtype=torch.int32)
        return RandomMdp(cumulative_transition(tables.transition), tables.reward.to(torch.float32), horizon_steps)

    def _begin(self, tasks: RandomMdp, uniform: Float[Tensor, "n B start_draws"]) -> RandomMdpState:
        state = torch.full(uniform.shape[:2], START_STATE, dtype=torch.int64, device=self.spec.device)
        return RandomMdpState(state, torch.zeros_like(state, dtype=torch.int32))

    def _move(
        self,
        tasks: RandomMdp,
        state: RandomMdpState,
        action: Int64[Tensor, "N B"],
        uniform: Float[Tensor, "N B step_draws"],
    ) -> tuple[RandomMdpState, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        successor = advance(tasks.cumulative, state.state, action, uniform[..., 0])
        reward = reward_of(tasks.reward, state.state, action)
        step_count = state.step_count + 1
        return RandomMdpState(successor, step_count), reward, step_count >= tasks.horizon[:, None]
