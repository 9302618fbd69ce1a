"""Defines what crosses the borders between actors, learner and library.

Shape legend, used in every signature of the project:

    T  rollout length in environment steps (T+1: with the state that follows the last step)
    B  environments stepped together
    A  actions
    P  network parameters, one flat vector θ
    M  learnt meta-parameters, one flat unconstrained vector η
    K  finished episodes; of observations that are stacks, the frames of one
    N  frames of all stacks of a trajectory
    H  numbers that a recurrent network remembers
    R  rollouts of a batch
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class Trajectory(NamedTuple):
    """Holds T steps of B environments under one behaviour policy, time-major.

    Row t holds what was seen before step t and what step t returned; `observation[t+1]` follows `observation[t]`.
    """

    observation: Shaped[Tensor, "T+1 B ..."]
    action: Shaped[Tensor, "T B ..."]  # an integer, or one number for each component
    reward: Float[Tensor, "T B"]  # what the learner is fed
    is_terminal: Bool[Tensor, "T B"]  # no value beyond step t
    is_truncated: Bool[Tensor, "T B"]  # cut at step t; observation[t+1] is the true successor
    valid: Bool[Tensor, "T B"]  # False: the policy did not choose (a reset, a forced FIRE)
    behaviour_log_prob: Float[Tensor, "T B"]  # log μ(action | observation) in nats
    policy_version: int  # version of the parameters that acted
    first_state: Float[Tensor, "B H"] | None = None  # what a recurrent network remembered before row 0
    first_return: Float[Tensor, "B"] | None = None  # discounted return of the episode before row 0, to scale rewards by


class PackedTrajectory(NamedTuple):
    """Holds a trajectory whose observations are stacks of frames, with every frame once: as it travels and is stored.

    `metagrad.frame_stacks` packs and unpacks it.
    """

    frames: Shaped[Tensor, "N ..."]
    frame_index: Int[Tensor, "T+1 B K"]  # observation[t, b, k] = frames[frame_index[t, b, k]]
    action: Shaped[Tensor, "T B ..."]  # an integer, or one number for each component
    reward: Float[Tensor, "T B"]
    is_terminal: Bool[Tensor, "T B"]
    is_truncated: Bool[Tensor, "T B"]
    valid: Bool[Tensor, "T B"]
    behaviour_log_prob: Float[Tensor, "T B"]
    policy_version: int
    first_state: Float[Tensor, "B H"] | None = None
    first_return: Float[Tensor, "B"] | None = None


class MetaGradients(NamedTuple):
    """Holds what populations of agents bring that learn under a published update rule, in place of a trajectory.

    Each row is of one population, and sums over its agents.
    """

    gradient: Float[Tensor, "R M"]  # of the outer objective by the rule's weights
    agents: Int[Tensor, "R"]  # that the sums are of
    frames: Int[Tensor, "R"]  # valid environment steps
    lifetimes: Int[Tensor, "R"]  # that ended
    facts: dict[str, tuple[float, float]]  # of all rows: by the name of a scalar its sum, and what that is of
    policy_version: int  # version of the rule's weights


OF_COLUMNS = ("first_state", "first_return")
"""Fields of trajectories that have a row for each environment, and none for each step."""


class Episodes(NamedTuple):
    """Holds the full-life episodes that ended during a rollout, in raw rewards of the game."""

    returns: Float[Tensor, "K"]
    lengths: Int[Tensor, "K"]  # valid environment steps


class Rollout(NamedTuple):
    """Holds a trajectory, or meta-gradients in its place, with the facts that statistics and accounting need."""

    trajectory: Trajectory | PackedTrajectory | MetaGradients
    episodes: Episodes
    actor: int  # index of the actor
    is_lookahead: bool  # True: sampled for a virtual update or an outer loss, never for a real update


class WeightSnapshot(NamedTuple):
    """Holds parameters and meta-parameters as the learner publishes them."""

    version: int
    theta: Float[Tensor, "P"]
    eta: Float[Tensor, "M"]
