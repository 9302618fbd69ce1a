"""Checkpoints: atomic files of plain data, the newest k kept, loaded without executing anything from them."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

_NAME = re.compile(r"update-(\d+)\.pt")


class Restored(NamedTuple):
    """A checkpoint's content, where it came from, and newer files that could not be read (with the reason)."""

    tree: dict[str, Any]
    path: Path
    unreadable: tuple[str, ...]


class Unreadable(ValueError):
    """A file is no whole checkpoint, or holds more than data; the message is one line with its name and the reason."""


class NoCheckpoint(FileNotFoundError):
    """No file in the folder could be read."""


def save(folder: Path, update: int, tree: dict[str, Any], keep: int) -> Path:
    """Write `tree` (dictionaries, lists, numbers, strings, tensors) as the checkpoint of `update`; drop the oldest.

    A reader sees the whole file or none: it is written beside its place, synced, and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, update)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(tree, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(folder)
    for old in paths(folder)[:-keep]:
        old.unlink()
    return path


def checkpoint_path(folder: Path, update: int) -> Path:
    """Where the checkpoint of an update lies."""
    return folder / f"update-{update:09d}.pt"


def update_of(path: Path) -> int:
    """The update that a checkpoint was written after."""
    return int(path.stem.removeprefix("update-"))


def paths(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("update-*.pt") if _NAME.fullmatch(path.name))


def restore_newest(folder: Path) -> Restored:
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


def load(path: Path) -> dict[str, Any]:
    """Content of one checkpoint; `weights_only` refuses anything that would run code.

    Raises:
        Unreadable: the file is damaged, or no checkpoint.
    """
    try:
        tree: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything at all
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(f"{path.name}: {lines[0][:200]}") from error
    if not isinstance(tree, dict):
        raise Unreadable(f"{path.name}: holds no checkpoint but a {type(tree).__name__}")
    return tree


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
