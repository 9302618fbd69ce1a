import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from torch.utils.tensorboard import SummaryWriter

from metagrad.cluster.run import events
from metagrad.cluster.run.events import EVENT_FILE, EventLog
from metagrad.cluster.run.plot import logged_scalars
from metagrad.learner.storage import CannotWrite, Location, RemotePath, location, names, read_bytes

Rows = dict[str, tuple[list[int], list[float]]]


@pytest.fixture(params=["", "memory://"], ids=["path", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if not request.param:
        return tmp_path
    return location(f"{request.param}{tmp_path}")


def rows(folder: str | Location) -> Rows:
    return {name: (steps.tolist(), values.tolist()) for name, (steps, values) in logged_scalars(folder).items()}


def write(log: EventLog, update: int) -> None:
    """One row, as far as it goes."""
    log.scalars({"x": update / 10}, update)
    log.flush()


def test_rows_read_back_as_those_of_torchs_writer(folder: Location, tmp_path: Path) -> None:
    values = {"episode/return_mean": 0.1, "eta/gamma": 1 / 3, "loss/x": -1e30}
    with EventLog(folder, 0) as log, SummaryWriter(str(tmp_path / "theirs"), purge_step=1) as theirs:
        for update in (10, 20):
            log.scalars({name: value * update for name, value in values.items()}, update)
            for name, value in values.items():
                theirs.add_scalar(name, value * update, update)
    assert rows(folder) == rows(tmp_path / "theirs")
    assert rows(folder)["eta/gamma"][0] == [10, 20]


def test_a_continued_run_takes_back_what_came_after_its_checkpoint(folder: Location) -> None:
    with EventLog(folder, 0) as log:
        for update in (10, 20, 30):
            log.scalars({"x": update}, update)
    with EventLog(folder, 20) as log:
        log.scalars({"x": 31.0}, 30)
    assert rows(folder) == {"x": ([10, 20, 30], [10.0, 20.0, 31.0])}


def test_rows_are_on_the_disk_after_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that counts on them is written after it; a flush without new rows costs nothing."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with EventLog(tmp_path, 0) as log:
        (file,) = tmp_path.iterdir()
        synced.clear()
        log.scalars({"x": 1.0}, 1)
        assert synced == []
        log.flush()
        log.flush()
        assert synced == [str(file), str(tmp_path)]
        file.unlink()
        log.flush()  # somebody has removed it: the next row begins another one


def test_a_clock_that_is_behind_does_not_change_the_order(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLog(folder, 0) as log:
        log.scalars({"x": 1.0}, 10)
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    with EventLog(folder, 0) as log:
        log.scalars({"x": 2.0}, 10)
    assert rows(folder) == {"x": ([10], [2.0])}
    begun = [match[1] for match in map(EVENT_FILE.fullmatch, sorted(names(folder))) if match]
    assert int(begun[1]) == int(begun[0]) + 1


def test_a_histogram_counts_whole_numbers(tmp_path: Path) -> None:
    with EventLog(tmp_path, 0) as log:
        log.histogram("transport/lag", [0, 2, 2, 3], 10)
        log.histogram("transport/lag", [], 20)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    (found,) = accumulator.Histograms("transport/lag")
    assert found.step == 10
    value = found.histogram_value
    assert (value.num, value.min, value.max) == (4, 0, 3)
    counts = dict(zip(value.bucket_limit, value.bucket, strict=True))
    assert {limit: count for limit, count in counts.items() if count} == {0.5: 1, 2.5: 2, 3.5: 1}


def test_a_path_has_every_row_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    log.scalars({"x": 1.0}, 10)
    assert rows(tmp_path) == {"x": ([10], [1.0])}


def test_a_url_is_written_to_every_half_minute_and_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[int] = []
    put: Callable[..., None] = MemoryFileSystem.pipe_file

    def counted(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        uploads.append(len(value))
        put(self, path, value, mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", counted)
    seconds = [0.0]
    folder = RemotePath(f"memory://{tmp_path}")
    with EventLog(folder, 0, clock=lambda: seconds[0]) as log:
        for update in range(60):
            seconds[0] += 1.0
            log.scalars({"x": 1.0}, update)
        assert len(uploads) == 3  # its beginning, and two half minutes
        log.flush()
        log.flush()
        assert len(uploads) == 3, "nothing new"
        log.scalars({"x": 1.0}, 60)
        log.flush()
        assert len(uploads) == 4
        assert rows(folder)["x"][0] == list(range(61))
    assert sorted(uploads) == uploads


def test_a_file_at_a_url_that_has_grown_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_BYTES_OF_A_FILE", 500)
    folder = RemotePath(f"memory://{tmp_path}")
    with EventLog(folder, 0) as log:
        for update in range(120):
            log.scalars({"x": 1.0}, update)
    sizes = [len((folder / name).read_bytes()) for name in names(folder)]
    assert len(sizes) > 10
    assert max(sizes) < 600
    assert rows(folder)["x"][0] == list(range(120))


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_full_disk_loses_no_row_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = tmp_path if kind == "path" else RemotePath(f"memory://{tmp_path}")
    log = EventLog(folder, 0)
    log.scalars({"x": 1.0}, 10)
    log.flush()

    whole = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(descriptor, data[: len(data) // 2])

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(MemoryFileSystem, "pipe_file", refused)
        with pytest.raises(CannotWrite, match=r"tfevents.*: cannot be written \(No space left on device\); free"):
            write(log, 20)
    assert rows(folder) == {"x": ([10], [1.0])}
    write(log, 30)
    assert rows(folder)["x"][0][-1] == 30


def test_what_ended_a_run_is_not_hidden_by_its_last_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemotePath(f"memory://{tmp_path}")

    def diverge(is_full: bool) -> None:
        with EventLog(folder, 0) as log:
            log.scalars({"x": 1.0}, 10)
            if is_full:
                monkeypatch.setattr(log, "flush", refused)
            raise RuntimeError("diverged")

    def refused() -> None:
        raise CannotWrite(errno.ENOSPC, "No space left on device", "x")

    with pytest.raises(RuntimeError, match="diverged"):
        diverge(is_full=False)
    assert rows(folder) == {"x": ([10], [1.0])}
    with pytest.raises(RuntimeError, match="diverged"):
        diverge(is_full=True)


def test_the_first_file_says_what_the_run_is(folder: Location) -> None:
    options = {"optimizer.learning_rate": 5e-4, "meta.n": 3, "meta.surrogate": "lvc"}
    for start in (0, 10):
        with EventLog(folder, start, options) as log:
            log.scalars({"episode/return_mean": 1.0}, start + 10)
    written = [Event.FromString(record) for name in names(folder) for record in records(folder / name)]
    values = [value for event in written for value in event.summary.value]
    (table,) = (value.tensor.string_val[0].decode() for value in values if value.tag.startswith("configuration"))
    assert "| meta.n | 3 |" in table
    (start_info,) = (value.metadata.plugin_data.content for value in values if value.tag == SESSION_START_INFO_TAG)
    found = parse_session_start_info_plugin_data(start_info).hparams
    assert {name: found[name].WhichOneof("kind") for name in found} == {
        "optimizer.learning_rate": "number_value",
        "meta.n": "number_value",
        "meta.surrogate": "string_value",
    }
    assert found["optimizer.learning_rate"].number_value == 5e-4


def records(path: Location) -> list[bytes]:
    """The records of an event file, each behind 12 bytes of header and before 4 of checksum."""
    data, found = read_bytes(path, 2**20), []
    while data:
        end = 12 + int.from_bytes(data[:8], "little")
        found.append(data[12:end])
        data = data[end + 4 :]
    return found
