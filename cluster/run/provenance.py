"""Record what a result was made with and on: versions, commit, processor. No machine or person is named."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metagrad.cores import usable_cores

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if this is one; resolved, because metagrad/cluster is a link there."""
CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> dict[str, Any]:
    """Return versions of metagrad, torch and Python, the git commit (None outside of a checkout) and the hardware."""
    return {
        "metagrad": version("metagrad"),
        "commit": commit(ROOT),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware(CPU_INFO),
    }


@functools.cache
def commit(root: Path) -> str | None:
    """Return the commit checked out at `root`, with "+changes" where tracked files differ; None: it is no checkout."""
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
    """Return the processor's model and the number of cores that this process may use."""
    cores = usable_cores()
    return f"{processor(cpu_info)}, {cores} core{'s' if cores != 1 else ''}"


def processor(cpu_info: Path) -> str:
    """Return the processor's model, or its architecture where the system does not say."""
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
