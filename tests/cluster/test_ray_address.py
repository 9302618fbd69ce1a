"""RAY_ADDRESS, against sockets that answer, lie or keep silent."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from ray._private import services

from metagrad.cluster.on_ray import address as ray_address
from metagrad.cluster.on_ray.address import find_cluster, greet
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.errors import ConfigurationError

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def refusal(address: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        find_cluster(address)
    assert "secret" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Port of a server that says so many bytes to each who connects, and then nothing."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                connection.sendall(request.param)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()  # it may be taking a connection at this moment, which has to be closed too
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://head:10001", "RAY_ADDRESS = 'ray://head:10001': is for Ray's client, which metagrad does not use; use"),
        ("ray://me:secret@head:10001", "RAY_ADDRESS = 'ray://***@head:10001': is for Ray's client"),
        ("http://head:8265", "RAY_ADDRESS = 'http://head:8265': is not the address of a GCS; use HOST:PORT of "),
        ("redis://head:1?secret", "RAY_ADDRESS = 'redis://head:1?***': is not the address of a GCS; "),
        ("me:secret@head:6379", "RAY_ADDRESS = '***@head:6379': holds credentials, which logs would show; "),
        ("head:6379?token=secret", "RAY_ADDRESS = 'head:6379?***': holds credentials"),
        ("nonsense", "RAY_ADDRESS = 'nonsense': is not an address; use HOST:PORT of the cluster's head"),
        ("::1", "RAY_ADDRESS = '::1': is not an address; "),
        ("[::1", "RAY_ADDRESS = '[::1': is not an address; "),
        (":6379", "RAY_ADDRESS = ':6379': is not an address; "),
        ("head:", "RAY_ADDRESS = 'head:': is not an address; "),
        ("head:port", "RAY_ADDRESS = 'head:port': is not an address; "),
    ],
)
def test_what_is_no_address_of_a_cluster_is_refused_and_no_secret_shown(
    capfd: pytest.CaptureFixture[str], address: str, line: str
) -> None:
    assert refusal(address).startswith(line)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "a..b:80"])
def test_an_address_where_nothing_listens_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "127.0.0.1")
    assert refusal(address).startswith(f"RAY_ADDRESS = '{address}': no Ray cluster answers there (")


def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert refusal("auto").startswith("RAY_ADDRESS = 'auto': no Ray cluster runs on this computer; start one (ray st")


def test_auto_at_a_cluster_that_has_died_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray remembers where the last one was, and would try for minutes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "10.255.255.1:6379")
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: (_ for _ in ()).throw(OSError("gone")))
    assert refusal("auto").startswith(
        "RAY_ADDRESS = 'auto': no Ray cluster answers there, at 10.255.255.1:6379 (gone); start one or unset"
    )


@pytest.mark.parametrize("answers", [SETTINGS], indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_cluster_here_is_found_under_each_of_its_names(
    monkeypatch: pytest.MonkeyPatch, answers: int, host: str
) -> None:
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "127.0.0.1")
    assert find_cluster(f"{host}:{answers}") == Endpoint("127.0.0.1", answers)


@pytest.mark.parametrize("answers", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"], indirect=True)
def test_what_is_not_ray_is_refused(answers: int) -> None:
    with pytest.raises(ConnectionError, match="what listens there is not Ray"):
        greet(Endpoint("127.0.0.1", answers), 5.0)


@pytest.mark.parametrize("answers", [b"", b"\0\0"], indirect=True)
def test_what_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "127.0.0.1")
    monkeypatch.setattr(ray_address, "_SECONDS_TO_ANSWER", 0.2)
    began = time.monotonic()
    assert "no Ray cluster answers there (timed out)" in refusal(f"127.0.0.1:{answers}")
    assert time.monotonic() < began + 10


@pytest.mark.parametrize("answers", [b""], indirect=True)
def test_with_tls_it_is_enough_that_something_listens(monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    greet(Endpoint("127.0.0.1", answers), 5.0)
