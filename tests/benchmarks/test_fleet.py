"""Real actor processes, one embedded Ray for the whole file: runs one after another, and weights sent to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import broadcast
from benchmarks import fleet as fleet_module
from benchmarks.broadcast import Broadcast
from benchmarks.fleet import Fleet
from benchmarks.waiting import WaitingConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.on_ray.session import Demand, ray_session
from metagrad.cluster.run.learning import Assignment
from metagrad.experiments.debiasing.snake import demo
from metagrad.learner.reports import Message, Reporter, Row
from metagrad.networks import Mlp

# A Ray of their own; tests/cluster/test_ray_actors.py has runs and weights on Ray, test_broadcast.py receivers.
on_ray = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ray_session(Demand(least=0, wanted=3, gpus=0)):
        yield Fleet(2)


def experiment(hidden: int, actors: int) -> Experiment:
    environment = WaitingConfig(least_s=0.001, mean_beyond_s=0.0, features=3)
    return replace(
        demo(),
        env=environment,
        network=Mlp(hidden=hidden),
        environments=4,
        actors=actors,
        updates=4,
        log_every=1,
        learner_threads=1,
        device="cpu",
    )


@on_ray
def test_runs_with_other_networks_and_environments_follow_one_another(fleet: Fleet) -> None:
    """Weights or environments of an earlier run would not fit the next one's: other shapes, or another share."""
    for hidden, actors in ((8, 2), (16, 1), (8, 2)):
        rows = fleet.run(experiment(hidden, actors))
        assert len(rows["time/sample_seconds"]) == 4
        assert all(rate > 0 for rate in rows["throughput/real_frames_per_second"])
        # four batches of five steps a thousandth of a second each, and no quicker
        assert min(rows["time/sample_seconds"]) >= 4 * 5 * 0.001
    peek = replace(experiment(16, 2), schedule="peek", environments_per_actor=1)
    assert len(fleet.run(peek)["transport/lag_versions"]) == 4


@on_ray
def test_weights_arrive_in_every_way(fleet: Fleet) -> None:
    sizes = [Broadcast(400_000, 1), Broadcast(800_000, 2)]
    found = broadcast.measure(fleet.handles, sizes, fleet.next_life(len(sizes)), rounds=2)
    assert list(found) == ["0.4 MB to 1 actors", "0.8 MB to 2 actors"]
    for row in found.values():
        assert row["by_reference_s"]["count"] == 2
        assert row["by_value_s"]["median"] > 0
    assert found["0.8 MB to 2 actors"]["weight_bytes"] == 800_000


@on_ray
def test_weights_that_do_not_arrive_are_no_measurement(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "partial", lambda function, *args, **_: _without_weights(function, *args))
    sizes = [Broadcast(400_000, 1)]
    with pytest.raises(RuntimeError, match="actor 0 has weights"):
        broadcast.measure(fleet.handles, sizes, fleet.next_life(), rounds=1)


def _without_weights(function, *arguments):
    """`functools.partial` that forgets its keywords, and so what would be passed by value."""
    from functools import partial

    return partial(function, *arguments, **({} if arguments else {"weights": None}))


@on_ray
def test_lives_are_never_given_twice(fleet: Fleet) -> None:
    first = fleet.next_life(3)
    assert fleet.next_life() == first + 3
    assert fleet.next_life(0) == fleet.next_life()  # of nobody


def test_a_run_that_lost_an_actor_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def prepared(assignment: Assignment, open_actors: object, report: Reporter, stop: object) -> Iterator[Any]:
        report(Message("actor 1: the checkpoint is without its environments"))
        report(Row({"transport/actors_restarted": float(assignment.life - 1)}, 1))
        yield SimpleNamespace(run=lambda stop: None)

    monkeypatch.setattr(fleet_module, "prepared_training", prepared)
    monkeypatch.setattr(fleet_module, "create", lambda *_: [])
    fleet = Fleet(2)
    assert fleet.run(experiment(8, 2)) == {"transport/actors_restarted": [0.0]}
    with pytest.raises(RuntimeError, match="1 actors were lost"):
        fleet.run(experiment(8, 2))
