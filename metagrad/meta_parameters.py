"""Which hyper-parameters are learnt, and how an unconstrained vector η maps into their bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


Declaration = Mapping[str, MetaParameter]
Hyperparameters = Mapping[str, Float[Tensor, "1"]]


def learnt_names(declaration: Declaration) -> tuple[str, ...]:
    """Names of the components of η, in order."""
    return tuple(name for name, parameter in declaration.items() if parameter.is_learnt)


def init_eta(declaration: Declaration, dtype: torch.dtype = torch.float32) -> Float[Tensor, "M"]:
    """Unconstrained η₀ with `hyperparameters(declaration, η₀)` equal to the initial values.

    Equation: ηₖ = logit((xₖ - lowₖ) / (highₖ - lowₖ)).

    >>> init_eta({"gamma": MetaParameter(initial=0.5)})
    tensor([0.])
    """
    units = [(p.initial - p.low) / (p.high - p.low) for p in declaration.values() if p.is_learnt]
    return torch.tensor([math.log(u / (1.0 - u)) for u in units], dtype=dtype)


def hyperparameters(declaration: Declaration, eta: Float[Tensor, "M"]) -> dict[str, Float[Tensor, "1"]]:
    """Bounded values of all declared hyper-parameters, differentiable in η.

    Equation: xₖ = lowₖ + (highₖ - lowₖ) σ(ηₖ); fixed ones are constants. Values have one element, not zero dimensions:
    forward-over-reverse differentiation promotes 0-dim float32 tensors to float64.

    Source: sigmoid of an unconstrained value, released code of "Debiasing Meta-Gradient RL by Learning the Outer Value
    Function" and of "A Theoretical Understanding of Gradient Bias in Meta-RL" (G.3).

    >>> hyperparameters({"gamma": MetaParameter(initial=0.9, low=0.8)}, torch.zeros(1))
    {'gamma': tensor([0.9000])}
    """
    values: dict[str, Tensor] = {}
    index = 0
    for name, parameter in declaration.items():
        if parameter.is_learnt:
            unit = torch.sigmoid(eta[index : index + 1])
            values[name] = parameter.low + (parameter.high - parameter.low) * unit
            index += 1
        else:
            values[name] = eta.new_full((1,), parameter.initial)
    return values
