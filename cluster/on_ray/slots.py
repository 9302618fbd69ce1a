"""Tracks one slot per actor: what its process is doing, what was ordered from it, and when it counts as hung."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.cluster.on_ray.faults import LOST_ACTOR, first_line
from metagrad.cluster.on_ray.rollout_actor import ProcessPlace

_ORDERS_AHEAD = 2  # per actor that streams: one that runs and one that waits, so that it never waits for the learner
_BATCHES_AHEAD = 2  # ordered or arrived, and not yet used


class Phase(Enum):
    """Names the phases of an actor process as its learner sees them."""

    RESTING = auto()  # lost; asked for again after a while
    PLACING = auto()  # Ray looks for a node, or starts the process
    STARTING = auto()  # makes its environments
    READY = auto()  # rolls out
    GIVEN_UP = auto()  # lost too often in a row


@dataclass(slots=True)
class Order:
    """Holds a rollout that was asked for."""

    shard: int
    reference: Any
    version: int  # newest published when it was asked for
    asked_at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Slot:
    """Manages one actor."""

    setup: ActorSetup
    handle: Any
    state: ActorState | None
    phase: Phase = Phase.PLACING
    place: ProcessPlace | None = None
    coming: Any = None  # reference to what ends PLACING or STARTING
    since: float = 0.0  # when the phase, or the rollout at hand, began
    rest_until: float = 0.0
    away_since: float = field(default_factory=time.monotonic)  # lost, or never there yet
    doomed: tuple[str, int] | None = None  # node and process that was killed for hanging
    orders: deque[Order] = field(default_factory=deque)
    telling: Any = None  # reference to the newest message about weights
    losses_in_a_row: int = 0
    has_been_ready: bool = False

    @property
    def steps(self) -> int:
        """Return the environment steps of one rollout."""
        return self.setup.steps

    @property
    def name(self) -> str:
        """Return its name in messages."""
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
    """Return the pause before a lost actor is asked for again: none the first time, then 0.5 s, doubling up to 30 s."""
    return 0.0 if losses_in_a_row <= 1 else min(30.0, 0.5 * 2 ** (losses_in_a_row - 2))


def whom_to_ask(
    slots: Sequence[Slot], arrived: int, rollouts_per_batch: int, oldest: int, lag: int, is_starved: bool
) -> Slot | None:
    """Choose the slot to ask for one more streamed rollout; None if enough is on its way.

    Two batches are enough, and where actors rest that two batches do not need, as many as will be used in time. An
    order from before the oldest version of use counts no more, so that actors that are late, or hang, keep no other
    from working. Where nothing comes, everybody who rests is asked.

    Args:
        slots: all actors.
        arrived: rollouts that are there.
        rollouts_per_batch: what the learner takes at a time.
        oldest: version before which a rollout is of no use.
        lag: by how much the newest version is ahead of it, in updates, each of which takes a batch.
        is_starved: the learner waits, and nothing has come for a moment.
    """
    ready = [slot for slot in slots if slot.phase is Phase.READY]
    free = [x for x in ready if len(x.orders) < _ORDERS_AHEAD and all(order.version >= oldest for order in x.orders)]
    if not free:
        return None
    least = min(free, key=lambda slot: len(slot.orders))
    on_its_way = arrived + sum(order.version >= oldest for slot in slots for order in slot.orders)
    batches = _BATCHES_AHEAD if least.orders else max(_BATCHES_AHEAD, lag)
    is_wanted = on_its_way < batches * rollouts_per_batch or (is_starved and not least.orders)
    return least if is_wanted else None


def states_of(slots: Sequence[Slot], seconds: float, report: Callable[[str], None]) -> list[ActorState]:
    """Collect every actor's state for a checkpoint, within so many seconds.

    One that is away is left out, with a message.
    """
    asked = [slot.handle.state.remote() if slot.phase is Phase.READY else None for slot in slots]
    deadline = time.monotonic() + seconds
    states: list[ActorState] = []
    for slot, reference in zip(slots, asked, strict=True):
        state: ActorState = {}
        if reference is not None:
            try:
                state = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except (*LOST_ACTOR, GetTimeoutError) as error:
                report(f"{slot.name}: the checkpoint is without its environments ({first_line(error)})")
        states.append(state)
    return states
