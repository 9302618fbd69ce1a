"""Chooses actions from observations under parameters θ."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from metagrad.distributions import Decision as Decision
from metagrad.distributions import Outputs
from metagrad.networks import Head, NetworkAtTheta
from metagrad.recurrence import Memory

POLICY: tuple[Head, ...] = ("logits",)  # all that acting needs
RECURRENT_POLICY: tuple[Head, ...] = ("logits", "state")


Policy = Callable[..., Decision]
"""Chooses the actions that step a pool, of observations, a generator and, if the network is recurrent, the state before
the step: `partial(sample, network.at(theta))`."""


@torch.no_grad()
def sample(
    network: NetworkAtTheta,
    observation: Shaped[Tensor, "B ..."],
    generator: torch.Generator,
    state: Float[Tensor, "B H"] | None = None,
) -> Decision:
    """Draw a ~ π_θ(· | s), of a recurrent network π_θ(· | s, h) with the state h before the step.

    Nothing is read back from the device. A NaN in the observation raises nothing here: the rollout's check names it.
    """
    outputs = outputs_of(network, observation, state)
    return outputs.policy.sample(generator)._replace(state=outputs.get("state"))


@torch.no_grad()
def greedy(
    network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."], state: Float[Tensor, "B H"] | None = None
) -> Decision:
    """Return argmax_a π_θ(a | s), or of π_θ(a | s, h)."""
    outputs = outputs_of(network, observation, state)
    action = outputs.policy.mode()
    return Decision(action, outputs.policy.log_prob(action), outputs.get("state"))


def outputs_of(
    network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."], state: Float[Tensor, "B H"] | None
) -> Outputs:
    """Return what a network says of the policy; of a recurrent one with its state after the step."""
    if state is None:
        return network(observation, POLICY)
    return network(observation, RECURRENT_POLICY, Memory(state))
