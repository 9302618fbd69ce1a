"""Offers five chains with a reward at the end of each: which one is best depends on the discount.

Shapes: B episodes stepped together; an asterisk stands for any number of leading dimensions. The first action picks a
chain, its context; all later actions are ignored. Chain c pays once, when its K[c]-th step is done, K = 1, 3, 10, 30,
100. All pay 1 but for one, which pays 1.1. Nothing is random: the same actions make the same episode.

Source: bsuite's Discounting Chain (Osband et al. 2020, "Behaviour Suite for Reinforcement Learning"), as in
"Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep

PAYING_STEPS = (1, 3, 10, 30, 100)  # bsuite
REWARD, BONUS = 1.0, 0.1  # bsuite
NO_CONTEXT = -1  # what is observed before the first action
HORIZON = 100  # bsuite
MAX_HORIZON = 2**24  # step counts beyond it are no float32 numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscountingChainConfig(DeviceEnvironmentConfig):
    """Says which chain pays the bonus, and how long episodes are; the defaults are the debiasing paper's release."""

    mapping_seed: int = 3
    """Number of the chain that pays 1.1, from 0; bsuite's name for it. 3: the one of 30 steps."""
    horizon: int = HORIZON
    """Steps of an episode; its end is a true termination. A chain longer than that never pays."""

    def __post_init__(self) -> None:
        self.require_whole("mapping_seed", 0, len(PAYING_STEPS) - 1, "the paper's release uses 3")
        self.require_whole("horizon", 1, MAX_HORIZON, "bsuite uses 100")

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "DiscountingChain":
        """Make B environments on `device`; neither threads nor training matter."""
        del threads, is_training
        return DiscountingChain(self, batch_size, seed, device)


class Chains(NamedTuple):
    """Holds what there is to choose from; action a is chain a."""

    paying_step: Int64[Tensor, "A"]  # K
    reward: Float[Tensor, "A"]  # R


def chains(mapping_seed: int, dtype: torch.dtype = torch.float64) -> Chains:
    """Make the five chains, with the bonus on number `mapping_seed`.

    >>> chains(3).reward
    tensor([1.0000, 1.0000, 1.0000, 1.1000, 1.0000], dtype=torch.float64)
    """
    reward = torch.full((len(PAYING_STEPS),), REWARD, dtype=dtype)
    reward[mapping_seed] += BONUS
    return Chains(torch.tensor(PAYING_STEPS), reward)


def reward_at(
    table: Chains, context: Int64[Tensor, "*batch"], step_count: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return the reward of the step that makes `step_count` steps in a chain: R[c] where the count is K[c], else 0.

    Args:
        table: from `chains`.
        context: c in 0..A-1; a larger one is an IndexError on the CPU.
        step_count: steps done, this one included, from 1.
    """
    return torch.where(step_count == table.paying_step[context], table.reward[context], 0.0)


def observe_state(
    context: Int64[Tensor, "*batch"], step_count: Int[Tensor, "*batch"], horizon: int | Int[Tensor, "..."] = HORIZON
) -> Float[Tensor, "*batch 2"]:
    """Return what a policy sees after t steps in chain c: c and t / horizon, float32; c = -1 at t = 0."""
    return torch.stack([context.to(torch.float32), step_count.to(torch.float32) / horizon], dim=-1)


class DiscountingChainState(NamedTuple):
    """Holds B episodes."""

    context: Int64[Tensor, "B"]  # -1 before the first action
    step_count: Int32[Tensor, "B"]  # steps of the episode so far


class DiscountingChain(DeviceEnvironment[DiscountingChainState]):
    """Steps B episodes with SAME_STEP autoreset; deterministic, so the seed changes nothing and no generator is kept.

    Observations are float32 [B, 2], as in `observe_state`.
    """

    def __init__(
        self, config: DiscountingChainConfig, batch_size: int, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        del seed
        super().__init__(
            name=f"DiscountingChain-{config.mapping_seed}",
            batch_size=batch_size,
            observation_shape=(2,),
            action_names=tuple(f"chain of {steps}" for steps in PAYING_STEPS),
            device=device,
            seed=None,
        )
        self._horizon = config.horizon
        self._chains = Chains(*(x.to(self.spec.device) for x in chains(config.mapping_seed, torch.float32)))

    @property
    def state(self) -> DiscountingChainState:
        """Return copies of the context and step count of each episode."""
        return DiscountingChainState(*(value.clone() for value in self._running()))

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Step all B episodes; a first action beyond the chains is an IndexError on the CPU."""
        before = self._running()
        context = torch.where(before.step_count == 0, action.to(torch.int64), before.context)
        step_count = before.step_count + 1
        reward = reward_at(self._chains, context, step_count)
        is_terminal = step_count >= self._horizon
        self._state = DiscountingChainState(
            context=context.masked_fill(is_terminal, NO_CONTEXT), step_count=step_count.masked_fill(is_terminal, 0)
        )
        return EnvironmentStep.same_step(self.observe(), reward, is_terminal)

    def observe(self) -> Float[Tensor, "B 2"]:
        """Return the observation of the present states, without stepping."""
        return observe_state(*self._running(), self._horizon)

    def _start(self) -> DiscountingChainState:
        context = torch.full((self.spec.batch_size,), NO_CONTEXT, dtype=torch.int64, device=self.spec.device)
        return DiscountingChainState(context=context, step_count=torch.zeros_like(context, dtype=torch.int32))
