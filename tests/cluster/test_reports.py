import threading
from typing import Any

import pytest
import torch

from metagrad.cluster.run.reports import QueuedReports
from metagrad.learner.reports import Candidate, Checkpoint, Lags, Message, Report, Row, Standing, Summary


def test_reports_come_out_as_they_went_in() -> None:
    queued = QueuedReports()
    theta = torch.ones(2, requires_grad=True)
    said: list[Report] = [
        Message("hello"),
        Standing(1, 2.0, None, {"gamma": 0.9}, 0.0),
        Row({"a": 1.0}, 1),
        Lags([0, 1], 1),
        Candidate(theta, 1),
        Checkpoint(1, {"device": "cpu"}),
        Summary({"updates": 1}),
    ]
    for report in said:
        queued.put(report)
    fetched = queued.fetch(0.0)
    candidate = fetched[4]
    assert isinstance(candidate, Candidate)
    assert torch.equal(candidate.theta, theta)
    assert not candidate.theta.requires_grad, "θ travels without its graph"
    assert fetched[:4] + fetched[5:] == said[:4] + said[5:]
    assert [type(report) for report in fetched] == [type(report) for report in said]
    assert queued.fetch(0.0) == []


def test_a_fetch_waits_for_the_first_report() -> None:
    queued = QueuedReports()
    threading.Timer(0.05, lambda: queued.say("late")).start()
    assert queued.fetch(30.0) == [Message("late")]


def test_a_checkpoint_waits_until_the_one_before_it_was_fetched() -> None:
    queued = QueuedReports()
    queued.put(Checkpoint(1, {}))
    second = threading.Thread(target=queued.put, args=(Checkpoint(2, {}),))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert queued.fetch(0.0) == [Checkpoint(1, {})]
    second.join(30.0)
    assert queued.fetch(0.0) == [Checkpoint(2, {})]


@pytest.mark.parametrize(("report", "room"), [(Candidate(torch.zeros(2), 1), 4), (Message("on"), 1_000)])
def test_whoever_reports_more_than_is_fetched_waits(report: Report, room: int) -> None:
    queued = QueuedReports()
    for _ in range(room):
        queued.put(report)
    more = threading.Thread(target=queued.put, args=(report,))
    more.start()
    more.join(0.1)
    assert more.is_alive()
    queued.put(Summary({}))  # kinds do not hold each other up
    assert len(queued.fetch(0.0)) == room + 1
    more.join(30.0)
    assert [type(each) for each in queued.fetch(0.0)] == [type(report)]


def test_a_checkpoint_leaves_the_learners_device() -> None:
    tree = {"a": torch.ones(2, requires_grad=True), "b": [{"c": torch.zeros(1)}, 3], "d": "cpu"}
    queued, moved = QueuedReports(), []

    class Tensor(torch.Tensor):
        def cpu(self, *_: Any) -> Any:
            moved.append(tuple(self.shape))
            return torch.zeros(self.shape)

    queued.put(Checkpoint(1, tree | {"far": [{"x": torch.zeros(3).as_subclass(Tensor)}]}))
    ((_, found),) = queued.fetch(0.0)
    assert moved == [(3,)]
    assert type(found["far"][0]["x"]) is torch.Tensor
    assert (found["b"][1], found["d"], found["a"].requires_grad) == (3, "cpu", False)
