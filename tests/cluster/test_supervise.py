"""Lives of a learner, with Ray replaced; tests/cluster/test_ray_actors.py kills real ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from metagrad.actors.rollout import Actor
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import EvaluationConfig, FaultConfig
from metagrad.cluster.launch import supervise
from metagrad.cluster.launch.crew import Crew
from metagrad.cluster.launch.driver_reports import Start
from metagrad.cluster.launch.supervise import LearnerLost, Supervisor, demand
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.faults import original_traceback
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.cluster.on_ray.watch import ClusterLost
from metagrad.cluster.run.learning import Assignment
from metagrad.errors import ConfigurationError
from metagrad.learner.reports import Checkpoint

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
    """Learners that end as they are told to, each in its turn: with an error, or well."""

    def __init__(self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, ends: list[Any]):
        self.assignments: list[Assignment] = []
        self.started: list[int] = []
        self.said: list[str] = []
        self.finished: list[Any] = []
        self.stop = SimpleNamespace(signal_name=None)
        self.experiment, self.spec, self.say = experiment, None, self.said.append
        self.folder = SimpleNamespace(path=Path("run"))
        self._waiting: list[dict[str, Any] | None] = []
        self.finish_evaluations = self.finished.append

        def run(assignment: Assignment, handles: list[Any], make: Any) -> Any:
            self.assignments.append(assignment)
            return ends[len(self.assignments) - 1]

        def get(reference: Any) -> Any:
            if isinstance(reference, Exception):
                raise reference
            return reference

        Room(monkeypatch, looks=0)
        self.silent: list[list[str]] = []  # nodes at each look; none afterwards
        monkeypatch.setattr(ray_watch, "silent_nodes", lambda _: self.silent.pop(0) if self.silent else [])
        learner = SimpleNamespace(
            run=SimpleNamespace(remote=run),
            fetch=SimpleNamespace(remote=lambda seconds: []),
            stop=SimpleNamespace(remote=self.said.append),
        )
        monkeypatch.setattr(supervise, "start_learner", lambda *_: learner)
        monkeypatch.setattr(supervise, "create", lambda *_: [])
        monkeypatch.setattr(supervise.session, "ray_session", lambda _: nullcontext())
        monkeypatch.setattr(supervise, "RayMetrics", lambda *_: None)
        monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(ray, "kill", lambda _: None)

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        return self._waiting.pop(0)

    newest_checkpoint = checkpoint.fget

    def is_stopped_before(self) -> bool:
        return False

    def inline_evaluator(self) -> Any:
        return "evaluator"

    @contextmanager
    def reports(self, start: Start, evaluator: Any, metrics: Any) -> Iterator[Any]:
        self.started.append(start.update)
        yield SimpleNamespace(learner_restarted=self.said.append, say=self.said.append)

    def run(self, checkpoints: list[dict[str, Any] | None]) -> None:
        self._waiting = list(checkpoints)
        supervise.supervise(self, Actor)  # type: ignore[arg-type]


def checkpoint(update: int) -> dict[str, Any]:
    return {"learner": {"update": update}}


def test_each_life_begins_at_the_newest_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [ActorDiedError(), ActorDiedError(), None]
    lives = Lives(tiny(topology="ray", learner_restarts=2), monkeypatch, ends)
    lives.run([None, None, checkpoint(4)])
    assert lives.finished == ["evaluator"]
    assert [x.life for x in lives.assignments] == [0, 1, 2]
    assert [x.checkpoint for x in lives.assignments] == [None, None, checkpoint(4)]
    assert lives.started == [0, 0, 4]
    assert len(lives.said) == 2


def test_a_life_begins_once_ray_knows_which_nodes_are_left(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, one whose node is gone would be sent there again and lose another life."""
    lives = Lives(tiny(topology="ray", learner_restarts=1), monkeypatch, [ActorDiedError(), None])
    lives.silent = [["10.0.0.3"], ["10.0.0.3"]]
    slept: list[int] = []
    monkeypatch.setattr(supervise.time, "sleep", lambda _: slept.append(len(lives.assignments)))
    lives.run([None, None])
    assert (slept, len(lives.assignments)) == ([1, 1], 2)
    assert [text for text in lives.said if "10.0.0.3" in text] == [
        "10.0.0.3 no longer answers: waiting until Ray counts it as lost"
    ]


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


class Room:
    """A placement group that finds room after so many looks; never: None. Each look takes as long as it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int | None, on_look: Callable[[], None] = lambda: None):
        self.now, self.looks, self.on_look = 0.0, looks, on_look
        self.bundles: list[dict[str, float]] = []
        self.removed: list[Any] = []
        self.said: list[str] = []
        self.groups: list[Any] = []
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(supervise.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(supervise, "placement_group", self.reserve)
        monkeypatch.setattr(supervise, "remove_placement_group", self.removed.append)
        monkeypatch.setattr(supervise, "create", lambda count, threads, group, *_: self.groups.append(group))

    def reserve(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.bundles = bundles
        return self

    def wait(self, seconds: float) -> bool:
        if self.looks == 0:
            return True
        self.now += seconds
        self.looks = None if self.looks is None else self.looks - 1
        self.on_look()
        return False


def wait_for(room: Room, experiment: Experiment, stop: Any) -> None:
    Supervisor(experiment, None, room.said.append, stop)  # type: ignore[arg-type]


RUNNING = SimpleNamespace(signal_name=None)


def test_a_run_with_room_says_nothing_of_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=0)
    evaluated = EvaluationConfig(every=1)
    wait_for(room, tiny(topology="ray", actor_threads=2, learner_cpus=3, evaluation=evaluated), RUNNING)
    assert room.bundles == [{"CPU": 2}, {"CPU": 3, "GPU": 1}, {"CPU": 1}]
    assert (room.said, room.removed, room.groups) == ([], [], [room])


def test_actors_with_parts_of_a_gpu_share_the_learners(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=0)
    parts: list[float] = []
    monkeypatch.setattr(supervise, "create", lambda *arguments: parts.append(arguments[-1]))
    wait_for(room, tiny(topology="ray", actors=4, actor_gpus=0.1), RUNNING)
    assert room.bundles == [{"CPU": 1, "GPU": 0.1}, {"CPU": 1, "GPU": 0.6}]
    assert parts == [0.1]
    needs = (
        "1 + 1 CPUs (an actor, the learner) and 0.6 of a GPU beside the learner's and 0.1 of a GPU beside the actor's"
    )
    assert supervise.needs_of(room.bundles) == needs


def test_actors_that_leave_a_learner_no_gpu_are_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=0)
    line = (
        r"^actor_gpus = 0\.5: 2 actors with 0\.5 of a GPU each beside 1 learner do not fit on 1 GPU; lower it or the "
    )
    with pytest.raises(ConfigurationError, match=line):
        wait_for(room, tiny(topology="ray", actor_gpus=0.5), RUNNING)
    assert room.bundles == []


def test_each_learner_has_room_beside_one_of_its_actors(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=0)
    reserved: list[dict[int, int]] = []
    monkeypatch.setattr(supervise, "create", lambda count, threads, group, bundles, _: reserved.append(bundles))
    evaluated = EvaluationConfig(every=1)
    three = tiny(topology="ray", learners=3, actors=4, learner_cpus=2, evaluation=evaluated)
    assert demand(three)[:3] == (11, 11, 0)
    supervisor = Supervisor(three, None, room.said.append, RUNNING)  # type: ignore[arg-type]
    assert room.bundles == [{"CPU": 1}, {"CPU": 2}, {"CPU": 1}, {"CPU": 1}, {"CPU": 2}, {"CPU": 1}, {"CPU": 2}]
    assert list(supervisor._bundles()) == [(0, 1), (1, 4), (2, 6)]
    assert reserved == [{0: 0, 2: 3, 3: 5}], "the first actor of each"


def test_a_run_waits_for_room_that_others_have_and_says_for_what(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=500)
    wait_for(room, tiny(topology="ray", device="cuda"), RUNNING)
    assert room.said == [
        "waiting for 1 + 1 CPUs (an actor, the learner) and a GPU beside the learner's, at most 3600 s "
        "(--wait-for-resources): 2 of 8 CPUs are free, 0 of 1 GPUs are free",
        "found room; starting",
    ]
    assert (room.removed, room.groups) == ([], [room])


def test_a_run_waits_no_longer_than_it_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, looks=None)
    message = (
        r"^wait_for_resources = 90\.0: in that time the cluster had no room for 1 \+ 1 CPUs \(an actor, the learner\) "
        r"and a GPU beside the learner's: 2 of 8 CPUs are free, 0 of 1 GPUs are free; add nodes, wait for other runs"
    )
    with pytest.raises(ConfigurationError, match=message):
        wait_for(room, tiny(topology="ray", wait_for_resources=90.0), RUNNING)
    assert room.now == pytest.approx(90, abs=2)
    assert (room.removed, room.groups) == ([room], [])


def test_a_signal_ends_the_waiting(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = SimpleNamespace(signal_name=None)
    room = Room(monkeypatch, looks=None, on_look=lambda: setattr(stop, "signal_name", "SIGTERM"))
    wait_for(room, tiny(topology="ray"), stop)
    assert room.now < 10


LOST_RAYLET = ClusterLost("raylet", Endpoint("10.0.0.2", 4000))
LOST_HEAD = ClusterLost("GCS", Endpoint("10.0.0.1", 6379))


def test_a_cluster_that_ends_while_a_run_waits_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "lost", lambda: LOST_HEAD)
    room = Room(monkeypatch, looks=None)
    with pytest.raises(ClusterLost):
        wait_for(room, tiny(topology="ray"), RUNNING)


def test_an_answer_that_went_with_the_node_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "lost", lambda: LOST_RAYLET)
    with pytest.raises(ClusterLost, match="continue with --resume"):
        supervise._Patience(120.0, RUNNING, print).spend()


def test_a_learner_that_has_answered_once_is_given_as_long_as_the_run_says(tiny: Tiny) -> None:
    def seconds(has_answered: bool, **faults: float) -> float:
        supervisor = object.__new__(supervise.Supervisor)
        supervisor._experiment = tiny(topology="ray", faults=FaultConfig(**faults))
        supervisor._stop, supervisor._say = RUNNING, print
        return supervisor.patience(has_answered)._seconds

    assert [seconds(x, learner_seconds=7.0) for x in (False, True)] == [120, 7]
    assert [seconds(x, rollout_seconds=300.0) for x in (False, True)] == [300, 300]
    assert [seconds(x) for x in (False, True)] == [120, 120]


class Remote:
    """A learner that says one thing more when it is asked to stop."""

    def __init__(self, is_gone: bool) -> None:
        self.asked: list[str] = []
        self.is_gone = is_gone
        self.fetch = SimpleNamespace(remote=lambda seconds: "fetched")
        self.stop = SimpleNamespace(remote=self.asked.append)


@pytest.mark.parametrize("is_gone", [False, True])
def test_without_the_head_the_learner_is_asked_for_a_last_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    learner, said = Remote(is_gone), []
    supervisor = Supervisor.__new__(Supervisor)
    vars(supervisor).update(_stop=RUNNING, _say=print)
    monkeypatch.setattr(ray_watch, "lost", lambda: LOST_HEAD)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))

    def get(_: Any) -> list[Any]:
        if is_gone:
            raise ActorDiedError()
        return [Checkpoint(7, {})]

    monkeypatch.setattr(ray, "get", get)
    written: list[int] = []

    class Reports:
        say = staticmethod(said.append)

        def __call__(self, report: Checkpoint) -> None:
            written.append(report.update)

    with pytest.raises(ClusterLost):
        supervisor.require_cluster(Crew([learner], ["running"]), Reports())  # type: ignore[arg-type]
    assert learner.asked == ["the end of the cluster"]
    assert written == ([] if is_gone else [7])
    assert said[0].startswith("the head of the Ray cluster (GCS) no longer answers at 10.0.0.1:6379: the run ends")
    assert len(said) == 1 + is_gone


def test_a_learner_that_goes_with_ray_is_not_started_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "lost", lambda: LOST_RAYLET)
    lives = Lives(tiny(topology="ray", learner_restarts=5), monkeypatch, [ActorDiedError()] * 3)
    with pytest.raises(ClusterLost):
        lives.run([None] * 3)
    assert len(lives.assignments) == 1
