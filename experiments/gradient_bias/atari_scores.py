"""Scores on many Atari games: human-normalised, in one number with an interval (IQM, median, mean, optimality gap).

The aggregates are those of Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical
Precipice". All take scores [runs, games] with any leading dimensions, so that the bootstrap aggregates many resamples
at once; a score that is not a number is refused, for a trimmed mean would silently trim it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.actors.envs.atari_games import close_games
from metagrad.errors import require
from metagrad.experiments.reporting.statistics import Array, interquartile_mean

# Resampled scores held at a time: 32 MiB of float64.
_SCORES_AT_ONCE = 2**22


class Reference(NamedTuple):
    """Holds the mean raw returns that are 0 and 1 on the human-normalised scale."""

    random: float  # uniformly random actions
    human: float  # a professional tester of games


# Episodes start with 1 to 30 no-op actions and end after 30 minutes (108,000 screens).
# Source: Quan and Ostrovski (2020), "DQN Zoo", dqn_zoo/atari_data.py.
HUMAN_NORMALISATION: dict[str, Reference] = {
    "Alien": Reference(227.8, 7127.7),
    "Amidar": Reference(5.8, 1719.5),
    "Assault": Reference(222.4, 742.0),
    "Asterix": Reference(210.0, 8503.3),
    "Asteroids": Reference(719.1, 47388.7),
    "Atlantis": Reference(12850.0, 29028.1),
    "BankHeist": Reference(14.2, 753.1),
    "BattleZone": Reference(2360.0, 37187.5),
    "BeamRider": Reference(363.9, 16926.5),
    "Berzerk": Reference(123.7, 2630.4),
    "Bowling": Reference(23.1, 160.7),
    "Boxing": Reference(0.1, 12.1),
    "Breakout": Reference(1.7, 30.5),
    "Centipede": Reference(2090.9, 12017.0),
    "ChopperCommand": Reference(811.0, 7387.8),
    "CrazyClimber": Reference(10780.5, 35829.4),
    "Defender": Reference(2874.5, 18688.9),
    "DemonAttack": Reference(152.1, 1971.0),
    "DoubleDunk": Reference(-18.6, -16.4),
    "Enduro": Reference(0.0, 860.5),
    "FishingDerby": Reference(-91.7, -38.7),
    "Freeway": Reference(0.0, 29.6),
    "Frostbite": Reference(65.2, 4334.7),
    "Gopher": Reference(257.6, 2412.5),
    "Gravitar": Reference(173.0, 3351.4),
    "Hero": Reference(1027.0, 30826.4),
    "IceHockey": Reference(-11.2, 0.9),
    "Jamesbond": Reference(29.0, 302.8),
    "Kangaroo": Reference(52.0, 3035.0),
    "Krull": Reference(1598.0, 2665.5),
    "KungFuMaster": Reference(258.5, 22736.3),
    "MontezumaRevenge": Reference(0.0, 4753.3),
    "MsPacman": Reference(307.3, 6951.6),
    "NameThisGame": Reference(2292.3, 8049.0),
    "Phoenix": Reference(761.4, 7242.6),
    "Pitfall": Reference(-229.4, 6463.7),
    "Pong": Reference(-20.7, 14.6),
    "PrivateEye": Reference(24.9, 69571.3),
    "Qbert": Reference(163.9, 13455.0),
    "Riverraid": Reference(1338.5, 17118.0),
    "RoadRunner": Reference(11.5, 7845.0),
    "Robotank": Reference(2.2, 11.9),
    "Seaquest": Reference(68.4, 42054.7),
    "Skiing": Reference(-17098.1, -4336.9),
    "Solaris": Reference(1236.3, 12326.7),
    "SpaceInvaders": Reference(148.0, 1668.7),
    "StarGunner": Reference(664.0, 10250.0),
    "Surround": Reference(-10.0, 6.5),
    "Tennis": Reference(-23.8, -8.3),
    "TimePilot": Reference(3568.0, 5229.2),
    "Tutankham": Reference(11.4, 167.6),
    "UpNDown": Reference(533.4, 11693.2),
    "Venture": Reference(0.0, 1187.5),
    "VideoPinball": Reference(16256.9, 17667.9),
    "WizardOfWor": Reference(563.5, 4756.5),
    "YarsRevenge": Reference(3092.9, 54576.9),
    "Zaxxon": Reference(32.5, 9173.3),
}


def human_normalised(game: str, score: float) -> float:
    """Return the score where random play is 0 and a human tester 1: (score - random) / (human - random).

    Args:
        game: A key of `HUMAN_NORMALISATION`; not every game of `metagrad.actors.envs.atari_games.GAMES` is one.
        score: Raw return of a full-life episode, or a mean of them.

    Raises:
        ConfigurationError: no random and human score of the game is published there.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning", figure 3, which writes
        it in per cent.

    >>> human_normalised("Freeway", 14.8)
    0.5
    """
    if game not in HUMAN_NORMALISATION:
        near = " or ".join(name for name in close_games(game) if name in HUMAN_NORMALISATION)
        remedy = f"choose one of {', '.join(HUMAN_NORMALISATION)}, or report the raw score"
        require(False, "game", game, "no random and human score known", f"did you mean {near}?" if near else remedy)
    reference = HUMAN_NORMALISATION[game]
    return (score - reference.random) / (reference.human - reference.random)


def iqm(scores: ArrayLike) -> Array:
    """Return the mean of all runs x games = N scores without the ⌊N/4⌋ lowest and the ⌊N/4⌋ highest.

    Args:
        scores: [..., runs, games].

    Returns:
        [...].

    Source: Agarwal et al. (2021), §4.3.

    >>> float(iqm([[0.0, 2.0], [1.0, 300.0]]))
    1.5
    """
    values = _scores(scores)
    pooled = values.reshape(*values.shape[:-2], -1)
    return interquartile_mean(np.moveaxis(pooled, -1, 0))


def median(scores: ArrayLike) -> Array:
    """Return the median over games of the mean over runs, median_g (1/R) Σ_r score[r, g]; [..., runs, games] -> [...].

    Source: Agarwal et al. (2021), §4.3 ("sample median").

    >>> float(median([[0.0, 2.0, 9.0], [2.0, 4.0, 9.0]]))
    3.0
    """
    return np.asarray(np.median(_scores(scores).mean(axis=-2), axis=-1))


def mean(scores: ArrayLike) -> Array:
    """Return the mean over games of the mean over runs, (1/RG) Σ_rg score[r, g]; [..., runs, games] -> [...].

    Source: Agarwal et al. (2021), §4.3 ("sample mean").

    >>> float(mean([[0.0, 2.0], [1.0, 5.0]]))
    2.0
    """
    return np.asarray(_scores(scores).mean(axis=(-2, -1)))


def optimality_gap(scores: ArrayLike, threshold: float = 1.0) -> Array:
    """Measure how far scores fall short of a threshold, (1/RG) Σ_rg max(threshold - score[r, g], 0); lower is better.

    Args:
        scores: [..., runs, games].
        threshold: Scores above it count as equal to it.
            The default, human play, is that of Agarwal et al. (2021), §4.3.

    Returns:
        [...].

    Source: Agarwal et al. (2021), §4.3.

    >>> float(optimality_gap([[0.5, 7.0]]))
    0.25
    """
    return np.asarray(np.maximum(threshold - _scores(scores), 0.0).mean(axis=(-2, -1)))


class Interval(NamedTuple):
    """Holds an aggregate of the scores and its confidence interval; bounds that are not known are nan."""

    low: float
    point: float
    high: float


def stratified_bootstrap(
    scores: ArrayLike,
    aggregate: Callable[[Array], ArrayLike],
    replicates: int,
    generator: np.random.Generator,
    confidence: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval: (1 ± confidence) / 2 quantiles of the aggregate of resampled scores.

    Each game is a stratum: its runs are drawn with replacement independently of the other games', and the games stay.
    So the interval is about other seeds on these games, not about other games.

    Args:
        scores: [runs, games], human-normalised; run r of one game has nothing to do with run r of another.
        aggregate: [..., runs, games] -> [...], such as `iqm`.
        replicates: Resamples, at least 1; the paper takes 50,000, and 2,000 settle two digits.
        generator: Draws the runs; advanced.
        confidence: Nominal coverage, in (0, 1). With few runs the true one is lower: resampling R runs understates
            their variance by the factor (R - 1) / R.

    Returns:
        The bounds around the aggregate of `scores` themselves. With one run per game every resample is the sample:
        its interval would be the point and pretend certainty, so both bounds are nan.

    Source: Agarwal et al. (2021), §4.1; Efron and Tibshirani (1993), "An Introduction to the Bootstrap", §13.3.
    """
    values = _scores(scores)
    assert values.ndim == 2, f"scores are [runs, games], not {values.shape}"
    assert replicates >= 1, "no resamples"
    assert 0.0 < confidence < 1.0, "the coverage is a probability"
    runs, games = values.shape
    point = float(np.asarray(aggregate(values)))
    if runs == 1:
        return Interval(np.nan, point, np.nan)
    at_once = max(1, _SCORES_AT_ONCE // values.size)
    resampled = []
    for done in range(0, replicates, at_once):
        drawn = generator.integers(runs, size=(min(at_once, replicates - done), runs, games))
        resampled.append(np.asarray(aggregate(values[drawn, np.arange(games)])))
    low, high = np.quantile(np.concatenate(resampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), point, float(high))


def _scores(scores: ArrayLike) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim >= 2, "scores are [..., runs, games]"
    assert values.size, "no scores"
    assert np.isfinite(values).all(), "a score that is not a finite number"
    return values
