"""How learners of a run find each other."""

import multiprocessing
import os
import signal
import socket
from typing import Any

import pytest
import torch

from metagrad.cluster.on_ray.rendezvous import Meeting, interface_of, joined, listen
from metagrad.errors import ConfigurationError
from metagrad.shares import RankLost


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


def _add_up(rank: int, meeting: Meeting, listener: socket.socket, end: Any) -> None:
    """Join, and add up; learner 1 stops where it stands before that."""
    with joined(rank, 2, meeting, listener if rank == 0 else None, "127.0.0.1", seconds=5.0) as team:
        team.shares.total(torch.ones(3))
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            team.shares.total(torch.ones(3))
        except RankLost as error:
            end.send(str(error))
    os._exit(0)


@pytest.mark.slow
def test_a_collective_that_does_not_come_back_is_abandoned_in_time() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with listen("127.0.0.1") as listener:
        meeting = Meeting(*listener.getsockname()[:2])
        learners = [context.Process(target=_add_up, args=(rank, meeting, listener, there)) for rank in range(2)]
        for learner in learners:
            learner.start()
    try:
        assert here.poll(60)
        assert here.recv().startswith("another learner is gone, or did not answer in time (")
    finally:
        for learner in learners:
            learner.kill()
            learner.join()
