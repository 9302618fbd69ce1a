"""Compares real frames per second of `peek` and `lockstep` with Ray actors: whole runs in turn, round by round.

Snake 6x6 as in `demo` and Pong as in `atari`, two actors, learner threads as the command line chooses them. Beside the
ratio stands what to expect of it. With x the seconds of one batch of rollouts and L those of the learner it is
((n + 1) x + L) / (x + L) where the same cores are busy in both schedules: from the phases of the lockstep runs, and
from CPU seconds on one thread, where each schedule has its own L, since V-trace is not A2C. It can be more where
lockstep leaves cores idle; never more than all cores' CPU seconds in an update of lockstep over those of peek.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Timing, interleave, summary, torch_threads
from benchmarks.pipeline import WARM_UP, updates_of
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import ScheduleName
from metagrad.cluster.run.learning import actor_setups
from metagrad.cores import usable_cores
from metagrad.experiments.debiasing.snake import demo
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.learner.batch import merge
from metagrad.types import Trajectory, WeightSnapshot

SCHEDULES: tuple[ScheduleName, ...] = ("lockstep", "peek")
CPU = torch.device("cpu")


class Case(NamedTuple):
    """Describes one experiment in both schedules."""

    label: str
    make: Callable[[], Experiment]
    n: int
    updates: int  # of a timed run

    def experiment(self, schedule: ScheduleName) -> Experiment:
        base = self.make()
        return replace(base, schedule=schedule, meta=replace(base.meta, n=self.n))


CASES = (*(Case(f"demo, n = {n}", demo, n, 24) for n in (1, 3, 5)), Case("Pong, n = 3", atari, 3, 8))


def one_run(experiment: Experiment) -> tuple[float, float]:
    """Return real frames per second from one row to the next, and the ratio that the run's phases allow."""
    rows = updates_of(experiment)
    rates = rows["throughput/real_frames_per_second"]
    per_second = len(rates) / sum(1 / rate for rate in rates)
    batches = 1 + experiment.look_ahead_batches
    sampling = sum(rows["time/sample_seconds"]) / batches
    learner = sum(sum(values) for name, values in rows.items() if name.startswith("time/")) - batches * sampling
    return per_second, (batches * sampling + learner) / (sampling + learner)


def _runs(case: Case, rounds: int, quick: bool) -> dict[str, Any]:
    """Return both speeds, the ratio of each round, and the one that the phases of lockstep allow."""
    measured: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if quick else rounds):
        for schedule in SCHEDULES:
            updates = WARM_UP + (3 if quick else case.updates)
            speed, allowed = one_run(replace(case.experiment(schedule), updates=updates))
            measured[f"{schedule}_real_frames_per_second"].append(speed)
            if schedule == "lockstep":
                measured["ratio_that_phases_allow"].append(allowed)
        lockstep, peek = (measured[f"{name}_real_frames_per_second"][-1] for name in SCHEDULES)
        measured["peek_over_lockstep"].append(peek / lockstep)
    return {name: summary(values) for name, values in measured.items()}


def arithmetic(case: Case) -> dict[str, Callable[[], object]]:
    """Time one batch of rollouts, and one update of each schedule on batches that are there, in this process."""
    lockstep, peek = (replace(case.experiment(each), topology="colocated", actors=1) for each in SCHEDULES)
    spec = probe(lockstep.env)
    algorithms = {"lockstep": lockstep.algorithm(spec), "peek": peek.algorithm(spec)}
    state = algorithms["lockstep"].init(lockstep.seed, CPU)
    (setup,) = actor_setups(lockstep, CPU, 0)
    actor, snapshot = Actor(setup), WeightSnapshot(0, state.theta, state.eta)

    def rollouts() -> Trajectory:
        with torch.no_grad():
            return merge([actor.rollout(snapshot, 0)], 0, CPU).trajectory

    window = [rollouts() for _ in range(case.n + 1)]
    return {
        "rollouts": rollouts,
        "lockstep": lambda: algorithms["lockstep"].update(state, lambda _, step: window[step]),
        "peek": lambda: algorithms["peek"].update(state, lambda _, step: window[step]),
    }


def cpu_seconds(timings: dict[str, list[Timing]], n: int) -> dict[str, Any]:
    """Return those of the three parts, and the ratio of both schedules' updates with all cores busy."""
    cpu = {name: [timing.cpu_s for timing in each] for name, each in timings.items()}
    allowed = [
        ((n + 1) * x + lockstep) / (x + peek)
        for x, lockstep, peek in zip(cpu["rollouts"], cpu["lockstep"], cpu["peek"], strict=True)
    ]
    return {
        "rollouts_cpu_s": summary(cpu["rollouts"]),
        "learner_lockstep_cpu_s": summary(cpu["lockstep"]),
        "learner_peek_cpu_s": summary(cpu["peek"]),
        "ratio_that_cpu_allows": summary(allowed),
    }


def ratio_at_most(case: Case, runs: dict[str, Any], cpu: dict[str, Any], cores: int) -> float:
    """Divide the CPU seconds of `cores` during an update of lockstep by those that an update of peek needs."""
    frames = case.experiment("lockstep").steps_per_rollout
    available = cores * frames / runs["lockstep_real_frames_per_second"]["median"]
    return float(available / (cpu["rollouts_cpu_s"]["median"] + cpu["learner_peek_cpu_s"]["median"]))


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure per case: speeds with Ray actors, CPU seconds of the parts, and the bound on the ratio."""
    result: dict[str, Any] = {}
    for case in CASES[:1] if quick else CASES:
        with torch_threads(1):
            cpu = cpu_seconds(interleave(arithmetic(case), 1 if quick else rounds), case.n)
        runs = _runs(case, rounds, quick)
        bound = ratio_at_most(case, runs, cpu, usable_cores())
        result[case.label] = runs | cpu | {"ratio_at_most": bound}
    ratios = {f"peek over lockstep, {name}": case["peek_over_lockstep"]["median"] for name, case in result.items()}
    return {"schedules": result, "ratios": ratios}
