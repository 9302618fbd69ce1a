"""Writes out the life of one agent under a rule and the derivative of what becomes of it, as one would for one agent.

Plain autograd through the whole life, no `vmap`; of the library the rule, the networks and the optimizers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import trees
from metagrad.lifetimes import Agents, Learning, agent_outputs
from metagrad.optimizers import OptimizerState
from metagrad.returns import lambda_returns
from metagrad.update_rules import AgentOutputs, LifetimeRollout


class Alone:
    """Holds agent i of many, with its own rollouts: one for each update and one for the outer objective."""

    def __init__(self, learning: Learning, agents: Agents, rollouts: Sequence[LifetimeRollout], i: int):
        self.learning = learning
        self.start: Agents = trees.map_tensors(lambda x: x[i], agents)
        self.rollouts = [LifetimeRollout(*(x[i] for x in rollout)) for rollout in rollouts]
        self.theta = self.start.theta
        self.value_theta = self.start.value_theta

    def gradient(self, eta: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
        """Return ∂J/∂η."""
        leaf = eta.detach().requires_grad_()
        return torch.autograd.grad(self.objective(leaf), leaf)[0]

    def objective(self, eta: Float[Tensor, "M"]) -> Float[Tensor, ""]:
        """Return J; θ and value function after the updates stay in `theta` and `value_theta`."""
        learning, rule, agent = self.learning, self.learning.rule, self.start
        theta, state, age = agent.theta.clone().requires_grad_(), agent.rule_state, int(agent.updates)
        moments, objective = agent.moments, torch.zeros((), dtype=eta.dtype)
        self.value_theta, before = agent.value_theta, agent.target_theta
        value_state = OptimizerState(int(agent.value_updates), agent.value_moments)
        *lived, last = self.rollouts
        for rollout in lived:
            outputs = agent_outputs(learning.network, theta, rollout.observation)
            targets, state = rule.targets(eta, state, rollout, outputs, self._target_outputs(before, rollout))
            own = theta.clone()
            loss = rule.loss(targets, agent_outputs(learning.network, own, rollout.observation), rollout)
            (gradient,) = torch.autograd.grad(loss, own, create_graph=True)
            for name, x in rule.regularisers(targets, outputs, rollout).items():
                objective = objective + rule.coefficients[name] * x / len(lived)
            if rule.target_network_decay is not None:
                before = rule.target_network_decay * before + (1.0 - rule.target_network_decay) * theta
            theta, after = learning.optimizer.update(gradient, OptimizerState(age, moments), theta, eta)
            age, moments = age + 1, after.moments
            value_state = self._learn_value(value_state, rollout)
        self.theta = theta.detach()
        target, value = self._value_targets(self.value_theta, last)
        advantage = (target - value[:-1]).detach()
        mean = advantage[last.valid].mean()
        advantage = (advantage - mean) / ((advantage[last.valid] - mean).square().mean() + 1e-5).sqrt()
        logits = agent_outputs(learning.network, theta, last.observation)["logits"][:-1]
        log_prob = torch.log_softmax(logits, -1).gather(-1, last.action[:-1].unsqueeze(-1)).squeeze(-1)
        return objective - (log_prob * advantage)[last.valid].mean()

    def _target_outputs(self, target_theta: Tensor, rollout: LifetimeRollout) -> AgentOutputs | None:
        if self.learning.rule.target_network_decay is None:
            return None
        return agent_outputs(self.learning.network, target_theta, rollout.observation)

    def _value_targets(self, value_theta: Tensor, rollout: LifetimeRollout) -> tuple[Tensor, Tensor]:
        value = agent_outputs(self.learning.value_network, value_theta, rollout.observation)["value"]
        never, learning = torch.zeros_like(rollout.is_terminal), self.learning
        rates = (learning.gamma, learning.lambda_)
        return lambda_returns(rollout.reward, value.detach(), rollout.is_terminal, never, *rates), value

    def _learn_value(self, state: OptimizerState, rollout: LifetimeRollout) -> OptimizerState:
        theta = self.value_theta.detach().requires_grad_()
        target, value = self._value_targets(theta, rollout)
        loss = (target - value[:-1])[rollout.valid].square().mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        self.value_theta, new = self.learning.value_optimizer.update(gradient, state, theta.detach(), theta.detach())
        return new
