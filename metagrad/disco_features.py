"""Builds what DiscoRL's rule sees of a rollout: 27 columns of each step and 9 of each action.

Source: as in `metagrad.disco_values`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metagrad import autodiff
from metagrad.disco_network import Weights, action_embedding, embedded, joined
from metagrad.disco_values import MovingAverage, Values, signed_log
from metagrad.update_rules import of_actions


class Seen(NamedTuple):
    """Holds what features are made of; "target" is of the target network."""

    outputs: Mapping[str, Tensor]
    target_outputs: Mapping[str, Tensor]
    behaviour_logits: Float[Tensor, "T+1 B A"]
    action: Int[Tensor, "T B"]
    reward: Float[Tensor, "T B"]
    is_terminal: Bool[Tensor, "T B"]
    values: Values
    advantages: MovingAverage


class Predictions(NamedTuple):
    """Holds softmax of what the agent predicts, as it is computed once for both networks of the rule."""

    y: Float[Tensor, "T+1 B Y"]
    target_y: Float[Tensor, "T+1 B Y"]
    z: Float[Tensor, "T+1 B A Y"]
    target_z: Float[Tensor, "T+1 B A Y"]

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], target_outputs: Mapping[str, Tensor]) -> "Predictions":
        """Take the probabilities of both networks' predictions."""
        return cls(*(x[head].softmax(-1) for head in ("y", "z") for x in (outputs, target_outputs)))


class Features(NamedTuple):
    """Holds what one of the rule's networks sees."""

    of_step: Float[Tensor, "T B 27"]
    of_action: Float[Tensor, "T B A 9"]  # the inputs of the embedding
    embedding: Float[Tensor, "T B A 2"]


def features(weights: Weights, prefix: str, seen: Seen, predictions: Predictions) -> Features:
    """Build the features with the embeddings of the network of this prefix."""
    policy, behaviour, target_policy = (
        autodiff.stop_gradient(logits).softmax(-1)
        for logits in (seen.outputs["logits"], seen.behaviour_logits, seen.target_outputs["logits"])
    )
    y, target_y = (embedded(weights, f"{prefix}mlp", x) for x in (predictions.y, predictions.target_y))
    z, target_z = (embedded(weights, f"{prefix}mlp_1", x) for x in (predictions.z, predictions.target_z))
    of_action = _of_action((policy, behaviour, target_policy), (z, target_z), seen)
    embedding = action_embedding(weights, prefix, of_action)
    action, advantage = seen.action, seen.values.advantage
    of_step = [
        of_actions(policy, action),
        of_actions(behaviour, action),
        signed_log(seen.reward),
        (~seen.is_terminal).to(policy.dtype),
        _pair(signed_log(seen.values.value)),
        signed_log(advantage),
        seen.advantages.normalised(advantage),
        of_actions(target_policy, action),
        _pair(y.squeeze(-1)),
        _pair(target_y.squeeze(-1)),
        *_of_scores(z, policy, action),
        *_of_scores(target_z, policy, action),
        embedding.mean(2),
        of_actions(embedding, action),
    ]
    return Features(joined(of_step), of_action, embedding)


def _of_scores(
    z: Float[Tensor, "rows B A 1"], policy: Float[Tensor, "rows B A"], action: Int[Tensor, "T B"]
) -> list[Tensor]:
    score = z.squeeze(-1)
    return [of_actions(score, action), _pair((policy * score).sum(-1)), _pair(score.amax(-1))]


def _of_action(
    policies: tuple[Tensor, Tensor, Tensor], scores: tuple[Tensor, Tensor], seen: Seen
) -> Float[Tensor, "T B A 9"]:
    values = seen.values
    actions = torch.arange(policies[0].shape[-1], device=seen.action.device)
    is_taken = (seen.action.unsqueeze(-1) == actions).to(policies[0].dtype)
    columns = [
        *policies,
        *(z.squeeze(-1) for z in scores),
        signed_log(values.target_q),
        signed_log(values.action_advantage),
        seen.advantages.normalised(values.action_advantage),
    ]
    return torch.stack([*(x[:-1] for x in columns), is_taken], -1)


def _pair(x: Float[Tensor, "rows B"]) -> Float[Tensor, "T B 2"]:
    """Put each step and the one after it side by side."""
    return torch.stack([x[:-1], x[1:]], -1)
