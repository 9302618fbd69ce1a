"""Writes reports to where they end: TensorBoard, progress line, checkpoints, evaluations.

Only the driver writes any of it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

from torch import Tensor

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.on_ray.evaluator import CUT, Evaluator
from metagrad.cluster.run.events import EventLog
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.run_log import settings
from metagrad.cluster.run.run_logs import RunLogs
from metagrad.learner.reports import Candidate, Checkpoint, Lags, Message, Report, Row, Standing, Summary

if TYPE_CHECKING:
    from metagrad.cluster.on_ray.metrics import RayMetrics  # imports Ray, which a colocated run does without

_EVALUATIONS_WAITING = 4


class Start(NamedTuple):
    """Says where a life of a learner begins."""

    update: int = 0
    last_row: int = 0
    """The last update whose rows stand; those of later ones are taken back."""


def start_at(checkpoint: dict[str, Any] | None) -> Start:
    """Return where a run continues with this checkpoint.

    The row that its end left of a part of an interval is taken back: the run that continues has none there.
    """
    if checkpoint is None:
        return Start()
    update: int = checkpoint["learner"]["update"]
    is_row_partial = checkpoint.get("interval", {}).get("is_row_partial", False)
    return Start(update, update - 1 if is_row_partial else update)


class DriverReports:
    """Takes the reports of one life of a learner, into one run folder."""

    def __init__(
        self,
        experiment: BaseExperiment,
        folder: RunFolder,
        progress: Progress,
        start: Start,
        evaluator: Evaluator,
        logs: RunLogs,
        metrics: "RayMetrics | None",
    ):
        self._experiment = experiment
        self._folder = folder
        self._progress = progress
        self._start = start
        self._evaluator = evaluator
        self._logs = logs
        self._metrics = metrics
        self.files = ExitStack()  # open until this life is over
        self.newest_summary: dict[str, Any] = {}

    @cached_property
    def _events(self) -> EventLog:
        """Return the log of rows, which the first row begins, so that a run that never starts leaves nothing."""
        log = EventLog(self._folder.path, self._start.last_row, settings(self._experiment))
        return self.files.enter_context(log)

    def __call__(self, report: Report) -> None:
        """Write or show one report."""
        match report:
            case Message(text):
                self.say(text)
            case Standing():
                self._progress.show(*report, is_last=report.update >= self._experiment.updates)
            case Row(scalars, update):
                self._row(scalars, update)
            case Lags(versions, update):
                self._lags(versions, update)
            case Candidate(theta, update):
                self._evaluate(theta, update)
            case Checkpoint(update, tree):
                self._checkpoint(update, tree)
            case Summary(content):
                self.newest_summary = content
                if self._metrics is not None:
                    self._metrics.totals(content)
            case _:
                assert_never(report)

    def say(self, text: str) -> None:
        """Show a message above the progress line."""
        self._progress.say(text)

    def _row(self, scalars: dict[str, float], update: int) -> None:
        self._events.scalars(scalars, update)
        self._logs.scalars(scalars, update)
        if self._metrics is not None:
            self._metrics.record(scalars, update)

    def _lags(self, versions: list[int], update: int) -> None:
        if self._metrics is not None:
            self._metrics.lags(versions)
        if any(versions):  # in lockstep there is none to see
            self._events.histogram("transport/lag", versions, update)
            self._logs.histogram("transport/lag", versions, update)

    def _evaluate(self, theta: Tensor, update: int) -> None:
        """Queue parameters for the evaluator, a few at most; beyond that skip updates with a message."""
        if self._evaluator.pending >= _EVALUATIONS_WAITING:
            self.say(
                f"update {update} is not evaluated: {self._evaluator.pending} others still wait; raise evaluation.every"
            )
            return
        self._evaluator.submit(theta, update)
        self.write_evaluations()

    def write_evaluations(self, seconds: float = 0.0) -> None:
        """Write the scores of evaluations that have ended, after waiting at most this long for one."""
        for update, scores, gif in self._evaluator.finished(seconds):
            self._row(scores, update)
            if gif is not None:
                self._events.picture("evaluation/episode", gif, update)
                self._logs.picture("evaluation/episode", gif, update)
            line = f"evaluation at update {update}: return {scores['evaluation/return_mean']:.2f}"
            if CUT in scores:
                evaluation = self._experiment.evaluation
                line += f"; {scores[CUT]:.0f} of {evaluation.episodes} episodes had not ended after "
                line += f"{evaluation.max_steps} steps (evaluation.max_steps) and were cut"
            self.say(line)

    def learner_restarted(self, reason: str) -> None:
        """Say that this life is over and another begins."""
        self.say(f"learner: lost ({reason}); started again from the newest checkpoint, actors kept")
        if self._metrics is not None:
            self._metrics.learner_restarted()

    def _checkpoint(self, update: int, tree: dict[str, Any]) -> None:
        # A checkpoint never covers rows that are not there, nor, once there is a later one, rows that were taken back.
        if update > self._start.update or "_events" in vars(self):
            self._events.flush()
        self._folder.write_checkpoint(update, tree, self._experiment.checkpoint.keep)
        self._logs.covered(update)


@contextmanager
def driver_reports(
    experiment: BaseExperiment,
    folder: RunFolder,
    progress: Progress,
    start: Start,
    evaluator: Evaluator,
    logs: RunLogs,
    metrics: "RayMetrics | None" = None,
) -> Iterator[DriverReports]:
    """Open reports into a folder, to the run's other logs, and to Ray's metrics where there are any.

    Rows that an earlier life wrote after the start of this one are taken back, and evaluations that it asked for then
    are not waited for.
    """
    evaluator.withdraw(start.update)
    logs.take_back(start.update)
    reports = DriverReports(experiment, folder, progress, start, evaluator, logs, metrics)
    with reports.files:
        yield reports
        reports.write_evaluations()
