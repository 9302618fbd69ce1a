import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import end_to_end_group as subject

# A leader that leaves a process in a session of its own and one in its own, both of which would sleep on.
PROGRAM = """
import os, subprocess, sys, time
from benchmarks.end_to_end_group import Window, answering
answer = answering()
print("noise of a library")
sleepers = [subprocess.Popen(["sleep", "600"], start_new_session=flag) for flag in (False, True)]
print(*(each.pid for each in sleepers), file=open(sys.argv[2], "w"), flush=True)
if sys.argv[1] == "hang":
    time.sleep(600)
if sys.argv[1] == "fail":
    raise SystemExit("no")
window = Window()
time.sleep(0.2)
answer({"pids": [each.pid for each in sleepers], "leader": os.getpid(), **window.close()})
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "leading.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    return "leading"


def is_running(pid: int) -> bool:
    return pid in {each.pid for each in subject.processes()}


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < until, f"{pids} still run"
        time.sleep(0.05)


def test_a_run_answers_and_leaves_nothing_behind(program, tmp_path):
    answer = subject.run_in_group(program, ["work", str(tmp_path / "pids")], seconds=30)
    assert answer["window_s"] >= 0.2
    assert 0 <= answer["cores_busy"] <= os.cpu_count()
    assert not any(map(is_running, [answer["leader"], *answer["pids"]]))


def test_a_run_that_fails_is_an_error_and_leaves_nothing_behind(program, tmp_path):
    with pytest.raises(RuntimeError, match="leading said nothing within 30 s: exit code 1"):
        subject.run_in_group(program, ["fail", str(tmp_path / "pids")], seconds=30)
    assert not any(is_running(int(pid)) for pid in (tmp_path / "pids").read_text().split())


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended(program, tmp_path):
    with pytest.raises(RuntimeError, match="within 5 s"):
        subject.run_in_group(program, ["hang", str(tmp_path / "pids")], seconds=5)
    assert not any(is_running(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_run_ends_with_whoever_started_it_even_one_that_was_killed(program, tmp_path):
    pids = tmp_path / "pids"
    code = f"from benchmarks.end_to_end_group import *; run_in_group({program!r}, ['hang', {str(pids)!r}], 60)"
    starter = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    sleepers = [int(pid) for pid in pids.read_text().split()]
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    wait_until_gone(sleepers)


def test_cpu_seconds_are_those_of_the_leader_and_its_descendants():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    own = subject.cpu_seconds(os.getpid())
    assert own[os.getpid()][1] >= 0.1
    assert 1 not in own
