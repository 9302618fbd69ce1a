"""Chooses actions from observations under parameters θ."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metagrad.networks import Head, NetworkAtTheta

POLICY: tuple[Head, ...] = ("logits",)  # all that acting needs


class Decision(NamedTuple):
    """Holds actions and their log-probability under the behaviour policy, in nats."""

    action: Int[Tensor, "B"]
    log_prob: Float[Tensor, "B"]


Policy = Callable[[Shaped[Tensor, "B ..."], torch.Generator], Decision]
"""Chooses the actions that step a pool: `partial(sample, network.at(theta))`."""


@torch.no_grad()
def sample(network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."], generator: torch.Generator) -> Decision:
    """Draw a ~ π_θ(· | s) by an exponential race: argmax_a π(a) / E_a with E_a ~ Exp(1).

    Nothing is read back from the device. A NaN in the observation raises nothing here: the rollout's check names it.
    """
    log_probs = torch.log_softmax(network(observation, POLICY)["logits"], -1)
    race = torch.empty_like(log_probs).exponential_(generator=generator)
    action = (log_probs.exp() / race).argmax(-1)
    return Decision(action, log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1))


@torch.no_grad()
def greedy(network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."]) -> Int[Tensor, "B"]:
    """Return argmax_a π_θ(a | s)."""
    return network(observation, POLICY)["logits"].argmax(-1)
