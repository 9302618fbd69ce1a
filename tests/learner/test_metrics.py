import numpy as np
import pytest

from metagrad.learner.checkpoint import load, save
from metagrad.learner.metrics import EpisodeStatistics, EpisodeWindow, IntervalMean, RunningVariance

GENERATOR = np.random.default_rng(0)


def test_interval_means_are_over_the_updates_that_had_the_scalar() -> None:
    means = IntervalMean()
    means.add({"a": 1.0, "b": 5.0})
    means.add({"a": 2.0})
    assert means.take() == {"a": 1.5, "b": 5.0}
    assert means.take() == {}
    means.add({"a": 7.0})
    assert means.take() == {"a": 7.0}


@pytest.mark.parametrize("count", [2, 3, 50])
def test_running_variance_is_numpys_summed_over_components(count: int) -> None:
    samples = GENERATOR.normal(3.0, [1.0, 1e-6, 100.0], size=(count, 3))
    variance = RunningVariance()
    for _ in range(2):  # the second round shows that `take` starts anew
        for sample in samples:
            variance.add(sample.tolist())
        assert variance.take() == pytest.approx(samples.var(0, ddof=1).sum(), rel=1e-9)


def test_running_variance_far_from_zero() -> None:
    samples = GENERATOR.normal(1e8, 1.0, size=(20, 2))
    variance = RunningVariance()
    for sample in samples:
        variance.add(sample.tolist())
    assert variance.take() == pytest.approx(samples.var(0, ddof=1).sum(), rel=1e-6)


def test_one_sample_has_no_variance() -> None:
    variance = RunningVariance()
    assert variance.take() is None
    variance.add([1.0])
    assert variance.take() is None


def test_episode_statistics_are_of_the_last_ones_and_the_count_of_all() -> None:
    window = EpisodeWindow(4)
    assert window.statistics() == EpisodeStatistics(None, None, None, 0)
    returns, lengths = GENERATOR.normal(size=10), GENERATOR.integers(1, 50, size=10)
    window.add(returns[:3].tolist(), lengths[:3].tolist())
    window.add(returns[3:].tolist(), lengths[3:].tolist())
    found = window.statistics()
    expected = (returns[-4:].mean(), returns[-4:].std(), lengths[-4:].mean(), 10)
    assert found == pytest.approx(expected)


def test_a_window_continues_from_a_checkpoint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    window = EpisodeWindow(3)
    window.add([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    tree = load(save(tmp_path, 1, window.to_tree(), keep=1))
    other = EpisodeWindow(3)
    other.load_tree(tree)
    assert other.statistics() == window.statistics()
    for w in (window, other):
        w.add([9.0], [9])
    assert other.statistics() == window.statistics()
