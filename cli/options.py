"""Parse command-line words into frozen dataclasses with tyro, and turn its complaints into one line each."""

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.variables import environment_variables
from metagrad.errors import ConfigurationError, require
from metagrad.meta_parameters import MetaParameter
from metagrad.optimizers import LearningRate

T = TypeVar("T")
AllFields = Annotated[BaseExperiment, tyro.conf.arg(name="")]
"""An experiment in a command's options: its fields are options of the command, without a prefix."""
_CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
_CHOSEN = ("--actors", "--learners")  # which may be auto
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _learning_rate(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[LearningRate] | None:
    """Take a number for a step size, whatever else it can be: bounds of a learnt one stand in a file."""
    if info.type != LearningRate:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: float(words[0]),
        is_instance=lambda value: isinstance(value, float | MetaParameter),
        str_from_instance=lambda value: [str(value)],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Holds the option of every command that talks to a cluster's dashboard."""

    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; None: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions(ClusterOptions):
    """Holds the options of every command about a job."""

    job: tyro.conf.Positional[str] = ""
    """The job's id, which `metagrad status` lists."""

    def require_job(self, command: str) -> None:
        """Refuse a command that needs a job's id and was given none."""
        rule = f"metagrad {command} needs a job's id first"
        require(bool(self.job), "job", self.job, rule, "metagrad status lists them")


def parse(kind: type[T], words: Sequence[str], default: T | None, program: str) -> T:
    """Make an instance of `kind` from `--field value` words; `--help` prints and exits.

    Raises:
        ConfigurationError: an unknown field, a value of the wrong type or one that its dataclass refuses.
    """
    words = [_python_name(word) for word in words]
    complaint, output = io.StringIO(), io.StringIO()
    try:
        # Wide enough that no complaint is wrapped; help is laid out again below.
        wide = environment_variables({"COLUMNS": "10000"})
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(output), wide:
            return _tyro(kind, words, default, program)
    except SystemExit as stop:
        if not stop.code:
            return _tyro(kind, words, default, program)  # help: printed at the terminal's own width, exits with 0
    raise ConfigurationError(_one_line(complaint.getvalue(), words, program))


@dataclass(frozen=True, slots=True)
class Resumed:
    """Names the run that a command continues, if any."""

    run_dir: str | None = None
    resume: bool = False


def resumed(words: Sequence[str]) -> Resumed:
    """Read --run-dir and --resume alone: the other words can be parsed only when the run's experiment is known."""
    others = [word for word in words if word not in ("--help", "-h")]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(Resumed, args=others, config=_CONFIG, return_unknown_args=True)[0]
    except SystemExit:  # --run-dir without a value: the command's own options say so
        return Resumed()


def without_auto(words: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Return the words without `--actors auto` and `--learners auto`, which are no numbers, and which fields these are.

    >>> without_auto(["--seed", "1", "--actors", "auto"])
    (['--seed', '1'], frozenset({'actors'}))
    """
    kept: list[str] = []
    found: set[str] = set()
    for word in words:
        option, _, value = word.partition("=")
        if word == "auto" and kept and kept[-1] in _CHOSEN:
            found.add(kept.pop())
        elif value == "auto" and option in _CHOSEN:
            found.add(option)
        else:
            kept.append(word)
    return kept, frozenset(option.removeprefix("--") for option in found)


def _tyro(kind: type[T], words: Sequence[str], default: T | None, program: str) -> T:
    if default is None:
        return tyro.cli(kind, args=words, prog=program, config=_CONFIG, registry=_REGISTRY)
    return tyro.cli(kind, args=words, prog=program, config=_CONFIG, registry=_REGISTRY, default=default)


def _python_name(word: str) -> str:
    """Spell `--outer.lambda` as the dataclass does (lambda is a keyword)."""
    field, is_given, value = word.partition("=")
    if not field.startswith("--"):
        return word
    return re.sub(r"(?<=[.-])lambda(?=$|\.)", "lambda_", field) + is_given + value


def _one_line(complaint: str, words: Sequence[str], program: str) -> str:
    """Extract field, value, rule and remedy from tyro's panel."""
    lines = [line.strip(" │|") for line in complaint.splitlines()]
    body = [line for line in lines if line and not set(line) <= set("-─╭╮╰╯ ")]
    text = next((line for line in body[1:]), complaint.strip())
    remedy = f"see {program} --help"
    if match := re.match(r"Unrecognized options?: ([^\s,]+)", text):
        field = match.group(1)
        if not field.startswith("-"):
            return f"{_masked(field)!r}: does not belong to any option; {remedy}"
        known = re.findall(r"--[\w.-]+", "\n".join(body[2:]))
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{field.lstrip('-')} = {_value_of(field, words)!r}: is not an option of this command; {hint}{remedy}"
    if match := re.match(r"Error parsing (--\S+): (.*)", text):
        field, rule = match.groups()
        return f"{field.lstrip('-')} = {_value_of(field, words)!r}: {rule}; {remedy}"
    if match := re.match(r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", text):
        value, field, choices = match.groups()
        return f"{field.lstrip('-')} = {value}: must be one of {choices.rstrip(',')}; {remedy}"
    if match := re.match(r"Error parsing ([\w.-]+): (.*)", text):
        return _placed(*match.groups())
    return f"{text}; {remedy}"


def _placed(place: str, refusal: str) -> str:
    """Give a dataclass's refusal its field's whole dotted name: it knows its own fields, tyro knows where it sits."""
    field, _, rest = refusal.partition(" = ")
    place = re.sub(r"^\w*[Ee]xperiment\.?", "", place).replace("-", "_")  # the root is called by field or by type
    owner = place.rpartition(".")[2]
    if "*" in field:
        field = f"{place}.{field.rpartition('.')[2]}"
    elif owner:
        field = f"{place}.{field.removeprefix(owner + '.')}"
    return f"{field} = {rest}"


def _value_of(field: str, words: Sequence[str]) -> str:
    """Return what the command line gave for a field."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == field or word.startswith(f"{field}="):
            value = following if word == field else word.partition("=")[2]
            return _masked(value)
    return ""


def _masked(value: str) -> str:
    """Hide the value of a variable (NAME=VALUE), which may be a secret."""
    return re.sub(r"(?s)^([A-Za-z_]\w*)=.*", r"\1=…", value)
