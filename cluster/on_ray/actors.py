"""Transports on Ray, seen from the learner: orders to actors on any node, and what is done about lost ones."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError
from torch import Tensor

from metagrad.actors.rollout import ActorState
from metagrad.cluster.config.experiment import FaultConfig
from metagrad.cluster.on_ray.faults import LOST_ACTOR, first_line
from metagrad.cluster.on_ray.rollout_actor import MakeActor, Published, versions
from metagrad.cluster.on_ray.slots import Order, Phase, Slot, rest_seconds, states_of, whom_to_ask
from metagrad.errors import ConfigurationError, counted
from metagrad.learner.actors import Account, StreamEnded
from metagrad.types import Rollout, WeightSnapshot

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_STATES = 2.0
_SECONDS_TO_STAND_IN, _TIMES_TO_STAND_IN = 10.0, 5.0  # in lockstep: so long, and so many times the longest rollout
_SECONDS_WITHOUT_A_PLACE = 120.0  # or a rollout's limit where that is longer; a process has to start in them too
_BYTES_BY_VALUE = 2**16  # of weights that every order carries itself, since to fetch them would take longer
_SECONDS_TO_COME_UP = 30.0  # then lockstep begins without the actors that the cluster has no place for yet


class ActorsLost(RuntimeError):
    """No actor is left, or none finds a place: the run cannot continue."""


class RayActors:
    """Orders rollouts from Ray actors that another process has created and keeps.

    Lockstep: an actor rolls out its own share; one that is lost, has no place yet or cannot be reached is covered
    by another until it is back. Peek: the least busy actor is asked next.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        faults: FaultConfig,
        report: Callable[[str], None],
        make: MakeActor,
        learner: int = 0,
        rollouts_per_batch: int = 0,
    ):
        """Ask all actors where they are, and start them as they are found.

        Args:
            slots: one per actor; an actor that another life of this learner has started is kept as it is.
            faults: what is forgiven.
            report: told what happens to actors.
            make: the `Actor` of a setup.
            learner: number of this life.
            rollouts_per_batch: what `stream` returns.
        """
        self.account = Account()
        self._faults = faults
        self._report = report
        self._make = make
        self._learner = learner
        self._rollouts_per_batch = rollouts_per_batch
        self._opened = time.monotonic()
        self._has_delivered = False
        self._longest = 0.0  # seconds that a rollout has taken so far
        self._published: Published | None = None  # the newest
        self._is_stopped = False
        self._arrived: deque[Rollout] = deque()
        self._slots = list(slots)
        for slot in self._slots:
            self._find(slot)

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """Return one rollout for every actor's share under exactly this snapshot, in the order of the actors.

        Raises:
            ActorsLost: no actor is left.
            RayTaskError: an actor's own exception, with its traceback.
        """
        published = self._publish(snapshot)
        done: dict[int, Rollout] = {}
        while len(done) < len(self._slots):
            late = time.monotonic() - max(_SECONDS_TO_STAND_IN, _TIMES_TO_STAND_IN * self._longest)
            orders = [order for slot in self._slots for order in slot.orders if order.version == published.version]
            awaited = {order.shard for order in orders if order.asked_at > late or not self._longest}
            for shard in range(len(self._slots)):
                if shard not in done and shard not in awaited:
                    self._order(self._worker_for(shard), shard, published, lookahead_step)
            for order, rollout in self._completed():
                if order.version == published.version and order.shard not in done:
                    done[order.shard] = rollout
                else:  # somebody else stood in
                    self.account.drop(self._slots[0].steps, "came too late")
        return [done[shard] for shard in range(len(self._slots))]

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        """Return the next batch of rollouts in the order in which they come, from any actors; older ones are dropped.

        Rollouts for this batch and the next are ordered ahead and no more, so that actors work while the learner does
        and nothing piles up.

        Raises:
            StreamEnded: `stop_streaming` was called.
            ActorsLost: no actor is left.
            RayTaskError: an actor's own exception, with its traceback.
        """
        self.publish(snapshot)
        is_starved = False
        while not self._is_stopped:
            self._drop_older_than(oldest)
            self._order_ahead(oldest, is_starved)
            if len(self._arrived) >= self._rollouts_per_batch:
                return [self._arrived.popleft() for _ in range(self._rollouts_per_batch)]
            arrived = [rollout for _, rollout in self._completed()]
            self._arrived.extend(arrived)
            is_starved = not arrived
        raise StreamEnded

    def stop_streaming(self) -> None:
        """Have a `stream` that waits in another thread end with `StreamEnded`."""
        self._is_stopped = True

    def publish(self, snapshot: WeightSnapshot) -> None:
        """Announce weights to all who have read the announcement before, so that none pile up before one that hangs.

        The learner may do so while another thread waits in `stream`, which then orders under them.
        """
        published = self._publish(snapshot)
        told = [slot.telling for slot in self._slots if slot.telling is not None]
        unread = ray.wait(told, num_returns=len(told), timeout=0)[1] if told else []
        for slot in self._slots:
            if slot.phase is Phase.READY and slot.telling not in unread:
                slot.telling = slot.handle.publish.remote(tuple(published))

    def _drop_older_than(self, oldest: int) -> None:
        arrived, self._arrived = self._arrived, deque()
        for rollout in arrived:
            if rollout.trajectory.policy_version >= oldest:
                self._arrived.append(rollout)
            else:
                self.account.drop(self._slots[0].steps, "too old")

    def _order_ahead(self, oldest: int, is_starved: bool) -> None:
        published = self._published
        assert published is not None
        size, lag = self._rollouts_per_batch, published.version + 1 - oldest  # taken ahead, for the next version
        while (slot := whom_to_ask(self._slots, len(self._arrived), size, oldest, lag, is_starved)) is not None:
            self._order(slot, 0, published, 0)

    def _worker_for(self, shard: int) -> Slot | None:
        """Choose who rolls a share out: its own actor, or the least busy one while that is away; None: wait."""
        own = self._slots[shard]
        is_coming_up = own.phase in (Phase.PLACING, Phase.STARTING) and not own.has_been_ready
        is_in_time = own.phase is Phase.STARTING or time.monotonic() < self._opened + _SECONDS_TO_COME_UP
        if is_coming_up and is_in_time:
            return None
        if own.phase is Phase.READY and not own.orders:
            return own
        # One with orders of its own is late with them, or does the same for another.
        rested = [slot for slot in self._slots if slot.phase is Phase.READY and not slot.orders]
        return rested[0] if rested else None

    def _publish(self, snapshot: WeightSnapshot) -> Published:
        """Put a new version once, unless it is small; a node fetches it at most once for all its actors."""
        if self._published is None or self._published.version < snapshot.version:
            arrays = _to_numpy(snapshot.theta), _to_numpy(snapshot.eta)
            is_small = sum(array.nbytes for array in arrays) <= _BYTES_BY_VALUE
            self._published = Published(self._learner, snapshot.version, arrays if is_small else [ray.put(arrays)])
        return self._published

    def _order(self, slot: Slot | None, shard: int, published: Published, lookahead_step: int) -> None:
        if slot is None:
            return
        if not slot.orders:
            slot.since = time.monotonic()
        self.account.order(slot.steps)
        reference = slot.handle.rollout.remote(tuple(published), lookahead_step)
        slot.orders.append(Order(shard, reference, published.version))

    def _completed(self) -> list[tuple[Order, Rollout]]:
        """Return the rollouts that came in, after a short wait for the first.

        Meanwhile slots go through their phases.
        """
        now = time.monotonic()
        for slot in self._slots:
            if slot.phase is Phase.RESTING and now >= slot.rest_until:
                self._find(slot)
        waiting = {slot.coming: slot for slot in self._slots if slot.coming is not None}
        ordered = {order.reference: (slot, order) for slot in self._slots for order in slot.orders}
        references = [*waiting, *ordered]
        if references:
            ready = ray.wait(references, num_returns=len(references), timeout=0)[0]
            if not ready:
                ready = ray.wait(references, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)[0]
        else:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            ready = []
        rollouts: list[tuple[Order, Rollout]] = []
        for reference in ready:
            if reference in waiting:
                self._advance(waiting[reference])
            elif (taken := ordered[reference])[1] in taken[0].orders:  # else lost with the actor, a moment ago
                rollouts += self._take(*taken)
        for slot in self._slots:
            if slot.is_late(self._faults.rollout_seconds):
                self._lose(slot, "actor hung", f"nothing for {self._faults.rollout_seconds:g} s", is_alive=True)
        self._require_hope()
        return rollouts

    def _find(self, slot: Slot) -> None:
        slot.enter(Phase.PLACING, slot.handle.place.remote())

    def _advance(self, slot: Slot) -> None:
        """Go through PLACING → STARTING → READY, or straight to READY if the environments are there already.

        Those that a former learner has left are put back to the state of the checkpoint, where it holds one.
        """
        try:
            if slot.phase is Phase.STARTING:
                ray.get(slot.coming)
                self._welcome(slot)
                return
            place = ray.get(slot.coming)
            if slot.doomed == (place.node, place.pid):  # killed, and not dead yet
                slot.rest(_SECONDS_BETWEEN_LOOKS)
            elif place.is_started and not slot.state:
                slot.place = place
                self._welcome(slot)
            elif place.is_started:
                slot.place = place
                slot.enter(Phase.STARTING, slot.handle.restore.remote(slot.state))
            else:
                slot.place = place
                started = slot.handle.start.remote(slot.setup, self._make, slot.state, versions())
                slot.enter(Phase.STARTING, started)
        except LOST_ACTOR as error:
            if slot.phase is Phase.PLACING and isinstance(error, ActorUnavailableError):
                slot.rest(_SECONDS_BETWEEN_LOOKS)  # Ray is bringing it up again, or cannot reach it
            else:
                self._lose(slot, "actor died", first_line(error), is_alive=False)
        except ConfigurationError as error:
            if not self._has_delivered:
                raise
            # A node that joined a run that works does not end it.
            self._give_up(slot, first_line(error))

    def _welcome(self, slot: Slot) -> None:
        if slot.losses_in_a_row:
            self._report(f"{slot.name}: rolls out again after {time.monotonic() - slot.away_since:.1f} s")
        slot.enter(Phase.READY)
        slot.has_been_ready, slot.state = True, None

    def _take(self, slot: Slot, order: Order) -> list[tuple[Order, Rollout]]:
        try:
            rollout: Rollout = ray.get(order.reference)
        except LOST_ACTOR as error:
            self._lose(slot, "actor died", first_line(error), is_alive=False)
            return []
        slot.orders.remove(order)
        self._longest = max(self._longest, time.monotonic() - max(order.asked_at, slot.since))
        slot.since = time.monotonic()
        slot.losses_in_a_row = 0
        self._has_delivered = True
        return [(order, rollout)]

    def _lose(self, slot: Slot, reason: str, detail: str, is_alive: bool) -> None:
        """Drop what was ordered from an actor, and ask for it again after a while."""
        if is_alive:
            slot.doomed = (slot.place.node, slot.place.pid) if slot.place else None
            ray.kill(slot.handle, no_restart=False)
        for _ in slot.orders:
            self.account.drop(slot.steps, reason)
        slot.orders.clear()
        slot.telling = None
        slot.losses_in_a_row += 1
        self.account.actors_restarted += 1
        if slot.losses_in_a_row > self._faults.restarts_without_progress:
            self._give_up(slot, f"lost {slot.losses_in_a_row} times in a row; last reason: {reason} ({detail})")
            return
        self._report(f"{slot.name}: {reason} ({detail}); started again with new random streams")
        # Another seed than its predecessor's, which would replay the same episodes.
        seed = slot.setup.seed
        slot.setup, slot.state = replace(slot.setup, seed=(*seed[:-1], seed[-1] + 1)), None
        slot.away_since = time.monotonic()
        slot.rest(rest_seconds(slot.losses_in_a_row))

    def _give_up(self, slot: Slot, reason: str) -> None:
        slot.enter(Phase.GIVEN_UP)
        ray.kill(slot.handle)
        if all(other.phase is Phase.GIVEN_UP for other in self._slots):
            raise ActorsLost(f"{slot.name}: {reason}; no other actor is left")
        self._report(f"{slot.name}: given up ({reason}); the run continues with the others")

    def _require_hope(self) -> None:
        """End a run for which no actor will ever bring anything.

        Raises:
            ActorsLost: no actor has had a place for a long time.
        """
        alive = [slot for slot in self._slots if slot.phase is not Phase.GIVEN_UP]
        waited = min(time.monotonic() - slot.away_since for slot in alive)
        is_placeless = all(slot.phase in (Phase.PLACING, Phase.RESTING) for slot in alive)
        if is_placeless and waited > max(_SECONDS_WITHOUT_A_PLACE, self._faults.rollout_seconds):
            free, setup = ray.available_resources().get("CPU", 0), alive[0].setup
            needs = counted(setup.cpus, "CPU") + (" and its part of a GPU" if setup.device != "cpu" else "")
            raise ActorsLost(
                f"no actor has found a place for {waited:.0f} s: each needs {needs} of one node, and {free:g} CPUs are "
                "free on the whole cluster; add nodes, and continue with --resume"
            )

    def states(self) -> list[ActorState]:
        """Return every actor's state for a checkpoint; one that is away is left out and starts afresh on resume."""
        # Actors that stream are asked behind their rollouts, and a slow one would hold the learner up.
        is_streaming = any(slot.orders for slot in self._slots)
        seconds = _SECONDS_FOR_STATES if is_streaming else self._faults.rollout_seconds
        return states_of(self._slots, seconds, self._report)


def _to_numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().cpu().numpy()
    return array
