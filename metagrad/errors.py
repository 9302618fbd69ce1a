"""The errors that are told in one line, and how text of others comes into messages."""

import re
from typing import Any, get_args

_ENDLESS = re.compile(r"(\S{250})\S{100,}")


def printable(text: object) -> str:
    """Text of others (names of files, a stranger's config.json, a job's metadata) for a terminal: one printable line.

    What Python does not call printable is shown as its escape: control characters, line ends, marks that change the
    direction of writing, and bytes of a file's name that are no text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class ConfigurationError(ValueError):
    """A wrong name, value or combination, refused before anything starts; one line, whatever was put into it."""

    def __init__(self, message: object):
        text = printable(message)
        super().__init__(_ENDLESS.sub(r"\1…", text))  # nobody reads on, and the remedy comes behind it


def require(condition: bool, field: str, value: Any, rule: str, remedy: str) -> None:
    """Raise `ConfigurationError` in one line (field, value, rule, remedy) unless `condition` holds."""
    if not condition:
        raise ConfigurationError(f"{field} = {value!r}: {rule}; {remedy}")


class RunLost(RuntimeError):
    """What a run stands on has ended under it; its message is one line, and what was written before stands."""


def require_one_of(value: Any, literal: Any, field: str) -> None:
    """Raise `ConfigurationError` unless `value` is one of the strings of a `Literal`."""
    names = get_args(literal)
    require(value in names, field, value, f"must be one of {', '.join(names)}", "choose one of these")
