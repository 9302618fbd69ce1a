"""A network of computers inside one: each has its own address, processes, /dev/shm and /tmp/ray, on a common switch.

A computer is a process (`unshare`) that holds namespaces for network, mounts, process ids and host name; commands enter
them with `nsenter`. The namespaces have no names anywhere: they, the switch and every process within end with their
holder, and a holder ends with the thread that started it, however that ends. So nothing is left behind, nothing has to
be cleaned up, and networks of several test processes do not see each other, though all use the same addresses.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TOOLS = ("ip", "mount", "nsenter", "setpriv", "unshare")
NETWORK = "10.77.0"

_CLONE_NEWNET = 0x40000000
_SECONDS_TO_BOOT = 30.0

# Process 1 of a computer. It ignores SIGCHLD, and so the kernel reaps the orphans that fall to it; `trap '' CHLD` would
# not do: dash does not hand that on through exec.
# $1: its folder, $2: host name, $3: bytes of /dev/shm.
_INIT = """
set -e
hostname "$2"
ip link set lo up
mount -t tmpfs -o "size=$3" tmpfs /dev/shm
mount --bind "$1/ray" /tmp/ray
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" /etc/resolv.conf
touch "$1/is-up"
exec env --ignore-signal=CHLD sleep infinity
"""


class NotPossible(Exception):
    """This machine, or this user, cannot have networks of its own."""


def why_not(folder: Path) -> str | None:
    """The reason why there can be no such network here, if there is one."""
    if os.geteuid() != 0:
        return "needs root: namespaces with mounts and network devices"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux)"
    try:
        with network(folder) as there:
            there.add("probe")
    except NotPossible as error:
        return str(error)
    return None


@contextmanager
def network(folder: Path) -> Iterator["Network"]:
    """A network without computers yet; its computers keep their files under `folder`."""
    there = Network(folder)
    try:
        yield there
    finally:
        there.close()


def _checked(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise NotPossible(f"`{' '.join(words)}` says: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class _Namespaces:
    """A process that holds namespaces, and its child: the first process within."""

    def __init__(self, unshared: Sequence[str], script: str, arguments: Sequence[str], is_up: Path):
        is_up.unlink(missing_ok=True)
        held = ("setpriv", "--pdeathsig", "KILL", "unshare", *unshared, "--fork", "--kill-child")
        self._holder = subprocess.Popen(
            (*held, "sh", "-c", script, "sh", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        end = time.monotonic() + _SECONDS_TO_BOOT
        while not is_up.exists():
            if self._holder.poll() is not None or time.monotonic() > end:
                self._holder.kill()
                _, complaint = self._holder.communicate()
                raise NotPossible(f"no namespaces here: {complaint.strip()}")
            time.sleep(0.01)
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self.pid = int(children.split()[0])

    @property
    def is_there(self) -> bool:
        return self._holder.poll() is None

    def end(self) -> None:
        """Kill everything within, at once, and wait until it is gone."""
        if self.is_there:
            os.kill(self.pid, signal.SIGKILL)  # process 1: the kernel takes all others with it
        self._holder.wait(timeout=60)
        assert self._holder.stderr is not None
        self._holder.stderr.close()


class Network:
    """A switch and the computers on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        script = 'set -e; ip link add switch type bridge; ip link set switch up; touch "$1"; exec sleep infinity'
        is_up = folder / "switch-is-up"
        self._switch = _Namespaces(("--net",), script, (str(is_up),), is_up)
        self.hosts: dict[str, Host] = {}
        self._ports = 0

    def add(self, name: str, shared_memory: int = 2**28) -> "Host":
        """Another computer, connected; a name that was there before gets its old address and files.

        Args:
            name: its host name.
            shared_memory: bytes of /dev/shm.
        """
        before = self.hosts.get(name)
        assert before is None or not before.is_there, f"{name} is there"
        self._ports += 1
        address = before.address if before else f"{NETWORK}.{len(self.hosts) + 2}"
        host = Host(self, name, address, f"port{self._ports}", shared_memory)
        self.hosts[name] = host
        lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in self.hosts.values())]
        for each in self.hosts.values():
            (each.folder / "hosts").write_text("\n".join(lines) + "\n")
        return host

    def in_switch(self, *words: str) -> str:
        """Output of a command in the switch's network."""
        return _checked("nsenter", f"--net=/proc/{self._switch.pid}/ns/net", *words)

    @property
    def switch_pid(self) -> int:
        """Of a process whose network is the switch's."""
        return self._switch.pid

    def close(self) -> None:
        """End all of it."""
        for host in self.hosts.values():
            host.power_off()
        self._switch.end()


class Host:
    """One computer."""

    def __init__(self, network: Network, name: str, address: str, port: str, shared_memory: int):
        self.network = network
        self.name = name
        self.address = address
        self.folder = network.folder / name
        self._port = port
        (self.folder / "ray").mkdir(parents=True, exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)  # only to mount upon
        (self.folder / "hosts").touch()
        (self.folder / "resolv.conf").write_text("")  # nobody to ask, rather than somebody who never answers
        unshared = ("--net", "--mount", "--pid", "--uts", "--ipc", "--mount-proc")
        arguments = (str(self.folder), name, str(shared_memory))
        self._namespaces = _Namespaces(unshared, _INIT, arguments, self.folder / "is-up")
        pids = (str(self._namespaces.pid), str(network.switch_pid))
        _checked("ip", "link", "add", "eth0", "netns", pids[0], "type", "veth", "peer", "name", port, "netns", pids[1])
        self.check("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.check("ip", "link", "set", "eth0", "up")
        self.check("ip", "route", "add", "default", "dev", "eth0")  # what tells a program its own address
        network.in_switch("ip", "link", "set", port, "master", "switch")
        self.connect()

    @property
    def is_there(self) -> bool:
        """False after the power went."""
        return self._namespaces.is_there

    def _entered(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self._namespaces.pid), "--net", "--mount", "--pid", "--uts", "--ipc", *words]

    def check(self, *words: str) -> str:
        """Output of a command that must work."""
        return _checked(*self._entered(words))

    def start(self, words: Sequence[str], environment: Mapping[str, str], output: Path) -> "subprocess.Popen[bytes]":
        """Start a command in the folder of its output file, which is appended to."""
        with output.open("ab") as file:
            return subprocess.Popen(
                self._entered(["env", "-C", str(output.parent), *words]),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns when its sockets are this computer's."""
        result: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(f"/proc/{self._namespaces.pid}/ns/net") as space:
                    if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")
                result.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)  # of its own: a thread that entered does not come back
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return result[0]

    def processes(self) -> dict[int, str]:
        """Process id out here to command line, of all that run here; Ray's workers are `ray::Class.method` there."""
        space = os.stat(f"/proc/{self._namespaces.pid}/ns/pid").st_ino
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.stat(folder / "ns/pid").st_ino == space:
                    words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                    found[int(folder.name)] = words.decode(errors="replace")
            except OSError:  # gone meanwhile
                continue
        return {pid: words for pid, words in found.items() if words}  # a zombie has none

    def power_off(self) -> None:
        """Every process is gone at once, and so is the cable."""
        self._namespaces.end()

    def disconnect(self) -> None:
        """Pull the cable."""
        self.network.in_switch("ip", "link", "set", self._port, "down")

    def connect(self) -> None:
        """Plug it in."""
        self.network.in_switch("ip", "link", "set", self._port, "up")

    def replace(self, path: Path, by: Path) -> None:
        """Here alone, something else is at a path: until the power goes, and for what opens it from now on."""
        self.check("mount", "--bind", str(by), str(path))

    def bytes_received(self) -> int:
        """By this computer from the others, counted by the switch."""
        shown: list[dict[str, Any]] = json.loads(
            self.network.in_switch("ip", "-json", "-statistics", "link", "show", "dev", self._port)
        )
        return int(shown[0]["stats64"]["tx"]["bytes"])
