"""Know what Ray raises when a process or a whole node is gone, and say it in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from metagrad.errors import ConfigurationError, RunLost


class NotStarted(RuntimeError):
    """Says that an actor process has no environments.

    Ray brought it up in place of one that died, or one of the processes that it had for them has died.
    """


LOST_TASK = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
LOST_ACTOR = (RayActorError, NotStarted, *LOST_TASK)


def first_line(error: BaseException) -> str:
    """Return the first line of its message, or of the error that a remote call ended with; without one its type."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def original_traceback() -> Iterator[None]:
    """Raise an error of an actor that came through the learner as the actor's own."""
    try:
        yield
    except RayTaskError as error:
        while isinstance(error.cause, RayTaskError):
            error = error.cause
        if isinstance(error.cause, ConfigurationError | RunLost):  # one line for people, not a traceback
            raise error.cause from None
        raise error.as_instanceof_cause() from None
