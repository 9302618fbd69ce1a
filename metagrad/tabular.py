"""Gives exact answers for a finite Markov decision process: values, objective, Hessian, K-step meta-gradients.

The policy is a softmax of one logit for every state and action, so P = S·A. Everything is ordinary torch and goes
through `torch.func` (grad, jvp, hessian, vmap over parameters and over MDPs alike); use float64. What the estimators of
the library are measured against is here: no trajectory is sampled.

Shape legend, beyond that of `metagrad.types`: S states. An episode that ends is a state that leads to itself with
reward 0.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require
from metagrad.meta_gradient import MetaGradient, meta_gradient, outer_gradient
from metagrad.optimizers import Sgd, constant
from metagrad.unroll import InnerProblem, Product, inner_update, require_product


class TabularMdp(NamedTuple):
    """Describes a finite MDP; it is a tree of tensors, so a stack of MDPs (leading axis N) can be mapped over."""

    transition: Float[Tensor, "S A S"]  # P(s' | s, a)
    reward: Float[Tensor, "S A"]  # expected reward of a step
    initial: Float[Tensor, "S"]  # ρ₀, distribution of the first state
    gamma: float  # discount
    horizon: int | None  # steps of an episode; None: it never ends


def validate(mdp: TabularMdp) -> TabularMdp:
    """Return the MDP, or raise a ConfigurationError that names what is no distribution, shape or discount.

    >>> validate(TabularMdp(torch.ones(1, 2, 1), torch.zeros(1, 2), torch.ones(1), 1.0, 5)).horizon
    5
    """
    states, actions = mdp.reward.shape[0], mdp.reward.shape[-1]
    shapes = {"transition": (states, actions, states), "reward": (states, actions), "initial": (states,)}
    for name, shape in shapes.items():
        found = tuple(getattr(mdp, name).shape)
        require(found == shape, f"{name}.shape", found, f"must be {shape} with reward [S, A]", "give matching tensors")
    for name in ("transition", "initial"):
        p = getattr(mdp, name)
        error = max(float((p.sum(-1) - 1.0).abs().max()), -float(p.min()))
        require(error <= 1e-6, name, f"off by {error:.1e}", "must be distributions along the last axis", "normalise it")
    gamma, horizon = mdp.gamma, mdp.horizon
    require(0.0 <= gamma <= 1.0, "gamma", gamma, "must lie in [0, 1]", "lower it")
    require(horizon is not None or gamma < 1.0, "gamma", gamma, "must be below 1 without a horizon", "set a horizon")
    require(horizon is None or horizon >= 1, "horizon", horizon, "must be at least 1, or None", "raise it")
    return mdp


def log_policy(theta: Float[Tensor, "P"], actions: int) -> Float[Tensor, "S A"]:
    """Return log π(a | s) in nats: θ as one row of A logits for each state."""
    return torch.log_softmax(theta.view(-1, actions), dim=-1)


def policy(theta: Float[Tensor, "P"], actions: int) -> Float[Tensor, "S A"]:
    """Return the softmax policy π(a | s).

    >>> policy(torch.zeros(4), actions=2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return torch.softmax(theta.view(-1, actions), dim=-1)


def state_values(mdp: TabularMdp, theta: Float[Tensor, "P"]) -> Float[Tensor, "S"]:
    """Return V_π(s), the discounted return of a whole episode that starts in s.

    Equation: V = (I - γ P_π)⁻¹ r_π without a horizon; V₀ = 0, V_{h+1} = r_π + γ P_π V_h and V = V_H with horizon H.
    """
    rule, remedy = "θ has one logit for each state and action", "give S · A of them"
    require(theta.numel() == mdp.reward.numel(), "theta.shape", tuple(theta.shape), rule, remedy)
    pi = policy(theta, mdp.reward.shape[-1])
    reward = (pi * mdp.reward).sum(-1)
    transition = torch.einsum("sa,saz->sz", pi, mdp.transition)
    if mdp.horizon is None:
        identity = torch.eye(len(reward), dtype=reward.dtype, device=reward.device)
        # Not torch.linalg.solve: torch 2.13 gives wrong numbers for its forward-mode derivative under vmap, silently.
        return torch.linalg.inv(identity - mdp.gamma * transition) @ reward
    value = torch.zeros_like(reward)
    for _ in range(mdp.horizon):
        value = reward + mdp.gamma * (transition @ value)
    return value


def objective(mdp: TabularMdp, theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """Return J(θ) = ρ₀ · V_π, the expected discounted return; greater is better."""
    return mdp.initial @ state_values(mdp, theta)


def policy_gradient(mdp: TabularMdp, theta: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """Return ∇J(θ), exact and differentiable."""
    return torch.func.grad(lambda theta: objective(mdp, theta))(theta)


def hessian(mdp: TabularMdp, theta: Float[Tensor, "P"]) -> Float[Tensor, "P P"]:
    """Return ∇²J(θ), exact."""
    return torch.func.hessian(lambda theta: objective(mdp, theta))(theta)


def hessian_norm(mdp: TabularMdp, theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """Return ‖∇²J(θ)‖₂, the largest curvature at θ; its maximum over a convex set is ∇J's Lipschitz constant there."""
    return torch.linalg.eigvalsh(hessian(mdp, theta)).abs().amax()


def with_intrinsic_reward(mdp: TabularMdp, phi: Float[Tensor, "M"]) -> TabularMdp:
    """Return the same MDP with reward R + φ, M = S·A; an empty φ changes nothing.

    Source: LIRPG as in "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.1.
    """
    return mdp._replace(reward=mdp.reward + phi.view_as(mdp.reward)) if phi.numel() else mdp


def ascend(
    mdp: TabularMdp, theta: Float[Tensor, "P"], learning_rate: float | Float[Tensor, ""], steps: int
) -> Float[Tensor, "P"]:
    """Return θ_K after K exact steps θᵢ₊₁ = θᵢ + α ∇J(θᵢ), differentiable in θ₀, α and the MDP."""
    require(steps >= 0, "steps", steps, "must not be negative", "use 0 for none")
    for _ in range(steps):
        theta = theta + learning_rate * policy_gradient(mdp, theta)
    return theta


def exact_loss(theta: Float[Tensor, "P"], eta: Float[Tensor, "M"], mdp: TabularMdp) -> tuple[Float[Tensor, ""], None]:
    """Return -J as the inner loss of an `InnerProblem` whose batch is the MDP.

    The objective is on R + φ where η is φ, on R where it is empty.

    With `monte_carlo.independent` the batch is a stack of MDPs; close over the MDP where all copies share it.
    """
    return -objective(with_intrinsic_reward(mdp, eta), theta), None


def exact_outer_loss(theta: Float[Tensor, "P"], mdp: TabularMdp) -> tuple[Float[Tensor, ""], None]:
    """Return -J as an outer loss: reward R, whatever reward the inner updates saw."""
    return -objective(mdp, theta), None


def maml_meta_gradient(
    mdp: TabularMdp, theta: Float[Tensor, "P"], learning_rate: float, steps: int, product: Product = "retain"
) -> Float[Tensor, "P"]:
    """Return the exact ∂J(θ_K)/∂θ₀ with θᵢ₊₁ = θᵢ + α ∇J(θᵢ), by the adjoint pass of the library.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", eq. 3 with φ = θ⁰ (MAML-RL).
    """
    gradient = _meta_gradient(mdp, theta, theta.new_zeros(0), learning_rate, steps, product).theta
    assert gradient is not None
    return gradient.neg()


def lirpg_meta_gradient(
    mdp: TabularMdp,
    theta: Float[Tensor, "P"],
    phi: Float[Tensor, "M"],
    learning_rate: float,
    steps: int,
    product: Product = "retain",
) -> Float[Tensor, "M"]:
    """Return the exact ∂J_R(θ_K)/∂φ with θᵢ₊₁ = θᵢ + α ∇J_{R+φ}(θᵢ), M = S·A: the learnt intrinsic reward.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", eq. 3 and §5.1 (LIRPG).
    """
    return _meta_gradient(mdp, theta, phi, learning_rate, steps, product).eta.neg()


def _meta_gradient(
    mdp: TabularMdp, theta: Tensor, eta: Tensor, learning_rate: float, steps: int, product: Product
) -> MetaGradient:
    """Return the derivatives of -J(θ_K), K exact steps."""
    validate(mdp)
    require_product(product)
    require(steps >= 1, "steps", steps, "must be at least 1", "raise it")
    problem = InnerProblem(exact_loss, Sgd(learning_rate=constant(learning_rate)))
    state, tape = problem.optimizer.init(theta), []
    for _ in range(steps):
        update = inner_update(problem, theta, state, eta, mdp, keep_graph=product == "retain")
        theta, state = update.theta, update.state
        tape.append(update.step)
    outer = outer_gradient(exact_outer_loss, theta, mdp).gradient
    return meta_gradient(problem, tape, [None] * (steps - 1) + [outer], product, wants_theta=True)


def compositional_bias_bound(
    learning_rate: float, steps: int, lipschitz: float, gradient_std: float, trajectories: int
) -> float:
    """Bound E‖θ̂_K - θ_K‖, how far K sampled inner updates end from K exact ones.

    Equation: ((1 + α c₂)ᴷ - 1) σ / (c₂ √|τ|); its limit K α σ / √|τ| at c₂ = 0.
    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", Lemma 4.4 (eq. 6).

    Args:
        learning_rate: α of the inner updates.
        steps: K.
        lipschitz: c₂, Lipschitz constant of ∇J^In in θ wherever the sampled updates go (`hessian_norm`).
        gradient_std: σ, root of the summed variance of one trajectory's gradient estimate, greatest over updates.
        trajectories: |τ|, averaged over in each update.

    >>> round(compositional_bias_bound(0.5, 2, 1.0, 2.0, 4), 12)
    1.25
    """
    require(trajectories >= 1, "trajectories", trajectories, "must be at least 1", "raise it")
    require(steps >= 0, "steps", steps, "must not be negative", "use 0 for none")
    for name, value in (("learning_rate", learning_rate), ("lipschitz", lipschitz), ("gradient_std", gradient_std)):
        require(value >= 0.0, name, value, "must not be negative", "give its size")
    spread = gradient_std / math.sqrt(trajectories)
    growth = math.expm1(steps * math.log1p(learning_rate * lipschitz))  # exact to rounding for small α c₂ too
    return (growth / lipschitz if growth > 0.0 else steps * learning_rate) * spread
