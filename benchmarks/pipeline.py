"""Share of wall time in each phase of training, per topology: where a faster part would pay.

Whole runs of the real training loop, Ray actors and colocated in turn. A meta-update's phases follow one another in the
learner: `sample` (rollouts, transfer and waiting), `inner` (n inner updates), `outer` (outer gradients), `meta`
(adjoint pass and meta-optimizer), `metrics` (scalars to the host). The first updates of a run, with the start of its
actors, are left out.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from benchmarks.harness import summary
from cluster import launch
from cluster.run_config import BaseExperiment
from experiments import EXPERIMENTS
from learner.step import meta_update

_UPDATES = {"snake-6x6": 60, "demo": 30, "atari": 8}
_WARM_UP = 2


@contextmanager
def _recorded_updates() -> Iterator[list[dict[str, float]]]:
    """The scalars of every meta-update that the training loop makes."""
    rows: list[dict[str, float]] = []

    def recording(*args: Any) -> Any:
        state, metrics = meta_update(*args)
        rows.append(metrics.scalars)
        return state, metrics

    with patch("learner.algorithm.meta_update", recording):
        yield rows


def one_run(experiment: BaseExperiment) -> dict[str, float]:
    """Share of each phase in the time of one run's meta-updates, and its real frames per second."""
    with tempfile.TemporaryDirectory() as folder, _recorded_updates() as rows:
        launch.run(experiment, Path(folder) / "run", False, Console(quiet=True))
    rows = rows[_WARM_UP:]
    phases = [name for name in rows[0] if name.startswith("time/")]
    seconds = {name: sum(row[name] for row in rows) for name in phases}
    total = sum(seconds.values())
    shares = {name.removeprefix("time/").removesuffix("_seconds"): value / total for name, value in seconds.items()}
    return shares | {"real_frames_per_second": experiment.steps_per_rollout * len(rows) / total}


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Shares per experiment and topology, medians over rounds."""
    result: dict[str, Any] = {}
    for name, updates in _UPDATES.items():
        measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(1 if quick else rounds):
            for topology in ("ray", "colocated"):
                experiment = replace(
                    EXPERIMENTS[name](), topology=topology, updates=_WARM_UP + (2 if quick else updates)
                )
                for phase, value in one_run(experiment).items():
                    measured[topology][phase].append(value)
        result[name] = {
            topology: {phase: summary(values) for phase, values in phases.items()}
            for topology, phases in measured.items()
        }
    return {"phases": result}
