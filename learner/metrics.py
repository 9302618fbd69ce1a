"""Turns the scalars of every update into what is logged: interval means, episode statistics, meta-gradient variance."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from metagrad.diagnostics import Moments, add_samples, no_samples, variance


class IntervalMean:
    """Averages named scalars since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: dict[str, float]) -> None:
        """Count one update's scalars."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)  # checkpoints hold no numpy numbers
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and start over."""
        means = self.means()
        self.__init__()  # type: ignore[misc]
        return means

    def means(self) -> dict[str, float]:
        """Return the means since the last `take`."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def to_tree(self) -> dict[str, dict[str, float]]:
        """Return plain data for a checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_tree(self, tree: dict[str, dict[str, float]]) -> None:
        """Continue from `to_tree()`."""
        self._sums = dict(tree["sums"])
        self._counts = {name: int(count) for name, count in tree["counts"].items()}


class EpisodeStatistics(NamedTuple):
    """Keeps raw full-life returns of the last episodes of the real stream."""

    return_mean: float | None  # None: no episode has ended yet
    return_std: float | None
    length_mean: float | None
    episodes: int  # of the whole run


class EpisodeWindow:
    """Keeps the last `size` finished episodes, and counts all of them."""

    def __init__(self, size: int):
        self._returns: deque[float] = deque(maxlen=size)
        self._lengths: deque[int] = deque(maxlen=size)
        self.count = 0

    def add(self, returns: Iterable[float], lengths: Iterable[int]) -> None:
        """Add finished episodes, in order."""
        for episode_return, length in zip(returns, lengths, strict=True):
            self._returns.append(episode_return)
            self._lengths.append(length)
            self.count += 1

    def statistics(self) -> EpisodeStatistics:
        """Return mean, spread and count as of now."""
        if not self._returns:
            return EpisodeStatistics(None, None, None, self.count)
        size = len(self._returns)
        mean = math.fsum(self._returns) / size
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in self._returns) / size)
        return EpisodeStatistics(mean, std, sum(self._lengths) / size, self.count)

    def to_tree(self) -> dict[str, list[float] | int]:
        """Return plain data for a checkpoint."""
        return {"returns": list(self._returns), "lengths": list(self._lengths), "count": self.count}

    def load_tree(self, tree: dict[str, list[float] | int]) -> None:
        """Continue from `to_tree()`."""
        returns, lengths, count = tree["returns"], tree["lengths"], tree["count"]
        assert isinstance(returns, list)
        assert isinstance(lengths, list)
        assert isinstance(count, int)
        self._returns.extend(returns)
        self._lengths.extend(int(x) for x in lengths)
        self.count = count


class RunningVariance:
    """Tracks the variance of each component over the updates since the last `take`, summed over components."""

    def __init__(self) -> None:
        self._moments: Moments | None = None

    def add(self, components: Sequence[float]) -> None:
        """Add one sample of the vector."""
        moments = no_samples(len(components)) if self._moments is None else self._moments
        self._moments = add_samples(moments, torch.tensor([components], dtype=torch.float64))

    def take(self) -> float | None:
        """Return the unbiased variance (None with fewer than two samples), and start over."""
        found = self.variance()
        self._moments = None
        return found

    def variance(self) -> float | None:
        """Return the unbiased variance since the last `take`; None with fewer than two samples."""
        moments = self._moments
        return None if moments is None or moments.samples < 2 else variance(moments).sum().item()

    def to_tree(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        moments = self._moments
        return {} if moments is None else {"count": moments.samples, "mean": moments.mean, "m2": moments.m2}

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from `to_tree()`."""
        self._moments = Moments(tree["count"], tree["mean"], tree["m2"]) if tree else None
