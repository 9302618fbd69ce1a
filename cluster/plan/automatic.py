"""Choose for the nodes that are there: number, threads and environments of actors, and the number of learners.

So do `--actors auto` and `--learners auto`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.plan.placement import Node, own_cpus, place
from metagrad.errors import counted, require

_ENOUGH = 0.8  # of the CPUs that could be busy, where the last ones would need many small actors


class Choice(NamedTuple):
    """Holds an experiment with what was chosen for it, and why."""

    experiment: BaseExperiment
    reasons: tuple[str, ...]


def choose_learners(experiment: BaseExperiment, nodes: Sequence[Node]) -> Choice:
    """Choose a learner for each GPU; one where there is none, or where the run stays off them.

    Each has actors and rollouts of its own, so there are at most as many as of these.

    Args:
        experiment: the run; its own number of learners counts for nothing.
        nodes: of the cluster, or this machine.

    Raises:
        ConfigurationError: a run without processes for learners, or whose algorithm only one learner can run.
    """
    rule = "chooses among the processes of a cluster, and a colocated run has one learner"
    require(experiment.topology == "ray", "learners", "auto", rule, "leave it out")
    gpus = sum(node.gpus for node in nodes) if experiment.device != "cpu" else 0
    why = f"one for each of {counted(gpus, 'GPU')}" if gpus else "no GPUs to share a batch among"
    most = min(experiment.actors, experiment.rollouts_per_batch)
    if gpus > most:
        of = f"{counted(experiment.actors, 'actor')} and {counted(experiment.rollouts_per_batch, 'rollout')} of a batch"
        why = f"of {counted(gpus, 'GPU')}, since each has some of the {of}"
    chosen = replace(experiment, learners=max(1, min(gpus, most)))
    return Choice(chosen, (f"{counted(chosen.learners, 'learner')} ({why})",))


def choose_actors(experiment: BaseExperiment, nodes: Sequence[Node], is_alone: bool) -> Choice:
    """Choose the actors that keep most CPUs busy with the fewest rollouts to a batch, which is what costs the learner.

    Environments that step in threads of their own have one actor per node with as many threads as CPUs are free on each
    of these nodes. All others have processes that share an actor's environments equally: the fewest actors that keep at
    least four fifths of the CPUs busy that could be. Lockstep needs a number of actors that divides the environments;
    in peek the actors' environments do, and their number is free.

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
    for field in ("actor_threads", "actor_processes"):
        require(getattr(experiment, field) == 1, field, getattr(experiment, field), rule, remedy)
    own = experiment.environments_per_actor
    require(own is None, "environments_per_actor", own, rule, remedy)
    gpus, rule = experiment.actor_gpus, "is a part of a GPU for each actor, and --actors auto counts CPUs alone"
    require(gpus == 0, "actor_gpus", gpus, rule, "give the number of actors, or leave it out")
    learners, rule = experiment.learners, "have actors of their own, and --actors auto chooses those of one learner"
    require(learners == 1, "learners", learners, rule, "give the number of actors")
    free = _free(replace(experiment, actors=1), nodes, is_alone)
    has_threads, is_peek = experiment.env.has_threads, experiment.schedule == "peek"
    environments = experiment.environments
    found = [(1, 1, environments)]  # actors, CPUs and environments of each
    for cpus in range(1, max(free, default=0) + 1 if has_threads or experiment.takes_processes else 2):
        places = sum(room >= cpus if has_threads else room // cpus for room in free)
        share = environments
        for actors in range(1, min(places, environments) + 1):
            divides = environments % (actors * experiment.least_environments) == 0
            share = environments // actors if divides else share
            is_even = share >= cpus and (has_threads or share % cpus == 0)
            if is_even and (divides or is_peek):
                found.append((actors, cpus, share))
    most = max(actors * cpus for actors, cpus, _ in found)
    enough = most if has_threads else _ENOUGH * most
    good = [each for each in found if each[0] * each[1] >= enough]
    actors, cpus, share = max(good, key=lambda each: (-each[0], each[1]))
    chosen = replace(
        experiment,
        actors=actors,
        actor_threads=cpus if has_threads else 1,
        actor_processes=1 if has_threads else cpus,
        environments_per_actor=share if environments % actors else None,
    )
    kind = "threads" if has_threads else "processes"
    why = f"environments that step in {kind} of their actor: as few actors as keep the CPUs busy"
    why = why if experiment.takes_processes else "populations of one process each, as many as keep the CPUs busy"
    left = (
        "all CPUs, since actors and learner take turns" if is_alone and not is_peek else "CPUs that the learner leaves"
    )
    each = f"{counted(actors, 'actor')}, {counted(share, 'environment')} and {counted(cpus, 'CPU')} each"
    return Choice(chosen, (f"{each} ({why}; {left}: {sum(free)})",))


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
