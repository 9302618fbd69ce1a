"""A part of a deep study is one training run in a folder of its own, and evaluations of its checkpoints.

A part that is interrupted goes on from the run's newest checkpoint when the study is continued: where environments can
be snapshot the curves are then bitwise those of an uninterrupted run.
"""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from rich.console import Console

from metagrad.actors.evaluate import EvaluationResult, evaluate
from metagrad.actors.rollout import probe
from metagrad.cluster.config.experiment import BaseExperiment, CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.learner.checkpoint import load, paths, update_of
from metagrad.learner.storage import remove

Curve = dict[str, list[int] | list[float]]  # "updates" and "values"
Policy = Literal["sampled", "greedy"]
AnyExperiment = TypeVar("AnyExperiment", bound=BaseExperiment)


def train(experiment: BaseExperiment, folder: Path) -> dict[str, Any]:
    """Train in `folder`, or go on with what is there; returns the summary.

    It goes on from a regular checkpoint, after a multiple of `checkpoint.every` updates, since a study evaluates and
    probes all that there are. A signal that stops the run is raised again once its checkpoint is written: the study has
    to know of it.
    """
    for path in paths(folder / "checkpoints"):
        if update_of(path) < experiment.updates and update_of(path) % experiment.checkpoint.every:
            remove(path)
    is_resumed = bool(paths(folder / "checkpoints"))
    if folder.exists() and not is_resumed:  # ended before its first checkpoint
        shutil.rmtree(folder)
    summary = run(experiment, folder, is_resumed, Console(file=StringIO()))
    if summary["stopped_by"] is not None:
        signal.raise_signal(signal.Signals[summary["stopped_by"]])
    return summary


def curves(folder: Path, names: tuple[str, ...]) -> dict[str, Curve]:
    """Return what a run logged under these names, by name; without those that it did not log."""
    logged = logged_scalars(folder)
    return {name: _curve(*(x.tolist() for x in logged[name])) for name in names if name in logged}


def _curve(updates: list[int], values: list[float]) -> Curve:
    return {"updates": updates, "values": [float(f"{x:.7g}") for x in values]}


def checkpoints(experiment: BaseExperiment, folder: Path) -> dict[int, dict[str, Any]]:
    """Return learner states by update, update 0 included, which is not stored: every checkpoint has its `to_tree`."""
    algorithm = experiment.algorithm(probe(experiment.env))
    start = algorithm.to_tree(algorithm.init(experiment.seed, torch.device("cpu")))
    return {0: start} | {update_of(path): load(path)["learner"] for path in paths(folder / "checkpoints")}


def evaluations(
    experiment: BaseExperiment, folder: Path, episodes: int, policies: tuple[Policy, ...] = ("sampled",)
) -> dict[Policy, Curve]:
    """Return mean raw returns of full-life episodes of every checkpoint, by policy; all of them play the same games."""
    algorithm, device = experiment.algorithm(probe(experiment.env)), torch.device("cpu")
    states = {update: algorithm.from_tree(tree, device) for update, tree in checkpoints(experiment, folder).items()}
    network = algorithm.network
    assert network is not None, "the run has a policy"

    def score(theta: torch.Tensor, policy: Policy) -> float:
        seed, is_greedy = experiment.seed + 1_000, policy == "greedy"
        return evaluate(network, theta, experiment.env, episodes, seed, is_greedy, device, 1).mean

    return {
        policy: _curve(list(states), [score(state.theta, policy) for state in states.values()]) for policy in policies
    }


def evaluate_newest(experiment: BaseExperiment, folder: Path, episodes: int) -> EvaluationResult:
    """Play full-life episodes under the sampled policy of the newest checkpoint: the same games as in `evaluations`."""
    algorithm, device = experiment.algorithm(probe(experiment.env)), torch.device("cpu")
    theta = algorithm.from_tree(load(paths(folder / "checkpoints")[-1])["learner"], device).theta
    network = algorithm.network
    assert network is not None, "the run has a policy"
    return evaluate(network, theta, experiment.env, episodes, experiment.seed + 1_000, False, device, 1)


def part_run(
    experiment: AnyExperiment, settings: Settings, log_every: int, checkpoint_every: int, keep: int = 1_000, **more: Any
) -> AnyExperiment:
    """Return a part's training run: seed and sizes are its settings', and it is colocated on one thread."""
    own = {name: settings[name] for name in ("seed", "updates", "environments", "rollout_length") if name in settings}
    return replace(
        experiment,
        **own,
        actors=1,
        topology="colocated",
        learner_threads=1,
        log_every=log_every,
        checkpoint=CheckpointConfig(every=checkpoint_every, keep=keep),
        **more,
    )


def trained(experiment: BaseExperiment, folder: Path) -> Result:
    """Train in `folder`; return "wall_seconds", "frames_real" and "frames_lookahead" of the training."""
    summary = train(experiment, folder)
    return {name: summary[name] for name in ("wall_seconds", "frames_real", "frames_lookahead")}


def training_study(
    name: str,
    description: str,
    parts: Callable[..., dict[str, Settings]],
    run_part: Callable[..., Result],
    report: Callable[..., None],
    *,
    seeds: int,
    updates: int | None = None,
) -> Study:
    """Return a study whose parts are training runs, which go on from the work that they left."""
    return Study(
        name=name,
        description=description,
        seeds=seeds,
        parts=parts,
        updates=updates,
        run_part=run_part,
        keeps_work=True,
        report=report,
    )
