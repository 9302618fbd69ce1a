"""Write TensorBoard event files of a run, on a path or at a URL.

torch's SummaryWriter is not used: its thread prints a traceback of its own where the disk is full, and at a URL it
appends value by value, which object stores cannot do: s3fs reads and uploads the file for each, gcsfs overwrites it.
On a path every row is appended at once. At a URL the rows are kept and the file is uploaded again every half minute and
on `flush`; a file that has grown is closed and the next one begun, so that an upload stays small.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from metagrad.learner import local_files
from metagrad.learner.storage import CannotWrite, Location, RemotePath, names, write_whole, writing

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\..*")
Description = Mapping[str, str | bool | int | float]
"""The options of a run, by dotted name."""
_SECONDS_BETWEEN_UPLOADS = 30.0
_BYTES_OF_A_FILE = 4 * 2**20  # at a URL


class EventLog:
    """Writes rows for TensorBoard; those of updates after `start_update` that the folder holds already are void."""

    def __init__(
        self,
        folder: Location,
        start_update: int,
        description: Description | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begin a file in `folder`; `clock` in seconds.

        The first file of a folder also says what the run is, by its `description`: as text, and as the row of it in
        TensorBoard's table of runs (HParams), whose other columns are the last values of all scalars.

        Raises:
            CannotWrite: the disk is full, say.
        """
        self._folder = folder
        self._clock = clock
        self._uploaded_at = clock()
        self._files = 0
        self._is_changed = False
        with writing(folder):
            # TensorBoard reads the files in the order of their names, and this machine's clock may be behind another's.
            begun = [int(match[1]) for match in map(EVENT_FILE.fullmatch, names(folder)) if match]
        self._begun_at = max([int(time.time()), *(second + 1 for second in begun)])
        self._begin_file()
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._write([{"step": start_update + 1, "session_log": SessionLog(status=SessionLog.START)}])
        if description and not begun:
            self._write([{"step": 0, "summary": summary} for summary in _described(description)])
        self.flush()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.flush()
            return
        with contextlib.suppress(CannotWrite):  # what ended the run is what has to be told
            self.flush()

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Write one row.

        Raises:
            CannotWrite: the disk is full, say; the rows before this one stand.
        """
        from torch.utils.tensorboard.summary import scalar  # imports slowly, and only runs need it

        self._write([{"step": update, "summary": scalar(name, value)} for name, value in values.items()])

    def histogram(self, name: str, values: Sequence[float], update: int) -> None:
        """Write how often each of a few whole numbers came up, one bin for each; nothing where there are no values.

        Raises:
            CannotWrite: the disk is full, say; the rows before this one stand.
        """
        if not len(values):
            return
        from torch.utils.tensorboard.summary import histogram

        self._write([{"step": update, "summary": histogram(name, np.asarray(values), bins_of(values))}])

    def picture(self, name: str, gif: bytes, update: int) -> None:
        """Write a GIF, which TensorBoard plays.

        Raises:
            CannotWrite: the disk is full, say; the rows before this one stand.
        """
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = Image.open(BytesIO(gif)).size
        image = Summary.Image(encoded_image_string=gif, width=width, height=height, colorspace=3)  # RGB
        self._write([{"step": update, "summary": Summary(value=[Summary.Value(tag=name, image=image)])}])

    def flush(self) -> None:
        """Make sure that nothing is lost from here on, and that others see all of it.

        Raises:
            CannotWrite: the disk is full, say.
        """
        if self._is_changed:
            if isinstance(self._file, RemotePath):
                write_whole(self._file, self._content.getvalue())
            else:
                with writing(self._file):
                    local_files.sync(self._file)
        self._is_changed = False
        self._uploaded_at = self._clock()

    def _begin_file(self) -> None:
        name = f"events.out.tfevents.{self._begun_at:010d}.{socket.gethostname()}.{os.getpid()}.{self._files:04d}"
        self._files += 1
        self._file = self._folder / name
        self._content = BytesIO()  # of the whole file at a URL
        self._is_changed = False
        self._write([{"file_version": "brain.Event:2"}], is_new=True)

    def _write(self, events: Sequence[dict[str, Any]], is_new: bool = False) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        row = BytesIO()
        records, now = RecordWriter(row), time.time()
        for event in events:
            records.write(Event(wall_time=now, **event).SerializeToString())
        self._is_changed = True
        if isinstance(self._file, Path):
            self._append(self._file, row.getvalue(), is_new)
            return
        self._content.write(row.getvalue())
        if self._content.tell() >= _BYTES_OF_A_FILE:
            self.flush()
            self._begin_file()
        elif self._clock() - self._uploaded_at >= _SECONDS_BETWEEN_UPLOADS:
            self.flush()

    def _append(self, path: Path, row: bytes, is_new: bool) -> None:
        with writing(path):
            try:
                local_files.append_whole(path, row, is_new)
            except FileNotFoundError:
                if is_new:
                    raise
            else:
                return
        self._begin_file()  # somebody has removed it: the rows continue in another one
        assert isinstance(self._file, Path)
        self._append(self._file, row, is_new=False)


def bins_of(values: Sequence[float]) -> np.ndarray:
    """Return the edges of one bin for each whole number from the least of `values` to the largest."""
    return np.arange(min(values) - 0.5, max(values) + 1.5)


def _described(description: Description) -> list[Any]:
    from torch.utils.tensorboard.summary import hparams, text

    rows = (f"| {name} | {value} |" for name, value in description.items())
    table = "\n".join(["| option | value |", "|---|---|", *rows])
    # No experiment summary: TensorBoard takes the first one it finds for all runs, and without one it looks at each.
    _, start, _ = hparams(dict(description), {})
    return [text("configuration", table), start]
