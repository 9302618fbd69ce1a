"""What a virtual unroll keeps for the adjoint pass: every step whole, or gradients between checkpoints.

(θᵢ₊₁, sᵢ₊₁) = A(θᵢ, sᵢ, gᵢ, η) is elementwise arithmetic, next to nothing beside the gradient gᵢ. Under `recompute`
the tape therefore holds θᵢ and sᵢ at every fourth step alone and goes the rest of the way again from there, to the same
bits: with Adam 1.75 vectors of the size of θ a step in place of 4, for 1.5 more optimizer steps each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.unroll import InnerProblem, TapeStep

CHECKPOINT_EVERY = 4


class ReplayedStep(NamedTuple):
    """A step whose θᵢ and sᵢ follow from the steps before it on the tape."""

    eta: Float[Tensor, "M"]
    batch: Any
    gradient: Float[Tensor, "P"]


Tape = Sequence[TapeStep | ReplayedStep]


def recorded(tape: Tape, step: TapeStep) -> Tape:
    """The tape with one step more; without its θᵢ and sᵢ where these can be had again."""
    holds_graph = step.theta.requires_grad  # of `retain`: θᵢ is its leaf
    if holds_graph or len(tape) % CHECKPOINT_EVERY == 0:
        return [*tape, step]
    return [*tape, ReplayedStep(step.eta, step.batch, step.gradient)]


def whole_step(problem: InnerProblem, tape: Tape, i: int) -> TapeStep:
    """Step i of a tape as the update left it, bit by bit."""
    step = tape[i]
    if isinstance(step, TapeStep):
        return step
    before = whole_step(problem, tape, i - 1)
    with torch.no_grad():
        theta, state = problem.optimizer.update(before.gradient, before.state, before.theta, before.eta)
    return TapeStep(theta, state, *step)
