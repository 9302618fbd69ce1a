"""Makes one inner update, and the tape that a virtual unroll leaves for the meta-gradient."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import trees
from metagrad.errors import require, require_one_of
from metagrad.optimizers import Optimizer, OptimizerState
from metagrad.shares import WHOLE, Shares, evaluating

Product = Literal["retain", "recompute"]
"""How the second-order product of a step is taken: from the update's retained graph, or computed again."""

Loss = Callable[[Float[Tensor, "P"], Float[Tensor, "M"], Any], tuple[Float[Tensor, ""], Any]]
"""(θ, η, batch) to (scalar loss, anything to log)."""


class InnerProblem(NamedTuple):
    """Defines what is differentiated through: the inner loss L(θ, η; τ) and the update A.

    `derivative` splits an update in two, value and derivative from different estimators: θ' takes its value from ∇θ of
    `loss`, and its derivatives in θ and η (the Hessian and the Jacobian of the meta-gradient) from ∇θ of `derivative`.
    Equation: θ' = ⊥θ_c + θ_h - ⊥θ_h with θ_c the update by `loss` and θ_h that by `derivative`; through an optimizer
    that is not linear in the gradient, A is linearised where the value was taken. Both losses are given the same
    batch, so independent data for them is a pair of which each takes its own.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.1.2.
    """

    loss: Loss
    optimizer: Optimizer
    derivative: Loss | None = None  # None: `loss` gives both
    shares: Shares = WHOLE  # of the batches, where several processes make the update together


def require_product(product: Product) -> None:
    """Refuse a misspelt product, which would be taken for the other one."""
    require_one_of(product, Product, "product")


class Seen(NamedTuple):
    """Holds what an inner update saw, so that the adjoint pass can tell whether it still sees the same."""

    batch: trees.Fingerprint  # before the loss was evaluated
    is_random: bool  # True: the loss drew from a global random generator
    starts: tuple[int, ...]  # writes to θᵢ and to the moments of sᵢ
    values: tuple[int, ...]  # writes to η and gᵢ


class TapeStep(NamedTuple):
    """Keeps what the adjoint pass needs of one inner update: θᵢ, sᵢ, η, τᵢ and gᵢ.

    None of them may be written to before the adjoint pass.

    Under `retain` θᵢ and η are the leaves of gᵢ's graph; under `recompute` all are plain values.
    """

    theta: Float[Tensor, "P"]
    state: OptimizerState
    eta: Float[Tensor, "M"]
    batch: Any
    gradient: Float[Tensor, "P"]
    seen: Seen

    @property
    def holds_graph(self) -> bool:
        """Return True for a step made with `keep_graph`: θᵢ is the leaf of a graph."""
        return self.theta.requires_grad


class InnerUpdate(NamedTuple):
    """Holds the result of one inner update; loss and metrics are of this process's share of the batch."""

    theta: Float[Tensor, "P"]
    state: OptimizerState
    loss: Float[Tensor, ""]
    metrics: Any
    step: TapeStep


def inner_update(
    problem: InnerProblem,
    theta: Float[Tensor, "P"],
    state: OptimizerState,
    eta: Float[Tensor, "M"],
    batch: Any,
    keep_graph: bool,
) -> InnerUpdate:
    """Make one ordinary update θ' = A(θ, s, ∇θ L(θ, η; τ), η), with the tape step for a later meta-gradient.

    θ' and s' carry no graph.

    Args:
        problem: the inner loss and the optimizer.
        theta: θ.
        state: s, from `optimizer.init` or the previous update.
        eta: η.
        batch: τ, whatever the loss takes; it must not be written to before the meta-gradient.
        keep_graph: True (`retain`) keeps the graph of the gradient on the tape; False (`recompute`, or an update that
            nobody differentiates) keeps values only.

    Raises:
        ConfigurationError: the optimizer changed the dtype or the shape of θ.
    """
    theta = theta.detach().requires_grad_()
    eta = eta.detach().requires_grad_(keep_graph)
    fingerprint, random_state = trees.Fingerprint(batch), trees.random_state(theta.device)
    with evaluating(problem.shares):
        loss, metrics = problem.loss(theta, eta, batch)
    is_random = trees.random_state(theta.device) != random_state
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=keep_graph and problem.derivative is None)
    (gradient,) = problem.shares.total(gradient)
    if keep_graph and problem.derivative is not None:
        with evaluating(problem.shares):
            of_derivative = problem.derivative(theta, eta, batch)[0]
        (curvature,) = torch.autograd.grad(of_derivative, theta, create_graph=True)
        gradient = gradient + (curvature - curvature.detach())
    with torch.no_grad():
        new_theta, new_state = problem.optimizer.update(gradient.detach(), state, theta.detach(), eta.detach())
    found, expected = (new_theta.dtype, *new_theta.shape), (theta.dtype, *theta.shape)
    rule, remedy = f"an update keeps dtype and shape of θ, {expected}", "look at the learning rate and the optimizer"
    require(found == expected, "optimizer.update", found, rule, remedy)
    if not keep_graph:
        theta = theta.detach()
    starts = tuple(trees.version(x) for x in (theta, *state.moments))
    seen = Seen(fingerprint, is_random, starts, (trees.version(eta), trees.version(gradient)))
    step = TapeStep(theta, state, eta, batch, gradient, seen)
    return InnerUpdate(new_theta, new_state, loss.detach(), metrics, step)
