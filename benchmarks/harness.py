"""Measures cases for every benchmark: in turn, medians with quartiles, memory in fresh processes, facts of the machine.

A number of one case alone says little on a shared machine, so cases are timed in turn (A B C, A B C, …) in one process
and compared round by round: what slows the machine slows neighbours in time alike. Wall time is what a person waits;
CPU time of the process (all threads) is given beside it, because it does not count the time others had the core.
"""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metagrad.cluster.run.provenance import CPU_INFO, ROOT, commit, processor
from metagrad.cluster.run.variables import environment_variables
from metagrad.cores import usable_cores

MIN_ROUNDS = 5  # below it a quartile says nothing

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # for a process whose peak memory is measured: see in_fresh_process

RECORDED_PACKAGES = ("torch", "numpy", "ray", "envpool", "ale-py")


class Timing(NamedTuple):
    """Holds one run of one case."""

    wall_s: float
    cpu_s: float  # user and system time of all threads of this process


def _seconds() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def interleave(
    cases: Mapping[str, Callable[[], object]], rounds: int, warm_up_rounds: int = 1
) -> dict[str, list[Timing]]:
    """Run all cases in turn: rounds that are not counted, then `rounds` rounds that are.

    A case that runs in another process returns the `Timing` measured there.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in cases}
    for round_ in range(-warm_up_rounds, rounds):
        for name, case in cases.items():
            wall, cpu = _seconds()
            returned = case()
            wall_end, cpu_end = _seconds()
            if round_ >= 0:
                here = Timing(wall_end - wall, cpu_end - cpu)
                timings[name].append(returned if isinstance(returned, Timing) else here)
    return timings


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'q1': 1.5, 'q3': 2.5, 'count': 3}
    """
    first = third = values[0]
    if len(values) > 1:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "q1": first, "q3": third, "count": len(values)}


def time_summary(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Summarise wall and CPU seconds."""
    return {
        "wall_s": summary([timing.wall_s for timing in timings]),
        "cpu_s": summary([timing.cpu_s for timing in timings]),
    }


def ratio_summary(timings: Sequence[Timing], base: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Summarise how many times as long as `base` a case took, round by round."""
    pairs = list(zip(timings, base, strict=True))
    return {
        "wall": summary([a.wall_s / b.wall_s for a, b in pairs]),
        "cpu": summary([a.cpu_s / b.cpu_s for a, b in pairs]),
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's CPU kernels on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this thread and what it starts to one core, and torch to one thread.

    The core is the last that this process may use: interrupts mostly go to the first.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        with torch_threads(1):
            yield
    finally:
        os.sched_setaffinity(0, before)


def in_fresh_process(function: Callable[..., Any], *args: object) -> Any:
    """Call `function(*args)` in a new interpreter, so that nothing that ran before is in its memory.

    Large blocks go back to the system as soon as they are freed there (glibc's growing mmap threshold is held still):
    the peak is then what was alive, not what the allocator kept for later.
    """
    with environment_variables(GIVES_BACK), ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _resident_bytes() -> int:
    """Return the resident memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_growth_bytes(case: Callable[[], object]) -> int:
    """Peak memory of `case` over what was resident before it; on a GPU, of its allocator. Meant for a fresh process.

    On the CPU the peak is the process's own high-water mark, which must lie above that of everything before.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    earlier_peak, before = _peak_resident_bytes(), _resident_bytes()
    case()
    peak = _peak_resident_bytes()
    if peak <= earlier_peak:
        raise RuntimeError("the case needed less memory than its preparation: its peak cannot be told")
    return peak - before


def _peak_resident_bytes() -> int:
    """Return the high-water mark of resident memory.

    VmHWM and not ru_maxrss, which a new process inherits from its parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def machine_record() -> dict[str, Any]:
    """Return hardware, versions and load: what a number needs beside it to be compared with another."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "cpu": processor(CPU_INFO),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "load_average_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(ROOT) or "unknown",
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def at_most(name: str, value: float, limit: float) -> dict[str, Any]:
    """A promise and whether it was kept: `value` must not exceed `limit`."""
    return {"name": name, "value": value, "at_most": limit, "met": value <= limit}


def at_least(name: str, value: float, limit: float) -> dict[str, Any]:
    """A promise and whether it was kept: `value` must reach `limit`."""
    return {"name": name, "value": value, "at_least": limit, "met": value >= limit}


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write one result, readable and in one stable order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def render(result: Mapping[str, Any], indent: int = 0) -> str:
    """Render a nested result as indented lines; a summary takes one line."""
    lines = []
    for name, value in result.items():
        head = "  " * indent + name
        if isinstance(value, Mapping) and set(value) == {"median", "q1", "q3", "count"}:
            lines.append(f"{head}: {value['median']:.4g} [{value['q1']:.4g}, {value['q3']:.4g}] of {value['count']}")
        elif isinstance(value, Mapping):
            lines += [f"{head}:", render(value, indent + 1)]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            lines += [f"{head}:"] + [
                "  " * (indent + 1) + ", ".join(f"{k} = {_number(v)}" for k, v in item.items()) for item in value
            ]
        else:
            lines.append(f"{head}: {_number(value)}")
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
