"""Resident memory of the learner's process does not grow while a run goes on."""

import re
from collections.abc import Callable
from typing import Any

import pytest

# Printed by the run itself, after its updates 200 and 2,000.
MEASURING = """
from metagrad.learner.actor_critic import ActorCritic
update = ActorCritic.update
def measured(algorithm, state, sample):
    result = update(algorithm, state, sample)
    if result[0].update in (200, 2000):
        status = open("/proc/self/status").read()
        print("\\nVmRSS at", result[0].update, status.split("VmRSS:")[1].split()[0], "kB", flush=True)
    return result
ActorCritic.update = measured
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", ["colocated", "ray"])
@pytest.mark.parametrize("changes", [("--meta.n", "3"), ("--meta.n", "3", "--meta.product", "recompute")], ids=" ".join)
def test_resident_memory_is_flat(
    metagrad: Callable[..., Any],
    tiny_words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    topology: str,
    changes: tuple[str, ...],
) -> None:
    words = (*tiny_words, *changes, "--topology", topology, "--updates", "2001", "--checkpoint.every", "100")
    command = metagrad(*words, prelude=MEASURING)
    assert command.process.wait(timeout=800) == 0, command.output
    early, late = (int(kilobytes) for kilobytes in re.findall(r"VmRSS at \d+ (\d+) kB", command.output))
    with capsys.disabled():
        print(f"\n{topology} {' '.join(changes)}: {early / 1024:.1f} MiB at 200, {late / 1024:.1f} MiB at 2,000")
    assert late <= 1.05 * early
