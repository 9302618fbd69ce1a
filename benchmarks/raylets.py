"""Starts Ray nodes for a benchmark: raylets on this machine, in their own folder, which end with the block."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import in_fresh_process
from metagrad.cluster.run.variables import environment_variables

_OBJECT_STORE_BYTES = 400 * 2**20  # of each node
_SECONDS_TO_START, _SECONDS_TO_END = 120.0, 60.0
_RAY = Path(sys.executable).parent / "ray"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    """Run in the new process: it is told to end when ours does, however that happens (Linux; elsewhere nothing)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _start(words: Sequence[str], cpus: int, variables: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a raylet, and at the head the cluster's other processes, in the foreground of their own process group."""
    common = ["--block", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--disable-usage-stats"]
    # Ports that the system chooses: nodes at one address would give their workers the same ones.
    ports = ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(_RAY), "start", *words, *common, *ports],
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


@contextmanager
def raylets(cpus: Sequence[int]) -> Iterator[dict[str, str]]:
    """Start a cluster of one node per entry, with so many nominal CPUs.

    Yield the variables for a process that connects.

    Raises:
        RuntimeError: a node ended instead of starting.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # sockets lie in it: their paths must be short
        port = _free_port()
        session = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        address = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        nodes = []
        try:
            for index, count in enumerate(cpus):
                head = ["--head", f"--port={port}", "--include-dashboard=false"]
                words = [f"--address=127.0.0.1:{port}"] if index else head
                log = Path(folder) / f"start-{index}.txt"
                nodes.append(_start(words, count, inherited | session, log))
                _wait(nodes[-1], log)
            yield session | address
        finally:
            for node in reversed(nodes):
                _end(node)


def _wait(node: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a node says that it runs."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while "Ray runtime started" not in (said := log.read_text()):
        if node.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a Ray node did not start: {said}")
        time.sleep(0.1)


def _end(node: "subprocess.Popen[bytes]") -> None:
    """End the node's processes with it, by their ids: `ray start --block` takes down what it started."""
    if node.poll() is None:
        node.terminate()
    try:
        node.wait(timeout=_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def on_raylets(cpus: Sequence[int], function: Callable[..., Any], *arguments: object) -> Any:
    """Call `function(*arguments)` in a fresh process beside such a cluster, to which its Ray sessions connect."""
    with raylets(cpus) as variables, environment_variables(variables):
        return in_fresh_process(function, *arguments)
