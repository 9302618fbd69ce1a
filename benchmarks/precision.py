"""Compares training in bf16-mixed with training in float32: CPU seconds of whole updates, one thread, in turn.

An update is that of the training loop with actors in the same process: every rollout that it asks for is played
(environment and inference), then gradients, outer loss, meta-gradient and optimizer. Pong without a look-ahead has
rollouts of 20 steps, all others the lengths of their experiments.

The floor of Pong n = 0 is environment, inference and gradient, each alone (`benchmarks.end_to_end`), in the same
precision. CPU seconds are compared, which count no time that others had the core.

Targets, set for a processor with bfloat16 tiles (AMX): n = 3 at least 2.0 times float32, Snake 1.6 times, .85 of the
floor.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from benchmarks.end_to_end import seconds_per_decision
from benchmarks.end_to_end_ours import pong
from benchmarks.harness import Timing, at_least, interleave, summary, torch_threads
from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import actor_setups
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.learner.schedule import Lockstep
from metagrad.precision import Precision, multiplies_bfloat16

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16-mixed")
CASES: dict[str, Callable[[], Experiment]] = {
    "Pong, n = 0": lambda: pong(0, "lockstep"),
    "Pong, n = 3": lambda: pong(3, "lockstep"),
    "Snake 6x6": snake_6x6,
}
LEAST = {"Pong, n = 3": 2.0, "Snake 6x6": 1.6}
FLOOR_OF, LEAST_OF_FLOOR = "Pong, n = 0", 0.85
CPU = torch.device("cpu")


class Training:
    """Makes one update after another of an experiment, in this process."""

    def __init__(self, experiment: Experiment, precision: Precision):
        self.experiment = replace(experiment, topology="colocated", actors=1, precision=precision)
        self._algorithm = self.experiment.algorithm(probe(self.experiment.env))
        self._state = self._algorithm.init(self.experiment.seed, CPU)
        self._actors = ColocatedActors(actor_setups(self.experiment, CPU, 0), None, rollouts_per_batch=1)
        self._schedule = Lockstep(self._actors, CPU)

    def update(self) -> None:
        """Make one update on fresh rollouts."""
        self._state, _ = self._algorithm.update(self._state, self._schedule.sample)
        self._schedule.take_received()

    def close(self) -> None:
        """Close the environments."""
        self._actors.close()


def _updates(make: Callable[[], Experiment], rounds: int) -> dict[Precision, list[Timing]]:
    """Time whole updates in both precisions, in turn."""
    with closing(Training(make(), "float32")) as exact, closing(Training(make(), "bf16-mixed")) as mixed:
        timings = interleave({"float32": exact.update, "bf16-mixed": mixed.update}, rounds, warm_up_rounds=2)
    return {precision: timings[precision] for precision in PRECISIONS}


def compared(make: Callable[[], Experiment], rounds: int) -> dict[str, Any]:
    """Return CPU milliseconds per decision in both precisions, and how many times as fast bf16-mixed is."""
    timings, decisions = _updates(make, rounds), make().steps_per_rollout
    pairs = zip(*(timings[precision] for precision in PRECISIONS), strict=True)
    return {
        "cpu_ms_per_decision": {
            precision: summary([1e3 * timing.cpu_s / decisions for timing in timings[precision]])
            for precision in PRECISIONS
        },
        "times_as_fast": summary([exact.cpu_s / mixed.cpu_s for exact, mixed in pairs]),
    }


def share_of_floor(found: dict[str, Any], repeats: int) -> dict[str, float]:
    """Return the floor of `FLOOR_OF` over what it takes, in each precision."""
    shares: dict[str, float] = {}
    for precision in PRECISIONS:
        terms = seconds_per_decision(replace(CASES[FLOOR_OF](), precision=precision), repeats)
        shares[precision] = 1e3 * sum(terms.values()) / found["cpu_ms_per_decision"][precision]["median"]
    return shares


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure every case; quick: Snake alone."""
    with torch_threads(1):
        names = ["Snake 6x6"] if quick else list(CASES)
        cases = {name: compared(CASES[name], 1 if quick else 3 * rounds) for name in names}
    ratios = {f"{name}: bf16-mixed over float32": case["times_as_fast"]["median"] for name, case in cases.items()}
    result: dict[str, Any] = {"cases": cases, "multiplies_bfloat16": multiplies_bfloat16(CPU), "ratios": ratios}
    targets = [
        at_least(f"{name}: bf16-mixed over float32", cases[name]["times_as_fast"]["median"], least)
        for name, least in LEAST.items()
        if name in cases
    ]
    if FLOOR_OF in cases:
        result["share_of_floor"] = share_of_floor(cases[FLOOR_OF], 2 * rounds)
        mixed = result["share_of_floor"]["bf16-mixed"]
        targets.append(at_least(f"{FLOOR_OF}, bf16-mixed: share of the floor", mixed, LEAST_OF_FLOOR))
    return result | {"targets": targets}
