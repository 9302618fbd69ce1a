"""Read rows of a run's TensorBoard files: check every record against its checksum, and tell what is lost.

TensorBoard's own reader ends at the first damaged record of a file without a word, and opens whatever has such a name.
"""

import struct
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from metagrad.cluster.run.events import EVENT_FILE
from metagrad.errors import printable, refusing
from metagrad.learner.storage import Location, inside, names, read_bytes

_MAX_BYTES = 2**30  # of one file; a run of the papers' length has some 10 MiB
_MAX_SCANNED = 2**19  # bytes of one file that are looked through for a record behind a damaged one
_HEADER, _FOOTER = 12, 4  # length (8) and its checksum (4); the content's checksum


class Logged(NamedTuple):
    """Holds what a run wrote for TensorBoard."""

    scalars: dict[str, tuple[np.ndarray, np.ndarray]]  # updates and values by name; of updates done twice the last
    damaged: tuple[str, ...]  # one line for each file with records that cannot be read
    cut_off: tuple[str, ...]  # and for each that ends within a record, as after a power cut


def read_log(folder: Location) -> Logged:
    """Read all scalars of a run's event files, in the order of their names, which is that of time.

    Raises:
        ConfigurationError: one of them is a link, a folder, a pipe or the like, or cannot be read.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    damaged: list[str] = []
    cut_off: list[str] = []
    with _reading(folder):
        files = sorted(filter(EVENT_FILE.fullmatch, names(folder)))
    for name in files:
        with _reading(folder / name):
            content = _records(read_bytes(inside(folder, name), _MAX_BYTES))
        bad = content.lost + sum(not _add(record, points) for record in content.records)
        if bad:
            damaged.append(printable(f"{name}: {_counted(bad)} damaged and left out{content.rest}"))
        if content.is_cut_off:
            cut_off.append(printable(f"{name}: ends within a record, which is left out"))
    return Logged(
        {tag: (np.array([step for step, _ in own]), np.array([x for _, x in own])) for tag, own in points.items()},
        tuple(damaged),
        tuple(cut_off),
    )


def _reading(place: Location) -> AbstractContextManager[None]:
    return refusing(OSError, field="events", value=str(place), rule="cannot be read", remedy="restore it")


def _counted(count: int) -> str:
    return "1 record is" if count == 1 else f"{count} records are"


class _Content(NamedTuple):
    records: list[bytes]
    lost: int  # damaged ones, at the least
    rest: str  # what is told of an end of the file in which no record was found
    is_cut_off: bool


def _records(data: bytes) -> _Content:
    """Split a file into records; behind a damaged one look for the next one."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    def length_at(at: int) -> int | None:
        header = data[at : at + 8]
        if len(data) < at + _HEADER or masked_crc32c(header) != struct.unpack_from("<I", data, at + 8)[0]:
            return None
        return int(struct.unpack("<Q", header)[0])

    found: list[bytes] = []
    lost, at, scanned = 0, 0, 0
    while at < len(data):
        length = length_at(at)
        if length is None:
            if len(data) < at + _HEADER:
                return _Content(found, lost, "", True)
            lost += 1
            # No record is shorter than a header and a footer: the length's checksum is what shows where one begins.
            limit = min(len(data) - _HEADER, at + _MAX_SCANNED - scanned)
            following = next((p for p in range(at + 1, limit) if length_at(p) is not None), None)
            if following is None:
                return _Content(found, lost, f", with the {len(data) - at} bytes behind", False)
            scanned += following - at
            at = following
            continue
        end = at + _HEADER + length + _FOOTER
        if end > len(data):
            return _Content(found, lost, "", True)
        record = data[at + _HEADER : end - _FOOTER]
        if masked_crc32c(record) == struct.unpack_from("<I", data, end - _FOOTER)[0]:
            found.append(record)
        else:
            lost += 1
        at = end
    return _Content(found, lost, "", False)


def _add(record: bytes, points: dict[str, list[tuple[int, float]]]) -> bool:
    """Take a record's scalars over; False for one that is no event."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    try:
        event = Event.FromString(record)
    except DecodeError:
        return False
    if event.HasField("session_log") and event.session_log.status == SessionLog.START:
        for own in points.values():
            _forget(own, event.step)
    for value in event.summary.value:
        if value.HasField("simple_value"):
            own = points[value.tag]
            _forget(own, event.step)
            own.append((event.step, value.simple_value))
    return True


def _forget(points: list[tuple[int, float]], step: int) -> None:
    """Drop rows from this update on: a run that was continued comes to them again."""
    while points and points[-1][0] >= step:
        points.pop()
