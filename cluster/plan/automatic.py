"""Choose number, threads and environments of actors for the nodes that are there: `--actors auto`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.plan.placement import Node, own_cpus, place
from metagrad.errors import require


class Choice(NamedTuple):
    """Holds an experiment with the actors that were chosen for it."""

    experiment: BaseExperiment
    reason: str


def choose_actors(experiment: BaseExperiment, nodes: Sequence[Node], is_alone: bool) -> Choice:
    """Choose the actors that keep most CPUs busy with the fewest rollouts to a batch, which is what costs the learner.

    Environments that step in threads of their own have one actor per node, with as many threads as CPUs are free on
    each of these nodes; all others one actor per CPU. Lockstep needs a number that divides the environments; in peek
    the actors' environments do, and their number is free.

    Args:
        experiment: the run; its own number of actors counts for nothing.
        nodes: of the cluster, or this machine.
        is_alone: this machine has no cluster. Processes share its cores then, and in lockstep, where the learner rests
            while actors work, they have all of them.

    Raises:
        ConfigurationError: a run without processes for actors, or one that says what is to be chosen.
    """
    rule = "chooses among the processes of a cluster, and colocated actors are no processes"
    require(experiment.topology == "ray", "actors", "auto", rule, "give a number, or leave it out")
    rule, remedy = "is chosen by --actors auto", "leave it out, or give the number of actors too"
    require(experiment.actor_threads == 1, "actor_threads", experiment.actor_threads, rule, remedy)
    learners, rule = experiment.learners, "have actors of their own, and --actors auto chooses those of one learner"
    require(learners == 1, "learners", learners, rule, "give the number of actors")
    own = experiment.environments_per_actor
    require(own is None, "environments_per_actor", own, rule, remedy)
    free = _free(replace(experiment, actors=1), nodes, is_alone)
    has_threads = experiment.env.has_threads
    rooms = sorted(free, reverse=True) if has_threads else [1] * sum(free)
    environments, is_peek = experiment.environments, experiment.schedule == "peek"
    best = (0, 0, 1, environments)  # CPUs busy, fewer actors, their number, environments of each
    for actors in range(1, min(len(rooms), environments) + 1):
        divisor = max(k for k in range(1, actors + 1) if environments % k == 0)
        if divisor < actors and not is_peek:
            continue
        share = environments // divisor
        best = max(best, (actors * min(share, rooms[actors - 1]), -actors, actors, share))
    _, _, actors, share = best
    threads = min(share, rooms[actors - 1]) if has_threads and rooms else 1
    is_uneven = environments % actors != 0
    chosen = replace(
        experiment, actors=actors, actor_threads=threads, environments_per_actor=share if is_uneven else None
    )
    why = "environments that step in threads of their own: one process per node" if has_threads else "one per CPU"
    left = (
        "all CPUs, since actors and learner take turns" if is_alone and not is_peek else "CPUs that the learner leaves"
    )
    return Choice(chosen, f"{actors} actors, {share} environments and {threads} CPUs each ({why}; {left}: {sum(free)})")


def _free(experiment: BaseExperiment, nodes: Sequence[Node], is_alone: bool) -> list[int]:
    """Return the CPUs of each node that actors may have; none of a node where no actor has room."""
    free = [node.cpus - node.used_cpus for node in nodes]
    if is_alone and experiment.schedule == "lockstep":
        return free
    _, learner = place(experiment, nodes)
    if learner is not None:
        free[learner] -= own_cpus(experiment)
    at_least = 1 if is_alone else 0  # one machine with one core still runs an actor
    return [cpus for cpus in (max(at_least, each) for each in free) if cpus > 0]
