"""Defines what a learnt update rule is, and what the agents that learn by it give it to see.

A rule turns a rollout and what the agent's network says about it into targets, by weights η that are one flat vector
for all agents, whatever their environments and numbers of actions. The agent descends a loss towards these targets.

Everything here is about one agent; `metagrad.lifetimes` has many of them side by side by `torch.func.vmap`. A rule
therefore branches on no value of a tensor, reads none (`.item()`), writes to none of its inputs, and makes no shape
that depends on data. Random numbers are not allowed either: a step may be computed twice.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from metagrad.flat_module import ParameterLayout

AgentOutputs = Mapping[str, Tensor]
"""Holds what an agent's network says of T + 1 observations, by head, each [T+1, B, …]: "logits" [T+1, B, A] of the
policy, and the heads that the rule asks for."""

Targets = Mapping[str, Tensor]
"""Holds what a rule wants of the agent, by names of its own."""

RuleState = tuple[Tensor, ...]
"""Holds what a rule carries from one update of an agent to the next: moving averages, a recurrent state; () is
nothing."""


class LifetimeRollout(NamedTuple):
    """Holds T steps of B environments of one agent, time-major; all of it is constant in every derivative.

    An episode that ends at step t is followed at once by the next one's first observation at t + 1, or by a row with
    `valid` False, which the policy did not choose. Time limits end episodes like anything else.
    """

    observation: Shaped[Tensor, "T+1 B ..."]
    action: Int[Tensor, "T+1 B"]  # the last one is of the step after the rollout; a rule may bootstrap from it
    reward: Float[Tensor, "T B"]
    is_terminal: Bool[Tensor, "T B"]  # the episode ended at step t: no value beyond it
    valid: Bool[Tensor, "T B"]  # False: enters no loss
    behaviour_logits: Float[Tensor, "T+1 B A"]  # of the policy that acted


def of_actions(x: Float[Tensor, "rows B A *rest"], action: Int[Tensor, "T B"]) -> Float[Tensor, "T B *rest"]:
    """Return the entries of the actions taken, of the first T rows."""
    rows = x[: len(action)]
    index = action.long().view(*action.shape, 1, *[1] * (x.dim() - 3)).expand(*action.shape, 1, *x.shape[3:])
    return rows.gather(2, index).squeeze(2)


@runtime_checkable
class AgentNetwork(Protocol):
    """Computes an agent's outputs as a pure function of one flat vector θ."""

    @property
    def layout(self) -> ParameterLayout:
        """Return names and shapes of the tensors in θ."""
        ...

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Draw a fresh θ."""
        ...

    def apply(self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "N ..."]) -> AgentOutputs:
        """Return every head on N observations, each [N, …]."""
        ...


@runtime_checkable
class UpdateRule(Protocol):
    """Turns what an agent saw into targets for it, by the weights η; a frozen dataclass of its configuration."""

    @property
    def target_network_decay(self) -> float | None:
        """Return c of the target network θ⁻ ← c θ⁻ + (1 - c) θ, made with θ before its update; None: there is none."""
        ...

    @property
    def layout(self) -> ParameterLayout:
        """Return names and shapes of the tensors in η."""
        ...

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Return the weight of each of `regularisers` in the outer loss, not negative."""
        ...

    def heads(self, num_actions: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each output that an agent has for one observation; "logits", (A,), is one of them."""
        ...

    def init(self, generator: torch.Generator) -> Float[Tensor, "M"]:
        """Draw a fresh η, in float32."""
        ...

    def initial_state(self) -> RuleState:
        """Return what a new agent's first update is given, in float32."""
        ...

    def targets(
        self,
        eta: Float[Tensor, "M"],
        state: RuleState,
        rollout: LifetimeRollout,
        outputs: AgentOutputs,
        target_outputs: AgentOutputs | None,
    ) -> tuple[Targets, RuleState]:
        """Return targets and the state for the next update, differentiable in η, the state and the outputs.

        `outputs` are of the present θ with their graph: what the rule takes for a constant it detaches itself.
        `target_outputs` are of θ⁻, None without a target network. The inner gradient takes the targets for constants in
        any case; the meta-gradient follows them to where they come from.
        """
        ...

    def loss(self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout) -> Float[Tensor, ""]:
        """Return the inner loss, a mean over the rollout's steps, whose gradient in `outputs` alone is descended."""
        ...

    def regularisers(
        self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return what the outer loss is to keep small at each update, by the name of its coefficient.

        An entropy that is to be large comes with a minus.
        """
        ...
