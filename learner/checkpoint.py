"""Checkpoints: atomic files of plain data, the newest k kept, loaded without executing anything from them."""

import io
import re
from typing import Any, NamedTuple

import torch

from metagrad.learner.storage import Location, Place, RemotePath, inside, names, write_whole, writing

_NAME = re.compile(r"update-(\d+)\.pt")
_PARTIAL = re.compile(r"update-(\d+)\.partial")


class Restored(NamedTuple):
    """A checkpoint's content, where it came from, and newer files that could not be read (with the reason)."""

    tree: dict[str, Any]
    path: Location
    unreadable: tuple[str, ...]


class Unreadable(ValueError):
    """A file is no whole checkpoint, or holds more than data; the message is one line with its name and the reason."""


class NoCheckpoint(FileNotFoundError):
    """No file in the folder could be read."""


def save(folder: Place, update: int, tree: dict[str, Any], keep: int) -> Place:
    """Write `tree` (dictionaries, lists, numbers, strings, tensors) as the checkpoint of `update`; drop the oldest.

    A reader sees the whole file or none, and the old ones go only once the new one is there.

    Raises:
        CannotWrite: the disk is full, say; the checkpoints that were there stand.
    """
    path = checkpoint_path(folder, update)
    content = io.BytesIO()  # torch turns an error of a file that it writes itself into one of its own
    torch.save(tree, content)
    write_whole(path, content.getvalue())
    with writing(folder):
        cut_off = [inside(folder, name) for name in names(folder) if _PARTIAL.fullmatch(name)]  # with their process
        for old in [*cut_off, *paths(folder)[:-keep]]:
            old.unlink(missing_ok=True)
    return path


def checkpoint_path(folder: Place, update: int) -> Place:
    """Where the checkpoint of an update lies."""
    return inside(folder, f"update-{update:09d}.pt")


def update_of(path: Location) -> int:
    """The update that a checkpoint was written after."""
    return int(path.stem.removeprefix("update-"))


def paths(folder: Place) -> list[Place]:
    """Checkpoints of a folder, oldest first."""
    return [inside(folder, name) for name in sorted(names(folder)) if _NAME.fullmatch(name)]


def restore_newest(folder: Location) -> Restored:
    """The newest readable checkpoint; says which newer ones were not.

    Raises:
        NoCheckpoint: there is none, or none can be read; the message names each file and why.
    """
    unreadable: list[str] = []
    for path in reversed(paths(folder)):
        try:
            return Restored(load(path), path, tuple(unreadable))
        except Unreadable as error:
            unreadable.append(str(error))
    raise NoCheckpoint(f"no readable checkpoint in {folder}" + "".join(f"; {line}" for line in unreadable))


def load(path: Location) -> dict[str, Any]:
    """Content of one checkpoint; `weights_only` refuses anything that would run code.

    Raises:
        Unreadable: the file is damaged, or no checkpoint.
    """
    try:
        file = io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path
        tree: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything at all
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(f"{path.name}: {lines[0][:200]}") from error
    if not isinstance(tree, dict):
        raise Unreadable(f"{path.name}: holds no checkpoint but a {type(tree).__name__}")
    return tree
