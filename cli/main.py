"""Dispatch `metagrad COMMAND` to the module of metagrad.cli.commands that has the command's name."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import metagrad.experiments  # noqa: F401 - so that --import refuses the names that configurations of ours have
from metagrad.cluster.config.extensions import load_extension
from metagrad.cluster.run.stop import StoppedBySignal
from metagrad.cluster.studies.reproduce import StudyStopped
from metagrad.errors import ConfigurationError, RunLost, require
from metagrad.learner.storage import CannotWrite

_HELP = """\
usage: metagrad [--help] [--version] [--import FILE.py] COMMAND …

Distributed meta-gradient reinforcement learning.

commands:
  list                list the experiments and the studies, one line each
  train EXPERIMENT [--rule FILE] [--field value …]
                      train, write a run folder and print where it is; with --rule by the learnt update rule in FILE
  reproduce STUDY [--seeds K] [--quick]
                      compute a study of a paper and its report; rerun the command to resume
  sweep EXPERIMENT --grid FIELD=VALUE,VALUE … [--seeds K]
                      train under many settings and seeds; rerun the command to resume
  eval RUN_DIR [--episodes N]
                      play full episodes with a run's newest checkpoint
  export RUN_DIR --output policy.pt2
                      write the policy to a file for torch or ONNX
  plot RUN_DIR …      compare runs: returns and learnt meta-parameters
  config EXPERIMENT [--field value …]
                      print the resolved configuration as JSON
  plan EXPERIMENT [--field value …]
                      preview where a run's processes would go, what they would send, and how fast
  submit EXPERIMENT --address http://HEAD:8265 [--follow] [--field value …]
                      train as a job of a Ray cluster
  status [JOB]        show the jobs of a cluster, or one of them
  logs JOB [--follow] print what a job has printed
  stop JOB            end a job after its current update, with a checkpoint

metagrad COMMAND --help lists the options of a command, metagrad train EXPERIMENT --help all fields of an experiment.
--import adds the environments, losses, experiments and studies of a file of yours (docs/extending.md).\
"""

COMMANDS = (
    "list",
    "train",
    "reproduce",
    "sweep",
    "eval",
    "export",
    "plot",
    "config",
    "plan",
    "submit",
    "status",
    "logs",
    "stop",
)
"""Each is a module of metagrad.cli.commands, imported when it is called: most import much that others do without."""
Command = Callable[[Sequence[str]], int | None]
_HAVE_NO_NAME_FIRST = ("eval", "export", "plot", "status", "logs", "stop")  # their --help is their own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with exit_code() as code:
        command, words = command_of(sys.argv[1:] if arguments is None else arguments)
        code.value = command(words) or 0
    return code.value


@dataclass(slots=True)
class ExitCode:
    """Holds what a command ends with."""

    value: int = 0


@contextmanager
def exit_code() -> Iterator[ExitCode]:
    """Turn faults that are told in one line into an exit code.

    It is 0 when the command is done, 1 if a disk was full or Ray ended, 2 if it was refused before anything started,
    130 if it was interrupted at once, and 128 + its number if a signal stopped a study or an evaluation. Any other
    fault keeps its traceback (exit code 1).
    """
    code = ExitCode()
    try:
        yield code
    except (ConfigurationError, CannotWrite, RunLost) as error:  # of the last two, what was written before stands
        print(f"metagrad: {error}", file=sys.stderr)
        code.value = 2 if isinstance(error, ConfigurationError) else 1
    except StudyStopped as stopped:  # it has said so itself
        code.value = stopped.exit_code
    except StoppedBySignal as stopped:
        print(f"metagrad: stopped by {stopped}; nothing is left half written", file=sys.stderr)
        code.value = stopped.exit_code
    except KeyboardInterrupt:  # before a run listens for it, or a second time while one stops
        print("metagrad: interrupted", file=sys.stderr)
        code.value = 130


def command_of(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command that these words name and the words that are its own, and load the files of --import.

    Raises:
        ConfigurationError: there is no such command, or a file that cannot be loaded.
    """
    match list(words):
        case [] | ["--help" | "-h", *_]:
            return _print_help, []
        case every if "--version" in every:
            return _print_version, []
        case ["--import", *rest]:
            require(bool(rest), "import", "", "does not name a file", "metagrad --import FILE.py COMMAND …")
            load_extension(Path(rest[0]))
            return command_of(rest[1:])
        case [name, "--help" | "-h", *_] if name in COMMANDS and name not in _HAVE_NO_NAME_FIRST:
            print(_HELP)
            return _command("list"), []
        case [name, *rest] if name in COMMANDS:
            return _command(name), rest
        case [name, *_]:
            raise ConfigurationError(f"command = {name!r}: is not a command; choose one of {', '.join(COMMANDS)}")
    raise AssertionError(words)


def _command(name: str) -> Command:
    command: Command = import_module(f"metagrad.cli.commands.{name}").run
    return command


def _print_help(_words: Sequence[str]) -> None:
    print(_HELP)


def _print_version(_words: Sequence[str]) -> None:
    print(version("metagrad"))


if __name__ == "__main__":
    sys.exit(main())
