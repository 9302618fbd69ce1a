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


class QueuedReports:
    """Reports kept in order until they are fetched; a checkpoint waits until the one before it has been."""

    def __init__(self) -> None:
        self._queue: deque[Report] = deque()
        self._changed = threading.Condition()
        self._waiting_checkpoints = 0

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
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_checkpoints == 0)
            self._waiting_checkpoints += 1
        self._put("checkpoint", update, tree)

    def summary(self, tree: dict[str, Any]) -> None:
        self._put("summary", tree)

    def _put(self, kind: str, *values: Any) -> None:
        with self._changed:
            self._queue.append((kind, values))
            self._changed.notify_all()

    def fetch(self, seconds: float) -> list[Report]:
        """All reports since the last call, after waiting for the first one at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue), timeout=seconds)
            fetched = list(self._queue)
            self._queue.clear()
            self._waiting_checkpoints = 0
            self._changed.notify_all()
        return fetched


def replay(fetched: list[Report], reports: Reports) -> None:
    """Say here what was said elsewhere, in order."""
    for kind, values in fetched:
        getattr(reports, kind)(*values)
