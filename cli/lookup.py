"""Find experiments and studies by the names that `metagrad list` shows, or by the run folder that holds one."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from metagrad.cli.shell import quoted
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.extensions import made, with_extensions
from metagrad.cluster.config.ruled import under_rule
from metagrad.cluster.studies.study import Study
from metagrad.errors import ConfigurationError, require
from metagrad.experiments import EXPERIMENTS, STUDIES


class NoRun(ConfigurationError):
    """A folder holds no run, as far as this machine can see."""


def experiments() -> dict[str, Callable[[], BaseExperiment]]:
    """Return the functions that make the experiments, those of --import files included."""
    return with_extensions(EXPERIMENTS, "EXPERIMENTS", callable)


def studies() -> dict[str, Study]:
    """Return the studies, those of --import files included."""
    return with_extensions(STUDIES, "STUDIES", lambda entry: isinstance(entry, Study))


def experiment_first(words: Sequence[str], command: str) -> tuple[BaseExperiment, list[str]]:
    """Return the experiment that the first word names, under the rule of `--rule FILE` if that follows, and the words.

    Raises:
        ConfigurationError: there is no such word, no such experiment, or no rule in the file.
    """
    table = experiments()
    name = _first_name(words, command, "experiment", table)
    experiment, rest = made(name, table[name]), list(words[1:])
    file = next((following for word, following in _pairs(rest) if word == "--rule"), None)
    return experiment if file is None else under_rule(experiment, file), rest


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with the word after it, or after its "="."""
    for word, following in pairwise([*words, ""]):
        name, is_given, value = word.partition("=")
        yield (name, value) if is_given else (word, following)


def study_first(words: Sequence[str], command: str) -> tuple[Study, list[str]]:
    """Return the study that the first word names, and the other words.

    Raises:
        ConfigurationError: there is no such word or no such study.
    """
    table = studies()
    return table[_first_name(words, command, "study", table)], list(words[1:])


def require_run_dir_first(words: Sequence[str], command: str) -> None:
    """Refuse words that do not begin with a run's folder, or ask for help.

    Raises:
        ConfigurationError: they do not.
    """
    first = words[0] if words else ""
    is_given = bool(words) and (not first.startswith("-") or first in ("-h", "--help"))
    remedy = "name the folder that metagrad train printed"
    require(is_given, "run-dir", first, f"metagrad {command} needs a run's folder first", remedy)


def _first_name(words: Sequence[str], command: str, kind: str, table: Mapping[str, Any]) -> str:
    name, article = words[0] if words else "", "an" if kind[0] in "aeiou" else "a"
    rule = f"metagrad {command} needs {article} {kind}'s name first"
    require(bool(name) and not name.startswith("-"), kind, name, rule, f"choose one of {', '.join(table)}")
    close = difflib.get_close_matches(name, table, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(table)}"
    require(name in table, kind, name, f"is not {article} {kind}", remedy)
    return name


def stored_experiment(run_dir: str, name: str) -> BaseExperiment:
    """Read the experiment of the run in a folder, which the options of --resume change.

    Raises:
        NoRun: the folder holds no run.
        ConfigurationError: it is of another experiment than the command line says, or cannot be read.
    """
    from metagrad.cluster.run.folder import RunFolder  # loads torch

    folder = RunFolder(run_dir)
    if not folder.has_run():
        raise NoRun(f"run-dir = {run_dir!r}: does not hold a run (no config.json); name a run's folder")
    stored = folder.experiment()
    rule = f"the run in {run_dir} is of {stored.name}"
    remedy = f"run metagrad train {quoted(stored.name)} --resume --run-dir {quoted(run_dir)}"
    require(stored.name == name, "experiment", name, rule, remedy)
    return stored
