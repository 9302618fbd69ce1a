"""Steps a chain of states in which every second reward is noise: a prediction problem for learnt discounts.

Shapes: S states, B episodes stepped together. States 0 … S-1 follow one another, left to right; the episode terminates
after the last. Even states reward 0.1, odd ones a standard normal number.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 3.1 and B.1, after Xu et
al. (2018), "Meta-Gradient Reinforcement Learning".
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep

STATES = 10  # B.1
EVEN_REWARD = 0.1  # B.1
ACTION_NAMES = ("move",)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkovRewardProcessConfig(DeviceEnvironmentConfig):
    """Gives the length of the chain; the default is the paper's."""

    states: int = STATES

    def __post_init__(self) -> None:
        self.require_whole("states", 1, 2**20, "the paper uses 10")

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "MarkovRewardProcess":
        """Make B environments on `device`; neither threads nor training matter."""
        del threads, is_training
        return MarkovRewardProcess(self, batch_size, seed, device)


def sample_rewards(
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    states: int = STATES,
) -> Float[Tensor, "S *batch"]:
    """Draw the rewards of whole episodes, time-major (row s: the reward of state s), on the generator's device.

    r(s) = 0.1 for even s; r(s) ~ N(0, 1) for odd s, independent.

    Source: "One Step at a Time", B.1.

    >>> rewards = sample_rewards((32,), torch.Generator().manual_seed(0))
    >>> rewards.shape
    torch.Size([10, 32])
    """
    reward = torch.full((states, *batch_shape), EVEN_REWARD, dtype=dtype, device=generator.device)
    shape = (states // 2, *batch_shape)
    reward[1::2] = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return reward


def observe_state(state: Int64[Tensor, "*batch"], states: int = STATES) -> Float[Tensor, "*batch 1"]:
    """Return what a network sees of state s: the number s / S, float32.

    The paper gives the network one input and not its scale; dividing by S keeps it in [0, 1).
    """
    return (state.to(torch.float32) / states)[..., None]


class MarkovRewardProcessState(NamedTuple):
    """Holds B episodes."""

    state: Int64[Tensor, "B"]


class MarkovRewardProcess(DeviceEnvironment[MarkovRewardProcessState]):
    """Steps B episodes with SAME_STEP autoreset; every reward comes from one generator seeded by `seed`.

    The only action changes nothing. Observations are float32 [B, 1], as in `observe_state`.
    """

    def __init__(
        self, config: MarkovRewardProcessConfig, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(
            name=f"MarkovRewardProcess-{config.states}",
            batch_size=batch_size,
            observation_shape=(1,),
            action_names=ACTION_NAMES,
            device=device,
            seed=seed,
        )
        self._states = config.states

    @property
    def state(self) -> Int64[Tensor, "B"]:
        """Return a copy of the number of each episode's present state."""
        return self._running().state.clone()

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Collect the reward of the present state and move on; the action changes nothing."""
        del action
        state = self._running().state
        # As many draws whatever the states: the stream depends on the number of steps alone.
        shape, device = (self.spec.batch_size,), self.spec.device
        noise = torch.randn(shape, generator=self._generator, dtype=torch.float32, device=device)
        reward = torch.where(state % 2 == 0, EVEN_REWARD, noise)
        is_terminal = state == self._states - 1
        self._state = MarkovRewardProcessState((state + 1).masked_fill(is_terminal, 0))
        return EnvironmentStep.same_step(self.observe(), reward, is_terminal)

    def observe(self) -> Float[Tensor, "B 1"]:
        """Return the observation of the present states, without stepping."""
        return observe_state(self._running().state, self._states)

    def _start(self) -> MarkovRewardProcessState:
        return MarkovRewardProcessState(torch.zeros(self.spec.batch_size, dtype=torch.int64, device=self.spec.device))
