"""Configures the agents of a population: their networks, their optimizers, and how they are scored."""

from dataclasses import dataclass

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.agent_networks import Heads, HiddenAgent, TabularAgent, per_head
from metagrad.errors import require
from metagrad.lifetimes import Learning
from metagrad.optimizers import Adam, Optimizer, Sgd
from metagrad.update_rules import AgentNetwork, UpdateRule


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """Configures all agents; a table where the states of their family's tasks are numbered, else a hidden layer.

    Source: the agents of Jackson et al. (2023), GROOVE. The value function of the outer objective, whose settings are
    not in the paper, is ours.
    """

    hidden: int = 32
    """Units of the hidden layer of each output, where it is no table."""
    learning_rate: float = 1e-3
    """Step size of Adam, where there is a hidden layer."""
    tabular_policy_learning_rate: float = 40.0
    """Step size of gradient descent on the policy's table."""
    tabular_learning_rate: float = 4.0
    """Step size of gradient descent on all other tables that a rule asks for, such as the prediction's."""
    max_gradient_norm: float = 0.5
    """Clip the gradient of each output's parameters at this norm."""
    value_learning_rate: float = 1e-2
    """Step size of Adam for the value function that scores an agent (a table, or of a hidden layer as above)."""
    gamma: float = 0.99
    """Discount of the outer objective."""
    lambda_: float = 0.95
    """λ of the outer objective's advantages."""

    def __post_init__(self) -> None:
        require(1 <= self.hidden <= 2**16, "agent.hidden", self.hidden, "must lie in [1, 65536]", "change it")
        for name in (
            *("learning_rate", "tabular_policy_learning_rate", "tabular_learning_rate", "max_gradient_norm"),
            "value_learning_rate",
        ):
            value = getattr(self, name)
            require(0.0 < value < float("inf"), f"agent.{name}", value, "must be positive and finite", "change it")
        for name in ("gamma", "lambda_"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"agent.{name.rstrip('_')}", value, "must lie in [0, 1]", "change it")

    def learning(self, rule: UpdateRule, spec: EnvironmentSpec, is_tabular: bool) -> Learning:
        """Return how agents in tasks of this kind learn."""
        heads, values = rule.heads(spec.num_actions), {"value": ()}
        network, value_network = (self._network(spec, each, is_tabular) for each in (heads, values))
        optimizers = {head: self._optimizer(head, is_tabular) for head in heads}
        return Learning(
            rule=rule,
            network=network,
            optimizer=per_head(network, optimizers),
            value_network=value_network,
            value_optimizer=Adam(learning_rate=self.value_learning_rate),
            gamma=self.gamma,
            lambda_=self.lambda_,
        )

    def _network(self, spec: EnvironmentSpec, heads: Heads, is_tabular: bool) -> AgentNetwork:
        if is_tabular:
            return TabularAgent(states=spec.observation_shape[0], heads=heads)
        return HiddenAgent(observation_shape=spec.observation_shape, heads=heads, hidden=self.hidden)

    def _optimizer(self, head: str, is_tabular: bool) -> Optimizer:
        if not is_tabular:
            return Adam(learning_rate=self.learning_rate, max_gradient_norm=self.max_gradient_norm)
        rate = self.tabular_policy_learning_rate if head == "logits" else self.tabular_learning_rate
        return Sgd(learning_rate=rate, max_gradient_norm=self.max_gradient_norm)
