"""A run whose Ray is killed under it: told in one line before Ray aborts the process, and continued."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def children(pid: int) -> dict[str, int]:
    """Name -> process."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in words}


@pytest.mark.parametrize(
    ("victim", "line", "updates_after"),
    [
        ("gcs_server", r"the head of the Ray cluster \(GCS\)", 1),
        ("raylet", r"Ray's own process on this node \(raylet\)", 0),
    ],
)
def test_a_run_whose_ray_is_killed_ends_in_one_line_and_is_continued(
    metagrad: Callable[..., Any], tmp_path: Path, victim: str, line: str, updates_after: int
) -> None:
    words, checkpoints = (
        ("train", "demo", "--run-dir", "run", "--checkpoint.every", "5"),
        tmp_path / "run" / "checkpoints",
    )
    command = metagrad(*words, "--updates", "100000")
    command.wait_until(lambda: list(checkpoints.glob("update-*.pt")))
    before = newest(checkpoints)
    os.kill(children(command.process.pid)[victim], signal.SIGKILL)
    assert command.wait() == 1, command.output
    output = command.output
    end = rf"^metagrad: {line} no longer answers at 127\.0\.0\.1:\d+; what was written stands; continue with"
    assert re.search(end, output, re.MULTILINE), output
    assert "Traceback" not in output
    assert "dump" not in output
    after = newest(checkpoints)
    assert after >= before + updates_after
    more = metagrad(*words, "--resume", "--updates", str(after + 2))
    assert (more.wait(), newest(checkpoints)) == (0, after + 2), more.output


def newest(checkpoints: Path) -> int:
    return max(int(path.stem.removeprefix("update-")) for path in checkpoints.glob("update-*.pt"))
