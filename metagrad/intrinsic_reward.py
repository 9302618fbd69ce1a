"""Learns intrinsic rewards: the weights φ of a network r_φ(s, a) are meta-parameters of the inner loss that it feeds.

The inner loss is an actor-critic on the mixture of the environment's reward and r_φ; the outer loss and the outer
critic know the environment's alone. Source: Zheng, Oh & Singh (2018), "On Learning Intrinsic Rewards for Policy
Gradient Methods" (LIRPG), and its released code.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.losses import Terms
from metagrad.meta_parameters import Declaration, Hyperparameters, MetaParameter, MetaVector
from metagrad.networks import Head, Network, NetworkSpec, build_network
from metagrad.types import Trajectory

_PER_ACTION: tuple[Head, ...] = ("logits",)


class RewardNetwork(NamedTuple):
    """Computes r_φ(s, ·) by torso and policy head of an actor-critic network: one number per action, bounded by tanh.

    φ begins the network's flat vector; the critic's weights at its end are no part of φ and nothing reads them.
    """

    network: Network
    size: int  # numbers in φ

    def init(self, generator: torch.Generator) -> Float[Tensor, "size"]:
        """Return fresh φ; a policy head begins near 0 (`metagrad.networks`), and so do the rewards."""
        return self.network.init(generator)[: self.size]

    def apply(
        self,
        weights: Float[Tensor, "size"],
        observation: Shaped[Tensor, "N ..."],
        action: Int[Tensor, "N"],
    ) -> Float[Tensor, "N"]:
        """Return r_φ(s, a), in (-1, 1)."""
        unread = self.network.layout.size - self.size
        outputs = self.network.apply(torch.nn.functional.pad(weights, (0, unread)), observation, _PER_ACTION)
        return torch.tanh(outputs["logits"].gather(-1, action.unsqueeze(-1)).squeeze(-1))


@functools.cache  # a function of its arguments alone, asked for at every loss; a Nature network takes 20 ms to build
def reward_network(spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int) -> RewardNetwork:
    """Return the reward network that `spec` describes for one environment."""
    network = build_network(spec, observation_shape, num_actions, has_outer_critic=False)
    is_critic = [name.startswith("value.") for name in network.layout.names]
    assert is_critic == sorted(is_critic), f"the critic's weights are not the last ones: {network.layout.names}"
    sizes = [math.prod(shape) for shape in network.layout.shapes]
    return RewardNetwork(network, sum(n for n, skipped in zip(sizes, is_critic, strict=True) if not skipped))


def reward_weights(spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int) -> MetaVector:
    """Declare φ."""
    reward = reward_network(spec, observation_shape, num_actions)
    return MetaVector(reward.size, reward.init)


def intrinsic_reward(
    spec: NetworkSpec, weights: Float[Tensor, "size"], trajectory: Trajectory, num_actions: int
) -> Float[Tensor, "T B"]:
    """Return r_φ(s_t, a_t) of every step; 0 where the policy did not choose the action: none is to be rewarded."""
    shape = tuple(trajectory.observation.shape[2:])
    observation, action = trajectory.observation[:-1].flatten(0, 1), trajectory.action.flatten(0, 1)
    reward = reward_network(spec, shape, num_actions).apply(weights, observation, action)
    return torch.where(trajectory.valid, reward.view(trajectory.action.shape), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntrinsicRewardLoss(A2cLoss):
    """Computes the A2C loss on c_ext r + c_in r_φ(s, a); φ is learnt, the others where they say so.

    The inner critic so learns the mixed reward's value; φ acts through G, in the advantage and in the critic's target
    alike. The outer critic and the outer loss know r alone. Without an outer critic the outer advantages are over the
    inner critic's values, which are those of the mixture: biased by the intrinsic reward as well as by the discount.

    Source: Zheng, Oh & Singh (2018) and the released code (tanh, one output per action). Deviation: their critic of r
    shares the reward network's torso, ours is the outer critic, on the policy's torso behind a stop-gradient.
    """

    is_policy_apart: ClassVar[bool] = True
    needs_discrete_actions: ClassVar[bool] = True

    extrinsic_coefficient: MetaParameter
    """c_ext: weight of the environment's reward in the inner loss; the outer loss has it alone."""
    intrinsic_coefficient: MetaParameter
    """c_in: weight of the learnt reward, which lies in (-1, 1)."""
    reward_network: NetworkSpec
    """The kind of network that r_φ is; it has one output for each action."""

    def declaration(self, observation_shape: tuple[int, ...], num_actions: int) -> Declaration:
        """Declare the scalars, and φ as "reward_weights"."""
        scalars = A2cLoss.declaration(self, observation_shape, num_actions)
        return {**scalars, "reward_weights": reward_weights(self.reward_network, observation_shape, num_actions)}

    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return A2C's terms on the mixed reward."""
        actions = outputs["logits"].shape[-1]
        intrinsic = intrinsic_reward(self.reward_network, hyper["reward_weights"], trajectory, actions)
        extrinsic = trajectory.reward.to(intrinsic.dtype)
        mixed = hyper["extrinsic_coefficient"] * extrinsic + hyper["intrinsic_coefficient"] * intrinsic
        return A2cLoss.terms(self, outputs, trajectory._replace(reward=mixed), hyper)
