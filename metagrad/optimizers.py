"""Defines differentiable inner optimizers: the map A of one inner update, (θ', s') = A(θ, s, g, η).

An optimizer is a frozen dataclass with two pure functions: what is configured is what runs. All arithmetic is ordinary
torch, so a derivative of the update goes through moments, clip coefficient and learning rate alike; called without grad
mode it is an ordinary optimizer step. θ and g are flat vectors, and so are the moments: one optimizer step is a handful
of kernels whatever the network.

`RmsProp` and `Adam` compute in float32 where θ is of half precision, and keep their moments in it: in float16 the usual
ε of 1e-8 is 0, and squares of gradients leave the range at both ends. θ keeps its own dtype under every optimizer, also
where the learning rate has another one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metagrad import autodiff
from metagrad.errors import require
from metagrad.meta_parameters import Declaration, MetaParameter, hyperparameters

Count = int | Int[Tensor, ""]
"""A number of updates; a tensor where each of many optimizers under `torch.func.vmap` has one of its own."""

RateFunction = Callable[[Any, Float[Tensor, "M"]], float | Float[Tensor, "1"]]
"""Number of updates done (a `Count`, 0 at the first one) and η to a step size."""

LearningRate = float | MetaParameter | RateFunction
"""A step size: a number, a learnt number with its bounds (`learnt_rate` says where it lies in η), or a function."""

_Moments = tuple[Tensor, ...]
_Rate = float | Tensor


class OptimizerState(NamedTuple):
    """Holds the number of updates done and the moment vectors that the optimizer keeps."""

    updates: Count
    moments: tuple[Float[Tensor, "_"], ...]


@runtime_checkable
class Optimizer(Protocol):
    """Makes one inner update as a pure function."""

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Return the state before the first update."""
        ...

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """Return (θ', s') = A(θ, s, g, η), differentiable in all four."""
        ...


def constant(value: float) -> RateFunction:
    """Return the same step size at every update."""
    _require_rate(value)
    return lambda _updates, _eta: value


def linear_annealing(initial: float, updates: int) -> RateFunction:
    """Return a linear decay from `initial` at the first update to 0 after `updates`; 0 from there on.

    Source: "One Step at a Time" Table 2; released Atari code of "A Theoretical Understanding of Gradient Bias" (G.3).
    """
    _require_rate(initial)
    require(updates >= 1, "updates", updates, "the decay takes at least one update", "use constant(…) for no decay")
    return lambda done, _eta: initial * _remaining(done, updates)


def _remaining(done: Count, updates: int) -> Any:
    """Return the share of the updates that is left, at least 0; of a count that is a tensor it is one, too."""
    share = 1.0 - done / updates
    return share.clamp(min=0.0) if isinstance(share, Tensor) else max(0.0, share)


def learnt_rate(name: str, declaration: Declaration) -> RateFunction:
    """Return the step size that the hyper-parameter `name` of a declaration is under η."""
    return lambda _updates, eta: hyperparameters(declaration, eta)[name]


def _require_rate(value: float) -> None:
    rule, remedy = "a learning rate is finite and not negative", "losses are minimised: turn the sign of the loss"
    require(math.isfinite(value) and value >= 0, "learning_rate", value, rule, remedy)


def _require_decay(name: str, value: float) -> None:
    require(0 <= value < 1, name, value, "a decay lies in [0, 1)", "choose a value inside")


def _require_floor(eps: float, eps_root: float) -> None:
    """Refuse a denominator without any floor: a parameter without a gradient so far (a dead unit) is divided 0 by 0."""
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        require(0 <= value < math.inf, name, value, "must be finite and not negative", "choose a small number or 0")
    floors = (eps, eps_root)
    require(any(floors), "eps, eps_root", floors, "must not both be 0", "give one of them a small number")


def _second_moment(gradient: Tensor, second: Tensor, decay: float) -> Tensor:
    """Return decay · ν + (1 - decay) g².

    Where g² overflows, (1 - decay) g · g may not. Where that does too, ν is infinite from there on and the parameter
    stands still, as in torch.optim; the interpolation alone would make ∞ - ∞ of it.
    """
    interpolated = torch.lerp(gradient.square(), second, decay)
    if _is_seen_finite(interpolated.detach().sum()):  # one pass instead of six; a sum that overflows costs them
        return interpolated
    multiplied = torch.addcmul(decay * second, gradient * (1.0 - decay), gradient)
    return torch.where(interpolated.isfinite(), interpolated, multiplied)


def _is_seen_finite(number: Tensor) -> bool:
    """Return True for a finite number, seen at once: a GPU would have to be waited for, and vmap allows no branches."""
    can_look = number.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(number)
    return can_look and bool(number.isfinite())


def _root(second: Tensor, shift: float | Tensor) -> Tensor:
    """Return √(ν + shift), with derivative 0 where that is 0.

    This is the limit of what an update needs: there g and m are 0 too.
    """
    if isinstance(shift, Tensor) or shift:
        return (second + shift).sqrt()
    is_zero = second <= 0  # of NaN this is False, and the root is NaN: never a small denominator
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, second).sqrt())


def _clipped(gradient: Tensor, max_norm: float, is_coefficient_constant: bool) -> Tensor:
    """Return c g with c = min(1, max_norm / (‖g‖ + 1e-6)), as torch's clip_grad_norm_."""
    norm = torch.linalg.vector_norm(gradient)
    coefficient = max_norm / (norm + 1e-6)
    # The squares of large gradients leave the range of smaller types, and nothing of the gradient would be left.
    if gradient.dtype != torch.float64 and not _is_seen_finite(norm.detach()):
        wide = max_norm / (torch.linalg.vector_norm(gradient, dtype=torch.float64) + 1e-6)
        coefficient = torch.where(coefficient > 0, coefficient, wide.to(coefficient.dtype))
    coefficient = coefficient.clamp(max=1.0)
    if is_coefficient_constant:
        coefficient = autodiff.stop_gradient(coefficient)
    return gradient * coefficient


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstOrderOptimizer(ABC):
    """Steps along the gradient, with what all kinds have: a step size, its decay, and a clip of the gradient.

    A kind is a subclass that says how many moments it keeps and what its step is.
    """

    learning_rate: LearningRate
    """The step size."""
    annealing_updates: int | None = None
    """Number of updates over which the step size decays linearly to 0; None: it is constant."""
    max_gradient_norm: float | None = None
    """Clip the gradient at this global norm; None: do not clip."""
    is_clip_coefficient_constant: bool = False
    """True: meta-gradients treat the clip's coefficient as a constant (released Atari code of the gradient-bias paper);
    False: they differentiate it."""

    _kept = 0  # moment vectors

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if isinstance(rate, MetaParameter):
            require(rate.low >= 0, "learning_rate.low", rate.low, "must be 0 or more", "raise it")
        elif not callable(rate):
            require(0 < rate < math.inf, "learning_rate", rate, "must be positive and finite", "change it")
        updates, norm = self.annealing_updates, self.max_gradient_norm
        require(updates is None or updates > 0, "annealing_updates", updates, "must be > 0", "use None")
        require(norm is None or norm > 0, "max_gradient_norm", norm, "must be > 0", "use None for no clip")
        is_constant, rule = self.is_clip_coefficient_constant, "is about a clip, and there is none"
        remedy = "leave it out or set max_gradient_norm"
        require(not is_constant or norm is not None, "is_clip_coefficient_constant", is_constant, rule, remedy)

    @property
    def couples_parameters(self) -> bool:
        """Return True where the step of one parameter depends on the gradients of others, as under a clip."""
        return self.max_gradient_norm is not None

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Return zero moments."""
        zeros = tuple(torch.zeros_like(theta, dtype=self._dtype(theta)) for _ in range(self._kept))
        return OptimizerState(0, zeros)

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """Return θ' = θ - step, where the step is of the clipped gradient, and s'."""
        if self.max_gradient_norm is not None:
            gradient = _clipped(gradient, self.max_gradient_norm, self.is_clip_coefficient_constant)
        dtype = self._dtype(theta)
        moments = tuple(moment.to(dtype) for moment in state.moments)
        rate = self._rate(state.updates, eta, dtype)
        step, moments = self._step(gradient.to(dtype), moments, state.updates + 1, rate)
        return (theta - step).to(theta.dtype), OptimizerState(state.updates + 1, moments)

    @abstractmethod
    def _step(self, gradient: Tensor, moments: _Moments, update: Count, rate: _Rate) -> tuple[Tensor, _Moments]:
        """Return what update number `update` (from 1) subtracts from θ, and the new moments."""

    def _dtype(self, theta: Tensor) -> torch.dtype:
        """Return the dtype of the computation and of the moments: float32 for half precision."""
        return torch.promote_types(theta.dtype, torch.float32)

    def _rate(self, updates: Count, eta: Tensor, dtype: torch.dtype) -> _Rate:
        """Return the step size in the dtype of what it multiplies: one element of float64 would widen all of θ."""
        rate = self.learning_rate
        rule, remedy = "is learnt, and nothing says where it lies in η", "use learnt_rate(name, declaration)"
        require(not isinstance(rate, MetaParameter), "learning_rate", rate, rule, remedy)
        assert not isinstance(rate, MetaParameter)
        value = rate(updates, eta) if callable(rate) else rate
        if self.annealing_updates is not None:
            value = value * _remaining(updates, self.annealing_updates)
        if not isinstance(value, Tensor):
            return value
        rule, remedy = "is one number for all parameters", "return a float or a tensor with one element"
        require(value.shape in ((), (1,)), "learning_rate", f"a tensor of shape {tuple(value.shape)}", rule, remedy)
        return value if value.dtype == dtype else value.to(dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd(FirstOrderOptimizer):
    """Descends the gradient, with heavy-ball momentum where that is not 0 (as torch.optim.SGD, dampening 0).

    Equation: θ' = θ - α m', m' = momentum · m + g.
    """

    momentum: float = 0.0
    """Heavy-ball momentum; 0: none."""

    def __post_init__(self) -> None:
        FirstOrderOptimizer.__post_init__(self)
        _require_decay("momentum", self.momentum)

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Return a velocity of 0, or no moment at all without momentum."""
        return OptimizerState(0, (torch.zeros_like(theta),) if self.momentum else ())

    def _dtype(self, theta: Tensor) -> torch.dtype:
        return theta.dtype  # nothing is squared

    def _step(self, gradient: Tensor, moments: _Moments, update: Count, rate: _Rate) -> tuple[Tensor, _Moments]:
        if self.momentum:
            gradient = self.momentum * moments[0] + gradient
            moments = (gradient,)
        return rate * gradient, moments


@dataclass(frozen=True, kw_only=True, slots=True)
class RmsProp(FirstOrderOptimizer):
    """Makes RMSProp's updates, ν₀ = 0; `eps` is outside the root as in torch.optim, `eps_root` inside as in optax.

    Equation: θ' = θ - α g / (√(ν' + eps_root) + eps), ν' = decay · ν + (1 - decay) g².
    """

    decay: float = 0.9
    """Decay of the mean of squared gradients."""
    eps: float = 0.0
    """Floor outside the square root."""
    eps_root: float = 1e-8
    """Floor inside the square root."""

    _kept = 1

    def __post_init__(self) -> None:
        FirstOrderOptimizer.__post_init__(self)
        _require_decay("decay", self.decay)
        _require_floor(self.eps, self.eps_root)

    def _step(self, gradient: Tensor, moments: _Moments, update: Count, rate: _Rate) -> tuple[Tensor, _Moments]:
        second = _second_moment(gradient, moments[0], self.decay)
        denominator = _root(second, self.eps_root) + self.eps
        return rate * (gradient / denominator), (second,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam(FirstOrderOptimizer):
    """Makes Adam's updates (Kingma & Ba 2015, Algorithm 1); `eps` is outside the root, `eps_root` inside, as in optax.

    Equation: θ' = θ - α m̂ / (√(v̂ + eps_root) + eps) with bias-corrected moments m̂, v̂.
    """

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Floor outside the square root."""
    eps_root: float = 0.0
    """Floor inside the square root."""

    _kept = 2

    def __post_init__(self) -> None:
        FirstOrderOptimizer.__post_init__(self)
        _require_decay("beta1", self.beta1)
        _require_decay("beta2", self.beta2)
        _require_floor(self.eps, self.eps_root)

    def _step(self, gradient: Tensor, moments: _Moments, update: Count, rate: _Rate) -> tuple[Tensor, _Moments]:
        first = torch.lerp(gradient, moments[0], self.beta1)
        second = _second_moment(gradient, moments[1], self.beta2)
        # √c m̂ / √c (√(v̂ + eps_root) + eps), c the bias correction of v: one pass over θ less each way.
        done = update.double() if isinstance(update, Tensor) else update
        correction = 1.0 - self.beta2**done
        inside, outside = self.eps_root * correction, self.eps * correction**0.5
        step_size = rate * correction**0.5 / (1.0 - self.beta1**done)
        if isinstance(update, Tensor):  # in the dtype of what they multiply, once they are computed
            scalars: tuple[Any, ...] = (inside, outside, step_size)
            inside, outside, step_size = (x.to(first.dtype) for x in scalars)
        denominator = _root(second, inside if self.eps_root else 0.0) + outside
        return step_size * first / denominator, (first, second)


@dataclass(frozen=True, kw_only=True, slots=True)
class PerPart:
    """Gives each part of θ an optimizer of its own, with its own clip: networks that share nothing."""

    sizes: tuple[int, ...]
    """Number of parameters of each part, one after another in θ."""
    optimizers: tuple[Optimizer, ...]
    """The optimizer of each part."""

    def __post_init__(self) -> None:
        counts = (len(self.sizes), len(self.optimizers))
        rule, remedy = "there is one optimizer for each part", "make them agree"
        require(counts[0] == counts[1] > 0, "len(sizes), len(optimizers)", counts, rule, remedy)

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Return the moments of all parts, one part after another."""
        states = [each.init(part) for each, part in zip(self.optimizers, theta.split(self.sizes), strict=True)]
        return OptimizerState(0, tuple(moment for state in states for moment in state.moments))

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """Return each part's own (θ', s') = A(θ, s, g, η); all have made the same number of updates."""
        parts: list[Tensor] = []
        moments: list[Tensor] = []
        first = 0
        split = zip(self.optimizers, gradient.split(self.sizes), theta.split(self.sizes), strict=True)
        for optimizer, own_gradient, own_theta in split:
            kept = len(optimizer.init(own_theta).moments)
            own = OptimizerState(state.updates, state.moments[first : first + kept])
            new, after = optimizer.update(own_gradient, own, own_theta, eta)
            parts.append(new)
            moments += after.moments
            first += kept
        return torch.cat(parts), OptimizerState(state.updates + 1, tuple(moments))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipByGlobalNorm:
    """Feeds another optimizer, one of your own say, with gradients whose global norm is at most `max_norm`."""

    max_norm: float
    optimizer: Optimizer
    is_coefficient_constant: bool = False
    """True: the coefficient c carries no derivative, as where the norm is taken of detached gradients."""

    def __post_init__(self) -> None:
        rule, remedy = "must be positive", "leave the clip out for none"
        require(self.max_norm > 0, "max_norm", self.max_norm, rule, remedy)

    def init(self, theta: Float[Tensor, "P"]) -> OptimizerState:
        """Return the wrapped optimizer's state: clipping has none."""
        return self.optimizer.init(theta)

    def update(
        self,
        gradient: Float[Tensor, "P"],
        state: OptimizerState,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
    ) -> tuple[Float[Tensor, "P"], OptimizerState]:
        """Return A(θ, s, c g, η), c = min(1, max_norm / (‖g‖ + 1e-6)) as torch's clip_grad_norm_."""
        gradient = _clipped(gradient, self.max_norm, self.is_coefficient_constant)
        return self.optimizer.update(gradient, state, theta, eta)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundedAdam(Adam):
    """Makes Adam's updates with each entry within ±`bound` before the step size; meta-gradients take √v̂ as constant.

    Equation: θ' = θ - α clip(m̂ / (√(v̂ + eps_root) + eps), ±bound).

    Source: the public implementation of Oh et al. (2025), "Discovering state-of-the-art reinforcement learning
    algorithms" (DiscoRL).
    """

    bound: float = 1.0
    """Largest entry of an update, in step sizes."""

    def __post_init__(self) -> None:
        Adam.__post_init__(self)
        bound = self.bound
        require(0 < bound < math.inf, "bound", bound, "must be positive and finite", "the published one is 1")

    def _step(self, gradient: Tensor, moments: _Moments, update: Count, rate: _Rate) -> tuple[Tensor, _Moments]:
        first = torch.lerp(gradient, moments[0], self.beta1)
        second = _second_moment(autodiff.stop_gradient(gradient), moments[1], self.beta2)
        done = update.double() if isinstance(update, Tensor) else update
        corrections: tuple[Any, ...] = (1.0 - self.beta1**done, 1.0 - self.beta2**done)
        if isinstance(update, Tensor):
            corrections = tuple(x.to(first.dtype) for x in corrections)
        root = _root(second / corrections[1], self.eps_root)
        entries = first / corrections[0] / (root + self.eps)
        return rate * entries.clamp(-self.bound, self.bound), (first, second)
