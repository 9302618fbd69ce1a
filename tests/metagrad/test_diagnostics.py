import math
import random
from fractions import Fraction
from itertools import pairwise, product

import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.diagnostics import (
    add_samples,
    bias,
    cosine_accuracy,
    effective_sample_size,
    merge,
    no_samples,
    pearson,
    standard_deviation,
    standard_error,
    total_standard_deviation,
    variance,
)

EPS = torch.finfo(torch.float64).eps


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(samples):
    return add_samples(no_samples(samples.shape[1]), samples)


def exact_moments(samples):
    """Mean and variance of each component in rational arithmetic."""
    columns = [[Fraction(x) for x in column] for column in samples.T.tolist()]
    means = [sum(column) / len(column) for column in columns]
    variances = [
        sum((x - mean) ** 2 for x in column) / (len(column) - 1) for column, mean in zip(columns, means, strict=True)
    ]
    return tuple(torch.tensor([float(x) for x in xs], dtype=torch.float64) for xs in (means, variances))


@given(st.integers(0, 2**31), st.integers(2, 60), st.lists(st.integers(0, 60), max_size=8), st.sampled_from([0.0, 1e8]))
def test_moments_of_any_split_merged_in_any_order(seed, count, cuts, offset):
    samples = normal(seed, count, 3) + offset
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [moments_of(samples[a:b]) for a, b in pairwise(bounds)]
    order = random.Random(seed)
    while len(parts) > 1:
        first, second = (parts.pop(order.randrange(len(parts))) for _ in range(2))
        parts.append(merge(first, second))
    mean, spread = exact_moments(samples)
    # Rounding alone: a difference of two means near the offset is known to a few units in the offset's last place.
    rounding = 64 * EPS * (1.0 + offset)
    assert parts[0].samples == count
    torch.testing.assert_close(parts[0].mean, mean, rtol=16 * EPS, atol=16 * EPS)
    torch.testing.assert_close(variance(parts[0]), spread, rtol=rounding, atol=rounding**2)
    torch.testing.assert_close(variance(parts[0]), samples.var(0), rtol=rounding, atol=rounding**2)


@given(st.integers(0, 2**31), st.integers(2, 40), st.sampled_from([0.0, 1e8]))
def test_one_sample_at_a_time(seed, count, offset):
    samples, moments = normal(seed, count, 3) + offset, no_samples(3)
    for sample in samples:
        moments = add_samples(moments, sample.unsqueeze(0))
    torch.testing.assert_close(variance(moments), exact_moments(samples)[1], rtol=64 * EPS * (1.0 + offset), atol=0.0)


def test_derived_quantities():
    samples = normal(0, 50, 4) * torch.tensor([1.0, 1e-6, 100.0, 3.0], dtype=torch.float64)
    moments = moments_of(samples)
    torch.testing.assert_close(standard_deviation(moments), samples.std(0))
    torch.testing.assert_close(standard_error(moments), samples.std(0) / math.sqrt(50))
    torch.testing.assert_close(total_standard_deviation(moments), samples.var(0).sum().sqrt())


def test_too_few_samples():
    nothing, one = no_samples(2), moments_of(normal(0, 1, 2))
    for moments in (nothing, one):
        for quantity in (variance, standard_deviation, standard_error):
            assert quantity(moments).isnan().all()
            assert quantity(moments).shape == (2,)
        assert total_standard_deviation(moments).isnan()
    assert merge(nothing, nothing).samples == 0
    assert merge(nothing, one).samples == merge(one, nothing).samples == 1
    assert add_samples(one, normal(0, 0, 2)) is one
    exact = torch.zeros(2, dtype=torch.float64)
    assert bias(nothing, exact).norm.isnan()
    assert bias(one, exact).norm == one.mean.norm()
    assert bias(one, exact).squared.isnan()


def test_samples_of_float32_are_summed_in_float64():
    samples = (normal(0, 20, 2) + 1e4).float()
    moments = moments_of(samples)
    assert moments.mean.dtype == moments.m2.dtype == torch.float64
    torch.testing.assert_close(variance(moments), exact_moments(samples.double())[1], rtol=1e-10, atol=0.0)


def test_moments_are_not_changed_by_what_follows():
    first = moments_of(normal(0, 5, 2))
    before = first.mean.clone(), first.m2.clone()
    add_samples(first, normal(1, 5, 2))
    assert torch.equal(first.mean, before[0])
    assert torch.equal(first.m2, before[1])


def test_corrected_bias_has_the_true_squared_bias_as_its_mean():
    # All 27 outcomes of 3 draws with replacement from 3 vectors, equally likely: expectations are plain means.
    population, offset = normal(3, 3, 2), torch.tensor([0.1, -0.2], dtype=torch.float64)
    exact = population.mean(0) - offset
    found = [bias(moments_of(torch.stack(draw)), exact) for draw in product(population, repeat=3)]
    squared = torch.stack([x.squared for x in found])
    torch.testing.assert_close(squared.mean(), offset.square().sum(), rtol=1e-12, atol=1e-14)
    assert squared.min() < 0.0
    noise = population.var(0, correction=0).sum() / 3
    norms = torch.stack([x.norm for x in found])
    torch.testing.assert_close(norms.square().mean(), offset.square().sum() + noise, rtol=1e-12, atol=1e-14)


@given(st.integers(0, 2**31), st.sampled_from([1e-200, 1.0, 1e200]))
def test_cosine_and_pearson(seed, scale):
    x, y = normal(seed, 4, 6), normal(seed + 1, 4, 6)
    expected = torch.stack([a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(cosine_accuracy(x * scale, y), expected, rtol=1e-12, atol=1e-14)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(x, y, strict=True)])
    torch.testing.assert_close(pearson(x * scale, y + 1.0), correlation, rtol=1e-12, atol=1e-14)
    assert cosine_accuracy(x[0], y[0]).shape == ()


def test_cosine_by_hand():
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[6.0, 8.0], [0.0, 5.0], [-2.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(cosine_accuracy(x, y), torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))


def test_vectors_without_a_direction_have_accuracy_zero():
    zero, x = torch.zeros(3, dtype=torch.float64), normal(0, 3)
    assert cosine_accuracy(zero, x) == cosine_accuracy(x, zero) == cosine_accuracy(zero, zero) == 0.0
    assert pearson(torch.full_like(x, 0.1), x) == pearson(x, torch.full_like(x, 0.1)) == 0.0
    assert cosine_accuracy(x * torch.nan, x).isnan()


@given(st.integers(0, 2**31), st.floats(-2000.0, 2000.0))
def test_effective_sample_size(seed, shift):
    log_weights = 2.0 * normal(seed, 5, 9)
    weights = log_weights.exp()
    expected = weights.sum(-1).square() / weights.square().sum(-1)
    found = effective_sample_size(log_weights + shift)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
    assert ((found >= 1.0) & (found <= 9.0)).all()


def test_effective_sample_size_at_its_ends():
    equal = torch.full((7,), -900.0, dtype=torch.float64)
    torch.testing.assert_close(effective_sample_size(equal), torch.tensor(7.0, dtype=torch.float64))
    some = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(effective_sample_size(some), torch.tensor(2.0, dtype=torch.float64))
    assert effective_sample_size(torch.full((3,), -torch.inf)).isnan()
