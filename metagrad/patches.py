"""Computes convolutions of small pictures as matrix products of patches.

A patch is what one output position sees, h w C numbers. With X [N P Q, h w C] the patches of all pictures and W
[h w C, O] the weights, y = X W and D_w = Xᵀ y. Of Dₓ there are two cases: at stride 1 it is the convolution of y with
the weights turned around, and where patches tile the picture, y Wᵀ with the tiles put back in their places. Nothing is
written in place, so that function transforms can map over all of it.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Copied for the patches of one picture, one run of C numbers for each place of each patch. With 36, as on Snake's 6x6
# boards, torch's convolutions take twice the time, of which they compute a tenth; with 324 these do.
_MOST_RUNS = 64


@dataclass(frozen=True, slots=True)
class Geometry:
    """Holds stride and padding of rows and columns."""

    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


def are_faster(x: Float[Tensor, "N C H W"], weight: Float[Tensor, "O C h w"], geometry: Geometry) -> bool:
    """Return True for small pictures in bfloat16 on a CPU, whose patches either overlap at stride 1 or tile them."""
    kernel = tuple(weight.shape[2:])
    rows, columns = _positions(x, weight, geometry)
    covered = (rows * kernel[0], columns * kernel[1])
    tiles = geometry.stride == kernel and geometry.padding == (0, 0) and covered == tuple(x.shape[2:])
    is_small = rows * columns * kernel[0] * kernel[1] <= _MOST_RUNS
    is_known = tiles or (geometry.stride == (1, 1) and _turned(weight, geometry) is not None)
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and is_small and is_known


def convolution(
    x: Float[Tensor, "N C H W"],
    weight: Float[Tensor, "O C h w"],
    bias: Float[Tensor, "O"] | None,
    geometry: Geometry,
) -> Float[Tensor, "N O P Q"]:
    """Return y = X W + b, with the channels of a position side by side in memory."""
    rows, columns = _positions(x, weight, geometry)
    patches, matrix = _patches(x, weight, geometry), _matrix(weight)
    y = patches @ matrix if bias is None else torch.addmm(bias, patches, matrix)
    return y.unflatten(0, (x.shape[0], rows, columns)).permute(0, 3, 1, 2)


def gradient_of_weight(
    y: Float[Tensor, "N O P Q"], x: Float[Tensor, "N C H W"], weight: Float[Tensor, "O C h w"], geometry: Geometry
) -> Float[Tensor, "O C h w"]:
    """Return D_w(x, y) = Xᵀ y; of `weight` the shape counts."""
    channels, height, width = weight.shape[1:]
    product = _patches(x, weight, geometry).t() @ _rows(y)
    return product.unflatten(0, (height, width, channels)).permute(3, 2, 0, 1)


def gradient_of_x(
    y: Float[Tensor, "N O P Q"], weight: Float[Tensor, "O C h w"], geometry: Geometry
) -> Float[Tensor, "N C H W"]:
    """Return Dₓ(y, w) in the two cases that `are_faster` allows."""
    turned = _turned(weight, geometry)
    if geometry.stride == (1, 1) and turned is not None:
        return convolution(y, weight.flip(2, 3).transpose(0, 1), None, turned)
    (count, _, rows, columns), (channels, height, width) = y.shape, weight.shape[1:]
    tiles = (_rows(y) @ _matrix(weight).t()).view(count, rows, columns, height, width, channels)
    return tiles.transpose(2, 3).reshape(count, rows * height, columns * width, channels).permute(0, 3, 1, 2)


def _turned(weight: Tensor, geometry: Geometry) -> Geometry | None:
    """Return the geometry of Dₓ as a convolution of y at stride 1; None: it would need padding less than 0."""
    above, beside = (weight.shape[2 + i] - 1 - geometry.padding[i] for i in range(2))
    return Geometry((1, 1), (above, beside)) if min(above, beside) >= 0 else None


def _patches(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return X [N P Q, h w C]."""
    above, beside = geometry.padding
    pictures = x.permute(0, 2, 3, 1)
    if above or beside:
        pictures = torch.nn.functional.pad(pictures, (0, 0, beside, beside, above, above))
    size, kernel = (pictures.shape[1], pictures.shape[2]), (weight.shape[2], weight.shape[3])
    return pictures.flatten(1, 2).index_select(1, _pixels(size, kernel, geometry.stride)).view(-1, weight[0].numel())


def _matrix(weight: Tensor) -> Tensor:
    """Return W [h w C, O]."""
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _rows(y: Tensor) -> Tensor:
    """Return y [N P Q, O]."""
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def _positions(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Return P, Q."""
    rows, columns = (
        (x.shape[2 + i] + 2 * geometry.padding[i] - weight.shape[2 + i]) // geometry.stride[i] + 1 for i in range(2)
    )
    return rows, columns


@functools.cache
def _pixels(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return the pixel at each place of each patch, in the order P, Q, h, w."""
    pixel = torch.arange(size[0] * size[1]).view(1, 1, *size)
    return pixel.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten()
