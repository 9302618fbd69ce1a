"""Ray's own processes, seen from the outside; the time is the test's."""

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.cluster.on_ray.watch import RayWatch, lost, watching

GCS, RAYLET = Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.2", 4000)


@dataclass
class Ray:
    """Says who answers how, and what time it is."""

    faults: dict[Endpoint, OSError] = field(default_factory=dict)
    time: float = 100.0

    def greet(self, endpoint: Endpoint, seconds: float) -> None:
        if endpoint in self.faults:
            raise self.faults[endpoint]

    def watch(self, is_embedded: bool) -> RayWatch:
        return RayWatch({"GCS": GCS, "raylet": RAYLET}, is_embedded, self.greet, lambda: self.time)


def test_while_both_answer_nothing_is_lost() -> None:
    watch = Ray().watch(is_embedded=True)
    watch.look()
    assert watch.lost is None


@pytest.mark.parametrize(
    ("is_embedded", "endpoint", "name", "finish"),
    [(True, GCS, "GCS", True), (True, RAYLET, "raylet", False), (False, RAYLET, "raylet", False)],
)
def test_a_process_that_refuses_is_gone_unless_it_is_a_clusters_head(
    is_embedded: bool, endpoint: Endpoint, name: str, finish: bool
) -> None:
    ray = Ray({endpoint: ConnectionRefusedError()})
    watch = ray.watch(is_embedded)
    watch.look()
    assert watch.lost is not None
    assert watch.lost.lets_processes_finish is finish
    assert f"({name}) no longer answers at {endpoint.host}:{endpoint.port}; what was written stands" in str(watch.lost)


@pytest.mark.parametrize(
    ("is_embedded", "fault"), [(False, ConnectionRefusedError()), (True, TimeoutError("timed out"))]
)
def test_one_that_may_come_back_is_waited_for_but_not_until_ray_aborts(is_embedded: bool, fault: OSError) -> None:
    ray = Ray({GCS: fault})
    watch = ray.watch(is_embedded)
    for _ in range(19):
        watch.look()
        ray.time += 1
        assert watch.lost is None
    ray.faults.clear()  # it was restarted
    watch.look()
    ray.faults[GCS] = fault
    silent_since = ray.time
    while watch.lost is None:
        watch.look()
        ray.time += 1
    assert ray.time - silent_since == 21  # Ray aborts after 60


def test_what_the_watch_sees_is_said_while_it_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "_SECONDS_BETWEEN_LOOKS", 0.001)
    watch = Ray({RAYLET: ConnectionRefusedError()}).watch(is_embedded=True)
    assert lost() is None
    with watching(watch):
        while lost() is None:
            time.sleep(0.001)
        assert lost() is watch.lost
    assert lost() is None


def test_nodes_with_places_of_a_group_are_silent_until_ray_counts_them_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = {"answers": 1, "silent": 2, "elsewhere": 3, "dead": 4}
    nodes = [
        {"NodeID": name, "NodeManagerAddress": name, "NodeManagerPort": port, "Alive": name != "dead"}
        for name, port in ports.items()
    ]

    def greet(endpoint: Endpoint, seconds: float) -> None:
        if endpoint.host != "answers":
            raise ConnectionRefusedError

    placed = {"bundles_to_node_id": {0: "answers", 1: "silent", 2: "dead"}}
    monkeypatch.setattr(ray_watch, "placement_group_table", lambda _: placed)
    monkeypatch.setattr(ray_watch.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_watch, "greet", greet)
    group: Any = None
    assert ray_watch.silent_nodes(group) == ["silent"]
