"""Defines the modules behind the specifications of `metagrad.networks`: torsos, heads, and how they combine.

Every module's forward is (observation [N, …], heads) -> {head: tensor [N, …]}; only what is asked for is computed.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metagrad import autodiff
from metagrad.errors import require
from metagrad.network_layers import (
    HaikuConv,
    HaikuLinear,
    Linear,
    OrthogonalConv,
    OrthogonalGates,
    OrthogonalLinear,
    PixelConv,
    StandardisedPixelConv,
    ToChannelsFirst,
)
from metagrad.recurrence import Gru, Memory, RecurrentNetwork

Head = Literal["logits", "value", "outer_value", "state"]
"""Outputs of a network; "state" is what a recurrent one remembers after each step."""
_NO_OUTER = ("the network has no outer critic", "build it with has_outer_critic=True")


class ConditionedCritic(nn.Module):
    """Computes the value of features [N, F] under a discount γ, [N, 1].

    Equation: w · ReLU(M [features; E γ + e] + m) + b with E γ + e in R^D.

    Source: released Atari code of "A Theoretical Understanding of Gradient Bias in Meta-RL", D = 16.
    """

    def __init__(self, features: int, embedding: int):
        super().__init__()
        self.embedding = OrthogonalLinear(1, embedding, gain=1.0)
        self.mixture = OrthogonalLinear(features + embedding, features)
        self.value = OrthogonalLinear(features, 1, gain=1.0)

    def forward(self, features: Tensor, discount: Float[Tensor, "1"] | float | None) -> Tensor:
        rule = "has a critic for the values under any discount, and none was named"
        require(discount is not None, "network", type(self).__name__, rule, "apply network.under(discount)")
        assert discount is not None
        own = self.embedding.weight
        if not isinstance(discount, Tensor):
            discount = own.new_full((1,), discount)  # filled in where it is needed: a copy would be waited for
        embedded = self.embedding(discount.to(own.dtype).view(1, 1))
        mixed = self.mixture(torch.cat([features, embedded.expand(len(features), -1)], -1))
        value: Tensor = self.value(torch.relu(mixed))
        return value


class SharedTorso(nn.Module):
    """Puts policy, inner-critic and outer-critic heads on the features of one torso."""

    def __init__(
        self,
        torso: nn.Sequential,
        logits: nn.Module,
        value: nn.Module,
        outer_value: nn.Module | None,
        core: Gru | None = None,
    ):
        """Put together torso [N, …] -> [N, F], policy [N, F] -> [N, A] and critics [N, F] -> [N, 1].

        The inner critic may be a `ConditionedCritic`. With a core, all of them are on what it makes of the features.
        """
        super().__init__()
        self.torso = torso
        self.core = core
        self.logits = logits
        self.value = value
        self.outer_value = outer_value
        self.state_size = 0 if core is None else core.units

    def forward(
        self,
        observation: Tensor,
        heads: Collection[Head],
        discount: Float[Tensor, "1"] | float | None = None,
        memory: Memory | None = None,
    ) -> dict[Head, Tensor]:
        takes_bytes = isinstance(self.torso[0], PixelConv)
        features = observation if takes_bytes else observation.to(next(self.parameters()).dtype)
        features = self.torso(features)
        outputs: dict[Head, Tensor] = {}
        if self.core is not None:
            features = self.core(features, memory)
            if "state" in heads:
                outputs["state"] = features
        if "logits" in heads:
            outputs["logits"] = self.logits(features)
        if "value" in heads:
            conditions = (discount,) if isinstance(self.value, ConditionedCritic) else ()
            outputs["value"] = self.value(features, *conditions).squeeze(-1)
        if "outer_value" in heads:
            require(self.outer_value is not None, "heads", heads, *_NO_OUTER)
            assert self.outer_value is not None
            # The outer critic is trained on the torso's features without shaping them (debiasing paper, Figure 4).
            outputs["outer_value"] = self.outer_value(autodiff.stop_gradient(features)).squeeze(-1)
        return outputs


class SeparateNetworks(nn.Module):
    """Has one network per head and shares nothing."""

    def __init__(self, logits: nn.Module, value: nn.Module, outer_value: nn.Module | None):
        """Put together a policy [N, …] -> [N, A] and critics [N, …] -> [N, 1]."""
        super().__init__()
        self.logits = logits
        self.value = value
        self.outer_value = outer_value
        self._heads: tuple[Head, ...] = ("logits", "value") + (("outer_value",) if outer_value is not None else ())
        networks = (getattr(self, head) for head in self._heads)
        self.state_size = sum(network.core.units for network in networks if isinstance(network, RecurrentNetwork))

    def forward(self, observation: Tensor, heads: Collection[Head], memory: Memory | None = None) -> dict[Head, Tensor]:
        board = observation.to(next(self.logits.parameters()).dtype)
        require("outer_value" not in heads or self.outer_value is not None, "heads", heads, *_NO_OUTER)
        memories = memory.split(len(self._heads)) if memory is not None else [None] * len(self._heads)
        outputs: dict[Head, Tensor] = {}
        states: list[Tensor] = []
        for head, own in zip(self._heads, memories, strict=True):
            if head not in heads and "state" not in heads:
                continue
            network = getattr(self, head)
            if own is None:
                output = network(board)
            else:
                output, state = network(board, own)
                states.append(state)
            if head in heads:
                outputs[head] = output if head == "logits" else output.squeeze(-1)
        if "state" in heads:
            outputs["state"] = torch.cat(states, -1)
        return outputs


def with_linear_heads(
    torso: nn.Sequential,
    features: int,
    num_actions: int,
    has_outer_critic: bool,
    gamma_embedding: int | None,
    gru: int | None,
) -> SharedTorso:
    """Build linear heads, orthogonal with gain .01 for the policy and 1 for the critics, on a torso of `features`.

    With a `gamma_embedding` the inner critic is a `ConditionedCritic`; with `gru`, the heads are on so many units of
    one.
    """
    core = None if gru is None else Gru(features, gru)
    features = features if gru is None else gru
    return SharedTorso(
        torso,
        OrthogonalLinear(features, num_actions, gain=0.01),
        OrthogonalLinear(features, 1, gain=1.0)
        if gamma_embedding is None
        else ConditionedCritic(features, gamma_embedding),
        OrthogonalLinear(features, 1, gain=1.0) if has_outer_critic else None,
        core,
    )


def with_haiku_heads(torso: nn.Sequential, features: int, num_actions: int, has_outer_critic: bool) -> SharedTorso:
    """Build linear heads with Haiku's default init on a torso of `features`."""
    outer_value = HaikuLinear(features, 1) if has_outer_critic else None
    return SharedTorso(torso, HaikuLinear(features, num_actions), HaikuLinear(features, 1), outer_value)


def with_mlp_heads(
    torso: nn.Sequential, features: int, hidden: int, num_actions: int, has_outer_critic: bool, gru: int | None
) -> SharedTorso:
    """Build heads with one hidden ReLU layer, Haiku's default init, on a torso of `features`, or on a `gru`'s units."""
    core = None if gru is None else Gru(features, gru)
    features = features if gru is None else gru

    def head(outputs: int) -> nn.Sequential:
        return nn.Sequential(HaikuLinear(features, hidden), nn.ReLU(), HaikuLinear(hidden, outputs))

    return SharedTorso(torso, head(num_actions), head(1), head(1) if has_outer_critic else None, core)


def with_last_layer(torso: nn.Sequential, features: int, gru: int | None, last: Callable[[int], Linear]) -> nn.Module:
    """Build a network of its own for one head: the last layer on a torso of `features`, or on so many units of a GRU.

    `last` makes the layer of the number of its inputs.
    """
    if gru is None:
        return torso.append(last(features))
    return RecurrentNetwork(torso, Gru(features, gru), last(gru))


Activation = Literal["tanh", "relu", "elu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def mlp_torso(
    observation_shape: tuple[int, ...], hidden: int, layers: int, activation: Activation, has_layer_norm: bool
) -> nn.Sequential:
    """Build layers on flattened observations, each normalised before its activation if asked for."""
    modules: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(observation_shape)
    for _ in range(layers):
        modules.append(OrthogonalLinear(inputs, hidden))
        if has_layer_norm:
            modules.append(nn.LayerNorm(hidden))
        modules.append(_ACTIVATIONS[activation]())
        inputs = hidden
    return nn.Sequential(*modules)


def haiku_torso(observation_shape: tuple[int, ...], hidden: int, layers: int) -> nn.Sequential:
    """Build layers on flattened observations with a ReLU between them, and none after the last."""
    sizes = [math.prod(observation_shape), *[hidden] * layers]
    linear = [HaikuLinear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    between = [module for layer in linear[1:] for module in (nn.ReLU(), layer)]
    return nn.Sequential(nn.Flatten(), linear[0], *between)


def small_picture_torso(observation_shape: tuple[int, ...], hidden: int) -> nn.Sequential:
    """Build two convolutions 3x3, the second of stride 2, and one hidden layer on pictures of any size."""
    channels, height, width = observation_shape
    cells = math.ceil(height / 2) * math.ceil(width / 2)
    return nn.Sequential(
        PixelConv(channels, 32, 3, padding=1),
        nn.ReLU(),
        OrthogonalConv(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        OrthogonalLinear(64 * cells, hidden),
        nn.ReLU(),
    )


def nature_torso(observation_shape: tuple[int, ...], hidden: int, is_standardised: bool = False) -> nn.Sequential:
    """Build three convolutions and one hidden layer on pictures [channels, height, width] (Mnih et al. 2015)."""
    channels, height, width = observation_shape
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(
        (StandardisedPixelConv if is_standardised else PixelConv)(channels, 32, 8, stride=4),
        nn.ReLU(),
        OrthogonalConv(32, 64, 4, stride=2),
        nn.ReLU(),
        OrthogonalConv(64, 64, 3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        OrthogonalLinear(64 * height * width, hidden),
        nn.ReLU(),
    )


class ResidualBlock(nn.Module):
    """Computes x + conv(ReLU(conv(ReLU(x)))), 3x3, with as many channels out as in."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = OrthogonalConv(channels, channels, 3, padding=1)
        self.second = OrthogonalConv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skipped: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        return x + skipped


def impala_torso(observation_shape: tuple[int, ...], channels: tuple[int, ...], hidden: int) -> nn.Sequential:
    """Build a section per entry of `channels` and one hidden layer on pictures [channels, height, width].

    A section: convolution 3x3, max pooling 3x3 of stride 2 (⌈height / 2⌉ x ⌈width / 2⌉), two residual blocks.
    """
    inputs, height, width = observation_shape
    layers: list[nn.Module] = []
    for outputs in channels:
        convolution = OrthogonalConv if layers else PixelConv
        layers += [
            convolution(inputs, outputs, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(outputs),
            ResidualBlock(outputs),
        ]
        inputs, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
    linear = OrthogonalLinear(inputs * height * width, hidden)
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), linear, nn.ReLU())


def snake_network(
    observation_shape: tuple[int, ...], channels: int, hidden: int, outputs: int, gru: int | None
) -> nn.Module:
    """Build two 2x2 convolutions and an MLP of two hidden layers on boards [rows, columns, planes]."""
    rows, columns, planes = observation_shape
    cells = math.ceil(rows / 2) * math.ceil(columns / 2)
    torso = nn.Sequential(
        ToChannelsFirst(),
        HaikuConv(planes, channels, 2, stride=2),
        nn.ReLU(),
        HaikuConv(channels, channels, 2, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        HaikuLinear(channels * cells, hidden),
        nn.ReLU(),
        HaikuLinear(hidden, hidden),
        nn.ReLU(),
    )
    return with_last_layer(torso, hidden, gru, lambda inputs: HaikuLinear(inputs, outputs))


def pooled_snake_torso(observation_shape: tuple[int, ...], channels: int, features: int) -> nn.Sequential:
    """Build two blocks of convolution 3x3, ReLU, max pooling 2x2 (what does not divide is left out), one ReLU layer.

    max(ReLU(x)) = ReLU(max(x)), with the same derivatives: the pooling comes first, for a quarter of the ReLU's work.
    """
    rows, columns, planes = observation_shape
    return nn.Sequential(
        ToChannelsFirst(),
        HaikuConv(planes, channels, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        HaikuConv(channels, channels, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        HaikuLinear(channels * (rows // 4) * (columns // 4), features),
        nn.ReLU(),
    )


class PolicyAlone(nn.Module):
    """Offers a policy [N, …] -> [N, A] without critics, for losses whose values come from elsewhere."""

    def __init__(self, logits: nn.Module):
        super().__init__()
        self.logits = logits

    def forward(self, observation: Tensor, heads: Collection[Head]) -> dict[Head, Tensor]:
        require(
            all(head == "logits" for head in heads),
            "network",
            "policy alone",
            f"has no critics, and {', '.join(heads)} was asked for",
            "use a network with critics, such as Mlp",
        )
        if not heads:
            return {}
        return {"logits": self.logits(observation.to(next(self.logits.parameters()).dtype))}


class VarianceScalingLinear(Linear):
    """Is a linear layer whose weights are normal of variance `scale` / inputs, cut at two deviations; zero bias.

    The variance is that after the cut (Haiku's and JAX's VarianceScaling, fan-in).
    """

    def __init__(self, inputs: int, outputs: int, scale: float):
        self.scale = scale  # the constructor below draws
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        std = math.sqrt(self.scale / self.in_features) / 0.87962566103423978  # of a standard normal cut at 2
        nn.init.trunc_normal_(self.weight, std=std, a=-2.0 * std, b=2.0 * std)
        nn.init.zeros_(self.bias)


def joint_log_prob(
    own: Float[Tensor, "*N S"], other: Float[Tensor, "*N S"], other_state: Sequence[int]
) -> Float[Tensor, "*N S 4"]:
    """Return the log probability of both players' actions, 2 a + a', in each state of the own player, in nats.

    Equation: log π(a | s) + log π'(a' | s'), sigmoid(θ_s) = π(0 | s); both have two actions.

    Args:
        own: θ of the player whose action is a.
        other: θ of the other one.
        other_state: s', which the other player sees, for each s.
    """
    mine = torch.stack([own, -own], -1)
    seen = torch.tensor(other_state).to(other.device, non_blocking=True)  # a list would be copied, and waited for
    others = torch.stack([other, -other], -1)[..., seen, :]
    log_prob = nn.functional.logsigmoid(mine)[..., :, None] + nn.functional.logsigmoid(others)[..., None, :]
    return log_prob.flatten(-2)


class TwoTables(nn.Module):
    """Holds the policies of two players of one game, a table each.

    They map one-hot states [N, S] of player 0 to logits [N, 4].
    """

    def __init__(self, other_state: Sequence[int]):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, len(other_state)))
        self._other_state = tuple(other_state)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, observation: Tensor) -> Tensor:
        logits: Tensor = observation @ joint_log_prob(self.table[0], self.table[1], self._other_state)
        return logits


def float32_parameters(module: nn.Module) -> frozenset[str]:
    """Name the parameters that stay float32 where layers compute in bfloat16: last layers, and critics told a discount.

    Bfloat16 has 8 bits, which do not tell γ = .99 from .993, nor values of 30 from 30.1. A recurrent core stays float32
    too: its state is added to over whole episodes.
    """
    kept: list[nn.Module] = [layer for layer in module.modules() if isinstance(layer, OrthogonalGates)]
    for head in get_args(Head):
        of_head = getattr(module, head, None)
        layers = of_head.modules() if isinstance(of_head, nn.Module) else ()
        linear = [layer for layer in layers if isinstance(layer, nn.Linear) and layer not in kept]
        kept += linear if isinstance(of_head, ConditionedCritic) else linear[-1:]
    return frozenset(
        f"{prefix}.{name}"
        for prefix, child in module.named_modules()
        if any(child is layer for layer in kept)
        for name, _ in child.named_parameters(recurse=False)
    )
