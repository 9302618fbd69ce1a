"""Defines layers that know their initialisation, and draws a module's parameters again from a generator."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metagrad.convolution import Geometry, conv2d
from metagrad.errors import require
from metagrad.observations import MixedShape


class Linear(nn.Linear):
    """Applies a linear layer in the type of its weights, to which inputs of another one are converted."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class OrthogonalLinear(Linear):
    """Applies a linear layer with orthogonal init of a given gain and zero bias."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2.0)):
        super().__init__(inputs, outputs)
        self.gain = gain


class OrthogonalGates(Linear):
    """Applies a linear layer with three outputs for each unit: orthogonal init of each third, zero bias."""


class Conv(nn.Conv2d):
    """Convolves through `metagrad.convolution`, whose derivatives of derivatives are fast."""

    def convolve(self, x: Tensor, weight: Tensor, padding: tuple[int, ...] | str) -> Tensor:
        """Convolve with weights and padding in place of the layer's own."""
        assert not isinstance(padding, str)
        (rows, columns), (above, beside) = self.stride, padding
        return conv2d(x, weight, self.bias, Geometry((rows, columns), (above, beside)))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.padding)


class OrthogonalConv(Conv):
    """Applies a convolution with orthogonal init of gain √2 and zero bias."""

    gain = math.sqrt(2.0)


class HaikuLinear(Linear):
    """Applies a linear layer with Haiku's default init."""


class HaikuConv(Conv):
    """Convolves with Haiku's default init and XLA's SAME padding (what does not divide goes to the end)."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        if pads[0::2] == pads[1::2]:  # alike on both sides: the convolution pads by itself, without a copy of x
            return self.convolve(x, self.weight, (pads[2], pads[0]))
        return self.convolve(nn.functional.pad(x, pads), self.weight, (0, 0))


class ToChannelsFirst(nn.Module):
    """Turns boards [N, rows, columns, planes] into what convolutions expect, [N, planes, rows, columns]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class PixelConv(OrthogonalConv):
    """Convolves pictures [N, channels, height, width] of pixels 0..255, which count as 0..1 (Mnih et al. 2015).

    Equation: conv(x / 255, w), computed as conv(x, w / 255): one pass over the pictures less. While they are bytes,
    they are laid out with the channels of a pixel side by side; convolutions and poolings on the CPU keep that layout
    and are faster in it (the gradient of `NatureCnn` 1.5 times, of `ImpalaCnn` 1.7 times).
    """

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).contiguous().to(self.weight.dtype)  # not `memory_format`, which vmap lacks
        return self.convolve(pixels.permute(0, 3, 1, 2), self.weight / 255.0, self.padding)


class StandardisedPixelConv(PixelConv):
    """Convolves pictures [N, channels, height, width] whose pixels have mean 0 and variance 1 over each picture.

    Equation: conv((x - mean x) / √(var x + 1), w), x in 0..255, mean and variance over all pixels of all channels.

    Where little of a picture changes, as in Pong, what all pictures share is nearly all that a layer sees of x / 255,
    and its first updates, which learn the mean return from that, leave most units dead.
    """

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).contiguous().to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(pixels, (1, 2, 3), correction=0, keepdim=True)
        standardised = ((pixels - mean) * torch.rsqrt(variance + 1.0)).to(self.weight.dtype)
        return self.convolve(standardised.permute(0, 3, 1, 2), self.weight, self.padding)


class PicturesAndNumbers(nn.Module):
    """Splits flat observations of a `MixedShape`, [N, D], and joins what layers make of them: features [N, F].

    Each picture goes through layers of its own; the other numbers follow as they are.
    """

    def __init__(self, shape: MixedShape, of_pictures: Iterable[nn.Module]):
        super().__init__()
        self.of_pictures = nn.ModuleList(of_pictures)
        self._shape = shape

    def forward(self, x: Tensor) -> Tensor:
        *pictures, numbers = x.split(self._shape.sizes, -1)
        shaped = (pixels.unflatten(-1, shape) for pixels, shape in zip(pictures, self._shape.pictures, strict=True))
        seen = [layers(picture) for layers, picture in zip(self.of_pictures, shaped, strict=True)]
        return torch.cat([*seen, numbers], -1)


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters of one module, not of its children, again from `generator`.

    Haiku's default init is a normal of deviation 1/√fan_in truncated at 2 deviations, zero bias. A layer that is not of
    this file is drawn by its own `reset_parameters()`.

    Raises:
        ConfigurationError: a layer with parameters of its own and without `reset_parameters()`.
    """
    match module:
        case OrthogonalLinear() | OrthogonalConv():
            nn.init.orthogonal_(module.weight, module.gain, generator=generator)
        case OrthogonalGates():
            for gate in module.weight.detach().chunk(3):
                nn.init.orthogonal_(gate, generator=generator)
        case HaikuLinear() | HaikuConv():
            std = 1.0 / math.sqrt(module.weight[0].numel())
            nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
        case _:
            if any(True for _ in module.parameters(recurse=False)):
                _reset_by_own_rule(module, generator)
            return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _reset_by_own_rule(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a user's own layer by its `reset_parameters()`.

    Torch's global generator, which it uses, is seeded from ours.
    """
    reset = getattr(module, "reset_parameters", None)
    require(
        callable(reset),
        "network",
        type(module).__name__,
        "has parameters of its own and no reset_parameters() to draw them anew",
        "give it that method",
    )
    assert callable(reset)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        reset()
