"""Lives of a learner, with Ray replaced; tests/cluster/test_ray_actors.py kills real ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from metagrad.cluster import supervise
from metagrad.cluster.config import Experiment
from metagrad.cluster.learning import Assignment
from metagrad.cluster.ray_faults import original_traceback
from metagrad.cluster.run_config import EvaluationConfig
from metagrad.cluster.supervise import LearnerLost, Supervisor, demand
from metagrad.cluster.train import Start
from metagrad.errors import ConfigurationError

Tiny = Callable[..., Experiment]


def test_lockstep_needs_all_of_its_actors_and_peek_one(tiny: Tiny) -> None:
    evaluated = EvaluationConfig(every=1)
    lockstep = tiny(topology="ray", actors=4, environments=8, actor_threads=2, learner_cpus=3, evaluation=evaluated)
    assert demand(lockstep)[:3] == (12, 12, 0)
    peek = tiny(topology="ray", actors=9, environments_per_actor=2, schedule="peek", device="cuda")
    assert demand(peek)[:3] == (2, 10, 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_error_comes_out_as_it_went_in(depth: int) -> None:
    error: Any = RayTaskError("rollout", "the actor's own traceback", KeyError("its own"))
    for _ in range(depth - 1):
        error = RayTaskError("run", "the learner's traceback", error)
    with pytest.raises(KeyError, match="the actor's own traceback"), original_traceback():
        raise error


def test_a_refusal_stays_one_line() -> None:
    error = RayTaskError(
        "run", "a long\ntraceback", RayTaskError("start", "another", ConfigurationError("a = 1: no; b"))
    )
    with pytest.raises(ConfigurationError) as refusal, original_traceback():
        raise error
    assert str(refusal.value) == "a = 1: no; b"


class Lives:
    """A supervisor whose learners end as they are told to, each in its turn: an error, or a summary."""

    def __init__(self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, ends: list[Any]):
        self.assignments: list[Assignment] = []
        self.started: list[int] = []
        self.said: list[str] = []
        self.stop = SimpleNamespace(signal_name=None)
        self.supervisor = Supervisor.__new__(Supervisor)
        vars(self.supervisor).update(_experiment=experiment, _spec=None, _make=None)

        def follow(assignment: Assignment, reports: Any, stop: Any) -> dict[str, Any]:
            self.assignments.append(assignment)
            end = ends[len(self.assignments) - 1]
            if isinstance(end, Exception):
                raise end
            return dict(end)

        monkeypatch.setattr(self.supervisor, "_follow", follow)

    @contextmanager
    def reports(self, start: Start) -> Iterator[Any]:
        self.started.append(start.update)
        yield SimpleNamespace(learner_restarted=self.said.append)

    def run(self, checkpoints: list[dict[str, Any] | None]) -> dict[str, Any]:
        waiting = list(checkpoints)
        return self.supervisor.run(lambda: waiting.pop(0), self.reports, self.stop)


def checkpoint(update: int) -> dict[str, Any]:
    return {"learner": {"update": update}}


def test_each_life_begins_at_the_newest_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [ActorDiedError(), ActorDiedError(), {"updates": 6}]
    lives = Lives(tiny(topology="ray", learner_restarts=2), monkeypatch, ends)
    assert lives.run([None, None, checkpoint(4)]) == {"updates": 6}
    assert [x.life for x in lives.assignments] == [0, 1, 2]
    assert [x.checkpoint for x in lives.assignments] == [None, None, checkpoint(4)]
    assert lives.started == [0, 0, 4]
    assert len(lives.said) == 2


def test_no_more_lives_than_allowed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(tiny(topology="ray", learner_restarts=1), monkeypatch, [ActorDiedError()] * 3)
    with pytest.raises(LearnerLost, match=r"^the learner's process was lost \(.*--learner-restarts 3$"):
        lives.run([None] * 3)
    assert len(lives.assignments) == 2


def test_a_learner_that_dies_while_it_is_stopped_is_not_started_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = Lives(tiny(topology="ray", learner_restarts=5), monkeypatch, [ActorDiedError()] * 3)
    lives.stop.signal_name = "SIGTERM"
    with pytest.raises(LearnerLost):
        lives.run([None] * 3)
    assert len(lives.assignments) == 1


def test_an_error_of_the_learners_own_is_no_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(tiny(topology="ray", learner_restarts=5), monkeypatch, [FloatingPointError("nan")] * 3)
    with pytest.raises(FloatingPointError):
        lives.run([None] * 3)
    assert len(lives.assignments) == 1


def test_a_learner_without_a_place_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Any] = []
    group = SimpleNamespace(wait=lambda seconds: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(supervise, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(supervise, "remove_placement_group", removed.append)
    message = r"^learner_cpus = 1: no node has had them free for 60 s \(\{'CPU': 1, 'GPU': 1\}\); add nodes or wait"
    with pytest.raises(ConfigurationError, match=message):
        Supervisor(tiny(topology="ray"), None, None)  # type: ignore[arg-type]
    assert removed == [group]
