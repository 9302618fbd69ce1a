"""Supplies the trajectories of an update: sampled for it in lockstep, or from a window of streamed ones.

A schedule asks the actors, makes batches of their rollouts, and hands over what came in, for the accounts of the loop.
"""

from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from metagrad.learner.actors import Actors, ActorsElsewhere
from metagrad.learner.ahead import Ahead, Direct, Feed
from metagrad.learner.batch import Batch, merge, trajectory_of, tree_of, valid_steps
from metagrad.trees import map_tensors
from metagrad.types import Episodes, Rollout, WeightSnapshot


class Received(NamedTuple):
    """Holds the facts of one batch that accounts are kept of."""

    episodes: tuple[Episodes, ...]  # of each rollout
    frames: Int[Tensor, ""]  # valid steps; where they were sampled, so that nothing waits for it during the update
    is_lookahead: bool  # True: sampled at looked-ahead parameters


class Schedule(Protocol):
    """Supplies the loop with trajectories."""

    @property
    def lag(self) -> tuple[int, ...]:
        """Return for each rollout of the last real batch how many versions its policy is behind the updated one."""
        ...

    @property
    def held_batches(self) -> int:
        """Count the batches here that no real update has used yet."""
        ...

    def sample(self, snapshot: WeightSnapshot, step: int) -> Any:
        """Return what the actors bring for step j of an update: 0 real, j ≥ 1 at looked-ahead parameters."""
        ...

    def take_received(self) -> list[Received]:
        """Return the facts of all batches that came in since the last call."""
        ...

    def to_tree(self) -> list[dict[str, Any]]:
        """Return the batches held, as plain data for a checkpoint."""
        ...

    def load_tree(self, tree: Sequence[dict[str, Any]]) -> None:
        """Continue from `to_tree()`."""
        ...

    def close(self) -> None:
        """Take no more batches."""
        ...


class _Intake:
    """Makes batches of rollouts on the learner's device, and notes their facts."""

    def __init__(self, device: torch.device):
        self.device = device
        self._received: list[Received] = []

    def merged(
        self,
        rollouts: Sequence[Rollout],
        room: Sequence[Tensor] = (),
        version: int | None = None,
        is_lookahead: bool = False,
    ) -> tuple[Batch, Received]:
        """Merge the rollouts of one batch, in the memory given; all of this version unless it is None."""
        batch = merge(rollouts, version, self.device, room)
        # Copies: a view of a few numbers would keep a whole rollout in Ray's object store.
        episodes = tuple(deepcopy(rollout.episodes) for rollout in rollouts)
        frames = torch.stack([valid_steps(rollout.trajectory) for rollout in rollouts]).sum()
        return batch, Received(episodes, frames, is_lookahead)

    def note(self, batch: Batch, received: Received) -> Batch:
        """Note that a batch has come in."""
        self._received.append(received)
        return batch

    def take(self) -> list[Received]:
        """Return the facts since the last call."""
        taken, self._received = self._received, []
        return taken


class Lockstep:
    """Samples every trajectory under exactly the snapshot it is used with (the papers)."""

    held_batches = 0

    def __init__(self, actors: Actors, device: torch.device):
        self._actors = actors
        self._intake = _Intake(device)
        self.take_received = self._intake.take
        self.lag: tuple[int, ...] = ()

    def sample(self, snapshot: WeightSnapshot, step: int) -> Any:
        """Have all actors roll this snapshot out."""
        rollouts = self._actors.sample(snapshot, step)
        batch = self._intake.note(*self._intake.merged(rollouts, (), snapshot.version, step > 0))
        self.lag = tuple(snapshot.version - version for version in batch.versions)
        return batch.trajectory

    def to_tree(self) -> list[dict[str, Any]]:
        """Return nothing: no batch is held."""
        return []

    def load_tree(self, tree: Sequence[dict[str, Any]]) -> None:
        """Take back nothing."""

    def close(self) -> None:
        """Leave the actors as they are: they work on demand."""


class Peek:
    """Holds a window of n+1 streamed batches: the real update uses the oldest, the look-ahead those that follow it.

    Equation: update k at version k uses batches k, …, k+n of the stream: k for θ₀ → θ₁ (all its uses, if it has more
    than one), k+j for θⱼ → θⱼ₊₁, k+n for the outer loss at θₙ. Then the window slides by one: a look-ahead costs no
    frames, and actors never wait for one.

    The policies that acted are older than those that are trained, or, for the later batches of the window, others: the
    losses correct for it with ratios against the recorded behaviour policy (V-trace). Only real parameters are
    published, so versions count real updates, or batches where those are used several times.

    Source: answers §4.2 of "One Step at a Time"; with n = 1 it is the scheme of Xu et al. (2018), "Meta-Gradient
    Reinforcement Learning".
    """

    def __init__(self, actors: Actors, device: torch.device, batches: int, max_lag: int, version: int):
        """Begin with an empty window of `batches` = n+1.

        Args:
            actors: the stream: each batch is of rollouts that are not older than the version asked for.
            device: where the learner computes.
            batches: length of the window.
            max_lag: versions that may lie between a rollout's policy and θ₀ of the real update that uses it.
            version: of the next snapshot, the real batches used so far.
        """
        self._intake = _Intake(device)
        self.take_received = self._intake.take
        merged = self._intake.merged
        self._feed: Feed[tuple[Batch, Received]]
        self._feed = Ahead(actors, merged, device) if isinstance(actors, ActorsElsewhere) else Direct(actors, merged)
        self._batches = batches
        self._entry_lag = max_lag - (batches - 1)  # a batch waits for n more updates
        self._version = version
        self._window: deque[Batch] = deque()
        self._is_first_used = False  # by the real update that it was for
        self.lag: tuple[int, ...] = ()

    @property
    def held_batches(self) -> int:
        """Return the number of batches that the next real updates find here."""
        return len(self._window) - self._is_first_used

    def sample(self, snapshot: WeightSnapshot, step: int) -> Any:
        """Return batch `step` of the window; step 0 publishes the snapshot and slides the window."""
        if step == 0:
            self._slide(snapshot._replace(version=self._version))
        return self._window[step].trajectory

    def _slide(self, published: WeightSnapshot) -> None:
        if self._is_first_used:
            self._window.popleft()
        while len(self._window) < self._batches:
            taken = self._feed.take(published, published.version - self._entry_lag)
            self._window.append(self._intake.note(*taken))
        self.lag = tuple(published.version - version for version in self._window[0].versions)
        self._is_first_used = True
        self._version += 1

    def to_tree(self) -> list[dict[str, Any]]:
        """Return the batches that the next updates will use."""
        held = list(self._window)[self._is_first_used :]
        return [{"trajectory": tree_of(x.sent), "versions": list(x.versions)} for x in held]

    def load_tree(self, tree: Sequence[dict[str, Any]]) -> None:
        """Continue from `to_tree()`."""
        for entry in tree:
            fields = map_tensors(lambda x: x.to(self._intake.device), entry["trajectory"])
            self._window.append(Batch(trajectory_of(fields), tuple(entry["versions"])))

    def close(self) -> None:
        """Take no more batches."""
        self._feed.close()
