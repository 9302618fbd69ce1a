"""A run under random kills: nothing hangs, nothing leaks, the account balances.

METAGRAD_SOAK_SECONDS says for how long; 1,800 is what a release is held to.
"""

import json
import os
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import RayNodes, wait_until
from runs import Run

SECONDS = float(os.environ.get("METAGRAD_SOAK_SECONDS", "120"))
SECONDS_BETWEEN_KILLS = 20.0

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(SECONDS + 900)]


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # killed a moment ago
        return 0


def driver(nodes: RayNodes) -> int:
    """The Python process of the job's command."""
    found = [pid for pid, words in nodes.head.processes().items() if "train paced-snake" in words and "python" in words]
    return max(found)  # the shells that started it have smaller ids


def measured(nodes: RayNodes, driver_pid: int) -> dict[str, float]:
    """Bytes: resident in the driver, the learner and the largest actor; used of the shared memory of all nodes."""
    roles = {"learner": "Learner", "actor": "RolloutActor"}
    found = {role: max(map(resident_bytes, nodes.workers(title)), default=0) for role, title in roles.items()}
    stores = 0
    for name, host in nodes.network.hosts.items():
        if host.is_there and name != "client":
            stores += int(host.check("df", "--block-size=1", "--output=used", "/dev/shm").split()[-1])
    return {"driver": resident_bytes(driver_pid), **found, "object stores": stores}


def test_random_kills(nodes: RayNodes, start: Callable[..., Run]) -> None:
    chosen = random.Random(0)
    words = ("--schedule", "peek", "--learner-restarts", "100000", "--faults.restarts-without-progress", "50")
    run = start("--updates", "10000000", *words)
    run.wait_for_updates(20)
    driver_pid, began, killed = driver(nodes), time.monotonic(), defaultdict(int)
    samples: list[dict[str, float]] = []
    progress: list[int] = []
    while time.monotonic() < began + SECONDS:
        what = chosen.choices(("actor", "learner", "raylet"), (6, 2, 2))[0]
        if what == "raylet":
            lost = chosen.choice(("worker-1", "worker-2"))
            nodes.kill_raylet(lost)
            time.sleep(2)
            nodes.network.hosts[lost].power_off()
            nodes.start(lost, 4)
        elif victims := list(nodes.workers("RolloutActor" if what == "actor" else "Learner")):
            os.kill(chosen.choice(victims), signal.SIGKILL)
        killed[what] += 1
        time.sleep(SECONDS_BETWEEN_KILLS)
        assert run.job.status == "RUNNING", run.job.output
        samples.append(measured(nodes, driver_pid))
        progress.append(run.updates)
    before = run.updates
    wait_until(lambda: run.updates > before, 120, lambda: run.job.output)
    os.kill(driver_pid, signal.SIGTERM)
    assert run.job.wait(120) == "SUCCEEDED", run.job.output
    summary = json.loads((run.folder / "summary.json").read_text())
    done, dropped = summary["updates"], summary["dropped_reasons"]
    print(f"\nSOAK {SECONDS:g} s, kills {dict(killed)}: {done} updates, dropped {dropped}")
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"], summary
    stalls = [i for i in range(6, len(progress)) if progress[i] == progress[i - 6]]
    assert not stalls, f"no checkpoint for two minutes: {progress}"
    quarter = len(samples) // 4
    for role in samples[0]:
        values = [sample[role] for sample in samples if sample[role]]
        early, late = (statistics.median(x) for x in (values[quarter : 2 * quarter + 1], values[-quarter - 1 :]))
        print(f"SOAK {role}: {early / 2**20:.0f} MiB in the second quarter, {late / 2**20:.0f} MiB in the last")
        assert late < 1.15 * early + 20 * 2**20, f"{role}: {[round(x / 2**20) for x in values]} MiB"
