"""How learners of a run find each other."""

import socket

import pytest

from metagrad.cluster.on_ray.rendezvous import interface_of, listen
from metagrad.errors import ConfigurationError


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(
        ConfigurationError, match=r"node = '203\.0\.113\.7': no interface of this node has that address"
    ):
        interface_of("203.0.113.7")


def test_it_listens_on_that_address_alone() -> None:
    with listen("127.0.0.1") as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        socket.create_connection((host, port), timeout=5).close()
