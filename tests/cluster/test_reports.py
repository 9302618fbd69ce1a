import threading
from typing import Any

import pytest
import torch

from metagrad.cluster.run.reports import QueuedReports, Report, replay


def test_reports_come_out_as_they_went_in() -> None:
    queued = QueuedReports()
    theta = torch.ones(2, requires_grad=True)
    queued.say("hello")
    queued.progress(1, 2.0, None, {"gamma": 0.9}, 0.0)
    queued.scalars({"a": 1.0}, 1)
    queued.lags([0, 1], 1)
    queued.evaluate(theta, 1)
    queued.checkpoint(1, {"device": "cpu"})
    queued.summary({"updates": 1})
    said: list[Report] = []

    class Here:
        def __getattr__(self, kind: str) -> Any:
            return lambda *values: said.append((kind, values))

    fetched = queued.fetch(0.0)
    replay(fetched, Here())
    assert said == fetched
    assert [kind for kind, _ in said] == [
        *("say", "progress", "scalars", "lags", "evaluate", "checkpoint", "summary"),
    ]
    assert not said[4][1][0].requires_grad, "θ travels without its graph"
    assert queued.fetch(0.0) == []


def test_a_fetch_waits_for_the_first_report() -> None:
    queued = QueuedReports()
    threading.Timer(0.05, lambda: queued.say("late")).start()
    assert queued.fetch(30.0) == [("say", ("late",))]


def test_a_checkpoint_waits_until_the_one_before_it_was_fetched() -> None:
    queued = QueuedReports()
    queued.checkpoint(1, {})
    second = threading.Thread(target=queued.checkpoint, args=(2, {}))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert queued.fetch(0.0) == [("checkpoint", (1, {}))]
    second.join(30.0)
    assert queued.fetch(0.0) == [("checkpoint", (2, {}))]


@pytest.mark.parametrize(("kind", "values", "room"), [("evaluate", (torch.zeros(2), 1), 4), ("say", ("on",), 1_000)])
def test_whoever_reports_more_than_is_fetched_waits(kind: str, values: tuple[Any, ...], room: int) -> None:
    queued = QueuedReports()
    for _ in range(room):
        getattr(queued, kind)(*values)
    more = threading.Thread(target=getattr(queued, kind), args=values)
    more.start()
    more.join(0.1)
    assert more.is_alive()
    queued.summary({})  # kinds do not hold each other up
    assert len(queued.fetch(0.0)) == room + 1
    more.join(30.0)
    assert [name for name, _ in queued.fetch(0.0)] == [kind]


def test_a_checkpoint_leaves_the_learners_device() -> None:
    tree = {"a": torch.ones(2, requires_grad=True), "b": [{"c": torch.zeros(1)}, 3], "d": "cpu"}
    queued, moved = QueuedReports(), []

    class Tensor(torch.Tensor):
        def cpu(self, *_: Any) -> Any:
            moved.append(tuple(self.shape))
            return torch.zeros(self.shape)

    queued.checkpoint(1, tree | {"far": [{"x": torch.zeros(3).as_subclass(Tensor)}]})
    ((_, (_, found)),) = queued.fetch(0.0)
    assert moved == [(3,)]
    assert type(found["far"][0]["x"]) is torch.Tensor
    assert (found["b"][1], found["d"], found["a"].requires_grad) == (3, "cpu", False)
