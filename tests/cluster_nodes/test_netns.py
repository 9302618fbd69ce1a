"""The network itself, without Ray: what a test may rely on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from netns import Host, Network, NotPossible, network, why_not
from ray_nodes import wait_until

pytestmark = pytest.mark.cluster

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def reach(source: Host, server: socket.socket, target: Host, seconds: float = 0.5) -> bool:
    """True where a connection comes up, over which 100,000 bytes are sent back."""
    try:
        connection = source.call(
            lambda: socket.create_connection((target.address, server.getsockname()[1]), timeout=seconds)
        )
    except OSError:
        return False
    with connection, server.accept()[0] as accepted:
        accepted.sendall(bytes(100_000))
        return len(connection.recv(100_000, socket.MSG_WAITALL)) == 100_000


def serve(host: Host) -> socket.socket:
    return host.call(lambda: socket.create_server((host.address, 0)))


def test_computers_have_addresses_names_and_memory_of_their_own(net: Network) -> None:
    a, b = net.add("a"), net.add("b", shared_memory=2**20)
    assert (a.address, b.address) == ("10.77.0.2", "10.77.0.3")
    assert b.check("hostname") == "b\n"
    assert a.check("getent", "hosts", "b").split() == ["10.77.0.3", "b"]
    assert b.check("df", "--output=size", "/dev/shm").split()[-1] == "1024"
    a.check("touch", "/tmp/ray/mine", "/dev/shm/mine")
    assert b.check("ls", "/tmp/ray", "/dev/shm").split() == ["/dev/shm:", "/tmp/ray:"]
    assert (a.folder / "ray" / "mine").exists()
    assert not Path("/dev/shm/mine").exists()


def test_bytes_are_counted_at_the_receiver(net: Network) -> None:
    a, b = net.add("a"), net.add("b")
    with serve(a) as server:
        before = a.bytes_received(), b.bytes_received()
        assert reach(b, server, a, seconds=5)
        received = a.bytes_received() - before[0], b.bytes_received() - before[1]
    assert 100_000 < received[1] < 110_000
    assert received[0] < 10_000


def test_a_pulled_cable_separates_and_a_plugged_one_joins(net: Network) -> None:
    a, b = net.add("a"), net.add("b")
    with serve(a) as server:
        assert reach(b, server, a, seconds=5)
        b.disconnect()
        assert not reach(b, server, a)
        b.connect()
        assert reach(b, server, a, seconds=5)


def test_power_off_ends_every_process_and_the_computer_may_come_back(net: Network) -> None:
    a = net.add("a")
    daemon = ["setsid", "--fork", "sleep", "1000"]
    assert a.start(daemon, ENVIRONMENT, a.folder / "out.txt").wait(timeout=10) == 0
    wait_until(lambda: "sleep 1000" in a.processes().values(), 5, lambda: "the daemon")
    (pid,) = [pid for pid, words in a.processes().items() if words == "sleep 1000"]
    a.power_off()
    a.power_off()
    assert not a.is_there
    assert not Path(f"/proc/{pid}").exists()
    again = net.add("a")
    assert again.address == a.address
    assert list(again.processes().values()) == ["sleep infinity"]


def test_orphans_are_reaped(net: Network) -> None:
    a = net.add("a")
    words = ["setsid", "--fork", "sh", "-c", 'sleep 0.3; touch "$1"', "sh", str(a.folder / "is-over")]
    assert a.start(words, ENVIRONMENT, a.folder / "out.txt").wait(timeout=10) == 0
    wait_until((a.folder / "is-over").exists, 5, lambda: "the orphan's end")

    wait_until(lambda: a.check("sh", "-c", "ps --ppid 1 -o args= || true") == "", 5, lambda: "orphans to be gone")


def test_a_file_may_differ_on_one_computer(net: Network, tmp_path: Path) -> None:
    a, b = net.add("a"), net.add("b")
    (tmp_path / "ours").write_text("ours")
    (tmp_path / "theirs").write_text("theirs")
    b.replace(tmp_path / "ours", by=tmp_path / "theirs")
    assert (a.check("cat", str(tmp_path / "ours")), b.check("cat", str(tmp_path / "ours"))) == ("ours", "theirs")
    assert (tmp_path / "ours").read_text() == "ours"


def test_a_command_that_fails_says_so(net: Network) -> None:
    with pytest.raises(NotPossible, match="no-such-device"):
        net.add("a").check("ip", "link", "show", "no-such-device")


def test_a_network_ends_with_the_process_that_made_it_however_that_ends(space: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from netns import Network\n"
        f"host = Network(Path({str(tmp_path / 'net')!r})).add('a')\n"
        "print(*host.processes(), host.network.switch_pid, flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10, lambda: "namespaces to be gone")


def test_two_networks_do_not_see_each_other(net: Network, tmp_path: Path) -> None:
    with network(tmp_path / "other") as other:
        a, b, c = net.add("a"), other.add("b"), other.add("c")
        assert a.address == b.address
        with serve(a) as server:
            assert not reach(c, server, b)


def test_the_reason_is_told_where_there_can_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netns.TOOLS", ("no-such-tool",))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert why_not(tmp_path) == "needs no-such-tool (Debian: iproute2, util-linux)"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not(tmp_path) == "needs root: namespaces with mounts and network devices"


def test_waiting_says_what_was_waited_for() -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError, match="not after 0 s: Godot"):
        wait_until(lambda: False, 0.1, lambda: "Godot", pause=0.01)
    assert time.monotonic() - start < 5
