"""Normalised scores and their aggregates, against values by hand, slow implementations and known distributions."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra.numpy import array_shapes, arrays

from metagrad.actors.envs.atari_games import GAMES
from metagrad.errors import ConfigurationError
from metagrad.experiments.gradient_bias import atari_scores
from metagrad.experiments.gradient_bias.atari_scores import (
    HUMAN_NORMALISATION,
    Interval,
    human_normalised,
    iqm,
    mean,
    median,
    optimality_gap,
    stratified_bootstrap,
)

AGGREGATES = [iqm, median, mean, optimality_gap]
Aggregate = Callable[[np.ndarray], np.ndarray]
SCORES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e3, 1e3))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_table_has_57_games_that_can_be_played() -> None:
    assert len(HUMAN_NORMALISATION) == 57
    assert set(HUMAN_NORMALISATION) <= set(GAMES)
    assert len(set(HUMAN_NORMALISATION.values())) == 57
    assert list(HUMAN_NORMALISATION) == sorted(HUMAN_NORMALISATION)


def test_the_table_is_the_published_one() -> None:
    """Checksums Σ rank x score of DQN Zoo's two columns: a wrong digit changes them, and so do two games swapped."""
    ranked = np.arange(1, 58) @ np.array(list(HUMAN_NORMALISATION.values()))
    assert ranked == pytest.approx([1_266_554.2, 17_871_784.3], abs=0.01)


@pytest.mark.parametrize("game", HUMAN_NORMALISATION)
def test_random_play_is_0_and_human_play_1(game: str) -> None:
    random, human = HUMAN_NORMALISATION[game]
    assert human > random
    assert human_normalised(game, random) == 0.0
    assert human_normalised(game, human) == 1.0
    assert human_normalised(game, 2 * human - random) == pytest.approx(2.0)


def test_normalised_scores_by_hand() -> None:
    assert human_normalised("Pong", 21.0) == pytest.approx(41.7 / 35.3)  # (21 + 20.7) / (14.6 + 20.7)
    assert human_normalised("Breakout", 401.2) == pytest.approx(399.5 / 28.8)
    assert human_normalised("Skiing", -29859.4) == pytest.approx(-12761.3 / 12761.2)  # worse than random


@pytest.mark.parametrize(
    ("game", "remedy"),
    [
        ("ALE/MsPacman-v5", "did you mean MsPacman"),
        ("beam_rider", "did you mean BeamRider"),
        ("Chess?!", "choose one of Alien, .*Zaxxon, or report the raw score"),
        ("KeystoneKapers", "choose one of Alien, .*Zaxxon, or report the raw score"),  # a game, but not one of the 57
    ],
)
def test_other_games_are_refused(game: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s)^game = '.*': no random and human score known; {remedy}"):
        human_normalised(game, 1.0)


def test_aggregates_by_hand() -> None:
    scores = np.array([[0.0, 0.2, 0.4, 9.0], [0.5, 0.4, 1.6, 7.0]])
    # Sorted: 0 .2 | .4 .4 .5 1.6 | 7 9. Means of the games: .25 .3 1 8. Short of 1: 1 .8 .6 0 .5 .6 0 0.
    assert iqm(scores) == pytest.approx(2.9 / 4)
    assert median(scores) == pytest.approx(0.65)
    assert mean(scores) == pytest.approx(19.1 / 8)
    assert optimality_gap(scores) == pytest.approx(3.5 / 8)
    assert optimality_gap(scores, threshold=0.5) == pytest.approx((0.5 + 0.3 + 0.1 + 0.1) / 8)


def test_iqm_cuts_whole_scores() -> None:
    """Of 6 scores ⌊6/4⌋ = 1 goes at each end, as scipy.stats.trim_mean does it: no score counts in part."""
    assert iqm(np.array([[5.0, 1.0, 100.0], [3.0, -50.0, 4.0]])) == pytest.approx(13.0 / 4)
    assert iqm(np.array([[1.0, 2.0, 30.0]])) == pytest.approx(11.0)


@hypothesis.given(SCORES)
def test_aggregates_against_slow_ones(scores: np.ndarray) -> None:
    runs, games = scores.shape
    flat = sorted(float(score) for score in scores.flat)
    kept = [score for rank, score in enumerate(flat) if len(flat) // 4 <= rank < len(flat) - len(flat) // 4]
    of_games = sorted(sum(scores[run, game] for run in range(runs)) / runs for game in range(games))
    middle = (of_games[(games - 1) // 2] + of_games[games // 2]) / 2
    assert iqm(scores) == pytest.approx(sum(kept) / len(kept), abs=1e-9)
    assert median(scores) == pytest.approx(middle, abs=1e-9)
    assert mean(scores) == pytest.approx(sum(flat) / len(flat), abs=1e-9)
    gap = sum(2.0 - score if score < 2.0 else 0.0 for score in flat) / len(flat)
    assert optimality_gap(scores, threshold=2.0) == pytest.approx(gap, abs=1e-9)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@hypothesis.given(scores=SCORES, seed=st.integers(0, 1_000))
def test_the_order_of_runs_and_games_does_not_matter(aggregate: Aggregate, scores: np.ndarray, seed: int) -> None:
    other = generator(seed).permuted(scores, axis=0)  # each game's runs on their own
    other = generator(seed).permutation(other, axis=1)
    assert aggregate(other) == pytest.approx(aggregate(scores), abs=1e-9)


@hypothesis.given(SCORES)
def test_aggregates_lie_between_the_extremes(scores: np.ndarray) -> None:
    for aggregate in (iqm, median, mean):
        assert scores.min() - 1e-9 <= aggregate(scores) <= scores.max() + 1e-9
    assert max(0.0, 1.0 - mean(scores)) - 1e-9 <= optimality_gap(scores)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_leading_dimensions_are_aggregated_apart(aggregate: Aggregate) -> None:
    scores = generator().normal(size=(2, 3, 4, 5))
    together = aggregate(scores)
    assert together.shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert together[index] == pytest.approx(aggregate(scores[index]))


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("wrong", [[1.0, 2.0], np.ones((0, 3)), [[1.0, 2.0, 3.0, np.nan]], [[1.0, 2.0, 3.0, np.inf]]])
def test_no_scores_and_no_numbers_are_refused(aggregate: Aggregate, wrong: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="score"):
        aggregate(wrong)


def test_an_interval_against_all_resamples() -> None:
    """Two runs 0 and 1 of two games: game means are 0, 1/2, 1 with 1/4, 1/2, 1/4, and independent of one another.

    So the mean is 0, 1/4, 1/2, 3/4, 1 with probabilities 1, 4, 6, 4, 1 of 16. Runs drawn for both games together
    would give 0, 1/2, 1 with 1/4, 1/2, 1/4.
    """
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])
    for confidence, low, high in [(0.95, 0.0, 1.0), (0.6, 0.25, 0.75), (0.2, 0.5, 0.5)]:
        interval = stratified_bootstrap(scores, mean, 4_000, generator(), confidence)
        assert interval == Interval(low, 0.5, high)


def test_scores_stay_in_their_game() -> None:
    """Runs that agree: whatever is drawn is the sample, however far the games lie apart."""
    scores = np.tile([0.0, 10.0, 500.0], (4, 1))
    for aggregate in AGGREGATES:
        point = float(aggregate(scores))
        assert stratified_bootstrap(scores, aggregate, 100, generator()) == pytest.approx((point, point, point))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_run_per_game_has_no_interval(aggregate: Aggregate) -> None:
    scores = np.array([[0.1, 0.7, 3.0]])
    low, point, high = stratified_bootstrap(scores, aggregate, 100, generator())
    assert np.isnan([low, high]).all()
    assert point == aggregate(scores)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_interval_surrounds_the_point_and_shrinks_with_runs(aggregate: Aggregate) -> None:
    scores = generator(1).normal(np.linspace(0.0, 2.0, 8), 1.0, size=(10, 8))
    few, many = (stratified_bootstrap(runs, aggregate, 500, generator()) for runs in (scores, np.tile(scores, (16, 1))))
    for interval in (few, many):
        assert interval.low < interval.point < interval.high
    # 16 times as many runs of the same spread: a quarter of the width if the aggregate were linear, as the mean is.
    ratio = (many.high - many.low) / (few.high - few.low)
    assert ratio == pytest.approx(0.25, rel=0.15) if aggregate is mean else ratio < 0.5


@hypothesis.given(scores=SCORES, scale=st.floats(0.1, 10.0), shift=st.floats(-10.0, 10.0))
@hypothesis.settings(max_examples=50)
def test_the_interval_moves_with_the_scale(scores: np.ndarray, scale: float, shift: float) -> None:
    for aggregate in (iqm, median, mean):
        before = np.array(stratified_bootstrap(scores, aggregate, 40, generator()))
        after = stratified_bootstrap(scale * scores + shift, aggregate, 40, generator())
        np.testing.assert_allclose(after, scale * before + shift, rtol=1e-9, atol=1e-6)


@hypothesis.given(scores=SCORES, seed=st.integers(0, 1_000))
@hypothesis.settings(max_examples=50)
def test_the_interval_lies_between_the_extremes(scores: np.ndarray, seed: int) -> None:
    for aggregate in (iqm, median, mean):
        low, _, high = stratified_bootstrap(scores, aggregate, 40, generator(seed))
        if len(scores) > 1:
            assert scores.min() - 1e-9 <= low <= high <= scores.max() + 1e-9


@pytest.mark.parametrize("aggregate", [iqm, mean])
def test_coverage_on_a_gaussian(aggregate: Aggregate) -> None:
    """10 runs of N(1, 1) on 8 games: resampling takes √(9/10) of the standard error, so 95 % cover about 93 %."""
    noise = generator(2)
    covered = 0
    for _ in range(200):
        interval = stratified_bootstrap(noise.normal(1.0, 1.0, size=(10, 8)), aggregate, 400, noise)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.87 <= covered / 200 <= 0.985


def test_the_width_is_that_of_the_standard_error() -> None:
    """For a mean: 2 x 1.96 times the root of Σ_g var_g / runs over games, whatever lies between the games."""
    scores = generator(3).normal([0.0, 50.0, -200.0], [1.0, 2.0, 4.0], size=(40, 3))
    error = np.sqrt((scores.var(axis=0) / 40).sum()) / 3
    low, _, high = stratified_bootstrap(scores, mean, 10_000, generator(4))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.03)


def test_replicates_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = generator().normal(size=(3, 2))
    sizes: list[int] = []

    def counting(values: np.ndarray) -> np.ndarray:
        sizes.extend([len(values)] if values.ndim == 3 else [])
        return mean(values)

    monkeypatch.setattr(atari_scores, "_SCORES_AT_ONCE", 25)  # 4 resamples of 6 scores
    stratified_bootstrap(scores, counting, 10, generator())
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(atari_scores, "_SCORES_AT_ONCE", 5)
    sizes.clear()
    stratified_bootstrap(scores, counting, 3, generator())
    assert sizes == [1, 1, 1]


def test_the_generator_decides() -> None:
    scores = generator().normal(size=(5, 4))
    one, same, other = (stratified_bootstrap(scores, iqm, 200, generator(seed)) for seed in (7, 7, 8))
    assert one == same
    assert one != other
    assert one.point == other.point


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(AssertionError, match="probability"):
        stratified_bootstrap(np.ones((2, 2)), mean, 10, generator(), confidence)


def test_a_batch_and_no_resamples_are_refused() -> None:
    with pytest.raises(AssertionError, match="runs, games"):
        stratified_bootstrap(np.ones((2, 2, 2)), mean, 10, generator())
    with pytest.raises(AssertionError, match="no resamples"):
        stratified_bootstrap(np.ones((2, 2)), mean, 0, generator())
