"""Measures how good an estimate is: streaming moments of vectors, bias, cosine accuracy, effective sample size.

Moments are a NamedTuple in and out. However many samples of a deep network's meta-gradient are drawn, two vectors are
kept: their mean and their summed squared deviations from it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require


def _check_size(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse vectors of another size: one element would broadcast over all components."""
    rule, remedy = f"must be {expected}, as the other vector is", "compare vectors of one size"
    require(tuple(x.shape) == expected, f"{name}.shape", tuple(x.shape), rule, remedy)


class Moments(NamedTuple):
    """Holds first and second moments of a number of samples of a vector."""

    samples: int
    mean: Float[Tensor, "D"]
    m2: Float[Tensor, "D"]  # Σ (x - mean)²


class Bias(NamedTuple):
    """Holds the distance of an estimator's mean from the exact answer, with and without what sampling adds to it."""

    norm: Float[Tensor, ""]  # ‖mean - exact‖, never below what noise alone makes it
    squared: Float[Tensor, ""]  # ‖mean - exact‖² - tr(Var)/count: its mean is the true squared bias; may be negative


def no_samples(size: int, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Moments:
    """Return moments of no samples; `dtype` is that of the sums, float64 whatever the samples are.

    Example:
        >>> import torch
        >>> moments = add_samples(no_samples(1), torch.tensor([[1.0], [2.0], [6.0]]))
        >>> moments.samples, moments.mean.item(), variance(moments).item()
        (3, 3.0, 7.0)
    """
    zeros = torch.zeros(size, dtype=dtype, device=device)
    return Moments(0, zeros, zeros)


def add_samples(moments: Moments, samples: Float[Tensor, "N D"]) -> Moments:
    """Add N samples to the moments; with none they do not change."""
    _check_size("samples", samples, (len(samples), *moments.mean.shape))
    if not len(samples):
        return moments
    samples = samples.to(moments.mean)
    mean = samples.mean(0)
    return merge(moments, Moments(len(samples), mean, (samples - mean).square().sum(0)))


def merge(first: Moments, second: Moments) -> Moments:
    """Combine the moments of two sets of samples.

    Equation: δ = mean_b - mean_a, n = n_a + n_b, mean = mean_a + δ n_b/n, m2 = m2_a + m2_b + δ² n_a n_b/n.

    Source: Chan, Golub & LeVeque (1983), "Algorithms for Computing the Sample Variance", eq. 2.1; one sample at a time
    it is Welford's (1962) recursion.
    """
    _check_size("second.mean", second.mean, tuple(first.mean.shape))
    count = first.samples + second.samples
    if not count:
        return first
    delta = second.mean - first.mean
    mean = first.mean + delta * (second.samples / count)
    return Moments(count, mean, first.m2 + second.m2 + delta.square() * (first.samples * second.samples / count))


def variance(moments: Moments) -> Float[Tensor, "D"]:
    """Return the unbiased variance of each component, m2/(samples - 1).

    It is nan with fewer than two samples, as in torch.var.
    """
    if moments.samples < 2:
        return torch.full_like(moments.m2, torch.nan)
    return moments.m2 / (moments.samples - 1)


def standard_deviation(moments: Moments) -> Float[Tensor, "D"]:
    """Return the square root of each component's variance; nan with fewer than two samples."""
    return variance(moments).sqrt()


def standard_error(moments: Moments) -> Float[Tensor, "D"]:
    """Return the standard deviation of the mean of independent samples, std/√samples; nan with fewer than two."""
    return (variance(moments) / max(moments.samples, 1)).sqrt()


def total_standard_deviation(moments: Moments) -> Float[Tensor, ""]:
    """Return √tr(Var), the norm of the standard deviations: a sample's root mean squared distance from the mean."""
    return variance(moments).sum().sqrt()


def bias(estimate: Moments, exact: Float[Tensor, "D"]) -> Bias:
    """Return the bias of an estimator whose samples are in `estimate`.

    Equation: E‖mean - exact‖² = ‖E[x] - exact‖² + tr(Var)/count, and the second term is known.

    The corrected square of an unbiased estimator scatters around 0 and is below it about half of the time: it is not
    clipped, so that averages of it stay unbiased. nan with fewer than two samples; the plain norm needs only one.
    """
    _check_size("exact", exact, tuple(estimate.mean.shape))
    norm = torch.linalg.vector_norm(estimate.mean - exact.to(estimate.mean))
    if not estimate.samples:
        norm = torch.full_like(norm, torch.nan)
    return Bias(norm, norm.square() - standard_error(estimate).square().sum())


def cosine_accuracy(x: Float[Tensor, "*batch D"], y: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
    """Return the cosine of the angle between an estimate and the exact answer; 0 where one of them is the zero vector.

    Equation: Acc(x, y) = xᵀy/(√(xᵀx) √(yᵀy)).

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", eq. 63.
    """
    rule, remedy = f"has as many components as x, {x.shape[-1]}", "compare vectors of one size"
    require(x.shape[-1] == y.shape[-1], "y.shape", tuple(y.shape), rule, remedy)
    return (_unit(x) * _unit(y)).sum(-1)


def pearson(x: Float[Tensor, "*batch D"], y: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
    """Return the correlation over the components: the cosine of both less their own means.

    It is 0 where one of them is constant.

    Source: the released code of "A Theoretical Understanding of Gradient Bias in Meta-RL", in the place of its eq. 63.
    They agree where the components sum to about 0, as gradients in the logits of a softmax do.
    """
    return cosine_accuracy(_centred(x), _centred(y))


def _unit(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    # By the largest component first: squares of very small gradients would underflow.
    x = _divided(x, x.abs().amax(-1, keepdim=True))
    return _divided(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def _divided(x: Float[Tensor, "*batch D"], scale: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
    return torch.where(scale == 0.0, 0.0, x / scale)


def _centred(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Subtract the mean from the components; exactly 0 where all are equal, whatever their mean is rounded to."""
    is_constant = (x == x[..., :1]).all(-1, keepdim=True)
    return torch.where(is_constant, 0.0, x - x.mean(-1, keepdim=True))


def effective_sample_size(
    log_weights: Float[Tensor, "*batch N"], logsumexp: Callable[[Tensor, int], Tensor] = torch.logsumexp
) -> Float[Tensor, "*batch"]:
    """Return how many equally weighted samples N importance-weighted ones are worth, from 1 to N.

    Equation: ESS = (Σ w)²/Σ w², w = exp(log_weights), of whole trajectories: log w = Σ_t log π_t - log μ_t. In log
    space, so that products over long trajectories neither overflow nor vanish. nan where every weight is 0.
    `logsumexp` is over all weights, also those of a batch that other processes hold (`metagrad.shares`).

    Source: Kong (1992), "A Note on Importance Sampling using Standardized Weights"; Owen (2013), "Monte Carlo theory,
    methods and examples", eq. 9.13.
    """
    return (2.0 * logsumexp(log_weights, -1) - logsumexp(2.0 * log_weights, -1)).exp()


def added_up(facts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Add up sums and what they are of, by name.

    >>> added_up([{"return": (3.0, 2.0)}, {"return": (1.0, 1.0), "loss": (0.5, 1.0)}])
    {'return': (4.0, 3.0), 'loss': (0.5, 1.0)}
    """
    total: dict[str, tuple[float, float]] = {}
    for name, (amount, count) in (each for one in facts for each in one.items()):
        before = total.get(name, (0.0, 0.0))
        total[name] = (before[0] + amount, before[1] + count)
    return total
