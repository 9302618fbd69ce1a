"""Computes the meta-gradient by an adjoint pass over the tape of a virtual unroll, and by a reverse-mode reference.

With sᵢ the optimizer state, gᵢ = ∇θ L(θᵢ, η; τᵢ) and (θᵢ₊₁, sᵢ₊₁) = A(θᵢ, sᵢ, gᵢ, η), i = 0…n-1, the meta-objective is
J = Σᵢ₌₁ⁿ wᵢ L'(θᵢ; τ'ᵢ). Its derivative is accumulated from the last step to the first:

    λ, σ ← wₙ ∇L'(θₙ), 0
    for i = n-1 … 0:
        (a, b, v, e₀) ← (λ, σ) ∂A/∂(θ, s, g, η)         one optimizer step backwards
        (h, e)        ← v ∂gᵢ/∂(θ, η)                    one second-order product
        dη += e + e₀ ;  λ ← a + h + wᵢ ∇L'(θᵢ) ;  σ ← b

Source: eq. 11 of "One Step at a Time" in the form of a program, with optimizer state and clip coefficient included.

The accumulative trace takes the Jacobian of one whole update, (I + H) of that equation, for μ I: λ ← μ λ, σ ← μ b, and
no h is ever computed.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require, require_one_of
from metagrad.optimizers import OptimizerState
from metagrad.shares import WHOLE, Shares, evaluating
from metagrad.tape import Tape, check_tape, whole_step
from metagrad.unroll import InnerProblem, Product, TapeStep

Estimator = Literal["n-step", "mix", "trace"]
OuterLoss = Callable[[Float[Tensor, "P"], Any], tuple[Float[Tensor, ""], Any]]
"""(θ, batch) to (scalar loss, anything to log)."""


class MetaGradient(NamedTuple):
    """Holds ∂J/∂η, and ∂J/∂θ₀ where it was asked for (what MAML needs)."""

    eta: Float[Tensor, "M"]
    theta: Float[Tensor, "P"] | None


def outer_weights(estimator: Estimator, n: int, kappa: float | None = None) -> tuple[float, ...]:
    """Return the weights w₁…wₙ of the outer losses along the look-ahead.

    n-step and trace (which differ in the adjoint pass): (0, …, 0, 1).
    mix: wᵢ = κⁱ⁻¹ (1 - κ) / (1 - κⁿ), κ = 1 - 1/n unless given; the limit 1/n at κ = 1.

    Source: "One Step at a Time" eq. 5 and eq. 10.

    >>> outer_weights("mix", 2)
    (0.6666666666666666, 0.3333333333333333)

    Raises:
        ConfigurationError: another estimator, n < 0, κ outside [0, 1] or not of mix.
    """
    require_one_of(estimator, Estimator, "estimator")
    require(n >= 0, "n", n, "counts updates", "use 0 for no look-ahead")
    is_mix = estimator == "mix"
    require(
        kappa is None or is_mix, "kappa", kappa, "is the decay of mix, and the estimator is another", "leave it out"
    )
    require(kappa is None or 0 <= kappa <= 1, "kappa", kappa, "must lie in [0, 1]", "use None for 1 - 1/n")
    if n == 0:
        return ()
    if estimator != "mix":
        return (0.0,) * (n - 1) + (1.0,)
    kappa = 1.0 - 1.0 / n if kappa is None else kappa
    total = sum(kappa**i for i in range(n))
    return tuple(kappa**i / total for i in range(n))


class OuterGradient(NamedTuple):
    """Holds ∇θ L'(θ; τ') of the whole batch, and of this process's share the loss and what it wants logged."""

    gradient: Float[Tensor, "P"]
    loss: Float[Tensor, ""]
    metrics: Any


def outer_gradient(
    outer_loss: OuterLoss, theta: Float[Tensor, "P"], batch: Any, shares: Shares = WHOLE
) -> OuterGradient:
    """Return the gradient of the outer loss at looked-ahead parameters; `shares` are those of the inner problem."""
    theta = theta.detach().requires_grad_()
    with evaluating(shares):
        loss, metrics = outer_loss(theta, batch)
    (gradient,) = shares.total(*torch.autograd.grad(loss, theta))
    return OuterGradient(gradient, loss.detach(), metrics)


def meta_gradient(
    problem: InnerProblem,
    tape: Tape,
    outer_gradients: Sequence[Float[Tensor, "P"] | None],
    product: Product,
    wants_theta: bool = False,
    trace: float | None = None,
    constant_state: int | None = None,
) -> MetaGradient:
    """Run the adjoint pass over a tape; it frees each retained graph as it goes.

    Args:
        problem: the inner problem that made the tape.
        tape: steps i = 0…n-1, n ≥ 1, made with keep_graph equal to (product == "retain").
        outer_gradients: wᵢ ∇L'(θᵢ; τ'ᵢ) for i = 1…n; None where the weight is 0, the last one given.
        product: how the second-order products are taken.
        wants_theta: also return ∂J/∂θ₀, at the price of one more product.
        trace: μ in [0, 1] of the accumulative trace, Σᵢ wᵢ ∇L'(θᵢ) Σⱼ μʲ⁻¹ Nᵢ₋ⱼ, N the direct dependence of
            an update on η; None: no approximation. μ = 1 is exact where ∇²L = 0; μ = 0 sees the last update before each
            outer loss alone. Source: Xu et al. (2018), "Meta-gradient RL"; "One Step at a Time" D.1. Deviation: the
            moments of the optimizer, which the papers' SGD lacks, decay alike.
        constant_state: i of an optimizer state sᵢ that carries no derivative: σ ← 0 there. None: all of them do.

    Raises:
        ConfigurationError: an argument that does not fit the others, or a tape that no longer holds what its updates
            saw (`metagrad.tape.check_tape`).
    """
    lengths = (len(tape), len(outer_gradients))
    rule, remedy = "there is one outer gradient for each step, at least one", "give None where a weight is 0"
    require(lengths[0] == lengths[1] >= 1, "len(tape), len(outer_gradients)", lengths, rule, remedy)
    require(trace is None or 0 <= trace <= 1, "trace", trace, "must lie in [0, 1]", "use None for no approximation")
    rule = f"is a state between two of the {len(tape)} updates, s₁ to sₙ₋₁"
    is_between = constant_state is None or 1 <= constant_state < len(tape)
    require(is_between, "constant_state", constant_state, rule, "leave it out, or look further ahead")
    check_tape(tape, product)
    _check_outer_gradients(outer_gradients, tape[0].gradient)
    adjoint: Tensor | None = outer_gradients[-1]
    state_adjoint: tuple[Tensor, ...] | None = None
    d_eta = torch.zeros_like(tape[0].eta)
    for i in reversed(range(len(tape))):
        assert adjoint is not None
        wants_h = trace is None and (i > 0 or wants_theta)
        step = whole_step(problem, tape, i)
        a, b, v, e0 = _update_adjoint(problem, step, adjoint, state_adjoint)
        if trace is not None:
            a, b = trace * adjoint, tuple(trace * x for x in b)
        state_adjoint = None if i == constant_state else b
        adjoint = None  # consumed: nothing of size P stays that the product, the peak of memory, does not need
        with evaluating(problem.shares):
            h, e = (_retained if product == "retain" else _recomputed)(problem, step, v, wants_h)
        if h is None:
            (e,) = problem.shares.total(e)
        else:
            h, e = problem.shares.total(h, e)
        d_eta = d_eta + e0 + e
        adjoint = a if trace is not None else a + h if h is not None else None
        outer = outer_gradients[i - 1] if i else None
        if adjoint is not None and outer is not None:
            adjoint = adjoint + outer
        del a, h, step
    return MetaGradient(d_eta, adjoint if wants_theta else None)


def _check_outer_gradients(outer_gradients: Sequence[Tensor | None], like: Tensor) -> None:
    rule, remedy = "the last outer loss has a weight", "leave out the steps after the last one that has"
    require(outer_gradients[-1] is not None, "outer_gradients[-1]", None, rule, remedy)
    for i, outer in enumerate(outer_gradients):
        if outer is not None:
            found, expected = (outer.dtype, *outer.shape), (like.dtype, *like.shape)
            rule, remedy = f"is a gradient in θ, of dtype and shape {expected}", "use outer_gradient(…)"
            require(found == expected, f"outer_gradients[{i}]", found, rule, remedy)


def _update_adjoint(
    problem: InnerProblem, step: TapeStep, adjoint: Tensor, state_adjoint: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """Return what (λ, σ) become through one optimizer step: adjoints of θᵢ, sᵢ, gᵢ, η."""
    theta = step.theta.detach().requires_grad_()
    gradient = step.gradient.detach().requires_grad_()
    eta = step.eta.detach().requires_grad_()
    moments = tuple(x.detach().requires_grad_() for x in step.state.moments)
    with torch.enable_grad():
        state = OptimizerState(step.state.updates, moments)
        new_theta, new_state = problem.optimizer.update(gradient, state, theta, eta)
    outputs: tuple[Tensor, ...] = (new_theta,)
    adjoints: tuple[Tensor, ...] = (adjoint,)
    if state_adjoint is not None:
        outputs, adjoints = outputs + new_state.moments, adjoints + state_adjoint
    inputs = (theta, gradient, eta, *moments)
    a, v, e0, *b = torch.autograd.grad(outputs, inputs, adjoints, allow_unused=True, materialize_grads=True)
    return a, tuple(b), v, e0


def _retained(_problem: InnerProblem, step: TapeStep, v: Tensor, wants_h: bool) -> tuple[Tensor | None, Tensor]:
    """Return (h, e) = v ∂g/∂(θ, η) by reverse mode through the graph that the update kept."""
    if not step.gradient.requires_grad:  # L is linear in θ and free of η: nothing of second order
        return torch.zeros_like(v) if wants_h else None, torch.zeros_like(step.eta)
    inputs = (step.theta, step.eta) if wants_h else (step.eta,)
    products = torch.autograd.grad(step.gradient, inputs, v, allow_unused=True, materialize_grads=True)
    return (products[0] if wants_h else None), products[-1]


def _recomputed(problem: InnerProblem, step: TapeStep, v: Tensor, wants_h: bool) -> tuple[Tensor | None, Tensor]:
    """Compute (h, e) from plain values: the gradient's graph again, or only ∂η of the directional derivative along v.

    For h, reverse over reverse takes an eighth less time and a quarter less memory than forward over reverse (Nature
    network on a CPU core); for e alone, reverse over forward takes two fifths of either.
    """
    theta, eta = step.theta.detach(), step.eta.detach()
    loss = problem.loss if problem.derivative is None else problem.derivative
    if wants_h:
        theta, eta = theta.requires_grad_(), eta.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(theta, eta, step.batch)[0], theta, create_graph=True)
        return _retained(problem, step._replace(theta=theta, eta=eta, gradient=gradient), v, wants_h)

    # e = ∂η (∂θ L · v): the directional derivative in forward mode, then a reverse pass that ends at η.
    def slope(eta: Tensor) -> Tensor:
        return torch.func.jvp(lambda theta: loss(theta, eta, step.batch)[0], (theta,), (v,))[1]

    return None, torch.func.grad(slope)(eta)


def reference_meta_gradient(
    problem: InnerProblem,
    outer_loss: OuterLoss,
    theta: Float[Tensor, "P"],
    state: OptimizerState,
    eta: Float[Tensor, "M"],
    batches: Sequence[Any],
    outers: Sequence[tuple[float, Any]],
) -> MetaGradient:
    """Compute the same derivative by one reverse pass through the whole n-step graph, for tests and benchmarks.

    `batches` are τ₀…τₙ₋₁, `outers` (w₁, τ'₁)…(wₙ, τ'ₙ); a batch of weight 0 is not looked at.
    """
    theta_0 = theta.detach().requires_grad_()
    eta = eta.detach().requires_grad_()
    theta, objective = theta_0, theta_0[:0].sum()  # an empty sum that has a graph: n = 0 gives zeros
    for batch, (weight, outer_batch) in zip(batches, outers, strict=True):
        loss, _ = problem.loss(theta, eta, batch)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        if problem.derivative is not None:
            (curvature,) = torch.autograd.grad(problem.derivative(theta, eta, batch)[0], theta, create_graph=True)
            gradient = gradient.detach() + curvature - curvature.detach()
        theta, state = problem.optimizer.update(gradient, state, theta, eta)
        if weight:
            objective = objective + weight * outer_loss(theta, outer_batch)[0]
    d_eta, d_theta = torch.autograd.grad(objective, (eta, theta_0), allow_unused=True, materialize_grads=True)
    return MetaGradient(d_eta, d_theta)
