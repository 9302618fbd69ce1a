"""Score-function surrogates: one gradient, different Hessians.

A policy-gradient loss is -mean(A · s(log π)). All surrogates s have the derivative 1 at the parameters where they are
taken, so the gradient, and with it every inner update, is the same; what differs is the second derivative, which is all
that a meta-gradient adds.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff

SurrogateName = Literal["ad", "lvc"]
Surrogate = Callable[[Float[Tensor, "T B"]], Float[Tensor, "T B"]]


def ad(log_prob: Float[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Plain automatic differentiation: s = log π, second derivative ∇² log π (biased as a Hessian estimate).

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §4.2.
    """
    return log_prob


def lvc(log_prob: Float[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Low-variance curvature: s = π/⊥π, second derivative ∇² log π + ∇ log π ∇ log πᵀ = ∇²π/π.

    The loss value is that of a constant 1 per step; only its derivatives carry meaning.

    Source: Rothfuss et al. (2019), "ProMP"; "A Theoretical Understanding of Gradient Bias in Meta-RL", §4.4, 5.3.
    """
    return torch.exp(log_prob - autodiff.stop_gradient(log_prob))


SURROGATES: dict[SurrogateName, Surrogate] = {"ad": ad, "lvc": lvc}
