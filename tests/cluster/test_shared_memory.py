"""Tensors through shared memory; both ends are in this process."""

import os
from multiprocessing import Pipe

import pytest
import torch

from metagrad.cluster.run.shared_memory import Reader, Writer


def test_what_is_written_is_read_and_new_memory_is_sent_only_where_it_has_to_be() -> None:
    ours, theirs = Pipe()
    writer, reader = Writer(), Reader()
    values = [torch.arange(5, dtype=torch.int64), torch.tensor(True), torch.zeros(0), torch.full((2, 3), 0.5)]
    written = writer.write(values)
    assert written.size > 0
    assert all(place.offset % 64 == 0 for place in written.places)
    writer.send_memory(ours, os.getpid())
    first = reader.read(written, theirs)
    assert all(x.dtype is y.dtype and torch.equal(x, y) for x, y in zip(first, values, strict=True))

    other = writer.write([torch.arange(5, 10)])
    assert other.size == 0
    (second,) = reader.read(other, theirs)
    assert second.tolist() == first[0].tolist() == [5, 6, 7, 8, 9], "it is the same memory"

    large = torch.arange(10_000)
    written = writer.write([large])
    writer.send_memory(ours, os.getpid())
    (third,) = reader.read(written, theirs)
    assert torch.equal(third, large)
    assert second.tolist() == [5, 6, 7, 8, 9], "who has tensors of the former memory keeps it"
    writer.close()
    assert torch.equal(third, large)


def test_no_handle_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the handles of a process cannot be counted here")
    before = count()
    ours, theirs = Pipe()
    writer, reader = Writer(), Reader()
    for size in (10, 10_000, 100_000):
        written = writer.write([torch.zeros(size)])
        writer.send_memory(ours, os.getpid())
        reader.read(written, theirs)
    writer.close()
    del writer, reader
    ours.close()
    theirs.close()
    assert count() == before
