"""Differentiable inner optimizers: the map A of one inner update, (θ', s') = A(θ, s, g, η).

An optimizer is a value with two pure functions. All arithmetic is ordinary torch, so a derivative of the update goes
through moments, clip coefficient and learning rate alike; called without grad mode it is an ordinary optimizer step.
θ and g are flat vectors, and so are the moments: one optimizer step is a handful of kernels whatever the network.

`RmsProp` and `Adam` compute in float32 where θ is of half precision, and keep their moments in it: in float16 the usual
ε of 1e-8 is 0, and squares of gradients leave the range at both ends. θ keeps its own dtype under every optimizer, also
where the learning rate has another one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.errors import require

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
    _require_rate(value)
    return lambda _count, _eta: value


def linear_annealing(initial: float, updates: int) -> LearningRate:
    """Linear decay from `initial` at the first update to 0 after `updates`; 0 from there on.

    Source: "One Step at a Time" Table 2; released Atari code of "A Theoretical Understanding of Gradient Bias" (G.3).
    """
    _require_rate(initial)
    require(updates >= 1, "updates", updates, "the decay takes at least one update", "use constant(…) for no decay")
    return lambda count, _eta: initial * max(0.0, 1.0 - count / updates)


def _require_rate(value: float) -> None:
    rule, remedy = "a learning rate is finite and not negative", "losses are minimised: turn the sign of the loss"
    require(math.isfinite(value) and value >= 0, "learning_rate", value, rule, remedy)


def _require_decay(name: str, value: float) -> None:
    require(0 <= value < 1, name, value, "a decay lies in [0, 1)", "choose a value inside")


def _require_floor(eps: float, eps_root: float) -> None:
    """Without any floor a parameter that has had no gradient yet (a dead unit) is divided 0 by 0."""
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        require(0 <= value < math.inf, name, value, "must be finite and not negative", "choose a small number or 0")
    floors = (eps, eps_root)
    require(any(floors), "eps, eps_root", floors, "must not both be 0", "give one of them a small number")


def _rate(learning_rate: LearningRate, count: int, eta: Tensor, dtype: torch.dtype) -> float | Tensor:
    """The step size, in the dtype of what it multiplies: one element of float64 would widen all of θ."""
    value = learning_rate(count, eta)
    if not isinstance(value, Tensor):
        return value
    rule, remedy = "is one number for all parameters", "return a float or a tensor with one element"
    require(value.shape in ((), (1,)), "learning_rate", f"a tensor of shape {tuple(value.shape)}", rule, remedy)
    return value if value.dtype == dtype else value.to(dtype)


def _moment(theta: Tensor) -> Tensor:
    """Zeros of the dtype that moments are kept in: that of θ, float32 for half precision."""
    return torch.zeros_like(theta, dtype=torch.promote_types(theta.dtype, torch.float32))


def _second_moment(gradient: Tensor, second: Tensor, decay: float) -> Tensor:
    """decay · ν + (1 - decay) g².

    Where g² overflows, (1 - decay) g · g may not. Where that does too, ν is infinite from there on and the parameter
    stands still, as in torch.optim; the interpolation alone would make ∞ - ∞ of it.
    """
    interpolated = torch.lerp(gradient.square(), second, decay)
    if _is_seen_finite(interpolated.detach().sum()):  # one pass instead of six; a sum that overflows costs them
        return interpolated
    multiplied = torch.addcmul(decay * second, gradient * (1.0 - decay), gradient)
    return torch.where(interpolated.isfinite(), interpolated, multiplied)


def _is_seen_finite(number: Tensor) -> bool:
    """True where that can be found out at once: a GPU would have to be waited for, and vmap allows no branches."""
    can_look = number.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(number)
    return can_look and bool(number.isfinite())


def _root(second: Tensor, shift: float) -> Tensor:
    """√(ν + shift), with derivative 0 where that is 0, the limit of what an update needs: there g and m are 0 too."""
    if shift:
        return (second + shift).sqrt()
    is_zero = second <= 0  # of NaN this is False, and the root is NaN: never a small denominator
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, second).sqrt())


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd:
    """Gradient descent, with heavy-ball momentum where it is not 0 (as torch.optim.SGD, dampening 0)."""

    learning_rate: LearningRate
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _require_decay("momentum", self.momentum)

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
        theta = theta - _rate(self.learning_rate, state.count, eta, theta.dtype) * gradient
        return theta, OptimizerState(state.count + 1, moments)


@dataclass(frozen=True, kw_only=True, slots=True)
class RmsProp:
    """RMSProp, ν₀ = 0; `eps` outside the root as torch.optim.RMSprop, `eps_root` inside as optax.rmsprop."""

    learning_rate: LearningRate
    decay: float = 0.9
    eps: float = 0.0
    eps_root: float = 1e-8

    def __post_init__(self) -> None:
        _require_decay("decay", self.decay)
        _require_floor(self.eps, self.eps_root)

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Zero second moment."""
        return OptimizerState(0, (_moment(theta),))

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """θ' = θ - α g / (√(ν' + eps_root) + eps), ν' = decay · ν + (1 - decay) g²."""
        dtype = torch.promote_types(theta.dtype, torch.float32)
        gradient, second = gradient.to(dtype), state.moments[0].to(dtype)
        second = _second_moment(gradient, second, self.decay)
        denominator = _root(second, self.eps_root) + self.eps
        step = _rate(self.learning_rate, state.count, eta, dtype) * (gradient / denominator)
        theta = (theta - step).to(theta.dtype)
        return theta, OptimizerState(state.count + 1, (second,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1), with optax's `eps_root` inside the root beside torch's `eps` outside."""

    learning_rate: LearningRate
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0

    def __post_init__(self) -> None:
        _require_decay("beta1", self.beta1)
        _require_decay("beta2", self.beta2)
        _require_floor(self.eps, self.eps_root)

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Zero first and second moments."""
        return OptimizerState(0, (_moment(theta), _moment(theta)))

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """θ' = θ - α m̂ / (√(v̂ + eps_root) + eps) with bias-corrected moments m̂, v̂."""
        count = state.count + 1
        dtype = torch.promote_types(theta.dtype, torch.float32)
        gradient, first, second = gradient.to(dtype), state.moments[0].to(dtype), state.moments[1].to(dtype)
        first = torch.lerp(gradient, first, self.beta1)
        second = _second_moment(gradient, second, self.beta2)
        # √c m̂ / √c (√(v̂ + eps_root) + eps), c the bias correction of v: one pass over θ less each way.
        correction = 1.0 - self.beta2**count
        denominator = _root(second, self.eps_root * correction) + self.eps * correction**0.5
        rate = _rate(self.learning_rate, state.count, eta, dtype)
        step_size = rate * correction**0.5 / (1.0 - self.beta1**count)
        theta = (theta - step_size * first / denominator).to(theta.dtype)
        return theta, OptimizerState(count, (first, second))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipByGlobalNorm:
    """Another optimizer fed with gradients whose global norm is at most `max_norm`."""

    max_norm: float
    optimizer: Optimizer
    is_coefficient_constant: bool = False
    """True: the coefficient c carries no derivative, as where the norm is taken of detached gradients."""

    def __post_init__(self) -> None:
        rule, remedy = "must be positive", "leave the clip out for none"
        require(self.max_norm > 0, "max_norm", self.max_norm, rule, remedy)

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
        norm = torch.linalg.vector_norm(gradient)
        coefficient = self.max_norm / (norm + 1e-6)
        # The squares of large gradients leave the range of smaller types, and nothing of the gradient would be left.
        if gradient.dtype != torch.float64 and not _is_seen_finite(norm.detach()):
            wide = self.max_norm / (torch.linalg.vector_norm(gradient, dtype=torch.float64) + 1e-6)
            coefficient = torch.where(coefficient > 0, coefficient, wide.to(coefficient.dtype))
        coefficient = coefficient.clamp(max=1.0)
        if self.is_coefficient_constant:
            coefficient = autodiff.stop_gradient(coefficient)
        return self.optimizer.update(gradient * coefficient, state, theta, eta)
