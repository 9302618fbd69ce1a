"""Joins the learners of a run to a group of torch.distributed: one listens, and the others ask it where, through Ray.

Everything listens on the address by which Ray knows the node, that of an embedded Ray being loopback.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from metagrad.cluster.run.variables import environment_variables
from metagrad.errors import reason, require
from metagrad.learner.team import Learners
from metagrad.shares import RankLost


class Meeting(NamedTuple):
    """Says where the first learner listens."""

    host: str
    port: int


def listen(host: str) -> socket.socket:
    """Return a socket that listens on a free port of this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    return listener


def interface_of(host: str) -> str:
    """Return the name of the network interface that has an address.

    Raises:
        ConfigurationError: none has.
    """
    import fcntl  # of Unix, as Ray's nodes are
    import struct

    names = [name for _, name in socket.if_nameindex()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            try:
                found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:  # it has no address of version 4
                continue
            if socket.inet_ntoa(found[20:24]) == host:
                return name
    rule, remedy = f"no interface of this node has that address ({', '.join(names)})", "set GLOO_SOCKET_IFNAME there"
    require(False, "node", host, rule, remedy)
    raise AssertionError


@contextmanager
def joined(
    rank: int, size: int, meeting: Meeting, listener: socket.socket | None, host: str, seconds: float
) -> Iterator[Learners]:
    """Join the group as learner `rank`, and leave it at the end, which the others notice.

    Args:
        rank: of this learner.
        size: their number.
        meeting: where the first learner listens.
        listener: of the first learner; None for the others.
        host: address of this node.
        seconds: that a collective may take, the wait for a learner whose rollouts are late among them.

    Raises:
        ConfigurationError: the node has no interface of that address.
        RankLost: the others are not there.
    """
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if not os.environ.get(name)]
    interface = interface_of(host) if names else ""
    limit = timedelta(seconds=seconds)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with environment_variables(dict.fromkeys(names, interface)):
        fd = None if listener is None else listener.detach()
        kind: Any = vars(dist)["TCPStore"]  # which its stubs leave out
        try:
            store = kind(*meeting, size, is_master=rank == 0, timeout=limit, master_listen_fd=fd)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        except RuntimeError as error:
            raise RankLost(f"learner {rank} does not reach the others ({reason(error)})") from error
        try:
            yield Learners()
        finally:
            dist.destroy_process_group()
