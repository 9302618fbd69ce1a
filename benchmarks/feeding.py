"""Measure what it costs to bring rollouts of Atari's size to a learner, and how many arrive when that is all it does.

Actor processes on Ray step environments that cost nothing (`benchmarks.still`) under a network of one hidden unit, so
that an actor's time is that of collecting and sending. The learner is the real training loop with real schedules; its
algorithm publishes parameters and takes the next batch, and that is all (`benchmarks.taking`). Both share this
machine's cores. Wall time depends on who else uses them; CPU time per decision, the learner's (all threads of its
process) and everybody's (actors and Ray's own processes), does much less.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.fleet import Fleet
from benchmarks.harness import summary, torch_threads
from benchmarks.still import StillConfig
from benchmarks.taking import Taking, TakingExperiment
from metagrad.cluster.config.experiment import ScheduleName
from metagrad.cluster.on_ray.session import Demand, ray_session
from metagrad.cluster.run.stop import StopRequest
from metagrad.learner.reports import Report
from metagrad.networks import Mlp

SCHEDULES: tuple[ScheduleName, ...] = ("peek", "lockstep")
# Environments, steps, actors, processes of each.
BATCHES = ((64, 5, 1, 1), (64, 5, 2, 1), (64, 20, 2, 1), (512, 20, 2, 1), (64, 5, 8, 1), (64, 5, 1, 8))
QUICK_BATCHES = ((16, 5, 2, 1), (16, 5, 1, 2))
DECISIONS = 40_000  # of a run, that count
MOST_BATCHES, LEAST_BATCHES = 120, 8
WARM_UP = 6  # batches; in peek also what was ordered of the run before


class Case(NamedTuple):
    """Describes one run that is repeated."""

    schedule: ScheduleName
    environments: int
    length: int
    actors: int
    processes: int = 1

    @property
    def label(self) -> str:
        processes = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.schedule}, {self.environments} x {self.length}, {self.actors} actors{processes}"

    def experiment(self, is_quick: bool) -> TakingExperiment:
        """Configure a run of so many batches."""
        batches = min(MOST_BATCHES, max(LEAST_BATCHES, DECISIONS // (self.environments * self.length)))
        return TakingExperiment(
            name="feeding",
            description="",
            env=StillConfig(),
            network=Mlp(hidden=1),
            environments=self.environments,
            rollout_length=self.length,
            actors=self.actors,
            actor_processes=self.processes,
            schedule=self.schedule,
            updates=WARM_UP + (2 if is_quick else batches) + 1,
            warm_up=WARM_UP,
            device="cpu",
            learner_threads=1,
            log_every=1_000_000,
        )


class Fed(NamedTuple):
    """Holds the measurements of one run in its steady state."""

    decisions_per_s: float
    learner_us: float  # CPU time of a decision
    everybody_us: float
    bytes: float  # of a decision, as the learner has it


def feed(fleet: Fleet, experiment: TakingExperiment) -> Fed:
    """Run once."""
    with fleet.training(experiment, _unheard) as training:
        training.run(StopRequest())
        taking = training.algorithm
        assert isinstance(taking, Taking)
    begin, end = taking.marks
    decisions = experiment.steps_per_rollout * (taking.last - taking.first)
    used = sum(cpu - begin.everybody.get(pid, ("", 0.0))[1] for pid, (_, cpu) in end.everybody.items())
    return Fed(
        decisions / (end.wall_s - begin.wall_s),
        1e6 * (end.cpu_s - begin.cpu_s) / decisions,
        1e6 * used / decisions,
        taking.bytes_of_batches[0] / experiment.steps_per_rollout,
    )


def measure(cases: Sequence[Case], rounds: int, is_quick: bool) -> dict[str, list[Fed]]:
    """Run all cases in turn on a Ray of this process."""
    found: dict[str, list[Fed]] = defaultdict(list)
    with ray_session(Demand(least=0, wanted=max(case.actors for case in cases) + 1, gpus=0)), torch_threads(1):
        fleet = Fleet(max(case.actors for case in cases))
        for _ in range(rounds):
            for case in cases:
                found[case.label].append(feed(fleet, case.experiment(is_quick)))
    return found


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure; quick: one round of a small batch."""
    cases = [Case(schedule, *batch) for batch in (QUICK_BATCHES if quick else BATCHES) for schedule in SCHEDULES]
    found = measure(cases, 1 if quick else rounds, quick)
    names = ("decisions_per_s", "learner_cpu_us_per_decision", "cpu_us_per_decision", "bytes_per_decision")
    return {
        "runs": {
            label: {name: summary(values) for name, values in zip(names, zip(*runs, strict=True), strict=True)}
            for label, runs in found.items()
        }
    }


def _unheard(report: Report) -> None:
    """Ignore a report."""
