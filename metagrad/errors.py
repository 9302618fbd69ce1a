"""Defines the errors that are reported in one line, and makes text of others fit for messages."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

_ENDLESS = re.compile(r"(\S{250})\S{100,}")


def printable(text: object) -> str:
    """Make text of others (names of files, a stranger's config.json, a job's metadata) one printable line.

    What Python does not call printable is shown as its escape: control characters, line ends, marks that change the
    direction of writing, and bytes of a file's name that are no text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class ConfigurationError(ValueError):
    """Refuses a wrong name, value or combination in one line, before anything starts."""

    def __init__(self, message: object):
        text = printable(message)
        super().__init__(_ENDLESS.sub(r"\1…", text))  # nobody reads on, and the remedy comes behind it


def refusal(field: str, value: Any, rule: str, remedy: str) -> ConfigurationError:
    """Make a `ConfigurationError` of one line: field, value, rule, remedy."""
    return ConfigurationError(f"{field} = {value!r}: {rule}; {remedy}")


def require(condition: bool, field: str, value: Any, rule: str, remedy: str) -> None:
    """Raise `refusal` unless `condition` holds."""
    if not condition:
        raise refusal(field, value, rule, remedy)


@contextmanager
def refusing(*kinds: type[Exception], field: str, value: Any, rule: str, remedy: str) -> Iterator[None]:
    """Turn exceptions of these kinds into a `refusal` whose rule ends with their reason; refusals stay as they are."""
    try:
        yield
    except ConfigurationError:
        raise
    except kinds as error:
        raise refusal(field, value, f"{rule} ({reason(error)})", remedy) from error


def reason(error: BaseException) -> str:
    """Tell why something failed, in one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def counted(count: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, whose plural is regular unless given.

    >>> counted(1, "CPU"), counted(2.0, "CPU"), counted(0.5, "batch", "batches")
    ('1 CPU', '2 CPUs', '0.5 batches')
    """
    number = count if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or noun + 's'}"


class RunLost(RuntimeError):
    """Says in one line that something a run depends on has ended; what was written before stands."""


def require_one_of(value: Any, literal: Any, field: str) -> None:
    """Raise `ConfigurationError` unless `value` is one of the strings of a `Literal`."""
    names = get_args(literal)
    require(value in names, field, value, f"must be one of {', '.join(names)}", "choose one of these")
