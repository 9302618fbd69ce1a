"""Supplies the trajectories of an update: sampled for it in lockstep, or from a window of streamed ones."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metagrad.types import Trajectory, WeightSnapshot


class Batch(NamedTuple):
    """One trajectory of all environments, and under which versions its parts were sampled."""

    trajectory: Trajectory
    versions: tuple[int, ...]  # one per rollout; `trajectory.policy_version` is the oldest


class Schedule(Protocol):
    """Supplies the loop with trajectories."""

    @property
    def lag(self) -> tuple[int, ...]:
        """Return for each rollout of the last real batch how many versions its policy is behind the updated one."""
        ...

    @property
    def held_batches(self) -> int:
        """Batches here that no real update has used yet."""
        ...

    def sample(self, snapshot: WeightSnapshot, step: int) -> Trajectory:
        """Trajectory for step j of an update: 0 real, j ≥ 1 at looked-ahead parameters."""
        ...

    def to_tree(self) -> list[dict[str, Any]]:
        """Return plain data for a checkpoint: the batches held."""
        ...


class Lockstep:
    """Every trajectory is sampled under exactly the snapshot it is used with (the papers)."""

    held_batches = 0

    def __init__(self, ask: Callable[[WeightSnapshot, int], Batch]):
        self._ask = ask
        self.lag: tuple[int, ...] = ()

    def sample(self, snapshot: WeightSnapshot, step: int) -> Trajectory:
        """Have all actors roll this snapshot out."""
        batch = self._ask(snapshot, step)
        self.lag = tuple(snapshot.version - version for version in batch.versions)
        return batch.trajectory

    def to_tree(self) -> list[dict[str, Any]]:
        """Nothing is held."""
        return []


class Peek:
    """A window of n+1 streamed batches: the real update uses the oldest, the look-ahead those that follow it.

    Equation: update k at version k uses batches k, …, k+n of the stream: k for θ₀ → θ₁, k+j for θⱼ → θⱼ₊₁, k+n for the
    outer loss at θₙ. Then the window slides by one: a look-ahead costs no frames, and actors never wait for one.

    The policies that acted are older than those that are trained, or, for the later batches of the window, others: the
    losses correct for it with ratios against the recorded behaviour policy (V-trace). Only real parameters are
    published, so versions count real updates.

    Source: answers §4.2 of "One Step at a Time"; with n = 1 it is the scheme of Xu et al. (2018), "Meta-Gradient
    Reinforcement Learning".
    """

    def __init__(self, stream: Callable[[WeightSnapshot, int], Batch], batches: int, max_lag: int, version: int):
        """A window of `batches` = n+1.

        Args:
            stream: (published snapshot, oldest version) -> the next batch, none of it sampled before that version.
            batches: length of the window.
            max_lag: versions that may lie between a rollout's policy and θ₀ of the real update that uses it.
            version: of the next snapshot, the real updates done so far.
        """
        self._stream = stream
        self._batches = batches
        self._entry_lag = max_lag - (batches - 1)  # a batch waits for n more updates
        self._version = version
        self._window: deque[Batch] = deque()
        self._is_first_used = False  # by the real update that it was for
        self.lag: tuple[int, ...] = ()

    @property
    def held_batches(self) -> int:
        """Return what the next real update finds here."""
        return len(self._window) - self._is_first_used

    def sample(self, snapshot: WeightSnapshot, step: int) -> Trajectory:
        """Return batch `step` of the window; step 0 publishes the snapshot and slides the window."""
        if step == 0:
            self._slide(snapshot._replace(version=self._version))
        return self._window[step].trajectory

    def _slide(self, published: WeightSnapshot) -> None:
        if self._is_first_used:
            self._window.popleft()
        while len(self._window) < self._batches:
            self._window.append(self._stream(published, published.version - self._entry_lag))
        self.lag = tuple(published.version - version for version in self._window[0].versions)
        self._is_first_used = True
        self._version += 1

    def to_tree(self) -> list[dict[str, Any]]:
        """The batches that the next updates will use."""
        held = list(self._window)[self._is_first_used :]
        return [{"trajectory": x.trajectory._asdict(), "versions": list(x.versions)} for x in held]

    def load_tree(self, tree: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Continue from `to_tree()`, on `device`."""
        for entry in tree:
            trajectory = entry["trajectory"]
            fields: dict[str, Any] = {
                name: x.to(device) if isinstance(x, Tensor) else x for name, x in trajectory.items()
            }
            self._window.append(Batch(Trajectory(**fields), tuple(entry["versions"])))
