import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import alternative as subject
from benchmarks.harness import interleave

# The environment of the tests takes the place of an alternative's.
PROGRAM = """
import os, sys, time
from benchmarks.alternatives.serve import serve

def work():
    time.sleep(0.05)
    print("noise of a library")
    os.system("echo noise of a child")
    return {"frames": 7, "argument": sys.argv[1], "threads": os.environ["OMP_NUM_THREADS"]}

serve({"work": work, "fail": lambda: 1 / 0}, {"fake": "1.0"})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "benchmarks" / "alternatives").mkdir(parents=True)
    (tmp_path / "benchmarks" / "alternatives" / "fake.py").write_text(PROGRAM)
    real = subject.ROOT / "benchmarks" / "alternatives" / "serve.py"
    (tmp_path / "benchmarks" / "alternatives" / "serve.py").write_text(real.read_text())
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(subject, "FOLDER", tmp_path)
    monkeypatch.setattr(subject, "ROOT", tmp_path)


def test_a_case_runs_in_the_other_process_and_is_timed_there(fake):
    with subject.alternative("env", "fake", "word", variables={"OMP_NUM_THREADS": "3"}) as other:
        assert other.versions == {"fake": "1.0"}
        run = other.run("work")
        assert (run.answer["frames"], run.answer["argument"], run.answer["threads"]) == (7, "word", "3")
        assert 0.05 <= run.timing.wall_s
        assert run.timing.cpu_s < run.timing.wall_s
        timings = interleave({"work": other.case("work")}, rounds=2)
        assert all(timing.wall_s >= 0.05 for timing in timings["work"])
        assert all(json.dumps(timing) for timing in timings["work"])
        process = other._process
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_program_that_fails_ends_the_measurement(fake):
    with (
        subject.alternative("env", "fake", "word", variables={"OMP_NUM_THREADS": "1"}) as other,
        pytest.raises(RuntimeError, match="fake ended with exit code 1"),
    ):
        other.run("fail")


def test_an_unknown_case_is_refused(fake):
    with (
        subject.alternative("env", "fake", "word", variables={"OMP_NUM_THREADS": "1"}) as other,
        pytest.raises(ValueError, match="'work', 'fail'"),
    ):
        other.case("play")


def test_an_environment_that_is_not_there_is_named_with_its_remedy(fake, tmp_path):
    with pytest.raises(subject.NotInstalled, match=r"'none': must be installed in none; run make alternatives"):
        subject.interpreter("none")
    assert subject.interpreter("env") == Path(tmp_path) / "env" / "bin" / "python"
