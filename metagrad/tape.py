"""Keeps what the adjoint pass needs of a virtual unroll: every step whole, or gradients between checkpoints.

(θᵢ₊₁, sᵢ₊₁) = A(θᵢ, sᵢ, gᵢ, η) is elementwise arithmetic, next to nothing beside the gradient gᵢ. Under `recompute`
the tape therefore holds θᵢ and sᵢ at every fourth step alone and goes the rest of the way again from there, to the same
bits: with Adam 1.75 vectors of the size of θ a step in place of 4, for 1.5 more optimizer steps each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import trees
from metagrad.errors import require
from metagrad.unroll import InnerProblem, Product, Seen, TapeStep, require_product

CHECKPOINT_EVERY = 4


class ReplayedStep(NamedTuple):
    """Holds a step whose θᵢ and sᵢ follow from the steps before it on the tape."""

    eta: Float[Tensor, "M"]
    batch: Any
    gradient: Float[Tensor, "P"]
    seen: Seen


Tape = Sequence[TapeStep | ReplayedStep]


def recorded(tape: Tape, step: TapeStep) -> Tape:
    """Return the tape with one step more, without its θᵢ and sᵢ where these can be replayed."""
    if step.holds_graph or len(tape) % CHECKPOINT_EVERY == 0:
        return [*tape, step]
    return [*tape, ReplayedStep(step.eta, step.batch, step.gradient, step.seen)]


def whole_step(problem: InnerProblem, tape: Tape, i: int) -> TapeStep:
    """Return step i of a tape as the update left it, bit by bit."""
    step = tape[i]
    if isinstance(step, TapeStep):
        return step
    rule, remedy = "a tape begins with a whole step", "keep the steps before it"
    require(i > 0, "tape", "begins with a ReplayedStep", rule, remedy)
    before = whole_step(problem, tape, i - 1)
    with torch.no_grad():
        theta, state = problem.optimizer.update(before.gradient, before.state, before.theta, before.eta)
    return TapeStep(theta, state, *step)


def check_tape(tape: Tape, product: Product) -> None:
    """Refuse a tape that gives another derivative than that of the updates which made it.

    Raises:
        ConfigurationError: `retain` without the graphs that it needs; for `recompute`, a loss that drew random
            numbers or a batch that was written to since; for either, θ, η, moments or gradient that were.
    """
    require_product(product)
    for i, step in enumerate(tape):
        if product == "retain":
            holds_graph = isinstance(step, TapeStep) and step.holds_graph
            rule = f"step {i} of the tape was made with keep_graph=False and holds no graph"
            require(holds_graph, "product", product, rule, 'use "recompute", or inner_update(…, keep_graph=True)')
        else:
            rule = f"the loss of step {i} drew random numbers, and would draw others now"
            require(not step.seen.is_random, "product", product, rule, 'draw them into the batch, or use "retain"')
        # Of `retain`, autograd sees itself what torch has written to and a graph needs.
        is_kept = step.seen.batch.is_kept(counts_versions=product == "recompute")
        rule = "has been written to since the update, which the meta-gradient goes through again"
        require(
            is_kept, "tape", f"batch of step {i}", rule, "give each update a batch of its own, .clone() of a buffer"
        )
        is_same = _writes(step.eta, step.gradient) == step.seen.values and (
            not isinstance(step, TapeStep) or _writes(step.theta, *step.state.moments) == step.seen.starts
        )
        remedy = "take the meta-gradient first, or update out of place"
        require(is_same, "tape", f"θ, η, moments or gradient of step {i}", rule, remedy)


def _writes(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(trees.version(x) for x in tensors)
