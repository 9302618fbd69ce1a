"""Returns, differentiable in γ and λ."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def lambda_returns(
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    is_terminal: Bool[Tensor, "T B"],
    is_truncated: Bool[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
) -> Float[Tensor, "T B"]:
    """λ-returns, bootstrapped from the value of the state after the last step.

    Equation: G_t = r_t + γ_t [(1 - λ_t) V(s_{t+1}) + λ_t G_{t+1}], G_T = V(s_T), with γ_t = γ (0 if step t is
    terminal) and λ_t = λ (0 if the episode ends at step t in either way: a truncated step bootstraps from its true
    successor's value, and nothing of the next episode enters). λ = 1: bootstrapped T-step return; λ = 0: one-step TD.

    Rows in which the policy did not choose (`valid` False in the trajectory) get a number too, which the losses leave
    out. After an episode's end no other row uses it; in the middle of one (a forced FIRE) the rows before it do.

    Source: Sutton & Barto (2018) eq. 12.20; the targets g_η of "One Step at a Time" (eq. 3, Table 2).
    """
    discount = gamma * (~is_terminal).to(reward.dtype)
    trace = lambda_ * (~(is_terminal | is_truncated)).to(reward.dtype)
    returns = [value[-1]] * (reward.shape[0] + 1)
    for t in reversed(range(reward.shape[0])):
        returns[t] = reward[t] + discount[t] * ((1.0 - trace[t]) * value[t + 1] + trace[t] * returns[t + 1])
    return torch.stack(returns[:-1])
