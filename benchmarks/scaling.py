"""Measure throughput and the learner's idle share against actors and nodes, and the cost of a broadcast of weights.

The training loop and the transport are those of real runs on Ray (`learn`, `RayActors`, actor processes on raylets of
this machine), for schedules lockstep and peek. Only the learner runs in the benchmark's process instead of one of
Ray's, and actor processes are kept from run to run with new environments in each, so that no start of one is measured
or waited for. Two cores cannot step games for many actors, so there are two kinds of environments: `waiting`, whose
steps take a stated time and no core, as if they ran elsewhere (`benchmarks.waiting`), and Snake, which saturates the
cores at once. Every actor has the same number of environments; lockstep's batch is one rollout of every actor, peek's
four rollouts of whichever. The learner is idle while it waits for rollouts or takes them in (`time/sample_seconds`).
Layouts of nodes are measured one after another, everything else in turn.

Beside each waiting run stands the speed that `metagrad plan` gives it from one actor's rollout and the learner's
update: rollouts of equal length and free transport, so that the share of it that a run reaches shows what those cost.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks import broadcast
from benchmarks.broadcast import Broadcast
from benchmarks.fleet import Fleet
from benchmarks.harness import interleave, summary, torch_threads
from benchmarks.raylets import on_raylets
from benchmarks.waiting import WaitingConfig
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import ScheduleName
from metagrad.cluster.config.size import rollout_bytes
from metagrad.cluster.on_ray.session import ANY_ROOM, ray_session
from metagrad.cluster.plan.placement import Rates, update_seconds
from metagrad.cluster.run.learning import actor_setups
from metagrad.experiments.debiasing.snake import demo
from metagrad.networks import Mlp
from metagrad.types import WeightSnapshot

SCHEDULES: tuple[ScheduleName, ...] = ("lockstep", "peek")
WAITING_ACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 20)
SNAKE_ACTORS = (1, 2, 3, 4, 6, 8)
ON_NODES = 8  # actors, of which one, two or four nodes have equal shares
NODES = (1, 2, 4)
PEEK_BATCH = 4  # rollouts
ENVIRONMENTS = {"waiting": 16, "snake": 64}  # of an actor; four of them make peek's batch
WARM_UP = 2  # updates of a run; in peek also orders of the run before, which its actors still work off
BROADCASTS = tuple(Broadcast(size, actors) for size in (1_000_000, 6_800_000) for actors in (1, 2, 4, 8))
QUICK_BROADCASTS = (Broadcast(1_000_000, 2),)
ROLLOUTS_TIMED = 40
CPU = torch.device("cpu")


class Case(NamedTuple):
    """Describes one run that is repeated."""

    environment: str  # waiting or snake
    schedule: ScheduleName
    actors: int
    nodes: int = 1

    @property
    def label(self) -> str:
        return f"{self.environment}, {self.schedule}, {self.actors} actors" + f", {self.nodes} nodes" * (self.nodes > 1)

    @property
    def experiment(self) -> Experiment:
        """`demo` (n = 3) with as many environments to a batch as this number of actors brings."""
        is_peek, share = self.schedule == "peek", ENVIRONMENTS[self.environment]
        run = replace(
            demo(),
            device="cpu",
            learner_threads=1,
            log_every=1,
            actors=self.actors,
            schedule=self.schedule,
            environments=share * (PEEK_BATCH if is_peek else self.actors),
            environments_per_actor=share if is_peek else None,
        )
        return replace(run, env=WaitingConfig(), network=Mlp(hidden=256)) if self.environment == "waiting" else run

    @property
    def rollouts_per_update(self) -> int:
        """Count the rollouts that go through the transport, look-ahead included."""
        lockstep = (1 + self.experiment.look_ahead_batches) * self.actors
        return lockstep if self.schedule == "lockstep" else PEEK_BATCH

    @property
    def updates(self) -> int:
        """Return enough updates for two or three seconds."""
        if self.environment == "snake" or self.schedule == "lockstep":
            return 5
        return 6 * min(6, self.actors)


class Measured(NamedTuple):
    """Holds the measurements of one run in its steady state."""

    update_s: float
    learner_idle_share: float
    dropped_steps: float


def steady(rows: dict[str, list[float]], frames: int) -> Measured:
    """Measure from the rows of a run's updates; seconds from one row to the next are all there are."""
    seconds = [frames / rate for rate in rows["throughput/real_frames_per_second"][WARM_UP:]]
    sampling = rows["time/sample_seconds"][WARM_UP:]
    idle = sum(sampling) / sum(seconds)
    return Measured(sum(seconds) / len(seconds), idle, rows["transport/dropped_steps"][-1])


def measure(cases: Sequence[Case], rounds: int, quick: bool, broadcasts: Sequence[Broadcast]) -> dict[str, Any]:
    """Measure all cases in turn on the cluster that is there, and after them the broadcasts."""
    found: dict[str, list[Measured]] = defaultdict(list)
    with ray_session(ANY_ROOM), torch_threads(1):
        fleet = Fleet(max(case.actors for case in cases))
        for round_ in range(rounds + 1):
            # The round that is not counted is for processes that start: a run with all of them.
            chosen = cases if round_ else [max(cases, key=lambda case: case.actors)]
            for case in chosen:
                updates = WARM_UP + (2 if quick or not round_ else case.updates)
                rows = fleet.run(replace(case.experiment, updates=updates))
                if round_:
                    found[case.label].append(steady(rows, case.experiment.steps_per_rollout))
        sent = broadcast.measure(fleet.handles, broadcasts, fleet.next_life(len(broadcasts)), rounds)
    return {"runs": dict(found), "broadcasts": sent}


def rollout_seconds(experiment: Experiment, count: int) -> float:
    """Add an actor's waiting, which is known exactly, to its computing, measured in this process."""
    assert isinstance(experiment.env, WaitingConfig)
    waiting_s, _ = experiment.env.rollout_s(experiment.rollout_length)
    experiment = replace(experiment, env=replace(experiment.env, least_s=0.0, mean_beyond_s=0.0))
    state = experiment.algorithm(probe(experiment.env)).init(experiment.seed, CPU)
    actor = Actor(actor_setups(experiment, CPU, 0)[0])
    snapshot = WeightSnapshot(0, state.theta, state.eta)
    with torch_threads(1):
        timings = interleave({"rollout": lambda: actor.rollout(snapshot, 0)}, count)["rollout"]
    return waiting_s + summary([timing.wall_s for timing in timings])["median"]


def row(case: Case, runs: Sequence[Measured], rollout_s: float) -> dict[str, Any]:
    """Summarise the runs of a case; waiting ones beside what `metagrad plan` gives them for this rollout."""
    experiment = case.experiment
    share, length = experiment.environments_of_an_actor, experiment.rollout_length
    sent = case.rollouts_per_update * rollout_bytes(probe(experiment.env), share, length)
    frames = experiment.steps_per_rollout
    return {
        "environment": case.environment,
        "schedule": case.schedule,
        "actors": case.actors,
        "nodes": case.nodes,
        "real_frames_per_second": summary([frames / run.update_s for run in runs]),
        "learner_idle_share": summary([run.learner_idle_share for run in runs]),
        "update_s": summary([run.update_s for run in runs]),
        "rollout_bytes_per_second": summary([sent / run.update_s for run in runs]),
        "dropped_steps": max(run.dropped_steps for run in runs),
    } | ({"share_of_plan": share_of_plan(case, runs, rollout_s)} if case.environment == "waiting" else {})


def share_of_plan(case: Case, runs: Sequence[Measured], rollout_s: float) -> float:
    """Divide the measured speed by the one that `metagrad plan` gives for a rollout and the learner's own seconds."""
    experiment = case.experiment
    learning_s = summary([run.update_s * (1 - run.learner_idle_share) for run in runs])["median"]
    batches = case.rollouts_per_update / (experiment.environments / experiment.environments_of_an_actor)
    rates = Rates(rollout=rollout_s, environment=0.0, update=learning_s, batches=batches)
    return update_seconds(experiment, rates, case.actors) / summary([run.update_s for run in runs])["median"]


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure; quick: two rounds of one and two actors on one node, and one broadcast."""
    rounds = 2 if quick else rounds
    numbers = (1, 2) if quick else WAITING_ACTORS
    cases = [Case("waiting", schedule, actors) for actors in numbers for schedule in SCHEDULES]
    snake = () if quick else SNAKE_ACTORS
    cases += [Case("snake", schedule, actors) for actors in snake for schedule in SCHEDULES]
    rollout_s = rollout_seconds(cases[0].experiment, 5 if quick else ROLLOUTS_TIMED)
    broadcasts = QUICK_BROADCASTS if quick else BROADCASTS
    # One CPU more than actors, so that none waits for a place: what cores there are is the machine's affair.
    there = on_raylets((max(numbers) + 1,), measure, cases, rounds, quick, broadcasts)
    rows = {case.label: row(case, there["runs"][case.label], rollout_s) for case in cases}
    sent = {"1 node": there["broadcasts"]}
    for nodes in () if quick else NODES:
        layout = [Case("waiting", schedule, ON_NODES, nodes) for schedule in SCHEDULES]
        biggest = [each for each in BROADCASTS if each.actors == ON_NODES] * (nodes > 1)
        there = on_raylets((ON_NODES // nodes,) * nodes, measure, layout, rounds, quick, biggest)
        # The layout of one node is measured like the others, after them and beside as few cases.
        rows |= {f"{case.label}, layouts": row(case, there["runs"][case.label], rollout_s) for case in layout}
        sent |= {f"{nodes} nodes": there["broadcasts"]} if nodes > 1 else {}
    return {
        "rollout_s": rollout_s,
        "runs": rows,
        "broadcast": sent,
        "ratios": {
            f"broadcast of {label} by reference over by value": each["by_reference_over_by_value"]["median"]
            for label, each in sent["1 node"].items()
        },
    }
