"""Chooses actions from observations under parameters θ."""

from collections.abc import Callable, Collection

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


def for_the_host(network: NetworkAtTheta, device: torch.device) -> NetworkAtTheta:
    """Return a network whose θ is on `device` as a function of what is on the host, where its heads arrive by one copy.

    The actions are then drawn on the host, from the same random numbers wherever the network is.
    """

    def apply(observation: Tensor, heads: Collection[Head], memory: Memory | None = None) -> Outputs:
        remembered = () if memory is None else (Memory(memory.state.to(device, non_blocking=True)),)
        outputs = network(observation.to(device, non_blocking=True), heads, *remembered)
        sizes = [x.shape[-1] for x in outputs.values()]
        columns = torch.cat(list(outputs.values()), -1).cpu().split(sizes, -1)
        return Outputs(dict(zip(outputs, columns, strict=True)), outputs.distribution)

    return apply


def outputs_of(
    network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."], state: Float[Tensor, "B H"] | None
) -> Outputs:
    """Return what a network says of the policy; of a recurrent one with its state after the step."""
    if state is None:
        return network(observation, POLICY)
    return network(observation, RECURRENT_POLICY, Memory(state))
