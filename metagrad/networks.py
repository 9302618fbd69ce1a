"""Actor-critic networks as pure functions of one flat parameter vector θ.

Every network has a policy head, the inner critic (value under the meta-learnt discount) and, if asked for, the outer
critic (value under the outer discount γ'). Where the critics share a torso with the policy, the outer critic sits
behind a stop-gradient: it is trained alongside and changes nothing else.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from metagrad import autodiff
from metagrad.errors import require

Head = Literal["logits", "value", "outer_value"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NatureCnn:
    """Three convolutions and one hidden layer shared by linear heads; observations [4, 84, 84] in 0..255.

    Source: Mnih et al. (2015), Methods; hidden 512 as in "A Theoretical Understanding of Gradient Bias in Meta-RL"
    (G.3). Orthogonal init with gain √2, .01 for the policy, 1 for the critics (the paper names no gains; these are
    OpenAI Baselines').
    """

    hidden: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeCnn:
    """Three separate networks, each two 2x2 convolutions and an MLP; observations [rows, columns, 5].

    Source: released code of "Debiasing Meta-Gradient RL by Learning the Outer Value Function" (Snake), Haiku's default
    init: normal truncated at 2 standard deviations of 1/√fan_in, zero bias. Deviation from the paper's Figure 4 (shared
    torso), as in the release.
    """

    channels: int = 32
    policy_hidden: int = 64
    value_hidden: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """One hidden tanh layer shared by linear heads; flat observations."""

    hidden: int = 64


NetworkSpec = NatureCnn | SnakeCnn | Mlp


class ParameterLayout(NamedTuple):
    """Names and shapes of the tensors that lie one after another in θ."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(math.prod(shape) for shape in self.shapes)

    def unflatten(self, theta: Float[Tensor, "P"]) -> dict[str, Tensor]:
        """Views of θ by name; one split, whose backward is one concatenation."""
        parts = theta.split([math.prod(shape) for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "P"]:
        """One vector from tensors by name; a missing name raises KeyError."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


class Network:
    """A module seen as pure functions of θ; the module's own parameters are only a shape."""

    def __init__(self, module: nn.Module):
        """Wrap `module`, whose forward is (observation [N, …], heads) -> {head: tensor [N, …]}."""
        self._module = module
        named = dict(module.named_parameters())
        self.layout = ParameterLayout(tuple(named), tuple(tuple(p.shape) for p in named.values()))

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Fresh θ, drawn on the CPU from `generator`."""
        self._module.apply(lambda child: _reset(child, generator))
        return self.layout.flatten({name: p.detach() for name, p in self._module.named_parameters()})

    def apply(
        self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "..."], heads: Collection[Head]
    ) -> dict[Head, Tensor]:
        """The named heads on observations [N, …]: logits [N, A], value [N], outer_value [N]."""
        parameters = self.layout.unflatten(theta)
        outputs: dict[Head, Tensor] = functional_call(self._module, parameters, (observation, heads))
        return outputs


def build_network(
    spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool
) -> Network:
    """The network that `spec` describes for one environment."""
    match spec:
        case NatureCnn():
            torso = _nature_torso(spec, observation_shape)
            return Network(_SharedTorso(torso, spec.hidden, num_actions, has_outer_critic))
        case SnakeCnn():
            return Network(_SnakeNetworks(spec, observation_shape, num_actions, has_outer_critic))
        case Mlp():
            torso = nn.Sequential(nn.Flatten(), _Linear(math.prod(observation_shape), spec.hidden), nn.Tanh())
            return Network(_SharedTorso(torso, spec.hidden, num_actions, has_outer_critic))


class _Linear(nn.Linear):
    """Linear layer with orthogonal init of a given gain and zero bias."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2.0)):
        super().__init__(inputs, outputs)
        self.gain = gain


class _Conv(nn.Conv2d):
    """Convolution with orthogonal init of gain √2 and zero bias."""

    gain = math.sqrt(2.0)


class _HaikuLinear(nn.Linear):
    """Linear layer with Haiku's default init."""


class _HaikuConv(nn.Conv2d):
    """Convolution with Haiku's default init and XLA's SAME padding (what does not divide goes to the end)."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads) if any(pads) else x)


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    match module:
        case _Linear() | _Conv():
            nn.init.orthogonal_(module.weight, module.gain, generator=generator)
        case _HaikuLinear() | _HaikuConv():
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


class _SharedTorso(nn.Module):
    """Linear policy, inner-critic and outer-critic heads on one torso."""

    def __init__(self, torso: nn.Sequential, features: int, num_actions: int, has_outer_critic: bool):
        super().__init__()
        self.torso = torso
        self.logits = _Linear(features, num_actions, gain=0.01)
        self.value = _Linear(features, 1, gain=1.0)
        self.outer_value = _Linear(features, 1, gain=1.0) if has_outer_critic else None

    def forward(self, observation: Tensor, heads: Collection[Head]) -> dict[Head, Tensor]:
        features = observation.to(self.logits.weight.dtype)
        for layer in self.torso:  # one by one: the unscaled pixels, 36 MB at 5x64 Atari frames, are freed at once
            features = layer(features)
        outputs: dict[Head, Tensor] = {}
        if "logits" in heads:
            outputs["logits"] = self.logits(features)
        if "value" in heads:
            outputs["value"] = self.value(features).squeeze(-1)
        if "outer_value" in heads:
            assert self.outer_value is not None
            # The outer critic is trained on the torso's features without shaping them (debiasing paper, Figure 4).
            outputs["outer_value"] = self.outer_value(autodiff.stop_gradient(features)).squeeze(-1)
        return outputs


class _Scale(nn.Module):
    """Pixels 0..255 to 0..1 (Mnih et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255.0


def _nature_torso(spec: NatureCnn, observation_shape: tuple[int, ...]) -> nn.Sequential:
    channels, height, width = observation_shape
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(
        _Scale(),
        _Conv(channels, 32, 8, stride=4),
        nn.ReLU(),
        _Conv(32, 64, 4, stride=2),
        nn.ReLU(),
        _Conv(64, 64, 3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        _Linear(64 * height * width, spec.hidden),
        nn.ReLU(),
    )


class _ToChannelsFirst(nn.Module):
    """Boards [N, rows, columns, 5] as convolutions expect them, [N, 5, rows, columns]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class _SnakeNetworks(nn.Module):
    """One network per head, nothing shared."""

    def __init__(self, spec: SnakeCnn, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool):
        super().__init__()
        self.logits = _snake_network(spec, observation_shape, spec.policy_hidden, num_actions)
        self.value = _snake_network(spec, observation_shape, spec.value_hidden, 1)
        self.outer_value = _snake_network(spec, observation_shape, spec.value_hidden, 1) if has_outer_critic else None

    def forward(self, observation: Tensor, heads: Collection[Head]) -> dict[Head, Tensor]:
        board = observation.to(next(self.logits.parameters()).dtype)
        outputs: dict[Head, Tensor] = {}
        if "logits" in heads:
            outputs["logits"] = self.logits(board)
        if "value" in heads:
            outputs["value"] = self.value(board).squeeze(-1)
        if "outer_value" in heads:
            assert self.outer_value is not None
            outputs["outer_value"] = self.outer_value(board).squeeze(-1)
        return outputs


def _snake_network(spec: SnakeCnn, observation_shape: tuple[int, ...], hidden: int, outputs: int) -> nn.Module:
    rows, columns, planes = observation_shape
    cells = math.ceil(rows / 2) * math.ceil(columns / 2)
    return nn.Sequential(
        _ToChannelsFirst(),
        _HaikuConv(planes, spec.channels, 2, stride=2),
        nn.ReLU(),
        _HaikuConv(spec.channels, spec.channels, 2, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        _HaikuLinear(spec.channels * cells, hidden),
        nn.ReLU(),
        _HaikuLinear(hidden, hidden),
        nn.ReLU(),
        _HaikuLinear(hidden, outputs),
    )
