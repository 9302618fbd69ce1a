"""Checks what is done about lost actors and who is asked for what, with Ray replaced; test_ray_actors.py has real ones.

Time passes, and actors work, only while somebody waits.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from metagrad.actors.rollout import ActorSetup
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import FaultConfig
from metagrad.cluster.on_ray import actors as ray_actors
from metagrad.cluster.on_ray import slots
from metagrad.cluster.on_ray.actors import ActorsLost, RayActors
from metagrad.cluster.on_ray.faults import NotStarted
from metagrad.cluster.on_ray.rollout_actor import ProcessPlace, Published
from metagrad.cluster.on_ray.slots import Phase, Slot
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError
from metagrad.types import Episodes, Rollout, Trajectory, WeightSnapshot

STEPS = 6  # of a rollout


@dataclass(eq=False)
class Reference:
    """What a call returns at once."""

    value: Any = None
    is_there: bool = False

    def come(self, value: Any) -> None:
        self.value, self.is_there = value, True


@dataclass(eq=False)
class Process:
    """An actor's process, and the handle of it."""

    world: "World"
    index: int
    pid: int = 100
    is_started: bool = False
    is_hung: bool = False
    is_ended: bool = False  # for good
    away: int = 0  # looks until Ray has brought it up again; -1: never
    failure: Exception | None = None  # what `start` ends with
    killed: int = 0
    starts: list[ActorSetup] = field(default_factory=list)
    restored: list[Any] = field(default_factory=list)
    newest: Published | None = None
    inbox: deque[tuple[str, tuple[Any, ...], Reference]] = field(default_factory=deque)
    calls: deque[tuple[str, tuple[Any, ...], Reference]] = field(default_factory=deque)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def remote(*values: Any) -> Reference:
            reference = Reference()
            if self.is_ended:
                reference.come(ActorDiedError())
            elif self.away and name != "place":
                reference.come(ActorUnavailableError("away", b"0" * 16))
            else:
                (self.inbox if name in ("place", "publish") else self.calls).append((name, values, reference))
            return reference

        return SimpleNamespace(remote=remote)

    def die(self, away: int = 1) -> None:
        """The process ends; Ray begins another after so many looks."""
        self.pid, self.is_started, self.is_hung, self.newest, self.away = self.pid + 1, False, False, None, away
        for queue in (self.inbox, self.calls):
            for _, _, reference in queue:
                reference.come(ActorDiedError())
            queue.clear()

    def look(self) -> None:
        """What its own thread for control does."""
        if self.killed:
            self.killed = 0
            self.die()
            return
        if self.away:
            self.away -= self.away > 0
            return
        while self.inbox and not self.is_hung:
            name, values, reference = self.inbox.popleft()
            if name == "publish":
                self.newest = Published(*values[0])
            reference.come(ProcessPlace("10.0.0.1", self.pid, self.is_started) if name == "place" else None)

    def work(self) -> None:
        """One call to its end."""
        if self.away or self.is_hung or not self.calls:
            return
        name, values, reference = self.calls.popleft()
        if name == "start":
            self.starts.append(values[0])
            self.is_started = self.failure is None
            reference.come(self.failure)
        elif not self.is_started:
            reference.come(task_error(NotStarted("has taken the place of one that died")))
        elif name == "state":
            reference.come({"index": self.index})
        elif name == "restore":
            self.restored.append(values[0])
            reference.come(None)
        else:
            ordered = Published(*values[0])
            newest = self.newest
            is_newer = newest is not None and newest.learner == ordered.learner and newest.version > ordered.version
            reference.come(self.brings(newest.version if is_newer and newest else ordered.version, values[1]))

    def brings(self, version: int, lookahead_step: int) -> Rollout:
        """Its fields have no truth value, as those of real ones."""
        fields: Any = [np.zeros((3, 2))] * 7
        return Rollout(
            Trajectory(*fields, policy_version=version), Episodes(*fields[:2]), self.index, lookahead_step > 0
        )


def task_error(error: Exception) -> Exception:
    """As Ray raises it."""
    raised: Exception = RayTaskError("remote", "Traceback (most recent call last): …", error).as_instanceof_cause()
    return raised


class World:
    """All processes; `policy` says what they do at each look, and they simply work where it says nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, setups: Sequence[ActorSetup]):
        self.now = time.monotonic()
        self.processes = [Process(self, setup.index) for setup in setups]
        self.setups = list(setups)
        self.said: list[str] = []
        self.policy: Callable[[Process], None] = Process.work
        self.kills: list[tuple[int, bool]] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self._pass)
        for module in (slots, ray_actors):
            monkeypatch.setattr(module, "time", clock)
        for name in ("wait", "get", "put", "kill"):
            monkeypatch.setattr(ray, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})

    def actors(
        self,
        faults: FaultConfig | None = None,
        rollouts_per_batch: int = 0,
        learner: int = 0,
        states: Sequence[Any] = (None,) * 100,
    ) -> RayActors:
        """As a learner opens them."""
        each = zip(self.setups, self.processes, states, strict=False)
        own = [Slot(setup, process, state, away_since=self.now) for setup, process, state in each]
        make: Any = None
        return RayActors(own, faults or FaultConfig(), self.said.append, make, learner, rollouts_per_batch)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for process in self.processes:
            process.look()
            self.policy(process)

    def _wait(self, references: list[Reference], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        if timeout and not any(x.is_there for x in references):
            self._pass(timeout)
        return [x for x in references if x.is_there], [x for x in references if not x.is_there]

    def _get(self, reference: Reference, timeout: float | None = None) -> Any:
        if not reference.is_there and timeout:
            self._pass(timeout)
        if not reference.is_there:
            assert timeout is not None, "this would wait for ever"
            raise GetTimeoutError("no answer in time")
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def _put(self, value: Any) -> Reference:
        reference = Reference()
        reference.come(value)
        return reference

    def _kill(self, process: Process, no_restart: bool = True) -> None:
        process.killed += 1
        self.kills.append((process.index, no_restart))
        if no_restart:
            process.die()
            process.is_ended = True


MakeWorld = Callable[[int], World]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Experiment]) -> MakeWorld:
    """Number of actors -> their processes, all of them there and not started."""

    def make(actors: int) -> World:
        experiment = tiny(topology="ray", actors=actors, environments=2 * actors)
        return World(monkeypatch, actor_setups(experiment, torch.device("cpu"), 0))

    return make


def snapshot(version: int) -> WeightSnapshot:
    return WeightSnapshot(version, torch.zeros(2), torch.zeros(1))


def once(process: Process, act: Callable[[Process], None], when: Callable[[], bool] = lambda: True) -> Any:
    """A policy under which one process does something, once."""
    done: list[bool] = []

    def policy(each: Process) -> None:
        if each is process and not done and when():
            done.append(True)
            act(each)
        else:
            each.work()

    return policy


def hang(process: Process) -> None:
    process.is_hung = True


def is_rolling_out(process: Process) -> Callable[[], bool]:
    return lambda: bool(process.calls) and process.calls[0][0] == "rollout"


def slots_of(actors: RayActors) -> list[Slot]:
    return actors._slots


def outstanding(actors: RayActors) -> int:
    """Steps that were ordered and have not been handed out."""
    return STEPS * (len(actors._arrived) + sum(len(slot.orders) for slot in slots_of(actors)))


def test_lockstep_brings_each_share_in_order_under_exactly_the_snapshot(world: MakeWorld) -> None:
    here = world(3)
    actors = here.actors()
    for version in range(3):
        rollouts = actors.sample(snapshot(version), int(version > 0))
        assert [x.actor for x in rollouts] == [0, 1, 2]
        assert {x.trajectory.policy_version for x in rollouts} == {version}
        assert {x.is_lookahead for x in rollouts} == {version > 0}
    assert [len(process.starts) for process in here.processes] == [1, 1, 1]
    assert (actors.account.sampled, actors.account.in_flight, here.said) == (9 * STEPS, 9 * STEPS, [])


def test_an_actor_that_dies_at_work_is_started_again_with_new_streams(world: MakeWorld) -> None:
    here = world(2)
    actors, process = here.actors(), here.processes[0]
    here.policy = once(process, Process.die, is_rolling_out(process))
    assert [x.actor for x in actors.sample(snapshot(0), 0)] == [1, 1], "the other one stands in"
    assert actors.account.dropped == {"actor died": STEPS}
    assert (actors.account.in_flight, actors.account.actors_restarted) == (2 * STEPS, 1)
    assert [x.actor for x in actors.sample(snapshot(1), 0)] == [1, 1], "it is not there yet"
    while slots_of(actors)[0].phase is not Phase.READY:
        actors._completed()
    assert [x.actor for x in actors.sample(snapshot(2), 0)] == [0, 1], "it has its share again"
    first, second = (setup.seed for setup in process.starts)
    assert second == (*first[:-1], first[-1] + 1)
    assert here.said[0].startswith("actor 0 (10.0.0.1, process 100): actor died (")
    assert here.said[1].startswith("actor 0 (10.0.0.1, process 101): rolls out again after ")


def test_environments_that_a_learner_has_left_go_back_to_the_checkpoint_where_it_has_them(world: MakeWorld) -> None:
    here = world(2)
    here.actors().sample(snapshot(0), 0)
    actors = here.actors(learner=1, states=[{"games": 3}, {}])
    assert [x.actor for x in actors.sample(snapshot(1), 0)] == [0, 1]
    actors.sample(snapshot(2), 0)
    assert [process.restored for process in here.processes] == [[{"games": 3}], []], "once, and before they roll out"
    assert [len(process.starts) for process in here.processes] == [1, 1]


def test_an_actor_that_dies_at_rest_is_found_out_by_the_next_order(world: MakeWorld) -> None:
    """Ray has another process in its place by then, which knows nothing."""
    here = world(1)
    actors = here.actors()
    actors.sample(snapshot(0), 0)
    here.processes[0].die(away=0)
    assert actors.sample(snapshot(1), 0)[0].trajectory.policy_version == 1
    assert actors.account.dropped == {"actor died": STEPS}
    assert "actor died (has taken the place of one that died); started again" in here.said[0]


def test_an_actor_that_hangs_is_killed_once_and_not_taken_for_its_successor(world: MakeWorld) -> None:
    here = world(1)
    actors = here.actors(FaultConfig(rollout_seconds=5))

    def policy(each: Process) -> None:
        if each.pid == 100 and is_rolling_out(each)():
            hang(each)
        each.work()

    here.policy = policy
    before = here.now
    assert actors.sample(snapshot(0), 0)
    assert here.kills == [(0, False)], "once, and Ray may bring it up again"
    assert 5 <= here.now - before <= 9
    assert actors.account.dropped == {"actor hung": STEPS}
    assert "actor hung (nothing for 5 s)" in here.said[0]


def test_a_process_that_was_killed_is_not_asked_before_it_is_dead(world: MakeWorld) -> None:
    """A node that cannot be reached hears of its end late; until then its old process answers."""
    here = world(1)
    actors, process = here.actors(), here.processes[0]
    actors.sample(snapshot(0), 0)
    slot = slots_of(actors)[0]
    actors._lose(slot, "actor hung", "", is_alive=True)
    process.killed = 0  # the order to kill it is on its way
    for _ in range(6):
        actors._completed()
        assert slot.phase is not Phase.READY
    process.die(away=0)
    assert actors.sample(snapshot(1), 0)


def test_pauses_grow_until_an_actor_is_given_up(world: MakeWorld) -> None:
    here = world(2)
    actors, process = here.actors(FaultConfig(restarts_without_progress=3)), here.processes[0]
    starts: list[float] = []

    def policy(each: Process) -> None:
        if each is process and each.calls and each.calls[0][0] == "start":
            starts.append(here.now)
            each.die(away=0)
        else:
            each.work()

    here.policy = policy
    for version in range(40):
        assert [x.actor for x in actors.sample(snapshot(version), 0)] == [1, 1]
    assert slots_of(actors)[0].phase is Phase.GIVEN_UP
    assert process.is_ended
    assert len(starts) == 4
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 1.0
    assert "given up (lost 4 times in a row; last reason: actor died (" in here.said[-1]
    assert here.said[-1].endswith("the run continues with the others")


def test_a_rollout_in_between_forgives(world: MakeWorld) -> None:
    here = world(1)
    actors = here.actors(FaultConfig(restarts_without_progress=1))
    for version in range(6):
        here.processes[0].die(away=0)
        assert actors.sample(snapshot(version), 0)
    assert actors.account.actors_restarted == 6


def test_without_an_actor_the_run_ends_and_says_why(world: MakeWorld) -> None:
    here = world(2)
    actors = here.actors(FaultConfig(restarts_without_progress=0))
    here.policy = lambda process: process.die(away=0) if process.calls else None
    with pytest.raises(
        ActorsLost, match=r"lost 1 times in a row; last reason: actor died \(.*; no other actor is left"
    ):
        actors.sample(snapshot(0), 0)


@pytest.mark.parametrize(("limit", "seconds"), [(5.0, 120), (200.0, 200)])
def test_a_run_whose_actors_find_no_place_ends_and_says_what_they_need(
    world: MakeWorld, limit: float, seconds: int
) -> None:
    """A short limit for rollouts is none for processes, which a busy machine starts slowly."""
    here = world(2)
    for process in here.processes:
        process.die(away=-1)
    actors, before = here.actors(FaultConfig(rollout_seconds=limit)), here.now
    message = (
        rf"no actor has found a place for {seconds} s: each needs 1 CPU of one node, and 0.5 CPUs are free .* --resume"
    )
    with pytest.raises(ActorsLost, match=message):
        actors.sample(snapshot(0), 0)
    assert seconds < here.now - before < seconds + 2


def test_an_actor_without_a_place_is_waited_for_and_then_stood_in_for(world: MakeWorld) -> None:
    here = world(2)
    here.processes[1].die(away=-1)
    actors, before = here.actors(FaultConfig(rollout_seconds=1_000)), here.now
    assert [x.actor for x in actors.sample(snapshot(0), 0)] == [0, 0]
    assert 30 <= here.now - before < 35
    before = here.now
    assert [x.actor for x in actors.sample(snapshot(1), 0)] == [0, 0]
    assert here.now - before < 5, "once"


def test_an_actor_that_cannot_be_reached_is_stood_in_for_and_its_late_rollout_dropped(world: MakeWorld) -> None:
    """A network that is cut says nothing for half a minute."""
    here = world(2)
    actors, cut = here.actors(), here.processes[0]
    assert [x.actor for x in actors.sample(snapshot(0), 0)] == [0, 1]
    actors.account.consume(2 * STEPS)
    here.policy = lambda process: None if process is cut else process.work()
    began = here.now
    assert [x.actor for x in actors.sample(snapshot(1), 0)] == [1, 1]
    assert 9 <= here.now - began < 15
    began = here.now
    assert [x.actor for x in actors.sample(snapshot(2), 0)] == [1, 1]
    assert here.now - began <= 2, "nobody waits for it a second time"
    actors.account.consume(4 * STEPS)
    here.policy = Process.work
    assert {x.trajectory.policy_version for x in actors.sample(snapshot(3), 0)} == {3}
    assert [x.actor for x in actors.sample(snapshot(4), 0)] == [0, 1], "it is back"
    assert actors.account.dropped == {"came too late": STEPS}
    assert (actors.account.actors_restarted, here.said) == (0, [])
    assert actors.account.sampled == actors.account.consumed + STEPS + actors.account.in_flight


def test_actors_of_another_life_are_taken_as_they_are(world: MakeWorld) -> None:
    here = world(2)
    here.actors().sample(snapshot(0), 0)
    actors = here.actors(learner=1)
    assert [x.actor for x in actors.sample(snapshot(0), 0)] == [0, 1]
    assert [len(process.starts) for process in here.processes] == [1, 1]


def test_a_refusal_ends_a_run_that_begins_and_not_one_that_works(world: MakeWorld) -> None:
    refusal = task_error(ConfigurationError("node = '10.0.0.7': has torch 1; install"))
    here = world(2)
    here.processes[0].failure = refusal
    with pytest.raises(ConfigurationError):
        here.actors().sample(snapshot(0), 0)
    here = world(2)
    here.processes[0].die(away=8)
    actors = here.actors(rollouts_per_batch=1)
    actors.stream(snapshot(0), 0)
    here.processes[0].failure = refusal
    while slots_of(actors)[0].phase is not Phase.GIVEN_UP:
        actors._completed()
    assert here.said[-1].startswith(
        "actor 0 (10.0.0.1, process 101): given up (node = '10.0.0.7': has torch 1; install)"
    )
    assert actors.stream(snapshot(1), 1)[0].actor == 1


def test_states_of_actors_that_are_away_or_late_are_left_out(world: MakeWorld) -> None:
    here = world(4)
    actors = here.actors()
    actors.sample(snapshot(0), 0)
    here.processes[1].die(away=0)
    hang(here.processes[2])
    actors._give_up(slots_of(actors)[3], "so")
    here.said.clear()
    assert actors.states() == [{"index": 0}, {}, {}, {}]
    assert [line.partition(" (10")[0] for line in here.said] == ["actor 1", "actor 2"]
    assert all(": the checkpoint is without its environments (" in line for line in here.said)


def test_a_stream_is_of_the_newest_weights_and_a_batch_ahead_of_the_one_it_brings(world: MakeWorld) -> None:
    here = world(2)
    actors = here.actors(rollouts_per_batch=2)
    for version in range(8):
        batch = actors.stream(snapshot(version), version - 3)
        assert len(batch) == 2
        assert all(version - 3 <= x.trajectory.policy_version <= version for x in batch)
        assert outstanding(actors) == 2 * STEPS
        actors.account.consume(2 * STEPS)
        assert actors.account.in_flight == outstanding(actors)
    assert not actors.account.dropped
    assert all(len(process.inbox) <= 1 for process in here.processes)


def test_all_of_many_actors_work_where_their_rollouts_will_be_used_in_time(world: MakeWorld) -> None:
    here = world(8)
    actors = here.actors(rollouts_per_batch=2)
    for version in range(4):
        actors.stream(snapshot(version), version - 4)
    assert outstanding(actors) == 4 * 2 * STEPS, "four batches, all of which will be used in time"
    few = world(8).actors(rollouts_per_batch=2)
    for version in range(4):
        few.stream(snapshot(version), version - 1)
    assert outstanding(few) == 2 * STEPS, "one, since two more would come too late"


def test_actors_that_hang_keep_no_other_from_working(world: MakeWorld) -> None:
    """Two of them hold all that may be ordered, of batches of one rollout."""
    here = world(3)
    actors = here.actors(rollouts_per_batch=1)
    for process in here.processes[:2]:
        process.is_hung = True
        process.inbox.clear()
    for slot in slots_of(actors)[:2]:
        slot.enter(Phase.READY)
    before = here.now
    for version in range(50):
        (rollout,) = actors.stream(snapshot(version), version - 2)
        assert rollout.actor == 2
    assert here.now - before < 60, "well before they count as hung"
    assert [len(process.inbox) <= 1 for process in here.processes] == [True] * 3, "one announcement waits, not fifty"
    assert actors.account.actors_restarted == 0


def test_what_is_too_old_is_dropped_whatever_came_before_it(world: MakeWorld) -> None:
    here = world(2)
    actors, slow = here.actors(rollouts_per_batch=1), here.processes[0]
    for version in range(3):
        actors.stream(snapshot(version), 0)
    actors._arrived.clear()
    actors._arrived.extend([slow.brings(9, 0), slow.brings(2, 0), slow.brings(8, 0), slow.brings(3, 0)])
    actors._drop_older_than(8)
    assert [x.trajectory.policy_version for x in actors._arrived] == [9, 8]
    assert actors.account.dropped == {"too old": 2 * STEPS}


def test_a_late_rollout_that_is_too_old_is_counted_and_its_actor_asked_again(world: MakeWorld) -> None:
    here = world(2)
    actors, late = here.actors(rollouts_per_batch=1), here.processes[0]
    here.policy = lambda process: None if process is late and is_rolling_out(late)() else process.work()
    for version in range(12):
        (rollout,) = actors.stream(snapshot(version), version - 1)
        actors.account.consume(STEPS)
        assert rollout.trajectory.policy_version >= version - 1
    late.newest = None
    here.policy = Process.work
    for version in range(12, 20):
        (rollout,) = actors.stream(snapshot(version), version - 1)
        actors.account.consume(STEPS)
        assert rollout.trajectory.policy_version >= version - 1
    assert 1 <= actors.account.dropped["too old"] // STEPS <= 2
    assert actors.account.in_flight == outstanding(actors)


EVENTS = st.lists(st.sampled_from(["work"] * 6 + ["idle", "die", "die at once", "long gone", "hang"]), max_size=120)


@hypothesis.given(
    events=EVENTS,
    count=st.integers(1, 4),
    rollouts_per_batch=st.integers(1, 4),
    lag=st.integers(1, 5),
    is_streamed=st.booleans(),
)
@hypothesis.settings(
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
def test_whatever_happens_to_actors_the_account_holds_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Callable[..., Experiment],
    events: list[str],
    count: int,
    rollouts_per_batch: int,
    lag: int,
    is_streamed: bool,
) -> None:
    experiment = tiny(topology="ray", actors=count, environments=2 * count)
    here = World(monkeypatch, actor_setups(experiment, torch.device("cpu"), 0))
    ahead = iter(events)

    def policy(process: Process) -> None:
        match next(ahead, "work"):
            case "work":
                process.work()
            case "hang":
                process.is_hung = process.is_started  # before, nobody can tell it from one without a place
            case "die":
                process.die()
            case "die at once":
                process.die(away=0)
            case "long gone":
                process.die(away=20)

    here.policy = policy
    actors = here.actors(FaultConfig(rollout_seconds=10, restarts_without_progress=1_000), rollouts_per_batch)
    account, taken = actors.account, 0
    for version in range(15):
        if is_streamed:
            batch = actors.stream(snapshot(version), version - lag)
            assert len(batch) == rollouts_per_batch
            assert all(version - lag <= x.trajectory.policy_version <= version for x in batch)
        else:
            batch = actors.sample(snapshot(version), version % 3)
            assert len(batch) == count
            assert {x.trajectory.policy_version for x in batch} == {version}
        account.consume(len(batch) * STEPS)
        taken += len(batch) * STEPS
        assert account.consumed == taken
        assert account.in_flight == outstanding(actors)
        assert account.sampled == account.consumed + account.dropped.total() + account.in_flight
        assert all(len(slot.orders) <= (2 if is_streamed else count) for slot in slots_of(actors))
        assert all(len(process.inbox) <= 2 for process in here.processes), "a question where it is, and weights"
    assert set(account.dropped) <= {"actor died", "actor hung", "too old"}
    assert account.actors_restarted == sum(": actor " in line for line in here.said)
