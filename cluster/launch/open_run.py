"""A run while it continues: its folder is held, its checkpoint read, its summary written at the end."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.rollout import ActorSetup, AnyActor, probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import require_room_here
from metagrad.cluster.launch.driver_reports import DriverReports, Start, driver_reports, start_at
from metagrad.cluster.on_ray.address import cluster_address
from metagrad.cluster.on_ray.evaluator import Evaluator, InlineEvaluator
from metagrad.cluster.run.checkpoint_parts import restore
from metagrad.cluster.run.colocated import colocated_actors
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.learning import (
    Assignment,
    prepared_training,
    require_actor_device,
    resolve_device,
    training_config,
)
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.run_log import run_facts
from metagrad.cluster.run.run_logs import RunLogs, openers, require_logs
from metagrad.cluster.run.stop import StopRequest
from metagrad.errors import ConfigurationError, RunLost, counted, require
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.checkpoint import Restored
from metagrad.learner.storage import CannotWrite, Location
from metagrad.learner.training import Training, summary_before

if TYPE_CHECKING:
    from metagrad.cluster.on_ray.metrics import RayMetrics  # imports Ray, which a colocated run does without


class OpenRun:
    """Holds what the process of `metagrad train` has of a run: its folder, its console, and the newest summary."""

    def __init__(
        self,
        experiment: BaseExperiment,
        spec: EnvironmentSpec,
        folder: RunFolder,
        progress: Progress,
        stop: StopRequest,
        checkpoint: dict[str, Any] | None,
        logs: RunLogs,
    ):
        self.experiment = experiment
        self.spec = spec
        self.folder = folder
        self.say = progress.say
        self.stop = stop
        self.checkpoint = checkpoint  # to continue from; None: a fresh run
        self.summary: dict[str, Any] = {}
        self._progress = progress
        self._logs = logs

    def is_stopped_before(self) -> bool:
        """Return True where the run is to end before it has started; the summary then is of what was done before."""
        if self.stop.signal_name is None:
            return False
        algorithm = self.experiment.algorithm(self.spec)
        summary = summary_before(training_config(self.experiment), algorithm, self.checkpoint)
        self.summary = summary | {"stopped_by": self.stop.signal_name}
        return True

    @contextmanager
    def reports(
        self, start: Start, evaluator: Evaluator, metrics: "RayMetrics | None" = None
    ) -> Iterator[DriverReports]:
        """Take the reports of one life of a learner."""
        what = (self.experiment, self.folder, self._progress, start, evaluator, self._logs, metrics)
        with driver_reports(*what) as reports:
            try:
                yield reports
            finally:
                self.summary = reports.newest_summary or self.summary

    @contextmanager
    def colocated_training(self, make: Callable[[ActorSetup], AnyActor]) -> Iterator[Training]:
        """Prepare a training in this process; Ray is not imported."""
        assignment = Assignment(experiment=self.experiment, spec=self.spec, checkpoint=self.checkpoint)
        open_actors = partial(colocated_actors, rollouts_per_batch=self.experiment.rollouts_per_batch, make=make)
        with (
            self.reports(start_at(self.checkpoint), self.inline_evaluator()) as reports,
            prepared_training(assignment, open_actors, reports, self.stop) as training,
        ):
            yield training

    def inline_evaluator(self) -> InlineEvaluator:
        """Return an evaluator that plays in this process."""
        return InlineEvaluator(self.experiment, self.spec, self.stop, self.say)

    def newest_checkpoint(self) -> dict[str, Any] | None:
        """Return the content of the newest readable checkpoint, for another life of the learner; None: there is none.

        Raises:
            RunLost: there are some, and none can be read.
        """
        if not self.folder.has_checkpoint():  # it died before the first one
            return None
        try:
            return restore(self.folder, self.experiment, self.experiment.algorithm(self.spec), self.say).tree
        except ConfigurationError as error:
            raise RunLost(f"the learner's process was lost and cannot go on: {error}") from error

    def finish_evaluations(self, evaluator: Evaluator) -> None:
        """Wait for the last ones, which outlast the training; a signal ends the waiting."""
        updates = self.summary["updates"]
        with self.reports(Start(updates, updates), evaluator) as reports:
            while evaluator.pending and self.stop.signal_name is None:
                reports.write_evaluations(seconds=0.5)
            if evaluator.pending:
                reports.say(f"{evaluator.pending} evaluations had not ended and are left out")


@contextmanager
def opened_run(
    experiment: BaseExperiment, run_dir: str | Location, is_resumed: bool, console: Console
) -> Iterator[OpenRun]:
    """Hold the run's folder and listen for signals; write the summary at the end, also of a run that fails.

    Raises:
        ConfigurationError: before anything starts.
        Exception: whatever ended the run, unchanged; summary.json and checkpoints up to then stand.
    """
    asked, experiment = experiment.precision, _on_its_device(experiment)
    require_logs(experiment.log)
    spec = probe(experiment.env)
    if experiment.evaluation.is_shown:
        experiment.env.make_pictured(experiment.seed).close()
    if _is_here(experiment):
        require_room_here(experiment, spec, experiment.parameters(spec))
    algorithm = experiment.algorithm(spec)
    folder = RunFolder(run_dir)
    with (
        StopRequest() as stop,
        Progress(console, experiment.updates) as progress,
        _opened(folder, experiment, algorithm, is_resumed, progress.say) as restored,
    ):
        progress.say(f"run folder: {run_dir}")
        if asked == "auto":
            progress.say(f"precision: {experiment.precision}, chosen for this machine")
        progress.begin(f"starting {counted(experiment.actors, 'actor')} ({experiment.topology})")
        if restored is not None:
            progress.say(f"resumed from {restored.path} at update {restored.tree['learner']['update']}")
        elif is_resumed:
            progress.say("this run has no checkpoint yet: it begins at update 0")
        checkpoint = None if restored is None else restored.tree
        logs = _logs(experiment, folder, start_at(checkpoint), progress.say)
        this_run = OpenRun(experiment, spec, folder, progress, stop, checkpoint, logs)
        try:
            with closing(logs):
                yield this_run
        except ConfigurationError:  # refused where it was to run: nothing was done
            raise
        except BaseException:
            if this_run.summary.get("updates"):
                with suppress(CannotWrite):  # what ended the run is what has to be told
                    folder.write_summary(this_run.summary)
            raise
        folder.write_summary(this_run.summary)
        updates = this_run.summary["updates"]
        if stop.signal_name is not None and updates < experiment.updates:
            progress.say(f"stopped by {stop.signal_name} at update {updates}; continue with --resume")


def _logs(experiment: BaseExperiment, folder: RunFolder, start: Start, say: Callable[[str], None]) -> RunLogs:
    """Return the logs of --log; of a run whose last row is taken back, an earlier process has passed that row on."""
    done = start.update if start.last_row < start.update else -1
    return RunLogs(openers(experiment.log, partial(run_facts, experiment, folder)), say, done, start.update)


@contextmanager
def _opened(
    folder: RunFolder,
    experiment: BaseExperiment,
    algorithm: Algorithm[Any],
    is_resumed: bool,
    report: Callable[[str], None],
) -> Iterator[Restored | None]:
    """Hold the folder and read its checkpoint; give a new folder back if nothing came of the run."""
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


def _is_here(experiment: BaseExperiment) -> bool:
    """True where the learner runs on this machine."""
    return experiment.topology == "colocated" or cluster_address() is None


def _on_its_device(experiment: BaseExperiment) -> BaseExperiment:
    """Return the experiment with its precision settled.

    Raises:
        ConfigurationError: a device or precision that cannot be; what a cluster has shows itself there.
    """
    if _is_here(experiment):
        device = resolve_device(experiment.device)
        require_actor_device(experiment, device)
        return experiment.settled(device)
    rule = "on a cluster the learner has one GPU or none"
    is_known = experiment.device in ("auto", "cpu", "cuda")
    require(is_known, "device", experiment.device, rule, "use auto, cpu or cuda")
    rule = "asks the hardware of this machine, and the learner runs on the cluster's"
    is_settled = experiment.precision != "auto"
    require(is_settled, "precision", experiment.precision, rule, "name one, such as bf16-mixed")
    return experiment
