"""What a training loop has to say: written by the driver at once, or queued in the learner's process and fetched."""

import threading
from collections import deque
from typing import Any, Protocol

from torch import Tensor


class Reports(Protocol):
    """Everything that leaves a training loop."""

    def say(self, message: str) -> None:
        """One line for people."""
        ...

    def progress(self, update: int, speed: float, return_mean: float | None, eta: dict[str, float], lag: float) -> None:
        """The run as of now; `speed` in frames per second."""
        ...

    def scalars(self, values: dict[str, float], update: int) -> None:
        """A row for TensorBoard and the cluster's metrics."""
        ...

    def lags(self, versions: list[int], update: int) -> None:
        """Of every rollout since the last row: published versions between its policy and the one it was used for."""
        ...

    def evaluate(self, theta: Tensor, update: int) -> None:
        """These parameters are to be scored."""
        ...

    def checkpoint(self, update: int, tree: dict[str, Any]) -> None:
        """All that a continuation needs."""
        ...

    def summary(self, tree: dict[str, Any]) -> None:
        """Content of summary.json as of now."""
        ...


Report = tuple[str, tuple[Any, ...]]  # a method of `Reports`, and what it was called with


_WAITING = {"checkpoint": 1, "evaluate": 4}  # of those that carry parameters, unfetched
_WAITING_OF_OTHERS = 1_000  # of each kind


class QueuedReports:
    """Reports kept in order until they are fetched; who reports faster than that waits for room.

    So memory is bounded while the driver is busy, writing a checkpoint to a slow store for example.
    """

    def __init__(self) -> None:
        self._queue: deque[Report] = deque()
        self._changed = threading.Condition()

    def say(self, message: str) -> None:
        self._put("say", message)

    def progress(self, update: int, speed: float, return_mean: float | None, eta: dict[str, float], lag: float) -> None:
        self._put("progress", update, speed, return_mean, eta, lag)

    def scalars(self, values: dict[str, float], update: int) -> None:
        self._put("scalars", values, update)

    def lags(self, versions: list[int], update: int) -> None:
        self._put("lags", versions, update)

    def evaluate(self, theta: Tensor, update: int) -> None:
        self._put("evaluate", theta.detach().cpu(), update)

    def checkpoint(self, update: int, tree: dict[str, Any]) -> None:
        self._put("checkpoint", update, _on_cpu(tree))  # the driver may have no GPU

    def summary(self, tree: dict[str, Any]) -> None:
        self._put("summary", tree)

    def _put(self, kind: str, *values: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(kind))
            self._queue.append((kind, values))
            self._changed.notify_all()

    def _has_room(self, kind: str) -> bool:
        return sum(waiting == kind for waiting, _ in self._queue) < _WAITING.get(kind, _WAITING_OF_OTHERS)

    def fetch(self, seconds: float) -> list[Report]:
        """All reports since the last call, after waiting for the first one at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue), timeout=seconds)
            fetched = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        return fetched


def _on_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _on_cpu(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [_on_cpu(x) for x in tree]
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def replay(fetched: list[Report], reports: Reports) -> None:
    """Say here what was said elsewhere, in order."""
    for kind, values in fetched:
        getattr(reports, kind)(*values)
