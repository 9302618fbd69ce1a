"""Real Ray actors of several processes: the bits they give, and what happens when one of the processes is lost."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, FaultConfig
from metagrad.cluster.launch.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("runs_use_embedded_ray")]

RAY_CPUS = 5  # of a learner and two actors of two processes

Tiny = Callable[..., Experiment]


def processes_of_actors() -> dict[int, list[int]]:
    """Find the actors of this Ray that have processes of their own: actor -> those, but for the one that copies itself.

    A process that has ended and whose end nobody has noticed counts no more.
    """
    parents: dict[int, int] = {}
    actors: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                parents[int(folder.name)] = int(parent)
            if (folder / "cmdline").read_bytes().startswith(b"ray::RolloutActor"):
                actors.append(int(folder.name))
    by_actor = {x: parents.get(parent, 0) for x, parent in parents.items()}
    found = {actor: [x for x, owner in by_actor.items() if owner == actor] for actor in actors}
    return {actor: sorted(members) for actor, members in found.items() if members}


def in_processes(tiny: Tiny, **changes: Any) -> Experiment:
    """Two actors of two processes with an environment each."""
    return tiny(**{"topology": "ray", "actors": 2, "actor_processes": 2} | changes)


def test_actors_of_several_processes_give_the_same_bits_and_continue_bitwise(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    whole = in_processes(tiny, lookahead="fork", meta={"n": 2}, updates=8)
    for name in ("a", "b"):
        run(whole, tmp_path / name, False, console)
    run(replace(whole, updates=3), tmp_path / "parts", False, console)
    run(whole, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "a") == learner_of(tmp_path / "b") == learner_of(tmp_path / "parts")


@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize(
    ("is_actor", "number", "reason"),
    [
        (False, signal.SIGKILL, "actor died"),
        (True, signal.SIGKILL, "actor died"),
        (False, signal.SIGSTOP, "actor hung"),
    ],
    ids=["a process of an actor dies", "the actor that has processes dies", "a process of an actor hangs"],
)
def test_an_actor_that_loses_a_process_or_leaves_them_alone_is_replaced_with_all_of_them(
    tiny: Tiny, console: Console, tmp_path: Path, schedule: str, is_actor: bool, number: int, reason: str
) -> None:
    lost: list[int] = []

    def strike() -> None:
        while len(found := processes_of_actors()) < 2 or not (tmp_path / "run" / "checkpoints").exists():
            time.sleep(0.1)
        actor, members = min(found.items())
        lost.extend((actor, *members))
        os.kill(actor if is_actor else members[-1], number)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    faults = FaultConfig(rollout_seconds=20.0)
    changes = {"schedule": schedule, "meta": {"n": 1}, "updates": 200, "checkpoint": CheckpointConfig(every=20)}
    run(in_processes(tiny, faults=faults, **changes), tmp_path / "run", False, console)
    striker.join(10)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    assert (summary["updates"], summary["actors_restarted"]) == (200, 1), said
    assert reason in summary["dropped_reasons"]
    assert f"): {reason} (" in said
    assert "started again with new random streams" in said
    deadline = time.monotonic() + 10
    while left := [x for x in lost[1:] if is_running(x)]:
        assert time.monotonic() < deadline, f"processes of a lost actor go on: {left}"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
