"""Runs many independent unrolls as one batched problem: Monte-Carlo meta-gradients and their spread.

N problems that share nothing are one problem whose parameters are the N vectors behind one another and whose loss is
the sum of the N losses: the gradient, the update and the adjoint pass of the sum fall apart into those of its terms. So
the tape and the adjoint pass of a single unroll serve N at once, with `torch.func.vmap` inside the loss; nothing is
approximated. Memory grows with N, so large samples are taken in chunks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import trees
from metagrad.errors import require
from metagrad.meta_gradient import OuterLoss, meta_gradient, outer_gradient
from metagrad.optimizers import Optimizer, OptimizerState
from metagrad.tape import Tape, recorded
from metagrad.unroll import InnerProblem, Loss, Product, inner_update, require_product

Sampler = Callable[[Float[Tensor, "N P"], int], Any]
"""(parameters θⱼ of N unrolls, j) to one fresh batch for each: a tree of tensors with a leading axis N.

Trees are lists, tuples, named tuples, dicts and dataclasses (`metagrad.trees`). Numbers, strings and None are shared by
all; an object of another kind, such as a numpy array, is refused. At j = 0…n-1 the batch is what update j
sees, at j = 1…n what the outer loss with weight wⱼ sees: one batch for each θⱼ, as in eq. 5 of "One Step at a Time".
"""


class LookAhead(NamedTuple):
    """Says how each unroll is scored and differentiated."""

    weights: Sequence[float]  # w₁…wₙ of `outer_weights`; nothing beyond the last one that is not 0 is unrolled
    product: Product = "retain"
    trace: float | None = None  # μ of the accumulative trace
    wants_theta: bool = False  # also ∂J/∂θ₀
    constant_state: int | None = None  # as in `meta_gradient`


class UnrollGradients(NamedTuple):
    """Holds the meta-gradients of N independent unrolls."""

    eta: Float[Tensor, "N M"]
    theta: Float[Tensor, "N P"] | None  # ∂J/∂θ₀, where it was asked for


def independent(problem: InnerProblem, copies: int) -> InnerProblem:
    """Make one problem of N copies of an inner problem: θ [N·P], η [N·M], batches with a leading axis N.

    Equation: L(θ, η; τ) = Σₖ L(θₖ, ηₖ; τₖ), A applied to each (θₖ, sₖ, gₖ, ηₖ). Metrics are not handed on: None.
    """
    require(copies >= 1, "copies", copies, "must be at least 1", "raise it")
    return InnerProblem(
        _summed(problem.loss, copies),
        _Independent(problem.optimizer, copies),
        None if problem.derivative is None else _summed(problem.derivative, copies),
    )


def unroll_gradients(
    problem: InnerProblem,
    outer_loss: OuterLoss,
    sampler: Sampler,
    start: tuple[Float[Tensor, "P"], OptimizerState, Float[Tensor, "M"]],
    look_ahead: LookAhead,
    copies: int,
) -> UnrollGradients:
    """Compute meta-gradients of N unrolls that start at one point and see independent data.

    Args:
        problem: the inner problem of one unroll.
        outer_loss: the outer loss of one unroll.
        sampler: data of all N.
        start: θ₀, the optimizer's state there, η.
        look_ahead: weights, product and approximation, as in `meta_gradient`.
        copies: N.

    Raises:
        ConfigurationError: an argument out of its range, or a batch whose tensors do not all have N rows.
    """
    weights, product, trace, wants_theta, constant_state = look_ahead
    theta, state, eta = start
    require_product(product)
    require(copies >= 1, "copies", copies, "must be at least 1", "raise it")
    require(all(map(math.isfinite, weights)), "weights", tuple(weights), "must be finite", "use outer_weights(…)")
    require(trace is None or 0 <= trace <= 1, "trace", trace, "must lie in [0, 1]", "use None for no approximation")
    n = max((i for i, weight in enumerate(weights, start=1) if weight), default=0)
    if n == 0:
        theta_gradient = theta.new_zeros(copies, theta.numel()) if wants_theta else None
        return UnrollGradients(eta.new_zeros(copies, eta.numel()), theta_gradient)
    many = independent(problem, copies)
    outer = _summed(lambda theta, _eta, batch: outer_loss(theta, batch), copies)
    theta, eta = theta.repeat(copies), eta.repeat(copies)
    state = OptimizerState(state.updates, tuple(moment.repeat(copies) for moment in state.moments))
    tape: Tape = ()
    outer_gradients: list[Tensor | None] = []
    batch = sampler(_split(theta, copies), 0)
    for i, weight in enumerate(weights[:n], start=1):
        update = inner_update(many, theta, state, eta, batch, keep_graph=product == "retain")
        theta, state = update.theta, update.state
        tape = recorded(tape, update.step)
        batch = sampler(_split(theta, copies), i)
        outer_gradients.append(
            weight * outer_gradient(lambda theta, batch: outer(theta, eta, batch), theta, batch).gradient
            if weight
            else None
        )
    gradient = meta_gradient(many, tape, outer_gradients, product, wants_theta, trace, constant_state)
    in_theta = None if gradient.theta is None else _split(gradient.theta, copies)
    return UnrollGradients(_split(gradient.eta, copies), in_theta)


def in_chunks(copies: int, at_once: int) -> Iterator[int]:
    """Sizes that add up to N, none above what fits into memory at once.

    >>> list(in_chunks(2048, 1000))
    [1000, 1000, 48]
    """
    require(copies >= 0, "copies", copies, "must not be negative", "use 0 for none")
    require(at_once >= 1, "at_once", at_once, "must be at least 1", "raise it")
    for done in range(0, copies, at_once):
        yield min(at_once, copies - done)


def _summed(loss: Loss, copies: int) -> Loss:
    """Return Σₖ L(θₖ, ηₖ; τₖ)."""

    def total(theta: Tensor, eta: Tensor, batch: Any) -> tuple[Tensor, None]:
        leaves = trees.tensors(batch)
        rule, remedy = f"a batch has one row for each of {copies} copies", "give every tensor a leading axis of copies"
        for x in leaves:
            require(x.shape[:1] == (copies,), "batch", f"a tensor of shape {tuple(x.shape)}", rule, remedy)

        def one(theta: Tensor, eta: Tensor, *own: Tensor) -> Tensor:
            parts = iter(own)
            value = loss(theta, eta, trees.map_tensors(lambda _: next(parts), batch))[0]
            rule, remedy = "a loss is one number", "take a mean or a sum"
            require(value.numel() == 1, "loss", f"a tensor of shape {tuple(value.shape)}", rule, remedy)
            return value

        many = torch.func.vmap(one, randomness="error")
        return many(_split(theta, copies), _split(eta, copies), *leaves).sum(), None

    return total


def _split(x: Tensor, copies: int) -> Tensor:
    """View N concatenated vectors as the rows of a matrix; also vectors of length 0."""
    return x.view(copies, x.numel() // copies)


@dataclass(frozen=True, slots=True)
class _Independent:
    """An optimizer applied to each of N parts of θ alone: a norm or a learnt learning rate is that part's own."""

    optimizer: Optimizer
    copies: int

    def init(self, theta: Float[Tensor, "NP"]) -> OptimizerState:
        return self.optimizer.init(theta)

    def update(
        self,
        gradient: Float[Tensor, "NP"],
        state: OptimizerState,
        theta: Float[Tensor, "NP"],
        eta: Float[Tensor, "NM"],
    ) -> tuple[Float[Tensor, "NP"], OptimizerState]:
        count = state.updates

        def one(
            gradient: Tensor, moments: tuple[Tensor, ...], theta: Tensor, eta: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            theta, new = self.optimizer.update(gradient, OptimizerState(count, moments), theta, eta)
            return theta, new.moments

        n = self.copies
        moments = tuple(_split(moment, n) for moment in state.moments)
        theta, moments = torch.func.vmap(one)(_split(gradient, n), moments, _split(theta, n), _split(eta, n))
        return theta.flatten(), OptimizerState(count + 1, tuple(x.flatten() for x in moments))
