"""Computes returns that are differentiable in γ, λ and the clips of importance ratios."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagrad.errors import require


def _check_rows(reward: Tensor, value: Tensor, *flags: Tensor) -> None:
    """Refuse shapes that would broadcast, and flags that `~` would misread."""
    rows, expected = tuple(reward.shape), (reward.shape[0] + 1, *reward.shape[1:])
    rule, remedy = f"must be {expected} for rewards of shape {rows}", "add the state after the last step"
    require(value.shape == expected, "value.shape", tuple(value.shape), rule, remedy)
    for flag in flags:
        found = (flag.dtype, *flag.shape)
        rule, remedy = f"a flag is a truth value for each reward, {(torch.bool, *rows)}", "use .bool()"
        require(found == (torch.bool, *rows), "is_terminal, is_truncated, valid", found, rule, remedy)


def _check_rates(**rates: Tensor | float) -> None:
    """Require one number each; tensors are not read, which would wait for the device and fail under vmap."""
    for name, rate in rates.items():
        if isinstance(rate, Tensor):
            rule, remedy = "is one number for all steps", "give a float or a tensor with one element"
            require(rate.numel() == 1, f"{name}.shape", tuple(rate.shape), rule, remedy)
        else:
            is_clip = name.endswith("_clip")
            rule = "must not be negative" if is_clip else "must lie in [0, 1]"
            require(0 <= rate and (is_clip or rate <= 1), name, rate, rule, "choose a value inside")


def lambda_returns(
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    is_terminal: Bool[Tensor, "T B"],
    is_truncated: Bool[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
) -> Float[Tensor, "T B"]:
    """Return λ-returns, bootstrapped from the value of the state after the last step.

    Equation: G_t = r_t + γ_t [(1 - λ_t) V(s_{t+1}) + λ_t G_{t+1}], G_T = V(s_T), with γ_t = γ (0 if step t is
    terminal) and λ_t = λ (0 if the episode ends at step t in either way: a truncated step bootstraps from its true
    successor's value, and nothing of the next episode enters). λ = 1: bootstrapped T-step return; λ = 0: one-step TD.

    Rows in which the policy did not choose (`valid` False in the trajectory) get a number too, which the losses leave
    out. After an episode's end no other row uses it; in the middle of one (a forced FIRE) the rows before it do.

    Source: Sutton & Barto (2018) eq. 12.20; the targets g_η of "One Step at a Time" (eq. 3, Table 2).
    """
    _check_rows(reward, value, is_terminal, is_truncated)
    _check_rates(gamma=gamma, lambda_=lambda_)
    is_last = is_terminal | is_truncated
    # What is multiplied by 0 is chosen out first: of the next episode nothing enters, NaN neither.
    following = torch.where(is_terminal, 0.0, value[1:])
    discount = gamma * (~is_terminal).to(reward.dtype)
    trace = lambda_ * (~is_last).to(reward.dtype)
    returns = [value[-1]] * (reward.shape[0] + 1)
    for t in reversed(range(reward.shape[0])):
        after = torch.where(is_last[t], following[t], returns[t + 1])
        returns[t] = reward[t] + discount[t] * ((1.0 - trace[t]) * following[t] + trace[t] * after)
    return torch.stack(returns[:-1])


class Vtrace(NamedTuple):
    """Holds what V-trace computes: the critic's target v and the policy's advantage."""

    target: Float[Tensor, "T B"]
    policy_advantage: Float[Tensor, "T B"]


def vtrace(  # noqa: PLR0913 (the paper's quantities, one by one; a structure for one call would only hide them)
    log_ratio: Float[Tensor, "T B"],
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    is_terminal: Bool[Tensor, "T B"],
    is_truncated: Bool[Tensor, "T B"],
    valid: Bool[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
    rho_clip: Float[Tensor, "1"] | float,
    c_clip: Float[Tensor, "1"] | float,
) -> Vtrace:
    """Compute V-trace: λ-returns of π from the steps of μ, by importance ratios that are clipped twice.

    Equation: v_t = V(s_t) + Σ_{k≥t} γ^{k-t} (Π_{t≤i<k} c_i) δ_k over the steps k of t's episode, with
    δ_k = ρ_k [r_k + γ_k V(s_{k+1}) - V(s_k)], ρ_k = min(ρ̄, π_k/μ_k), c_k = λ min(c̄, π_k/μ_k), and the advantage
    ρ_t [r_t + γ_t ((1 - λ_t) V(s_{t+1}) + λ_t v_{t+1}) - V(s_t)]. γ_t is γ, 0 if step t is terminal; λ_t is λ, 0 for
    the rollout's last step and where the episode is truncated at t, so that nothing of the next one enters (as in
    `lambda_returns`).

    On-policy (π = μ, clips of at least 1) v is the λ-return G and the advantage is G_t - V(s_t), for every λ.

    ρ̄ says whose values v estimates: V^π as ρ̄ → ∞, those of policies nearer to μ for smaller ones (at 0, v is V itself);
    c̄ and λ say how fast and at what variance. Where a ratio equals its clip, as every ratio does on-policy with clips
    of 1, the derivative in the clip is the mean of its two sides, half of that of the clipped side.

    Args:
        log_ratio: log π(a_t|s_t) - log μ(a_t|s_t), natural logarithm; as given: callers stop its gradient.
        reward: r_t.
        value: V(s_t); the last row only bootstraps. As given, too.
        is_terminal: no value beyond this step.
        is_truncated: the episode was cut; the next row of `value` is of its true successor.
        valid: False where the policy did not choose: the ratio of that step is 1, whatever `log_ratio` says.
        gamma: γ in [0, 1].
        lambda_: λ in [0, 1].
        rho_clip: ρ̄ ≥ 0; the paper wants ρ̄ ≥ c̄.
        c_clip: c̄ ≥ 0.

    Source: Espeholt et al. (2018), "IMPALA", eq. 1, §4.2 and remark 2 (λ). Learnt clips after Zahavy et al. (2020), "A
    Self-Tuning Actor-Critic Algorithm"; deviation: they learn how much of the clipped ratio is mixed with the unclipped
    one (leaky V-trace), here the thresholds themselves are learnt. The policy's ratio is clipped by the same ρ̄. The
    advantage's (1 - λ) V + λ v is rlax's; the paper bootstraps it from v_{t+1} alone, which is the same at λ = 1.
    """
    _check_rows(reward, value, is_terminal, is_truncated, valid)
    _check_rates(gamma=gamma, lambda_=lambda_, rho_clip=rho_clip, c_clip=c_clip)
    rule, remedy = f"must be that of rewards, {tuple(reward.shape)}", "give one ratio for each step"
    require(log_ratio.shape == reward.shape, "log_ratio.shape", tuple(log_ratio.shape), rule, remedy)
    ratio = torch.exp(torch.where(valid, log_ratio, 0.0))
    rho = _at_most(ratio, rho_clip)
    is_last = is_terminal | is_truncated
    next_value = torch.where(is_terminal, 0.0, value[1:])  # chosen out before it is multiplied by 0, as in λ-returns
    discount = gamma * (~is_terminal).to(reward.dtype)
    decay = discount * lambda_ * _at_most(ratio, c_clip) * (~is_last).to(reward.dtype)
    error = rho * (reward + discount * next_value - value[:-1])
    correction = torch.zeros_like(value[-1])
    corrections = []
    for t in reversed(range(reward.shape[0])):
        correction = error[t] + decay[t] * torch.where(is_last[t], 0.0, correction)
        corrections.append(correction)
    target = value[:-1] + torch.stack(corrections[::-1])
    following = torch.where(is_last, next_value, torch.cat([target[1:], value[-1:]]))
    next_target = torch.where(is_last, next_value, (1.0 - lambda_) * next_value + lambda_ * following)
    return Vtrace(target, rho * (reward + discount * next_target - value[:-1]))


def _at_most(ratio: Tensor, clip: Tensor | float) -> Tensor:
    return torch.minimum(ratio, clip) if isinstance(clip, Tensor) else ratio.clamp(max=clip)
