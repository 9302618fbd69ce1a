"""Start a run, supervise it, shut it down: configuration in, summary out.

Experiment ─► algorithm, actors ─► Training.run ─► summary.json
                                 │  sample(snapshot v, j) ─► actors ─► Trajectory [T, B]
                                 └─ algorithm.update: θ, η ─► θ', η' ─► snapshot v+1
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from actors.envs import DeviceEnvironmentConfig
from actors.rollout import Actor, ActorSetup, State, probe
from cluster.memory import keep_freed_memory
from cluster.progress import Progress
from cluster.run_config import BaseExperiment
from cluster.run_folder import RunFolder
from cluster.stop import StopRequest
from cluster.train import CHECKPOINT_PARTS, Training
from cluster.transport import Actors, ColocatedActors
from learner.algorithm import Algorithm
from learner.checkpoint import NoCheckpoint, Restored, restore_newest
from metagrad.errors import ConfigurationError, require


def resolve_device(device: str) -> torch.device:
    """The learner's device; "auto" is cuda where there is one.

    Raises:
        ConfigurationError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device = {device!r}: is no torch device; use auto, cpu or cuda") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        require((resolved.index or 0) < count, "device", device, f"this machine has {count} CUDA devices", "use auto")
    else:
        require(resolved.type == "cpu", "device", device, "only cpu and cuda are supported", "use auto, cpu or cuda")
    return resolved


def actor_setups(experiment: BaseExperiment, device: torch.device, start_update: int) -> list[ActorSetup]:
    """One setup per actor, with random streams of its own for this run, this resumption and this actor."""
    is_on_device = experiment.topology == "colocated" and isinstance(experiment.env, DeviceEnvironmentConfig)
    return [
        ActorSetup(
            index=index,
            environment=experiment.env,
            network=experiment.network,
            has_outer_critic=experiment.has_outer_critic,
            batch_size=experiment.environments // experiment.actors,
            rollout_length=experiment.rollout_length,
            lookahead=experiment.lookahead,
            seed=(experiment.seed, start_update, 0),
            device=str(device) if is_on_device else "cpu",
            threads=experiment.actor_threads,
        )
        for index in range(experiment.actors)
    ]


@contextmanager
def open_actors(
    experiment: BaseExperiment,
    setups: list[ActorSetup],
    states: list[State] | None,
    report: Callable[[str], None],
    make: Callable[[ActorSetup], Actor] = Actor,
) -> Iterator[Actors]:
    """The actors of a run, stopped on leaving; Ray is imported only where the topology asks for it."""
    if experiment.topology == "colocated":
        colocated = ColocatedActors(setups, states)
        try:
            yield colocated
        finally:
            colocated.close()
        return
    from cluster.ray_actors import RayActors
    from cluster.ray_session import ray_session

    with ray_session(experiment):
        remote = RayActors(setups, states, experiment.faults, report, make)
        try:
            yield remote
        finally:
            remote.close()


def restore(
    folder: RunFolder, experiment: BaseExperiment, algorithm: Algorithm[Any], report: Callable[[str], None]
) -> Restored:
    """The newest readable checkpoint of a run.

    Raises:
        ConfigurationError: there is none, or it is not of this experiment.
    """
    try:
        restored = restore_newest(folder.checkpoints)
    except NoCheckpoint as error:
        raise ConfigurationError(
            f"run-dir = {str(folder.path)!r}: {error}; start a new run in another folder"
        ) from error
    for line in restored.unreadable:
        report(f"checkpoint unreadable, using {restored.path.name} instead: {line}")
    check_fits(restored.path, restored.tree, experiment, algorithm)
    return restored


def check_fits(path: Path, tree: dict[str, Any], experiment: BaseExperiment, algorithm: Algorithm[Any]) -> None:
    """Refuse a checkpoint that this experiment cannot have written: one of another run, another version or no run.

    Raises:
        ConfigurationError: it is one.
    """
    missing = [part for part in CHECKPOINT_PARTS if part not in tree]
    wrong = missing[0] if missing else algorithm.misfit(tree["learner"])
    if wrong is None and len(tree["actors"]) != experiment.actors:
        wrong = "actors"
    rule = "is not as this run has it: the checkpoint is of another run or of another version of metagrad"
    require(wrong is None, "checkpoint", str(path), f"its {wrong} {rule}", "remove it, or restore the run's own")


@contextmanager
def _opened(
    folder: RunFolder,
    experiment: BaseExperiment,
    algorithm: Algorithm[Any],
    is_resumed: bool,
    report: Callable[[str], None],
) -> Iterator[Restored | None]:
    """The run's folder, with the checkpoint to continue from; a new one is given back if the run is refused."""
    if is_resumed:
        with folder.held():
            restored = restore(folder, experiment, algorithm, report)
            folder.open_resumed(experiment)
            yield restored
        return
    with folder.held():
        folder.open_new(experiment)
        try:
            yield None
        except ConfigurationError:  # a cluster that is too small or not there shows itself only now
            folder.withdraw()
            raise


def run(
    experiment: BaseExperiment,
    run_dir: Path,
    is_resumed: bool,
    console: Console,
    make: Callable[[ActorSetup], Actor] = Actor,
) -> dict[str, Any]:
    """Train one experiment in one folder; returns the summary that is also written there.

    Raises:
        ConfigurationError: before anything starts.
        Exception: whatever ended the run, unchanged; summary.json and checkpoints up to then stand.
    """
    device = resolve_device(experiment.device)
    spec = probe(experiment.env)
    algorithm = experiment.algorithm(spec)
    folder = RunFolder(run_dir)
    with (
        StopRequest() as stop,
        Progress(console, experiment.updates) as progress,
        _opened(folder, experiment, algorithm, is_resumed, progress.say) as restored,
    ):
        progress.say(f"run folder: {run_dir}")
        progress.begin(f"starting {experiment.actors} actors ({experiment.topology})")
        keep_freed_memory()
        torch.set_num_threads(experiment.learner_threads or len(os.sched_getaffinity(0)))
        if restored is None:
            state = algorithm.init(experiment.seed, device)
        else:
            state = algorithm.from_tree(restored.tree["learner"], device)
        setups = actor_setups(experiment, device, state.update)
        states = restored.tree["actors"] if restored is not None else None
        with (
            open_actors(experiment, setups, states, progress.say, make) as actors,
            _writer(folder, state.update) as write,
        ):
            training = Training(experiment, algorithm, state, actors, folder, write, progress)
            if restored is not None:
                training.load(restored.tree, state)
                progress.say(f"resumed from {restored.path} at update {state.update}")
                if restored.tree["device"] != device.type:
                    progress.say(
                        f"on {device.type} now, {restored.tree['device']} before: random streams of environments that "
                        "live there start afresh"
                    )
            try:
                training.run(stop)
            finally:
                summary = training.summary() | {"stopped_by": stop.signal_name}
                folder.write_summary(summary)
        if stop.signal_name is not None and training.state.update < experiment.updates:
            progress.say(f"stopped by {stop.signal_name} at update {training.state.update}; continue with --resume")
    return summary


@contextmanager
def _writer(folder: RunFolder, start_update: int) -> Iterator[Callable[[dict[str, float], int], None]]:
    from torch.utils.tensorboard import SummaryWriter  # imports slowly, and only runs need it

    with SummaryWriter(str(folder.path), purge_step=start_update + 1) as writer:

        def write(scalars: dict[str, float], update: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, update)

        yield write


def default_run_dir(experiment: BaseExperiment) -> Path:
    """runs/<experiment>-seed<seed>-<time>."""
    return Path("runs") / f"{experiment.name}-seed{experiment.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
