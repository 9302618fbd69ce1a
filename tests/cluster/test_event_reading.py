import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metagrad.cluster.run.event_reading import read_log
from metagrad.cluster.run.events import EventLog
from metagrad.errors import ConfigurationError

ROWS = 12


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """The file of one life of a run: two scalars in each row."""
    with EventLog(tmp_path, 0) as log:
        for update in range(1, ROWS + 1):
            log.scalars({"a": float(update), "b": -float(update)}, update)
    (file,) = tmp_path.iterdir()
    return file


def begins(file: Path) -> list[int]:
    """Return where the file's records begin."""
    content, at, found = file.read_bytes(), 0, []
    while at < len(content):
        found.append(at)
        at += 16 + struct.unpack_from("<Q", content, at)[0]
    return found


def updates(folder: Path, name: str = "a") -> list[int]:
    steps: list[int] = read_log(folder).scalars[name][0].tolist()
    return steps


def test_what_is_whole_is_read_as_tensorboard_reads_it(events: Path) -> None:
    with EventLog(events.parent, 5) as log:  # continued after update 5
        for update in range(6, 20):
            log.scalars({"a": 100.0 + update}, update)
    log = read_log(events.parent)
    assert (log.damaged, log.cut_off) == ((), ())
    theirs = EventAccumulator(str(events.parent), size_guidance={"scalars": 0})
    theirs.Reload()
    assert log.scalars.keys() == set(theirs.Tags()["scalars"])
    for name, (steps, values) in log.scalars.items():
        points = theirs.Scalars(name)
        np.testing.assert_array_equal(steps, [point.step for point in points])
        np.testing.assert_array_equal(values, [point.value for point in points])


@pytest.mark.parametrize("part", ["length", "length's checksum", "content", "content's checksum"])
def test_one_flipped_bit_costs_one_record_and_is_told(events: Path, part: str) -> None:
    at = begins(events)[2 + 2 * 4]  # behind version and start, the first scalar of row 5
    end = begins(events)[2 + 2 * 4 + 1]
    place = {"length": at, "length's checksum": at + 9, "content": at + 14, "content's checksum": end - 1}[part]
    content = bytearray(events.read_bytes())
    content[place] ^= 4
    events.write_bytes(content)
    assert updates(events.parent) == [update for update in range(1, ROWS + 1) if update != 5]
    assert updates(events.parent, "b") == list(range(1, ROWS + 1))
    assert read_log(events.parent).damaged == (f"{events.name}: 1 record is damaged and left out",)


def test_every_flipped_bit_is_told_or_changes_nothing(events: Path) -> None:
    whole = events.read_bytes()
    right = {name: [x.tolist() for x in own] for name, own in read_log(events.parent).scalars.items()}
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        events.write_bytes(content)
        log = read_log(events.parent)
        found = {name: [x.tolist() for x in own] for name, own in log.scalars.items()}
        for name, (steps, values) in found.items():
            assert set(zip(steps, values, strict=True)) <= set(zip(*right[name], strict=True))
        assert log.damaged or log.cut_off, f"byte {place}"


def test_a_damaged_start_of_a_later_life_leaves_no_row_twice(events: Path) -> None:
    with EventLog(events.parent, 5) as log:
        log.scalars({"a": 106.0}, 6)
    second = max(events.parent.iterdir())
    content = bytearray(second.read_bytes())
    content[begins(second)[1] + 14] ^= 1
    second.write_bytes(content)
    steps, values = read_log(events.parent).scalars["a"]
    assert (steps.tolist(), values.tolist()[-1]) == ([1, 2, 3, 4, 5, 6], 106.0)


def test_a_file_that_ends_within_a_record_says_so(events: Path) -> None:
    content = events.read_bytes()
    for length in (len(content) - 1, begins(events)[-1] + 3):
        events.write_bytes(content[:length])
        log = read_log(events.parent)
        assert log.cut_off == (f"{events.name}: ends within a record, which is left out",)
        assert log.damaged == ()
        assert log.scalars["b"][0].tolist() == list(range(1, ROWS))


def test_an_end_without_any_record_is_told_with_its_length(events: Path) -> None:
    at = begins(events)[2 + 2 * 4]
    events.write_bytes(events.read_bytes()[:at] + b"\x07" * 300)
    log = read_log(events.parent)
    assert log.damaged == (f"{events.name}: 1 record is damaged and left out, with the 300 bytes behind",)
    assert log.scalars["a"][0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["a folder", "a link", "a pipe", "larger than"])
def test_what_is_no_event_file_is_refused(events: Path, kind: str) -> None:
    events.unlink()
    match kind:
        case "a folder":
            events.mkdir()
        case "a link":
            events.symlink_to("/dev/zero")
        case "a pipe":
            os.mkfifo(events)
        case _:
            with events.open("wb") as file:
                file.truncate(2**40)
    with pytest.raises(ConfigurationError, match=rf"^events = '.*': cannot be read \(it is {kind}.*\); restore it$"):
        read_log(events.parent)


def test_controls_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.\x1b[31mred").write_bytes(b"\x07" * 40)
    (line,) = read_log(tmp_path).damaged
    assert line.startswith("events.out.tfevents.1.\\x1b[31mred: ")
