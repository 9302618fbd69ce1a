"""Normalises observations and rewards by statistics of all that a run has trained on.

Observations: x ← clip((x - mean) / deviation), where mean and deviation of each component are part of θ without a
derivative; pictures at the beginning of a mixed observation stay as they are. So an actor, an evaluation or an exported
policy acts by the statistics that belong to its θ. An optimizer leaves them alone, because their gradient is 0; only
the learner moves them (`with_statistics`).

Rewards: r ← clip(r / deviation), the deviation being that of the running discounted return R ← γ' R + r of each
environment, 0 after an end (`discounted_returns`).

Source: as Gymnasium's and Stable-Baselines3's normalising wrappers (Engstrom et al. 2020, "Implementation Matters in
Deep Policy Gradients", code-level optimizations 2, 4 and 5), in one batch at a time.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from metagrad import autodiff
from metagrad.shares import WHOLE, Shares
from metagrad.types import Trajectory

CLIP = 10.0
"""Normalised observations and rewards lie within ±10, as usual."""
_EPSILON = 1e-8


class Statistics(NamedTuple):
    """Holds moments of rows of D numbers, in float64; of no rows at first."""

    rows: Float[Tensor, ""]
    mean: Float[Tensor, "D"]
    m2: Float[Tensor, "D"]  # Σ (x - mean)²

    def inverse_deviation(self) -> Float[Tensor, "D"]:
        """Return 1/√(variance + 1e-8), the variance being m2/rows; 1 of no rows."""
        scale = torch.rsqrt(self.m2 / self.rows.clamp(min=1.0) + _EPSILON)
        return torch.where(self.rows > 0.0, scale, 1.0)


def no_statistics(size: int, device: torch.device | None = None) -> Statistics:
    """Return the statistics of no rows."""
    zeros = torch.zeros(size, dtype=torch.float64, device=device)
    return Statistics(zeros.new_zeros(()), zeros, zeros)


def with_rows(
    statistics: Statistics, x: Float[Tensor, "N D"], valid: Bool[Tensor, "N"], shares: Shares = WHOLE
) -> Statistics:
    """Add the valid rows of a batch, of which other processes may have shares.

    Sums are of distances from the mean so far; they are merged as counts (Chan, Golub & LeVeque 1983).
    """
    distance = torch.where(valid.unsqueeze(-1), x.to(statistics.mean) - statistics.mean, 0.0)
    own = torch.cat([valid.sum().to(distance).reshape(1), distance.sum(0), distance.square().sum(0)])
    (whole,) = shares.total(own)
    added, first, second = whole.split((1, len(statistics.mean), len(statistics.mean)))
    count = statistics.rows + added.squeeze()
    shift = first / count.clamp(min=1.0)
    return Statistics(count, statistics.mean + shift, statistics.m2 + second - shift.square() * count)


class Normaliser(nn.Module):
    """Holds mean and inverse deviation of observations as parameters that no loss differentiates."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(shape))
        self.scale = nn.Parameter(torch.ones(shape))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.scale)


def normalised_observation(
    observation: Shaped[Tensor, "N ..."], mean: Float[Tensor, "..."], scale: Float[Tensor, "..."]
) -> Float[Tensor, "N ..."]:
    """Return clip((x - mean) · scale), mean and scale being constants.

    Of flat observations longer than the mean, the last numbers are meant.
    """
    mean, scale = autodiff.stop_gradient(mean), autodiff.stop_gradient(scale)
    x = observation.to(mean.dtype)
    if observation.dim() == 2 and (pixels := observation.shape[1] - len(mean)):
        return torch.cat([x[:, :pixels], normalised_observation(x[:, pixels:], mean, scale)], 1)
    return ((x - mean) * scale).clamp(-CLIP, CLIP)


def next_return(
    discounted: Float[Tensor, "B"], reward: Float[Tensor, "B"], is_end: Bool[Tensor, "B"], gamma: float
) -> Float[Tensor, "B"]:
    """Return γ R + r, or 0 where the episode ended."""
    return torch.where(is_end, 0.0, gamma * discounted + reward)


def discounted_returns(trajectory: Trajectory, gamma: float) -> Float[Tensor, "T B"]:
    """Return R_t = γ R_{t-1} + r_t of each step, from the `first_return` that the trajectory brings; 0 after an end."""
    assert trajectory.first_return is not None
    before, rows = trajectory.first_return, []
    for reward, is_end in zip(trajectory.reward, trajectory.is_terminal | trajectory.is_truncated, strict=True):
        rows.append(gamma * before + reward)
        before = torch.where(is_end, 0.0, rows[-1])
    return torch.stack(rows)


def with_scaled_reward(trajectory: Trajectory, returns: Statistics) -> Trajectory:
    """Return the trajectory with rewards divided by the deviation of discounted returns, and clipped."""
    reward = trajectory.reward * returns.inverse_deviation().to(trajectory.reward.dtype)
    return trajectory._replace(reward=reward.clamp(-CLIP, CLIP))
