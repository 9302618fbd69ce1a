"""Counts the cores that this process may keep busy: its affinity mask, the CPU quota of its container, OMP_NUM_THREADS.

A container with a quota sees all cores of its machine, and the kernel stops all of its threads for the rest of each
period (mostly 100 ms) once they have used the quota up. Threads that wait for each other then wait for whole periods.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores of the affinity mask, at most as many as the CPU quotas of this process's control groups pay for.

    At least 1; of a broken number the whole part, since one thread more would be stopped in each period.

    Args:
        root: where `proc` and the mounts are; for tests.
    """
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), *_quotas(root), math.inf)))


def default_threads() -> int:
    """Return the threads for a computation without a given number.

    They are `usable_cores`, at most OMP_NUM_THREADS where it is set.

    A value that is no number is ignored, as OpenMP does, which prints a line about it.
    """
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    asked = int(outermost) if outermost.isdecimal() else 0
    cores = usable_cores()
    return min(cores, asked) if asked else cores


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of CPU time of each control group that has a limit, from the own one to the topmost."""
    process = root / "proc/self"
    own: dict[str, PurePosixPath] = {}  # by controller; that of version 2 has an empty name
    for line in _text(process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in _text(process / "mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        _, _, _, mounted, point, *_ = mount.split()
        kind, _, options = filesystem.split(maxsplit=2)
        is_version_1 = kind == "cgroup" and "cpu" in options.split(",")
        group = own.get("cpu" if is_version_1 else "")
        if group is None or not (is_version_1 or kind == "cgroup2"):
            continue
        # A container may see its own group as the root of the mount, and its path as it is outside or with "..".
        is_below = group.is_relative_to(mounted) and ".." not in group.parts
        below = group.relative_to(mounted) if is_below else PurePosixPath()
        for each in (below, *below.parents):
            folder = root / point.lstrip("/") / each
            limit = _text(folder / "cpu.max").split()
            if is_version_1:
                limit = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            if len(limit) == 2 and limit[0].isdecimal():  # not "max", and not -1
                yield int(limit[0]) / int(limit[1])


def _text(path: Path) -> str:
    """Read a file of the kernel; empty where there is none, such as in the topmost group."""
    try:
        return path.read_text()
    except OSError:
        return ""
