"""Computes the gradient of a player's objective through the learning of another player (opponent shaping, LOLA).

Player 1 looks K updates of player 2 ahead, each of which depends on player 1's parameters, and improves its own
objective against what player 2 will have become. That is a meta-gradient whose meta-parameters are player 1's own
parameters η, whose inner problem is player 2's learning, and whose outer objective depends on η directly too:

    θᵢ₊₁ = A(θᵢ, ∇θ L₂(θᵢ, η)), i = 0…K-1        virtual updates of player 2, thrown away afterwards
    d/dη L₁(η, θ_K) = ∂η L₁ + (dθ_K/dη)ᵀ ∂θ L₁

Shapes: N learners, each with an opponent of its own, are one batched problem; P parameters of an opponent, M of a
learner.

Source: Foerster et al. (2018), "Learning with Opponent-Learning Awareness"; "A Theoretical Understanding of Gradient
Bias in Meta-RL", eq. 13 and A.2.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require
from metagrad.meta_gradient import meta_gradient
from metagrad.monte_carlo import Sampler, independent
from metagrad.tape import Tape, recorded
from metagrad.unroll import InnerProblem, Loss, Product, inner_update, require_product


class ShapingGradients(NamedTuple):
    """Holds the gradients of N learners' outer losses in their own parameters, and the opponents that they expected."""

    direct: Float[Tensor, "N M"]  # ∂η L₁ at θ_K: all that a learner sees that takes its opponent as given
    shaping: Float[Tensor, "N M"]  # (dθ_K/dη)ᵀ ∂θ L₁, through the opponents' updates; 0 at K = 0
    opponent: Float[Tensor, "N P"]  # θ_K
    outer_batch: Any  # what the outer loss saw

    @property
    def total(self) -> Float[Tensor, "N M"]:
        """Return the derivative itself."""
        return self.direct + self.shaping


def shaping_gradients(
    problem: InnerProblem,
    outer_loss: Loss,
    sampler: Sampler,
    opponent: Float[Tensor, "N P"],
    own: Float[Tensor, "N M"],
    steps: int,
    product: Product = "retain",
) -> ShapingGradients:
    """Compute gradients of N learners that look K updates of their opponents ahead.

    None of them sees another's look-ahead.

    Args:
        problem: the opponent's learning, one learner's: θ is the opponent's parameters, η the learner's.
        outer_loss: the learner's own loss, (θ_K, η, batch).
        sampler: data of all N, for the inner updates at j < K and for the outer loss at j = K.
        opponent: θ₀; the optimizer's state is fresh.
        own: η.
        steps: K; 0 is the ordinary gradient of a learner that takes its opponent as given.
        product: how second-order products are taken.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", eq. 13, there with K = 1.
    """
    require(steps >= 0, "steps", steps, "must not be negative", "use 0 for a learner that does not look ahead")
    require_product(product)
    copies = len(own)
    rule, remedy = f"there is one opponent for each of {copies} learners", "make the leading axes agree"
    require(len(opponent) == copies, "opponent.shape", tuple(opponent.shape), rule, remedy)
    many = independent(problem, copies)
    outer = independent(InnerProblem(outer_loss, problem.optimizer), copies).loss
    theta, eta = opponent.detach().flatten(), own.detach().flatten()
    state = many.optimizer.init(theta)
    tape: Tape = ()
    for j in range(steps):
        batch = sampler(theta.view_as(opponent), j)
        update = inner_update(many, theta, state, eta, batch, keep_graph=product == "retain")
        theta, state = update.theta, update.state
        tape = recorded(tape, update.step)
    batch = sampler(theta.view_as(opponent), steps)
    leaves = (theta.detach().requires_grad_(), eta.clone().requires_grad_())
    loss, _ = outer(*leaves, batch)
    of_opponent, direct = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    shaping = torch.zeros_like(eta)
    if steps:
        shaping = meta_gradient(many, tape, [None] * (steps - 1) + [of_opponent], product).eta
    return ShapingGradients(direct.view_as(own), shaping.view_as(own), theta.view_as(opponent), batch)
