"""Train, or continue a run, and say where the results are: `metagrad train EXPERIMENT`."""

import dataclasses
from collections.abc import Sequence, Set

from rich.console import Console

from metagrad.cli.lookup import experiment_first, stored_experiment
from metagrad.cli.options import AllFields, parse, resumed, without_auto
from metagrad.cli.shell import print_lines, quoted, sibling
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch.launch import default_run_dir
from metagrad.cluster.launch.launch import run as train
from metagrad.errors import counted, require
from metagrad.learner.storage import lasting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Train one experiment. Every field of the experiment is an option."""

    experiment: AllFields
    run_dir: str | None = None
    """The run's folder, a path or a URL such as s3://…; None: runs/EXPERIMENT-seedS-TIME-RANDOM."""
    resume: bool = False
    """Continue the run in --run-dir from its newest checkpoint, for instance with more --updates or another device."""


def run(words: Sequence[str]) -> None:
    """Train one experiment."""
    experiment, rest = experiment_first(words, "train")
    rest, chosen_fields = without_auto(rest)
    program = f"metagrad train {experiment.name}"
    continued = resumed(rest)
    if continued.run_dir is not None:
        lasting(continued.run_dir)
    if continued.resume:
        run_dir = continued.run_dir
        require(run_dir is not None, "run-dir", None, "--resume needs the folder to continue", "add --run-dir DIR")
        assert run_dir is not None
        experiment = stored_experiment(run_dir, experiment.name)
    options = parse(TrainOptions, rest, TrainOptions(experiment=experiment), program)
    experiment = _with_chosen(options, chosen_fields) if chosen_fields else options.experiment
    run_dir = options.run_dir or str(default_run_dir(experiment))
    summary = train(experiment, run_dir, options.resume, Console(stderr=False))
    updates = counted(summary["updates"], "update")
    lines = (
        f"{updates}, {summary['frames_real']} real frames in {summary['wall_seconds']:.0f} s",
        f"run folder: {run_dir} (summary.json, config.json, checkpoints)",
        f"look at it: {quoted(sibling('tensorboard'))} --logdir {quoted(run_dir)}",
        _what_next(experiment, run_dir),
    )
    print_lines(lines if summary["updates"] else lines[:2])  # else there is nothing to look at


def _what_next(experiment: BaseExperiment, run_dir: str) -> str:
    """Say how to use what was learnt."""
    command = quoted(sibling("metagrad"))
    if not experiment.has_policy:
        return f"keep it:    {command} export {quoted(run_dir)} --output rule.npz"
    recorded = " --record" if experiment.env.has_pictures else ""
    return f"play it:    {command} eval {quoted(run_dir)}{recorded}"


def _with_chosen(options: TrainOptions, fields: Set[str]) -> BaseExperiment:
    """Choose learners, and actors of a run that begins, and say which."""
    rule = "chooses for a run that begins, and this one keeps the actors that it has"
    require(not options.resume or "actors" not in fields, "actors", "auto", rule, "leave it out")
    from metagrad.cluster.plan.preview import with_chosen  # loads torch

    chosen = with_chosen(options.experiment, fields)
    print_lines([f"chosen: {reason}" for reason in chosen.reasons])
    return chosen.experiment
