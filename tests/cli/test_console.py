"""Standard output of a process of its own that is a pipe nobody reads, a full disk, closed, or of another encoding."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
import os, sys
from metagrad.cli.console import ConsoleGone, lasting_console
kind = sys.argv[1]
try:
    with lasting_console(kind != "lasting"):
        print("run folder: γ θ \udcff", flush=True)
        for _ in range(3):
            print("x" * 100_000)
            os.write(1, b"another library's")
        if kind == "help":
            sys.exit(0)
    print("to the end", file=sys.stderr)
except ConsoleGone as gone:
    print(f"{gone.has_no_reader}: {gone}", file=sys.stderr)
"""


def said(kind: str, output: int, **environment: str) -> str:
    """Return what the process says on standard error; its exit code is 0."""
    command = [sys.executable, "-c", PROGRAM, kind]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | environment
    process = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stderr


def unread_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["lasting", "printing", "help"])
def test_a_console_that_goes_away_ends_only_what_prints(kind: str, number: int) -> None:
    output = unread_pipe() if number == errno.EPIPE else os.open("/dev/full", os.O_WRONLY)
    try:
        lines = said(kind, output)
    finally:
        os.close(output)
    reason = os.strerror(number)
    is_pipe = number == errno.EPIPE
    if kind == "lasting":
        assert lines == f"metagrad: standard output is gone ({reason}); metagrad continues without it\nto the end\n"
    else:
        assert lines == f"{is_pipe}: standard output cannot be written ({reason}); name another place for it\n"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("", "γ θ \\udcff".encode()),
        ("latin-1", b"\\u03b3 \\u03b8 \\udcff"),
        ("ascii:strict", b"\\u03b3 \\u03b8 \\udcff"),
    ],
)
def test_what_an_encoding_does_not_have_is_escaped(tmp_path: Path, encoding: str, expected: bytes) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        assert said("lasting", file.fileno(), PYTHONIOENCODING=encoding, PYTHONUTF8="1") == "to the end\n"
    assert output.read_bytes().splitlines()[0] == b"run folder: " + expected


CLOSED = """
import os, sys
from metagrad.cli.console import lasting_console
assert sys.stdout is None
with lasting_console(False):
    print("nowhere")
    assert os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY) > 2, "a file of the run in the console's place"
"""


def test_a_console_that_was_closed_is_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLOSED, str(tmp_path / "file")]
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(shell).returncode == 0
