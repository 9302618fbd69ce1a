"""Preview how a run would be laid out on the cluster that is connected, or on this machine alone."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import closing
from typing import Any, TypeVar

import torch

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.rollout import ActorSetup, AnyActor, probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.on_ray.address import cluster_address
from metagrad.cluster.plan.automatic import Choice, choose_actors, choose_learners
from metagrad.cluster.plan.placement import Node, Plan, Rates, make_plan, own_cpus, problems
from metagrad.cluster.run.learning import (
    actor_device,
    actor_setups,
    learner_threads,
    require_actor_device,
    resolve_device,
)
from metagrad.cores import default_threads, usable_cores
from metagrad.errors import counted
from metagrad.learner.batch import merge
from metagrad.learner.team import share_of
from metagrad.types import Rollout, WeightSnapshot

T = TypeVar("T")
_REPETITIONS = 3
_UNITS = ("B", "kB", "MB", "GB", "TB")


def with_chosen(experiment: BaseExperiment, fields: Set[str]) -> Choice:
    """Choose "learners" and "actors", where they are asked for, for the cluster at RAY_ADDRESS, or for this machine."""
    if not fields:
        return Choice(experiment, ())
    nodes, _ = find_nodes(dataclasses.replace(experiment, actors=1, learners=1))
    reasons: tuple[str, ...] = ()
    if "learners" in fields:
        experiment, reasons = choose_learners(experiment, nodes)
    if "actors" in fields:
        chosen = choose_actors(experiment, nodes, cluster_address() is None)
        experiment, reasons = chosen.experiment, reasons + chosen.reasons
    return Choice(experiment, reasons)


def plan(experiment: BaseExperiment, is_json: bool) -> None:
    """Measure, lay out, print."""
    nodes, where = find_nodes(experiment)
    spec = probe(experiment.env)
    rates, parameters = measure(experiment, spec)
    found = make_plan(experiment, spec, parameters, nodes, rates)
    print(
        json.dumps(as_json(experiment, found, rates), indent=2)
        if is_json
        else describe(experiment, found, rates, where)
    )


def find_nodes(experiment: BaseExperiment) -> tuple[list[Node], str]:
    """Return the nodes of the cluster at RAY_ADDRESS, or this machine, without Ray; and what they are.

    A run on this machine alone has a Ray of its own, which counts as many CPUs as the run asks for.

    Raises:
        ConfigurationError: no cluster at RAY_ADDRESS.
    """
    address = cluster_address()
    cores = usable_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = Node("this machine", cores, torch.cuda.device_count(), memory_bytes=memory)
    if experiment.topology == "colocated":
        return [here], "this machine, in one process without Ray"
    if address is None:
        from metagrad.cluster.on_ray.session import OBJECT_STORE_BYTES  # of the Ray that a run starts for itself

        wanted = own_cpus(experiment) + experiment.actors * experiment.cpus_of_an_actor
        shared = (
            f" for {counted(wanted, 'CPU')}: processes share them, and take longer than below" if wanted > cores else ""
        )
        where = f"this machine alone (RAY_ADDRESS is not set), which has {counted(cores, 'core')}{shared}"
        return [here._replace(cpus=max(wanted, cores), object_store_bytes=OBJECT_STORE_BYTES)], where
    import ray

    from metagrad.cluster.on_ray.private import free_by_node
    from metagrad.cluster.on_ray.session import ANY_ROOM, ray_session

    with ray_session(ANY_ROOM):
        free = free_by_node()
        found = [_node(each, free.get(each["NodeID"], {})) for each in ray.nodes() if each["Alive"]]
    return sorted(found), f"the cluster at {address}"


def _node(listed: dict[str, Any], free: dict[str, float]) -> Node:
    """Convert a node as `ray.nodes` lists it, which leaves out what it has none of, and what of it is free."""
    total = listed["Resources"]
    cpus = int(total.get("CPU", 0))
    return Node(
        name=listed["NodeManagerAddress"],
        cpus=cpus,
        gpus=int(total.get("GPU", 0)),
        used_cpus=cpus - int(free.get("CPU", 0)),
        memory_bytes=int(total.get("memory", 0)),
        object_store_bytes=int(total.get("object_store_memory", 0)),
    )


def measure(experiment: BaseExperiment, spec: EnvironmentSpec) -> tuple[Rates, int]:
    """Measure the seconds of a rollout and of an update, here and now, and count the numbers in θ and η.

    An actor rolls out its share of the environments, then the least that it can have; the learner updates on copies of
    what the first brought, from the state after its first update on. Each a few times, the quickest counts.
    """
    device = resolve_device(experiment.device)
    require_actor_device(experiment, device)
    algorithm = experiment.algorithm(spec)
    state = algorithm.init(experiment.seed, device)
    asked: list[WeightSnapshot] = []
    brought: list[Any] = []
    setup = dataclasses.replace(actor_setups(experiment, device, 0)[0], device=_measured_on(experiment, device))
    rollouts = len(share_of(experiment.rollouts_per_batch, 0, experiment.learners))  # of one learner
    torch.set_num_threads(experiment.actor_threads)

    def sample(snapshot: WeightSnapshot, _: int) -> Any:
        asked.append(snapshot)
        if not brought:
            with closing(experiment.actor_type(setup)) as actor:
                brought.append(merge([_roll_out(actor, snapshot)] * rollouts, None, device).trajectory)
        return brought[0]

    state, _ = algorithm.update(state, sample)  # under `sequential` the first one asks for a batch more than the others
    least = experiment.least_environments
    own, single = (
        _rollout_seconds(experiment.actor_type, dataclasses.replace(setup, batch_size=b), asked[0])
        for b in (setup.batch_size, least)
    )
    torch.set_num_threads(learner_threads(experiment, default_threads()))
    asked_before = len(asked)
    seconds, after = _quickest(lambda: algorithm.update(state, sample)[0])
    updates, batches = after.update - state.update, (len(asked) - asked_before) / _REPETITIONS
    environment = max(0.0, own - single) / max(1, setup.batch_size - least)
    rates = Rates(
        rollout=own - setup.batch_size * environment,
        environment=environment,
        update=seconds / updates,
        batches=1.0 if experiment.schedule == "peek" else batches / updates,
    )
    return rates, asked[0].theta.numel() + asked[0].eta.numel()


def _measured_on(experiment: BaseExperiment, learner: torch.device) -> str:
    """Return where this machine evaluates the policy: on its CPU, where only the cluster's nodes have GPUs."""
    chosen = actor_device(experiment, learner)
    return chosen if torch.cuda.is_available() or not chosen.startswith("cuda") else "cpu"


def _rollout_seconds(make: Callable[[ActorSetup], AnyActor], setup: ActorSetup, snapshot: WeightSnapshot) -> float:
    with closing(make(setup)) as actor:
        _roll_out(actor, snapshot)
        return _quickest(lambda: _roll_out(actor, snapshot))[0]


def _roll_out(actor: AnyActor, snapshot: WeightSnapshot) -> Rollout:
    with torch.no_grad():
        return actor.rollout(snapshot._replace(theta=snapshot.theta.to(actor.setup.device)), 0)


def _quickest(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds of the quickest of a few times, and what the last one returned."""
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return min(times), result


def describe(experiment: BaseExperiment, found: Plan, rates: Rates, where: str) -> str:
    """Describe a plan on one screen."""
    share = experiment.environments_of_an_actor
    threads = f" and {counted(experiment.cpus_of_an_actor, 'CPU')}" if experiment.topology == "ray" else ""
    threads += f" and {experiment.actor_gpus:g} of a GPU" if experiment.actor_gpus else ""
    lines = [
        f"{experiment.name} on {where}",
        "",
        *_table(found),
        "",
        f"actors            {experiment.actors}, {counted(share, 'environment')}{threads} each; "
        f"a rollout takes one of them {1_000 * rates.rollout_seconds(share / experiment.actor_processes):.1f} ms",
        f"learner           {1_000 * rates.update:.1f} ms for an update, "
        f"{counted(found.batches_per_update, 'batch', 'batches')} each, "
        f"{experiment.schedule}",
        f"speed             about {found.updates_per_second:.1f} updates/s, "
        f"{found.updates_per_second * experiment.steps_per_rollout:,.0f} real frames/s",
        *_between_learners(experiment, found),
        f"one batch         {_bytes(found.rollout_bytes)}; one version of the weights {_bytes(found.weight_bytes)}",
    ]
    if experiment.topology == "ray":
        lines += [
            f"saturation        {_saturation(experiment, found, rates)}",
            f"learner's node    {_bytes(found.bytes_in)}/s in, {_bytes(found.bytes_out)}/s out; "
            f"{_bytes(found.object_store_bytes)} of its object store",
        ]
    lines += ["", *(f"does not fit: {line}" for line in problems(experiment, found))]
    if not found.is_possible:
        lines.append("This run would be refused, or find no place.")
    device = resolve_device(experiment.device)
    where_policy = _measured_on(experiment, device)
    lines.append(
        f"Times are the quickest of {_REPETITIONS}, measured on this machine now (learner: {device}, actors' policy: "
        f"{where_policy}), one process at a time, without transport."
    )
    if (
        device.type == "cpu"
        and experiment.device == "auto"
        and any(x.has_learner and x.node.gpus for x in found.shares)
    ):
        lines.append("The learner would have a GPU, which this machine lacks: its updates will be faster there.")
    if experiment.actor_gpus and where_policy == "cpu":
        lines.append("The actors would have parts of GPUs, which this machine lacks: their rollouts will differ there.")
    return "\n".join(lines)


def _between_learners(experiment: BaseExperiment, found: Plan) -> Iterator[str]:
    if experiment.learners > 1:
        share = len(share_of(experiment.rollouts_per_batch, 0, experiment.learners))
        yield (
            f"learners          {experiment.learners}, each with up to {share} of {experiment.rollouts_per_batch} "
            f"rollouts of a batch; each sends {_bytes(found.learner_bytes)} to the others for a meta-update"
        )


def _saturation(experiment: BaseExperiment, found: Plan, rates: Rates) -> str:
    if found.saturating_actors is None:
        least = experiment.least_environments
        single = 1_000 * rates.batches * rates.rollout_seconds(least)
        each = "one environment" if least == 1 else f"{least} environments"
        return f"with no number of actors: {each} each, they still take {single:.1f} ms for an update's rollouts"
    return f"from {counted(found.saturating_actors, 'actor')} on the learner is the bottleneck"


def _table(found: Plan) -> Iterator[str]:
    width = max(len(share.node.name) for share in found.shares)
    for share in found.shares:
        node, roles = share.node, []
        if share.has_learner:
            roles.append("learner" if share.learners == 1 else counted(share.learners, "learner"))
        if share.has_evaluator:
            roles.append("evaluation")
        if share.actors:
            roles.append(counted(share.actors, "actor"))
        size = counted(node.cpus, "CPU")
        size += f" ({node.used_cpus} used)" if node.used_cpus else ""
        size += f", {counted(node.gpus, 'GPU')}" if node.gpus else ""
        size += f", {_bytes(node.memory_bytes)}" if node.memory_bytes else ""
        rates = f"{_bytes(share.rollout_bytes_per_second)}/s out, {_bytes(share.weight_bytes_per_second)}/s in"
        sent = f"  ({rates})" if share.rollout_bytes_per_second else ""
        yield f"{node.name:<{width}}  {size:<16}  {', '.join(roles) or 'nothing'}{sent}"


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1_000 and unit < len(_UNITS) - 1:
        count, unit = count / 1_000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def as_json(experiment: BaseExperiment, found: Plan, rates: Rates) -> dict[str, Any]:
    """Convert a plan to JSON, in bytes and seconds."""
    shares = [{**share._asdict(), "node": share.node._asdict()} for share in found.shares]
    totals = {"bytes_in_per_second": found.bytes_in, "bytes_out_per_second": found.bytes_out}
    device = resolve_device(experiment.device)
    fit = {"problems": problems(experiment, found), "measured_on": str(device)}
    asked = {"actor_device": actor_device(experiment, device), "actor_gpus": experiment.actor_gpus}
    return {**found._asdict(), "shares": shares, **totals, **asked, **fit, "measured": rates._asdict()}
