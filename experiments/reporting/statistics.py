"""Computes statistics over independent trials (seeds, MDPs), and formats numbers for reports."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def mean_and_std(trials: ArrayLike) -> tuple[Array, Array]:
    """Return mean and standard deviation over independent trials.

    Args:
        trials: [N, …], trials first.

    Returns:
        mean […]; std […], N - 1 in the denominator, 0 for a single trial.

    >>> mean_and_std([1.0, 2.0, 3.0])
    (array(2.), array(1.))
    """
    values = _trials(trials)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return np.asarray(values.mean(axis=0)), np.asarray(std)


def mean_and_error(trials: ArrayLike) -> tuple[Array, Array]:
    """Return mean and standard error over independent trials [N, …]; the error of a single one is nan.

    >>> mean_and_error([1.0, 3.0])
    (array(2.), array(1.))
    """
    values = _trials(trials)
    if len(values) == 1:
        return values[0], np.full(values.shape[1:], np.nan)
    return np.asarray(values.mean(axis=0)), np.asarray(values.std(axis=0, ddof=1) / len(values) ** 0.5)


# Student's t, 97.5 %, for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def critical(count: int) -> float:
    """Return how many standard errors a mean of `count` values must be off 0 at the two-sided 5 % level.

    It is nan for one value. Above 10 values it is that of 10: a little stricter than the level asks for.
    """
    return _T[min(count - 1, len(_T)) - 1] if count > 1 else np.nan


def interquartile_mean(trials: ArrayLike) -> Array:
    """Return the IQM: the mean over trials [N, …] without the lowest and the highest quarter (⌊N/4⌋ each).

    Source: Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice", §4.3.

    >>> interquartile_mean([0.0, 1.0, 2.0, 300.0])
    array(1.5)
    """
    values = np.sort(_trials(trials), axis=0)
    cut = len(values) // 4
    return np.asarray(values[cut : len(values) - cut].mean(axis=0))


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Return the probability that a trial of `first` [N] is above one of `second` [M]; ties count a half.

    Source: Agarwal et al. (2021), §4.3, of one task (Mann and Whitney's U over N M).

    >>> probability_of_improvement([1.0, 3.0], [2.0, 3.0])
    0.375
    """
    x, y = _trials(first)[:, None], _trials(second)
    return float(((x > y) + 0.5 * (x == y)).mean())


def interquartile_interval(trials: ArrayLike, resamples: int = 2_000) -> tuple[Array, Array]:
    """Return the 95 % interval of the IQM over all of trials [seeds, tasks], by the stratified bootstrap.

    Each resample draws the seeds of every task anew; the draws are always the same.

    Source: Agarwal et al. (2021), §4.3.

    >>> low, high = interquartile_interval([[0.0, 1.0], [0.5, 1.5]])
    >>> bool(0.0 <= low < high <= 1.5)
    True
    """
    values = _trials(trials)
    seeds, tasks = values.shape
    chosen = np.random.default_rng(0).integers(seeds, size=(resamples, seeds, tasks))
    drawn = values[chosen, np.arange(tasks)].reshape(resamples, seeds * tasks)
    low, high = np.percentile(interquartile_mean(drawn.T), [2.5, 97.5])
    return np.asarray(low), np.asarray(high)


def _trials(trials: ArrayLike) -> Array:
    values = np.asarray(trials, dtype=np.float64)
    assert values.ndim >= 1, "trials are [N, …]"
    assert len(values), "no trials"
    return values


def number(value: float | Array, digits: int = 3) -> str:
    """Write a number as the table shows it.

    >>> number(0.123456), number(-2.0), number(1234567.0)
    ('0.123', '-2', '1.23e+06')
    """
    return f"{value:.{digits}g}"


def numbers(values: Iterable[float | Array], digits: int = 3) -> str:
    """Write several numbers with commas between them.

    >>> numbers([0.5, 2.0])
    '0.5, 2'
    """
    return ", ".join(number(value, digits) for value in values)


def mean_of(trials: ArrayLike, digits: int = 3) -> str:
    """Write the mean over trials [N].

    >>> mean_of([1.0, 2.0])
    '1.5'
    """
    return number(mean_and_std(trials)[0], digits)


def std_of(trials: ArrayLike, digits: int = 2) -> str:
    """Write the standard deviation over trials [N]; of one trial it is 0.

    >>> std_of([1.0, 3.0]), std_of([1.0])
    ('1.4', '0')
    """
    return number(mean_and_std(trials)[1], digits)
