"""Layers that know their initialisation, and drawing a module's parameters anew from a generator."""

import math

import torch
from torch import Tensor, nn

from metagrad.errors import require


class OrthogonalLinear(nn.Linear):
    """Linear layer with orthogonal init of a given gain and zero bias."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2.0)):
        super().__init__(inputs, outputs)
        self.gain = gain


class OrthogonalConv(nn.Conv2d):
    """Convolution with orthogonal init of gain √2 and zero bias."""

    gain = math.sqrt(2.0)


class HaikuLinear(nn.Linear):
    """Linear layer with Haiku's default init."""


class HaikuConv(nn.Conv2d):
    """Convolution with Haiku's default init and XLA's SAME padding (what does not divide goes to the end)."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        if pads[0::2] == pads[1::2]:  # alike on both sides: the convolution pads by itself, without a copy of x
            return nn.functional.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]))
        return super().forward(nn.functional.pad(x, pads))


class Scale(nn.Module):
    """Pixels 0..255 to 0..1 (Mnih et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255.0


class ToChannelsFirst(nn.Module):
    """Boards [N, rows, columns, planes] as convolutions expect them, [N, planes, rows, columns]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ToChannelsLastMemory(nn.Module):
    """The same pictures [N, channels, height, width], with the channels of a pixel side by side in memory.

    Convolutions and poolings on the CPU keep that layout and are faster in it (ImpalaCnn's gradient: 1.7 times).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # not `memory_format`, which vmap does not know


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters of one module, not of its children, anew from `generator`.

    Haiku's default init is a normal of deviation 1/√fan_in truncated at 2 deviations, zero bias. A layer that is not of
    this file is drawn by its own `reset_parameters()`.

    Raises:
        ConfigurationError: a layer with parameters of its own and without `reset_parameters()`.
    """
    match module:
        case OrthogonalLinear() | OrthogonalConv():
            nn.init.orthogonal_(module.weight, module.gain, generator=generator)
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
    """A user's own layer by its `reset_parameters()`, which draws from torch's global generator: seeded from ours."""
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
