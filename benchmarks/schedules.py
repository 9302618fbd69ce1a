"""Real frames per second of schedule `peek` against `lockstep`, with Ray actors: whole runs in turn, round by round.

Snake 6x6 as in `demo`, two actors, learner threads as the command line chooses them. Beside the ratio stands what can
be saved at all where all cores are busy: with x the time of one batch of rollouts and L that of the learner, from the
phases of the lockstep runs, ((n + 1) x + L) / (x + L).
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from benchmarks.harness import summary
from benchmarks.pipeline import WARM_UP, updates_of
from cluster.config import Experiment
from experiments.snake import demo

_NS, _UPDATES = (1, 3, 5), 40


def one_run(experiment: Experiment) -> tuple[float, float]:
    """Real frames per second from one row to the next, and the ratio that the run's phases allow."""
    rows = updates_of(experiment)
    rates = rows["throughput/real_frames_per_second"]
    per_second = len(rates) / sum(1 / rate for rate in rates)
    batches = 1 + experiment.look_ahead_batches
    sampling = sum(rows["time/sample_seconds"]) / batches
    learner = sum(sum(values) for name, values in rows.items() if name.startswith("time/")) - batches * sampling
    return per_second, (batches * sampling + learner) / (sampling + learner)


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Per n: both speeds, the ratio of each round, and the one that the phases of lockstep allow."""
    result: dict[str, Any] = {}
    for n in (1,) if quick else _NS:
        measured: dict[str, list[float]] = defaultdict(list)
        for _ in range(1 if quick else rounds):
            for schedule in ("lockstep", "peek"):
                base = demo()
                updates = WARM_UP + (3 if quick else _UPDATES)
                experiment = replace(base, schedule=schedule, meta=replace(base.meta, n=n), updates=updates)
                speed, allowed = one_run(experiment)
                measured[f"{schedule}_real_frames_per_second"].append(speed)
                if schedule == "lockstep":
                    measured["ratio_that_phases_allow"].append(allowed)
            lockstep, peek = (measured[f"{name}_real_frames_per_second"][-1] for name in ("lockstep", "peek"))
            measured["peek_over_lockstep"].append(peek / lockstep)
        result[f"n{n}"] = {name: summary(values) for name, values in measured.items()}
    return {"schedules": result}
