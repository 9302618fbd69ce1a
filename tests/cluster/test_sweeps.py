"""Sweeps: what is tried, what is left to do, the table; on Ray Tune itself where the extra `tune` is installed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.cli.commands.sweep import SweepOptions
from metagrad.cli.main import main
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.folder import read_json
from metagrad.cluster.sweeps import space
from metagrad.cluster.sweeps.space import require_tune, settings
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS

HAS_TUNE = all(find_spec(package) for package in ("pandas", "pyarrow", "tensorboardX"))
needs_tune = pytest.mark.skipif(not HAS_TUNE, reason="needs the extra tune")


def test_a_grid_is_all_combinations() -> None:
    assert settings([], [], [], None, 0) == [{}]
    assert settings(["meta.n=1,3", "outer.lambda=1.0"], [], [], None, 0) == [
        {"meta.n": "1", "outer.lambda": "1.0"},
        {"meta.n": "3", "outer.lambda": "1.0"},
    ]
    assert settings(["meta_parameters.gamma.initial=.9"], [], [], None, 0) == [{"meta-parameters.gamma.initial": ".9"}]


@needs_tune
def test_more_random_settings_only_add_some() -> None:
    words = (["meta.n=1,3"], ["outer.lambda=0.5,1"], ["optimizer.learning-rate=1e-5,1e-2"])
    few, many = settings(*words, "random:3", 7), settings(*words, "random:200", 7)
    assert many[:3] == few
    assert few != settings(*words, "random:3", 8)
    rates = [float(setting["optimizer.learning-rate"]) for setting in many]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-2
    assert 60 < sum(rate < 10**-3.5 for rate in rates) < 140, "half of them, on a logarithmic scale"
    assert all(0.5 <= float(setting["outer.lambda"]) <= 1 for setting in many)
    assert {setting["meta.n"] for setting in many} == {"1", "3"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((["meta.n"], [], [], None), r"^grid = 'meta.n': must be FIELD=VALUE"),
        ((["meta.n=1,1"], [], [], None), r"^grid = 'meta.n=1,1': must be FIELD=VALUE"),
        ((["a=1", "a=2"], [], [], None), r"^grid = 'a=1 a=2': name an option twice"),
        ((["a=1"], ["b=0,1"], [], None), r"^uniform = 'b=0,1': are drawn from by a random search"),
        (([], ["b=1,0"], [], "random:2"), r"^uniform = 'b=1,0': must be FIELD=LOW,HIGH with numbers LOW < HIGH;"),
        (([], [], ["b=0,1"], "random:2"), r"^log-uniform = 'b=0,1': must be FIELD=LOW,HIGH .* above 0"),
        (([], ["b=0,x"], [], "random:2"), r"^uniform = 'b=0,x': must be FIELD=LOW,HIGH"),
        ((["a=1"], [], [], "grid"), r"^search = 'grid': must be random:N"),
        (([], [], [], "random:2"), r"^search = 'random:2': has nothing to draw"),
        (([f"{x}=1,2,3,4,5,6,7,8,9,0" for x in "abcde"], [], [], None), r"^grid = 100000: are more than 10000"),
    ],
)
def test_words_that_are_no_sweep_are_refused(words: Any, line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        settings(*words, 0)


@needs_tune
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--topology", "ray"), "topology = 'ray': each trial is one colocated run"),
        (("--seeds", "0"), "seeds = 0: must lie in [1, 1000]"),
        (("--trial-cpus", "0"), "trial-cpus = 0: must lie in [1, 1024]"),
        (("--grid", "seed=1,2"), "grid = 'seed': is what a sweep sets itself; use --seeds"),
        (("--grid", "meta.m=1,2"), "meta.m=1 = '': is not an option of this command"),
        (("--grid", "environments=8,9"), "environments = 9: must be a positive multiple"),
        (("--run-dir", "memory://sweep"), "run-dir = 'memory://sweep'"),
        (("--pbt", "4", "--grid", "a=1,2"), "grid = ('a=1,2',): does not go with --pbt"),
        (("--pbt", "4", "--seeds", "2"), "seeds = 2: does not go with --pbt"),
        (("--pbt", "4", "--meta.n", "3"), "meta.n = 3: is an option of the meta-gradient"),
        (("--pbt", "1"), "pbt = 1: a population has 2 to 1000 members"),
        (("--pbt-every", "4"), "pbt-every = 4: is the length of a population's generations; add --pbt"),
    ],
)
def test_a_sweep_is_refused_before_anything_starts(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(("sweep", "demo", *words)) == 2
    assert capsys.readouterr().err.startswith(f"metagrad: {line}")
    assert not list(tmp_path.iterdir())


def test_without_tune_a_sweep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "find_spec", lambda name: None)
    line = r"needs Ray Tune, whose package pandas is not installed; pip install 'metagrad\[tune\]'$"
    with pytest.raises(ConfigurationError, match=line):
        require_tune()


def test_a_python_below_a_name_with_a_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for workers that never begin."""
    monkeypatch.setattr(space, "find_spec", lambda package: package)
    require_tune()
    monkeypatch.setattr(sys, "executable", "/a folder/bin/python")
    with pytest.raises(ConfigurationError, match=r"^python = '/a folder/bin/python': has a space or the like"):
        require_tune()
    assert SweepOptions(experiment=EXPERIMENTS["demo"]()).seeds == 1


@needs_tune
def test_what_is_done_stays_and_the_table_is_of_all_seeds(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metagrad.cluster.sweeps import sweep as module
    from metagrad.cluster.sweeps.trial import summary_of

    base = tiny(updates=2, log_every=1)
    trials = [
        module.trial_of(
            {"outer.lambda": value}, replace(base, outer=replace(base.outer, lambda_=float(value))), seed, 1
        )
        for value in ("0.5", "1.0")
        for seed in (0, 1)
    ]
    assert [trial.name for trial in trials][:2] == ["outer.lambda=0.5,seed=0", "outer.lambda=0.5,seed=1"]
    trained: list[list[str]] = []

    def train(trainable: Any, missing: list[str], folder: Path, cpus: int, callback: Any) -> None:
        """Train all but the last in this process."""
        trained.append(missing)
        for trial in [trial for trial in trials if trial.name in missing][:3]:
            run(trial.experiment, folder / "trials" / trial.name, False, Console(quiet=True))

    monkeypatch.setattr(module, "tuned", train)
    with pytest.raises(module.RunLost, match=r"^1 trial not done \(outer.lambda=1.0,seed=1, …\); run the command"):
        module.sweep(trials, tmp_path / "sweep", 1, Console(quiet=True))
    module.sweep(trials, tmp_path / "sweep", 1, Console(quiet=True))
    assert trained[1] == ["outer.lambda=1.0,seed=1"]
    module.sweep(trials, tmp_path / "sweep", 1, Console(quiet=True))
    assert len(trained) == 2, "nothing is missing"
    rows = read_json(tmp_path / "sweep" / "sweep.json")
    assert [row["seeds"] for row in rows] == [[0, 1], [0, 1]]
    assert {row["settings"]["outer.lambda"] for row in rows} == {"0.5", "1.0"}
    lines = (tmp_path / "sweep" / "sweep.md").read_text().splitlines()
    assert lines[0].startswith("| outer.lambda | seeds | return | std over seeds | gamma |")
    assert len(lines) == 4
    assert (tmp_path / "sweep" / "sweep.png").read_bytes()[1:4] == b"PNG"
    other = replace(trials[0].experiment, rollout_length=4)
    with pytest.raises(ConfigurationError, match=r"^rollout_length = 4: the run in .* was started with 3"):
        summary_of(tmp_path / "sweep" / "trials" / trials[0].name, other)


@needs_tune
def test_the_best_setting_comes_first() -> None:
    from metagrad.cluster.sweeps.sweep import as_markdown, table
    from metagrad.cluster.sweeps.trial import Trial

    demo = EXPERIMENTS["demo"]()
    trials = {
        f"{x}{seed}": Trial(settings={"x": x}, experiment=replace(demo, seed=seed)) for x in "abc" for seed in (0, 1)
    }
    returns = {"a0": 1.0, "a1": 2.0, "b0": 3.0, "b1": 5.0, "c0": None, "c1": None}
    rows = table(trials, {name: {"return_mean": value, "eta": {"gamma": 0.5}} for name, value in returns.items()})
    assert [(row["settings"]["x"], row["return_mean"]) for row in rows] == [("b", 4.0), ("a", 1.5), ("c", None)]
    assert as_markdown(rows).splitlines()[2:] == [
        "| b | 2 | 4 | 1.414 | 0.5 |",
        "| a | 2 | 1.5 | 0.7071 | 0.5 |",
        "| c | 2 |  |  | 0.5 |",
    ]


@needs_tune
@pytest.mark.slow
def test_a_sweep_that_is_killed_finishes_only_what_was_missing(tmp_path: Path) -> None:
    words = ["sweep", "demo", "--updates", "60", "--environments", "16", "--checkpoint.every", "5", "--seeds", "3"]
    words += ["--grid", "optimizer.learning-rate=1e-4,3e-4", "--run-dir", str(tmp_path / "sweep")]
    command = [sys.executable, "-m", "metagrad.cli.main", *words]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    trials = tmp_path / "sweep" / "trials"
    while not (done := list(trials.glob("*/summary.json"))) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in done if read_json(path)["updates"] == 60}
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(before)} of 6 trials are done already" in finished.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [read_json(path)["updates"] for path in trials.glob("*/summary.json")] == [60] * 6
    assert [row["seeds"] for row in read_json(tmp_path / "sweep" / "sweep.json")] == [[0, 1, 2]] * 2
