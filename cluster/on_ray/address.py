"""Handles addresses of Ray clusters: which one the environment names, whether it answers, what of it may be shown.

An address that cannot be a cluster's, or that does not answer soon, is refused in one line.
"""

import os
import re
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metagrad.errors import refusal, require

if TYPE_CHECKING:
    from metagrad.cluster.on_ray.private import Endpoint  # imports Ray, which a colocated run does without

_SECONDS_TO_ANSWER = 10.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and an empty SETTINGS frame
_SETTINGS = 4
_USER = re.compile(r"((?:\b[a-z][a-z\d+.-]*://)?)[^\s'\"(,]+@(?=[\[\w*])", re.IGNORECASE)
_QUERY = re.compile(r"(?<=[\w/\]])(?:\?(?=[^\s'\"<>)])|#(?=[^\s'\"<>)]*=))[^\s'\"<>)]*")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def cluster_address() -> str | None:
    """Return RAY_ADDRESS, or None where a run starts a Ray of its own: it is unset, empty or "local"."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def find_cluster(given: str) -> "Endpoint":
    """Find where the GCS of the cluster at RAY_ADDRESS answers; Ray itself would try for minutes and log its tries.

    Raises:
        ConfigurationError: it is not an address of a cluster, or nothing answers there.
    """
    from metagrad.cluster.on_ray import private as ray_private

    field, shown = "RAY_ADDRESS", masked_address(given)
    scheme = given.partition("://")[0] if "://" in given else ""
    rule = "is for Ray's client, which metagrad does not use" if scheme == "ray" else "is not the address of a GCS"
    remedy = "use HOST:PORT of the cluster's head, mostly port 6379"
    if scheme in ("http", "https"):
        remedy += "; to train as a job of the cluster of this dashboard, use metagrad submit"
    require(not scheme, field, shown, rule, remedy)
    rule = "holds credentials, which logs would show"
    require(not has_credentials(given), field, shown, rule, f"{remedy}, and token authentication")
    try:
        found = ray_private.gcs_address(given)
    except ConnectionError as error:
        start = "start one (ray start --head), name the head of another one, HOST:PORT, or unset RAY_ADDRESS"
        raise refusal(field, shown, "no Ray cluster runs on this computer", start) from error
    except ValueError as error:
        raise refusal(field, shown, "is not an address", remedy) from error
    try:
        greet(found, _SECONDS_TO_ANSWER)
    except (OSError, OverflowError, UnicodeError) as error:  # a port or a name that cannot be are no OSError
        where = "there" if given == f"{found.host}:{found.port}" else f"there, at {found.host}:{found.port}"
        rule = f"no Ray cluster answers {where} ({error})"
        raise refusal(field, shown, rule, "start one or unset RAY_ADDRESS") from error
    return found


def greet(endpoint: "Endpoint", seconds: float) -> None:
    """See that a process of Ray answers: with TLS that something listens, otherwise that it speaks gRPC's HTTP/2.

    Raises:
        OSError: nothing listens there, or it says nothing, or something else.
    """
    with socket.create_connection(endpoint, timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_HTTP2_PREFACE)
        answer = b""
        while len(answer) < 4 and (more := connection.recv(9)):
            answer += more
    if answer[3:4] != bytes((_SETTINGS,)):
        raise ConnectionError("what listens there is not Ray")


def masked(text: str) -> str:
    """Remove user names, passwords, query strings and fragments from the addresses in a message of others."""
    return _QUERY.sub("?***", _USER.sub(r"\1***@", text))


def masked_address(address: str) -> str:
    """Remove them from an address, whatever characters its secrets have."""
    scheme, separator, rest = address.partition("://") if "://" in address else ("", "", address)
    user, at, host = rest.rpartition("@")
    del user
    shown = re.split(r"[?#]", host, maxsplit=1)
    return f"{scheme}{separator}{'***@' if at else ''}{shown[0]}{'?***' if len(shown) > 1 else ''}"


def has_credentials(address: str) -> bool:
    """True where an address names a user, or has a query or a fragment, which is where tokens are put."""
    return any(sign in address for sign in "@?#")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that list the hosts reached without a proxy, with this computer added."""
    return {name: _with_loopback(environment.get(name, "")) for name in ("no_proxy", "NO_PROXY")}


def _with_loopback(hosts: str) -> str:
    given = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys((*given, *_LOOPBACK)))
