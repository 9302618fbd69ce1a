"""The class without Ray around it; tests/cluster/test_ray_actors.py has it in a process."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from metagrad.actors.rollout import Actor, probe
from metagrad.cluster import learner_process
from metagrad.cluster.config import Experiment
from metagrad.cluster.learner_process import Learner
from metagrad.cluster.learning import Assignment
from metagrad.cluster.transport import ColocatedActors

Tiny = Callable[..., Experiment]


def test_it_trains_in_one_thread_and_answers_in_another(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(topology="ray", updates=1_000_000)
    given: list[Any] = []

    def actors(slots: Any, faults: Any, report: Any, make: Any, life: int, rollouts_per_batch: int) -> ColocatedActors:
        given.append((len(slots), [slot.handle for slot in slots], make, life, rollouts_per_batch))
        return ColocatedActors([slot.setup for slot in slots], None, rollouts_per_batch)

    monkeypatch.setattr(learner_process, "RayActors", actors)
    learner, summaries = Learner(), []
    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None, life=3)
    thread = threading.Thread(target=lambda: summaries.append(learner.run(assignment, ["a", "b"], Actor)))
    thread.start()
    kinds = {kind for kind, _ in learner.fetch(60.0)}
    assert "scalars" in kinds
    learner.stop("SIGTERM")
    while thread.is_alive():
        learner.fetch(0.1)
    (summary,) = summaries
    assert summary["stopped_by"] == "SIGTERM"
    assert 0 < summary["updates"] < 1_000_000
    assert given == [(2, ["a", "b"], Actor, 3, 2)]
