"""Differentiable inner optimizers: the map A of one inner update, (θ', s') = A(θ, s, g, η).

An optimizer is a value with two pure functions. All arithmetic is ordinary torch, so a derivative of the update goes
through moments, clip coefficient and learning rate alike; called without grad mode it is an ordinary optimizer step.
θ and g are flat vectors, and so are the moments: one optimizer step is a handful of kernels whatever the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff

LearningRate = Callable[[int, Float[Tensor, "M"]], float | Float[Tensor, "1"]]
"""Step count (0 for the first update) and η to a step size; it may depend on η to be learnt."""


class OptimizerState(NamedTuple):
    """Number of updates done, and the moment vectors the optimizer keeps."""

    count: int  # type: ignore[assignment]  # nobody calls tuple.count on a state
    moments: tuple[Float[Tensor, "P"], ...]


@runtime_checkable
class Optimizer(Protocol):
    """One inner update as a pure function."""

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """State before the first update."""
        ...

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """(θ', s') = A(θ, s, g, η), differentiable in all four."""
        ...


def constant(value: float) -> LearningRate:
    """The same step size at every update."""
    return lambda _count, _eta: value


def linear_annealing(initial: float, updates: int) -> LearningRate:
    """Linear decay from `initial` at the first update to 0 after `updates`; 0 from there on.

    Source: "One Step at a Time" Table 2; released Atari code of "A Theoretical Understanding of Gradient Bias" (G.3).
    """
    return lambda count, _eta: initial * max(0.0, 1.0 - count / updates)


def _root(second: Tensor, shift: float) -> Tensor:
    """√(ν + shift), with derivative 0 where that is 0, the limit of what an update needs: there g and m are 0 too."""
    if shift:
        return (second + shift).sqrt()
    is_positive = second > 0
    return torch.where(is_positive, torch.where(is_positive, second, 1.0).sqrt(), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd:
    """Gradient descent, with heavy-ball momentum where it is not 0 (as torch.optim.SGD, dampening 0)."""

    learning_rate: LearningRate
    momentum: float = 0.0

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Zero velocity; no moment at all without momentum."""
        return OptimizerState(0, (torch.zeros_like(theta),) if self.momentum else ())

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """θ' = θ - α m', m' = momentum · m + g."""
        moments: tuple[Tensor, ...] = ()
        if self.momentum:
            gradient = self.momentum * state.moments[0] + gradient
            moments = (gradient,)
        theta = theta - self.learning_rate(state.count, eta) * gradient
        return theta, OptimizerState(state.count + 1, moments)


@dataclass(frozen=True, kw_only=True, slots=True)
class RmsProp:
    """RMSProp, ν₀ = 0; `eps` outside the root as torch.optim.RMSprop, `eps_root` inside as optax.rmsprop."""

    learning_rate: LearningRate
    decay: float = 0.9
    eps: float = 0.0
    eps_root: float = 1e-8

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Zero second moment."""
        return OptimizerState(0, (torch.zeros_like(theta),))

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """θ' = θ - α g / (√(ν' + eps_root) + eps), ν' = decay · ν + (1 - decay) g²."""
        second = torch.lerp(gradient.square(), state.moments[0], self.decay)
        denominator = _root(second, self.eps_root) + self.eps
        theta = theta - self.learning_rate(state.count, eta) * (gradient / denominator)
        return theta, OptimizerState(state.count + 1, (second,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1), with optax's `eps_root` inside the root beside torch's `eps` outside."""

    learning_rate: LearningRate
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Zero first and second moments."""
        return OptimizerState(0, (torch.zeros_like(theta), torch.zeros_like(theta)))

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """θ' = θ - α m̂ / (√(v̂ + eps_root) + eps) with bias-corrected moments m̂, v̂."""
        count = state.count + 1
        first = torch.lerp(gradient, state.moments[0], self.beta1)
        second = torch.lerp(gradient.square(), state.moments[1], self.beta2)
        # √c m̂ / √c (√(v̂ + eps_root) + eps), c the bias correction of v: one pass over θ less each way.
        correction = 1.0 - self.beta2**count
        denominator = _root(second, self.eps_root * correction) + self.eps * correction**0.5
        step_size = self.learning_rate(state.count, eta) * correction**0.5 / (1.0 - self.beta1**count)
        theta = theta - step_size * first / denominator
        return theta, OptimizerState(count, (first, second))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipByGlobalNorm:
    """Another optimizer fed with gradients whose global norm is at most `max_norm`."""

    max_norm: float
    optimizer: Optimizer
    is_coefficient_constant: bool = False
    """True: the coefficient c carries no derivative, as where the norm is taken of detached gradients."""

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """The wrapped optimizer's state: clipping has none."""
        return self.optimizer.init(theta)

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """A(θ, s, c g, η), c = min(1, max_norm / (‖g‖ + 1e-6)) as torch's clip_grad_norm_."""
        coefficient = (self.max_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
        if self.is_coefficient_constant:
            coefficient = autodiff.stop_gradient(coefficient)
        return self.optimizer.update(gradient * coefficient, state, theta, eta)
