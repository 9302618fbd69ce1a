"""Where a run's files lie: a path of this machine, or a URL of an fsspec file system (s3://, gs://, …).

A file is written whole or not at all. On a path it is written beside its place, synced and renamed; on an object store
the upload itself is what makes it appear. The packages of the file systems (s3fs, gcsfs, …) are the user's to install.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from metagrad.errors import ConfigurationError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(.*)", re.DOTALL)  # what pathlib makes of a URL
_PASSWORD = re.compile(r"[^/@]*:.*@", re.DOTALL)  # a secret key may hold slashes
# They have no folders; making one would mean making the bucket, which a misspelt name should not.
_OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "ocilake", "tos", "tosfs"))
_ERRNO = ((FileNotFoundError, errno.ENOENT), (FileExistsError, errno.EEXIST), (PermissionError, errno.EACCES))


class CannotWrite(OSError):
    """A file of a run could not be written, and what was there before stands; its text is one line with the remedy.

    Made as `CannotWrite(errno, reason, place)`.
    """

    def __str__(self) -> str:
        match self.errno:
            case errno.ENOSPC | errno.EDQUOT:
                remedy = "free some space there and continue"
            case errno.EBUSY:
                remedy = "this process ends without writing there"
            case _:
                remedy = "mend that and continue"
        return f"{self.filename}: cannot be written ({self.strerror}); {remedy}"


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A file or folder at a URL, with the few methods of `pathlib.Path` that a run needs; all raise OSError alone."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    def exists(self) -> bool:
        try:
            with self._opened() as (files, path):
                files.info(path)  # not `exists`, for which a refusal is an absence
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        with self._opened() as (files, path):
            content: bytes = files.cat_file(path)
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes, is_new: bool = False) -> None:
        """One upload; with `is_new` FileExistsError where the file is there already (atomic where the store can)."""
        with self._opened() as (files, path):
            mode = "create" if is_new else "overwrite"
            try:
                files.pipe_file(path, data, mode=mode)
            except FileNotFoundError:
                if self.url.partition("://")[0] in _OBJECT_STORES:
                    raise
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.pipe_file(path, data, mode=mode)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with self._opened() as (files, path):
                files.rm_file(path)  # not `rm`, which takes a name for a pattern
        except FileNotFoundError:
            if not missing_ok:
                raise

    def names(self) -> list[str]:
        """Of the files in this folder."""
        with self._opened() as (files, path):
            return [str(found).rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False)]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it; whatever its libraries raise becomes an OSError of one line."""
        try:
            files, path = url_to_fs(self.url)
            files.invalidate_cache()  # others write there too
            yield files, path
        except Exception as error:
            number = next((number for kind, number in _ERRNO if isinstance(error, kind)), None)
            number = number or (isinstance(error, OSError) and error.errno) or errno.EIO
            raise OSError(number, reason(error), self.url) from error


Location = Path | RemotePath
Place = TypeVar("Place", bound=Path | RemotePath)


def inside(folder: Place, name: str) -> Place:
    """The place of this name in a folder, of the folder's own kind."""
    return cast(Place, folder / name)


def location(place: str | Location) -> Location:
    """What a person named: a path of this machine, also as file://, or a URL.

    Raises:
        ConfigurationError: a URL with credentials in it, of an unknown kind, of several file systems, or of one whose
            package is not installed.
    """
    if isinstance(place, RemotePath):
        return place
    text = str(place)
    if "::" in text and "://" in text:
        raise _refusal(f"{text.partition(':')[0]}:…", "is a chain of file systems", "name the last one's URL alone")
    url = _URL.fullmatch(text)
    if url is None:
        lost = _URL_AS_PATH.fullmatch(text)
        if lost is not None and lost[1] in fsspec.available_protocols():
            remedy = f"a training run's is written {lost[1]}://{_masked(lost[2])}, a study's is a path"
            raise _refusal(f"{lost[1]}:/{_masked(lost[2])}", "is a URL that was read as a path", remedy)
        with contextlib.suppress(RuntimeError):  # "~somebody", and there is nobody of that name
            return Path(place).expanduser()
        return Path(place)
    protocol, rest = url[1], url[2]
    if _masked(rest) != rest:
        rule = "holds credentials, which logs and listings would show"
        remedy = "leave them to the environment, or to the file system's own configuration file"
        raise _refusal(f"{protocol}://{_masked(rest)}", rule, remedy)
    if protocol in ("file", "local"):
        return Path(rest)
    _require_file_system(protocol, text)
    return RemotePath(text.rstrip("/"))


def _masked(rest: str) -> str:
    """What follows a URL's protocol, without password and query, which is where signatures are."""
    path, mark, _ = rest.partition("?")
    return _PASSWORD.sub("***@", path) + ("?***" if mark else "")


def _require_file_system(protocol: str, text: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        remedy = "use a path, s3://…, gs://… or another one that fsspec knows"
        raise _refusal(text, f"no file system is known for {protocol}://", remedy) from error
    except ImportError as error:
        package = known_implementations.get(protocol, {"class": protocol})["class"].partition(".")[0]
        package = f'"fsspec[{protocol}]"' if package == "fsspec" else package
        raise _refusal(text, f"{protocol}:// needs a package that is missing", f"pip install {package}") from error


def _refusal(shown: str, rule: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"run-dir = {shown!r}: {rule}; {remedy}")


def names(folder: Location) -> list[str]:
    """Names of what lies in a folder; none where there is no such folder."""
    try:
        return folder.names() if isinstance(folder, RemotePath) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def reason(error: BaseException) -> str:
    """Why something failed, in one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def writing(place: Location) -> Iterator[None]:
    """What fails in here is `CannotWrite`, of this place."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(error.errno or errno.EIO, reason(error), str(place)) from error


def write_whole(place: Location, data: bytes) -> None:
    """A file with this content, whole or not at all, also when the machine stops; its folder is made if need be.

    Raises:
        CannotWrite: the disk is full, say. What was there before stands and nothing is left beside it.
    """
    with writing(place):
        if isinstance(place, RemotePath):
            place.write_bytes(data)
        else:
            _write_beside_and_rename(place, data)


def _write_beside_and_rename(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
