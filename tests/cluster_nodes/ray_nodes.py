"""A Ray cluster on a network of namespaces: raylets, jobs, and what a test does to them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netns import Host, Network

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
OBJECT_STORE_BYTES = 100 * 2**20
SECONDS_TO_START = 240.0  # with two cores for everything, and those busy, a node takes half a minute


def wait_until(condition: Callable[[], Any], seconds: float, what: Callable[[], str], pause: float = 0.2) -> float:
    """Seconds until the condition was true; after `seconds` it fails, and says what it has waited for."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < seconds, f"not after {waited:.0f} s: {what()}"
        time.sleep(pause)
    return time.monotonic() - start


class RayNodes:
    """A head with the job server, and workers that come and go."""

    def __init__(self, network: Network, token: str):
        self.network = network
        self.token = token
        self.head = network.add("head")
        self.client = network.add("client")  # a computer that is no node
        self._raylets: dict[str, subprocess.Popen[bytes]] = {}
        self._jobs = 0
        self._submitted: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of every command: this checkout's code and nothing of the test's surroundings."""
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "LC_ALL") if key in os.environ}
        return kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Ray's 15 leaves them nothing beside a busy process of somebody else
        }

    @property
    def dashboard(self) -> str:
        """Address of the job server."""
        return f"http://{self.head.address}:8265"

    def start(self, name: str, cpus: int, **environment: str) -> Host:
        """A raylet on a computer, which is switched on where it is not; returns without waiting for it."""
        host = self.network.hosts.get(name)
        if host is None or not host.is_there:
            host = self.network.add(name)
        if before := self._raylets.pop(name, None):
            before.wait(timeout=60)
        words = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={host.address}", f"--num-cpus={cpus}"]
        words += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        if host is self.head:
            words += ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265"]
        else:
            words += [f"--address={self.head.address}:6379"]
        self._raylets[name] = host.start(words, self.environment | environment, host.folder / "ray-start.txt")
        return host

    def get(self, path: str, data: Mapping[str, Any] | None = None) -> Any:
        """Answer of the head's dashboard to the client computer; None: it does not answer (yet)."""
        request = urllib.request.Request(
            f"{self.dashboard}{path}",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )

        def ask() -> Any:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)

        try:
            return self.client.call(ask)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def alive(self) -> set[str]:
        """Names of the nodes that the cluster has now."""
        shown = self.get("/api/v0/nodes?limit=1000&timeout=15") or {"data": {"result": {"result": []}}}
        addresses = {node["node_ip"] for node in shown["data"]["result"]["result"] if node["state"] == "ALIVE"}
        return {name for name, host in self.network.hosts.items() if host.address in addresses}

    def wait_for_nodes(self, *names: str) -> float:
        """Seconds until exactly these nodes are there."""
        for name in names:
            process = self._raylets[name]
            assert process.poll() is None, (self.network.hosts[name].folder / "ray-start.txt").read_text()
        return wait_until(
            lambda: self.alive() == set(names), SECONDS_TO_START, lambda: f"nodes {names}: {self.alive()}", pause=0.5
        )

    def kill_raylet(self, name: str) -> None:
        """SIGKILL of the raylet alone: its workers notice it and exit."""
        for pid, words in self.network.hosts[name].processes().items():
            if words.split(" ")[0].endswith("/raylet"):
                os.kill(pid, signal.SIGKILL)

    def restore(self, cpus: Mapping[str, int]) -> None:
        """Exactly these nodes, connected and with so many CPUs: missing ones are started, others are ended."""
        for name, host in self.network.hosts.items():
            if host.is_there and name not in cpus and host is not self.client:
                host.power_off()
            elif host.is_there:
                host.connect()
        for name in cpus:
            process = self._raylets.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                self.network.hosts[name].power_off()
            self.start(name, cpus[name])
            if name == self.head.name:
                self.wait_for_nodes(name)
        self.wait_for_nodes(*cpus)

    def close(self) -> None:
        """End all raylets, and wait for the commands that started them."""
        for name, process in self._raylets.items():
            self.network.hosts[name].power_off()
            process.wait(timeout=60)

    def stop_jobs(self) -> None:
        """None runs afterwards."""
        for name in [job for job in self._submitted if Job(self, job).status in ("PENDING", "RUNNING")]:
            self.get(f"/api/jobs/{name}/stop", {})
            Job(self, name).wait(60.0)
        self._submitted.clear()

    def workers(self, title: str) -> dict[int, str]:
        """Process id to name of the node, of Ray workers whose title has this word: `ray::RolloutActor.rollout`."""
        return {
            pid: name
            for name, host in self.network.hosts.items()
            if host.is_there
            for pid, words in host.processes().items()
            if words.startswith("ray::") and title in words
        }

    def command(self, *words: str, folder: Path, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command on the client computer, in a folder."""
        self._jobs += 1
        output = folder / f"command-{self._jobs}.txt"
        process = self.client.start([str(BIN / words[0]), *words[1:]], self.environment | environment, output)
        return process.wait(timeout=SECONDS_TO_START), output.read_text()

    def submit(self, *words: str, folder: Path) -> "Job":
        """`ray job submit -- WORDS` from the client computer; the driver runs in `folder`, which all share."""
        name = f"job-{self._jobs}"
        submit = ["ray", "job", "submit", "--address", self.dashboard, "--no-wait", "--submission-id", name, "--"]
        code, output = self.command(*submit, "env", "-C", str(folder), *words, folder=self.client.folder)
        assert code == 0, output
        return self.job(name)

    def job(self, name: str) -> "Job":
        """One that was submitted; it ends with the test."""
        self._submitted.append(name)
        return Job(self, name)


class Job:
    """A submitted driver."""

    def __init__(self, nodes: RayNodes, name: str):
        self.nodes = nodes
        self.name = name

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED; UNKNOWN where the head does not answer."""
        shown = self.nodes.get(f"/api/jobs/{self.name}")
        return str(shown["status"]) if shown else "UNKNOWN"

    @property
    def exit_code(self) -> int | None:
        """Of the driver."""
        return (self.nodes.get(f"/api/jobs/{self.name}") or {}).get("driver_exit_code")

    @property
    def output(self) -> str:
        """Return what the driver has printed."""
        found = sorted(self.nodes.head.folder.glob(f"ray/session_2*/logs/job-driver-{self.name}.log"))
        return found[-1].read_text(errors="replace") if found else ""

    def wait(self, seconds: float) -> str:
        """Its last status."""
        wait_until(lambda: self.status in ("SUCCEEDED", "FAILED", "STOPPED"), seconds, lambda: self.output, pause=1.0)
        return self.status
