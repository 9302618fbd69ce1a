"""The cluster that RAY_ADDRESS names: refused in one line where it cannot be one, or does not answer soon."""

import os
import socket

from metagrad.cluster.on_ray import private as ray_private
from metagrad.cluster.on_ray.masking import has_credentials, masked_address
from metagrad.cluster.on_ray.private import Endpoint
from metagrad.errors import ConfigurationError, require

_SECONDS_TO_ANSWER = 10.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and an empty SETTINGS frame
_SETTINGS = 4


def find_cluster(given: str) -> Endpoint:
    """Where the GCS of the cluster at RAY_ADDRESS answers; Ray itself would try for minutes and log its tries.

    Raises:
        ConfigurationError: it is no address of a cluster, or nothing answers there.
    """
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
        raise ConfigurationError(
            f"{field} = {shown!r}: no Ray cluster runs on this computer; start one (ray start --head), name the "
            "head of another one, HOST:PORT, or unset RAY_ADDRESS"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{field} = {shown!r}: is no address; {remedy}") from error
    try:
        greet(found, _SECONDS_TO_ANSWER)
    except (OSError, OverflowError, UnicodeError) as error:  # a port or a name that cannot be are no OSError
        where = "there" if given == f"{found.host}:{found.port}" else f"there, at {found.host}:{found.port}"
        raise ConfigurationError(
            f"{field} = {shown!r}: no Ray cluster answers {where} ({error}); start one or unset RAY_ADDRESS"
        ) from error
    return found


def greet(endpoint: Endpoint, seconds: float) -> None:
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
