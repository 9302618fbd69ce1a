"""Drives a run on Ray: it places the learner, owns the actors, and starts the learner again when it dies.

driver ─ owns ─► RolloutActor × actors, evaluator          checkpoints, TensorBoard, summary ─► run folder
   │                    ▲ orders, rollouts                        ▲
   └─ starts ─► Learner ┴─ reports, checkpoints ──────────────────┘
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch.crew import Crew
from metagrad.cluster.launch.driver_reports import DriverReports, start_at
from metagrad.cluster.launch.open_run import OpenRun
from metagrad.cluster.on_ray import session
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.evaluator import RayEvaluator
from metagrad.cluster.on_ray.faults import first_line
from metagrad.cluster.on_ray.learner_process import LEARNERS_BUNDLE, start_learner
from metagrad.cluster.on_ray.metrics import RayMetrics
from metagrad.cluster.on_ray.rollout_actor import MakeActor, create
from metagrad.cluster.on_ray.session import Demand, free_resources
from metagrad.cluster.plan.placement import REMEDY_FOR_GPUS, learner_gpus, missing_gpus, own_cpus
from metagrad.cluster.run.learning import Assignment
from metagrad.errors import RunLost, counted, require
from metagrad.learner.team import Stop, share_of
from metagrad.shares import RankLost

_SECONDS_TO_PLACE = 5.0  # where there is room
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_MISS_A_NODE = 60.0  # at the most, until Ray counts it as dead
_SECONDS_TO_FINISH = 35.0  # without the cluster's head, before Ray aborts
_SECONDS_TO_START = 120.0  # a learner's process, at the least
_SECONDS_OF_SILENCE_AT_THE_END = 30.0  # once it is asked to end: its caller does not wait for ever
_SECONDS_UNTIL_SAID = 5.0
_SECONDS_OF_A_LOOK = 0.5


class LearnerLost(RunLost):
    """The learner's process died, and was not to be started again."""


def demand(experiment: BaseExperiment) -> Demand:
    """Return what a run needs at the same time: in lockstep all of its actors, in peek at least one for a learner."""
    own = own_cpus(experiment)
    wanted = own + experiment.actors * experiment.cpus_of_an_actor
    least = wanted if experiment.schedule == "lockstep" else own + experiment.learners * experiment.cpus_of_an_actor
    gpus = experiment.learners if experiment.device.startswith("cuda") else 0
    threads = counted(experiment.cpus_of_an_actor, "thread")
    needs = f"with {threads} each, and {counted(own, 'CPU')} for learner and evaluation"
    return Demand(least, wanted, gpus, experiment.actors, needs)


class _NoAnswer(RuntimeError):
    """Says that the learner has not answered for too long."""


class _Patience:
    """Ends the waiting for an answer of the learner after so many seconds, and sooner once the run is to end."""

    def __init__(self, seconds: float, stop: Stop, say: Callable[[str], None]):
        self._seconds, self._stop, self._say = seconds, stop, say
        self._since = time.monotonic()
        self._asked: float | None = None
        self._is_said = False

    def spend(self) -> None:
        """Look whether an answer may still come.

        Raises:
            _NoAnswer: it should have.
            ClusterLost: Ray itself was lost, and with it the answer.
        """
        lost = ray_watch.lost()
        if lost is not None and not lost.lets_processes_finish:
            raise lost
        now = time.monotonic()
        if self._stop.signal_name is not None and self._asked is None:
            self._asked = now
        end = self._since + self._seconds
        if self._asked is not None:
            end = min(end, self._asked + _SECONDS_OF_SILENCE_AT_THE_END)
        if now > end:
            raise _NoAnswer(f"no answer for {now - self._since:.0f} s")
        if self._asked is not None and now > self._since + _SECONDS_UNTIL_SAID and not self._is_said:
            name, left = self._stop.signal_name, end - now
            self._say(f"{name}: the learner does not answer; the run ends without it in {left:.0f} s")
            self._is_said = True


class Supervisor:
    """Owns everything of a run that outlives its learner."""

    def __init__(self, experiment: BaseExperiment, spec: EnvironmentSpec, say: Callable[[str], None], stop: Stop):
        """Wait for the resources that must be there together.

        Args:
            experiment: the run.
            spec: of its environment.
            say: told what is waited for.
            stop: whether the run should end, which ends the waiting.

        Raises:
            ConfigurationError: they were not free in time; nothing was started.
        """
        self._experiment = experiment
        self._spec = spec
        self._say = say
        self._stop = stop
        there = ray.cluster_resources().get("GPU", 0)
        missing = missing_gpus(experiment, there)
        require(missing is None, "actor_gpus", experiment.actor_gpus, str(missing), REMEDY_FOR_GPUS)
        self._gpus = learner_gpus(experiment, there)
        self._group = self._reserve()
        # Each learner's first actor has a bundle too, in front of its learner's.
        firsts = {share_of(experiment.actors, i, experiment.learners).start: b - 1 for i, b in self._bundles()}
        of_each = (experiment.cpus_of_an_actor, self._group, firsts, experiment.actor_gpus)
        self.handles = create(experiment.actors, *of_each)

    def _bundles(self) -> Iterator[tuple[int, int]]:
        """Yield each learner with the number of its bundle: behind the first one is that of the evaluator, if any."""
        behind = LEARNERS_BUNDLE + (2 if self._experiment.evaluation.every else 1)
        for rank in range(self._experiment.learners):
            yield rank, LEARNERS_BUNDLE if rank == 0 else behind + 2 * rank - 1

    def _reserve(self) -> PlacementGroup:
        """Reserve room for learners, evaluator and an actor for each learner, which nobody takes, even when they die.

        All at once: of two runs that wait, none holds what the other one needs.
        """
        experiment = self._experiment
        bundles: list[dict[str, float]] = [{"CPU": experiment.cpus_of_an_actor}, {"CPU": experiment.learner_cpus}]
        if self._gpus:
            bundles[LEARNERS_BUNDLE]["GPU"] = self._gpus
        if experiment.actor_gpus:
            bundles[0]["GPU"] = experiment.actor_gpus
        of_learner = [dict(bundle) for bundle in bundles]
        if experiment.evaluation.every:
            bundles.append({"CPU": 1})
        for _ in range(1, experiment.learners):
            bundles += map(dict, of_learner)
        group = placement_group(bundles, strategy="PACK")
        self._needs = needs_of(bundles, experiment.learners)
        try:
            self._wait(group)
        except BaseException:
            remove_placement_group(group)
            raise
        return group

    def _wait_for_nodes(self) -> None:
        """See that successors of lost learners go to nodes that are there; Ray knows some time after a loss."""
        deadline = time.monotonic() + _SECONDS_TO_MISS_A_NODE
        is_said = False
        while (silent := ray_watch.silent_nodes(self._group)) and time.monotonic() < deadline:
            if (lost := ray_watch.lost()) is not None:
                raise lost
            if self._stop.signal_name is not None:
                return
            if not is_said:
                self._say(f"{', '.join(silent)} no longer answers: waiting until Ray counts it as lost")
            is_said = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._wait(self._group)

    def _wait(self, group: PlacementGroup) -> None:
        """Wait until all of the group has room."""
        if group.wait(_SECONDS_TO_PLACE):
            return
        needs = self._needs
        limit = self._experiment.resolved_wait_for_resources
        self._say(f"waiting for {needs}, at most {limit:g} s (--wait-for-resources): {free_resources()}")
        deadline = time.monotonic() + limit - _SECONDS_TO_PLACE
        while not group.wait(_SECONDS_BETWEEN_LOOKS):
            if (lost := ray_watch.lost()) is not None:
                raise lost
            if self._stop.signal_name is not None:
                return
            if time.monotonic() > deadline:
                rule = f"in that time the cluster had no room for {needs}: {free_resources()}"
                remedy = "add nodes, wait for other runs to end, or wait longer"
                require(False, "wait_for_resources", limit, rule, remedy)
        self._say("found room; starting")

    def evaluator(self, report: Callable[[str], None]) -> RayEvaluator | None:
        """Return the evaluator that plays beside training, if any does."""
        if not self._experiment.evaluation.every:
            return None
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=LEARNERS_BUNDLE + 1)
        options = {"num_cpus": 1, "scheduling_strategy": strategy}
        return RayEvaluator(self._experiment, self._spec, options, report)

    def close(self) -> None:
        """End all processes."""
        if ray_watch.lost() is not None:  # Ray would try to reach what is gone, for a minute; they end with its node
            return
        for handle in self.handles:
            ray.kill(handle)
        remove_placement_group(self._group)  # and with it learner and evaluator

    @contextmanager
    def learners(self, assignment: Assignment, make: MakeActor) -> Iterator[Crew]:
        """Start the learners of a life on their work, and kill them at the end."""
        if assignment.life:
            self._wait_for_nodes()
        of_each = (self._group, self._experiment.learner_cpus, self._gpus)
        learners = [start_learner(*of_each, rank, bundle) for rank, bundle in self._bundles()]
        try:
            others = [x.run.remote(assignment, self.handles, make, learners[0]) for x in learners[1:]]
            with closing(Crew(learners, [learners[0].run.remote(assignment, self.handles, make), *others])) as crew:
                yield crew
        finally:
            if ray_watch.lost() is None:
                for learner in learners:
                    ray.kill(learner)

    def patience(self, has_answered: bool) -> _Patience:
        """Begin to wait for an answer of the learners, whose processes have to start before their first one."""
        faults = self._experiment.faults
        most = max(_SECONDS_TO_START, faults.rollout_seconds)
        seconds = faults.learner_seconds if has_answered and faults.learner_seconds is not None else most
        return _Patience(seconds, self._stop, self._say)

    def asks_to_end(self, crew: Crew, reports: DriverReports) -> bool:
        """Have the learners end once a signal has come; return True if it has."""
        name = self._stop.signal_name
        if name is None:
            return False
        crew.stop(name)
        reports.say(f"{name}: the run ends after the update at hand, with a checkpoint")
        return True

    @contextmanager
    def forgiven(self, life: int, reports: DriverReports) -> Iterator[None]:
        """Swallow the loss of a learner where another one is to follow.

        Raises:
            LearnerLost: the learner died more often than it may.
            ClusterLost: Ray itself ended.
        """
        try:
            yield
        except (RayActorError, RankLost, _NoAnswer) as error:
            if (lost := ray_watch.lost()) is not None:
                raise lost from error
            reason = first_line(error)
            if life >= self._experiment.learner_restarts or self._stop.signal_name is not None:
                raise LearnerLost(
                    f"the learner's process was lost ({reason}); continue with --resume, or have it started "
                    "again by itself with --learner-restarts 3"
                ) from error
            reports.learner_restarted(reason)

    def require_cluster(self, crew: Crew, reports: DriverReports) -> None:
        """End the run where Ray has ended, with a checkpoint of the current update where that is still possible.

        Raises:
            ClusterLost: Ray itself was lost.
        """
        lost = ray_watch.lost()
        if lost is None:
            return
        if lost.lets_processes_finish:
            self._save_what_can_be(crew, reports, lost)
        raise lost

    def _save_what_can_be(self, crew: Crew, reports: DriverReports, lost: ray_watch.ClusterLost) -> None:
        """Write a checkpoint of the current update, while learner and driver can still talk to each other."""
        reports.say(f"{lost.what}: the run ends, with a checkpoint where that is still possible")
        crew.stop("the end of the cluster")
        deadline = time.monotonic() + _SECONDS_TO_FINISH
        try:
            is_over = False
            while not is_over and (left := deadline - time.monotonic()) > 0:
                is_over = crew.is_over()
                patience = _Patience(left, self._stop, self._say)
                for said in crew.asked(0.5):
                    while not ray.wait([said], timeout=_SECONDS_OF_A_LOOK)[0]:
                        patience.spend()
                    for report in ray.get(said):
                        reports(report)
        except (RayError, RankLost, _NoAnswer) as error:
            reports.say(f"the learner cannot be reached either ({first_line(error)})")


def supervise(this_run: OpenRun, make: MakeActor) -> None:
    """Train to the end on Ray; a learner that dies continues from the newest checkpoint, as often as it may.

    Raises:
        LearnerLost: the learner died more often than it may.
        ClusterLost: Ray itself ended; what the learner could still bring is written.
        Exception: whatever ended the learner, with its own traceback.
    """
    experiment, stop = this_run.experiment, this_run.stop
    with session.ray_session(demand(experiment)):
        if this_run.is_stopped_before():  # while Ray started
            return
        with closing(Supervisor(experiment, this_run.spec, this_run.say, stop)) as supervisor:
            if this_run.is_stopped_before():  # while it waited for resources
                return
            evaluator = supervisor.evaluator(this_run.say) or this_run.inline_evaluator()
            metrics = RayMetrics(experiment.name, this_run.folder.path.name)
            is_done = False
            for life in itertools.count():
                checkpoint = this_run.newest_checkpoint() if life else this_run.checkpoint
                assignment = Assignment(experiment=experiment, spec=this_run.spec, checkpoint=checkpoint, life=life)
                with (
                    this_run.reports(start_at(checkpoint), evaluator, metrics) as reports,
                    supervisor.forgiven(life, reports),
                    supervisor.learners(assignment, make) as crew,
                ):
                    is_told = is_over = has_answered = False
                    while not is_over:
                        is_over = crew.is_over()
                        is_told = is_told or is_over or supervisor.asks_to_end(crew, reports)
                        patience = supervisor.patience(has_answered)
                        for said in crew.asked(0.0 if is_over else 0.5):
                            while not ray.wait([said], timeout=_SECONDS_OF_A_LOOK)[0]:
                                patience.spend()
                            for report in ray.get(said):
                                reports(report)
                        has_answered = True
                        if not is_over:
                            reports.write_evaluations()
                            supervisor.require_cluster(crew, reports)
                    crew.require_success()
                    is_done = True
                if is_done:
                    break
            this_run.finish_evaluations(evaluator)


def needs_of(bundles: list[dict[str, float]], learners: int = 1) -> str:
    """Return in words the resources that must be free together."""
    if learners > 1:
        all_cpus, all_gpus = (sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
        gpus = f" and {counted(all_gpus, 'GPU')}" if all_gpus else ""
        return f"{counted(all_cpus, 'CPU')}{gpus} ({learners} learners with an actor each)"
    cpus = " + ".join(f"{bundle['CPU']:g}" for bundle in bundles)
    of_actor, of_learner = (bundle.get("GPU", 0) for bundle in bundles[:2])
    parts = (f" and {of_actor:g} of a GPU beside the actor's",) if of_actor else ()
    if of_learner:
        parts = (f" and {'a' if of_learner == 1 else f'{of_learner:g} of a'} GPU beside the learner's", *parts)
    return f"{cpus} CPUs (an actor, the learner{', the evaluator' if len(bundles) > 2 else ''})" + "".join(parts)
