import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from metagrad.cluster.jobs import log as job_log
from metagrad.cluster.jobs.client import JobView, LogInterrupted
from metagrad.cluster.jobs.log import follow
from metagrad.errors import ConfigurationError

LOG = "first\nsecond\nthird\n"


class FakeJobs:
    """A job whose connections bring so many characters each, and then break or end; it is over when none is left."""

    def __init__(self, connections: list[tuple[int, bool]], log: str | None = LOG):
        self._connections = connections
        self._log = log

    def job(self, job_id: str) -> JobView:
        return JobView(job_id=job_id, state="RUNNING" if self._connections else "STOPPED")

    def log(self, job_id: str) -> str:
        if self._log is None:
            raise ConfigurationError("its node is gone")
        return self._log if not self._connections else ""

    async def stream(self, job_id: str) -> AsyncIterator[str]:
        length, is_broken = self._connections.pop(0)
        for begin in range(0, length, 4):
            yield LOG[begin : min(begin + 4, length)]
        if is_broken:
            raise LogInterrupted("no network")


@pytest.mark.parametrize(
    ("connections", "said"),
    [
        ([(19, False)], 0),
        ([(7, False)], 0),  # the end of the log came after that of the connection
        ([(9, True), (19, False)], 1),
        ([(0, True), (9, True), (5, True), (13, False), (13, False)], 1),
    ],
)
def test_every_character_is_written_once_whatever_connections_do(
    connections: list[tuple[int, bool]], said: int
) -> None:
    written: list[str] = []
    lines: list[str] = []
    pauses: list[float] = []
    job = follow(FakeJobs(list(connections)), "mine", written.append, lines.append, pauses.append)
    assert "".join(written) == LOG
    assert job.state == "STOPPED"
    assert lines == ["the log was interrupted (no network); reading on"] * said
    assert len(pauses) == len(connections) - 1


def test_a_log_that_went_with_its_node_still_ends() -> None:
    written: list[str] = []
    job = follow(FakeJobs([(7, True)], log=None), "mine", written.append, lambda _: None, lambda _: None)
    assert "".join(written) == LOG[:7]
    assert job.is_over


class Silent(FakeJobs):
    """A connection that is dead and does not say so."""

    looks = 0

    def job(self, job_id: str) -> JobView:
        self.looks += 1
        return self.answer(self.looks)

    async def stream(self, job_id: str) -> AsyncIterator[str]:
        yield LOG[:6]
        await asyncio.sleep(1_000)

    answer: Callable[[int], JobView]


def test_a_silent_connection_is_no_reason_to_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "_SECONDS_OF_SILENCE", 0.01)
    silent = Silent([])
    silent.answer = lambda looks: JobView(job_id="mine", state="SUCCEEDED" if looks > 2 else "RUNNING")
    written: list[str] = []
    assert follow(silent, "mine", written.append, lambda _: None).state == "SUCCEEDED"
    assert "".join(written) == LOG

    def gone(_looks: int) -> JobView:
        raise ConfigurationError("nothing answers there")

    silent.answer = gone
    with pytest.raises(ConfigurationError, match=r"^nothing answers there$"):
        follow(silent, "mine", written.append, lambda _: None)
