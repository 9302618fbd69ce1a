"""Learnt intrinsic rewards: a network r_φ(s, a) whose weights φ are meta-parameters, and the inner loss that it feeds.

The inner loss is an actor-critic on the mixture of the environment's reward and r_φ; the outer loss and the outer
critic know the environment's alone. Source: Zheng, Oh & Singh (2018), "On Learning Intrinsic Rewards for Policy
Gradient Methods" (LIRPG), and its released code.
"""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metagrad.losses import (
    LossMetrics,
    OuterObjective,
    actor_critic_loss,
    forward,
    inner_heads,
    on_policy_estimates,
    with_outer_critic,
    without_unused_rows,
)
from metagrad.meta_parameters import Hyperparameters, MetaVector
from metagrad.networks import Head, Network, NetworkSpec, build_network
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory

_PER_ACTION: tuple[Head, ...] = ("logits",)


class RewardNetwork(NamedTuple):
    """r_φ(s, ·): torso and policy head of an actor-critic network, one number per action, bounded by tanh.

    φ begins the network's flat vector; the critic's weights at its end are no part of φ and nothing reads them.
    """

    network: Network
    size: int  # numbers in φ

    def init(self, generator: torch.Generator) -> Float[Tensor, "size"]:
        """Fresh φ; a policy head begins near 0 (`metagrad.networks`), and so do the rewards."""
        return self.network.init(generator)[: self.size]

    def apply(
        self,
        weights: Float[Tensor, "size"],
        observation: Shaped[Tensor, "N ..."],
        action: Int[Tensor, "N"],
    ) -> Float[Tensor, "N"]:
        """r_φ(s, a) in (-1, 1)."""
        unread = self.network.layout.size - self.size
        outputs = self.network.apply(torch.nn.functional.pad(weights, (0, unread)), observation, _PER_ACTION)
        return torch.tanh(outputs["logits"].gather(-1, action.unsqueeze(-1)).squeeze(-1))


@functools.cache  # a function of its arguments alone, asked for at every loss; a Nature network takes 20 ms to build
def reward_network(spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int) -> RewardNetwork:
    """The reward network that `spec` describes for one environment."""
    network = build_network(spec, observation_shape, num_actions, has_outer_critic=False)
    is_critic = [name.startswith("value.") for name in network.layout.names]
    assert is_critic == sorted(is_critic), f"the critic's weights are not the last ones: {network.layout.names}"
    sizes = [math.prod(shape) for shape in network.layout.shapes]
    return RewardNetwork(network, sum(n for n, skipped in zip(sizes, is_critic, strict=True) if not skipped))


def reward_weights(spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int) -> MetaVector:
    """The declaration of φ."""
    reward = reward_network(spec, observation_shape, num_actions)
    return MetaVector(reward.size, reward.init)


def intrinsic_reward(
    spec: NetworkSpec, weights: Float[Tensor, "size"], trajectory: Trajectory, num_actions: int
) -> Float[Tensor, "T B"]:
    """r_φ(s_t, a_t) of every step; 0 where the policy did not choose the action, so that there is none to reward."""
    shape = tuple(trajectory.observation.shape[2:])
    observation, action = trajectory.observation[:-1].flatten(0, 1), trajectory.action.flatten(0, 1)
    reward = reward_network(spec, shape, num_actions).apply(weights, observation, action)
    return torch.where(trajectory.valid, reward.view(trajectory.action.shape), 0.0)


def intrinsic_loss(
    network: Network,
    theta: Float[Tensor, "P"],
    hyper: Hyperparameters,
    trajectory: Trajectory,
    surrogate: Surrogate,
    outer: OuterObjective,
    spec: NetworkSpec,
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """A2C loss on the mixed reward c_ext r + c_in r_φ(s, a), plus the outer critic's regression on r alone.

    Equation: `metagrad.losses.inner_loss` with G the λ-return of c_ext r_t + c_in r_φ(s_t, a_t), over the inner critic,
    which so learns the mixed reward's value; G' of the outer critic is that of r_t. φ acts through G, in the advantage
    and in the critic's target alike.

    Args:
        network: with an outer critic, if `outer` uses one.
        theta: θ.
        hyper: those of `inner_loss`, "extrinsic_coefficient" c_ext, "intrinsic_coefficient" c_in, and φ as
            "reward_weights".
        trajectory: T steps of the present policy.
        surrogate: s.
        outer: γ', λ', c_o.
        spec: what kind of network r_φ is.

    Source: Zheng, Oh & Singh (2018) and the released code (tanh, one output per action). Deviation: their critic of r
    shares the reward network's torso, ours is the outer critic, on the policy's torso behind a stop-gradient.
    """
    trajectory = without_unused_rows(trajectory)
    outputs = forward(network, theta, trajectory, inner_heads(outer))
    intrinsic = intrinsic_reward(spec, hyper["reward_weights"], trajectory, outputs["logits"].shape[-1])
    extrinsic = trajectory.reward.to(intrinsic.dtype)
    mixed = hyper["extrinsic_coefficient"] * extrinsic + hyper["intrinsic_coefficient"] * intrinsic
    estimates = on_policy_estimates(mixed, outputs["value"], trajectory, hyper["gamma"], hyper["lambda"])
    loss, metrics = actor_critic_loss(outputs, trajectory, hyper, surrogate, estimates, estimates.advantage)
    if not outer.uses_outer_critic:
        return loss, metrics
    outer_value = outputs["outer_value"]
    target = on_policy_estimates(extrinsic, outer_value, trajectory, outer.gamma, outer.lambda_).target
    return with_outer_critic(loss, metrics, target, outer_value, trajectory.valid, outer)
