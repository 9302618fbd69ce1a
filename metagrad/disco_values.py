"""Computes what DiscoRL's rule knows of values: Retrace on squashed categorical action values, and their moving scale.

Source: Oh et al. (2025), "Discovering state-of-the-art reinforcement learning algorithms", Nature, and its public
implementation. Shapes: T steps, B environments, A actions, bins the integers of squashed values from -max to max.
No gradient flows through anything here.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metagrad import autodiff
from metagrad.update_rules import of_actions

_SQUASH = 1e-3  # of the linear part, which keeps the squash invertible
_TIE = 1e-5  # in the weights of two bins
_VARIANCE_FLOOR, _DEVIATION_FLOOR = 1e-12, 1e-6


def squash(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return h(x) = sign(x) (√(|x| + 1) - 1) + .001 x (Pohlen et al. 2018)."""
    return x / ((x.abs() + 1.0).sqrt() + 1.0) + _SQUASH * x


def unsquash(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Invert `squash`.

    Equation: sign(x) (u² - 1), where e u² + u = e + 1 + |x| and e = .001; computed as x (u + 1) / (1 + e (u + 1)), in
    which nothing cancels. The textbook form loses three of float32's seven digits.
    """
    total = _SQUASH + 1.0 + x.abs()
    above = 2.0 * total / ((1.0 + 4.0 * _SQUASH * total).sqrt() + 1.0) + 1.0
    return x * above / (1.0 + _SQUASH * above)


def expected_value(logits: Float[Tensor, "*N bins"]) -> Float[Tensor, "*N"]:
    """Return the value, unsquashed, that logits over an odd number of bins stand for."""
    return unsquash((logits.softmax(-1) * _bins(logits)).sum(-1))


def two_hot(x: Float[Tensor, "*N"], like: Float[Tensor, "*N bins"]) -> Float[Tensor, "*N bins"]:
    """Return the weights of the two bins beside each squashed value, which is clipped to the bins of `like`.

    Equation: (u - x) / (u - l + 1e-5) on l = ⌊x⌋ and the rest on u = ⌈x⌉; all on x where that is whole.
    """
    bins = _bins(like)
    x = x.clamp(-(len(bins) // 2), len(bins) // 2).unsqueeze(-1)
    lower, upper = x.floor(), x.ceil()
    on_lower = (upper - x) / (upper - lower + _TIE)
    return torch.where(bins == lower, on_lower, 0.0) + torch.where(bins == upper, 1.0 - on_lower, 0.0)


def _bins(logits: Tensor) -> Tensor:
    largest = logits.shape[-1] // 2
    return torch.arange(-largest, largest + 1, dtype=logits.dtype, device=logits.device)


class MovingAverage(NamedTuple):
    """Holds decaying means of x and x², and what the decay has left of their initial zeros."""

    moment1: Float[Tensor, ""]
    moment2: Float[Tensor, ""]
    decay_product: Float[Tensor, ""]

    @classmethod
    def initial(cls) -> "MovingAverage":
        """Return the average of nothing."""
        return cls(torch.zeros(()), torch.zeros(()), torch.ones(()))

    def updated(self, x: Float[Tensor, "T B"], decay: float) -> "MovingAverage":
        """Return the average with one more batch in it."""
        return MovingAverage(
            decay * self.moment1 + (1.0 - decay) * x.mean(),
            decay * self.moment2 + (1.0 - decay) * x.square().mean(),
            decay * self.decay_product,
        )

    def normalised(self, x: Float[Tensor, "..."], is_centred: bool = True) -> Float[Tensor, "..."]:
        """Return x less the mean, unless told not to, and divided by the deviation; needs one batch at least."""
        weight = 1.0 - self.decay_product
        mean = self.moment1 / weight
        variance = (self.moment2 / weight - mean.square()).clamp(min=0.0)
        deviation = (variance + _VARIANCE_FLOOR).sqrt() + _DEVIATION_FLOOR
        return (x - mean if is_centred else x) / deviation


def retrace(
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    trace: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    action_value: Float[Tensor, "T B"],
) -> Float[Tensor, "T B"]:
    """Return the targets G of the values of the actions taken.

    Equation: G[t] = r[t] + d[t] (V[t+1] + c[t+1] (G[t+1] - Q[t+1])), without the correction at the last step.

    Source: Munos et al. (2016), "Safe and Efficient Off-Policy Reinforcement Learning".

    Args:
        reward: r.
        discount: d, 0 where the episode ends.
        trace: c, λ min(1, ρ) of the action at t.
        value: V.
        action_value: Q of the action taken at t.
    """
    target = reward[-1] + discount[-1] * value[-1]
    targets = [target]
    for t in range(len(reward) - 2, -1, -1):
        target = reward[t] + discount[t] * (value[t + 1] + trace[t + 1] * (target - action_value[t + 1]))
        targets.append(target)
    return torch.stack(targets[::-1])


class Values(NamedTuple):
    """Holds what is computed of one rollout; "target" is of the target network."""

    q: Float[Tensor, "T+1 B A"]
    target_q: Float[Tensor, "T+1 B A"]
    value: Float[Tensor, "T+1 B"]  # Σ π Q
    target_value: Float[Tensor, "T+1 B"]  # Σ π Q', of the online policy too
    rho: Float[Tensor, "T B"]  # π/μ of the action taken
    retraced: Float[Tensor, "T B"]  # G
    advantage: Float[Tensor, "T B"]  # G - V'
    action_advantage: Float[Tensor, "T+1 B A"]  # Q' - V'
    q_error: Float[Tensor, "T B"]  # G - Q of the action taken


def values(
    reward: Float[Tensor, "T B"],
    is_terminal: Bool[Tensor, "T B"],
    action: Int[Tensor, "T B"],
    q_logits: tuple[Float[Tensor, "T+1 B A bins"], Float[Tensor, "T+1 B A bins"]],
    logits: tuple[Float[Tensor, "T+1 B A"], Float[Tensor, "T+1 B A"]],
    decays: tuple[float, float],
) -> Values:
    """Compute the values of one rollout.

    Args:
        reward: of each step.
        is_terminal: True where the episode ends.
        action: taken.
        q_logits: of the online network and of the target network.
        logits: of the online policy π and of the behaviour policy μ.
        decays: the discount γ and the trace's λ.
    """
    q, target_q = (expected_value(autodiff.stop_gradient(x)) for x in q_logits)
    policy, behaviour = (autodiff.stop_gradient(x).log_softmax(-1) for x in logits)
    value, target_value = ((policy.exp() * x).sum(-1) for x in (q, target_q))
    gamma, lambda_ = decays
    rho = (of_actions(policy, action) - of_actions(behaviour, action)).exp()
    discount = gamma * (~is_terminal).to(reward.dtype)
    trace = lambda_ * rho.clamp(max=1.0)
    retraced = retrace(reward, discount, trace, target_value, of_actions(target_q, action))
    return Values(
        q=q,
        target_q=target_q,
        value=value,
        target_value=target_value,
        rho=rho,
        retraced=retraced,
        advantage=retraced - target_value[:-1],
        action_advantage=target_q - target_value.unsqueeze(-1),
        q_error=retraced - of_actions(q, action),
    )


def signed_log(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * torch.log1p(x.abs())
