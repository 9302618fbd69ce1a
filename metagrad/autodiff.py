"""Declares quantities, or their derivatives, constant for differentiation, in this one place.

Every stop-gradient of the library goes through `stop_gradient`, called as `autodiff.stop_gradient(x)`. What the
meta-gradient means is the derivative of the look-ahead in which these quantities are frozen at their values; a test
replaces this function by one that replays recorded values and takes finite differences of exactly that map.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def stop_gradient(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return ⊥x: the value of x with every derivative, reverse and forward mode, equal to zero."""
    return x.detach()


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.detach()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def first_order(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return x with its gradient, and that gradient a constant.

    Second-order products pass it by and nothing is kept for them.

    For parameters whose gradient no adjoint is ever multiplied with, where it changes no result.
    """
    y: Tensor = _FirstOrder.apply(x)
    return y
