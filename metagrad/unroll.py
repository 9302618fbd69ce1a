"""One inner update, and the tape that a virtual unroll leaves for the meta-gradient."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.optimizers import Optimizer, OptimizerState

Product = Literal["retain", "recompute"]
"""How the second-order product of a step is taken: from the update's retained graph, or computed anew."""

Loss = Callable[[Float[Tensor, "P"], Float[Tensor, "M"], Any], tuple[Float[Tensor, ""], Any]]
"""(θ, η, batch) to (scalar loss, anything to log)."""


class InnerProblem(NamedTuple):
    """What is differentiated through: the inner loss L(θ, η; τ) and the update A.

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


class TapeStep(NamedTuple):
    """What one inner update keeps for the adjoint pass: θᵢ, sᵢ, η, τᵢ, gᵢ.

    Under `retain` θᵢ and η are the leaves of gᵢ's graph; under `recompute` all are plain values.
    """

    theta: Float[Tensor, "P"]
    state: OptimizerState
    eta: Float[Tensor, "M"]
    batch: Any
    gradient: Float[Tensor, "P"]


class Tape(Protocol):
    """Steps of one unroll, i = 0…n-1, as the adjoint pass reads them: a list, or a `CompactTape`."""

    def __len__(self) -> int:
        """Number of steps n."""
        ...

    def __getitem__(self, index: int, /) -> TapeStep:
        """Step i."""
        ...


class _Rest(NamedTuple):
    """A step of a `CompactTape` without θᵢ and sᵢ."""

    eta: Float[Tensor, "M"]
    batch: Any
    gradient: Float[Tensor, "P"]


class CompactTape:
    """A tape for `recompute` that holds all gᵢ, but θᵢ and sᵢ of few steps: about log₂ n + 2 of n.

    The others are replayed when they are read, (θᵢ₊₁, sᵢ₊₁) = A(θᵢ, sᵢ, gᵢ, η), from the nearest step before that is
    held: the same arithmetic on the same numbers, so the same bits, and no loss is evaluated. Held are θ and s of step
    0, and back from the step that was appended or read last the multiples of 1, 1, 2, 2, 4, 4, 4, 4, 8 …: a pass from
    the last step to the first replays at most ½ n log₂ n updates (1 at n = 5, 21 at n = 20) and none up to n = 3.

    With Adam a list holds 4 n vectors of P numbers, this 12 at n = 3, 17 at n = 5, 38 at n = 20. What it saves lives on
    where the caller keeps the updates' own θ and s: append each step and drop the rest.
    """

    def __init__(self, optimizer: Optimizer):
        """An empty tape of an unroll by `optimizer`, the inner problem's."""
        self._optimizer = optimizer
        self._rests: list[_Rest] = []
        self._starts: dict[int, tuple[Tensor, OptimizerState]] = {}  # θᵢ and sᵢ by i, in rising order

    def append(self, step: TapeStep) -> None:
        """Add step n, which starts where the step before it ended."""
        assert not step.gradient.requires_grad, "a retained graph holds on to θ: retained steps go on a list"
        self._starts[len(self._rests)] = step.theta, step.state
        self._rests.append(_Rest(step.eta, step.batch, step.gradient))
        self._thin_out(len(self._rests) - 1)

    def __len__(self) -> int:
        return len(self._rests)

    def __getitem__(self, index: int, /) -> TapeStep:
        last = range(len(self._rests))[index]
        self._thin_out(last)
        at = max(self._starts)
        theta, state = self._starts[at]
        for i in range(at, last):
            rest = self._rests[i]
            with torch.no_grad():
                theta, state = self._optimizer.update(rest.gradient, state, theta, rest.eta)
            if _is_held(i + 1, last):
                self._starts[i + 1] = theta, state
        rest = self._rests[last]
        return TapeStep(theta, state, rest.eta, rest.batch, rest.gradient)

    def _thin_out(self, last: int) -> None:
        self._starts = {i: start for i, start in self._starts.items() if i <= last and _is_held(i, last)}


def _is_held(i: int, last: int) -> bool:
    """i is a multiple of the largest power of two that is at most last - i. Held once, held as `last` comes nearer."""
    distance = last - i
    return distance == 0 or i % (1 << (distance.bit_length() - 1)) == 0


class InnerUpdate(NamedTuple):
    """Result of one inner update."""

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
    """One ordinary update θ' = A(θ, s, ∇θ L(θ, η; τ), η), with the tape step for a later meta-gradient.

    θ' and s' carry no graph. `keep_graph` True (`retain`) keeps the graph of the gradient on the tape; False
    (`recompute`, or an update nobody differentiates) keeps values only.
    """
    theta = theta.detach().requires_grad_()
    eta = eta.detach().requires_grad_(keep_graph)
    loss, metrics = problem.loss(theta, eta, batch)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=keep_graph and problem.derivative is None)
    if keep_graph and problem.derivative is not None:
        (curvature,) = torch.autograd.grad(problem.derivative(theta, eta, batch)[0], theta, create_graph=True)
        gradient = gradient + (curvature - curvature.detach())
    with torch.no_grad():
        new_theta, new_state = problem.optimizer.update(gradient.detach(), state, theta.detach(), eta.detach())
    if not keep_graph:
        theta = theta.detach()
    return InnerUpdate(new_theta, new_state, loss.detach(), metrics, TapeStep(theta, state, eta, batch, gradient))
