"""Computes the outputs of small agents: a network of its own for each head, tabular or with one hidden layer.

The networks of an agent share nothing, so that each can have its own learning rate and its own clip (`per_head`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from metagrad.errors import require
from metagrad.flat_module import ParameterLayout
from metagrad.optimizers import Optimizer, PerPart
from metagrad.update_rules import AgentNetwork, AgentOutputs

Heads = Mapping[str, tuple[int, ...]]
"""Shape of each output for one observation, by the head's name."""


@dataclass(frozen=True, kw_only=True)
class TabularAgent:
    """Looks each output up in a table with one row for each state; all of it is 0 at first.

    This is a linear layer without bias on one-hot states, which are given as their numbers.

    Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG), its tabular agents.
    """

    states: int
    """Number of states."""
    heads: Heads
    """Outputs of the agent."""

    def __post_init__(self) -> None:
        require(self.states >= 1, "states", self.states, "must be at least 1", "raise it")
        _require_heads(self.heads)

    @property
    def layout(self) -> ParameterLayout:
        """Return one table [S, numbers of the head] for each head."""
        names = tuple(f"{head}.table" for head in self.heads)
        return ParameterLayout(names, tuple((self.states, math.prod(shape)) for shape in self.heads.values()))

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Return zeros: a uniform policy, and nothing drawn."""
        del generator
        return torch.zeros(self.layout.size)

    def apply(self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "N ..."]) -> AgentOutputs:
        """Return every head in the states with these numbers.

        Raises:
            ConfigurationError: observations that are no numbers of states.
        """
        is_whole = observation.dtype in (torch.int64, torch.int32) and observation.ndim == 1
        rule, remedy = "a tabular agent sees the numbers of states", "give int64, or use a network with a hidden layer"
        given = (observation.dtype, *observation.shape)
        require(is_whole, "observation", given, rule, remedy)
        tables, rows = self.layout.unflatten(theta), observation.long().unsqueeze(-1)
        outputs: dict[str, Tensor] = {}
        for head, shape in self.heads.items():
            numbers = math.prod(shape)
            output = tables[f"{head}.table"].gather(0, rows.expand(len(rows), numbers))
            outputs[head] = _shaped(output, shape)
        return outputs


@dataclass(frozen=True, kw_only=True)
class HiddenAgent:
    """Computes each output by one hidden layer with ReLU and a linear one, of flattened observations.

    Weights are drawn from normals of deviation 1/√inputs truncated at two deviations, biases are 0.

    Source: the agents of Jackson et al. (2023), "Discovering General RL Algorithms with Adversarial Environment Design"
    (GROOVE) in worlds that are not tabular, with 32 units.
    """

    observation_shape: tuple[int, ...]
    """Shape of one observation."""
    heads: Heads
    """Outputs of the agent."""
    hidden: int = 32
    """Units of the hidden layer of each head."""

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "hidden", self.hidden, "must be at least 1", "raise it")
        _require_heads(self.heads)

    @property
    def layout(self) -> ParameterLayout:
        """Return weights [inputs, outputs] and biases of both layers, for each head."""
        inputs = math.prod(self.observation_shape)
        shapes: dict[str, tuple[int, ...]] = {}
        for head, shape in self.heads.items():
            outputs = math.prod(shape)
            shapes[f"{head}.hidden.weight"] = (inputs, self.hidden)
            shapes[f"{head}.hidden.bias"] = (self.hidden,)
            shapes[f"{head}.last.weight"] = (self.hidden, outputs)
            shapes[f"{head}.last.bias"] = (outputs,)
        return ParameterLayout(tuple(shapes), tuple(shapes.values()))

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Draw a fresh θ."""
        return drawn(self.layout, generator)

    def apply(self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "N ..."]) -> AgentOutputs:
        """Return every head on N observations."""
        own = self.layout.unflatten(theta)
        x = observation.flatten(1).to(theta.dtype)
        outputs: dict[str, Tensor] = {}
        for head, shape in self.heads.items():
            features = torch.relu(x @ own[f"{head}.hidden.weight"] + own[f"{head}.hidden.bias"])
            output = features @ own[f"{head}.last.weight"] + own[f"{head}.last.bias"]
            outputs[head] = _shaped(output, shape)
        return outputs


def _shaped(output: Tensor, shape: tuple[int, ...]) -> Tensor:
    return output.unflatten(-1, shape) if shape else output.squeeze(-1)


def _require_heads(heads: Heads) -> None:
    rule, remedy = "an agent has outputs with names without a dot", "give the heads of a rule"
    require(bool(heads) and not any("." in head for head in heads), "heads", tuple(heads), rule, remedy)


def drawn(layout: ParameterLayout, generator: torch.Generator) -> Float[Tensor, "P"]:
    """Draw matrices [inputs, outputs] of a layout from normals of deviation 1/√inputs truncated at two; the rest is 0.

    Source: LeCun's normal init, the default of Haiku.
    """
    parts: dict[str, Tensor] = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        parts[name] = torch.zeros(shape)
        if len(shape) == 2:
            std = shape[0] ** -0.5
            torch.nn.init.trunc_normal_(parts[name], std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
    return layout.flatten(parts)


def per_head(network: AgentNetwork, optimizers: Mapping[str, Optimizer]) -> PerPart:
    """Return an optimizer with one of its own for each head of a network that shares nothing between heads.

    GROOVE's tabular agents have `{"logits": Sgd(learning_rate=40.0, max_gradient_norm=0.5), "prediction":
    Sgd(learning_rate=4.0, max_gradient_norm=0.5)}`.

    Raises:
        ConfigurationError: the names are not those of the network's heads.
    """
    sizes: dict[str, int] = {}
    for name, shape in zip(network.layout.names, network.layout.shapes, strict=True):
        head = name.partition(".")[0]
        sizes[head] = sizes.get(head, 0) + math.prod(shape)
    rule, remedy = f"the heads are {', '.join(sizes)}", "give an optimizer for each"
    require(set(optimizers) == set(sizes), "optimizers", tuple(optimizers), rule, remedy)
    return PerPart(sizes=tuple(sizes.values()), optimizers=tuple(optimizers[head] for head in sizes))
