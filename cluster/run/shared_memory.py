"""Shares tensors between processes of one computer: memory without a name, whose handle goes through a connection.

Nothing of it is left over however a process ends, and it does not count towards the size of /dev/shm, which containers
keep small.
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes
_SPARE = 1.25  # times what is needed, so that a little more needs no other memory


class Place(NamedTuple):
    """Says where a tensor lies."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Written(NamedTuple):
    """Says what was written, for those who map the memory; `size` is that of new memory, or 0."""

    places: tuple[Place, ...]
    size: int


class Writer:
    """Writes tensors for other processes, over the ones written before."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._handle = -1

    def write(self, tensors: Sequence[Tensor]) -> Written:
        """Write tensors one behind the other; where they do not fit, into new memory."""
        places, end = [], 0
        for x in tensors:
            places.append(Place(end, x.dtype, tuple(x.shape)))
            end += -(-x.numel() * x.element_size() // _ALIGNMENT) * _ALIGNMENT
        size = 0
        if self._memory is None or len(self._memory) < end:
            self.close()
            size = max(mmap.PAGESIZE, int(_SPARE * end))
            self._handle = _new_file(size)
            self._memory = _mapped(self._handle, size)
        for place, x in zip(places, tensors, strict=True):
            _at(place, self._memory).copy_(x)
        return Written(tuple(places), size)

    def send_memory(self, connection: Connection, process: int) -> None:
        """Send the handle of the memory, after a `Written` that says that it is new."""
        reduction.send_handle(connection, self._handle, process)

    def close(self) -> None:
        """Close the handle; the memory stays until all who map it forget it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Reader:
    """Reads what another process writes."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def read(self, written: Written, connection: Connection) -> list[Tensor]:
        """Return the tensors themselves, which the next write changes; new memory is taken from the connection."""
        if written.size:
            handle = reduction.recv_handle(connection)
            try:
                self._memory = _mapped(handle, written.size)
            finally:
                os.close(handle)
        return [_at(place, self._memory) for place in written.places]


def _new_file(size: int) -> int:
    if sys.platform.startswith("linux"):
        handle = os.memfd_create("metagrad", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


def _mapped(handle: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(handle, size), dtype=torch.uint8)


def _at(place: Place, memory: Tensor) -> Tensor:
    count = torch.Size(place.shape).numel()
    size = count * place.dtype.itemsize
    return memory[place.offset : place.offset + size].view(place.dtype).view(place.shape)
