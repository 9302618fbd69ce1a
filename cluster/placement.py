"""Where a run's processes go, what they send, and when its learner is saturated: arithmetic alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from actors.envs.base import EnvironmentSpec
from cluster.run_config import BaseExperiment


class Node(NamedTuple):
    """A computer of the cluster."""

    name: str
    cpus: int
    gpus: int


class Rates(NamedTuple):
    """What was measured, in seconds."""

    step: float  # of one environment with its share of the policy's batch, on one actor
    update: float  # of the learner, its rollouts given


class Share(NamedTuple):
    """What one node does, and sends to and gets from the learner's node in a second."""

    node: Node
    actors: int
    has_learner: bool
    has_evaluator: bool
    rollout_bytes_per_second: float
    weight_bytes_per_second: float


class Plan(NamedTuple):
    """A whole layout."""

    shares: tuple[Share, ...]
    waiting_actors: int  # for whom there is no place
    updates_per_second: float
    rollout_bytes: int  # of one batch
    weight_bytes: int  # of one version
    batches_per_update: int
    saturating_actors: int
    object_store_bytes: int  # at the most at the same time, on the learner's node
    is_possible: bool
    """False where not even what must run at the same time has a place."""

    @property
    def bytes_in(self) -> float:
        """Into the learner's node, per second."""
        return sum(share.rollout_bytes_per_second for share in self.shares)

    @property
    def bytes_out(self) -> float:
        """Out of the learner's node, per second."""
        return sum(share.weight_bytes_per_second for share in self.shares)


def rollout_bytes(spec: EnvironmentSpec, environments: int, length: int) -> int:
    """Of one trajectory [T, B] as it travels: T+1 observations; action, reward, three flags and log μ of each step."""
    observation = math.prod(spec.observation_shape) * torch.empty(0, dtype=spec.observation_dtype).element_size()
    per_step = 8 + 4 + 3 + 4
    return environments * ((length + 1) * observation + length * per_step)


def batches_per_update(experiment: BaseExperiment) -> int:
    """Rollouts of all environments that an update orders."""
    return 1 if experiment.schedule == "peek" else 1 + experiment.look_ahead_batches


def update_seconds(experiment: BaseExperiment, rates: Rates, actors: int) -> float:
    """Of one real update, by however many actors.

    Equation: lockstep, in which either side waits for the other: m T B s / k + L; peek, in which they overlap:
    max(T B s / k, L). m batches of T steps in B environments, s seconds each, on k actors; L of the learner.
    """
    sampling = experiment.steps_per_rollout * rates.step / max(1, actors)
    if experiment.schedule == "peek":
        return max(sampling, rates.update)
    return batches_per_update(experiment) * sampling + rates.update


def saturating_actors(experiment: BaseExperiment, rates: Rates) -> int:
    """Actors from which on the learner takes longer for an update than they do for its rollouts."""
    work = batches_per_update(experiment) * experiment.steps_per_rollout * rates.step
    return max(1, math.ceil(work / rates.update))


def own_cpus(experiment: BaseExperiment) -> int:
    """CPUs of the learner, and of the evaluator where there is one."""
    return experiment.learner_cpus + (1 if experiment.evaluation.every else 0)


def place(experiment: BaseExperiment, nodes: Sequence[Node]) -> tuple[list[int], int | None]:
    """Actors of each node, spread evenly, and the learner's node: one with a GPU where there is one.

    The learner, and the evaluator beside it, come first; None: no node has room for them.
    """
    own = own_cpus(experiment)
    free = [node.cpus for node in nodes]
    wants_gpu = experiment.device != "cpu" and any(node.gpus for node in nodes)
    fitting = [i for i, node in enumerate(nodes) if node.cpus >= own and (node.gpus or not wants_gpu)]
    learner = max(fitting, key=lambda i: free[i], default=None)
    if learner is not None:
        free[learner] -= own
    actors = [0] * len(nodes)
    for _ in range(experiment.actors):
        roomy = [i for i in range(len(nodes)) if free[i] >= experiment.actor_threads]
        if not roomy:
            break
        chosen = min(roomy, key=lambda i: (actors[i], -free[i]))
        free[chosen] -= experiment.actor_threads
        actors[chosen] += 1
    return actors, learner


def make_plan(
    experiment: BaseExperiment, spec: EnvironmentSpec, parameters: int, nodes: Sequence[Node], rates: Rates
) -> Plan:
    """How a run would be laid out.

    Args:
        experiment: the run.
        spec: of its environment.
        parameters: numbers in θ and η together.
        nodes: of the cluster.
        rates: measured ones.
    """
    actors, learner = place(experiment, nodes)
    placed = sum(actors)
    seconds = update_seconds(experiment, rates, placed)
    batch, batches = (
        rollout_bytes(spec, experiment.environments, experiment.rollout_length),
        batches_per_update(experiment),
    )
    weights = 4 * parameters
    shares = []
    for i, (node, count) in enumerate(zip(nodes, actors, strict=True)):
        is_remote = i != learner and count > 0
        part = count / max(1, placed)
        shares.append(
            Share(
                node=node,
                actors=count,
                has_learner=i == learner,
                has_evaluator=i == learner and bool(experiment.evaluation.every),
                rollout_bytes_per_second=is_remote * part * batches * batch / seconds,
                weight_bytes_per_second=is_remote * batches * weights / seconds,
            )
        )
    must_run = experiment.actors if experiment.schedule == "lockstep" else 1
    ahead = 2 if experiment.schedule == "peek" else 1  # batches in flight at the most
    return Plan(
        shares=tuple(shares),
        waiting_actors=experiment.actors - placed,
        updates_per_second=1 / seconds,
        rollout_bytes=batch,
        weight_bytes=weights,
        batches_per_update=batches,
        saturating_actors=saturating_actors(experiment, rates),
        object_store_bytes=ahead * batch + 2 * weights,
        is_possible=learner is not None and placed >= must_run,
    )
