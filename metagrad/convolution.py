"""Provides a two-dimensional convolution whose derivatives of every order are convolutions on their fastest kernels.

A convolution y = C(x, w) is linear in x and in w, so its two gradients are too:

    G(ȳ, x, w) = (Dₓ(ȳ, w), D_w(x, ȳ))    with    ⟨ȳ, C(x, w)⟩ = ⟨x, Dₓ(ȳ, w)⟩ = ⟨w, D_w(x, ȳ)⟩.

The derivatives of G are C and G again: where ⟨(a, b), G(ȳ, x, w)⟩ is differentiated, ȳ gets C(a, w) + C(x, b), and
(x, w) get G(ȳ, a, b). Torch has a kernel for each, but its own second derivative of a convolution uses C's alone: it
transposes whole batches of pictures to write D_w as a C, and computes gradients of pictures that nobody asked for.

On small pictures, such as Snake's boards, the CPU's kernels of bfloat16 spend their time on rearranging numbers;
there C, Dₓ and D_w are matrix products with the patches laid out (`metagrad.patches`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import patches
from metagrad.patches import Geometry as Geometry


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Says which of both gradients is meant. It is not a tuple, in which function transforms would look for tensors."""

    of_x: bool
    of_weight: bool


def conv2d(
    x: Float[Tensor, "N C H W"],
    weight: Float[Tensor, "O C h w"],
    bias: Float[Tensor, "O"] | None,
    geometry: Geometry,
) -> Float[Tensor, "N O P Q"]:
    """Convolve as `torch.nn.functional.conv2d` without dilation and groups, for derivatives of derivatives."""
    y: Tensor = _Convolution.apply(x, weight, bias, geometry)
    return y


def _gradients(
    y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: _Wanted
) -> tuple[Tensor | None, Tensor | None]:
    """Return G(y, x, w), and None for what is not wanted."""
    given = _Gradients.apply(y, x, weight, geometry, wanted) if wanted.of_x or wanted.of_weight else ()
    return _by_name(given, wanted)


def _by_name(given: tuple[Tensor | None, ...], wanted: _Wanted) -> tuple[Tensor | None, Tensor | None]:
    rest = iter(given)
    return next(rest) if wanted.of_x else None, next(rest) if wanted.of_weight else None


def _sum(parts: list[Tensor]) -> Tensor | None:
    return sum(parts[1:], start=parts[0]) if parts else None


class _Convolution(torch.autograd.Function):
    """Computes C(x, w) + b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        if patches.are_faster(x, weight, geometry):
            return patches.convolution(x, weight, bias, geometry)
        return torch.nn.functional.conv2d(x, weight, bias, geometry.stride, geometry.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        of_bias = y.sum((0, 2, 3)) if for_bias else None
        return *_gradients(y, x, weight, ctx.geometry, _Wanted(for_x, for_weight)), of_bias, None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, weight_dot: Tensor | None, bias_dot: Tensor | None, _: None) -> Any:
        x, weight = ctx.saved_tensors
        parts = []
        if x_dot is not None:
            parts.append(conv2d(x_dot, weight, None, ctx.geometry))
        if weight_dot is not None:
            parts.append(conv2d(x, weight_dot, None, ctx.geometry))
        if bias_dot is not None:
            parts.append(bias_dot.view(1, -1, 1, 1))
        return _sum(parts)


class _Gradients(torch.autograd.Function):
    """Computes what is wanted of G(y, x, w), in that order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: _Wanted) -> tuple[Tensor, ...]:
        if patches.are_faster(x, weight, geometry):
            of_x = (patches.gradient_of_x(y, weight, geometry),) if wanted.of_x else ()
            return *of_x, *((patches.gradient_of_weight(y, x, weight, geometry),) if wanted.of_weight else ())
        mask = (wanted.of_x, wanted.of_weight, False)
        dilation, is_transposed, output_padding, groups = (1, 1), False, (0, 0), 1
        gradients = torch.ops.aten.convolution_backward(
            *(y, x, weight, None, geometry.stride, geometry.padding),
            *(dilation, is_transposed, output_padding, groups, mask),
        )
        return tuple(gradient for gradient, is_wanted in zip(gradients, mask, strict=True) if is_wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        y, x, weight, ctx.geometry, ctx.wanted = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, x, weight)
        ctx.save_for_forward(y, x, weight)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> Any:
        y, x, weight = ctx.saved_tensors
        for_y, for_x, for_weight, *_ = ctx.needs_input_grad
        a, b = _by_name(incoming, ctx.wanted)
        of_y = []
        if for_y and a is not None:
            of_y.append(conv2d(a, weight, None, ctx.geometry))
        if for_y and b is not None:
            of_y.append(conv2d(x, b, None, ctx.geometry))
        # Dₓ(y, b) needs no a, and D_w(a, y) no b: x and w stand in where one is missing, for their shapes alone.
        wanted = _Wanted(for_x and b is not None, for_weight and a is not None)
        of_x, of_weight = _gradients(y, x if a is None else a, weight if b is None else b, ctx.geometry, wanted)
        return _sum(of_y), of_x, of_weight, None, None

    @staticmethod
    def jvp(
        ctx: Any, y_dot: Tensor | None, x_dot: Tensor | None, weight_dot: Tensor | None, *_: None
    ) -> tuple[Tensor, ...]:
        y, x, weight = ctx.saved_tensors
        along_y = _gradients(y_dot, x, weight, ctx.geometry, ctx.wanted) if y_dot is not None else (None, None)
        wanted = _Wanted(ctx.wanted.of_x and weight_dot is not None, ctx.wanted.of_weight and x_dot is not None)
        a, b = x if x_dot is None else x_dot, weight if weight_dot is None else weight_dot
        along_factors = _gradients(y, a, b, ctx.geometry, wanted)
        tangents = []
        for like, is_wanted, *parts in zip(
            (x, weight), (ctx.wanted.of_x, ctx.wanted.of_weight), along_y, along_factors, strict=True
        ):
            if is_wanted:
                total = _sum([part for part in parts if part is not None])
                tangents.append(torch.zeros_like(like) if total is None else total)
        return tuple(tangents)
