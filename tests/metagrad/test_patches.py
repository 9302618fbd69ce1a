"""Products of patches against torch's convolutions, in float64 and under function transforms."""

import pytest
import torch
from torch import Tensor

from metagrad import patches
from metagrad.convolution import conv2d
from metagrad.patches import Geometry

# N, C, H, W, O, kernel, stride, padding
TILES = [(3, 5, 6, 6, 4, (2, 2), (2, 2), (0, 0)), (2, 3, 4, 6, 2, (2, 3), (2, 3), (0, 0))]
AT_STRIDE_1 = [
    (3, 4, 4, 4, 5, (2, 2), (1, 1), (0, 0)),
    (2, 3, 3, 2, 4, (3, 3), (1, 1), (1, 1)),
    (2, 1, 3, 3, 2, (3, 2), (1, 1), (2, 0)),
]
OTHERS = [
    (2, 3, 7, 7, 2, (2, 2), (2, 2), (0, 0)),  # a row and a column are left over
    (2, 3, 5, 5, 2, (3, 3), (2, 2), (0, 0)),  # patches overlap at stride 2
    (2, 3, 4, 4, 2, (2, 2), (2, 2), (1, 1)),  # padded tiles
    (2, 3, 3, 3, 2, (2, 2), (1, 1), (2, 2)),  # padded by more than a patch
    (2, 3, 20, 20, 2, (3, 3), (1, 1), (0, 0)),  # large
]
CASES = [*TILES, *AT_STRIDE_1]


def case(sizes: tuple, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    count, channels, height, width, outputs, kernel, stride, padding = sizes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, channels, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), Geometry(stride, padding)


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_products_are_torchs_convolutions(sizes: tuple) -> None:
    x, weight, bias, geometry = case(sizes)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, bias, geometry.stride, geometry.padding)
    torch.testing.assert_close(patches.convolution(x, weight, bias, geometry), y)
    torch.testing.assert_close(patches.convolution(x, weight, None, geometry), y - bias.view(-1, 1, 1))
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    of_x, of_weight = torch.autograd.grad(y, (x, weight), cotangent)
    torch.testing.assert_close(patches.gradient_of_x(cotangent, weight, geometry), of_x)
    torch.testing.assert_close(patches.gradient_of_weight(cotangent, x, weight, geometry), of_weight)


@pytest.mark.parametrize("sizes", CASES + OTHERS, ids=str)
def test_they_are_chosen_for_small_pictures_in_bfloat16(sizes: tuple) -> None:
    x, weight, _, geometry = case(sizes)
    assert not patches.are_faster(x, weight, geometry)
    assert not patches.are_faster(x.float(), weight.float(), geometry)
    assert patches.are_faster(x.bfloat16(), weight.bfloat16(), geometry) == (sizes in CASES)
    assert not patches.are_faster(x.bfloat16().to("meta"), weight.bfloat16().to("meta"), geometry)


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_second_derivatives_in_bfloat16_are_those_of_the_convolution(sizes: tuple) -> None:
    """Reverse over reverse, forward over reverse and a map over both, through `metagrad.convolution`."""
    x, weight, bias, geometry = case(sizes)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def slope(weight: Tensor, x: Tensor) -> Tensor:
        def loss(weight: Tensor) -> Tensor:
            return conv2d(x, weight, bias.to(x.dtype), geometry).double().square().sum()

        return torch.func.jvp(torch.func.grad(loss), (weight,), (direction.to(x.dtype),))[1].double()

    exact = slope(weight, x)
    rounded = [t.bfloat16() for t in (weight, x)]
    mapped = torch.func.vmap(slope, in_dims=(None, 0))(rounded[0], torch.stack([rounded[1], rounded[1]]))
    for found in (slope(*rounded), mapped[0], mapped[1]):
        assert (found - exact).norm() < 2**-5 * exact.norm()
