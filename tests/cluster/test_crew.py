"""Learners that end one by one, with Ray replaced: what is told is what ended the first of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from metagrad.actors.rollout import EnvironmentFault
from metagrad.cluster.launch.crew import Crew
from metagrad.errors import RunLost
from metagrad.learner.reports import Message
from metagrad.learner.team import LearnersDiffer
from metagrad.shares import RankLost

RUNS, WELL = "runs", "well"


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference is what a process ended with, or says that it runs."""

    def get(reference: Any) -> Any:
        if isinstance(reference, RayTaskError):
            raise reference.as_instanceof_cause()
        if isinstance(reference, Exception):
            raise reference
        return reference

    def wait(references: list[Any], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        return [x for x in references if x != RUNS], [x for x in references if x == RUNS]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)


def ended(error: Exception) -> RayTaskError:
    return RayTaskError("run", "its traceback", error)


LOST = ended(RankLost("another learner is gone"))


@pytest.mark.parametrize(("running", "is_over"), [([RUNS], False), ([WELL], True), ([WELL, RUNS], False)])
def test_it_is_over_when_all_have_ended(running: list[str], is_over: bool) -> None:
    assert Crew([], running).is_over() is is_over


@pytest.mark.parametrize(
    ("running", "kind"),
    [
        ([LOST, RUNS], RankLost),  # another one does not answer
        ([LOST, ActorDiedError()], ActorDiedError),
        ([RUNS, ActorDiedError()], ActorDiedError),
        ([LOST, ended(EnvironmentFault("NaN"))], EnvironmentFault),
        ([RUNS, ended(EnvironmentFault("NaN"))], EnvironmentFault),
        ([ended(LearnersDiffer("they differ")), LOST], LearnersDiffer),
    ],
)
def test_what_ended_one_is_told_rather_than_that_others_lost_it(running: list[Any], kind: type[Exception]) -> None:
    crew = Crew([], running)
    with pytest.raises(kind):
        crew.is_over() and crew.require_success()


def test_every_end_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(ray, "get", heard.append)
    Crew([], [LOST, RUNS, WELL]).close()
    assert heard == [LOST, WELL]


def test_a_difference_is_one_line() -> None:
    with pytest.raises(RunLost) as lost:
        Crew([], [ended(LearnersDiffer("they differ"))]).require_success()
    assert str(lost.value) == "they differ"


def test_all_are_heard_and_all_are_stopped() -> None:
    asked: list[Any] = []

    def learner(name: str) -> Any:
        fetch = SimpleNamespace(remote=lambda seconds: [Message(name)])
        return SimpleNamespace(fetch=fetch, stop=SimpleNamespace(remote=lambda why: asked.append((name, why))))

    crew = Crew([learner("first"), learner("second")], [RUNS, RUNS])
    assert crew.asked(0.5) == [[Message("first")], [Message("second")]]
    crew.stop("SIGTERM")
    assert asked == [("first", "SIGTERM"), ("second", "SIGTERM")]
