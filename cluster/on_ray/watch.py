"""Watch whether Ray itself is still there: without head or raylet Ray aborts a process, soon and without a word."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from metagrad.cluster.on_ray.address import greet
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.errors import RunLost

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_ANSWER = 5.0
_SECONDS_OF_SILENCE = 20.0  # of one that may come back; Ray gives up, and aborts, after 60 s without its GCS
_NAMES = {"GCS": "the head of the Ray cluster (GCS)", "raylet": "Ray's own process on this node (raylet)"}


class ClusterLost(RunLost):
    """Ray itself is gone; what was written stands."""

    def __init__(self, part: str, endpoint: Endpoint):
        self.what = f"{_NAMES[part]} no longer answers at {endpoint.host}:{endpoint.port}"
        advice = "what was written stands; continue with --resume, or a study with the same command"
        super().__init__(f"{self.what}; {advice}")
        self.lets_processes_finish = part == "GCS"
        """True: those that run can still talk to each other, for about half a minute."""


class RayWatch:
    """Greets Ray's processes once a second."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        is_embedded: bool,
        greet: Callable[[Endpoint, float], None] = greet,
        now: Callable[[], float] = time.monotonic,
    ):
        self.lost: ClusterLost | None = None
        self._endpoints = endpoints
        self._is_embedded = is_embedded
        self._greet = greet
        self._now = now
        self._silent_since: dict[str, float] = {}

    def look(self) -> None:
        """Greet each. What refuses is gone, apart from a cluster's head, which may be restarted."""
        for part, endpoint in self._endpoints.items():
            asked = self._now()
            try:
                self._greet(endpoint, _SECONDS_TO_ANSWER)
            except OSError as error:
                silent = self._now() - self._silent_since.setdefault(part, asked)
                may_return = part == "GCS" and not self._is_embedded
                is_gone = isinstance(error, ConnectionRefusedError) and not may_return
                if is_gone or silent >= _SECONDS_OF_SILENCE:
                    self.lost = ClusterLost(part, endpoint)
                    return
            else:
                self._silent_since.pop(part, None)


def silent_nodes(group: PlacementGroup) -> list[str]:
    """Return the addresses of nodes that do not answer, and that Ray still takes for places of this group."""
    placed = set(placement_group_table(group)["bundles_to_node_id"].values())
    return [
        node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] in placed and not _answers(node)
    ]


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        greet(Endpoint(node["NodeManagerAddress"], int(node["NodeManagerPort"])), _SECONDS_TO_ANSWER)
    except OSError:
        return False
    return True


_watch: RayWatch | None = None


@contextmanager
def watching(watch: RayWatch) -> Iterator[None]:
    """Look in a thread of its own; `lost` says what this watch sees."""
    global _watch
    is_over = threading.Event()

    def keep_looking() -> None:
        while watch.lost is None and not is_over.wait(_SECONDS_BETWEEN_LOOKS):
            watch.look()

    thread = threading.Thread(target=keep_looking, name="ray-watch", daemon=True)
    _watch = watch
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        _watch = None
        thread.join()


def lost() -> ClusterLost | None:
    """Return what of Ray has ended, if anything has."""
    return None if _watch is None else _watch.lost
