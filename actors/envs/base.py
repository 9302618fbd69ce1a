"""What every batched environment looks like to an actor.

Shapes: B environments stepped together. All tensors live on `spec.device`.

Autoreset is one of two, and is the environment's own property (see docs/conventions.md):

* NEXT_STEP (EnvPool, ALE): the step after an episode's end ignores its action and only resets. That step has
  `valid=False`; the observation returned *at* the end is the true successor, so truncation bootstraps from it.
* SAME_STEP (environments that only ever terminate: Snake, tabular MDPs, the Markov reward process, the Discounting
  Chain): the observation returned at the end is already the next episode's first; every step is valid.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor


class EnvironmentSpec(NamedTuple):
    """Static facts of one batch of environments."""

    batch_size: int
    observation_shape: tuple[int, ...]
    observation_dtype: torch.dtype
    action_names: tuple[str, ...]
    device: torch.device
    name: str

    @property
    def num_actions(self) -> int:
        return len(self.action_names)


class EnvironmentStep(NamedTuple):
    """What one step of B environments returns."""

    observation: Shaped[Tensor, "B ..."]
    reward: Float[Tensor, "B"]  # what the learner is fed (Atari: its sign)
    is_terminal: Bool[Tensor, "B"]  # no value beyond this step (for the learner: a lost life counts, if so configured)
    is_truncated: Bool[Tensor, "B"]  # the episode was cut; `observation` is the true successor
    valid: Bool[Tensor, "B"]  # False: this step only reset, it enters no loss, no return, no count
    raw_reward: Float[Tensor, "B"]  # the game's own score, for statistics and evaluation
    is_episode_end: Bool[Tensor, "B"]  # the full-life episode ended here

    @classmethod
    def same_step(
        cls, observation: Shaped[Tensor, "B ..."], reward: Float[Tensor, "B"], is_terminal: Bool[Tensor, "B"]
    ) -> "EnvironmentStep":
        """Of environments with SAME_STEP autoreset: every step counts, ends are terminal, the reward is the raw one."""
        never = torch.zeros_like(is_terminal)
        return cls(observation, reward, is_terminal, never, torch.ones_like(is_terminal), reward, is_terminal)


def continue_stream(generator: torch.Generator, state: UInt8[Tensor, "bytes"]) -> None:
    """Go on from another generator's `get_state()`, where both draw in the same way.

    CPU and CUDA do not: of a checkpoint from the other kind of device nothing can be taken, and the own stream goes on.
    """
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.to("cpu", copy=True))


class Environment(Protocol):
    """B environments stepped together."""

    spec: EnvironmentSpec

    def reset(self) -> Shaped[Tensor, "B ..."]:
        """Start all B episodes; called once, before the first step."""
        ...

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Step all B environments once."""
        ...

    def close(self) -> None:
        """Release threads and memory; the environment is not used afterwards."""
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment whose state can be copied out and put back (device environments; not EnvPool or ALE vector)."""

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of the game states under their names; "generator": that of the random numbers, where any are drawn."""
        ...

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a snapshot back; where it has no "generator", the own generator goes on (a fork of the game)."""
        ...

    def observe(self) -> Shaped[Tensor, "B ..."]:
        """Observation of the present states, without stepping."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentConfig(ABC):
    """One kind of environment as a value, which makes batches of it; a new kind is a subclass in a file of its own."""

    @abstractmethod
    def make(self, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> Environment:
        """B environments; `threads` are those of a C++ pool, `is_training` False plays full lives (evaluation)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceEnvironmentConfig(EnvironmentConfig):
    """Environments that are tensor operations on any torch device, and whose state can be copied."""

    @abstractmethod
    def make(
        self, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> SnapshotEnvironment:
        """B environments on `device`."""
