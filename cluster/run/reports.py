"""Reports of a learner in a process of its own, queued there until the driver fetches them."""

import threading
from collections import deque

from metagrad.learner.reports import Candidate, Checkpoint, Message, Report
from metagrad.trees import map_tensors

_WAITING = {Checkpoint: 1, Candidate: 4}  # of those that hold parameters, unfetched
_WAITING_OF_OTHERS = 1_000  # of each kind


class QueuedReports:
    """Keeps reports in order until they are fetched; who reports faster than that waits for room.

    So memory is bounded while the driver is busy, writing a checkpoint to a slow store for example.
    """

    def __init__(self) -> None:
        self._queue: deque[Report] = deque()
        self._changed = threading.Condition()

    def say(self, text: str) -> None:
        """Queue a message."""
        self.put(Message(text))

    def put(self, report: Report) -> None:
        """Queue a report, without graphs and on the CPU: the driver may have no GPU."""
        match report:
            case Candidate(theta, update):
                report = Candidate(theta.detach().cpu(), update)
            case Checkpoint(update, tree):
                report = Checkpoint(update, map_tensors(lambda x: x.detach().cpu(), tree))
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(type(report)))
            self._queue.append(report)
            self._changed.notify_all()

    def _has_room(self, kind: type[Report]) -> bool:
        return sum(type(waiting) is kind for waiting in self._queue) < _WAITING.get(kind, _WAITING_OF_OTHERS)

    def fetch(self, seconds: float) -> list[Report]:
        """Return all reports since the last call, after waiting for the first one at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue), timeout=seconds)
            fetched = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        return fetched
