import math

import pytest
import torch
from torch import nn

from metagrad.errors import ConfigurationError
from metagrad.network_layers import (
    HaikuConv,
    HaikuLinear,
    OrthogonalConv,
    OrthogonalLinear,
    PixelConv,
    StandardisedPixelConv,
    ToChannelsFirst,
    reset,
)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "low", "high"),
    [
        (1, 1, 5, 0, 0),
        (2, 1, 5, 0, 1),
        (2, 2, 4, 0, 0),
        (2, 2, 5, 0, 1),
        (3, 1, 4, 1, 1),
        (3, 1, 1, 1, 1),
        (3, 2, 4, 0, 1),
        (3, 2, 5, 1, 1),
        (4, 1, 5, 1, 2),
        (4, 3, 4, 1, 2),
        (4, 3, 5, 1, 1),
        (2, 3, 6, 0, 0),
    ],
)
def test_convolution_pads_as_xla_does(kernel, stride, size, low, high):
    """Rows and columns apart: the other side has one cell, one weight and no padding; then both together."""
    generator = torch.Generator().manual_seed(0)
    for kernels, shape, pads in (
        ((kernel, 1), (size, 1), (0, 0, low, high)),
        ((1, kernel), (1, size), (low, high, 0, 0)),
        ((kernel, kernel), (size, size), (low, high, low, high)),
    ):
        layer = HaikuConv(2, 3, kernels, stride=stride).double()
        nn.init.normal_(layer.bias, generator=generator)
        board = torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)
        padded = nn.functional.pad(board, pads)
        expected = nn.functional.conv2d(padded, layer.weight, layer.bias, stride=stride)
        assert expected.shape[2:] == tuple(math.ceil(n / stride) for n in shape)
        torch.testing.assert_close(layer(board), expected)


def test_boards_become_pictures():
    board = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)
    first = ToChannelsFirst()(board)
    assert first.shape == (1, 4, 2, 3)
    assert first[0, 3, 1, 2] == board[0, 1, 2, 3]


@pytest.mark.parametrize(("stride", "padding"), [(4, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_pixels_count_as_0_to_1(stride, padding, dtype):
    generator = torch.Generator().manual_seed(0)
    layer = PixelConv(3, 5, 3, stride=stride, padding=padding).double()
    nn.init.normal_(layer.bias, generator=generator)
    pixels = torch.randint(256, (2, 3, 11, 9), generator=generator).to(dtype)
    expected = nn.functional.conv2d(pixels.double() / 255.0, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(layer(pixels), expected)
    assert layer(pixels).is_contiguous(memory_format=torch.channels_last)
    copies = torch.func.vmap(layer)(torch.stack([pixels, pixels]))
    torch.testing.assert_close(copies, torch.stack([expected, expected]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_standardised_pixels_have_mean_0_and_variance_1(dtype):
    generator = torch.Generator().manual_seed(0)
    layer = StandardisedPixelConv(3, 5, 3, stride=2).double()
    nn.init.normal_(layer.bias, generator=generator)
    pixels = torch.randint(256, (3, 3, 11, 9), generator=generator).to(dtype)
    pixels[2] = 87  # nothing to see
    flat = pixels.double().flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    standardised = (centred / (centred.square().mean(1, keepdim=True) + 1.0).sqrt()).view(pixels.shape)
    expected = nn.functional.conv2d(standardised, layer.weight, layer.bias, 2)
    torch.testing.assert_close(layer(pixels), expected)
    torch.testing.assert_close(layer(pixels)[2], layer.bias.view(5, 1, 1).expand(5, 5, 4))
    copies = torch.func.vmap(layer)(torch.stack([pixels, pixels]))
    torch.testing.assert_close(copies, torch.stack([expected, expected]))


def test_in_bfloat16_standardised_pixels_keep_what_is_small_beside_the_background():
    """Few pixels move before a background of 87: rounded before it is taken off, they would drown in it."""
    layer = StandardisedPixelConv(1, 4, 8, stride=4)
    reset(layer, torch.Generator().manual_seed(0))
    pixels = torch.full((2, 1, 36, 36), 87, dtype=torch.uint8)
    pixels[:, :, :, 0], pixels[0, 0, 10, 10:12], pixels[1, 0, 20, 20:22] = 250, 236, 236
    expected = layer(pixels).detach()
    rounded = layer.to(torch.bfloat16)(pixels).detach().float()
    error, moved = (rounded - expected).norm(), (expected[0] - expected[1]).norm()
    assert error < 0.02 * moved


@pytest.mark.parametrize("make", [lambda: HaikuLinear(400, 50), lambda: HaikuConv(40, 50, 3)])
def test_haiku_layers(make):
    layer = make()
    nn.init.ones_(layer.bias)
    reset(layer, torch.Generator().manual_seed(0))
    scale = 1.0 / math.sqrt(layer.weight[0].numel())
    assert 1.9 * scale < layer.weight.abs().max() <= 2.0 * scale
    # A normal truncated at two standard deviations has .8796 of the standard deviation.
    assert layer.weight.std().item() == pytest.approx(0.8796 * scale, rel=0.02)
    assert (layer.bias == 0.0).all()


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (lambda: OrthogonalLinear(9, 5), math.sqrt(2.0)),
        (lambda: OrthogonalLinear(9, 5, gain=0.01), 0.01),
        (lambda: OrthogonalConv(3, 5, 3), math.sqrt(2.0)),
    ],
)
def test_orthogonal_layers(make, gain):
    layer = make()
    nn.init.ones_(layer.bias)
    reset(layer, torch.Generator().manual_seed(0))
    matrix = layer.weight.detach().flatten(1)
    torch.testing.assert_close(matrix @ matrix.T / gain**2, torch.eye(5))
    assert (layer.bias == 0.0).all()


def test_a_layer_without_bias():
    layer = HaikuLinear(3, 2, bias=False)
    reset(layer, torch.Generator())
    assert layer.bias is None


def test_parents_and_layers_without_parameters_are_left_alone():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    reset(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), generator)
    reset(nn.ReLU(), generator)
    assert torch.equal(before, generator.get_state())


def test_foreign_layers_draw_from_the_generator():
    layer = nn.Linear(3, 2)
    state = torch.get_rng_state()
    reset(layer, torch.Generator().manual_seed(0))
    first = layer.weight.detach().clone()
    reset(layer, torch.Generator().manual_seed(0))
    assert torch.equal(layer.weight, first)
    reset(layer, torch.Generator().manual_seed(1))
    assert not torch.equal(layer.weight, first)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


def test_a_layer_without_a_rule_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(
        ConfigurationError, match=r"network = 'Bare': has parameters of its own and no reset_parameters"
    ):
        reset(Bare(), torch.Generator())
