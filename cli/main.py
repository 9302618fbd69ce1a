"""The command line: metagrad list | train | reproduce | eval | plot | config | submit | status | logs | stop."""

import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from metagrad.cli.options import parse, resumed
from metagrad.cluster.config.commands import (
    EvalOptions,
    LogsOptions,
    PlanOptions,
    PlotOptions,
    ReproduceOptions,
    StatusOptions,
    StopOptions,
    SubmitOptions,
    TrainOptions,
    quoted,
    sibling,
)
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.extensions import load_extension, made, with_extensions
from metagrad.cluster.config.json_form import to_json
from metagrad.cluster.run.stop import StoppedBySignal, stopped_at_once
from metagrad.cluster.studies.reproduce import StudyStopped, default_folder, reproduce
from metagrad.cluster.studies.study import Study
from metagrad.errors import ConfigurationError, RunLost, printable, require
from metagrad.experiments import EXPERIMENTS, STUDIES
from metagrad.learner.storage import CannotWrite, lasting, location

_HELP = """\
usage: metagrad [--help] [--version] [--import FILE.py] COMMAND …

Distributed meta-gradient reinforcement learning.

commands:
  list                              the experiments and the studies, one line each
  train EXPERIMENT [--field value …]  train; writes a run folder, prints where it is
  reproduce STUDY [--seeds K] [--quick]  compute a study of a paper and its report; continues where it was stopped
  eval RUN_DIR [--episodes N]       play full episodes with a run's newest checkpoint
  plot RUN_DIR …                    compare runs: returns and learnt meta-parameters
  config EXPERIMENT [--field value …]  the resolved configuration as JSON
  plan EXPERIMENT [--field value …]  where a run's processes would go, what they would send, and how fast
  submit EXPERIMENT --address http://HEAD:8265 [--follow] [--field value …]  train as a job of a Ray cluster
  status [JOB]                      the jobs of a cluster, or one
  logs JOB [--follow]               what a job has printed
  stop JOB                          end a job after its update, with a checkpoint

metagrad COMMAND --help lists the options of a command; metagrad train EXPERIMENT --help all fields of an experiment.
--import adds the environments, losses, experiments and studies of a file of yours (docs/extending.md).\
"""


def _named(name: str, table: Mapping[str, Any], kind: str) -> None:
    """Refuse a name that `metagrad list` does not show."""
    close = difflib.get_close_matches(name, table, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(table)}"
    require(name in table, kind, name, f"is no {kind}", remedy)


def _experiments() -> dict[str, Callable[[], BaseExperiment]]:
    return with_extensions(EXPERIMENTS, "EXPERIMENTS", callable)


def _studies() -> dict[str, Study]:
    return with_extensions(STUDIES, "STUDIES", lambda entry: isinstance(entry, Study))


def experiment_named(name: str) -> BaseExperiment:
    """One of the experiments that `metagrad list` shows.

    Raises:
        ConfigurationError: no such experiment.
    """
    _named(name, _experiments(), "experiment")
    return made(name, _experiments()[name])


def study_named(name: str) -> Study:
    """One of the studies that `metagrad list` shows.

    Raises:
        ConfigurationError: no such study.
    """
    _named(name, _studies(), "study")
    return _studies()[name]


def _require_name(words: Sequence[str], command: str, kind: str, table: Mapping[str, Any]) -> None:
    require(
        bool(words) and not words[0].startswith("-"),
        kind,
        words[0] if words else "",
        f"metagrad {command} needs {'an' if kind[0] in 'aeiou' else 'a'} {kind}'s name first",
        f"choose one of {', '.join(table)}",
    )


def _split_experiment(words: Sequence[str], command: str) -> tuple[BaseExperiment, list[str]]:
    _require_name(words, command, "experiment", _experiments())
    return experiment_named(words[0]), list(words[1:])


def stored_experiment(run_dir: str, name: str) -> BaseExperiment:
    """The experiment of the run in a folder, which --resume's options are changes of.

    Raises:
        NoRun: the folder holds no run.
        ConfigurationError: it is of another experiment than the command line says, or cannot be read.
    """
    from metagrad.cluster.run.folder import RunFolder

    folder = RunFolder(run_dir)
    if not folder.has_run():
        raise NoRun(f"run-dir = {run_dir!r}: holds no run (no config.json); name a run's folder")
    stored = folder.experiment()
    rule = f"the run in {run_dir} is of {stored.name}"
    remedy = f"run metagrad train {quoted(stored.name)} --resume --run-dir {quoted(run_dir)}"
    require(stored.name == name, "experiment", name, rule, remedy)
    return stored


class NoRun(ConfigurationError):
    """A folder holds no run, as far as this machine can see."""


def list_command(words: Sequence[str]) -> None:
    """Print the experiments and the studies."""
    require(not words, "list", " ".join(words), "takes no options", "run metagrad list alone")
    experiments = {name: made(name, make).description for name, make in _experiments().items()}
    studies = {name: study.description for name, study in _studies().items()}
    width = max(map(len, [*experiments, *studies]))
    for command, table in (("train EXPERIMENT", experiments), ("reproduce STUDY", studies)):
        print(f"metagrad {command}")
        for name, description in table.items():
            print(f"  {name:<{width}}  {description}")


def config_command(words: Sequence[str]) -> None:
    """Print one experiment's resolved tree."""
    experiment, rest = _split_experiment(words, "config")
    resolved = parse(type(experiment), rest, experiment, f"metagrad config {experiment.name}")
    print(json.dumps(to_json(resolved), indent=2))


def train_command(words: Sequence[str]) -> None:
    """Train one experiment."""
    from metagrad.actors.record import has_pictures
    from metagrad.cluster.launch.launch import default_run_dir, run

    experiment, rest = _split_experiment(words, "train")
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
    run_dir = options.run_dir or str(default_run_dir(options.experiment))
    console = Console(stderr=False)
    summary = run(options.experiment, run_dir, options.resume, console)
    recorded = " --record" if has_pictures(options.experiment.env) else ""
    lines = (
        f"{summary['updates']} updates, {summary['frames_real']} real frames in {summary['wall_seconds']:.0f} s",
        f"run folder: {run_dir} (summary.json, config.json, checkpoints)",
        f"look at it: {quoted(sibling('tensorboard'))} --logdir {quoted(run_dir)}",
        f"play it:    {quoted(sibling('metagrad'))} eval {quoted(run_dir)}{recorded}",
    )
    print("\n".join(map(printable, lines if summary["updates"] else lines[:2])))  # else there is nothing to look at


def reproduce_command(words: Sequence[str]) -> None:
    """Compute one study and its report."""
    _require_name(words, "reproduce", "study", _studies())
    study = study_named(words[0])
    default = ReproduceOptions(seeds=study.seeds)
    options = parse(ReproduceOptions, words[1:], default, f"metagrad reproduce {study.name}")
    folder = default_folder(study, options.quick)
    if options.run_dir is not None:
        named = location(lasting(options.run_dir))
        require(isinstance(named, Path), "run-dir", options.run_dir, "a study's folder is a path", "name one")
        assert isinstance(named, Path)
        folder = named
    console = Console(stderr=False)
    length, patience = options.updates, options.wait_for_resources
    reproduce(study, folder, options.seeds, options.quick, options.topology, console, length, patience)


def eval_command(words: Sequence[str]) -> None:
    """Evaluate a run's newest checkpoint."""
    from metagrad.cluster.run.evaluation import evaluate_run

    require(
        bool(words) and (not words[0].startswith("-") or words[0] in ("-h", "--help")),
        "run-dir",
        words[0] if words else "",
        "metagrad eval needs a run's folder first",
        "name the folder that metagrad train printed",
    )
    options = parse(EvalOptions, words, None, "metagrad eval")
    run_dir = lasting(options.run_dir)
    how = (options.update, options.episodes, options.seed, options.greedy, options.record)
    with stopped_at_once():
        evaluate_run(run_dir, *how, options.output, options.max_steps)


def plot_command(words: Sequence[str]) -> None:
    """Compare runs in one picture."""
    from metagrad.cluster.run.plot import plot_runs

    options = parse(PlotOptions, words, None, "metagrad plot")
    require(bool(options.run_dirs), "run-dirs", "", "metagrad plot needs at least one run's folder", "name some")
    plot_runs([lasting(run_dir) for run_dir in options.run_dirs], options.output)
    print(f"written: {printable(options.output)}")


def plan_command(words: Sequence[str]) -> None:
    """Say how a run would be laid out."""
    from metagrad.cluster.plan.preview import plan

    experiment, rest = _split_experiment(words, "plan")
    options = parse(PlanOptions, rest, PlanOptions(experiment=experiment), f"metagrad plan {experiment.name}")
    plan(options.experiment, options.json)


def submit_command(words: Sequence[str]) -> int:
    """Train one experiment as a job of a Ray cluster."""
    from metagrad.cluster.jobs.jobs import submit, submit_words

    experiment, rest = _split_experiment(words, "submit")
    program = f"metagrad submit {experiment.name}"
    continued, parsed = resumed(rest), rest
    if continued.resume and continued.run_dir is not None:
        try:
            experiment = stored_experiment(continued.run_dir, experiment.name)
        except NoRun:  # on the cluster's own disk: there the job compares the fields with the run's
            parsed = submit_words(rest)
    return submit(parse(SubmitOptions, parsed, SubmitOptions(experiment=experiment), program), rest)


def status_command(words: Sequence[str]) -> None:
    """List the training jobs of a cluster, or show one."""
    from metagrad.cluster.jobs.jobs import status

    status(parse(StatusOptions, words, None, "metagrad status"))


def logs_command(words: Sequence[str]) -> int:
    """Show what a job has printed."""
    from metagrad.cluster.jobs.jobs import logs

    return logs(parse(LogsOptions, words, None, "metagrad logs"))


def stop_command(words: Sequence[str]) -> int:
    """Stop a job with a checkpoint."""
    from metagrad.cluster.jobs.jobs import stop

    return stop(parse(StopOptions, words, None, "metagrad stop"))


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "list": list_command,
    "train": train_command,
    "reproduce": reproduce_command,
    "eval": eval_command,
    "plot": plot_command,
    "config": config_command,
    "plan": plan_command,
    "submit": submit_command,
    "status": status_command,
    "logs": logs_command,
    "stop": stop_command,
}
_HAVE_NO_NAME_FIRST = ("eval", "plot", "status", "logs", "stop")  # their --help is their own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code.

    0 done, 1 a disk was full or Ray ended, 2 refused before anything started, 130 interrupted at once, 128 + the
    number of the signal that stopped a study or an evaluation. Any other fault keeps its traceback (exit code 1).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run_command(words)
    except (ConfigurationError, CannotWrite, RunLost) as error:  # of the last two, what was written before stands
        print(f"metagrad: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except StudyStopped as stopped:  # it has said so itself
        return stopped.exit_code
    except StoppedBySignal as stopped:
        print(f"metagrad: stopped by {stopped}; nothing is left half written", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # before a run listens for it, or a second time while one stops
        print("metagrad: interrupted", file=sys.stderr)
        return 130


def _run_command(words: list[str]) -> int:
    match words:
        case [] | ["--help" | "-h", *_]:
            print(_HELP)
        case _ if "--version" in words:
            print(version("metagrad"))
        case ["--import", *rest]:
            require(bool(rest), "import", "", "names no file", "metagrad --import FILE.py COMMAND …")
            load_extension(Path(rest[0]))
            return _run_command(rest[1:])
        case [command, *rest] if command in COMMANDS:
            if rest[:1] in (["--help"], ["-h"]) and command not in _HAVE_NO_NAME_FIRST:
                print(_HELP)
                list_command([])
            else:
                return COMMANDS[command](rest) or 0
        case [command, *_]:
            remedy = f"choose one of {', '.join(COMMANDS)}"
            raise ConfigurationError(f"command = {command!r}: is no command; {remedy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
