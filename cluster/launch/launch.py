"""Start a run: configuration in, summary out.

Experiment ─► algorithm, actors, schedule ─► Training.run ─► summary.json
                                 │  schedule.sample(snapshot v, j) ─► actors ─► Trajectory [T, B]
                                 └─ algorithm.update: θ, η ─► θ', η' ─► snapshot v+1
"""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from metagrad.actors.rollout import ActorSetup, AnyActor
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch.open_run import opened_run
from metagrad.learner.storage import Location


def run(
    experiment: BaseExperiment,
    run_dir: str | Location,
    is_resumed: bool,
    console: Console,
    make: Callable[[ActorSetup], AnyActor] | None = None,
) -> dict[str, Any]:
    """Train one experiment in one folder; return the summary that is also written there.

    `make` makes the actors; None: they are of the experiment's kind.

    Raises:
        ConfigurationError: before anything starts.
        Exception: whatever ended the run, unchanged; summary.json and checkpoints up to then stand.
    """
    make = make or experiment.actor_type
    with opened_run(experiment, run_dir, is_resumed, console) as this_run:
        if this_run.is_stopped_before():
            pass
        elif experiment.topology == "colocated":
            with this_run.colocated_training(make) as training:
                training.run(this_run.stop)
        else:
            from metagrad.cluster.launch.supervise import supervise  # imports Ray

            supervise(this_run, make)
    return this_run.summary


def default_run_dir(experiment: BaseExperiment) -> Path:
    """Return runs/<experiment>-seed<seed>-<time>-<random>: runs of the same second have folders of their own."""
    began = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{experiment.name}-seed{experiment.seed}-{began}"
