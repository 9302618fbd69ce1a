"""Computes DiscoRL's rule: the targets that it sets for an agent's policy and predictions, and the agent's loss.

The rule is an LSTM that runs backwards over a rollout and says, of each step, what the policy, two predictions without
a prescribed meaning (y of the state, z of the action) should become; a second LSTM sees a summary of every update and
modulates the first. Its weights η, published or meta-trained, have the names of the published file.

Source: Oh et al. (2025), "Discovering state-of-the-art reinforcement learning algorithms", Nature, doi
10.1038/s41586-025-09761-x, and its public implementation, whose recorded numbers the tests compare with. Shapes: T
steps, B environments, A actions, Y numbers of a prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.disco_features import Features, Predictions, Seen, features
from metagrad.disco_network import META, TRAJECTORY, action_block, backward_lstm, embedded, joined, linear, lstm_step
from metagrad.disco_network import shapes as shapes_of
from metagrad.disco_values import MovingAverage, expected_value, squash, two_hot, values
from metagrad.errors import require
from metagrad.flat_module import ParameterLayout
from metagrad.update_rules import AgentOutputs, LifetimeRollout, of_actions


class DiscoState(NamedTuple):
    """Holds what the rule carries from one update of an agent to the next."""

    advantage1: Float[Tensor, ""]  # moments of the advantage, and its decay product
    advantage2: Float[Tensor, ""]
    advantage_decay: Float[Tensor, ""]
    error1: Float[Tensor, ""]  # the same of the action value's error, which scales nothing and is watched
    error2: Float[Tensor, ""]
    error_decay: Float[Tensor, ""]
    hidden: Float[Tensor, "H"]  # of the LSTM over updates
    cell: Float[Tensor, "H"]

    @property
    def advantages(self) -> MovingAverage:
        """Return the average of advantages."""
        return MovingAverage(self.advantage1, self.advantage2, self.advantage_decay)

    @property
    def errors(self) -> MovingAverage:
        """Return the average of the action value's errors."""
        return MovingAverage(self.error1, self.error2, self.error_decay)


class DiscoOutputs(NamedTuple):
    """Holds what the rule's networks compute of one rollout."""

    policy: Float[Tensor, "T B A"]  # logits of the target of the policy
    y: Float[Tensor, "T B Y"]  # logits of the target of y
    z: Float[Tensor, "T B Y"]  # logits of the target of z
    summary: Float[Tensor, "T B 1"]  # for the LSTM over updates
    features: Features
    trajectory: Float[Tensor, "T B H"]  # of the LSTM over the rollout
    modulated: Float[Tensor, "T B H"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscoRule:
    """Holds the rule's settings, the published ones unless told otherwise; the last four are sizes of η.

    Deviations of the regularisers: entropies of predictions are means over the agent's updates, where the public
    meta-training takes them of the rollout that the outer loss is computed on.
    """

    policy_coefficient: float = 1.0
    """Weight of the KL divergence from the policy's target."""
    y_coefficient: float = 1.0
    """Weight of the KL divergence from y's target."""
    z_coefficient: float = 1.0
    """Weight of the KL divergence from z's target, of the action taken."""
    next_policy_coefficient: float = 1.0
    """Weight of the loss that predicts the policy at the next state."""
    value_coefficient: float = 0.2
    """Weight of the action value's loss."""
    gamma: float = 0.997
    """Discount of the values that the rule sees."""
    lambda_: float = 0.95
    """Decay of Retrace."""
    average_decay: float = 0.99
    """Decay of the moving averages of advantages and errors, for each update."""
    target_network_decay: float | None = 0.9
    """Share that the target network keeps of itself at an update."""
    prediction_entropy_coefficient: float = 1e-3
    """Weight of the entropies of y and z in the outer loss."""
    mean_coefficient: float = 1e-3
    """Weight of the squared mean of each of the rule's outputs in the outer loss."""
    target_policy_coefficient: float = 1e-2
    """Weight of the KL divergence from the target network's policy to the policy's target in the outer loss."""
    prediction: int = 600
    """Numbers of each prediction."""
    largest_value: int = 300
    """Squashed action values lie between this and its negative, at whole numbers."""
    hidden: int = 256
    """Units of the LSTM over the rollout."""
    meta_hidden: int = 128
    """Units of the LSTM over updates."""

    def __post_init__(self) -> None:
        for name in ("prediction", "largest_value", "hidden", "meta_hidden"):
            size = getattr(self, name)
            require(1 <= size <= 2**16, f"rule.{name}", size, "must be at least 1 and at most 2^16", "change it")
        for name in ("gamma", "lambda_"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"rule.{name}", value, "must lie in [0, 1]", "change it")
        decay, target_decay = self.average_decay, self.target_network_decay
        require(0 <= decay < 1, "rule.average_decay", decay, "must lie in [0, 1)", "the published one is 0.99")
        is_decay = target_decay is not None and 0 <= target_decay < 1
        rule, remedy = "the rule compares with a target network, whose decay lies in [0, 1)", "the published one is 0.9"
        require(is_decay, "rule.target_network_decay", target_decay, rule, remedy)
        for name in (field.name for field in fields(self) if field.name.endswith("coefficient")):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"rule.{name}", value, "must be finite and not negative", "change it")

    @property
    def layout(self) -> ParameterLayout:
        """Return the names and shapes of the published file."""
        shapes = shapes_of(self.prediction, self.hidden, self.meta_hidden)
        return ParameterLayout(tuple(shapes), tuple(shapes.values()))

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Return the weights of `regularisers`."""
        prediction, mean = self.prediction_entropy_coefficient, self.mean_coefficient
        return {
            "y_entropy": prediction,
            "z_entropy": prediction,
            "policy_mean": mean,
            "y_mean": mean,
            "z_mean": mean,
            "target_policy": self.target_policy_coefficient,
        }

    def heads(self, num_actions: int) -> Mapping[str, tuple[int, ...]]:
        """Return the policy, y, z of each action, the policy after each action, and each action's value."""
        return {
            "logits": (num_actions,),
            "y": (self.prediction,),
            "z": (num_actions, self.prediction),
            "aux_pi": (num_actions, num_actions),
            "q": (num_actions, 2 * self.largest_value + 1),
        }

    def init(self, generator: torch.Generator) -> Float[Tensor, "M"]:
        """Draw η as Haiku's layers are by default: normal of deviation 1/√inputs cut at 2 deviations, zero bias."""
        layout = self.layout
        tensors = {name: torch.zeros(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
        for x in tensors.values():
            if x.dim() > 1:
                std = x.shape[-2] ** -0.5
                torch.nn.init.trunc_normal_(x, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
        return layout.flatten(tensors)

    def initial_state(self) -> DiscoState:
        """Return averages of nothing and an LSTM at zero."""
        average, zeros = MovingAverage.initial(), torch.zeros(self.meta_hidden)
        return DiscoState._make((*average, *average, zeros, zeros))

    def targets(
        self,
        eta: Float[Tensor, "M"],
        state: tuple[Tensor, ...],
        rollout: LifetimeRollout,
        outputs: AgentOutputs,
        target_outputs: AgentOutputs | None,
    ) -> tuple[dict[str, Tensor], DiscoState]:
        """Return the targets of policy and predictions, and what else the loss is made of."""
        assert target_outputs is not None, "this rule has a target network"
        before, weights = DiscoState(*state), self.layout.unflatten(eta)
        seen, averages = self.see(before, rollout, outputs, target_outputs)
        found, hidden, cell = disco_outputs(weights, seen, before.hidden, before.cell)
        targets = {
            "logits": found.policy,
            "y": found.y,
            "z": found.z,
            "q_error": seen.values.q_error,
            "target_logits": autodiff.stop_gradient(target_outputs["logits"][:-1]),
        }
        return targets, DiscoState._make((*averages, hidden, cell))

    def see(
        self,
        state: DiscoState,
        rollout: LifetimeRollout,
        outputs: AgentOutputs,
        target_outputs: AgentOutputs,
    ) -> tuple[Seen, tuple[Tensor, ...]]:
        """Return what the rule's networks see, and both moving averages with this rollout in them."""
        found = values(
            rollout.reward,
            rollout.is_terminal,
            rollout.action[:-1],
            (outputs["q"], target_outputs["q"]),
            (outputs["logits"], rollout.behaviour_logits),
            (self.gamma, self.lambda_),
        )
        advantages = state.advantages.updated(found.advantage, self.average_decay)
        errors = state.errors.updated(found.q_error, self.average_decay)
        seen = Seen(
            outputs=outputs,
            target_outputs=target_outputs,
            behaviour_logits=rollout.behaviour_logits,
            action=rollout.action[:-1],
            reward=rollout.reward,
            is_terminal=rollout.is_terminal,
            values=found,
            advantages=advantages,
        )
        return seen, (*advantages, *errors)

    def loss(self, targets: Mapping[str, Tensor], outputs: AgentOutputs, rollout: LifetimeRollout) -> Float[Tensor, ""]:
        """Return the mean over valid steps of the weighted sum of `loss_terms`."""
        terms = loss_terms(targets, outputs, rollout)
        valid = rollout.valid.to(rollout.reward.dtype)
        total = (
            self.policy_coefficient * terms["policy"]
            + self.y_coefficient * terms["y"]
            + self.z_coefficient * terms["z"]
            + self.next_policy_coefficient * terms["next_policy"]
            + self.value_coefficient * terms["value"]
        )
        return (valid * total).sum() / (valid.sum() + 1e-8)

    def regularisers(
        self, targets: Mapping[str, Tensor], outputs: AgentOutputs, rollout: LifetimeRollout
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return entropies of predictions, negative, squared means of the rule's outputs, and a distance of policies.

        The squared mean of an output is over steps, environments and its numbers.
        """
        action = rollout.action[:-1]
        return {
            "y_entropy": -_entropy(outputs["y"]).mean(),
            "z_entropy": -_entropy(of_actions(outputs["z"], action)).mean(),
            "policy_mean": targets["logits"].mean().square(),
            "y_mean": targets["y"].mean().square(),
            "z_mean": targets["z"].mean().square(),
            "target_policy": _divergence(targets["target_logits"], targets["logits"]).mean(),
        }


def disco_outputs(
    weights: Mapping[str, Tensor], seen: Seen, hidden: Float[Tensor, "H"], cell: Float[Tensor, "H"]
) -> tuple[DiscoOutputs, Float[Tensor, "H"], Float[Tensor, "H"]]:
    """Compute the rule's outputs under the state that earlier updates left, and the state after this update."""
    predictions = Predictions.of(seen.outputs, seen.target_outputs)
    own = features(weights, TRAJECTORY, seen, predictions)
    trajectory = backward_lstm(weights, f"{TRAJECTORY}lstm/linear", own.of_step, seen.is_terminal)
    modulated = trajectory * linear(weights, f"{TRAJECTORY}linear", hidden)
    block = action_block(weights, f"{TRAJECTORY}sequential_1/conv1_d", own.embedding, modulated)
    found = DiscoOutputs(
        policy=linear(weights, f"{TRAJECTORY}linear_4", block).squeeze(-1),
        y=linear(weights, f"{TRAJECTORY}linear_2", modulated),
        z=linear(weights, f"{TRAJECTORY}linear_3", modulated),
        summary=linear(weights, f"{TRAJECTORY}linear_1", modulated),
        features=own,
        trajectory=trajectory,
        modulated=modulated,
    )
    of_update = features(weights, META, seen, predictions).of_step
    inputs = joined([of_update, found.summary, embedded(weights, f"{META}mlp", found.y.softmax(-1))])
    mean = linear(weights, f"{META}mlp_2/~/linear_0", inputs).mean((0, 1))
    gates = linear(weights, f"{META}lstm/linear", torch.cat([mean, hidden]))
    return found, *lstm_step(gates, cell)


def loss_terms(
    targets: Mapping[str, Tensor], outputs: AgentOutputs, rollout: LifetimeRollout
) -> dict[str, Float[Tensor, "T B"]]:
    """Return the unweighted terms of an agent's loss at each step, by name."""
    action, logits = rollout.action[:-1], outputs["logits"]
    q = of_actions(outputs["q"], action)
    value = autodiff.stop_gradient(expected_value(q)) + targets["q_error"]
    next_policy = _divergence(autodiff.stop_gradient(logits[1:]), of_actions(outputs["aux_pi"], action))
    return {
        "policy": _divergence(targets["logits"], logits[:-1]),
        "y": _divergence(targets["y"], outputs["y"][:-1]),
        "z": _divergence(targets["z"], of_actions(outputs["z"], action)),
        "next_policy": torch.where(rollout.is_terminal, 0.0, next_policy),
        "value": -(two_hot(squash(value), q) * q.log_softmax(-1)).sum(-1),
    }


def _divergence(p: Float[Tensor, "*N Y"], q: Float[Tensor, "*N Y"]) -> Float[Tensor, "*N"]:
    """Return KL(softmax p ‖ softmax q) in nats."""
    log_p = p.log_softmax(-1)
    return (log_p.exp() * (log_p - q.log_softmax(-1))).sum(-1)


def _entropy(logits: Float[Tensor, "*N Y"]) -> Float[Tensor, "*N"]:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
