"""Counts what a run has used and seen so far, over all its resumptions, and since the last row of scalars."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from metagrad.learner.actors import Account
from metagrad.learner.algorithm import UpdateMetrics
from metagrad.learner.metrics import EpisodeWindow, IntervalMean, RunningVariance
from metagrad.learner.schedule import Received

_EPISODES_IN_MEAN = 100  # as Gym and its successors count
Evaluation = Literal["none", "done", "due"]
"""Tells what has become of the evaluation of the newest update."""


class Counters(NamedTuple):
    """Counts what a run has used over all its resumptions; frames are environment steps that were not resets."""

    frames_real: int = 0
    frames_lookahead: int = 0
    wall_seconds: float = 0.0


class Interval(NamedTuple):
    """Counts what was used since the last row."""

    frames_real: int = 0
    frames_lookahead: int = 0
    seconds: float = 0.0


class Tally:
    """Counts frames, seconds and episodes, and takes the means of an interval."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.interval = Interval()
        self.episodes = EpisodeWindow(_EPISODES_IN_MEAN)
        self.lags: list[int] = []
        self.is_row_partial = False  # True: the last row, at this very update, is of a part of an interval
        self.evaluation: Evaluation = "none"
        self._means = IntervalMean()
        self._variance = RunningVariance()

    def count(self, received: Sequence[Received], lag: Sequence[int], metrics: UpdateMetrics) -> None:
        """Count one update and the batches that came in for it."""
        frames = {True: 0, False: 0}
        # Together: what was sampled on a device is there, and each copy is waited for.
        counts = torch.stack([batch.frames for batch in received]).tolist() if received else []
        for batch, count in zip(received, counts, strict=True):
            for episodes in batch.episodes:
                self.episodes.add(episodes.returns.tolist(), episodes.lengths.tolist())
            frames[batch.is_lookahead] += count
        self.counters = self.counters._replace(
            frames_real=self.counters.frames_real + frames[False],
            frames_lookahead=self.counters.frames_lookahead + frames[True],
        )
        self.interval = self.interval._replace(
            frames_real=self.interval.frames_real + frames[False],
            frames_lookahead=self.interval.frames_lookahead + frames[True],
        )
        self.lags.extend(lag)
        self._means.add(metrics.scalars)
        if metrics.meta_gradient:
            self._variance.add(metrics.meta_gradient)
        self.is_row_partial = False
        self.evaluation = "none"

    def count_seconds(self, seconds: float) -> None:
        """Count the time of an update."""
        self.counters = self.counters._replace(wall_seconds=self.counters.wall_seconds + seconds)
        self.interval = self.interval._replace(seconds=self.interval.seconds + seconds)

    def begin_interval(self) -> None:
        """Forget the means, lags and frames of the interval that a row was written of."""
        self._means.take()
        self._variance.take()
        self.lags = []
        self.interval = Interval()

    @property
    def frames_per_second(self) -> tuple[float, float]:
        """Return real and looked-ahead frames per second of this interval."""
        seconds = self.interval.seconds or 1.0  # 0: nothing was done in it
        return self.interval.frames_real / seconds, self.interval.frames_lookahead / seconds

    @property
    def mean_lag(self) -> float:
        """Return the mean over the rollouts of this interval."""
        return sum(self.lags) / len(self.lags) if self.lags else 0.0

    def row(self, account: Account) -> dict[str, float]:
        """Return the scalars of this interval."""
        real, lookahead = self.frames_per_second
        steps = account.to_tree()
        scalars = self._means.means() | {
            "throughput/real_frames_per_second": real,
            "throughput/lookahead_frames_per_second": lookahead,
            "transport/lag_versions": self.mean_lag,
            "transport/lag_max_versions": max(self.lags, default=0),
            "transport/in_flight_steps": steps["in_flight"],
            "transport/dropped_steps": sum(steps["dropped"].values()),
            "transport/actors_restarted": steps["actors_restarted"],
        }
        variance = self._variance.variance()
        if variance is not None:
            scalars["meta_gradient/variance"] = variance
        statistics = self.episodes.statistics()
        if statistics.return_mean is not None:
            assert statistics.return_std is not None
            assert statistics.length_mean is not None
            scalars["episode/return_mean"] = statistics.return_mean
            scalars["episode/return_std"] = statistics.return_std
            scalars["episode/length_mean"] = statistics.length_mean
        return scalars

    def to_tree(self) -> dict[str, Any]:
        """Return the parts of a checkpoint that are counted here, as plain data."""
        return {
            "counters": self.counters._asdict(),
            "episodes": self.episodes.to_tree(),
            "interval": {
                "means": self._means.to_tree(),
                "variance": self._variance.to_tree(),
                "lags": list(self.lags),
                "throughput": self.interval._asdict(),
                "is_row_partial": self.is_row_partial,
                "evaluation": self.evaluation,
            },
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from a checkpoint's content."""
        self.counters = Counters(**tree["counters"])
        self.episodes.load_tree(tree["episodes"])
        if "interval" not in tree:  # older checkpoints begin a new one
            return
        interval = tree["interval"]
        self._means.load_tree(interval["means"])
        self._variance.load_tree(interval["variance"])
        self.lags = list(interval["lags"])
        self.interval = Interval(**interval["throughput"])
        self.is_row_partial = interval["is_row_partial"]
        self.evaluation = interval["evaluation"]
