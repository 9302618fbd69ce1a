"""Defines what the learner asks of actors, and accounts for what it has ordered from them."""

from collections import Counter
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from metagrad.types import Rollout, WeightSnapshot


class Account:
    """Keeps account of environment steps ordered from actors: sampled = consumed + dropped + in flight.

    `sampled` grows when a rollout is ordered and `consumed` when its update is done; what an actor's death loses is
    `dropped`, with the reason. The learner's thread and one that orders ahead share it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.sampled = 0
        self.consumed = 0
        self.dropped: Counter[str] = Counter()
        self.in_flight = 0
        self.actors_restarted = 0

    def order(self, steps: int) -> None:
        """Count a rollout that was asked for."""
        with self._lock:
            self.sampled += steps
            self.in_flight += steps

    def consume(self, steps: int) -> None:
        """Count a rollout that an update has used."""
        with self._lock:
            self.in_flight -= steps
            self.consumed += steps

    def drop(self, steps: int, reason: str) -> None:
        """Count a rollout that will never come."""
        with self._lock:
            self.in_flight -= steps
            self.dropped[reason] += steps

    def to_tree(self) -> dict[str, Any]:
        """Return plain data for a checkpoint, which adds up."""
        with self._lock:
            return {
                "sampled": self.sampled,
                "consumed": self.consumed,
                "dropped": dict(self.dropped),
                "in_flight": self.in_flight,
                "actors_restarted": self.actors_restarted,
            }

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


@runtime_checkable
class ActorsElsewhere(Actors, Protocol):
    """Stands for actors in other processes, whose stream a thread may wait for while another one computes."""

    def publish(self, snapshot: WeightSnapshot) -> None:
        """Announce a snapshot, under which actors that stream begin from now on."""
        ...

    def stop_streaming(self) -> None:
        """Have a `stream` that waits in another thread end with `StreamEnded`."""
        ...


class StreamEnded(RuntimeError):
    """Says that nobody waits for the next batch any more."""
