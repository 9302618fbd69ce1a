"""Every option of every command with values that nobody means: one line and exit code 2, or the value as it was given.

What would start something (a run, a study, a cluster's answer, a game, a picture) is replaced where it begins.
"""

import contextlib
import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from metagrad.cli import main as cli
from metagrad.cli.commands import export
from metagrad.cli.commands.eval import EvalOptions
from metagrad.cli.commands.export import ExportOptions
from metagrad.cli.commands.logs import LogsOptions
from metagrad.cli.commands.plan import PlanOptions
from metagrad.cli.commands.plot import PlotOptions
from metagrad.cli.commands.reproduce import ReproduceOptions
from metagrad.cli.commands.status import StatusOptions
from metagrad.cli.commands.stop import StopOptions
from metagrad.cli.commands.submit import SubmitOptions
from metagrad.cli.commands.train import TrainOptions
from metagrad.cli.options import parse
from metagrad.cluster.jobs import client as job_client
from metagrad.cluster.launch import supervise
from metagrad.cluster.launch.open_run import OpenRun
from metagrad.cluster.plan import preview as plan
from metagrad.cluster.run import evaluation, plot
from metagrad.cluster.studies import reproduce as studies
from metagrad.experiments import EXPERIMENTS

pytestmark = pytest.mark.timeout(600)

ODD = (
    *("99999999999999999999", "-1", "nan", "", "1e23", "\x1b[31mred", "inf", "2147483648", "a\0b", "\udcff", "٣"),
    *("-inf", "x" * 5_000, "1.5", "0", "9223372036854775807", "'\"; $(id)", "two words", "None", "-", "True", "1_0"),
    *("../" * 2_000, "http://user:word@h:1", "s3://", "ünï\n", "-99999999999999999999", "1e-400", "0x10"),
)
Case = tuple[list[str], str, str]  # words, dotted field, the value that was given


class Started(BaseException):
    """Raised where a refused run is about to begin, or an accepted one has begun."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("odd") / "run"
    words = ("--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3", "--updates", "1")
    words += ("--topology", "colocated", "--learner-threads", "1", "--run-dir", str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(("train", "snake-6x6", *words)) == 0
    return folder


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep what was parsed last; nothing starts."""

    def started(*_words: object, **_named: object) -> None:
        raise Started

    monkeypatch.chdir(tmp_path)
    for place, name in (
        *(
            (supervise, "supervise"),
            (OpenRun, "colocated_training"),
            (studies, "_run_missing"),
            (evaluation, "evaluate"),
        ),
        *(
            (export, "trained_in"),
            (export, "trained_rule"),
            (plan, "measure"),
            (job_client, "JobClient"),
            (plot, "_picture"),
        ),
    ):
        monkeypatch.setattr(place, name, started)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    seen: list[Any] = []

    def recorded(*words: Any) -> Any:
        seen[:] = [parse(*words)]
        return seen[0]

    for name in set(cli.COMMANDS) - {"list"}:
        monkeypatch.setattr(f"metagrad.cli.commands.{name}.parse", recorded)
    return seen


def options_of(config: object, prefix: str = "") -> Iterator[tuple[type, str, Any]]:
    """Yield where each option is declared, its dotted name and its value."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options_of(value, "" if field.name == "experiment" else f"{prefix}{field.name}.")
        elif field.name not in ("name", "description", "run_dirs", "job"):  # no options
            yield type(config), f"{prefix}{field.name}", value


def cases(words: Sequence[str], options: object, odd: Iterator[str], seen: set[object]) -> Iterator[Case]:
    for kind, field, value in options_of(options):
        if (kind, field.rpartition(".")[2]) in seen:
            continue
        seen.add((kind, field.rpartition(".")[2]))
        option = f"--{field.replace('_', '-')}"
        if isinstance(value, bool):
            option = option if not value else option.replace("--", "--no-", 1).replace("--no-", "--", 1)
            yield [*words, f"{option}=1"], field, ""
            continue
        word = next(odd)
        yield [*words, *((f"{option}={word}",) if len(seen) % 2 else (option, word))], field, word
        if len(seen) % 3 == 0:
            yield [*words, option], field, ""


def is_as_given(value: Any, word: str) -> bool:
    """True for the value that this word says."""
    if value is None:
        return word == "None"
    if isinstance(value, tuple):
        return (word == "" and not value) or (len(value) == 1 and is_as_given(value[0], word))
    if isinstance(value, float):
        return float(word) == value or (math.isnan(value) and math.isnan(float(word)))
    return type(value)(word) == value


def complaint_of(case: Case, parsed: list[Any], folder: Path) -> str:
    """Return what is wrong with how a command took it; empty for nothing."""
    words, field, word = case
    before = sorted(folder.rglob("*"))
    parsed.clear()
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words)
    except Started:
        value = parsed[0]
        for name in field.split("."):
            value = getattr(value, name) if hasattr(value, name) else getattr(value.experiment, name)
        return "" if is_as_given(value, word) else f"is taken for {value!r}"
    except BaseException as error:
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    lines = err.getvalue().splitlines()
    if code == 0 and words[0] == "config":
        return ""
    if code != 2 or len(lines) != 1 or not lines[0].startswith("metagrad: ") or out.getvalue():
        return f"ends with {code} and {lines[:3]}, {out.getvalue()[:100]!r}"
    if not lines[0].isprintable() or len(lines[0]) > 1_000:
        return f"is refused in {len(lines[0])} characters: {lines[0][:200]!r}"
    return "" if sorted(folder.rglob("*")) == before else "leaves something behind"


def cases_of_names(word: str) -> list[Case]:
    """A word in the place of a command, an experiment, a study, a run, a job or a file."""
    found = [([word, "demo"], "", word), (["--import", word, "list"], "", word), (["list", word], "", word)]
    found += [([command, word], "", word) for command in ("train", "config", "plan", "submit", "reproduce")]
    found += [([command, word], "", word) for command in ("eval", "export", "plot")]
    found += [([command, word, "--address", "http://u:p@h:1"], "", word) for command in ("status", "logs", "stop")]
    return found


def check(found: Sequence[Case], parsed: list[Any], folder: Path) -> None:
    assert found
    complaints = [(case[0], complaint_of(case, parsed, folder)) for case in found]
    wrong = [f"{[word[:60] for word in words]} {complaint}" for words, complaint in complaints if complaint]
    assert not wrong, "\n".join(wrong)


def cases_by_experiment() -> dict[str, list[Case]]:
    """By where a field is declared: one that many experiments have is tried with the first."""
    odd, seen = itertools.cycle(ODD), set[object]()
    return {
        name: list(cases(["train", name, "--run-dir", "out"], make(), odd, seen)) for name, make in EXPERIMENTS.items()
    }


CASES = cases_by_experiment()


def test_values_enough() -> None:
    assert sum(map(len, CASES.values())) >= 150
    assert sum(len(cases_of_names(word)) for word in ODD) >= 300


@pytest.mark.thinned(5)
@pytest.mark.parametrize(
    ("name", "part"), [(name, i) for name, found in CASES.items() for i in range(min(3, len(found)))]
)
def test_every_field_of_every_experiment(name: str, part: int, parsed: list[Any], tmp_path: Path) -> None:
    check(CASES[name][part::3], parsed, tmp_path)


@pytest.mark.parametrize(
    "command", ["train", "submit", "plan", "reproduce", "eval", "export", "plot", "status", "logs", "stop"]
)
def test_every_option_of_every_command(
    command: str, parsed: list[Any], tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["metagrad"])
    demo, url, run = EXPERIMENTS["demo"](), "http://h:1", str(trained)
    words, options = {
        "train": (["demo", "--run-dir", "out"], TrainOptions(experiment=demo)),
        "submit": (["demo", "--address", url], SubmitOptions(experiment=demo)),
        "plan": (["demo"], PlanOptions(experiment=demo)),
        "reproduce": (["mrp", "--run-dir", "study"], ReproduceOptions(seeds=2)),
        "eval": ([run, "--output", "out.json"], EvalOptions(run_dir=run)),
        "export": ([run, "--output", "out.pt2"], ExportOptions(run_dir=run)),
        "plot": ([run], PlotOptions(run_dirs=(run,))),
        "status": (["--address", url], StatusOptions()),
        "logs": (["one", "--address", url], LogsOptions()),
        "stop": (["one", "--address", url], StopOptions()),
    }[command]
    of_the_experiment = {(kind, field.rpartition(".")[2]) for kind, field, _ in options_of(demo)}
    odd, found = itertools.cycle(ODD), list[Case]()
    found += cases([command, *words], options, odd, set(of_the_experiment))
    found += [([command, *words, f"--no-such-{number}", word], "", word) for number, word in enumerate(ODD[:8])]
    check(found, parsed, tmp_path)


@pytest.mark.parametrize("word", ODD)
def test_names_that_come_first(word: str, parsed: list[Any], tmp_path: Path) -> None:
    check(cases_of_names(word), parsed, tmp_path)
