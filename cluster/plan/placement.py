"""Compute where a run's processes go, what they send, and when its learner is saturated."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import rollout_bytes
from metagrad.errors import counted


class Node(NamedTuple):
    """Describes a computer of the cluster; bytes are 0 where they are not known."""

    name: str
    cpus: int
    gpus: int
    used_cpus: int = 0  # by others, now
    memory_bytes: int = 0
    object_store_bytes: int = 0


class Rates(NamedTuple):
    """Holds measured seconds, and what the learner asked for meanwhile."""

    rollout: float  # of an actor, however few environments it has
    environment: float  # that each environment of the actor adds to it
    update: float  # of the learner for a real update, its rollouts given
    batches: float  # rollouts of all environments for a real update

    def rollout_seconds(self, environments: float) -> float:
        """Return the seconds of a rollout of a process with so many environments."""
        return self.rollout + environments * self.environment


class Share(NamedTuple):
    """Holds what one node does, and what it sends to and gets from the learner's node in a second."""

    node: Node
    actors: int
    has_learner: bool
    learners: int
    has_evaluator: bool
    rollout_bytes_per_second: float
    weight_bytes_per_second: float


class Plan(NamedTuple):
    """Describes a whole layout."""

    shares: tuple[Share, ...]
    waiting_actors: int  # for whom there is no place
    updates_per_second: float
    learner_bytes: int  # that each of several learners sends to the others for an update
    rollout_bytes: int  # of one batch
    weight_bytes: int  # of one version
    batches_per_update: float
    saturating_actors: int | None  # None: with no number of them
    object_store_bytes: int  # at the most at the same time, on the learner's node
    is_possible: bool
    """False where not even what must run at the same time has a place."""

    @property
    def bytes_in(self) -> float:
        """Sum what goes into the learner's node per second."""
        return sum(share.rollout_bytes_per_second for share in self.shares)

    @property
    def bytes_out(self) -> float:
        """Sum what goes out of the learner's node per second."""
        return sum(share.weight_bytes_per_second for share in self.shares)


def sampling_seconds(experiment: BaseExperiment, rates: Rates, actors: int, placed: int) -> float:
    """Return the seconds that `placed` of `actors` actors take for the rollouts of one real update.

    Equation: a batch is R = B / b rollouts of b environments, r + b c seconds each. Lockstep, in which those that have
    a place cover the others: m ⌈R / k⌉ (r + b c), m batches, k actors. Peek, in which the next one to be idle is
    asked: m R (r + b c) / k. Colocated, one after another: m R (r + b c). An actor of p processes takes r + b c / p.
    """
    share = experiment.environments_per_actor or experiment.environments // actors
    rollouts = experiment.environments // share
    at_once: float = 1 if experiment.topology == "colocated" else max(1, placed)
    rounds = rollouts / at_once if experiment.schedule == "peek" else math.ceil(rollouts / at_once)
    return rates.batches * rounds * rates.rollout_seconds(share / experiment.actor_processes)


def update_seconds(experiment: BaseExperiment, rates: Rates, placed: int) -> float:
    """Return the seconds of a real update: sampling and learning take turns, or overlap in peek on Ray."""
    sampling = sampling_seconds(experiment, rates, experiment.actors, placed)
    if experiment.schedule == "peek" and experiment.topology == "ray":
        return max(sampling, rates.update)
    return sampling + rates.update


def saturating_actors(experiment: BaseExperiment, rates: Rates) -> int | None:
    """Return the fewest actors whose rollouts of an update take no longer than the learner; None: no number is enough.

    Each has its share of the environments, down to a single one, unless their number is given.
    """
    if experiment.environments_per_actor is not None:
        one = sampling_seconds(experiment, rates, 1, 1)
        return max(1, math.ceil(one / rates.update))
    shares = experiment.environments // experiment.least_environments
    counts = [k for k in range(1, shares + 1) if shares % k == 0]
    return next((k for k in counts if sampling_seconds(experiment, rates, k, k) <= rates.update), None)


def own_cpus(experiment: BaseExperiment) -> int:
    """Count the CPUs of the learners, and of the evaluator where there is one."""
    return experiment.learners * experiment.learner_cpus + _evaluators_cpus(experiment)


def _evaluators_cpus(experiment: BaseExperiment) -> int:
    return 1 if experiment.evaluation.every else 0


def place(experiment: BaseExperiment, nodes: Sequence[Node]) -> tuple[list[int], int | None]:
    """Place actors, spread evenly over the nodes, and the learners, on nodes with GPUs where there are enough.

    The learners, and the evaluator beside the first one, come first; None: there is no room for them. Colocated, all
    are one process on the first node.
    """
    if experiment.topology == "colocated":
        return [experiment.actors, *(0 for _ in nodes[1:])], 0
    free, on_gpus = [node.cpus - node.used_cpus for node in nodes], _places_on_gpus(experiment, nodes)
    learners, first = place_learners(experiment, nodes)
    if first is not None:
        for i, count in enumerate(learners):
            free[i] -= count * experiment.learner_cpus
        free[first] -= _evaluators_cpus(experiment)
    actors = [0] * len(nodes)
    for _ in range(experiment.actors):
        roomy = [i for i in range(len(nodes)) if free[i] >= experiment.cpus_of_an_actor and on_gpus[i] > actors[i]]
        if not roomy:
            break
        chosen = min(roomy, key=lambda i: (actors[i], -free[i]))
        free[chosen] -= experiment.cpus_of_an_actor
        actors[chosen] += 1
    return actors, first


def place_learners(experiment: BaseExperiment, nodes: Sequence[Node]) -> tuple[list[int], int | None]:
    """Return how many learners each node has, and the node of the first one; None: not all find a place.

    As many as fit are on one node, each on a GPU of its own where there are enough.
    """
    counts, first = [0] * len(nodes), None
    if experiment.topology == "colocated":
        return [1, *counts[1:]], 0
    free, has_gpus = [node.cpus - node.used_cpus for node in nodes], wants_gpu(experiment, nodes)
    for rank in range(experiment.learners):
        beside = _evaluators_cpus(experiment) if rank == 0 else 0  # the evaluator is beside the first learner
        needed = experiment.learner_cpus + beside
        fitting = [i for i, x in enumerate(nodes) if free[i] >= needed and (x.gpus > counts[i] or not has_gpus)]
        chosen = max(fitting, key=lambda i: (counts[i], free[i]), default=None)
        if chosen is None:
            return [0] * len(nodes), None
        free[chosen] -= needed
        counts[chosen] += 1
        first = chosen if first is None else first
    return counts, first


def _places_on_gpus(experiment: BaseExperiment, nodes: Sequence[Node]) -> list[float]:
    """Return how many actors' parts each node's GPUs have beside those of the learners."""
    if not experiment.actor_gpus:
        return [math.inf] * len(nodes)
    learners, _ = place_learners(experiment, nodes)
    left = 1 - learner_gpus(experiment, sum(node.gpus for node in nodes))
    whole, beside = _parts(experiment, 1), _parts(experiment, left)
    taken = [count if wants_gpu(experiment, nodes) else 0 for count in learners]
    return [(node.gpus - count) * whole + count * beside for node, count in zip(nodes, taken, strict=True)]


def _parts(experiment: BaseExperiment, gpu: float) -> int:
    """Return how many actors' parts so much of a GPU has; Ray counts in ten-thousandths."""
    return round(gpu * 10_000) // round(experiment.actor_gpus * 10_000)


def wants_gpu(experiment: BaseExperiment, nodes: Sequence[Node]) -> bool:
    """True where learners have to have GPUs, or may have them and there is one for each."""
    return _takes_gpus(experiment, sum(node.gpus for node in nodes))


def _takes_gpus(experiment: BaseExperiment, gpus: float) -> bool:
    return experiment.device.startswith("cuda") or (experiment.device == "auto" and gpus >= experiment.learners)


def learner_gpus(experiment: BaseExperiment, gpus: float) -> float:
    """Return how much of a GPU each learner asks for, of so many that the cluster has; 0: it stays off them.

    It is a whole one, or what actors with parts of GPUs (`--actor-gpus`) leave where they find no other one.
    """
    if not _takes_gpus(experiment, gpus):
        return 0.0
    if not experiment.actor_gpus:
        return 1.0
    beside = max(0, experiment.actors - int(gpus - experiment.learners) * _parts(experiment, 1))
    return round(max(0.0, 1 - math.ceil(beside / experiment.learners) * experiment.actor_gpus), 4)


def missing_gpus(experiment: BaseExperiment, gpus: float) -> str | None:
    """Say of actors with parts of GPUs what they lack on a cluster with so many; None: nothing."""
    if not experiment.actor_gpus or experiment.topology == "colocated":
        return None
    has_learner, of_actors = _takes_gpus(experiment, gpus), math.ceil(experiment.actors / _parts(experiment, 1))
    if learner_gpus(experiment, gpus) > 0 if has_learner else of_actors <= gpus:
        return None
    beside = f" beside {counted(experiment.learners, 'learner')}" if has_learner else ""
    each = f"{counted(experiment.actors, 'actor')} with {experiment.actor_gpus:g} of a GPU each{beside}"
    return f"{each} do not fit on {counted(int(gpus), 'GPU')}"


REMEDY_FOR_GPUS = "lower it or the number of actors, leave it out, or add GPUs"


def make_plan(
    experiment: BaseExperiment, spec: EnvironmentSpec, parameters: int, nodes: Sequence[Node], rates: Rates
) -> Plan:
    """Lay a run out.

    Args:
        experiment: the run.
        spec: of its environment.
        parameters: numbers in θ and η together.
        nodes: of the cluster.
        rates: measured ones.
    """
    actors, learner = place(experiment, nodes)
    learners, _ = place_learners(experiment, nodes)
    placed = sum(actors)
    seconds = update_seconds(experiment, rates, placed)
    batch = experiment.bytes_sent
    if batch is None:
        batch = rollout_bytes(spec, experiment.environments, experiment.rollout_length)
    weights = 4 * parameters
    shares = []
    for i, (node, count) in enumerate(zip(nodes, actors, strict=True)):
        is_remote = not learners[i] and count > 0
        copies = min(count, experiment.learners)  # of the weights: each learner has actors of its own
        part = count / max(1, placed)
        shares.append(
            Share(
                node=node,
                actors=count,
                has_learner=learners[i] > 0,
                learners=learners[i],
                has_evaluator=i == learner and bool(experiment.evaluation.every),
                rollout_bytes_per_second=is_remote * part * rates.batches * batch / seconds,
                weight_bytes_per_second=is_remote * copies * rates.batches * weights / seconds,
            )
        )
    gpus = sum(node.gpus for node in nodes)
    must_run = experiment.actors if experiment.schedule == "lockstep" else experiment.learners
    return Plan(
        shares=tuple(shares),
        waiting_actors=experiment.actors - placed,
        updates_per_second=1 / seconds,
        learner_bytes=learner_bytes(experiment, weights),
        rollout_bytes=batch,
        weight_bytes=weights,
        batches_per_update=rates.batches,
        saturating_actors=saturating_actors(experiment, rates),
        object_store_bytes=object_store_bytes(experiment, batch, weights),
        is_possible=learner is not None and placed >= must_run and missing_gpus(experiment, gpus) is None,
    )


def learner_bytes(experiment: BaseExperiment, vector_bytes: int) -> int:
    """Return what each learner sends to the others for one meta-update: 2 (N - 1)/N of each vector, on a ring."""
    learners = experiment.learners
    return round(2 * (learners - 1) / learners * experiment.vectors_added_up * vector_bytes)


def object_store_bytes(experiment: BaseExperiment, batch: int, weights: int) -> int:
    """Return the most bytes that the learner's node stores at a time: two versions, and batches not merged yet.

    Lockstep has one; peek has two ordered or arrived while a third is merged.
    """
    if experiment.topology == "colocated":
        return 0
    return (3 if experiment.schedule == "peek" else 1) * batch + 2 * weights


def problems(experiment: BaseExperiment, found: Plan) -> list[str]:
    """Say in a line each what does not fit, and what to change."""
    lines = []
    nodes = [share.node for share in found.shares]
    learner = next((share.node for share in found.shares if share.has_learner), None)
    own, cpus, waiting = own_cpus(experiment), experiment.cpus_of_an_actor, found.waiting_actors
    placed = experiment.actors - waiting
    if learner is None:
        needs = counted(own, "CPU") + (" and a GPU" if wants_gpu(experiment, nodes) else "")
        if experiment.learners > 1:
            needs = counted(experiment.learner_cpus, "CPU") + (" and a GPU" if wants_gpu(experiment, nodes) else "")
            needs += f" for each of {experiment.learners} learners"
        remedy = "lower --learner-cpus, use --device cpu" if wants_gpu(experiment, nodes) else "lower --learner-cpus"
        lines.append(f"learner: no node has {needs} free; {remedy}, or add such a node")
    if (missing := missing_gpus(experiment, sum(node.gpus for node in nodes))) is not None:
        return [*lines, f"actor_gpus: {missing}; {REMEDY_FOR_GPUS}"]
    more = f"add nodes with {counted(waiting * cpus, 'CPU')}, {cpus} on one node for each"
    if waiting and experiment.schedule == "lockstep":
        shares = experiment.environments // experiment.least_environments
        fewer = [k for k in range(1, placed + 1) if shares % k == 0]
        use = f"use --actors {fewer[-1]}, or " if fewer else ""
        lines.append(f"actors: {waiting} of {experiment.actors} have no place, and lockstep needs all; {use}{more}")
    elif waiting and not placed:
        option = "--actor-threads" if experiment.actor_processes == 1 else "--actor-processes"
        lines.append(f"actors: none has a place; lower {option}, or {more}")
    elif waiting:
        lines.append(f"actors: {waiting} of {experiment.actors} wait, and the run continues without them; {more}")
    store = learner.object_store_bytes if learner else 0
    if 0 < store < found.object_store_bytes:
        lines.append(
            f"object store: {found.object_store_bytes} bytes are needed on the learner's node, which has {store}; "
            "start Ray there with a larger --object-store-memory"
        )
    return lines
