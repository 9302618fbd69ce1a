"""What a result was made with and on: versions, commit, processor. No names of machines or people."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metagrad.cores import usable_cores

_ROOT = Path(__file__).resolve().parents[2]  # resolved: in a checkout metagrad/cluster is a link


def provenance() -> dict[str, Any]:
    """Plain data: versions of metagrad, torch and Python, git commit (None outside of a checkout), hardware."""
    return {
        "metagrad": version("metagrad"),
        "commit": commit(_ROOT),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware(Path("/proc/cpuinfo")),
    }


@functools.cache
def commit(root: Path) -> str | None:
    """The commit checked out at `root`, "+changes" behind it where tracked files differ; None: it is no checkout."""
    # An installed package may lie inside somebody else's repository.
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head if head is None or not changes else f"{head}+changes"


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or somebody else's folder
        return None
    return done.stdout.strip()


def hardware(cpu_info: Path) -> str:
    """Processor model and the cores that this process may use."""
    model = platform.machine()
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = usable_cores()
    return f"{model}, {cores} core{'s' if cores != 1 else ''}"
