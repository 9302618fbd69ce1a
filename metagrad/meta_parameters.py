"""Declares which hyper-parameters are learnt, and maps an unconstrained vector η into their bounds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaParameter:
    """Describes one hyper-parameter of the inner loss: its initial value, its bounds, learnt or fixed."""

    initial: float
    """Initial value; a fixed hyper-parameter keeps it."""
    low: float = 0.0
    """Lower bound."""
    high: float = 1.0
    """Upper bound."""
    is_learnt: bool = True
    """True: meta-gradients tune it; False: it is fixed."""

    def __post_init__(self) -> None:
        for name, bound in (("low", self.low), ("high", self.high)):
            require(math.isfinite(bound), f"meta_parameters.*.{name}", bound, "must be finite", "choose a number")
        require(self.low < self.high, "meta_parameters.*.low", self.low, f"must be below high = {self.high}", "swap")
        if self.is_learnt:
            require(
                self.low < self.initial < self.high,
                "meta_parameters.*.initial",
                self.initial,
                f"a learnt meta-parameter starts strictly between its bounds {self.low} and {self.high}",
                "choose a value inside, or set is-learnt to False",
            )
            bounds = [_bounded(self, torch.tensor([end])).item() for end in (-math.inf, math.inf)]
            unit = self._unit
            start = _bounded(self, torch.tensor([_logit(unit)])).item() if 0.0 < unit < 1.0 else math.nan
            require(
                bounds[0] < start < bounds[1],
                "meta_parameters.*.initial",
                self.initial,
                f"float32 cannot tell it from its bound, {self.low} or {self.high}, where its derivative ends",
                "choose a value further inside, or set is-learnt to False",
            )
        else:
            require(
                self.low <= self.initial <= self.high,
                "meta_parameters.*.initial",
                self.initial,
                f"must lie in [{self.low}, {self.high}]",
                "widen the bounds or choose a value inside",
            )

    @property
    def _unit(self) -> float:
        """Return where the initial value lies between the bounds, from 0 to 1."""
        return (self.initial - self.low) / (self.high - self.low)


_SATURATED = 10.0
"""Beyond this η, 1 - σ(η) is left with fewer than ten bits in float32, and with none from 17 on."""


def fixed(value: float) -> MetaParameter:
    """Return a hyper-parameter that nothing learns; its upper bound is 1, or the value itself if that is larger."""
    return MetaParameter(initial=value, high=max(1.0, value), is_learnt=False)


def _logit(unit: float) -> float:
    return math.log(unit / (1.0 - unit))


def _bounded(parameter: MetaParameter, eta: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """Return low + (high - low) σ(η), whose derivative does not vanish before σ(-η) itself does.

    Autograd's derivative (1 - σ) σ is exactly 0 in float32 from η = 17 on, where σ is rounded to 1: a meta-parameter
    that came there would never leave. 1 - σ(-η) has the same value and the derivative σ(-η) (1 - σ(-η)), which is
    right as far as η = 87. So the value may be rounded to its bound while its derivative is small, positive and true.
    """
    unit = torch.where(eta > _SATURATED, 1.0 - torch.sigmoid(-eta), torch.sigmoid(eta))
    return parameter.low + (parameter.high - parameter.low) * unit


class MetaVector(NamedTuple):
    """Declares learnt numbers without bounds that enter the inner loss together, such as a reward network's weights."""

    size: int
    init: Callable[[torch.Generator], Float[Tensor, "size"]]


Declaration = Mapping[str, MetaParameter | MetaVector]
Hyperparameters = Mapping[str, Float[Tensor, "_"]]
"""Values by name: one element for a `MetaParameter`, `size` for a `MetaVector`."""


def learnt_slices(declaration: Declaration) -> dict[str, slice]:
    """Return where each learnt meta-parameter lies in η.

    >>> learnt_slices({"gamma": MetaParameter(initial=0.5), "weights": MetaVector(3, lambda _: torch.zeros(3))})
    {'gamma': slice(0, 1, None), 'weights': slice(1, 4, None)}
    """
    slices, start = {}, 0
    for name, parameter in declaration.items():
        if isinstance(parameter, MetaVector) or parameter.is_learnt:
            size = parameter.size if isinstance(parameter, MetaVector) else 1
            slices[name] = slice(start, start + size)
            start += size
    return slices


def learnt_names(declaration: Declaration) -> tuple[str, ...]:
    """Return the names of the learnt scalars, which are components of η of their own, in order."""
    return tuple(name for name in learnt_slices(declaration) if isinstance(declaration[name], MetaParameter))


def init_eta(
    declaration: Declaration, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Float[Tensor, "M"]:
    """Return the unconstrained η₀ with `hyperparameters(declaration, η₀)` equal to the initial values.

    Equation: ηₖ = logit((xₖ - lowₖ) / (highₖ - lowₖ)); vectors are drawn from `generator`.

    >>> init_eta({"gamma": MetaParameter(initial=0.5)})
    tensor([0.])
    """
    rule, remedy = "η is a vector of real numbers", "use float32 or float64"
    require(dtype.is_floating_point, "dtype", dtype, rule, remedy)
    parts = [torch.empty(0, dtype=dtype)]
    for name in learnt_slices(declaration):
        match declaration[name]:
            case MetaVector(size=size, init=init):
                vector = init(generator or torch.Generator().manual_seed(0)).to(dtype)
                rule, remedy = f"declares {size} numbers and draws another shape", "make them agree"
                require(vector.shape == (size,), name, tuple(vector.shape), rule, remedy)
                parts.append(vector)
            case MetaParameter() as parameter:
                parts.append(torch.tensor([_logit(parameter._unit)], dtype=dtype))
    return torch.cat(parts)


def hyperparameters(declaration: Declaration, eta: Float[Tensor, "M"]) -> dict[str, Float[Tensor, "_"]]:
    """Return the bounded values of all declared hyper-parameters, differentiable in η.

    Equation: xₖ = lowₖ + (highₖ - lowₖ) σ(ηₖ); fixed ones are constants, vectors are parts of η itself. Scalars
    have one element, not zero dimensions: forward-over-reverse differentiation promotes 0-dim float32 to float64.

    Raises:
        ConfigurationError: η is shorter or longer than the declaration.

    Source: sigmoid of an unconstrained value, released code of "Debiasing Meta-Gradient RL by Learning the Outer Value
    Function" and of "A Theoretical Understanding of Gradient Bias in Meta-RL" (G.3).

    >>> hyperparameters({"gamma": MetaParameter(initial=0.9, low=0.8)}, torch.zeros(1))
    {'gamma': tensor([0.9000])}
    """
    values: dict[str, Tensor] = {}
    slices = learnt_slices(declaration)
    size = max((at.stop for at in slices.values()), default=0)
    rule, remedy = f"the declaration has {size} learnt numbers", "give the η of this declaration, as init_eta makes it"
    require(eta.shape == (size,), "eta.shape", tuple(eta.shape), rule, remedy)
    for name, parameter in declaration.items():
        if isinstance(parameter, MetaVector):
            values[name] = eta[slices[name]]
        elif parameter.is_learnt:
            values[name] = _bounded(parameter, eta[slices[name]])
        else:
            values[name] = eta.new_full((1,), parameter.initial)
    return values


def shown(declaration: Declaration, eta: Float[Tensor, "M"]) -> dict[str, Float[Tensor, "1"]]:
    """Return what is displayed: bounded scalars under their names, of a vector its norm, as `name_norm`.

    >>> shown({"weights": MetaVector(2, lambda _: torch.zeros(2))}, torch.tensor([3.0, 4.0]))
    {'weights_norm': tensor([5.])}
    """
    values = hyperparameters(declaration, eta)
    return {
        f"{name}_norm" if isinstance(declaration[name], MetaVector) else name: (
            x.norm().reshape(1) if isinstance(declaration[name], MetaVector) else x
        )
        for name, x in values.items()
    }
