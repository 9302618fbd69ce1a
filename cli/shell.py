"""Format commands and lines that a person reads in a terminal and gives to a shell."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from metagrad.errors import printable


def sibling(program: str) -> str:
    """Return the path of a program of the environment that this one was started from, or its bare name."""
    path = Path(sys.argv[0]).with_name(program)
    return str(path) if path.is_file() else program


def quoted(place: str) -> str:
    """Quote a path or URL for a shell, so that the command it is given to takes it for no option."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)


def job_command(*words: str, address: str | None) -> str:
    """Return a command about a job, quoted for a shell."""
    return shlex.join(["metagrad", *words, *(["--address", address] if address else [])])


def print_lines(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Print lines that hold words of others, with what is not printable escaped."""
    print("\n".join(map(printable, lines)), file=file or sys.stdout, flush=True)
