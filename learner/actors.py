"""Defines what the learner asks of actors, and accounts for what it has ordered from them."""

from collections import Counter
from typing import Any, Protocol

from torch import Tensor

from metagrad.types import Rollout, WeightSnapshot


class Account:
    """Keeps account of environment steps ordered from actors: sampled = consumed + dropped + in flight.

    `sampled` grows when a rollout is ordered and `consumed` when its update is done; what an actor's death loses is
    `dropped`, with the reason.
    """

    def __init__(self) -> None:
        self.sampled = 0
        self.consumed = 0
        self.dropped: Counter[str] = Counter()
        self.in_flight = 0
        self.actors_restarted = 0

    def order(self, steps: int) -> None:
        """Count a rollout that was asked for."""
        self.sampled += steps
        self.in_flight += steps

    def consume(self, steps: int) -> None:
        """Count a rollout that an update has used."""
        self.in_flight -= steps
        self.consumed += steps

    def drop(self, steps: int, reason: str) -> None:
        """Count a rollout that will never come."""
        self.in_flight -= steps
        self.dropped[reason] += steps

    def to_tree(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return vars(self) | {"dropped": dict(self.dropped)}

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from `to_tree()`: steps in flight in it are those of the learner state's own batch."""
        vars(self).update(tree, dropped=Counter(tree["dropped"]))


class Actors(Protocol):
    """Stands for all actors of a run, wherever they are."""

    account: Account

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """Return one rollout of every actor under exactly this snapshot, in the order of the actors."""
        ...

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        """Publish the snapshot and return the next batch of rollouts of any actors, none older than `oldest`."""
        ...

    def states(self) -> list[dict[str, Tensor]]:
        """Return every actor's state, for a checkpoint."""
        ...
