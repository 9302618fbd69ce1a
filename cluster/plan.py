"""`metagrad plan`: how a run would be laid out on the cluster that is connected, or on this machine alone."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch

from actors.envs.base import EnvironmentSpec
from actors.rollout import Actor, probe
from cluster.learning import actor_setups, learner_threads, resolve_device
from cluster.placement import Node, Plan, Rates, make_plan, own_cpus
from cluster.run_config import BaseExperiment
from learner.batch import merge
from metagrad.types import Trajectory, WeightSnapshot

_REPETITIONS = 3
_UNITS = ("B", "kB", "MB", "GB", "TB")


def plan(experiment: BaseExperiment, is_json: bool) -> None:
    """Measure, lay out, print."""
    nodes, where = find_nodes(experiment)
    spec = probe(experiment.env)
    rates, parameters = measure(experiment, spec)
    found = make_plan(experiment, spec, parameters, nodes, rates)
    print(json.dumps(as_json(found, rates), indent=2) if is_json else describe(experiment, found, rates, where))


def find_nodes(experiment: BaseExperiment) -> tuple[list[Node], str]:
    """The nodes of the cluster at RAY_ADDRESS, or this machine, without Ray; and what they are.

    A run on this machine alone has a Ray of its own, which counts as many CPUs as the run asks for.

    Raises:
        ConfigurationError: no cluster at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        wanted = own_cpus(experiment) + experiment.actors * experiment.actor_threads
        here = Node("this machine", max(wanted, len(os.sched_getaffinity(0))), torch.cuda.device_count())
        return [here], "this machine alone (RAY_ADDRESS is not set)"
    import ray

    from cluster.ray_session import ANY_ROOM, ray_session

    with ray_session(ANY_ROOM):
        found = [
            Node(each["NodeManagerAddress"], int(each["Resources"].get("CPU", 0)), int(each["Resources"].get("GPU", 0)))
            for each in ray.nodes()
            if each["Alive"]
        ]
    return sorted(found), f"the cluster at {address}"


def measure(experiment: BaseExperiment, spec: EnvironmentSpec) -> tuple[Rates, int]:
    """Seconds of an environment step and of an update, here and now, and the numbers in θ and η.

    One actor of all environments rolls out, the learner updates on what it brought; each a few times, the quickest
    counts.
    """
    device = resolve_device(experiment.device)
    algorithm = experiment.algorithm(spec)
    state = algorithm.init(experiment.seed, device)
    whole = dataclasses.replace(actor_setups(experiment, device, 0)[0], batch_size=experiment.environments)
    asked: list[WeightSnapshot] = []
    brought: list[Trajectory] = []
    torch.set_num_threads(experiment.actor_threads)
    with closing(Actor(whole)) as actor:

        def roll_out(snapshot: WeightSnapshot) -> Trajectory:
            with torch.no_grad():
                rollout = actor.rollout(snapshot._replace(theta=snapshot.theta.to(whole.device)), 0)
            return merge([rollout], None, device).trajectory

        def sample(snapshot: WeightSnapshot, _: int) -> Trajectory:
            if not brought:
                asked.append(snapshot)
                brought.append(roll_out(snapshot))
            return brought[0]

        algorithm.update(state, sample)
        rollout_seconds = _quickest(lambda: roll_out(asked[0]))
    torch.set_num_threads(learner_threads(experiment))
    rates = Rates(rollout_seconds / experiment.steps_per_rollout, _quickest(lambda: algorithm.update(state, sample)))
    return rates, asked[0].theta.numel() + asked[0].eta.numel()


def _quickest(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def describe(experiment: BaseExperiment, found: Plan, rates: Rates, where: str) -> str:
    """One screen for people."""
    of_an_actor = f"{experiment.environments_of_an_actor} environments and {experiment.actor_threads} CPUs each"
    ms = 1_000 * rates.step * experiment.environments_of_an_actor * experiment.rollout_length
    lines = [
        f"{experiment.name} on {where}",
        "",
        *_table(found),
        "",
        f"actors            {experiment.actors}, {of_an_actor}; a rollout takes one of them {ms:.1f} ms",
        f"learner           {1_000 * rates.update:.1f} ms for an update, {found.batches_per_update} batches each, "
        f"{experiment.schedule}",
        f"speed             about {found.updates_per_second:.1f} updates/s, "
        f"{found.updates_per_second * experiment.steps_per_rollout:,.0f} real frames/s",
        f"saturation        from {found.saturating_actors} actors on the learner takes longer than they do",
        f"one batch         {_bytes(found.rollout_bytes)}; one version of the weights {_bytes(found.weight_bytes)}",
        f"learner's node    {_bytes(found.bytes_in)}/s in, {_bytes(found.bytes_out)}/s out; "
        f"{_bytes(found.object_store_bytes)} of its object store",
        "",
        f"Times are the quickest of {_REPETITIONS}, measured on this machine now, one process at a time.",
    ]
    if not found.is_possible:
        lines.append("This run would be refused: not all that must run together has a place; add nodes or use less.")
    elif found.waiting_actors:
        lines.append(f"{found.waiting_actors} actors wait until a node joins; the run goes on without them.")
    return "\n".join(lines)


def _table(found: Plan) -> Iterator[str]:
    width = max(len(share.node.name) for share in found.shares)
    for share in found.shares:
        node, roles = share.node, []
        if share.has_learner:
            roles.append("learner")
        if share.has_evaluator:
            roles.append("evaluation")
        if share.actors:
            roles.append(f"{share.actors} actors")
        size = f"{node.cpus} CPUs" + (f", {node.gpus} GPUs" if node.gpus else "")
        rates = f"{_bytes(share.rollout_bytes_per_second)}/s out, {_bytes(share.weight_bytes_per_second)}/s in"
        sent = f"  ({rates})" if share.rollout_bytes_per_second else ""
        yield f"{node.name:<{width}}  {size:<16}  {', '.join(roles) or 'nothing'}{sent}"


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1_000 and unit < len(_UNITS) - 1:
        count, unit = count / 1_000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def as_json(found: Plan, rates: Rates) -> dict[str, Any]:
    """The same for machines; bytes and seconds."""
    shares = [{**share._asdict(), "node": share.node._asdict()} for share in found.shares]
    totals = {"bytes_in_per_second": found.bytes_in, "bytes_out_per_second": found.bytes_out}
    return {**found._asdict(), "shares": shares, **totals, "measured_seconds": rates._asdict()}
