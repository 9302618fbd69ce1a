"""The training loop: sample, update, log, checkpoint, until the updates are done or somebody asks to stop."""

import time
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.reports import Reports
from metagrad.cluster.run.stop import Stop
from metagrad.cluster.run.transport import Account, Actors
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.batch import merge
from metagrad.learner.metrics import EpisodeWindow, IntervalMean, RunningVariance
from metagrad.learner.schedule import Batch, Lockstep, Peek
from metagrad.types import Rollout, WeightSnapshot

_EPISODES_IN_MEAN = 512
CHECKPOINT_PARTS = ("device", "learner", "actors", "counters", "account", "episodes", "window")


class Counters(NamedTuple):
    """What a run has used so far, over all its resumptions; frames are environment steps that were not resets."""

    frames_real: int = 0
    frames_lookahead: int = 0
    wall_seconds: float = 0.0


class Interval(NamedTuple):
    """What there is of the interval between two rows, beside the means."""

    frames_real: int = 0
    frames_lookahead: int = 0
    seconds: float = 0.0


class _NoActors(NamedTuple):
    """Of a run that has not started: their account alone."""

    account: Account


Evaluation = Literal["none", "done", "due"]  # of the newest update


class Start(NamedTuple):
    """Where a run begins or goes on."""

    update: int = 0
    last_row: int = 0
    """The last update whose rows stand; those of later ones are taken back."""


def start_at(checkpoint: dict[str, Any] | None) -> Start:
    """Where a run goes on with this checkpoint.

    The row that its end left of a part of an interval is taken back: the run that goes on has none there.
    """
    if checkpoint is None:
        return Start()
    update: int = checkpoint["learner"]["update"]
    is_row_partial = checkpoint.get("interval", {}).get("is_row_partial", False)
    return Start(update, update - 1 if is_row_partial else update)


def summary_before(
    experiment: BaseExperiment, algorithm: Algorithm[Any], checkpoint: dict[str, Any] | None
) -> dict[str, Any]:
    """Content of summary.json of a run that was stopped before it went on from here."""
    device = torch.device("cpu")
    if checkpoint is None:
        state = algorithm.init(experiment.seed, device)
    else:
        state = algorithm.from_tree(checkpoint["learner"], device)
    actors: Any = _NoActors(Account())
    reports: Any = None
    training = Training(experiment, algorithm, state, actors, reports)
    if checkpoint is not None:
        training.load(checkpoint)
    return training.summary()


class Training:
    """One run in progress. `run` is the loop; everything it changes is an attribute here."""

    def __init__(
        self,
        experiment: BaseExperiment,
        algorithm: Algorithm[Any],
        state: Any,
        actors: Actors,
        reports: Reports,
    ):
        self.experiment = experiment
        self.algorithm = algorithm
        self.state = state
        self.actors = actors
        self.counters = Counters()
        self.episodes = EpisodeWindow(_EPISODES_IN_MEAN)
        self._reports = reports
        self._means = IntervalMean()
        self._variance = RunningVariance()
        self._frames: list[tuple[Tensor, bool]] = []
        self._lags: list[int] = []
        self._interval = Interval()
        self._is_row_partial = False  # True: the last row, at this very update, is of a part of an interval
        self._evaluation: Evaluation = "none"
        self.schedule: Lockstep | Peek = Lockstep(self._ask)
        if experiment.schedule == "peek":
            self.schedule = Peek(
                self._stream, 1 + experiment.look_ahead_batches, experiment.resolved_max_lag, state.update
            )

    def load(self, tree: dict[str, Any]) -> None:
        """Continue from a checkpoint's content; the states of learner and actors in it went to those already."""
        self.counters = Counters(**tree["counters"])
        self.episodes.load_tree(tree["episodes"])
        if "interval" in tree:  # older checkpoints begin a new one
            self._load_interval(tree["interval"])
        account = self.actors.account
        account.load_tree(tree["account"])
        if isinstance(self.schedule, Peek):
            self.schedule.load_tree(tree["window"], self.state.theta.device)
        never_coming = account.in_flight - self._held_batches() * self.experiment.steps_per_rollout
        if never_coming:
            account.drop(never_coming, "run was stopped")

    def run(self, stop: Stop) -> None:
        """Train until done or asked to stop; ends on a checkpoint of the last whole update."""
        started = since = time.monotonic()
        wall_before = self.counters.wall_seconds
        saved_at = logged_at = self.state.update
        every, log_every = self.experiment.checkpoint.every, self.experiment.log_every
        is_taken_back = self._evaluation == "done" and self._is_row_partial  # with the row, all of whose update goes
        if (self._evaluation == "due" or is_taken_back) and self.state.update < self.experiment.updates:
            self._evaluate(stop)
        while self.state.update < self.experiment.updates and stop.signal_name is None:
            self._is_row_partial = False
            update_before, held_before, counters_before = self.state.update, self._held_batches(), self.counters
            self.state, metrics = self.algorithm.update(self.state, self.schedule.sample)
            used = held_before + len(self._frames) - self._held_batches()
            self.actors.account.consume(used * self.experiment.steps_per_rollout)
            self._lags.extend(self.schedule.lag)
            self._count_frames()
            self._means.add(metrics.scalars)
            if metrics.meta_gradient:
                self._variance.add(metrics.meta_gradient)
            now = time.monotonic()
            self.counters = self.counters._replace(wall_seconds=wall_before + now - started)
            self._count_interval(counters_before, now - since)
            since = now
            if self.state.update // log_every > logged_at // log_every:
                self._log()
                self._begin_interval()
                logged_at = self.state.update
            self._evaluation = "none"
            evaluation_every = self.experiment.evaluation.every
            if evaluation_every and self.state.update // evaluation_every > update_before // evaluation_every:
                self._evaluate(stop)
            is_last = self.state.update >= self.experiment.updates or stop.signal_name is not None
            if self.state.update // every > saved_at // every and not is_last:
                self.save()
                saved_at = self.state.update
        self._finish(stop)
        self.save()

    def _finish(self, stop: Stop) -> None:
        """Say the rest: at the end a row of what is left of an interval; a run that is stopped goes on in it."""
        if stop.signal_name is None and self._evaluation == "due":
            self._evaluate(stop)
        if not self._interval.seconds:
            return
        if stop.signal_name is not None:
            self._report_progress()
        elif not self._is_row_partial:
            self._log()
            self._is_row_partial = True

    def _ask(self, snapshot: WeightSnapshot, lookahead_step: int) -> Batch:
        return self._received(self.actors.sample(snapshot, lookahead_step), snapshot.version, lookahead_step > 0)

    def _stream(self, snapshot: WeightSnapshot, oldest: int) -> Batch:
        return self._received(self.actors.stream(snapshot, oldest), None, False)

    def _received(self, rollouts: list[Rollout], version: int | None, is_lookahead: bool) -> Batch:
        for rollout in rollouts:
            self.episodes.add(rollout.episodes.returns.tolist(), rollout.episodes.lengths.tolist())
        batch = merge(rollouts, version, self.state.theta.device)
        self._frames.append((batch.trajectory.valid.sum(), is_lookahead))
        return batch

    def _held_batches(self) -> int:
        """Batches that are here but not yet used: the schedule's, and the one that `sequential` carries over."""
        return self.schedule.held_batches + self.state.held_batches

    def _count_frames(self) -> None:
        real = sum(int(count) for count, is_lookahead in self._frames if not is_lookahead)
        lookahead = sum(int(count) for count, is_lookahead in self._frames if is_lookahead)
        self._frames.clear()
        self.counters = self.counters._replace(
            frames_real=self.counters.frames_real + real, frames_lookahead=self.counters.frames_lookahead + lookahead
        )

    def _evaluate(self, stop: Stop) -> None:
        self._reports.evaluate(self.state.theta, self.state.update)
        self._evaluation = "done" if stop.signal_name is None else "due"  # a signal may have cut it short

    def _count_interval(self, before: Counters, seconds: float) -> None:
        self._interval = Interval(
            self._interval.frames_real + self.counters.frames_real - before.frames_real,
            self._interval.frames_lookahead + self.counters.frames_lookahead - before.frames_lookahead,
            self._interval.seconds + seconds,
        )

    def _begin_interval(self) -> None:
        self._means.take()
        self._variance.take()
        self._lags = []
        self._interval = Interval()

    def _interval_tree(self) -> dict[str, Any]:
        return {
            "means": self._means.to_tree(),
            "variance": self._variance.to_tree(),
            "lags": list(self._lags),
            "throughput": self._interval._asdict(),
            "is_row_partial": self._is_row_partial,
            "evaluation": self._evaluation,
        }

    def _load_interval(self, tree: dict[str, Any]) -> None:
        self._means.load_tree(tree["means"])
        self._variance.load_tree(tree["variance"])
        self._lags = list(tree["lags"])
        self._interval = Interval(**tree["throughput"])
        self._is_row_partial = tree["is_row_partial"]
        self._evaluation = tree["evaluation"] if self.experiment.evaluation.every else "none"

    def _frames_per_second(self) -> tuple[float, float]:
        """Real and looked-ahead ones of this interval."""
        seconds = self._interval.seconds or 1.0  # 0: nothing was done in it
        return self._interval.frames_real / seconds, self._interval.frames_lookahead / seconds

    def _mean_lag(self) -> float:
        return sum(self._lags) / len(self._lags) if self._lags else 0.0

    def _log(self) -> None:
        scalars = self._means.means()
        real, lookahead = self._frames_per_second()
        statistics = self.episodes.statistics()
        account = self.actors.account
        scalars |= {
            "throughput/real_frames_per_second": real,
            "throughput/lookahead_frames_per_second": lookahead,
            "transport/lag_versions": self._mean_lag(),
            "transport/lag_max_versions": max(self._lags, default=0),
            "transport/in_flight_steps": account.in_flight,
            "transport/dropped_steps": account.dropped.total(),
            "transport/actors_restarted": account.actors_restarted,
        }
        variance = self._variance.variance()
        if variance is not None:
            scalars["meta_gradient/variance"] = variance
        if statistics.return_mean is not None:
            assert statistics.return_std is not None
            assert statistics.length_mean is not None
            scalars["episode/return_mean"] = statistics.return_mean
            scalars["episode/return_std"] = statistics.return_std
            scalars["episode/length_mean"] = statistics.length_mean
        self._reports.scalars(scalars, self.state.update)
        self._reports.lags(self._lags, self.state.update)
        self._report_progress()
        self._reports.summary(self.summary())

    def _report_progress(self) -> None:
        learnt, mean = self.algorithm.learnt(self.state), self.episodes.statistics().return_mean
        self._reports.progress(self.state.update, sum(self._frames_per_second()), mean, learnt, self._mean_lag())

    def save(self) -> None:
        """Have a checkpoint of the present state written."""
        tree = {
            "device": self.state.theta.device.type,
            "learner": self.algorithm.to_tree(self.state),
            "actors": self.actors.states(),
            "counters": self.counters._asdict(),
            "account": self.actors.account.to_tree(),
            "episodes": self.episodes.to_tree(),
            "window": self.schedule.to_tree(),
            "interval": self._interval_tree(),
        }
        self._reports.checkpoint(self.state.update, tree)

    def summary(self) -> dict[str, Any]:
        """Content of summary.json."""
        statistics = self.episodes.statistics()
        account = self.actors.account
        counters = self.counters
        frames = counters.frames_real + counters.frames_lookahead
        return {
            "experiment": self.experiment.name,
            "seed": self.experiment.seed,
            "updates": self.state.update,
            "frames_real": counters.frames_real,
            "frames_lookahead": counters.frames_lookahead,
            "frames_per_second": frames / counters.wall_seconds if counters.wall_seconds else 0.0,
            "return_mean": statistics.return_mean,
            "return_count": statistics.episodes,
            "eta": self.algorithm.shown(self.state),
            "sampled": account.sampled,
            "consumed": account.consumed,
            "dropped": account.dropped.total(),
            "dropped_reasons": dict(account.dropped),
            "in_flight": account.in_flight,
            "actors_restarted": account.actors_restarted,
            "wall_seconds": counters.wall_seconds,
            "torch": torch.__version__,
            "learner_device": str(self.state.theta.device),
        }
