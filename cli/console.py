"""Make standard output and error take every name and outlast their readers."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class ConsoleGone(Exception):
    """Standard output cannot be written any more."""

    def __init__(self, error: OSError):
        super().__init__(f"standard output cannot be written ({error.strerror}); name another place for it")
        self.has_no_reader = error.errno == errno.EPIPE


@contextmanager
def lasting_console(is_all: bool) -> Iterator[None]:
    """Make both streams last, and print characters that their encoding lacks as escapes.

    Where a stream goes away (a pipe whose reader has ended, a terminal that was closed, a full disk), all that is
    written later goes nowhere, including what other libraries write; the end of standard output is said once.

    Args:
        is_all: True: what is printed is all that the command does, and without readers it ends.

    Raises:
        ConsoleGone: `is_all`, and standard output went away.
    """

    def output_gone(error: OSError) -> None:
        if is_all:
            raise ConsoleGone(error)
        print(f"metagrad: standard output is gone ({error.strerror}); metagrad continues without it", file=sys.stderr)

    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout, output_gone), _lasting(sys.stderr, lambda error: None)
    try:
        yield
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    else:
        sys.stdout.flush()
    finally:
        try:
            sys.stdout.flush()
        except ConsoleGone:  # what ended the command is what has to be told
            pass
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, gone: Callable[[OSError], None]) -> TextIO:
    if stream is None:  # closed: its descriptor must not become that of a run's file
        return open(os.devnull, "w", encoding="utf-8")
    try:
        raw = _Descriptor(stream.fileno(), gone)
    except io.UnsupportedOperation:  # a program that calls this one has put something of its own there
        return stream
    is_through = getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty() or getattr(stream, "line_buffering", False),
        write_through=is_through,
    )


class _Descriptor(io.FileIO):
    """An open file of the process that becomes /dev/null once it cannot be written."""

    def __init__(self, number: int, gone: Callable[[OSError], None]):
        super().__init__(number, "w", closefd=False)
        self._gone = gone

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # shared with a program that made it non-blocking
                select.select((), (self,), ())
            return written
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._gone(error)
            return len(data)
