"""A chain of states with rewards of which every second one is noise: a prediction problem for learnt discounts.

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

from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentSpec, EnvironmentStep, continue_stream
from metagrad.actors.envs.snapshots import checked_fields
from metagrad.errors import require

STATES = 10  # B.1
EVEN_REWARD = 0.1  # B.1
ACTION_NAMES = ("move",)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkovRewardProcessConfig(DeviceEnvironmentConfig):
    """Length of the chain; the default is the paper's."""

    states: int = STATES

    def __post_init__(self) -> None:
        is_count = isinstance(self.states, int) and not isinstance(self.states, bool) and 1 <= self.states <= 2**20
        require(is_count, "env.states", self.states, "must be a whole number in [1, 2^20]", "the paper uses 10")

    def make(
        self, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "MarkovRewardProcess":
        """B environments on `device`; neither threads nor training matter."""
        del threads, is_training
        return MarkovRewardProcess(self, batch_size, seed, device)


def sample_rewards(
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    states: int = STATES,
) -> Float[Tensor, "S *batch"]:
    """Rewards of whole episodes, time-major: row s is the reward of state s; on the generator's device.

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
    """What a network sees of state s: the number s / S, float32.

    The paper gives the network one input and not its scale; dividing by S keeps it in [0, 1).
    """
    return (state.to(torch.float32) / states)[..., None]


class MarkovRewardProcessState(NamedTuple):
    """B episodes."""

    state: Int64[Tensor, "B"]


class MarkovRewardProcess:
    """B episodes with SAME_STEP autoreset; every reward comes from one generator seeded by `seed`.

    The only action changes nothing. Observations are float32 [B, 1], as in `observe_state`.
    """

    def __init__(
        self, config: MarkovRewardProcessConfig, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "must be at least 1", "raise batch_size")
        self._states = config.states
        self._generator = torch.Generator(device).manual_seed(seed)
        self._state: MarkovRewardProcessState | None = None
        self.spec = EnvironmentSpec(
            batch_size=batch_size,
            observation_shape=(1,),
            observation_dtype=torch.float32,
            action_names=ACTION_NAMES,
            device=torch.zeros(0, device=device).device,  # with its index, as tensors have it
            name=f"MarkovRewardProcess-{config.states}",
        )

    @property
    def state(self) -> Int64[Tensor, "B"]:
        """Number of each episode's present state, a copy."""
        return self._running().state.clone()

    def reset(self) -> Float[Tensor, "B 1"]:
        """Start all B episodes in state 0."""
        self._state = self._start()
        return self.observe()

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Collect the reward of the present state and move on; the action is not looked at."""
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
        """Observation of the present states, without stepping."""
        return observe_state(self._running().state, self._states)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of the states, and the generator's state (a byte tensor) as "generator"."""
        return {"state": self._running().state.clone(), "generator": self._generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a copy of a snapshot back; where it has no "generator", the own generator goes on (a fork)."""
        self._state = MarkovRewardProcessState(**checked_fields(snapshot, self._start()._asdict(), self.spec.name))
        if "generator" in snapshot:
            continue_stream(self._generator, snapshot["generator"])

    def close(self) -> None:
        """Drop the episodes."""
        self._state = None

    def _start(self) -> MarkovRewardProcessState:
        return MarkovRewardProcessState(torch.zeros(self.spec.batch_size, dtype=torch.int64, device=self.spec.device))

    def _running(self) -> MarkovRewardProcessState:
        if self._state is None:
            raise RuntimeError("no episodes to step or observe; call reset() or restore(snapshot) first")
        return self._state
