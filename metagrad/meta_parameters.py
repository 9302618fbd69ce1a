"""Which hyper-parameters are learnt, and how an unconstrained vector η maps into their bounds."""

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
    """One hyper-parameter of the inner loss: its initial value, its bounds, learnt or fixed."""

    initial: float
    low: float = 0.0
    high: float = 1.0
    is_learnt: bool = True

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
        else:
            require(
                self.low <= self.initial <= self.high,
                "meta_parameters.*.initial",
                self.initial,
                f"must lie in [{self.low}, {self.high}]",
                "widen the bounds or choose a value inside",
            )


class MetaVector(NamedTuple):
    """Learnt numbers without bounds that enter the inner loss together, such as the weights of a reward network."""

    size: int
    init: Callable[[torch.Generator], Float[Tensor, "size"]]


Declaration = Mapping[str, MetaParameter | MetaVector]
Hyperparameters = Mapping[str, Float[Tensor, "_"]]
"""Values by name: one element for a `MetaParameter`, `size` for a `MetaVector`."""


def learnt_slices(declaration: Declaration) -> dict[str, slice]:
    """Where each learnt meta-parameter lies in η.

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
    """Names of the learnt scalars, which are components of η of their own, in order."""
    return tuple(name for name in learnt_slices(declaration) if isinstance(declaration[name], MetaParameter))


def init_eta(
    declaration: Declaration, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Float[Tensor, "M"]:
    """Unconstrained η₀ with `hyperparameters(declaration, η₀)` equal to the initial values.

    Equation: ηₖ = logit((xₖ - lowₖ) / (highₖ - lowₖ)); vectors are drawn from `generator`.

    >>> init_eta({"gamma": MetaParameter(initial=0.5)})
    tensor([0.])
    """
    parts = [torch.empty(0, dtype=dtype)]
    for name in learnt_slices(declaration):
        match declaration[name]:
            case MetaVector(size=size, init=init):
                vector = init(generator or torch.Generator().manual_seed(0)).to(dtype)
                assert vector.shape == (size,), f"{name} declares {size} numbers and draws {tuple(vector.shape)}"
                parts.append(vector)
            case MetaParameter(initial=initial, low=low, high=high):
                unit = (initial - low) / (high - low)
                parts.append(torch.tensor([math.log(unit / (1.0 - unit))], dtype=dtype))
    return torch.cat(parts)


def hyperparameters(declaration: Declaration, eta: Float[Tensor, "M"]) -> dict[str, Float[Tensor, "_"]]:
    """Bounded values of all declared hyper-parameters, differentiable in η.

    Equation: xₖ = lowₖ + (highₖ - lowₖ) σ(ηₖ); fixed ones are constants, vectors are parts of η itself. Scalars
    have one element, not zero dimensions: forward-over-reverse differentiation promotes 0-dim float32 to float64.

    Source: sigmoid of an unconstrained value, released code of "Debiasing Meta-Gradient RL by Learning the Outer Value
    Function" and of "A Theoretical Understanding of Gradient Bias in Meta-RL" (G.3).

    >>> hyperparameters({"gamma": MetaParameter(initial=0.9, low=0.8)}, torch.zeros(1))
    {'gamma': tensor([0.9000])}
    """
    values: dict[str, Tensor] = {}
    slices = learnt_slices(declaration)
    for name, parameter in declaration.items():
        if isinstance(parameter, MetaVector):
            values[name] = eta[slices[name]]
        elif parameter.is_learnt:
            values[name] = parameter.low + (parameter.high - parameter.low) * torch.sigmoid(eta[slices[name]])
        else:
            values[name] = eta.new_full((1,), parameter.initial)
    return values


def shown(declaration: Declaration, eta: Float[Tensor, "M"]) -> dict[str, Float[Tensor, "1"]]:
    """What a person looks at: bounded scalars under their names, of a vector its norm, as `name_norm`.

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
