"""The training loop: sample, update, log, checkpoint, until the updates are done or somebody asks to stop."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.progress import Progress
from cluster.run_config import BaseExperiment
from cluster.run_folder import RunFolder
from cluster.stop import StopRequest
from cluster.transport import Actors
from learner.algorithm import Algorithm
from learner.batch import merge
from learner.checkpoint import save
from learner.metrics import EpisodeWindow, IntervalMean, RunningVariance
from metagrad.types import Trajectory, WeightSnapshot

WriteScalars = Callable[[dict[str, float], int], None]
_EPISODES_IN_MEAN = 512
CHECKPOINT_PARTS = ("device", "learner", "actors", "counters", "account", "episodes")


class Counters(NamedTuple):
    """What a run has used so far, over all its resumptions; frames are environment steps that were not resets."""

    frames_real: int = 0
    frames_lookahead: int = 0
    wall_seconds: float = 0.0


class Training:
    """One run in progress. `run` is the loop; everything it changes is an attribute here."""

    def __init__(
        self,
        experiment: BaseExperiment,
        algorithm: Algorithm[Any],
        state: Any,
        actors: Actors,
        folder: RunFolder,
        write_scalars: WriteScalars,
        progress: Progress,
    ):
        self.experiment = experiment
        self.algorithm = algorithm
        self.state = state
        self.actors = actors
        self.counters = Counters()
        self.episodes = EpisodeWindow(_EPISODES_IN_MEAN)
        self._folder = folder
        self._write = write_scalars
        self._progress = progress
        self._means = IntervalMean()
        self._variance = RunningVariance()
        self._frames: list[tuple[Tensor, bool]] = []
        self._lag = 0.0

    def load(self, tree: dict[str, Any], state: Any) -> None:
        """Continue from a checkpoint's content (the actors' states went to the actors)."""
        self.state = state
        self.counters = Counters(**tree["counters"])
        self.episodes.load_tree(tree["episodes"])
        self.actors.account.load_tree(tree["account"])

    def run(self, stop: StopRequest) -> None:
        """Train until done or asked to stop; ends on a checkpoint of the last whole update."""
        started = since = time.monotonic()
        wall_before = self.counters.wall_seconds
        frames_before = self.counters
        saved_at = logged_at = self.state.update
        every, log_every = self.experiment.checkpoint.every, self.experiment.log_every
        while self.state.update < self.experiment.updates and stop.signal_name is None:
            self.state, metrics = self.algorithm.update(self.state, self._sample)
            self.actors.account.consume(self.actors.account.in_flight - self._held_steps())
            self._count_frames()
            self._means.add(metrics.scalars)
            if metrics.meta_gradient:
                self._variance.add(metrics.meta_gradient)
            self.counters = self.counters._replace(wall_seconds=wall_before + time.monotonic() - started)
            is_last = self.state.update >= self.experiment.updates or stop.signal_name is not None
            if is_last or self.state.update // log_every > logged_at // log_every:
                now = time.monotonic()
                self._log(frames_before, now - since, is_last)
                since, frames_before, logged_at = now, self.counters, self.state.update
            if self.state.update // every > saved_at // every and not is_last:
                self.save()
                saved_at = self.state.update
        self.save()

    def _sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        rollouts = self.actors.sample(snapshot, lookahead_step)
        for rollout in rollouts:
            self.episodes.add(rollout.episodes.returns.tolist(), rollout.episodes.lengths.tolist())
        trajectory = merge(rollouts, snapshot.version, self.state.theta.device)
        self._lag = snapshot.version - trajectory.policy_version
        self._frames.append((trajectory.valid.sum(), lookahead_step > 0))
        return trajectory

    def _held_steps(self) -> int:
        """Steps that are here but not yet used: the batch that `sequential` carries over to its next window."""
        return 0 if self.state.carry is None else self.experiment.steps_per_rollout

    def _count_frames(self) -> None:
        real = sum(int(count) for count, is_lookahead in self._frames if not is_lookahead)
        lookahead = sum(int(count) for count, is_lookahead in self._frames if is_lookahead)
        self._frames.clear()
        self.counters = self.counters._replace(
            frames_real=self.counters.frames_real + real, frames_lookahead=self.counters.frames_lookahead + lookahead
        )

    def _log(self, before: Counters, seconds: float, is_last: bool) -> None:
        scalars = self._means.take()
        real = (self.counters.frames_real - before.frames_real) / seconds
        lookahead = (self.counters.frames_lookahead - before.frames_lookahead) / seconds
        statistics = self.episodes.statistics()
        account = self.actors.account
        scalars |= {
            "throughput/real_frames_per_second": real,
            "throughput/lookahead_frames_per_second": lookahead,
            "transport/lag_versions": self._lag,
            "transport/in_flight_steps": account.in_flight,
            "transport/actors_restarted": account.actors_restarted,
        }
        variance = self._variance.take()
        if variance is not None:
            scalars["meta_gradient/variance"] = variance
        if statistics.return_mean is not None:
            assert statistics.return_std is not None
            assert statistics.length_mean is not None
            scalars["episode/return_mean"] = statistics.return_mean
            scalars["episode/return_std"] = statistics.return_std
            scalars["episode/length_mean"] = statistics.length_mean
        self._write(scalars, self.state.update)
        learnt = self.algorithm.learnt(self.state)
        self._progress.show(self.state.update, real + lookahead, statistics.return_mean, learnt, self._lag, is_last)

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        tree = {
            "device": self.state.theta.device.type,
            "learner": self.algorithm.to_tree(self.state),
            "actors": self.actors.states(),
            "counters": self.counters._asdict(),
            "account": self.actors.account.to_tree(),
            "episodes": self.episodes.to_tree(),
        }
        save(self._folder.checkpoints, self.state.update, tree, self.experiment.checkpoint.keep)

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
            "return_count": statistics.count,
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
