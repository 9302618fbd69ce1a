import dataclasses
import json
import os
import re
import shutil
import signal
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from metagrad.cli.main import COMMANDS, main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import from_json
from metagrad.cluster.studies.study import Study
from metagrad.experiments import EXPERIMENTS, STUDIES

Capture = pytest.CaptureFixture[str]
TINY = (
    *("--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3", "--updates", "4"),
    *("--topology", "colocated", "--learner-threads", "1"),
)


TOY = Study(
    name="toy-study",
    description="A study of toys.",
    seeds=3,
    parts=lambda seeds, is_quick: {f"seed-{seed}": {"seed": seed, "is_quick": is_quick} for seed in range(seeds)},
    run_part=lambda settings: settings,
    report=lambda folder, parts, is_quick: (folder / "report.md").write_text(f"{len(parts)} {is_quick}"),  # type: ignore[arg-type, return-value]
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, no GPU, and a Ray that must not be started."""

    def started(*_args: object, **_options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STUDIES, "toy-study", TOY)
    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(words: Sequence[str], expected: str, workplace: Path, capsys: Capture) -> None:
    """Exit code 2, one line with `expected` on stderr, nothing on stdout, no file made or changed."""
    before = files(workplace)
    folders = sorted(path for path in workplace.rglob("*") if path.is_dir())
    assert main(words) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert re.match(rf"^metagrad: {expected}", lines[0]), lines[0]
    assert ";" in lines[0], "no remedy"
    assert output.out == ""
    assert files(workplace) == before
    assert sorted(path for path in workplace.rglob("*") if path.is_dir()) == folders


SNAKE, ATARI = ("train", "snake-6x6"), ("train", "atari")
REPRODUCE = ("reproduce", "toy-study", "--topology", "colocated")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trian", "demo"), r"command = 'trian': is not a command; choose one of list, train"),
        (("train",), r"experiment = '': metagrad train needs an experiment's name first; choose one of demo"),
        (("config",), r"experiment = '': "),
        (("eval",), r"run-dir = '': "),
        (("train", "--seed", "1"), r"experiment = '--seed': "),
        (("train", "snake-6x7"), r"experiment = 'snake-6x7': is not an experiment; did you mean snake-6x6\?"),
        (("train", "go"), r"experiment = 'go': is not an experiment; choose one of demo, "),
        (("list", "demo"), r"list = 'demo': takes no options"),
        ((*SNAKE, "--actors", "0"), r"actors = 0: "),
        ((*SNAKE, "--environments", "7"), r"environments = 7: must be a positive multiple of actors = 2; use .* 8"),
        ((*SNAKE, "--rollout-length", "0"), r"rollout_length = 0: "),
        ((*SNAKE, "--updates", "0"), r"updates = 0: "),
        ((*SNAKE, "--updates", "1e3"), r"updates = '1e3': "),
        ((*SNAKE, "--seed", "-1"), r"seed = -1: "),
        ((*SNAKE, "--seed", "1.5"), r"seed = '1.5': "),
        (("train", "ipd", "--schedule", "peek"), r"schedule = 'peek': needs losses .*; use lockstep"),
        (
            ("train", "lirpg-snake", "--schedule", "peek"),
            r"meta_parameters = 'IntrinsicRewardLoss': has no losses",
        ),
        (
            ("train", "lirpg-snake", "--reuse", "2"),
            r"meta_parameters = 'IntrinsicRewardLoss': has no losses .* --reuse need; use --reuse 1",
        ),
        ((*SNAKE, "--reuse", "2", "--updates", "5"), r"updates = 5: reuse = 2 updates are made of each batch; .* 6"),
        ((*SNAKE, "--minibatches", "0"), r"minibatches = 0: must lie between 1 and environments = .*"),
        (
            (*SNAKE, "--minibatches", "4", "--reuse", "2", "--updates", "12"),
            r"updates = 12: reuse x minibatches = 8 updates are made of each batch; use --updates 16",
        ),
        ((*SNAKE, "--minibatches", "2", "--learners", "2", "--actors", "2"), r"minibatches = 2: does not go with sev"),
        (
            ("train", "atari-released", "--minibatches", "2"),
            r"minibatches = 2: does not go with --meta.strategy sequential",
        ),
        ((*SNAKE, "--max-lag", "9"), r"max_lag = 9: belongs to --schedule peek"),
        ((*SNAKE, "--schedule", "peek", "--max-lag", "1"), r"max_lag = 1: .*; use 2 or more"),
        ((*SNAKE, "--ratio-clip", "1"), r"ratio_clip = 1.0: belongs to --schedule peek"),
        ((*SNAKE, "--schedule", "peek", "--ratio-clip", ".5"), r"ratio_clip = 0.5: must lie in \[1, 1,000,000\]"),
        (
            ("train", "stacx", "--schedule", "peek", "--ratio-clip", "1"),
            r"ratio_clip = 1.0: .*VtraceLoss has its own; set those of meta_parameters",
        ),
        (
            (*SNAKE, "--schedule", "peek", "--lookahead", "fork"),
            r"lookahead = 'fork': does not go with --schedule peek",
        ),
        ((*SNAKE, "--learner-cpus", "0"), r"learner_cpus = 0: "),
        (
            (*SNAKE, "--topology", "colocated", "--learner-restarts", "1"),
            r"learner_restarts = 1: .*; use --topology ray",
        ),
        ((*SNAKE, "--evaluation.every", "-1"), r"evaluation.every = -1: "),
        ((*SNAKE, "--evaluation.episodes", "8"), r"evaluation.episodes = 8: .*; set evaluation.every"),
        ((*SNAKE, "--meta.n", "-1"), r"meta.n = -1: "),
        ((*SNAKE, "--meta.n"), r".*--meta.n"),
        ((*SNAKE, "--meta.nn", "3"), r"meta.nn = '3': is not an option of this command; did you mean --meta.n\?"),
        ((*SNAKE, "--meta.kappa", "0.5"), r"meta.kappa = 0.5: belongs to --meta.estimator mix; leave it out"),
        ((*SNAKE, "--meta.estimator", "mix", "--meta.kappa", "0"), r"meta.kappa = 0.0: must lie in \(0, 1\]"),
        ((*SNAKE, "--meta.surrogate", "dice"), r"meta.surrogate = 'dice': must be one of "),
        ((*SNAKE, "--meta.strategy", "sequential", "--meta.n", "0"), r"meta.strategy = 'sequential': "),
        (
            (*SNAKE, "--meta.strategy", "sequential", "--meta.n", "3", "--updates", "100"),
            r"updates = 100: .* use --updates 99",
        ),
        ((*SNAKE, "--meta.bootstrap.updates", "-1"), r"meta.bootstrap.updates = -1: must be 0 \(no target\) or more"),
        (
            (*SNAKE, "--meta.bootstrap.updates", "1", "--meta.n", "0"),
            r"meta.bootstrap.updates = 1: needs meta.n >= 1 updates that the target is beyond; raise meta.n",
        ),
        (
            (*SNAKE, "--meta.bootstrap.updates", "1", "--meta.estimator", "mix"),
            r"meta.bootstrap.updates = 1: has one target.*; use --meta.estimator n-step",
        ),
        (
            (*SNAKE, "--meta.bootstrap.direction", "online||target"),
            r"meta.bootstrap.direction = 'online\|\|target': has no effect without a bootstrapped target; ",
        ),
        ((*SNAKE, "--meta.bootstrap.value-coefficient", "1"), r"meta.bootstrap.value_coefficient = 1.0: has no effect"),
        ((*SNAKE, "--optimizer.learning-rate", "0"), r"optimizer.learning_rate = 0.0: "),
        ((*SNAKE, "--optimizer.decay", "1"), r"optimizer.decay = 1.0: "),
        ((*SNAKE, "--meta.optimizer.learning-rate", "nan"), r"meta.optimizer.learning_rate = nan: "),
        ((*SNAKE, "--outer.lambda", "1.5"), r"outer.lambda = 1.5: "),
        ((*SNAKE, "--meta-parameters.gamma.initial", "1"), r"meta_parameters.gamma.initial = 1.0: "),
        ((*SNAKE, "--env.rows", "0"), r"env.rows = 0: "),
        ((*SNAKE, "--env.game", "Pong"), r"env.game = 'Pong': is not an option"),
        ((*SNAKE, "--network.channels", "0"), r"network.channels = 0: "),
        ((*SNAKE, "--topology", "local"), r"topology = 'local': must be one of 'ray', 'colocated'"),
        ((*SNAKE, "--device", "cuda"), r"device = 'cuda': this machine has 0 CUDA devices; use auto"),
        ((*SNAKE, "--device", "tpu"), r"device = 'tpu': is not a torch device"),
        ((*SNAKE, "--learner-threads", "0"), r"learner_threads = 0: "),
        ((*SNAKE, "--checkpoint.every", "0"), r"checkpoint.every = 0: "),
        ((*SNAKE, "--faults.rollout-seconds", "0"), r"faults.rollout_seconds = 0.0: "),
        ((*SNAKE, "--lookahead", "fork", "--meta.n", "0"), r"lookahead = 'fork': "),
        ((*SNAKE, "--resume"), r"run-dir = None: --resume needs the folder to continue; add --run-dir DIR"),
        ((*SNAKE, "--resume", "--run-dir", "none"), r"run-dir = 'none': does not hold a run"),
        ((*ATARI, "--env.game", "Pongg"), r"env.game = 'Pongg': .*did you mean Pong"),
        ((*ATARI, "--env.backend", "gym"), r"env.backend = 'gym': "),
        ((*ATARI, "--lookahead", "fork"), r"lookahead = 'fork': needs environments whose state can be copied"),
        ((*ATARI, "--env.rows", "6"), r"env.rows = '6': is not an option"),
        (("config", "atari", "--actors", "0"), r"actors = 0: "),
        (("reproduce",), r"study = '': metagrad reproduce needs a study's name first; choose one of .*toy-study"),
        (("reproduce", "--quick"), r"study = '--quick': "),
        (("reproduce", "toy-studi"), r"study = 'toy-studi': is not a study; did you mean toy-study\?"),
        (("reproduce", "q"), r"study = 'q': is not a study; choose one of "),
        ((*REPRODUCE, "--seeds", "0"), r"seeds = 0: must be at least 1; use --seeds 3 as the paper does"),
        ((*REPRODUCE, "--seeds", "x"), r"seeds = 'x': "),
        (
            (*REPRODUCE, "--updates", "5"),
            r"updates = 5: this study has no training runs that could be shorter; leave it",
        ),
        ((*REPRODUCE, "--sedes", "2"), r"sedes = '2': is not an option of this command; did you mean --seeds\?"),
        ((*REPRODUCE, "--topology", "local"), r"topology = 'local': must be one of 'ray', 'colocated'"),
        (("submit",), r"experiment = '': metagrad submit needs an experiment's name first; choose one of demo"),
        (("submit", "snake-6x7"), r"experiment = 'snake-6x7': is not an experiment; did you mean snake-6x6\?"),
        (("submit", "demo", "--actors", "0", "--address", "http://h:1"), r"actors = 0: "),
        (("submit", "demo", "--folow"), r"folow = '': is not an option of this command; did you mean --follow\?"),
        (("submit", "demo", "--address", "h:1"), r"address = 'h:1': is not the http address"),
        (("status", "--address", "h:1"), r"address = 'h:1': is not the http address of a Ray dashboard"),
        (("logs",), r"job = '': metagrad logs needs a job's id first; metagrad status lists them"),
        (("stop", "--address", "http://h:1"), r"job = '': metagrad stop needs a job's id first; "),
        (("eval", "none"), r"run-dir = 'none': does not hold a run"),
        (("eval", "none", "--episodes", "0"), r"episodes = 0: "),
        (("eval", "none", "--episodes", "x"), r"episodes = 'x': "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_refused_in_one_line_before_anything_starts(
    words: Sequence[str], expected: str, workplace: Path, capsys: Capture
) -> None:
    assert_refused(words, expected, workplace, capsys)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "a run"
    assert main((*SNAKE, *TINY, "--run-dir", str(folder))) == 0
    return folder


@pytest.fixture
def trained(trained_once: Path, workplace: Path) -> Path:
    """Put the same run into the current directory."""
    return Path(shutil.copytree(trained_once, workplace / "a run"))


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*SNAKE, *TINY, "--run-dir", "a run"), r"run-dir = 'a run': already holds a run; continue it with --resume"),
        (
            (*SNAKE, "--run-dir", "a run", "--resume", "--seed", "3"),
            r"seed = 3: .*started with 0, which --resume cannot",
        ),
        (
            (*SNAKE, "--run-dir", "a run", "--resume", "--meta.n", "3"),
            r"meta.n = 3: .*started with 1, which --resume cannot change",
        ),
        (
            ("train", "demo", "--run-dir", "a run", "--resume"),
            r"experiment = 'demo': the run in a run is of snake-6x6; run metagrad train snake-6x6 --resume",
        ),
        (("eval", "a run", "--update", "3"), r"update = 3: has no checkpoint in this run; choose one of 4"),
        ((*SNAKE, *TINY, "--run-dir", "a run/config.json"), r"run-dir = 'a run/config.json': cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_fit_a_run_that_is_there_is_refused(
    words: Sequence[str], expected: str, workplace: Path, capsys: Capture
) -> None:
    assert_refused(words, expected, workplace, capsys)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02R."])
def test_a_run_without_a_readable_checkpoint_is_refused(
    trained: Path, workplace: Path, capsys: Capture, damage: bytes
) -> None:
    for path in (trained / "checkpoints").iterdir():
        path.write_bytes(damage)
    assert_refused((*SNAKE, "--run-dir", "a run", "--resume"), r"run-dir = .*no readable check", workplace, capsys)


def test_a_run_is_trained_continued_and_played(workplace: Path, capsys: Capture) -> None:
    trained = workplace / "a run"
    assert main((*SNAKE, *TINY, "--run-dir", "a run")) == 0
    assert "run folder: a run" in capsys.readouterr().out
    assert main((*SNAKE, "--run-dir", "a run", "--resume", "--updates", "6")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"resumed from .*update-000000004.pt at update 4", printed)
    assert "--logdir 'a run'" in printed
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["updates"], summary["frames_real"]) == (6, 72)
    stored = from_json(json.loads((trained / "config.json").read_text()))
    assert isinstance(stored, Experiment)
    assert (stored.updates, stored.environments) == (6, 4), "all other fields are the run's own"
    assert main(("eval", "a run", "--episodes", "3", "--record")) == 0
    assert "update 6, sampled policy, seed 0: return" in capsys.readouterr().out
    assert (trained / "episode-000000006-sampled-seed0.gif").exists()


def test_a_study_is_reproduced_and_continued(workplace: Path, capsys: Capture) -> None:
    for words, folder, report in (
        ((), "studies/toy-study", "3 False"),
        (("--seeds", "2"), "studies/toy-study", "2 False"),
        (("--quick",), "studies/toy-study-quick", "3 True"),
        (("--seeds", "4", "--run-dir", "else where"), "else where", "4 False"),
    ):
        assert main((*REPRODUCE, *words)) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[-2:] == [f"results: {folder}/results.json", f"report: {folder}/report.md"]
        assert ("2 of 2 parts are there already" in printed) == (words == ("--seeds", "2"))
        assert (workplace / folder / "report.md").read_text() == report


def test_training_runs_of_a_study_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = dataclasses.replace(TOY, updates=9, parts=lambda _seeds, _is_quick, updates=9: {"run": {"updates": updates}})
    monkeypatch.setitem(STUDIES, "toy-study", deep)
    assert main((*REPRODUCE, "--updates", "4")) == 0
    assert json.loads(Path("studies/toy-study/results.json").read_text())["parts"]["run"]["result"] == {"updates": 4}


def test_a_study_that_is_stopped_has_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        stopped = dataclasses.replace(TOY, run_part=lambda _, number=number: os.kill(os.getpid(), number))
        monkeypatch.setitem(STUDIES, "toy-study", stopped)
        assert main(REPRODUCE) == code
        output = capsys.readouterr()
        assert "rerun the command to resume" in output.out
        assert output.err == ""


def test_list_shows_experiments_and_studies_on_a_line_each(capsys: Capture) -> None:
    assert main(("list",)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["metagrad", *EXPERIMENTS, "metagrad", *STUDIES]
    assert [line for line in lines if line[0] != " "] == ["metagrad train EXPERIMENT", "metagrad reproduce STUDY"]
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_config_prints_the_resolved_tree(name: str, capsys: Capture) -> None:
    assert main(("config", name, "--seed", "7", "--checkpoint.keep", "2")) == 0
    resolved = from_json(json.loads(capsys.readouterr().out))
    assert isinstance(resolved, BaseExperiment)
    assert (resolved.name, resolved.seed, resolved.checkpoint.keep) == (name, 7, 2)


def end(words: Sequence[str], call: Callable[[Sequence[str]], int] = main) -> int:
    """Exit code, whether `main` returns it or ends with SystemExit."""
    try:
        return call(words)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_version(command: str, capsys: Capture) -> None:
    for flag in ("--help", "-h"):
        assert end((command, flag)) == 0
        output = capsys.readouterr()
        assert "usage: metagrad" in output.out
        assert output.err == ""
    for words in ((command, "--version"), (command, "demo", "--version")):
        assert end(words) == 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_ctrl_c_outside_of_a_run_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_words: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metagrad.cli.commands.list.run", interrupted)
    assert main(("list",)) == 130
    assert capsys.readouterr().err == "metagrad: interrupted\n"


def test_help_of_a_study_lists_its_options(capsys: Capture) -> None:
    assert end(("reproduce", "toy-study", "--help")) == 0
    printed = capsys.readouterr().out
    for option in ("--seeds", "--quick", "--run-dir", "--topology"):
        assert option in printed


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_command_help_is_printed(words: Sequence[str], capsys: Capture) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", printed, re.MULTILINE), command


@pytest.mark.parametrize("command", ["train", "config"])
def test_help_of_an_experiment_lists_its_fields(command: str, capsys: Capture) -> None:
    assert end((command, "atari", "--help")) == 0
    printed = capsys.readouterr().out
    for field in ("--env.game", "--meta.n", "--meta-parameters.gamma.initial", "--outer.lambda"):
        assert field in printed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_shows_every_field(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert end(("train", name, "--help")) == 0
    shown = set(re.findall(r"--([\w.-]+)", capsys.readouterr().out))

    def options(config: object, prefix: str = "") -> Iterator[str]:
        for field in dataclasses.fields(config):  # type: ignore[arg-type]
            value, option = getattr(config, field.name), field.name.replace("_", "-").replace("lambda-", "lambda_")
            if typing.get_origin(field.type) is typing.Annotated:  # tyro's Suppress: no option
                continue
            if dataclasses.is_dataclass(value):
                yield from options(value, f"{prefix}{option}.")
            else:
                yield f"{prefix}no-{option}" if value is True else f"{prefix}{option}"

    expected = set(options(EXPERIMENTS[name]()))
    assert {"updates", "env.rows"} & expected
    assert expected <= shown


ANNEALED = ("--optimizer.annealing-updates", "9")


def test_options_of_a_resumption_are_changes_of_the_stored_run(workplace: Path, capsys: Capture) -> None:
    """They are none of the experiment's own, with which these two do not go together."""
    assert main((*SNAKE, *TINY, *ANNEALED, "--run-dir", "run")) == 0
    capsys.readouterr()
    assert_refused(
        (*SNAKE, *TINY, "--updates", "5", "--optimizer.annealing-updates", "4"), "updates = 5: ", workplace, capsys
    )
    assert main((*SNAKE, "--run-dir=run", "--resume", "--updates", "6")) == 0
    assert json.loads((workplace / "run" / "summary.json").read_text())["updates"] == 6
    capsys.readouterr()
    assert_refused(
        (*SNAKE, "--run-dir", "run", "--resume", "--updates", "10"), "updates = 10: the step", workplace, capsys
    )


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--actors", "4"), "actors = 4: .*was started with 2, which --resume cannot change; leave it out, or start"),
        (("--network.channels", "8"), "network.channels = 8: .*was started with 32, which --resume cannot change"),
        (("--outer.critic", "inner"), "outer.critic = 'inner': .*was started with 'outer', which --resume cannot"),
    ],
)
def test_another_configuration_is_said_to_be_one(
    words: Sequence[str], expected: str, workplace: Path, capsys: Capture
) -> None:
    assert_refused((*SNAKE, "--run-dir", "a run", "--resume", *words), expected, workplace, capsys)


@pytest.mark.parametrize("is_here", [False, True])
def test_a_submitted_resumption_is_one_of_the_stored_run_too(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    """A folder on the cluster's own disk is none here: there the job compares."""
    run_dir = str(workplace / ("run" if is_here else "there"))
    if is_here:
        assert main((*SNAKE, *TINY, *ANNEALED, "--run-dir", run_dir)) == 0
    submitted: list[tuple[Any, Sequence[str]]] = []
    monkeypatch.setattr("metagrad.cli.commands.submit.submit", lambda *arguments: submitted.append(arguments) or 0)
    own = ("--run-dir", run_dir, "--resume", "--address", "http://h:1")
    words = (*own, "--updates", "60000", "--optimizer.annealing-updates", "70000")
    if is_here:
        words = (*own, "--updates", "9")
        assert main(("submit", "snake-6x6", *own, "--updates", "10")) == 2
        assert "updates = 10: the step size is 0 from update 9 on" in capsys.readouterr().err
    assert main(("submit", "snake-6x6", *words)) == 0
    ((options, kept),) = submitted
    assert (options.run_dir, options.resume, options.address, list(kept)) == (run_dir, True, "http://h:1", list(words))
    assert options.experiment.updates == (9 if is_here else EXPERIMENTS["snake-6x6"]().updates)
