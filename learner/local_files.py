"""Read and write files in folders that a stranger may have made: follow no link, open nothing but files.

A stranger's folder may hold links, pipes or devices under the names that a run reads and writes. So each file is
reached relative to its open folder, a new one has a random name until it is whole, and only regular files are read.
A folder that this process holds stays open: what takes its place at its path later is never written to.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHER_KINDS = (
    (stat.S_ISLNK, "a link, which is not followed"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_held: dict[Path, int] = {}  # folders that this process holds, by the path they were opened at


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Make a folder if need be, lock it and keep it open, so that all writing below `path` stays inside of it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made, or is not a folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = _open_folder(str(path), None)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks: there nobody can tell
            pass
        before = _held.get(path)  # of a folder that was there once
        _held[path] = descriptor
        try:
            _require_same(path)  # another process may have replaced it before it was locked
            yield
        finally:
            if before is None:
                del _held[path]
            else:
                _held[path] = before
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(path: Path, limit: int) -> Iterator[BufferedIOBase]:
    """Open a regular file of at most `limit` bytes for reading.

    Raises:
        OSError: there is none, it is something else, or larger.
    """
    with _folder(path.parent) as folder:
        _require_file(os.stat(path.name, dir_fd=folder, follow_symlinks=False), limit)  # a device is not even opened
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        _require_file(os.fstat(descriptor), limit)
        yield file


def read(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: there is none, it is something else, or larger.
    """
    with opened(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _too_large(limit)
    return content


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, even if the machine stops; make its folder if need be.

    What was there before gives its place and its mode, if it was a file; a link goes, and what it led to stays.
    """
    with _folder(path.parent, is_made=True) as folder:
        partial = f".{secrets.token_hex(8)}.partial"
        descriptor = os.open(partial, _NEW, _mode(path.name, folder), dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise
        os.fsync(folder)


def append_whole(path: Path, data: bytes, is_new: bool) -> None:
    """Append all of it or nothing to a file; with `is_new` to one that was not there.

    Raises:
        FileExistsError: something of that name is there, with `is_new`.
        FileNotFoundError: nothing is there, without.
    """
    flags = _NEW if is_new else os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with _folder(path.parent) as folder:
        descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
    try:
        before = os.fstat(descriptor)
        _require_file(before, None)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            os.ftruncate(descriptor, before.st_size)
            raise
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Have the disk hold what was appended to a file; where somebody has removed the file there is nothing to hold."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError), _folder(path.parent) as folder:
        descriptor = os.open(path.name, flags, dir_fd=folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.fsync(folder)


def require_kind(path: Path, is_folder: bool) -> None:
    """Refuse what lies where a file, or a folder, is going to be; nothing there is as good.

    Raises:
        OSError: a folder is in the place of a file, or something else in that of a folder.
    """
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode) != is_folder:
        kind = next((words for is_it, words in _OTHER_KINDS if is_it(found.st_mode)), "not a folder")
        if is_folder or kind == "a folder":
            raise OSError(errno.EINVAL, f"{path.name} is {kind}", str(path))


def remove(path: Path) -> None:
    """Remove a file, or a link itself."""
    with _folder(path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def remove_partial(path: Path, older_than: float) -> None:
    """Remove what processes that died while they wrote left in a folder, if it is older than so many seconds."""
    with _folder(path) as folder:
        for name in filter(_PARTIAL.fullmatch, os.listdir(folder)):
            with contextlib.suppress(FileNotFoundError):  # another process was as quick
                if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime <= time.time() - older_than:
                    os.unlink(name, dir_fd=folder)


def names(path: Path) -> list[str]:
    """List what lies in a folder.

    Raises:
        OSError: there is none, or it is something else.
    """
    with _folder(path) as folder:
        return os.listdir(folder)


@contextlib.contextmanager
def _folder(path: Path, is_made: bool = False) -> Iterator[int]:
    """Open a folder; below one that is held it is reached from there, and no link on the way is followed."""
    base = next((folder for folder in (path, *path.parents) if folder in _held), None)
    with contextlib.ExitStack() as files:

        def into(name: str, folder: int | None) -> int:
            descriptor = _open_folder(name, folder)
            files.callback(os.close, descriptor)
            return descriptor

        if base is None:
            if is_made:
                path.mkdir(parents=True, exist_ok=True)
            yield into(str(path), None)
            return
        _require_same(base)
        descriptor = _held[base]
        for name in path.relative_to(base).parts:
            if is_made:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            descriptor = into(name, descriptor)
        yield descriptor


def _open_folder(name: str, folder: int | None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            kind = "a link, which is not followed" if stat.S_ISLNK(found.st_mode) else "not a folder"
            raise OSError(error.errno, f"{Path(name).name} is {kind}", name) from error
        raise


def _require_same(path: Path) -> None:
    """Refuse to continue where a held folder is not where it was: what is there now may be another run's."""
    own = os.fstat(_held[path])
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        there = None
    if there is None or not os.path.samestat(own, there):
        raise OSError(errno.ESTALE, "the folder that this process worked in was removed, moved or replaced", str(path))


def _require_file(found: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_it, words in _OTHER_KINDS if is_it(found.st_mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}")
    if limit is not None and found.st_size > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {limit / 2**20:g} MiB")


def _mode(name: str, folder: int) -> int:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return 0o666
    return stat.S_IMODE(found.st_mode) & 0o666 if stat.S_ISREG(found.st_mode) else 0o666
