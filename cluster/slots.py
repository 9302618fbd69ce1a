"""One slot per actor: what its process is doing, what was ordered from it, and when it counts as hung."""

import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from actors.rollout import ActorSetup, State
from cluster.rollout_actor import Place


class Phase(Enum):
    """Life of an actor process as its learner sees it."""

    RESTING = auto()  # lost; asked for again after a while
    PLACING = auto()  # Ray looks for a node, or starts the process
    STARTING = auto()  # makes its environments
    READY = auto()  # rolls out
    GIVEN_UP = auto()  # lost too often in a row


@dataclass(slots=True)
class Order:
    """A rollout that was asked for."""

    shard: int
    reference: Any


@dataclass(slots=True)
class Slot:
    """One actor."""

    setup: ActorSetup
    handle: Any
    state: State | None
    phase: Phase = Phase.PLACING
    place: Place | None = None
    coming: Any = None  # reference to what ends PLACING or STARTING
    since: float = 0.0  # when the phase, or the rollout at hand, began
    rest_until: float = 0.0
    away_since: float = field(default_factory=time.monotonic)  # lost, or never there yet
    doomed: tuple[str, int] | None = None  # node and process that was killed for hanging
    orders: deque[Order] = field(default_factory=deque)
    losses_in_a_row: int = 0
    has_been_ready: bool = False

    @property
    def steps(self) -> int:
        """Environment steps of one rollout."""
        return self.setup.batch_size * self.setup.rollout_length

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"actor {self.setup.index}" + (f" ({self.place})" if self.place else "")

    def enter(self, phase: Phase, coming: Any = None) -> None:
        """Begin a phase."""
        self.phase, self.coming, self.since = phase, coming, time.monotonic()

    def rest(self, seconds: float) -> None:
        """Leave it alone for a while."""
        self.enter(Phase.RESTING)
        self.rest_until = time.monotonic() + seconds

    def is_late(self, seconds: float) -> bool:
        """True where it has been at one start or one rollout for longer than `seconds`; to place it is Ray's time."""
        is_busy = self.phase is Phase.STARTING or (self.phase is Phase.READY and bool(self.orders))
        return is_busy and time.monotonic() > self.since + seconds


def rest_seconds(losses_in_a_row: int) -> float:
    """Pause before a lost actor is asked for again: none the first time, then 0.5 s, doubling up to 30 s."""
    return 0.0 if losses_in_a_row <= 1 else min(30.0, 0.5 * 2 ** (losses_in_a_row - 2))
