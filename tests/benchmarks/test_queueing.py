"""Against exact results, and against simulations that do what the learner does, order by order."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from benchmarks.queueing import (
    Learner,
    Lockstep,
    Pace,
    Peek,
    Point,
    Rollouts,
    errors,
    expected_maximum,
    fit_lockstep,
    fit_peek,
)
from metagrad.cluster.on_ray.slots import Order, Phase, Slot, whom_to_ask

UPDATES, WARM_UP = 400, 50


def gamma(rollouts: Rollouts, seed: int = 0) -> Callable[[], float]:
    draws = random.Random(seed)
    if not rollouts.sd_s:
        return lambda: rollouts.mean_s
    shape, scale = (rollouts.mean_s / rollouts.sd_s) ** 2, rollouts.sd_s**2 / rollouts.mean_s
    return lambda: draws.gammavariate(shape, scale)


def simulated_peek(model: Peek, actors: int) -> Pace:
    """What RayActors.stream does, asking whom `whom_to_ask` names, in seconds that are made up.

    An order's end is known when it is given: actors work theirs off one after another.
    """
    draw, m = gamma(model.rollouts), model.batch
    learning = model.learner.seconds(m)
    slots = [Slot(cast(Any, None), None, None, Phase.READY) for _ in range(actors)]
    free_at = dict.fromkeys(range(actors), 0.0)
    ends: list[tuple[float, int, int, float]] = []  # end, number of the order, actor, begin
    arrived: deque[int] = deque()  # versions
    published: list[float] = []
    now, numbers, started = 0.0, itertools.count(), 0.0

    def order_ahead(version: int) -> None:
        oldest = version - model.entry_lag
        while (slot := whom_to_ask(slots, len(arrived), m, oldest, model.entry_lag, False)) is not None:
            actor = slots.index(slot)
            begin = max(now, free_at[actor]) + model.order_s
            free_at[actor] = begin + draw()
            heapq.heappush(ends, (free_at[actor], next(numbers), actor, begin))
            slot.orders.append(Order(0, None, version))

    for version in range(UPDATES):
        started = now if version == WARM_UP else started
        published.append(now)
        while True:
            while arrived and arrived[0] < version - model.entry_lag:
                arrived.popleft()
            order_ahead(version)
            if len(arrived) >= m:
                break
            now = max(now, ends[0][0])
            while ends and ends[0][0] <= now:
                _, _, actor, begin = heapq.heappop(ends)
                slots[actor].orders.popleft()
                arrived.append(max(v for v, at in enumerate(published) if at <= begin))  # the newest when it began
                now += model.take_s
        for _ in range(m):
            arrived.popleft()
        order_ahead(version)
        now += learning
    update = (now - started) / (UPDATES - WARM_UP)
    return Pace(update, 1 - learning / update)


def simulated_lockstep(model: Lockstep, actors: int) -> Pace:
    draw, learning = gamma(model.rollouts), model.learner.seconds(actors)
    batches = [max(draw() for _ in range(actors)) for _ in range(UPDATES * model.batches)]
    waiting = model.batches * (model.batch_s + actors * model.rollout_s) + sum(batches) / UPDATES
    return Pace(waiting + learning, waiting / (waiting + learning))


@pytest.mark.parametrize("sd", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("actors", [1, 3, 16, 200])
def test_lockstep_is_as_a_simulation_has_it(actors: int, sd: float) -> None:
    model = Lockstep(Rollouts(0.1, sd), Learner(0.01, 0.003), 4, 0.002, 0.001)
    predicted, simulated = model.pace(actors), simulated_lockstep(model, actors)
    assert predicted.update_s == pytest.approx(simulated.update_s, rel=0.03)
    assert predicted.learner_idle_share == pytest.approx(simulated.learner_idle_share, abs=0.02)


@pytest.mark.parametrize("sd", [0.02, 0.03, 0.05])
@pytest.mark.parametrize("learning", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("actors", [1, 2, 3, 4, 6, 8, 12, 16, 40])
def test_peek_is_as_a_simulation_has_it(actors: int, learning: float, sd: float) -> None:
    model = Peek(Rollouts(0.1, sd), Learner(learning, 0.0), 4, 4, 0.002, 0.0005)
    predicted, simulated = model.pace(actors), simulated_peek(model, actors)
    assert predicted.update_s == pytest.approx(simulated.update_s, rel=0.07)
    assert predicted.learner_idle_share == pytest.approx(simulated.learner_idle_share, abs=0.05)


def test_one_actor_in_lockstep_is_the_sum_of_all_that_happens() -> None:
    model = Lockstep(Rollouts(0.1, 0.05), Learner(0.01, 0.003), 4, 0.002, 0.001)
    assert model.pace(1).update_s == pytest.approx(4 * (0.1 + 0.002 + 0.001) + 0.013)


def test_peek_is_bound_by_its_actors_its_learner_or_its_lag() -> None:
    rollouts, learner = Rollouts(1.0, 0.0), Learner(0.01, 0.0)
    model = Peek(rollouts, learner, batch=4, entry_lag=3, order_s=0.0, take_s=0.0)
    assert model.pace(1) == Pace(pytest.approx(4.0), pytest.approx(1 - 0.01 / 4))
    assert model.useful_actors == 12 - 1.5  # on average so many have arrived and wait for a whole batch
    assert model.pace(1_000).update_s == model.pace(11).update_s == pytest.approx(4 / 10.5, rel=0.01)
    slow = model._replace(learner=Learner(2.0, 0.0), take_s=0.1)
    assert slow.pace(1_000) == Pace(pytest.approx(2.4), pytest.approx(0.4 / 2.4))


def test_a_maximum_is_known_exactly_for_exponential_times() -> None:
    for count in (1, 2, 10, 1_000):
        harmonic = sum(1 / i for i in range(1, count + 1))
        assert expected_maximum(Rollouts(0.1, 0.1), count) == pytest.approx(0.1 * harmonic, rel=1e-4)
    assert expected_maximum(Rollouts(0.1, 0.0), 7) == 0.1
    assert expected_maximum(Rollouts(0.1, 1e-3), 1_000) == pytest.approx(0.1 + 3.241e-3, rel=1e-3)  # normal: 3.241 σ


def test_a_fit_finds_what_made_the_points() -> None:
    lockstep = Lockstep(Rollouts(0.1, 0.02), Learner(0.01, 0.003), 4, 0.002, 0.001)
    found = fit_lockstep(lockstep.rollouts, 4, [Point(n, lockstep.pace(n)) for n in (1, 2, 4, 8)])
    assert (found.batch_s, found.rollout_s) == pytest.approx((0.002, 0.001), rel=1e-6)
    assert found.learner == pytest.approx(lockstep.learner, rel=1e-6)
    peek = Peek(Rollouts(0.1, 0.02), Learner(0.08, 0.0), 4, 4, 0.006, 0.003)
    again = fit_peek(peek.rollouts, 4, 4, [Point(n, peek.pace(n)) for n in (1, 2, 4, 8)])
    assert again.order_s == pytest.approx(0.006, rel=0.01)
    assert again.take_s == pytest.approx(0.003, rel=0.01)


def test_what_a_fit_would_have_below_nothing_is_nothing() -> None:
    lockstep = Lockstep(Rollouts(0.1, 0.0), Learner(0.01, 0.0), 1, 0.0, 0.0)
    points = [Point(n, lockstep.pace(n)) for n in (1, 2, 4)]
    faster = [
        x._replace(pace=Pace(x.pace.update_s - 0.02, (x.sampling_s - 0.02) / (x.pace.update_s - 0.02))) for x in points
    ]
    found = fit_lockstep(lockstep.rollouts, 1, faster)
    assert (found.batch_s, found.rollout_s) == (0.0, 0.0)


def test_errors_have_signs() -> None:
    found = errors(predicted=Pace(0.5, 0.4), measured=Pace(1.0, 0.5))
    assert found == {"throughput_relative_error": 1.0, "idle_share_error": pytest.approx(-0.1)}
