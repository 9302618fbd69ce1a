"""Runs a whole system once in its own session; whatever it started ends with it, however it ended.

Systems of many processes leave some behind when they are interrupted. Here the leader of the session ends it as soon as
nobody holds the other end of its standard input, and its parent kills what is left. No other packages than
Python's own, since the alternatives' programs run this too.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """Holds what /proc says about a process."""

    pid: int
    state: str  # Z: it has ended, and its parent has not asked yet
    parent: int
    session: int
    name: str
    cpu_s: float  # of all its threads so far


def processes() -> list[Process]:
    """List all processes of this machine that still run (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            found.append(parse(path.read_text()))
    return [each for each in found if each.state != "Z"]


def parse(stat: str) -> Process:
    """Parse one line of /proc/PID/stat; the name may have blanks and brackets.

    >>> parse("7 (a (b)) S 3 7 5 0 -1 0 0 0 0 0 100 50 0 0").name
    'a (b)'
    """
    head, _, tail = stat.rpartition(")")
    pid, _, name = head.partition(" (")
    fields = tail.split()
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
    return Process(int(pid), fields[0], int(fields[1]), int(fields[3]), name, cpu_s)


def members(leader: int, everybody: list[Process]) -> list[Process]:
    """Return a session, and the descendants of its processes that have left it."""
    inside = {each.pid for each in everybody if leader in (each.pid, each.session)}
    while more := {each.pid for each in everybody if each.parent in inside} - inside:
        inside |= more
    return [each for each in everybody if each.pid in inside]


def cpu_seconds(leader: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds so far of each process of a run."""
    return {each.pid: (each.name, each.cpu_s) for each in members(leader, processes())}


class Window:
    """Wall and CPU seconds of a steady piece of a run, from its construction to `close`."""

    def __init__(self) -> None:
        self._leader = os.getpid()
        self._cpu = cpu_seconds(self._leader)
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Return the wall time so far."""
        return time.perf_counter() - self._since

    def close(self) -> dict[str, Any]:
        """Return wall seconds, the cores in use on average, and the share of each process."""
        seconds, now = self.seconds, cpu_seconds(self._leader)
        used = {pid: (name, cpu - self._cpu.get(pid, ("", 0.0))[1]) for pid, (name, cpu) in now.items()}
        busy = sorted(used.values(), key=lambda each: -each[1])
        return {
            "window_s": seconds,
            "cores_busy": sum(cpu for _, cpu in busy) / seconds,
            "processes": [{"name": name, "cores": cpu / seconds} for name, cpu in busy if cpu > 0.01 * seconds],
        }


def lead() -> None:
    """Called first by the leader of a session: what it starts ends with it, and it when standard input is closed.

    The leader itself looks for what is left when it ends: the descendants of a process that is gone are nobody's.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        end(os.getpid())
        os._exit(1)

    atexit.register(end, os.getpid())
    threading.Thread(target=wait, daemon=True).start()


def end(leader: int) -> None:
    """Kill all of a run except its leader, until nothing of it is left."""
    deadline = time.monotonic() + 10
    while left := [each.pid for each in members(leader, processes()) if each.pid != leader]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} do not end")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def run_in_group(
    module: str, arguments: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS` as the leader of a session; it gives its result with `answer`.

    Args:
        module: it calls `lead` before anything else.
        arguments: its command line.
        seconds: it is ended after so long.
        variables: of its environment; the rest is this process's own.

    Raises:
        RuntimeError: it failed, or took longer.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(variables or {}),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Of standard output, not its end, since processes that are left behind hold it: the answer is one line.
        is_there, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if is_there else ""
        if is_there:  # it is ending by itself, with an exit code of its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
    finally:
        end(process.pid)
        process.kill()
        code = process.wait()
        process.stdin.close()
        process.stdout.close()
    if not line:
        raise RuntimeError(f"{module} said nothing within {seconds} s: exit code {code}, its traceback is above")
    return dict(json.loads(line))


def seconds_at_most(warm_up_s: float, window_s: float) -> float:
    """That a run may take in all, its start and its end included."""
    return 120 + warm_up_s + 3 * window_s


def answering() -> Callable[[Mapping[str, Any]], None]:
    """Reserve standard output for one answer.

    Whatever libraries print, also in processes yet to start, is an error's.
    """
    lead()
    answers = os.fdopen(os.dup(1), "w")
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers, flush=True)
