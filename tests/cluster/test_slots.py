from types import SimpleNamespace
from typing import Any

import pytest

from metagrad.cluster.on_ray import slots
from metagrad.cluster.on_ray.rollout_actor import ProcessPlace
from metagrad.cluster.on_ray.slots import Order, Phase, Slot, rest_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def slot() -> Slot:
    setup: Any = SimpleNamespace(index=3, steps=20)
    return Slot(setup, handle=None, state=None)


def test_a_lost_actor_rests_longer_each_time_and_half_a_minute_at_the_most() -> None:
    assert [rest_seconds(losses) for losses in (1, 2, 3, 4, 9, 40)] == [0.0, 0.5, 1.0, 2.0, 30.0, 30.0]


def test_only_what_an_actor_is_at_can_be_late(clock: SimpleNamespace) -> None:
    actor = slot()
    actor.enter(Phase.PLACING)
    clock.now += 1_000
    assert not actor.is_late(10), "to find a place is the cluster's time"
    actor.enter(Phase.STARTING)
    clock.now += 10
    assert not actor.is_late(10)
    clock.now += 1
    assert actor.is_late(10)
    actor.enter(Phase.READY)
    clock.now += 1_000
    assert not actor.is_late(10), "nothing was ordered"
    actor.orders.append(Order(0, "reference", 1))
    assert actor.is_late(10)


def test_resting_ends_at_its_time(clock: SimpleNamespace) -> None:
    actor = slot()
    actor.rest(2.0)
    assert (actor.phase, actor.rest_until, actor.coming) == (Phase.RESTING, 102.0, None)


def test_messages_name_actor_node_and_process() -> None:
    actor = slot()
    assert (actor.name, actor.steps) == ("actor 3", 20)
    actor.place = ProcessPlace("10.0.0.2", 77, is_started=True)
    assert actor.name == "actor 3 (10.0.0.2, process 77)"
