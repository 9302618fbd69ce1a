"""Defines what a batch of environments is to an actor, and holds what those on a torch device share.

Shapes: B environments stepped together. All tensors live on `spec.device`.

Autoreset is one of two, and is the environment's own property (see docs/conventions.md):

* NEXT_STEP (EnvPool, ALE, Gymnasium): the step after an episode's end ignores its action and only resets. That step has
  `valid=False`; the observation returned *at* the end is the true successor, so truncation bootstraps from it.
* SAME_STEP (environments that only ever terminate: Snake, tabular MDPs, the Markov reward process, the Discounting
  Chain): the observation returned at the end is already the next episode's first; every step is valid.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from metagrad.actors.envs.snapshots import checked_fields
from metagrad.distributions import ActionSpace, DiscreteActions
from metagrad.errors import ConfigurationError, require

MAX_STEPS = torch.iinfo(torch.int32).max  # environments count the steps of an episode in int32


class EnvironmentSpec(NamedTuple):
    """Holds the static facts of one batch of environments."""

    batch_size: int
    observation_shape: tuple[int, ...]
    observation_dtype: torch.dtype
    action_names: tuple[str, ...]
    device: torch.device
    name: str
    action_space: ActionSpace | None = None  # None: one of `action_names`; else these name the components of an action
    is_frame_stack: bool = False  # True: an observation [K, ...] is the last K frames, the newest last (sent packed)

    @property
    def num_actions(self) -> int:
        return len(self.action_names)

    @property
    def actions(self) -> ActionSpace:
        """Return what a policy chooses among."""
        return DiscreteActions(self.num_actions) if self.action_space is None else self.action_space


class EnvironmentStep(NamedTuple):
    """Holds what one step of B environments returns."""

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
        """Make the step of SAME_STEP autoreset: every step counts, ends are terminal, the reward is the raw one."""
        never = torch.zeros_like(is_terminal)
        return cls(observation, reward, is_terminal, never, torch.ones_like(is_terminal), reward, is_terminal)

    @classmethod
    def next_step(
        cls,
        observation: Shaped[Tensor, "B ..."],
        reward: np.ndarray,
        is_terminal: np.ndarray,
        is_truncated: np.ndarray,
        resets: np.ndarray,
        reward_scale: float,
    ) -> "EnvironmentStep":
        """Make the step of NEXT_STEP autoreset from arrays [B] on the host; the reward is the raw one times a scale.

        Where `resets`, the step only reset, whatever else was returned. An episode that both terminates and reaches its
        time limit terminates.
        """
        is_terminal = is_terminal & ~resets
        is_truncated = is_truncated & ~resets & ~is_terminal
        raw_reward = torch.from_numpy(np.where(resets, 0.0, reward).astype(np.float32))
        flags = (is_terminal, is_truncated, ~resets, is_terminal | is_truncated)
        terminal, truncated, valid, ends = (torch.from_numpy(flag) for flag in flags)
        return cls(observation, reward_scale * raw_reward, terminal, truncated, valid, raw_reward, ends)


def continue_stream(generator: torch.Generator, state: UInt8[Tensor, "bytes"]) -> None:
    """Continue from another generator's `get_state()`, where both draw in the same way.

    CPU and CUDA generators do not: after a checkpoint from the other kind of device its own stream continues.
    """
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.to("cpu", copy=True))


def is_cudas_stream(state: UInt8[Tensor, "bytes"]) -> bool:
    """True for the state of a CUDA generator, which has 16 bytes: its seed and how far it has come."""
    return state.numel() == 16


class Environment(Protocol):
    """B environments that are stepped together."""

    spec: EnvironmentSpec

    def reset(self) -> Shaped[Tensor, "B ..."]:
        """Start all B episodes; called once, before the first step."""
        ...

    def step(self, action: Shaped[Tensor, "B ..."]) -> EnvironmentStep:
        """Step all B environments once."""
        ...

    def close(self) -> None:
        """Release threads and memory; the environment is not used afterwards."""
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment whose state can be copied out and put back (device environments, Atari on `ale-snapshots`)."""

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state by name; "generator" is the state of the random numbers, where any are drawn."""
        ...

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a snapshot back; without a "generator" in it, the own one continues (a fork)."""
        ...

    def observe(self) -> Shaped[Tensor, "B ..."]:
        """Return the observation of the present states, without stepping."""
        ...


class PicturedEnvironment(Environment, Protocol):
    """One environment whose episodes a person can watch."""

    @property
    def milliseconds(self) -> int:
        """Return how long a picture is shown in real time: a multiple of 10, in which GIFs count."""
        ...

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return the picture of the present state in RGB; after an episode's last step it is still of that episode."""
        ...


S = TypeVar("S", bound=tuple[Tensor, ...])  # a NamedTuple of tensors; run-time type checks know no such bound


class DeviceEnvironment(ABC, Generic[S]):
    """B environments that are tensor operations on one device; their whole state is a NamedTuple of tensors.

    A subclass says how episodes begin (`_start`) and what is seen (`observe`), and adds `step`, which sets `_state`.
    """

    def __init__(
        self,
        *,
        name: str,
        batch_size: int,
        observation_shape: tuple[int, ...],
        action_names: tuple[str, ...],
        device: torch.device | str,
        seed: int | None,
        observation_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Describe the environments; `seed` is None where nothing is random, and then no generator is kept.

        Raises:
            ConfigurationError: the batch is empty.
        """
        require(batch_size >= 1, "batch_size", batch_size, "must be at least 1", "raise batch_size")
        device = torch.zeros(0, device=device).device  # with its index, as tensors have it
        self.spec = EnvironmentSpec(batch_size, observation_shape, observation_dtype, action_names, device, name)
        self._generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        self._state: S | None = None

    @abstractmethod
    def _start(self) -> S:
        """Return the first states of B episodes; what is random in them comes from `_generator`."""

    @abstractmethod
    def observe(self) -> Shaped[Tensor, "..."]:
        """Return the observation of the present states, without stepping."""

    def reset(self) -> Shaped[Tensor, "..."]:
        """Start all B episodes; the generator continues from where it is."""
        self._state = self._start()
        return self.observe()

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the fields of the state, and the generator's state (a byte tensor) as "generator" where there is one."""
        running: Any = self._running()
        state = {name: value.clone() for name, value in running._asdict().items()}
        return state if self._generator is None else {**state, "generator": self._generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a copy of a snapshot back; without a "generator" in it, the own one continues (a fork)."""
        like: Any = self._example() if self._state is None else self._state
        fields = checked_fields(snapshot, like._asdict(), self.spec.name)
        self._state = like._replace(**fields)
        if self._generator is not None and "generator" in snapshot:
            continue_stream(self._generator, snapshot["generator"])

    def close(self) -> None:
        """Drop the episodes."""
        self._state = None

    def _running(self) -> S:
        """Return the present states.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._state is None:
            raise RuntimeError("no episodes to step or observe; call reset() or restore(snapshot) first")
        return self._state

    def _example(self) -> S:
        """Return a state as `_start` makes them, without using up random numbers."""
        if self._generator is None:
            return self._start()
        stream = self._generator.get_state()
        state = self._start()
        self._generator.set_state(stream)
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentConfig(ABC):
    """Describes one kind of environment and makes batches of it; a new kind is a subclass in a file of its own."""

    has_threads: ClassVar[bool] = False
    """True: a batch steps in as many threads of its own as it is given, so that one process keeps many cores busy."""

    @property
    def has_snapshots(self) -> bool:
        """Return whether what `make` makes is a `SnapshotEnvironment`."""
        return False

    @property
    def has_pictures(self) -> bool:
        """Return whether `make_pictured` has something to show, as far as is known before it is made."""
        return False

    @abstractmethod
    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> Environment:
        """Make B environments.

        Args:
            batch_size: B.
            seed: seeds everything that is random in them.
            device: where environments that are tensor operations live.
            threads: threads of a C++ backend.
            is_training: False plays full lives (evaluation).
        """

    def make_pictured(self, seed: int) -> PicturedEnvironment:
        """Make one environment for evaluation on the host that can be watched.

        Raises:
            ConfigurationError: it has no pictures, or they cannot be drawn on this machine.
        """
        name, rule = type(self).__name__, "has no pictures that could be recorded"
        raise ConfigurationError(f"env = {name!r}: {rule}; evaluate it without pictures")

    def require_reward_scale(self, scale: float) -> None:
        """Raise `ConfigurationError` unless what the learner's reward is multiplied with is positive and finite."""
        require(0.0 < scale < math.inf, "env.reward_scale", scale, "must be positive and finite", "1 leaves it alone")

    def require_whole(self, name: str, low: int, high: int | None = None, remedy: str | None = None) -> None:
        """Raise `ConfigurationError` unless the field `name` is a whole number from `low` to `high`."""
        value = getattr(self, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        is_in_range = is_whole and low <= value and (high is None or value <= high)
        bounds = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        require(is_in_range, f"env.{name}", value, f"must be a whole number {bounds}", remedy or f"raise env.{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceEnvironmentConfig(EnvironmentConfig):
    """Describes environments that are tensor operations on any torch device, and whose state can be copied."""

    @property
    def has_snapshots(self) -> bool:
        """Return True: all their state is tensors."""
        return True

    @abstractmethod
    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> SnapshotEnvironment:
        """Make B environments on `device`."""
