"""Two learners on two raylets under random kills and freezes: the run goes on, and ends with an undisturbed one's bits.

METAGRAD_SOAK_FAULTS says how many; three of five are kills. 50 is what a release is held to.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import RayNodes, wait_until
from runs import Run, train
from test_soak import driver

from metagrad.learner.checkpoint import restore_newest

FAULTS = int(os.environ.get("METAGRAD_SOAK_FAULTS", "10"))
SECONDS_OF_A_FAULT = 240.0  # at the most
WORDS = (
    *("--learners", "2", "--learner-cpus", "3", "--actors", "2", "--faults.learner-seconds", "8"),
    *("--env.seconds-per-step", "0.002", "--checkpoint.every", "10", "--log-every", "100"),
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(SECONDS_OF_A_FAULT * FAULTS + 900)]


def learner_of(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = restore_newest(run.folder / "checkpoints").tree["learner"]
    return state


def strike(nodes: RayNodes, run: Run, fault: signal.Signals, chosen: random.Random) -> None:
    """Do it to one of the learners, and wait until that is gone."""
    struck: set[int] = set()

    def is_done() -> bool:
        if learners := sorted(nodes.workers("Learner")):
            learner = chosen.choice(learners)
            with suppress(ProcessLookupError):  # it went by itself a moment ago
                os.kill(learner, fault)
                struck.add(learner)
        return bool(struck)

    wait_until(is_done, SECONDS_OF_A_FAULT, lambda: run.job.output)
    wait_until(lambda: not struck & nodes.workers("Learner").keys(), SECONDS_OF_A_FAULT, lambda: run.job.output)


def wait_for_progress(run: Run) -> None:
    before = run.updates
    wait_until(lambda: run.updates > before, SECONDS_OF_A_FAULT, lambda: run.job.output)


def test_random_kills_and_freezes(nodes: RayNodes, start: Callable[..., Run], tmp_path: Path) -> None:
    chosen = random.Random(0)
    kills = FAULTS * 3 // 5
    faults = [signal.SIGKILL] * kills + [signal.SIGSTOP] * (FAULTS - kills)
    chosen.shuffle(faults)
    run = start("--updates", "10000000", "--learner-restarts", "100000", *WORDS)
    run.wait_for_updates(10)
    nodes_of_learners = set(nodes.workers("Learner").values())
    assert len(nodes_of_learners) == 2
    began, driver_pid = time.monotonic(), driver(nodes)
    for fault in faults:
        # Some of the kills meet learners that have only just begun, the others come after a checkpoint of theirs.
        if fault == signal.SIGSTOP or chosen.random() < 0.7:
            wait_for_progress(run)
        strike(nodes, run, fault, chosen)
        print(f"\nSOAK {fault.name} after {time.monotonic() - began:.0f} s, update {run.updates}", end="", flush=True)
    wait_for_progress(run)
    os.kill(driver_pid, signal.SIGTERM)
    assert run.job.wait(300) == "SUCCEEDED", run.job.output
    summary = json.loads((run.folder / "summary.json").read_text())
    lost = run.job.output.count("started again from the newest checkpoint")
    print(f"\nSOAK {kills} kills, {FAULTS - kills} freezes, {lost} lives lost, {summary['updates']} updates")
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"], summary
    assert FAULTS // 2 < lost <= FAULTS
    (tmp_path / "undisturbed").mkdir()
    undisturbed = train(nodes, tmp_path / "undisturbed", ("--updates", str(summary["updates"]), *WORDS))
    undisturbed.finish(1_800)
    ours, theirs = learner_of(run), learner_of(undisturbed)
    assert ours["update"] == theirs["update"] == summary["updates"]
    for name in ("theta", "eta"):
        assert torch.equal(ours[name], theirs[name]), name
