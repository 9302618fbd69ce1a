"""Writes and reads checkpoints: atomic files of plain data that are verified and loaded without executing anything."""

import io
import pickle
import re
import zipfile
from typing import Any, BinaryIO, NamedTuple, cast

import torch

from metagrad.errors import printable, reason
from metagrad.learner import local_files
from metagrad.learner.storage import (
    Location,
    Place,
    RemotePath,
    inside,
    names,
    opened,
    remove,
    write_whole,
    writing,
)

_NAME = re.compile(r"update-(\d{9,18})\.pt")
_MAX_BYTES = 16 * 2**30
_LOOKS = 20  # at a folder whose newest checkpoint goes, since newer ones come, while it is being read


class Restored(NamedTuple):
    """Holds a checkpoint's content, where it came from, and newer files that could not be read (with the reason)."""

    tree: dict[str, Any]
    path: Location
    unreadable: tuple[str, ...]


class Unreadable(ValueError):
    """Says in one line, with its name and the reason, that a file is no whole checkpoint or holds more than data."""

    def __init__(self, path: Location, why: str):
        super().__init__(printable(f"{path.name}: {why}"))


class NoCheckpoint(FileNotFoundError):
    """Says that no file in the folder could be read."""


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
        if not isinstance(folder, RemotePath):
            local_files.remove_partial(folder, older_than=0.0)  # nobody else writes there
        for old in paths(folder)[:-keep]:
            remove(old)
    return path


def checkpoint_path(folder: Place, update: int) -> Place:
    """Return the place of an update's checkpoint."""
    return inside(folder, f"update-{update:09d}.pt")


def update_of(path: Location) -> int:
    """Return the update after which a checkpoint was written."""
    return int(path.stem.removeprefix("update-"))


def paths(folder: Place) -> list[Place]:
    """List the checkpoints of a folder, oldest first.

    Raises:
        OSError: the folder is a link, say, or cannot be looked into.
    """
    return sorted((inside(folder, name) for name in names(folder) if _NAME.fullmatch(name)), key=update_of)


def restore_newest(folder: Location) -> Restored:
    """Find the newest readable checkpoint, and report which newer ones are not.

    Raises:
        NoCheckpoint: there is none, or none can be read; the message names each file and why.
    """
    for _ in range(_LOOKS):
        unreadable: list[str] = []
        try:
            found = paths(folder)
        except OSError as error:
            raise NoCheckpoint(f"no readable checkpoint in {folder} ({reason(error)})") from error
        try:
            for path in reversed(found):
                try:
                    return Restored(load(path), path, tuple(unreadable))
                except Unreadable as error:
                    unreadable.append(str(error))
        except FileNotFoundError:  # a run in progress has just replaced it by a newer one
            continue
        break
    raise NoCheckpoint(f"no readable checkpoint in {folder}" + "".join(f"; {line}" for line in unreadable))


def load(path: Location) -> dict[str, Any]:
    """Content of one checkpoint, after all of it was checked; `weights_only` refuses anything that would run code.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: the file is damaged, or no checkpoint.
    """
    try:
        with opened(path, _MAX_BYTES) as file:
            _check_whole(path, file)
            file.seek(0)
            tree = torch.load(cast(BinaryIO, file), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(path, reason(error)) from error
    except pickle.UnpicklingError as error:
        raise Unreadable(path, "holds more than plain data, and nothing of it was executed") from error
    except Exception as error:  # whatever an unpickler makes of content that no run has written
        raise Unreadable(path, f"holds no checkpoint ({type(error).__name__} while it was read)") from error
    if not isinstance(tree, dict):
        raise Unreadable(path, f"holds no checkpoint but a {type(tree).__name__}")
    return tree


def _check_whole(path: Location, file: io.BufferedIOBase) -> None:
    """Check every byte of content against its checksum, which `torch.load` does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            size = file.seek(0, io.SEEK_END)
            if not is_plain or sum(entry.file_size for entry in entries) > size:  # it would grow while it is read
                raise Unreadable(path, "is not a checkpoint: its content is compressed")
            damaged = archive.testzip()
    except Unreadable:
        raise
    except Exception as error:  # damaged headers make zipfile raise anything at all
        raise Unreadable(path, "is cut off, damaged or no checkpoint at all") from error
    if damaged is not None:
        raise Unreadable(path, f"is damaged: {damaged} is not what its checksum says")
