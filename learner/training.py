"""Trains: samples, updates, logs and writes checkpoints until the updates are done or a stop is requested.

It is given an algorithm, actors, a schedule made of them and a function that takes its reports, and knows nothing of
experiments, processes or files.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from metagrad.learner.actors import Account, Actors
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.reports import Candidate, Checkpoint, Lags, Reporter, Row, Standing, Summary
from metagrad.learner.schedule import Schedule
from metagrad.learner.tally import Tally
from metagrad.learner.team import ALONE, Stop, Team
from metagrad.precision import Precision

CHECKPOINT_PARTS = ("device", "learner", "actors", "counters", "account", "episodes", "window")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Says for how long a loop trains and how often it reports."""

    name: str
    """The experiment's, for the summary."""
    seed: int
    """For the summary."""
    updates: int
    """Real inner updates to train for."""
    steps_per_batch: int
    """Environment steps of one batch, T times B."""
    log_every: int
    """Updates between two rows of scalars."""
    checkpoint_every: int
    """Updates between checkpoints; one is also written at the end."""
    evaluation_every: int = 0
    """Updates between evaluations; 0: none."""
    precision: Precision = "float32"
    """For checkpoints and the summary."""
    own_steps_per_batch: int | None = None
    """Says how many steps of a batch this learner takes; None: all of them."""


class Training:
    """Runs one training: `run` is the loop, and everything that it changes is an attribute here."""

    def __init__(
        self,
        config: TrainingConfig,
        algorithm: Algorithm[Any],
        state: Any,
        actors: Actors,
        schedule: Schedule,
        report: Reporter,
        team: Team = ALONE,
    ):
        """Train as one of a team of learners, all of which make the same calls."""
        self.config = config
        self.algorithm = algorithm
        self.state = state
        self.actors = actors
        self.schedule = schedule
        self.tally = Tally()
        self._report = report
        self._team = team
        self._account = actors.account  # of all learners, as of the last row or checkpoint

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint's content; the states of learner and actors in it went to those already."""
        self.schedule.load_tree(checkpoint["window"])
        held = self._held_batches() if self._team.rank == 0 else 0  # the first learner goes on with all accounts
        _load(checkpoint, self.config, self.tally, self.actors.account, held)

    def run(self, stop: Stop) -> None:
        """Train until done or asked to stop; end on a checkpoint of the last whole update."""
        config, tally, since = self.config, self.tally, time.monotonic()
        own_steps = config.steps_per_batch if config.own_steps_per_batch is None else config.own_steps_per_batch
        stop = self._team.agreeing(stop)
        is_taken_back = tally.evaluation == "done" and tally.is_row_partial  # with the row, all of whose update goes
        if (tally.evaluation == "due" or is_taken_back) and self.state.update < config.updates:
            self._evaluate(stop)
        while self.state.update < config.updates and stop.signal_name is None:
            before, held = self.state.update, self._held_batches()
            self.state, metrics = self.algorithm.update(self.state, self.schedule.sample)
            received = self.schedule.take_received()
            used = held + len(received) - self._held_batches()
            self.actors.account.consume(used * own_steps)
            tally.count(*self._team.exchange(received, self.schedule.lag), metrics)
            now = time.monotonic()
            tally.count_seconds(now - since)
            since = now
            if self._passes(config.log_every, before):
                self._log()
                tally.begin_interval()
            if self._passes(config.evaluation_every, before):
                self._evaluate(stop)
            is_last = self.state.update >= config.updates or stop.signal_name is not None
            if self._passes(config.checkpoint_every, before) and not is_last:
                self.save()
        self._finish(stop)
        self.save()

    def _passes(self, every: int, before: int) -> bool:
        """True where the updates since `before` have passed a multiple of `every`; 0 has none."""
        return every > 0 and self.state.update // every > before // every

    def _held_batches(self) -> int:
        """Count the batches that are here but not yet used: the schedule's, and those in the state."""
        held: int = self.schedule.held_batches + self.state.held_batches
        return held

    def _finish(self, stop: Stop) -> None:
        """Say the rest: at the end a row of what is left of an interval; a run that is stopped continues in it."""
        if stop.signal_name is None and self.tally.evaluation == "due":
            self._evaluate(stop)
        if not self.tally.interval.seconds:
            return
        if stop.signal_name is not None:
            self._report_standing()
        elif not self.tally.is_row_partial:
            self._log()
            self.tally.is_row_partial = True

    def _evaluate(self, stop: Stop) -> None:
        self._report(Candidate(self.state.theta, self.state.update))
        self.tally.evaluation = "done" if stop.signal_name is None else "due"  # a signal may have cut it short

    def _log(self) -> None:
        update = self.state.update
        self._account = self._team.account(self.actors.account)
        self._report(Row(self.tally.row(self._account), update))
        self._report(Lags(self.tally.lags, update))
        self._report_standing()
        self._report(Summary(self.summary()))

    def _report_standing(self) -> None:
        tally = self.tally
        mean, learnt = tally.episodes.statistics().return_mean, self.algorithm.learnt(self.state)
        self._report(Standing(self.state.update, sum(tally.frames_per_second), mean, learnt, tally.mean_lag))

    def save(self) -> None:
        """Have a checkpoint of the present state written."""
        self._account = self._team.account(self.actors.account)
        own = {
            "device": self.state.theta.device.type,
            "precision": self.config.precision,
            "learner": self.algorithm.to_tree(self.state),
            "actors": self.actors.states(),
            "account": self._account.to_tree(),
            "window": self.schedule.to_tree(),
        }
        tree = self._team.checkpoint(own)
        self._report(Checkpoint(self.state.update, tree | self.tally.to_tree()))

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json as of now."""
        return _summary(self.config, self.algorithm, self.state, self.tally, self._account)


def summary_before(
    config: TrainingConfig, algorithm: Algorithm[Any], checkpoint: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the content of summary.json of a run that was stopped before it went on from this checkpoint."""
    device, tally, account = torch.device("cpu"), Tally(), Account()
    if checkpoint is None:
        state = algorithm.init(config.seed, device)
    else:
        state = algorithm.from_tree(checkpoint["learner"], device)
        _load(checkpoint, config, tally, account, len(checkpoint["window"]) + state.held_batches)
    return _summary(config, algorithm, state, tally, account)


def _load(checkpoint: dict[str, Any], config: TrainingConfig, tally: Tally, account: Account, held: int) -> None:
    """Continue the accounts of a checkpoint that holds so many batches; what was on its way will never come."""
    tally.load_tree(checkpoint)
    if not config.evaluation_every:
        tally.evaluation = "none"
    account.load_tree(checkpoint["account"])
    never_coming = account.in_flight - held * config.steps_per_batch
    if never_coming:
        account.drop(never_coming, "run was stopped")


def _summary(
    config: TrainingConfig, algorithm: Algorithm[Any], state: Any, tally: Tally, account: Account
) -> dict[str, Any]:
    statistics, counters, steps = tally.episodes.statistics(), tally.counters, account.to_tree()
    frames = counters.frames_real + counters.frames_lookahead
    return {
        "experiment": config.name,
        "seed": config.seed,
        "updates": state.update,
        "frames_real": counters.frames_real,
        "frames_lookahead": counters.frames_lookahead,
        "frames_per_second": frames / counters.wall_seconds if counters.wall_seconds else 0.0,
        "return_mean": statistics.return_mean,
        "return_count": statistics.episodes,
        "eta": algorithm.shown(state),
        "sampled": steps["sampled"],
        "consumed": steps["consumed"],
        "dropped": sum(steps["dropped"].values()),
        "dropped_reasons": steps["dropped"],
        "in_flight": steps["in_flight"],
        "actors_restarted": steps["actors_restarted"],
        "wall_seconds": counters.wall_seconds,
        "torch": torch.__version__,
        "learner_device": str(state.theta.device),
        "precision": config.precision,
    }
