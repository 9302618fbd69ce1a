"""Checks what a batch ahead is taken under, and that the other thread's errors and its end reach the learner."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from metagrad.learner.actors import ActorsElsewhere, StreamEnded
from metagrad.learner.ahead import Ahead, Direct
from metagrad.types import Rollout, WeightSnapshot

CPU = torch.device("cpu")


def snapshot(version: int) -> WeightSnapshot:
    return WeightSnapshot(version, torch.zeros(2), torch.zeros(1))


class Elsewhere:
    """Actors whose batches come when the test lets them; a batch is the list of the version and bound it is of."""

    account: Any = None

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.published: list[int] = []
        self.may_come = threading.Semaphore(0)
        self.is_asked = threading.Semaphore(0)
        self.is_stopped = False
        self.error: Exception | None = None

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Any]:
        self.asked.append((snapshot.version, oldest))
        self.is_asked.release()
        assert self.may_come.acquire(timeout=20)
        if self.is_stopped:
            raise StreamEnded
        if self.error is not None:
            raise self.error
        return [(snapshot.version, oldest, threading.get_ident())]

    def publish(self, snapshot: WeightSnapshot) -> None:
        self.published.append(snapshot.version)
        self.may_come.release()  # what it waited for

    def stop_streaming(self) -> None:
        self.is_stopped = True
        self.may_come.release()

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        raise NotImplementedError

    def states(self) -> list[Any]:
        return []


def merged(rollouts: Sequence[Any], room: Sequence[torch.Tensor]) -> tuple[Any, int]:
    assert not room, "the batches are no tensors"
    return rollouts[0][:2], rollouts[0][2]


def test_the_next_batch_is_taken_in_another_thread_within_the_bound_of_the_next_version() -> None:
    actors = Elsewhere()
    assert isinstance(actors, ActorsElsewhere)
    ahead: Ahead[Any] = Ahead(actors, merged, CPU)
    actors.may_come.release()
    assert ahead.take(snapshot(4), 1)[0] == (4, 1)
    assert actors.is_asked.acquire(timeout=20)
    assert actors.is_asked.acquire(timeout=20), "the next one, before anybody asks for it"
    assert actors.asked == [(4, 1), (4, 2)]
    actors.may_come.release()
    while not (ahead._coming and ahead._coming.done()):
        pass
    batch, thread = ahead.take(snapshot(5), 2)
    assert batch == (4, 2), "as old as version 5 allows"
    assert thread != threading.get_ident()
    assert actors.published == [], "the order for the one after it brings the news"
    assert actors.is_asked.acquire(timeout=20)
    assert actors.asked[-1] == (5, 3)
    ahead.close()


def test_the_thread_fills_memory_of_the_learner_that_no_other_batch_has() -> None:
    actors, batches, rooms = Elsewhere(), list[torch.Tensor](), list[Any]()

    def merged_into(rollouts: Sequence[Any], room: Sequence[torch.Tensor]) -> tuple[torch.Tensor]:
        rooms.append([x.data_ptr() for x in room])
        return ((room[0] if room else torch.empty(2**19)).fill_(len(rooms)),)

    ahead: Ahead[Any] = Ahead(actors, merged_into, CPU)
    for version in range(3):
        actors.may_come.release()
        batches += ahead.take(snapshot(version), version)
    assert rooms[0] == []
    assert rooms[1:3] == [[batch.data_ptr()] for batch in batches[1:]]
    assert [batch.unique().tolist() for batch in batches] == [[1], [2], [3]]
    ahead.close()


def test_who_still_waits_for_actors_has_them_told_of_the_newest_weights() -> None:
    actors = Elsewhere()
    ahead: Ahead[Any] = Ahead(actors, merged, CPU)
    actors.may_come.release()
    ahead.take(snapshot(0), 0)
    assert ahead.take(snapshot(1), 1)[0] == (0, 1)
    assert actors.published == [1]
    ahead.close()


def test_an_error_of_the_other_thread_is_raised_where_the_batch_is_asked_for() -> None:
    actors = Elsewhere()
    ahead: Ahead[Any] = Ahead(actors, merged, CPU)
    actors.may_come.release()
    ahead.take(snapshot(0), 0)
    actors.error = ValueError("acted under another version")
    with pytest.raises(ValueError, match="another version"):
        ahead.take(snapshot(1), 1)
    ahead.close()


def test_closing_ends_a_wait_for_what_never_comes() -> None:
    actors = Elsewhere()
    ahead: Ahead[Any] = Ahead(actors, merged, CPU)
    actors.may_come.release()
    ahead.take(snapshot(0), 0)
    coming = ahead._coming
    assert coming is not None
    assert actors.is_asked.acquire(timeout=20)
    assert actors.is_asked.acquire(timeout=20)
    ahead.close()
    assert isinstance(coming.exception(timeout=20), StreamEnded)


def test_actors_of_this_process_roll_out_when_they_are_asked() -> None:
    actors = Elsewhere()
    direct: Direct[Any] = Direct(actors, merged)
    actors.may_come.release()
    batch, thread = direct.take(snapshot(3), 1)
    assert (batch, thread, actors.asked) == ((3, 1), threading.get_ident(), [(3, 1)])
    direct.close()
