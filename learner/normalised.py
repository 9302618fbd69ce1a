"""Keeps the statistics of a run by which observations and rewards are normalised, and feeds losses with the latter."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from metagrad.learner.algorithm import Sample
from metagrad.normalisation import Statistics, discounted_returns, with_rows, with_scaled_reward
from metagrad.shares import Shares
from metagrad.types import Trajectory, WeightSnapshot


class RunStatistics(NamedTuple):
    """Holds the statistics of all valid steps of a run's real batches; None: nothing is normalised by them."""

    observations: Statistics | None = None
    returns: Statistics | None = None  # discounted, of the rewards that actors sent

    def with_batches(self, batches: Sequence[Trajectory], gamma: float, shares: Shares) -> "RunStatistics":
        """Add batches as the actors sent them."""
        observations, returns = self
        for batch in batches:
            valid = batch.valid.flatten()
            if observations is not None:
                seen = batch.observation[:-1].flatten(0, 1).flatten(1)
                pixels = seen.shape[1] - len(observations.mean)  # of mixed observations, which begin with them
                observations = with_rows(observations, seen[:, pixels:], valid, shares)
            if returns is not None:
                returns = with_rows(returns, discounted_returns(batch, gamma).reshape(-1, 1), valid, shares)
        return RunStatistics(observations, returns)

    def to_tree(self) -> dict[str, Any]:
        """Return those that there are, for a checkpoint."""
        return {name: x._asdict() for name, x in self._asdict().items() if x is not None}


def from_tree(tree: dict[str, Any]) -> RunStatistics:
    """Invert `RunStatistics.to_tree`."""
    return RunStatistics(**{name: Statistics(**x) for name, x in tree.items()})


class Feed:
    """Samples an update's batches with scaled rewards, and keeps the real ones as they came."""

    def __init__(self, sample: Sample, returns: Statistics | None):
        """Scale by `returns`; None: rewards stay as they are."""
        self._sample = sample
        self._returns = returns
        self.real: list[Trajectory] = []

    def __call__(self, snapshot: WeightSnapshot, step: int) -> Trajectory:
        """Return the batch of a step as losses see it."""
        batch = self._sample(snapshot, step)
        if step == 0:
            self.real.append(batch)
        return self.scaled(batch)

    def scaled(self, batch: Trajectory) -> Trajectory:
        """Return a batch as losses see it."""
        return batch if self._returns is None else with_scaled_reward(batch, self._returns)
