"""The driver of a run on Ray: it places the learner, owns the actors, and starts the learner again when it dies.

driver ─ owns ─► RolloutActor × actors, evaluator          checkpoints, TensorBoard, summary ─► run folder
   │                    ▲ orders, rollouts                        ▲
   └─ starts ─► Learner ┴─ reports, checkpoints ──────────────────┘
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch.driver_reports import DriverReports
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.evaluator import RayEvaluator
from metagrad.cluster.on_ray.faults import first_line, original_traceback
from metagrad.cluster.on_ray.learner_process import LEARNERS_BUNDLE, start_learner
from metagrad.cluster.on_ray.rollout_actor import MakeActor, create
from metagrad.cluster.on_ray.session import Demand, free_resources
from metagrad.cluster.plan.placement import own_cpus
from metagrad.cluster.run.learning import Assignment
from metagrad.cluster.run.reports import replay
from metagrad.cluster.run.stop import Stop
from metagrad.cluster.run.train import Start, start_at
from metagrad.errors import RunLost, require

_SECONDS_TO_PLACE = 5.0  # where there is room
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_FINISH = 35.0  # without the cluster's head, before Ray aborts
_SECONDS_OF_SILENCE = 120.0  # at the least, of a learner, whose process may have to start first
_SECONDS_OF_SILENCE_AT_THE_END = 30.0  # once it is asked to end: whoever asks does not wait for ever
_SECONDS_UNTIL_SAID = 5.0
OpenReports = Callable[[Start], AbstractContextManager[DriverReports]]


class LearnerLost(RunLost):
    """The learner's process died, and was not to be started again."""


def demand(experiment: BaseExperiment) -> Demand:
    """Return what a run needs at the same time: in lockstep all of its actors, in peek at least one."""
    own = own_cpus(experiment)
    wanted = own + experiment.actors * experiment.actor_threads
    least = wanted if experiment.schedule == "lockstep" else own + experiment.actor_threads
    gpus = 1 if experiment.device.startswith("cuda") else 0
    needs = f"with {experiment.actor_threads} threads each, and {own} CPUs for learner and evaluation"
    return Demand(least, wanted, gpus, experiment.actors, needs)


class _NoAnswer(RuntimeError):
    """Says that the learner has not answered for too long."""


def answer(reference: Any, patience: float, stop: Stop, say: Callable[[str], None]) -> Any:
    """Wait for the learner's answer for `patience` seconds, or less once the run is to end.

    Raises:
        _NoAnswer: nothing came.
        RayActorError: its process was lost.
        ClusterLost: Ray itself was, and with it the answer.
    """
    since = time.monotonic()
    is_said = False
    asked: float | None = None
    while not ray.wait([reference], timeout=0.5)[0]:
        lost = ray_watch.lost()
        if lost is not None and not lost.lets_processes_finish:
            raise lost
        now = time.monotonic()
        if stop.signal_name is not None and asked is None:
            asked = now
        end = since + patience if asked is None else min(since + patience, asked + _SECONDS_OF_SILENCE_AT_THE_END)
        if now > end:
            raise _NoAnswer(f"no answer for {now - since:.0f} s")
        if asked is not None and now > since + _SECONDS_UNTIL_SAID and not is_said:
            say(f"{stop.signal_name}: the learner does not answer; the run ends without it in {end - now:.0f} s")
            is_said = True
    return ray.get(reference)


class Supervisor:
    """Everything of a run that outlives its learner."""

    def __init__(
        self,
        experiment: BaseExperiment,
        spec: EnvironmentSpec,
        make: MakeActor,
        say: Callable[[str], None],
        stop: Stop,
    ):
        """Wait for the resources that must be there together.

        Args:
            experiment: the run.
            spec: of its environment.
            make: the `Actor` of a setup.
            say: told what is waited for.
            stop: whether somebody wants the run to end, which ends the waiting.

        Raises:
            ConfigurationError: they were not free in time; nothing was started.
        """
        self._experiment = experiment
        self._spec = spec
        self._make = make
        has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        self._gpus = 1 if experiment.device.startswith("cuda") or (experiment.device == "auto" and has_gpu) else 0
        self._group = self._reserve(say, stop)
        self._handles = create(experiment.actors, experiment.actor_threads, self._group)

    def _reserve(self, say: Callable[[str], None], stop: Stop) -> PlacementGroup:
        """Room for one actor and for learner and evaluator, which no other actor takes, not even when they die.

        All at once: of two runs that wait, none holds what the other one needs.
        """
        experiment = self._experiment
        bundles: list[dict[str, float]] = [{"CPU": experiment.actor_threads}, {"CPU": experiment.learner_cpus}]
        if self._gpus:
            bundles[LEARNERS_BUNDLE]["GPU"] = 1
        if experiment.evaluation.every:
            bundles.append({"CPU": 1})
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(_SECONDS_TO_PLACE):
            try:
                self._wait(group, needs_of(bundles), say, stop)
            except BaseException:
                remove_placement_group(group)
                raise
        return group

    def _wait(self, group: PlacementGroup, needs: str, say: Callable[[str], None], stop: Stop) -> None:
        limit = self._experiment.resolved_wait_for_resources
        say(f"waiting for {needs}, at most {limit:g} s (--wait-for-resources): {free_resources()}")
        deadline = time.monotonic() + limit - _SECONDS_TO_PLACE
        while not group.wait(_SECONDS_BETWEEN_LOOKS):
            if (lost := ray_watch.lost()) is not None:
                raise lost
            if stop.signal_name is not None:
                return
            if time.monotonic() > deadline:
                rule = f"in that time the cluster had no room for {needs}: {free_resources()}"
                remedy = "add nodes, wait for other runs to end, or wait longer"
                require(False, "wait_for_resources", limit, rule, remedy)
        say("found room; starting")

    def evaluator(self, report: Callable[[str], None]) -> RayEvaluator | None:
        """The one that plays beside training, if any does."""
        if not self._experiment.evaluation.every:
            return None
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=LEARNERS_BUNDLE + 1)
        options = {"num_cpus": 1, "scheduling_strategy": strategy}
        return RayEvaluator(self._experiment, self._spec, options, report)

    def close(self) -> None:
        """End all processes."""
        if ray_watch.lost() is not None:  # Ray would try to reach what is gone, for a minute; they end with its node
            return
        for handle in self._handles:
            ray.kill(handle)
        remove_placement_group(self._group)  # and with it learner and evaluator

    def run(
        self,
        newest_checkpoint: Callable[[], dict[str, Any] | None],
        open_reports: OpenReports,
        stop: Stop,
    ) -> dict[str, Any]:
        """Train to the end, over as many lives of the learner as are allowed.

        Args:
            newest_checkpoint: content of the newest readable one; None: there is none.
            open_reports: where a life that begins there reports to.
            stop: whether somebody wants the run to end.

        Raises:
            LearnerLost: the learner died more often than it may.
            ClusterLost: Ray itself ended; what the learner could still bring is written.
            Exception: whatever ended the learner, with its own traceback.
        """
        life = 0
        while True:
            checkpoint = newest_checkpoint()
            with open_reports(start_at(checkpoint)) as reports:
                assignment = Assignment(experiment=self._experiment, spec=self._spec, checkpoint=checkpoint, life=life)
                try:
                    return self._follow(assignment, reports, stop)
                except (RayActorError, _NoAnswer) as error:
                    if (lost := ray_watch.lost()) is not None:
                        raise lost from error
                    reason = first_line(error)
                    life += 1
                    if life > self._experiment.learner_restarts or stop.signal_name is not None:
                        raise LearnerLost(
                            f"the learner's process was lost ({reason}); continue with --resume, or have it started "
                            "again by itself with --learner-restarts 3"
                        ) from error
                    reports.learner_restarted(reason)

    def _follow(self, assignment: Assignment, reports: DriverReports, stop: Stop) -> dict[str, Any]:
        """One life: say what it says, until it ends."""
        learner = start_learner(self._group, self._experiment.learner_cpus, self._gpus)
        patience = max(_SECONDS_OF_SILENCE, self._experiment.faults.rollout_seconds)
        try:
            running = learner.run.remote(assignment, self._handles, self._make)
            is_told = False
            while not ray.wait([running], timeout=0)[0]:
                if stop.signal_name is not None and not is_told:
                    learner.stop.remote(stop.signal_name)
                    is_told = True
                    reports.say(f"{stop.signal_name}: the run ends after the update at hand, with a checkpoint")
                replay(answer(learner.fetch.remote(0.5), patience, stop, reports.say), reports)
                reports.write_evaluations()
                if (lost := ray_watch.lost()) is not None:
                    if lost.lets_processes_finish:
                        self._save_what_can_be(learner, running, reports, stop, lost)
                    raise lost
            replay(answer(learner.fetch.remote(0.0), patience, stop, reports.say), reports)
            with original_traceback():
                summary: dict[str, Any] = ray.get(running)
            return summary
        finally:
            if ray_watch.lost() is None:
                ray.kill(learner)

    def _save_what_can_be(
        self, learner: Any, running: Any, reports: DriverReports, stop: Stop, lost: ray_watch.ClusterLost
    ) -> None:
        """A checkpoint of the update at hand, while learner and driver can still talk to each other."""
        reports.say(f"{lost.what}: the run ends, with a checkpoint where that is still possible")
        learner.stop.remote("the end of the cluster")
        deadline = time.monotonic() + _SECONDS_TO_FINISH
        try:
            is_over = False
            while not is_over and (left := deadline - time.monotonic()) > 0:
                is_over = bool(ray.wait([running], timeout=0)[0])  # then what it says next is its last
                replay(answer(learner.fetch.remote(0.5), left, stop, reports.say), reports)
        except (RayError, _NoAnswer) as error:
            reports.say(f"the learner cannot be reached either ({first_line(error)})")


def needs_of(bundles: list[dict[str, float]]) -> str:
    """Resources that must be free together, in words."""
    cpus = " + ".join(f"{bundle['CPU']:g}" for bundle in bundles)
    has_gpu = any(bundle.get("GPU") for bundle in bundles)
    return f"{cpus} CPUs (an actor, the learner{', the evaluator' if len(bundles) > 2 else ''})" + (
        " and a GPU beside the learner's" if has_gpu else ""
    )
