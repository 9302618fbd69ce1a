"""Reports where they end: TensorBoard, progress line, checkpoints, evaluations. The driver alone writes any of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.on_ray.evaluator import CUT, Evaluator
from metagrad.cluster.run.events import EventLog
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.train import Start

if TYPE_CHECKING:
    from metagrad.cluster.on_ray.metrics import RayMetrics  # imports Ray, which a colocated run does without

_EVALUATIONS_WAITING = 4


class DriverReports:
    """`Reports` of one life of a learner, into one run folder."""

    def __init__(
        self,
        experiment: BaseExperiment,
        folder: RunFolder,
        progress: Progress,
        start: Start,
        evaluator: Evaluator,
        metrics: "RayMetrics | None",
        files: ExitStack,
    ):
        self._experiment = experiment
        self._folder = folder
        self._progress = progress
        self._start = start
        self._evaluator = evaluator
        self._metrics = metrics
        self._open = files
        self.newest_summary: dict[str, Any] = {}

    @cached_property
    def _events(self) -> EventLog:
        """Begun with the first row, so that a run that never starts leaves nothing."""
        return self._open.enter_context(EventLog(self._folder.path, self._start.last_row))

    def say(self, message: str) -> None:
        self._progress.say(message)

    def progress(self, update: int, speed: float, return_mean: float | None, eta: dict[str, float], lag: float) -> None:
        is_last = update >= self._experiment.updates
        self._progress.show(update, speed, return_mean, eta, lag, is_last)

    def scalars(self, values: dict[str, float], update: int) -> None:
        self._events.scalars(values, update)
        if self._metrics is not None:
            self._metrics.record(values, update)

    def lags(self, versions: list[int], update: int) -> None:
        if self._metrics is not None:
            self._metrics.lags(versions)
        if any(versions):  # in lockstep there is none to see
            self._events.histogram("transport/lag", versions, update)

    def evaluate(self, theta: Tensor, update: int) -> None:
        """Queue parameters for the evaluator, a few at most; beyond that skip updates with a message."""
        if self._evaluator.pending >= _EVALUATIONS_WAITING:
            self.say(
                f"update {update} is not evaluated: {self._evaluator.pending} others still wait; raise evaluation.every"
            )
            return
        self._evaluator.submit(theta, update)
        self.write_evaluations()

    def write_evaluations(self, seconds: float = 0.0) -> None:
        """Scores of evaluations that have ended."""
        for update, scores in self._evaluator.finished(seconds):
            self.scalars(scores, update)
            line = f"evaluation at update {update}: return {scores['evaluation/return_mean']:.2f}"
            if CUT in scores:
                evaluation = self._experiment.evaluation
                line += f"; {scores[CUT]:.0f} of {evaluation.episodes} episodes had not ended after "
                line += f"{evaluation.max_steps} steps (evaluation.max_steps) and were cut"
            self.say(line)

    def learner_restarted(self, reason: str) -> None:
        """This life is over, and another begins."""
        self.say(f"learner: lost ({reason}); started again from the newest checkpoint, actors kept")
        if self._metrics is not None:
            self._metrics.learner_restarted()

    def checkpoint(self, update: int, tree: dict[str, Any]) -> None:
        # A checkpoint never covers rows that are not there, nor, once there is a later one, rows that were taken back.
        if update > self._start.update or "_events" in vars(self):
            self._events.flush()
        self._folder.write_checkpoint(update, tree, self._experiment.checkpoint.keep)

    def summary(self, tree: dict[str, Any]) -> None:
        self.newest_summary = tree
        if self._metrics is not None:
            self._metrics.totals(tree)


@contextmanager
def driver_reports(
    experiment: BaseExperiment,
    folder: RunFolder,
    progress: Progress,
    start: Start,
    evaluator: Evaluator,
    metrics: "RayMetrics | None" = None,
) -> Iterator[DriverReports]:
    """Reports into a folder, and to Ray's metrics where there are any.

    Rows that an earlier life wrote after the start of this one are taken back, and evaluations that it asked for then
    are not waited for.
    """
    evaluator.withdraw(start.update)
    with ExitStack() as files:
        reports = DriverReports(experiment, folder, progress, start, evaluator, metrics, files)
        yield reports
        reports.write_evaluations()
