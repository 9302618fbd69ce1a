"""Toy studies as real Ray tasks, in one embedded Ray for the whole file; run_part is sent to the workers by value."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from metagrad.cluster.on_ray import session as ray_session
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.cluster.studies import ray_parts
from metagrad.cluster.studies.reproduce import StudyStopped, reproduce
from metagrad.cluster.studies.study import PartFailed, Study
from metagrad.errors import ConfigurationError


def numbered(seeds: int, _is_quick: bool) -> dict[str, dict[str, Any]]:
    return {f"seed-{seed}": {"seed": seed} for seed in range(seeds)}


def computed(settings: dict[str, Any]) -> dict[str, Any]:
    threads = (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
    return {"value": torch.rand(1).item() + settings["seed"], "threads": threads, "process": os.getpid()}


def write(folder: Path, parts: dict[str, Any], _is_quick: bool) -> None:
    (folder / "report.md").write_text(json.dumps([result["value"] for _, result in parts.values()]))


TOY = Study(name="toy", description="Numbers.", seeds=4, parts=numbered, run_part=computed, report=write)


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    """One local Ray, that of a study itself."""
    with ray_session.ray_session(ray_session.ANY_ROOM):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


@pytest.fixture(autouse=True)
def every_study_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "ray_session", lambda _demand: nullcontext())


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "parts").glob("*.json"))


def test_parts_run_elsewhere_and_give_the_same_as_here(tmp_path: Path, console: Console) -> None:
    reproduce(TOY, tmp_path / "ray", 4, False, "ray", console)
    reproduce(TOY, tmp_path / "here", 4, False, "colocated", console)
    assert (tmp_path / "ray" / "report.md").read_bytes() == (tmp_path / "here" / "report.md").read_bytes()
    for path in (tmp_path / "ray" / "parts").iterdir():
        result = json.loads(path.read_text())["result"]
        assert result["threads"] == [1, "1"]
        assert result["process"] != os.getpid()


def test_a_study_whose_parts_are_all_there_starts_no_ray(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce(TOY, tmp_path, 1, False, "colocated", console)
    monkeypatch.setattr(ray_session, "ray_session", None)
    reproduce(TOY, tmp_path, 1, False, "ray", console)


def fail_after_the_others(settings: dict[str, Any]) -> dict[str, Any]:
    """Seed 1 raises when seed 0 is stored; later seeds would take an hour."""
    if settings["seed"] == 1:
        while not os.path.exists(settings["first"]):
            time.sleep(0.01)
        raise ZeroDivisionError("seed 1 divides by zero")
    if settings["seed"] > 1:
        time.sleep(3_600)
    return computed(settings)


def test_a_part_that_raises_ends_the_study_with_its_own_traceback(tmp_path: Path, console: Console) -> None:
    first = str(tmp_path / "parts" / "seed-0.json")
    parts = {name: settings | {"first": first} for name, settings in numbered(6, False).items()}
    study = replace(TOY, parts=lambda *_: parts, run_part=fail_after_the_others)
    with pytest.raises(PartFailed, match="part seed-1 of study toy failed") as failure:
        reproduce(study, tmp_path, 6, False, "ray", console)
    assert "seed 1 divides by zero" in str(failure.value.__cause__)
    assert "in fail_after_the_others" in str(failure.value.__cause__)
    assert names(tmp_path) == ["seed-0"]
    # The cancelled parts have given their CPUs back.
    reproduce(TOY, tmp_path / "next", 2, False, "ray", console)


def die_once(settings: dict[str, Any]) -> dict[str, Any]:
    mark = Path(settings["folder"]) / f"died-{settings['seed']}"
    if settings["seed"] == 1 and (settings["is_always"] or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return computed({"seed": settings["seed"]})


def dying(folder: Path, is_always: bool) -> Study:
    parts = {f"seed-{seed}": {"seed": seed, "folder": str(folder), "is_always": is_always} for seed in range(3)}
    return replace(TOY, parts=lambda *_: parts, run_part=die_once)


def test_a_part_whose_worker_is_killed_is_started_again(tmp_path: Path, console: Console) -> None:
    reproduce(dying(tmp_path, is_always=False), tmp_path, 3, False, "ray", console)
    assert "part seed-1: its worker died" in text(console)
    reproduce(TOY, tmp_path / "whole", 3, False, "colocated", console)
    assert (tmp_path / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()


def work_and_die_once(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    done = len(list(folder.iterdir()))
    for step in range(done, 4):
        if step == 3 != done:
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / str(step)).touch()
    return computed(settings) | {"value": done}


def test_a_part_whose_worker_is_killed_goes_on_with_the_work_that_it_left(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers are somewhere else
    study = replace(TOY, run_part=work_and_die_once, keeps_work=True)
    reproduce(study, Path("toy"), 1, False, "ray", console)
    assert "part seed-0: its worker died" in text(console)
    assert (tmp_path / "toy" / "report.md").read_text() == "[3]"
    assert len(list((tmp_path / "toy" / "work" / "seed-0").iterdir())) == 4


@pytest.mark.slow
def test_a_part_whose_worker_always_dies_ends_the_study(tmp_path: Path, console: Console) -> None:
    with pytest.raises(PartFailed, match="part seed-1 of study toy lost its worker 4 times"):
        reproduce(dying(tmp_path, is_always=True), tmp_path, 3, False, "ray", console)
    assert names(tmp_path) == ["seed-0", "seed-2"]
    assert text(console).count("started again") == 3


def interrupt_the_driver(settings: dict[str, Any]) -> dict[str, Any]:
    """Seed 1 sends the signal when seed 0 is stored, then takes an hour."""
    if settings["seed"] == 1:
        while not os.path.exists(settings["first"]):
            time.sleep(0.01)
        os.kill(settings["driver"], settings["signal"])
        time.sleep(3_600)
    return computed(settings)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_the_study_and_the_same_command_continues(
    tmp_path: Path, console: Console, number: signal.Signals
) -> None:
    more = {"first": str(tmp_path / "parts" / "seed-0.json"), "driver": os.getpid(), "signal": int(number)}
    parts = {name: settings | more for name, settings in numbered(2, False).items()}
    study = replace(TOY, parts=lambda *_: parts, run_part=interrupt_the_driver)
    with pytest.raises(StudyStopped) as stopped:
        reproduce(study, tmp_path, 2, False, "ray", console)
    assert stopped.value.exit_code == 128 + number
    assert f"stopped by {number.name} with 1 of 2 parts done; rerun the command to resume" in text(console)
    assert names(tmp_path) == ["seed-0"]
    reproduce(replace(study, run_part=computed), tmp_path, 2, False, "ray", console)
    assert "1 of 2 parts are there already" in text(console)
    assert names(tmp_path) == ["seed-0", "seed-1"]


def test_a_cluster_without_a_cpu_is_refused(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    with pytest.raises(ConfigurationError, match=r"^RAY_ADDRESS = '10.0.0.1:6379': this cluster has no CPU, so no"):
        reproduce(TOY, tmp_path / "new", 1, False, "ray", console)
    assert not (tmp_path / "new").exists()


def test_a_cluster_that_is_busy_is_waited_for_and_said_to_be(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([0.0, 0.5])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": next(free, 1.0)})
    monkeypatch.setattr(ray_parts, "_SECONDS_TO_FIND_ROOM", 0.0)
    reproduce(TOY, tmp_path, 1, False, "ray", console, None, 60.0)
    line = "every CPU of the cluster is in use; waiting for one, at most 60 s (--wait-for-resources)"
    assert text(console).count(line) == 1


def test_a_cluster_that_stays_busy_is_waited_for_as_long_as_told(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(ray_parts, "_SECONDS_TO_FIND_ROOM", 0.0)
    message = r"^wait_for_resources = 1\.0: in that time none of the cluster's CPUs was free: 0 of \d+ CPUs are free; "
    with pytest.raises(ConfigurationError, match=message):
        reproduce(TOY, tmp_path, 1, False, "ray", console, None, 1.0)


def test_a_signal_ends_the_waiting_for_a_cpu(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_free() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"CPU": 0.0}

    monkeypatch.setattr(ray, "available_resources", none_free)
    with pytest.raises(StudyStopped):
        reproduce(TOY, tmp_path, 1, False, "ray", console)


def test_a_study_that_loses_its_cluster_says_so_and_keeps_what_is_there(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ray_watch.ClusterLost("GCS", Endpoint("10.0.0.1", 6379))
    monkeypatch.setattr(ray_watch, "lost", lambda: lost if names(tmp_path) else None)
    with pytest.raises(ray_watch.ClusterLost, match="a study with the same command"):
        reproduce(TOY, tmp_path, 4, False, "ray", console)
    monkeypatch.undo()
    monkeypatch.setattr(ray_session, "ray_session", lambda _demand: nullcontext())
    reproduce(TOY, tmp_path, 4, False, "ray", console)
    assert "of 4 parts are there already" in text(console)


def test_an_idle_cluster_is_not_said_to_be_busy(tmp_path: Path, console: Console) -> None:
    reproduce(TOY, tmp_path, 1, False, "ray", console)
    assert "in use" not in text(console)
