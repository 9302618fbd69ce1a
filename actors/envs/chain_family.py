"""Defines a family of delayed chains: the first action picks a chain, and each pays once, after a delay of its own.

These are the Discounting Chain's rules with horizon, delays and rewards drawn for each task. Nothing in an episode is
random: what makes it hard is how much later the reward comes than the only action that matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.discounting_chain import MAX_HORIZON, NO_CONTEXT, Chains, observe_state, reward_at
from metagrad.actors.envs.families import (
    LIFETIME,
    TaskBatch,
    TaskEnvironment,
    TaskFamily,
    log_uniform,
    log_uniform_whole,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayedChainFamily(TaskFamily):
    """Describes delayed chains; a task draws its horizon, and delay and reward of each chain.

    Horizon and delays (from 1 to the horizon) are log-uniform; rewards are uniform in [-1, 1], that of one chain in
    [0, 1]. Observations are those of the Discounting Chain: chain and t / horizon, float32 [2].
    """

    chains: int = 5
    """Chains to choose from, which are the actions."""
    min_horizon: int = 10
    """Steps of the shortest episodes."""
    max_horizon: int = 100
    """Steps of the longest ones."""

    def __post_init__(self) -> None:
        TaskFamily.__post_init__(self)
        self.require_whole("chains", 2, 2**16, "use at least two")
        self.require_whole("max_horizon", 1, MAX_HORIZON)
        self.require_whole("min_horizon", 1, self.max_horizon, "use at most env.max_horizon")

    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "DelayedChains":
        return DelayedChains(self, TaskBatch(seeds, batch_size, device, streams))

    def lifetime(self, seed: int) -> int:
        del seed
        return LIFETIME


class DelayedChain(NamedTuple):
    """Holds one task, or N of them in front of these dimensions; action a is chain a."""

    paying_step: Int64[Tensor, "A"]
    reward: Float[Tensor, "A"]
    horizon: Int32[Tensor, ""]


class DelayedChainState(NamedTuple):
    """Holds N x B episodes."""

    context: Int64[Tensor, "N B"]  # -1 before the first action
    step_count: Int32[Tensor, "N B"]


class DelayedChains(TaskEnvironment[DelayedChain, DelayedChainState]):
    """Steps B episodes of each of N delayed chains with SAME_STEP autoreset; an episode lasts until its horizon."""

    def __init__(self, family: DelayedChainFamily, batch: TaskBatch) -> None:
        self._config = family
        super().__init__(
            family,
            batch,
            name="DelayedChains",
            observation_shape=(2,),
            action_names=tuple(f"chain {i}" for i in range(family.chains)),
            draws=(0, 0),
        )
        self._first_chain = family.chains * torch.arange(self.num_tasks, device=self.spec.device)[:, None]

    def observe(self) -> Float[Tensor, "columns 2"]:
        """Return the observation of the present states, without stepping."""
        return observe_state(*self._running(), self._tasks.horizon[:, None]).flatten(0, 1)

    def _draw(self, seed: int) -> DelayedChain:
        random, chains = self.family.random_numbers(seed), self._config.chains
        horizon = log_uniform_whole(random, (self._config.min_horizon, self._config.max_horizon))
        delay = np.rint(log_uniform(random, 1, horizon, chains)).astype(np.int64)
        reward = random.uniform(-1.0, 1.0, chains)
        reward[random.integers(chains)] = random.uniform(0.0, 1.0)
        paid = torch.from_numpy(reward.astype(np.float32))
        return DelayedChain(torch.from_numpy(delay), paid, torch.tensor(horizon, dtype=torch.int32))

    def _begin(self, tasks: DelayedChain, uniform: Float[Tensor, "n B start_draws"]) -> DelayedChainState:
        context = torch.full(uniform.shape[:2], NO_CONTEXT, dtype=torch.int64, device=self.spec.device)
        return DelayedChainState(context, torch.zeros_like(context, dtype=torch.int32))

    def _move(
        self,
        tasks: DelayedChain,
        state: DelayedChainState,
        action: Int64[Tensor, "N B"],
        uniform: Float[Tensor, "N B step_draws"],
    ) -> tuple[DelayedChainState, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        context = torch.where(state.step_count == 0, action, state.context)
        step_count = state.step_count + 1
        # All tasks' chains as one table, in which the context of task n has a number of its own.
        table = Chains(tasks.paying_step.flatten(), tasks.reward.flatten())
        reward = reward_at(table, self._first_chain + context, step_count)
        return DelayedChainState(context, step_count), reward, step_count >= tasks.horizon[:, None]
