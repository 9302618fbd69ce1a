"""Start a run, supervise it, shut it down: configuration in, summary out.

Experiment ─► algorithm, actors ─► Training.run ─► summary.json
                                 │  schedule.sample(snapshot v, j) ─► actors ─► Trajectory [T, B]
                                 └─ algorithm.update: θ, η ─► θ', η' ─► snapshot v+1
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.rollout import Actor, ActorSetup, ActorState, probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import require_room_here
from metagrad.cluster.launch.driver_reports import DriverReports, driver_reports
from metagrad.cluster.on_ray.address import cluster_address
from metagrad.cluster.on_ray.evaluator import Evaluator, InlineEvaluator
from metagrad.cluster.run.checkpoint_parts import restore
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.learning import Assignment, actor_setups, learn, resolve_device, set_precision
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.stop import StopRequest
from metagrad.cluster.run.train import Start, start_at, summary_before
from metagrad.cluster.run.transport import Actors, ColocatedActors
from metagrad.errors import ConfigurationError, RunLost, require
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.checkpoint import Restored
from metagrad.learner.storage import CannotWrite, Location

if TYPE_CHECKING:
    from metagrad.cluster.on_ray.metrics import RayMetrics  # imports Ray, which a colocated run does without

__all__ = ["actor_setups", "default_run_dir", "resolve_device", "run"]


@contextmanager
def _opened(
    folder: RunFolder,
    experiment: BaseExperiment,
    algorithm: Algorithm[Any],
    is_resumed: bool,
    report: Callable[[str], None],
) -> Iterator[Restored | None]:
    """The run's folder, with the checkpoint to continue from; a new one is given back if nothing came of the run."""
    with folder.held():
        if is_resumed:
            folder.require_same(experiment)  # before a checkpoint can be said to be another run's
            restored = restore(folder, experiment, algorithm, report) if folder.has_checkpoint() else None
            folder.open_resumed(experiment)
            yield restored
            return
        folder.open_new(experiment)
        try:
            yield None
        except (CannotWrite, RunLost):  # their remedy is --resume, at whatever update
            raise
        except BaseException:  # a cluster that is too small or not there shows itself only now
            folder.withdraw_unbegun()
            raise


def _check_device(experiment: BaseExperiment) -> None:
    """Refuse a device that cannot be; whether a cluster has it shows itself there."""
    if experiment.topology == "colocated" or cluster_address() is None:
        set_precision(experiment.allows_tf32, resolve_device(experiment.device))
        return
    rule = "on a cluster the learner has one GPU or none"
    is_known = experiment.device in ("auto", "cpu", "cuda")
    require(is_known, "device", experiment.device, rule, "use auto, cpu or cuda")


def run(
    experiment: BaseExperiment,
    run_dir: str | Location,
    is_resumed: bool,
    console: Console,
    make: Callable[[ActorSetup], Actor] = Actor,
) -> dict[str, Any]:
    """Train one experiment in one folder; returns the summary that is also written there.

    Raises:
        ConfigurationError: before anything starts.
        Exception: whatever ended the run, unchanged; summary.json and checkpoints up to then stand.
    """
    _check_device(experiment)
    spec = probe(experiment.env)
    if experiment.topology == "colocated" or cluster_address() is None:
        require_room_here(experiment, spec, experiment.parameters(spec))
    algorithm = experiment.algorithm(spec)
    folder = RunFolder(run_dir)
    with (
        StopRequest() as stop,
        Progress(console, experiment.updates) as progress,
        _opened(folder, experiment, algorithm, is_resumed, progress.say) as restored,
    ):
        progress.say(f"run folder: {run_dir}")
        progress.begin(f"starting {experiment.actors} actors ({experiment.topology})")
        if restored is not None:
            progress.say(f"resumed from {restored.path} at update {restored.tree['learner']['update']}")
        elif is_resumed:
            progress.say("this run has no checkpoint yet: it begins at update 0")
        this_run = _Run(experiment, spec, algorithm, folder, progress, stop)
        train = this_run.colocated if experiment.topology == "colocated" else this_run.on_ray
        try:
            if not this_run.is_stopped_before(restored):
                train(restored, make)
        except ConfigurationError:  # refused where it was to run: nothing was done
            raise
        except BaseException:
            if this_run.summary.get("updates"):
                with suppress(CannotWrite):  # what ended the run is what has to be told
                    folder.write_summary(this_run.summary)
            raise
        folder.write_summary(this_run.summary)
        summary = this_run.summary
        if stop.signal_name is not None and summary["updates"] < experiment.updates:
            progress.say(f"stopped by {stop.signal_name} at update {summary['updates']}; continue with --resume")
    return summary


class _Run:
    """Runs once with its folder held: in one of the two topologies, with the newest summary."""

    def __init__(
        self,
        experiment: BaseExperiment,
        spec: EnvironmentSpec,
        algorithm: Algorithm[Any],
        folder: RunFolder,
        progress: Progress,
        stop: StopRequest,
    ):
        self.summary: dict[str, Any] = {}
        self._experiment, self._spec, self._algorithm = experiment, spec, algorithm
        self._folder, self._progress, self._stop = folder, progress, stop

    @contextmanager
    def _reports(
        self, start: Start, evaluator: Evaluator, metrics: "RayMetrics | None" = None
    ) -> Iterator[DriverReports]:
        experiment, folder, progress = self._experiment, self._folder, self._progress
        with driver_reports(experiment, folder, progress, start, evaluator, metrics) as reports:
            try:
                yield reports
            finally:
                self.summary = reports.newest_summary or self.summary

    def colocated(self, restored: Restored | None, make: Callable[[ActorSetup], Actor]) -> None:
        """Run everything in this process; Ray is not imported."""
        experiment = self._experiment
        rollouts_per_batch = experiment.environments // experiment.environments_of_an_actor

        @contextmanager
        def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
            actors = ColocatedActors(setups, states, rollouts_per_batch, make)
            try:
                yield actors
            finally:
                actors.close()

        tree = None if restored is None else restored.tree
        assignment = Assignment(experiment=experiment, spec=self._spec, checkpoint=tree)
        with self._reports(start_at(tree), self._inline_evaluator()) as reports:
            learn(assignment, open_actors, reports, self._stop)

    def _inline_evaluator(self) -> InlineEvaluator:
        return InlineEvaluator(self._experiment, self._spec, self._stop, self._progress.say)

    def on_ray(self, restored: Restored | None, make: Callable[[ActorSetup], Actor]) -> None:
        """Run learner and actors as Ray actors; a learner that dies continues from the newest checkpoint."""
        from metagrad.cluster.launch.supervise import Supervisor, demand
        from metagrad.cluster.on_ray.metrics import RayMetrics
        from metagrad.cluster.on_ray.session import ray_session

        tree = None if restored is None else restored.tree
        first = [tree]

        def newest_checkpoint() -> dict[str, Any] | None:
            if first:
                return first.pop()
            if not self._folder.has_checkpoint():  # it died before the first one
                return None
            return restore(self._folder, self._experiment, self._algorithm, self._progress.say).tree

        with ray_session(demand(self._experiment)):
            if self.is_stopped_before(restored):  # while Ray started
                return
            supervisor = Supervisor(self._experiment, self._spec, make, self._progress.say, self._stop)
            try:
                if self.is_stopped_before(restored):  # while it waited for resources
                    return
                evaluator = supervisor.evaluator(self._progress.say) or self._inline_evaluator()
                metrics = RayMetrics(self._experiment.name, self._folder.path.name)
                supervisor.run(newest_checkpoint, lambda start: self._reports(start, evaluator, metrics), self._stop)
                self._finish_evaluations(evaluator)
            finally:
                supervisor.close()

    def is_stopped_before(self, restored: Restored | None) -> bool:
        """Check whether the run should end before it has started; the summary is then that of before."""
        if self._stop.signal_name is None:
            return False
        summary = summary_before(self._experiment, self._algorithm, None if restored is None else restored.tree)
        self.summary = summary | {"stopped_by": self._stop.signal_name}
        return True

    def _finish_evaluations(self, evaluator: Evaluator) -> None:
        """The last ones outlast the training; a signal ends the waiting."""
        updates = self.summary["updates"]
        with self._reports(Start(updates, updates), evaluator) as reports:
            while evaluator.pending and self._stop.signal_name is None:
                reports.write_evaluations(seconds=0.5)
            if evaluator.pending:
                reports.say(f"{evaluator.pending} evaluations had not ended and are left out")


def default_run_dir(experiment: BaseExperiment) -> Path:
    """runs/<experiment>-seed<seed>-<time>-<random>: runs that begin in the same second have folders of their own."""
    began = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{experiment.name}-seed{experiment.seed}-{began}"
