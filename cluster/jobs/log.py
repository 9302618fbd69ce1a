"""Follow what a job prints until it ends, over connections that may be lost."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from metagrad.cluster.jobs.client import JobView, LogInterrupted
from metagrad.errors import ConfigurationError

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_SILENCE = 30.0  # then somebody asks whether the cluster is still there: a dead connection does not say so


class Jobs(Protocol):
    """Describes what `JobClient` is asked for here."""

    def job(self, job_id: str) -> JobView: ...

    def log(self, job_id: str) -> str: ...

    def stream(self, job_id: str) -> AsyncIterator[str]: ...


class _Once:
    """Writes every character once, however often the text is read from its beginning."""

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._written = 0

    def reader(self) -> Callable[[str], None]:
        """Return a function that takes the text of one more reading."""
        read = 0

        def take(text: str) -> None:
            nonlocal read
            fresh = text[max(0, self._written - read) :]
            read += len(text)
            self._written = max(self._written, read)
            if fresh:
                self._write(fresh)

        return take


def follow(
    client: Jobs,
    job_id: str,
    write: Callable[[str], object],
    say: Callable[[str], object],
    pause: Callable[[float], None] = time.sleep,
) -> JobView:
    """Write a job's log as it grows, until the job is over.

    Args:
        client: the cluster.
        job_id: which job.
        write: gets every character of the log once, in order.
        say: gets a line when a connection is lost, the first time.
        pause: waits so many seconds.

    Returns:
        The job as it ended.

    Raises:
        ConfigurationError: the cluster does not answer any more.
    """
    once, is_said = _Once(write), False
    while True:
        try:
            asyncio.run(_copy(client, job_id, once.reader()))
        except LogInterrupted as lost:
            if not is_said:
                say(f"the log was interrupted ({lost}); reading on")
                is_said = True
        job = client.job(job_id)
        with contextlib.suppress(ConfigurationError):  # the job's node may be gone, and its log with it
            once.reader()(client.log(job_id))  # what came between the last look at the file and the job's end
        if job.is_over:
            return job
        pause(_SECONDS_BETWEEN_LOOKS)


async def _copy(client: Jobs, job_id: str, write: Callable[[str], None]) -> None:
    """Copy one connection's text; while it says nothing, see now and then whether the cluster still answers."""
    stream = client.stream(job_id)
    while True:
        text = asyncio.ensure_future(anext(stream))
        while not (await asyncio.wait({text}, timeout=_SECONDS_OF_SILENCE))[0]:
            if client.job(job_id).is_over:
                return  # `asyncio.run` cancels what still waits
        try:
            write(text.result())
        except StopAsyncIteration:
            return
