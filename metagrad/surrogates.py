"""Defines score-function estimators of a policy's objective, and says which gradient and which Hessian they give.

Two forms. A *surrogate* s is a factor per step: a policy-gradient loss is -mean(A · s(log π)). All of them have the
derivative ∇log π_t at the parameters where they are taken, so the gradient, and with it every inner update, is the same
sample by sample; what differs is the second derivative, which is all that a meta-gradient adds. An *objective* (`dice`,
`off_policy_dice`) is a scalar of whole episodes whose value and derivatives of every order are unbiased.

With ρ_t = π(a_t|s_t)/⊥π(a_t|s_t), L_t = Σ_{k≤t} log π_k over the steps of an episode and Q the exact action value, the
exact Hessian of J = E[Σ γ^t r_t] is H1 + H2 + H12 + H12ᵀ (Furmston et al. (2016); Rothfuss et al. (2019), "ProMP"),

    H1 = E[Σ γ^t Q_t ∇log π_t ∇log π_tᵀ],   H2 = E[Σ γ^t Q_t ∇²log π_t],   H12 = E[Σ γ^t ∇log π_t ∇Q_tᵀ].

    estimator    s_t                        second derivative of s_t                 expected Hessian
    ad           log π_t                    ∇²log π_t                                H2 - E[Σ γ^t b_t ∇²log π_t]
    lvc          ρ_t                        ∇²π_t/π_t                                H1 + H2, whatever the baseline
    loaded-dice  Π_{k≤t} ρ_k - Π_{k<t} ρ_k  ∇²L_t + ∇L_t∇L_tᵀ - the same at t - 1    exact, whatever the baseline
    dice         Π_{k≤t} ρ_k, times r_t     ∇²L_t + ∇L_t∇L_tᵀ                        exact

for A_t = G_t - b(s_t) with full returns G; bootstrapped or λ-returns move the expectations of all alike. Variance:
`ad` and `lvc` have one step's score per term (which of the two is lower depends on the policy), the other two products
of scores of all steps before.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagrad import autodiff
from metagrad.errors import require
from metagrad.shares import present

SurrogateName = Literal["ad", "lvc", "loaded-dice"]
Surrogate = Callable[[Float[Tensor, "T B"], Bool[Tensor, "T B"]], Float[Tensor, "T B"]]
"""(log_prob, is_last) -> s. `is_last`: the episode ended at step t, terminal or truncated. Steps that the policy did
not choose come with a constant log_prob of 0 and are then no factor of any product."""


def _check_rows(log_prob: Tensor, **others: Tensor | None) -> None:
    """Refuse shapes that would broadcast, and flags that `~` would misread."""
    for name, other in others.items():
        if other is not None:
            rule, remedy = f"there is one for each of log_prob, {tuple(log_prob.shape)}", "make the shapes agree"
            require(other.shape == log_prob.shape, f"{name}.shape", tuple(other.shape), rule, remedy)
            if name == "is_last":
                require(other.dtype == torch.bool, "is_last.dtype", other.dtype, "is a truth value", "use .bool()")


def ad(log_prob: Float[Tensor, "T B"], is_last: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return s_t = log π_t, whatever the episode: plain automatic differentiation.

    First order: ∇log π_t. Second order: ∇²log π_t, which misses H1 and H12 and depends on the baseline: the most biased
    Hessian, of low variance (for a softmax over a table its terms do not even depend on the action).

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §4.2.
    """
    _check_rows(log_prob, is_last=is_last)
    return log_prob


def lvc(log_prob: Float[Tensor, "T B"], is_last: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return s_t = π_t/⊥π_t, whatever the episode: low-variance curvature.

    First order: ∇log π_t. Second order: ∇²log π_t + ∇log π_t ∇log π_tᵀ = ∇²π_t/π_t; of the exact Hessian it misses the
    cross terms H12 + H12ᵀ, which are small near a local optimum. Low variance.

    The loss value is that of a constant 1 per step; only its derivatives carry meaning.

    Source: Rothfuss et al. (2019), "ProMP"; "A Theoretical Understanding of Gradient Bias in Meta-RL", §4.4, 5.3.
    """
    _check_rows(log_prob, is_last=is_last)
    return torch.exp(log_prob - autodiff.stop_gradient(log_prob))


def loaded_dice(log_prob: Float[Tensor, "T B"], is_last: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return Loaded-DiCE, s_t = Π_{k≤t} ρ_k - Π_{k<t} ρ_k over the steps of t's episode within the rollout.

    First order: ∇log π_t. Second order: ∇²log π_t + ∇log π_t ∇log π_tᵀ + ∇log π_t ∇L_{t-1}ᵀ + ∇L_{t-1} ∇log π_tᵀ;
    unbiased where the episode began within the rollout, for every baseline in A. With A the full return it is DiCE, all
    derivatives alike; any other advantage (baseline, bootstrap, λ) trades bias for variance. More variance than `lvc`,
    by the cross terms.

    The loss value is that of a constant 0 per step. A rollout that begins in the middle of an episode has no factors
    for the steps before it.

    Source: Farquhar et al. (2019), "Loaded DiCE", without its decay of the past (λ = 1).
    """
    _check_rows(log_prob, is_last=is_last)
    ratio = log_prob - autodiff.stop_gradient(log_prob)
    log_product = _sum_within_episode(ratio, is_last)
    return torch.exp(log_product) - torch.exp(log_product - ratio)


def _sum_within_episode(x: Float[Tensor, "T B"], is_last: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return Σ_{k≤t} x_k over the steps k of t's episode.

    By doubling (after round i, element t holds its last 2^i steps): a few kernels on whole tensors, and nothing of
    another episode enters and is subtracted again, as it would be with one cumulative sum over the rollout.
    """
    steps = len(x)
    # joined[t]: the `reach` steps before t, which x[t] does not hold yet, begin in t's episode.
    joined = torch.cat([torch.zeros_like(is_last[:1]), ~is_last[:-1]])
    reach = 1
    while reach < steps:
        before = torch.cat([torch.zeros_like(x[:reach]), x[:-reach]])
        x = x + torch.where(joined, before, 0.0)
        joined = joined & torch.cat([torch.zeros_like(joined[:reach]), joined[:-reach]])
        reach *= 2
    return x


SURROGATES: dict[SurrogateName, Surrogate] = {"ad": ad, "lvc": lvc, "loaded-dice": loaded_dice}


def discounts(like: Float[Tensor, "T B"], gamma: Float[Tensor, "1"] | float) -> Float[Tensor, "T 1"]:
    """Return γ^t of every row t, differentiable in γ."""
    if isinstance(gamma, Tensor):
        rule, remedy = "is one number for all steps", "give a float or a tensor with one element"
        require(gamma.numel() == 1, "gamma.shape", tuple(gamma.shape), rule, remedy)
    else:
        require(0 <= gamma <= 1, "gamma", gamma, "must lie in [0, 1]", "choose a value inside")
    return (gamma ** torch.arange(len(like), dtype=like.dtype, device=like.device)).unsqueeze(-1)


def discounted_objective(
    surrogate: Surrogate,
    log_prob: Float[Tensor, "T B"],
    advantage: Float[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
) -> Float[Tensor, ""]:
    """Return the surrogate objective of B episodes that begin at row 0 and do not end before row T - 1.

    Equation: mean_B Σ_t γ^t A_t s_t. Its gradient is the discounted policy gradient, its Hessian the surrogate's.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", appendix G.1, and its released code.
    """
    _check_rows(log_prob, advantage=advantage)
    is_last = torch.zeros_like(log_prob, dtype=torch.bool)
    return present().mean((discounts(log_prob, gamma) * advantage * surrogate(log_prob, is_last)).sum(0))


def dice(
    log_prob: Float[Tensor, "T B"],
    reward: Float[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
    value: Float[Tensor, "T B"] | None = None,
) -> Float[Tensor, ""]:
    """Return the DiCE objective of B episodes that begin at row 0, with an optional baseline.

    Equation: mean_B [Σ_t γ^t □(L_t) r_t + Σ_t γ^t (1 - □(log π_t)) V(s_t)], □(x) = exp(x - ⊥x), L_t = Σ_{k≤t} log π_k.

    Value: the mean discounted return. First order: REINFORCE with reward-to-go, Σ γ^t ∇log π_t (G_t - V_t). Second
    order: Σ γ^t r_t [∇²L_t + ∇L_t∇L_tᵀ] - Σ γ^t V_t ∇²π_t/π_t. The expectation of every order is exact: given s_t, the
    mean of 1 - □ is 0 as a function of θ. The baseline is made for the first order; a good V takes more variance out of
    the second one as the baseline of Loaded-DiCE (`loaded_dice` on G - V), whose terms carry Π_{k<t} ρ_k as well.

    `reward` and `value` may carry derivatives of their own (a learnt reward); make `value` constant where it may not.
    For several players, log_prob is the sum of theirs.

    Source: Foerster et al. (2018), "DiCE", objective and baseline; discounting as in the gradient-bias paper's release.
    """
    return off_policy_dice(log_prob, autodiff.stop_gradient(log_prob), reward, gamma, value)


def off_policy_dice(
    log_prob: Float[Tensor, "T B"],
    behaviour_log_prob: Float[Tensor, "T B"],
    reward: Float[Tensor, "T B"],
    gamma: Float[Tensor, "1"] | float,
    value: Float[Tensor, "T B"] | None = None,
) -> Float[Tensor, ""]:
    """Compute DiCE on B episodes of another policy μ: per-decision importance sampling, differentiated.

    Equation: mean_B [Σ_t γ^t (Π_{k≤t} π_k/μ_k) r_t + Σ_t γ^t (1 - π_t/μ_t) V(s_t)], log μ a constant.

    Value, gradient and Hessian: those of J itself in expectation, where μ gives every action of π some probability,
    with and without V: given s_t, E_μ[1 - π_t/μ_t] = 0 as a function of θ. With μ = ⊥π it is `dice`, in every order.
    Variance grows exponentially in T with the distance of π and μ; nothing is clipped. See
    `diagnostics.effective_sample_size`.

    Deviation: none from the release, whose baseline this is. Weighting it with the past, γ^t Π_{k<t} ρ_k (1 - ρ_t) V_t
    with ρ = π/μ, has zero mean too and gives the doubly robust Σ γ^t Π_{k≤t} ρ_k (r_t + γV_{t+1} - V_t) + V_0: with a
    good V it is the better control variate of the value and of each derivative (over all trajectories of 20 random MDPs
    with 3 steps and exact V, median summed variance of the Hessian 0.46 of that without V, plain 0.95), with a bad V
    the worse (1.50, plain 1.14). The plain one is kept: it is what the published curves used, what `dice` is on-policy,
    and safer while V is learnt from little.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.2 and its released code; the weighted form:
    Jiang & Li (2016), "Doubly Robust Off-policy Value Evaluation".
    """
    _check_rows(log_prob, behaviour_log_prob=behaviour_log_prob, reward=reward, value=value)
    ratio = log_prob - autodiff.stop_gradient(behaviour_log_prob)
    discount = discounts(log_prob, gamma)
    objective = (discount * torch.exp(ratio.cumsum(0)) * reward).sum(0)
    if value is not None:
        objective = objective + (discount * (1.0 - torch.exp(ratio)) * value).sum(0)
    return present().mean(objective)
