"""Keeps the learners of one life of a run together: they are heard, stopped and lost together."""

from collections.abc import Sequence
from typing import Any, NoReturn

import ray

from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.faults import original_traceback
from metagrad.shares import RankLost

_SECONDS_TO_END = 5.0  # of the others, once one has: what ended it is what has to be told
_SECONDS_TO_HEAR = 2.0  # that the others are lost to them too


class Crew:
    """Holds all learners of one life; where one of them is lost, all are."""

    def __init__(self, learners: Sequence[Any], running: Sequence[Any]):
        """Take processes, and the references to what each of them is running."""
        self._learners = learners
        self._running = running

    def stop(self, why: str) -> None:
        """Have them end after the update at hand, which is the same one for all."""
        for learner in self._learners:
            learner.stop.remote(why)

    def is_over(self) -> bool:
        """Return True once all have ended: what they say next is their last.

        Raises:
            RankLost: one has ended because another one is gone.
            Exception: what ended one of them while others run.
        """
        ended = [reference for reference in self._running if ray.wait([reference], timeout=0)[0]]
        if len(ended) == len(self._running):
            return True
        if any(_error(reference) is not None for reference in ended):
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_SECONDS_TO_END)
            self.require_success()
        return False

    def close(self) -> None:
        """Take note of what has ended several; of an error that nobody takes Ray prints the traceback."""
        if len(self._running) == 1 or ray_watch.lost() is not None:
            return
        ray.wait(list(self._running), num_returns=len(self._running), timeout=_SECONDS_TO_HEAR)
        for reference in self._running:
            _error(reference)

    def asked(self, seconds: float) -> list[Any]:
        """Ask all for what they have to report, once there is something or so many seconds are over."""
        return [learner.fetch.remote(seconds) for learner in self._learners]

    def require_success(self) -> None:
        """Raise what ended them, if anything did: rather than a loss what another one met itself.

        Raises:
            RankLost: one has ended because another one is gone.
            Exception: what ended one of them, with its own traceback.
        """
        errors = [error for reference in self._running if (error := _error(reference)) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, RankLost)):
            _raise(error)


def _error(reference: Any) -> BaseException | None:
    """Return what a process ended with; None: it ended well, or runs."""
    if not ray.wait([reference], timeout=0)[0]:
        return None
    try:
        ray.get(reference)
    except Exception as error:
        return error
    return None


def _raise(error: BaseException) -> NoReturn:
    if isinstance(error, RankLost):
        raise error
    with original_traceback():
        raise error
    raise AssertionError
