"""Share of wall time in each phase of training, per topology: where a faster part would pay.

Whole runs of the real training loop, Ray actors and colocated in turn. A meta-update's phases follow one another in the
learner: `sample` (rollouts, transfer and waiting), `inner` (n inner updates), `outer` (outer gradients), `meta`
(adjoint pass and meta-optimizer), `metrics` (scalars to the host). The first updates of a run, with the start of its
actors, are left out.
"""

import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import summary
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch import launch
from metagrad.cluster.run.plot import logged_scalars
from metagrad.experiments import EXPERIMENTS

_UPDATES = {"snake-6x6": 60, "demo": 30, "atari": 8}
WARM_UP = 2


def updates_of(experiment: BaseExperiment) -> dict[str, list[float]]:
    """Return scalars of every meta-update of one run, without the first few, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        launch.run(replace(experiment, log_every=1), path, False, Console(quiet=True))
        return {name: values[WARM_UP:].tolist() for name, (_, values) in logged_scalars(path).items()}


def one_run(experiment: BaseExperiment) -> dict[str, float]:
    """Share of each phase in the time of one run's meta-updates, and its real frames per second."""
    rows = updates_of(experiment)
    seconds = {name: sum(values) for name, values in rows.items() if name.startswith("time/")}
    total = sum(seconds.values())
    shares = {name.removeprefix("time/").removesuffix("_seconds"): value / total for name, value in seconds.items()}
    updates = len(rows["time/inner_seconds"])
    return shares | {"real_frames_per_second": experiment.steps_per_rollout * updates / total}


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure shares per experiment and topology, medians over rounds."""
    result: dict[str, Any] = {}
    for name, updates in _UPDATES.items():
        measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(1 if quick else rounds):
            for topology in ("ray", "colocated"):
                experiment = replace(
                    EXPERIMENTS[name](), topology=topology, updates=WARM_UP + (2 if quick else updates)
                )
                for phase, value in one_run(experiment).items():
                    measured[topology][phase].append(value)
        result[name] = {
            topology: {phase: summary(values) for phase, values in phases.items()}
            for topology, phases in measured.items()
        }
    return {"phases": result}
