"""A run whose Ray is killed under it: told in one line before Ray aborts the process, and continued."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    tmp_path: Path, victim: str, line: str, updates_after: int
) -> None:
    words = [
        str(Path(sys.executable).with_name("metagrad")),
        "train",
        "demo",
        "--run-dir",
        "run",
        "--checkpoint.every",
        "5",
    ]
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    options = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    process = subprocess.Popen([*words, "--updates", "100000"], **options)  # type: ignore[call-overload]
    while not (checkpoints.is_dir() and list(checkpoints.glob("update-*.pt"))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    before = newest(checkpoints)
    os.kill(children(process.pid)[victim], signal.SIGKILL)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 1, output
    end = rf"^metagrad: {line} does not answer any more at 127\.0\.0\.1:\d+; what was written stands; continue with"
    assert re.search(end, output, re.MULTILINE), output
    assert "Traceback" not in output
    assert "dump" not in output
    after = newest(checkpoints)
    assert after >= before + updates_after
    more = subprocess.run([*words, "--resume", "--updates", str(after + 2)], **options, check=False)  # type: ignore[call-overload]
    assert (more.returncode, newest(run / "checkpoints")) == (0, after + 2), more.stdout


def newest(checkpoints: Path) -> int:
    return max(int(path.stem.removeprefix("update-")) for path in checkpoints.glob("update-*.pt"))
