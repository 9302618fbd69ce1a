"""Chooses actions from observations under parameters θ."""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

from metagrad.distributions import Decision as Decision
from metagrad.networks import Head, NetworkAtTheta

POLICY: tuple[Head, ...] = ("logits",)  # all that acting needs


Policy = Callable[[Shaped[Tensor, "B ..."], torch.Generator], Decision]
"""Chooses the actions that step a pool: `partial(sample, network.at(theta))`."""


@torch.no_grad()
def sample(network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."], generator: torch.Generator) -> Decision:
    """Draw a ~ π_θ(· | s).

    Nothing is read back from the device. A NaN in the observation raises nothing here: the rollout's check names it.
    """
    return network(observation, POLICY).policy.sample(generator)


@torch.no_grad()
def greedy(network: NetworkAtTheta, observation: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
    """Return argmax_a π_θ(a | s)."""
    return network(observation, POLICY).policy.mode()
