"""What Ray says when a process or a whole node is gone, and how to say it in one line."""

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

LOST_TASK = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
LOST_ACTOR = (RayActorError, *LOST_TASK)


def first_line(error: BaseException) -> str:
    """Of its message; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
