"""Takes the next batch of a stream while the learner computes: in a thread of its own, one batch ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from metagrad.learner.actors import Actors, ActorsElsewhere
from metagrad.learner.batch import room_like
from metagrad.trees import tensors
from metagrad.types import Rollout, WeightSnapshot

T = TypeVar("T", bound=tuple[Any, ...])
T_co = TypeVar("T_co", covariant=True)
Merge = Callable[[Sequence[Rollout], Sequence[Tensor]], T]
"""Makes a batch on the learner's device of its rollouts, in the memory given where it fits; facts of it may follow."""


class Feed(Protocol[T_co]):
    """Supplies one batch of a stream after another."""

    def take(self, published: WeightSnapshot, oldest: int) -> T_co:
        """Publish a snapshot and return the next batch, none of whose rollouts is older than version `oldest`."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class Direct(Generic[T]):
    """Has the actors roll out when a batch is asked for: those of this process, whose order decides the numbers."""

    def __init__(self, actors: Actors, merge: Merge[T]):
        self._actors = actors
        self._merge = merge

    def take(self, published: WeightSnapshot, oldest: int) -> T:
        """Return the next batch."""
        return self._merge(self._actors.stream(published, oldest), ())

    def close(self) -> None:
        """Hold nothing that would have to be closed."""


class Ahead(Generic[T]):
    """Takes, merges and uploads the batch after the one that was asked for last.

    It is for the next version: its rollouts are not older than what that one will ask for.
    """

    def __init__(self, actors: ActorsElsewhere, merge: Merge[T], device: torch.device):
        self._actors = actors
        self._merge = merge
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next batch")
        self._coming: Future[T] | None = None

    def take(self, published: WeightSnapshot, oldest: int) -> T:
        """Return the batch that has been taken meanwhile, and have the next one taken.

        Raises:
            Exception: what the other thread met.
        """
        coming = self._coming
        if coming is None:
            coming = self._thread.submit(self._fetch, published, oldest, ())
        elif not coming.done():  # actors bring it yet: what they begin from now on is under these weights
            self._actors.publish(published)
        batch = coming.result()
        if self._stream is not None:
            for x in tensors(batch[0]):  # so that its memory is not given to the next upload while kernels read it
                x.record_stream(torch.cuda.current_stream(self._device))
        room = room_like(tensors(batch[0]))
        self._coming = self._thread.submit(self._fetch, published, oldest + 1, room)
        return batch

    def _fetch(self, published: WeightSnapshot, oldest: int, room: Sequence[Tensor]) -> T:
        rollouts = self._actors.stream(published, oldest)
        if self._stream is None:
            return self._merge(rollouts, room)
        with torch.cuda.stream(self._stream):
            batch = self._merge(rollouts, room)
        self._stream.synchronize()
        return batch

    def close(self) -> None:
        """End the wait for the next batch, which nobody will use."""
        self._actors.stop_streaming()
        self._thread.shutdown()
