"""Inner and outer actor-critic losses by V-trace: rollouts may come from another policy than the one that is trained.

The ratios π/μ come from the trajectory's `behaviour_log_prob` and are constants in θ, as V-trace's targets and
advantages are; γ, λ, both clips and the coefficients carry derivatives. On the policy's own rollouts, with clips of at
least 1 and a policy coefficient of 1, these are the losses of `metagrad.losses`.
"""

from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.losses import (
    Estimates,
    LossMetrics,
    OuterObjective,
    action_log_prob,
    actor_critic_loss,
    forward,
    inner_heads,
    outer_critic_head,
    policy_gradient_loss,
    with_outer_critic,
    without_unused_rows,
)
from metagrad.meta_parameters import Hyperparameters
from metagrad.networks import Network
from metagrad.returns import vtrace
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory

OUTER_CLIP = 1.0  # ρ̄ and c̄ of the outer objective, which nothing tunes: as IMPALA


def log_ratio(logits: Float[Tensor, "T B A"], trajectory: Trajectory) -> Float[Tensor, "T B"]:
    """log π_⊥θ(a_t|s_t) - log μ(a_t|s_t), μ the policy that acted."""
    return action_log_prob(autodiff.stop_gradient(logits), trajectory) - trajectory.behaviour_log_prob


def vtrace_estimates(
    log_ratio: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    trajectory: Trajectory,
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
    rho_clip: Float[Tensor, "1"] | float,
    c_clip: Float[Tensor, "1"] | float,
) -> Estimates:
    """`metagrad.returns.vtrace` over ⊥V; the advantage has the clipped ratio as a factor."""
    estimates = vtrace(
        log_ratio,
        trajectory.reward.to(value.dtype),
        autodiff.stop_gradient(value),
        trajectory.is_terminal,
        trajectory.is_truncated,
        trajectory.valid,
        gamma,
        lambda_,
        rho_clip,
        c_clip,
    )
    return Estimates(estimates.target, estimates.policy_advantage)


def vtrace_inner_loss(
    network: Network,
    theta: Float[Tensor, "P"],
    hyper: Hyperparameters,
    trajectory: Trajectory,
    surrogate: Surrogate,
    outer: OuterObjective,
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """V-trace actor-critic loss whose hyper-parameters are tensors, plus the outer critic's own regression.

    Equation: L(θ, η) = mean[-c_p A s(log π) + c_v (v - V)² - c_e H(π) + c_o (v' - V')²] over valid steps; v and A are
    V-trace's under γ, λ, ρ̄, c̄ over ⊥V, A with its factor min(ρ̄, π_⊥θ/μ); v' is V-trace's under γ', λ' and clips of
    `OUTER_CLIP` over ⊥V'. Where the ratio is below ρ̄, A s of `lvc` is the unclipped π_θ/μ times the advantage.

    Args:
        network: with an outer critic, if `outer` uses one.
        theta: θ.
        hyper: "gamma", "lambda", "policy_coefficient", "value_coefficient", "entropy_coefficient", "rho_clip",
            "c_clip".
        trajectory: T steps of any policy; its `behaviour_log_prob` says which.
        surrogate: s.
        outer: γ', λ', c_o.

    Source: Espeholt et al. (2018), "IMPALA", §4.2; which hyper-parameters are learnt: Zahavy et al. (2020), "A
    Self-Tuning Actor-Critic Algorithm". Deviations: means over steps instead of sums; (v - V)² without the factor ½;
    the clips themselves are learnt (`metagrad.returns.vtrace`); the outer critic is the debiasing paper's.
    """
    trajectory = without_unused_rows(trajectory)
    outputs = forward(network, theta, trajectory, inner_heads(outer))
    ratio = log_ratio(outputs["logits"], trajectory)
    rates = (hyper["gamma"], hyper["lambda"], hyper["rho_clip"], hyper["c_clip"])
    estimates = vtrace_estimates(ratio, outputs["value"], trajectory, *rates)
    weight = hyper["policy_coefficient"] * estimates.advantage
    loss, metrics = actor_critic_loss(outputs, trajectory, hyper, surrogate, estimates, weight)
    if not outer.uses_outer_critic:
        return loss, metrics
    outer_value = outputs["outer_value"]
    target = _outer_estimates(ratio, outer_value, trajectory, outer).target
    return with_outer_critic(loss, metrics, target, outer_value, trajectory.valid, outer)


def vtrace_outer_loss(
    network: Network, theta: Float[Tensor, "P"], trajectory: Trajectory, outer: OuterObjective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`metagrad.losses.outer_loss` on rollouts of any policy, and the mean outer advantage.

    Equation: L'(θ) = -mean[⊥A' log π_θ], A' V-trace's advantage under γ', λ' and clips of `OUTER_CLIP`.

    Source: Zahavy et al. (2020), whose outer loss is IMPALA's policy gradient too. Deviation: theirs also has its value
    loss, entropy bonus and a KL divergence between the policies before and after the update.
    """
    critic = outer_critic_head(outer)
    trajectory = without_unused_rows(trajectory)
    outputs = forward(network, theta, trajectory, ("logits", critic))
    ratio = log_ratio(outputs["logits"], trajectory)
    advantage = _outer_estimates(ratio, outputs[critic], trajectory, outer).advantage
    return policy_gradient_loss(outputs["logits"], trajectory, advantage, outer)


def _outer_estimates(ratio: Tensor, value: Tensor, trajectory: Trajectory, outer: OuterObjective) -> Estimates:
    return vtrace_estimates(ratio, value, trajectory, outer.gamma, outer.lambda_, OUTER_CLIP, OUTER_CLIP)
