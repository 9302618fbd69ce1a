"""Puts the outputs that a learnt update rule asks for on the hidden layers of a network."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from metagrad.disco_network import lstm_step
from metagrad.errors import refusal, require
from metagrad.flat_module import FlatModule, ParameterLayout
from metagrad.network_layers import HaikuLinear, Linear, PixelConv, reset
from metagrad.network_modules import PolicyAlone, SeparateNetworks, SharedTorso
from metagrad.networks import NetworkSpec
from metagrad.rule_files import AnyRule
from metagrad.update_rules import AgentOutputs

_SMALL_STD = 0.01  # of the weights of the policy and of predictions of the state


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleNetwork(NetworkSpec):
    """Shares the hidden layers of another network between the heads that a rule asks for; it has no critics.

    A head for the state, of shape [n] or a number, is a linear layer. Heads for each action, of shape [A, …], are two
    layers each on an LSTM's output: its state comes from the features, and it makes one step for each action, which it
    sees one-hot. The policy and heads for the state are drawn with deviation .01, other new layers as Haiku does by
    default; biases are 0.

    Source: the agents of Oh et al. (2025), DiscoRL (Methods), in the sizes of the public evaluation on Catch.
    """

    has_critics: ClassVar[bool] = False

    torso: NetworkSpec
    """The network whose hidden layers these are."""
    rule: AnyRule
    """Says which heads there are."""
    lstm: int = 128
    """Units of the LSTM over actions; unused by rules without heads for each action."""
    head_hidden: int = 128
    """Units of the hidden layer of each head for each action; unused as lstm is."""

    def check_sizes(self, field: str = "network") -> None:
        NetworkSpec.check_sizes(self, field)
        self.torso.check_sizes(f"{field}.torso")
        for name, rule in (
            ("gru", "remembers an episode, and a rule's agents see single steps"),
            ("gamma_embedding", "is for critics, and a rule's agents have none"),
        ):
            value = getattr(self.torso, name, None)
            require(value is None, f"{field}.torso.{name}", value, rule, "leave it out")

    def check_observations(
        self, observation_shape: tuple[int, ...], observation_dtype: torch.dtype | None = None, field: str = "network"
    ) -> None:
        self.torso.check_observations(observation_shape, observation_dtype, f"{field}.torso")

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> "RuleHeads":
        layers, features = hidden_layers(self.torso.module(observation_shape, num_actions, False))
        return RuleHeads(layers, features, self.rule.heads(num_actions), (self.lstm, self.head_hidden))


def hidden_layers(module: nn.Module) -> tuple[nn.Module, int]:
    """Return the layers before a network's heads, and their number of features; of separate networks the policy's.

    Raises:
        ConfigurationError: it has none that could be told apart.
    """
    network = module.logits if isinstance(module, SeparateNetworks | PolicyAlone) else None
    if isinstance(module, SharedTorso):
        first = next(layer for layer in module.logits.modules() if isinstance(layer, nn.Linear))
        return module.torso, first.in_features
    if isinstance(network, nn.Sequential) and isinstance(network[-1], nn.Linear):
        return network[:-1], network[-1].in_features
    rule = "has no hidden layers on which the outputs of a rule could be put"
    raise refusal("network", type(module).__name__, rule, "use another network, such as Mlp")


class SmallLinear(Linear):
    """Is a linear layer whose weights are normal of deviation .01 cut at two deviations; zero bias."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=_SMALL_STD, a=-2.0 * _SMALL_STD, b=2.0 * _SMALL_STD)
        nn.init.zeros_(self.bias)


class RuleHeads(nn.Module):
    """Computes a rule's heads on features of shared layers."""

    def __init__(
        self, torso: nn.Module, features: int, heads: Mapping[str, tuple[int, ...]], sizes: tuple[int, int]
    ) -> None:
        """Put heads on a torso [N, …] -> [N, F]; `sizes` are the LSTM's units and those of a head's hidden layer."""
        super().__init__()
        self.torso = torso
        units, hidden = sizes
        of_state = {name: shape for name, shape in heads.items() if len(shape) < 2}
        self.of_state = nn.ModuleDict(
            {name: SmallLinear(features, math.prod(shape)) for name, shape in of_state.items()}
        )
        self._numbers = {name for name, shape in of_state.items() if not shape}
        of_action = {name: shape for name, shape in heads.items() if len(shape) == 2}
        self.of_action = nn.ModuleDict(
            {
                name: nn.Sequential(HaikuLinear(units, hidden), nn.ReLU(), HaikuLinear(hidden, numbers))
                for name, (_, numbers) in of_action.items()
            }
        )
        self.num_actions = heads["logits"][0]
        if of_action:
            self.cell = HaikuLinear(features, units)
            self.gates = HaikuLinear(self.num_actions + units, 4 * units)

    def forward(self, observation: Tensor, heads: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the named heads [N, …]; None: all of them."""
        first = next(self.torso.modules())
        takes_bytes = isinstance(first, nn.Sequential) and isinstance(first[0], PixelConv)
        features = self.torso(observation if takes_bytes else observation.to(next(self.of_state.parameters()).dtype))
        wanted = {*self.of_state, *self.of_action} if heads is None else set(heads)
        outputs = {name: layer(features) for name, layer in self.of_state.items() if name in wanted}
        outputs |= {name: outputs[name].squeeze(-1) for name in self._numbers & wanted}
        if wanted & set(self.of_action):
            after = self._after_actions(features)
            outputs |= {name: layers(after) for name, layers in self.of_action.items() if name in wanted}
        return outputs

    def _after_actions(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N A H"]:
        """Return what the LSTM makes of each action."""
        cell = self.cell(features)
        of_action, of_hidden = self.gates.weight.split((self.num_actions, cell.shape[-1]), -1)
        gates = torch.tanh(cell) @ of_hidden.T + self.gates.bias
        hidden, _ = lstm_step(gates.unsqueeze(-2) + of_action.T, cell.unsqueeze(-2).expand(-1, self.num_actions, -1))
        return hidden


class RuleAgent:
    """Offers such a module as an agent's network: a pure function of θ to all heads."""

    def __init__(self, module: RuleHeads):
        self._module = module
        self._flat = FlatModule(module)

    @property
    def layout(self) -> ParameterLayout:
        """Return names and shapes of the tensors in θ."""
        return self._flat.layout

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Draw a fresh θ."""
        self._module.apply(lambda child: reset(child, generator))
        return self._flat.theta()

    def apply(self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "N ..."]) -> AgentOutputs:
        """Return every head on N observations."""
        outputs: dict[str, Tensor] = self._flat(theta, observation)
        return outputs
