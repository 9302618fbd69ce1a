"""`metagrad reproduce` in processes of its own: real signals, and what a study leaves when it is stopped or killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metagrad import experiments

Metagrad = Callable[..., Any]
Here = Callable[..., str]

# Seed 0 is quick; the others take an hour until there is a file "go".
TOY = """
import time
from pathlib import Path
from metagrad import experiments
from metagrad.cluster.studies.study import Study

GO = Path({go!r})

def run_part(settings):
    while settings["seed"] and not GO.exists():
        time.sleep(0.01)
    if settings["seed"] and GO.read_text() == "raise":
        raise ZeroDivisionError("no such seed")
    return settings

def report(folder, parts, is_quick):
    (folder / "report.md").write_text(str([result["seed"] for _, result in parts.values()]))

experiments.STUDIES["toy"] = Study(
    name="toy", description="", seeds=3, run_part=run_part, report=report,
    parts=lambda seeds, _: {{f"seed-{{seed}}": {{"seed": seed}} for seed in range(seeds)}},
)
"""


@pytest.fixture
def reproduce(metagrad: Metagrad, tmp_path: Path) -> Metagrad:
    """(*words) -> a started `metagrad reproduce toy`."""
    return lambda *words: metagrad("reproduce", "toy", *words, prelude=TOY.format(go=str(tmp_path / "go")))


@pytest.fixture
def reproduced(here: Here, tmp_path: Path) -> Iterator[Here]:
    """(*words) -> what `metagrad reproduce toy` prints in this process."""
    exec(TOY.format(go=str(tmp_path / "go")), {})
    yield lambda *words: here("reproduce", "toy", *words)
    del experiments.STUDIES["toy"]


def stop(command: Any, number: signal.Signals) -> None:
    if number == signal.SIGINT:
        command.press_ctrl_c()
    else:
        command.process.send_signal(number)


@pytest.mark.parametrize(
    ("topology", "number", "code"),
    [
        pytest.param("colocated", signal.SIGINT, 130, marks=pytest.mark.slow),
        ("colocated", signal.SIGTERM, 143),
        ("colocated", signal.SIGKILL, -9),
        pytest.param("ray", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_study_that_was_stopped_or_killed_continues(
    reproduce: Metagrad, reproduced: Here, tmp_path: Path, topology: str, number: signal.Signals, code: int
) -> None:
    first_part = tmp_path / "studies" / "toy" / "parts" / "seed-0.json"
    first = reproduce("--topology", topology)
    first.wait_for(first_part)
    stop(first, number)
    assert first.wait() == code, first.output
    # Two helpers of a Ray node try for a minute to tell a killed driver of its own death.
    assert first.survivors(seconds=100) == []
    if number != signal.SIGKILL:
        assert f"stopped by {number.name} with 1 of 3 parts done; rerun the command to resume" in first.output
        assert "Traceback" not in first.output
    before = first_part.stat().st_mtime_ns

    (tmp_path / "go").touch()
    assert "1 of 3 parts are there already" in reproduced("--topology", "colocated")
    assert first_part.stat().st_mtime_ns == before
    assert (tmp_path / "studies" / "toy" / "report.md").read_text() == "[0, 1, 2]"


@pytest.mark.slow  # tests/cluster/test_studies.py and test_ray_parts.py have the same in one process
@pytest.mark.parametrize("topology", ["colocated", "ray"])
def test_a_part_that_raises_shows_its_traceback_and_exit_code_1(
    reproduce: Metagrad, tmp_path: Path, topology: str
) -> None:
    (tmp_path / "go").write_text("raise")
    command = reproduce("--topology", topology)
    assert command.wait() == 1, command.output
    assert command.survivors() == []
    assert "ZeroDivisionError" in command.output
    assert "no such seed" in command.output
    assert "in run_part" in command.output
    assert "of study toy failed; the finished ones are kept" in command.output
    assert (tmp_path / "studies" / "toy" / "parts" / "seed-0.json").exists()


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_one_works(reproduce: Metagrad, tmp_path: Path) -> None:
    first = reproduce("--topology", "colocated")
    first.wait_for(tmp_path / "studies" / "toy" / "parts" / "seed-0.json")
    second = reproduce("--topology", "colocated")
    assert second.wait() == 2
    assert second.output.startswith("metagrad: run-dir = 'studies/toy': another process")
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.output


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_its_part(reproduce: Metagrad, tmp_path: Path) -> None:
    command = reproduce()
    command.wait_for(tmp_path / "studies" / "toy" / "parts" / "seed-0.json")
    end = time.monotonic() + 90
    while not (workers := [pid for pid, line in command.relatives().items() if "ray::_execute_on_worker" in line]):
        assert time.monotonic() < end, command.relatives()
        time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    command.wait_until(lambda: "started again" in command.output)
    (tmp_path / "go").touch()
    assert command.wait() == 0, command.output
    assert (tmp_path / "studies" / "toy" / "report.md").read_text() == "[0, 1, 2]"
