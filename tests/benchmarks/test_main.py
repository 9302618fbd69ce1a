import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks import __main__ as program


@pytest.fixture
def module(monkeypatch):
    """A benchmark that says what it was asked for."""
    fake = ModuleType("benchmarks.fake")
    fake.is_met = True
    fake.run = lambda rounds, quick: {
        "rounds": rounds,
        "quick": quick,
        "targets": [{"name": "t", "value": 1.0, "at_most": 2.0, "met": fake.is_met}],
    }
    monkeypatch.setitem(sys.modules, "benchmarks.fake", fake)
    monkeypatch.setitem(program.BENCHMARKS, "fake", "benchmarks.fake")
    return fake


def test_a_benchmark_is_run_printed_and_kept(module, tmp_path, capsys):
    path = tmp_path / "result.json"
    assert program.main(["fake", "--rounds", "7", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["benchmark"], result["rounds"], result["quick"]) == ("fake", 7, False)
    assert "rounds: 7" in capsys.readouterr().out


def test_a_missed_target_fails_unless_quick(module):
    module.is_met = False
    assert program.main(["fake"]) == 1
    assert program.main(["fake", "--quick"]) == 0


def test_what_is_not_installed_is_said_before_anything_is_measured(module, monkeypatch, capsys, tmp_path):
    module.run = lambda rounds, quick, alone: {"alone": alone}
    module.ALTERNATIVES = ("missing",)
    monkeypatch.setattr("benchmarks.alternative.FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.alternative.ROOT", tmp_path)
    with pytest.raises(SystemExit) as stop:
        program.main(["fake"])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "missing" in line
    assert "make alternatives" in line
    assert program.main(["fake", "--alone"]) == 0
    assert "alone: True" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["fake", "--alone"],
        [],
        ["nothing"],
        ["fake", "--rounds", "2"],
        ["fake", "--quick", "--rounds", "0"],
        ["fake", "--record", "--quick"],
    ],
)
def test_wrong_arguments_exit_with_2(module, words):
    with pytest.raises(SystemExit) as stop:
        program.main(words)
    assert stop.value.code == 2


def test_a_recorded_result_is_kept_and_shown(module, monkeypatch):
    done = []
    monkeypatch.setattr(program, "keep", lambda result: done.append(result["benchmark"]))
    monkeypatch.setattr(program, "write_page", lambda: done.append("page"))
    assert program.main(["fake"]) == 0
    assert done == []
    assert program.main(["fake", "--record"]) == 0
    assert done == ["fake", "page"]


def test_all_runs_each_by_itself_and_ends_with_the_worst_code(module, monkeypatch, tmp_path):
    """One that misses its target keeps no other from running; --alone goes to those that have alternatives."""
    codes, commands = iter([1, 0]), []
    other = ModuleType("benchmarks.other")
    other.ALTERNATIVES = ("missing",)
    monkeypatch.setitem(sys.modules, "benchmarks.other", other)
    monkeypatch.setattr(program, "BENCHMARKS", {"fake": "benchmarks.fake", "other": "benchmarks.other"})

    def run(words, check):
        commands.append(words[3:])
        return SimpleNamespace(returncode=next(codes))

    monkeypatch.setattr(program.subprocess, "run", run)
    assert program.main(["all", "--alone", "--json", str(tmp_path), "--rounds", "6"]) == 1
    assert commands == [
        ["fake", "--rounds", "6", "--json", str(tmp_path / "fake.json")],
        ["other", "--rounds", "6", "--alone", "--json", str(tmp_path / "other.json")],
    ]


@pytest.mark.parametrize("name", list(program.BENCHMARKS))
def test_every_benchmark_has_a_module_that_runs(name):
    module = __import__(program.BENCHMARKS[name], fromlist=["run"])
    assert callable(module.run)
