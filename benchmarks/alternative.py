"""Runs what a user would pick instead: a program of `benchmarks/alternatives/`, in its own environment.

An alternative's packages never become ours. `make alternatives` installs them, pinned, in `.alternatives/NAME`; here a
process of that environment prepares its cases once and then waits, using no core, until it is asked for a run.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Timing

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".alternatives"


class NotInstalled(Exception):
    """The environment of an alternative is not there."""


class Run(NamedTuple):
    """Holds one run in the other process."""

    timing: Timing
    answer: dict[str, Any]  # all that it said, its own seconds among it


class Alternative:
    """Runs a program and offers its cases."""

    def __init__(self, program: str, process: "subprocess.Popen[str]"):
        self._program, self._process = program, process
        self.hello: dict[str, Any] = {}
        self.hello = self._read()

    @property
    def versions(self) -> dict[str, str]:
        """Return the packages that it runs on."""
        return dict(self.hello["versions"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._program} ended with exit code {self._process.wait()}: its traceback is above")
        return dict(json.loads(line))

    def run(self, case: str) -> Run:
        """Run a case once; its seconds are those that the other process measured around it.

        Raises:
            RuntimeError: the program ended.
        """
        assert self._process.stdin is not None
        print(case, file=self._process.stdin, flush=True)
        answer = self._read()
        return Run(Timing(answer["wall_s"], answer["cpu_s"]), answer)

    def case(self, name: str) -> Callable[[], Timing]:
        """Return a case for `harness.interleave`."""
        if name not in self.hello["cases"]:
            raise ValueError(f"{self._program} has the cases {self.hello['cases']}, not {name!r}")
        return lambda: self.run(name).timing


def interpreter(environment: str) -> Path:
    """Return the Python of `.alternatives/ENVIRONMENT`.

    Raises:
        NotInstalled: it is not there.
    """
    python = FOLDER / environment / "bin" / "python"
    if not python.exists():
        raise NotInstalled(
            f"alternatives = {environment!r}: must be installed in {python.parent.parent.relative_to(ROOT)}; "
            "run make alternatives, or measure ours alone with --alone"
        )
    return python


@contextmanager
def alternative(
    environment: str, program: str, *arguments: str, variables: Mapping[str, str] | None = None
) -> Iterator[Alternative]:
    """Run `benchmarks/alternatives/PROGRAM.py` in its environment; it ends with the block.

    Args:
        environment: folder under `.alternatives`.
        program: module under `benchmarks.alternatives`; it calls `serve`.
        arguments: its command line.
        variables: environment variables, such as numbers of threads; the rest is this process's own.

    Raises:
        NotInstalled: the environment is not there.
        RuntimeError: the program ended.
    """
    process = subprocess.Popen(
        [str(interpreter(environment)), "-m", f"benchmarks.alternatives.{program}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(variables or {}),
    )
    try:
        yield Alternative(program, process)
    finally:
        process.kill()
        process.communicate()
