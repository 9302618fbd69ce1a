"""Read and write a run's files, on a path of this machine or at a URL of an fsspec file system (s3://, gs://, …).

A file is written whole or not at all. On a path it is written beside its place, synced and renamed
(`metagrad.learner.local_files`, which also keeps links and pipes of strangers out); on an object store the upload
itself is what makes it appear. The packages of the file systems (s3fs, gcsfs, …) are the user's to install.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from metagrad.errors import printable, reason, refusal, refusing, require
from metagrad.learner import local_files

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(.*)", re.DOTALL)  # what pathlib makes of a URL
_PASSWORD = re.compile(r"[^/@]*:.*@", re.DOTALL)  # a secret key may hold slashes
# They have no folders; making one would mean making the bucket, which a misspelt name should not.
_OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "ocilake", "tos", "tosfs"))
# A run there is lost with the process, or they are views of other file systems, which are named by themselves.
_NO_PLACE = frozenset(
    "memory data reference cached blockcache filecache simplecache dir generic root async_wrapper asyncwrapper zip tar "
    "libarchive git github gist dask pyscript".split()
)
MAX_TEXT_BYTES = 64 * 2**20  # of a JSON file: a study of the paper's length has 4 MiB of results
_ERRNO = ((FileNotFoundError, errno.ENOENT), (FileExistsError, errno.EEXIST), (PermissionError, errno.EACCES))


class CannotWrite(OSError):
    """A file of a run could not be written, and what was there before stands; its text is one line with the remedy.

    Made as `CannotWrite(errno, reason, place)`.
    """

    def __str__(self) -> str:
        match self.errno:
            case errno.ENOSPC | errno.EDQUOT:
                remedy = "free some space there and continue"
            case errno.EBUSY | errno.ESTALE:
                remedy = "this process ends without writing there"
            case _:
                remedy = "fix that and continue"
        return printable(f"{self.filename}: cannot be written ({self.strerror}); {remedy}")


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """Names a file or folder at a URL, with the methods of `pathlib.Path` that a run needs; they raise OSError."""

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

    def read_bytes(self, limit: int | None = None) -> bytes:
        with self._opened() as (files, path):
            if limit is not None and (files.info(path).get("size") or 0) > limit:
                raise OSError(errno.EFBIG, f"it is larger than {limit / 2**20:g} MiB")
            content: bytes = files.cat_file(path)
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes, is_new: bool = False) -> None:
        """Upload a file; with `is_new` raise FileExistsError where it is there already (atomic where the store can)."""
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
        """List the files in this folder."""
        with self._opened() as (files, path):
            return [str(found).rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False)]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """Open the file system and the path in it; whatever its libraries raise becomes an OSError of one line."""
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
    """Return the place of this name in a folder, of the folder's own kind."""
    return cast(Place, folder / name)


def location(place: str | Location, field: str = "run-dir") -> Location:
    """Return the place that a person named: a path of this machine, also as file://, or a URL.

    Raises:
        ConfigurationError: nothing, or a URL with credentials in it, of an unknown kind, of several file systems, or of
            one whose package is not installed; `field` is what the message calls it.
    """
    if isinstance(place, RemotePath):
        return place
    text = str(place)
    require(bool(text), field, text, "names nothing", "name a path or a URL")
    require("\0" not in text, field, text, "contains a null byte, which no path can", "leave it out")
    if "::" in text and "://" in text:
        raise refusal(
            field, f"{text.partition(':')[0]}:…", "is a chain of file systems", "name the last one's URL alone"
        )
    url = _URL.fullmatch(text)
    if url is None:
        lost = _URL_AS_PATH.fullmatch(text)
        if lost is not None and lost[1] in fsspec.available_protocols():
            remedy = f"a training run's is written {lost[1]}://{_masked(lost[2])}, a study's is a path"
            raise refusal(field, f"{lost[1]}:/{_masked(lost[2])}", "is a URL that was read as a path", remedy)
        with contextlib.suppress(RuntimeError):  # "~somebody", and there is nobody of that name
            return Path(place).expanduser()
        return Path(place)
    protocol, rest = url[1], url[2]
    is_local = protocol in ("file", "local")
    require(bool(rest if is_local else rest.strip("/")), field, text, "names nothing there", "add a path")
    if _masked(rest) != rest:
        rule = "holds credentials, which logs and listings would show"
        remedy = "leave them to the environment, or to the file system's own configuration file"
        raise refusal(field, f"{protocol}://{_masked(rest)}", rule, remedy)
    if is_local:
        return Path(rest)
    _require_file_system(field, protocol, text)
    return RemotePath(text.rstrip("/"))


def lasting(place: str, field: str = "run-dir") -> str:
    """Return the name of a place unchanged if files outlast this process there.

    Raises:
        ConfigurationError: they would not, or `location` refuses the name.
    """
    found = location(place, field)
    if isinstance(found, RemotePath):
        protocol = found.url.partition("://")[0]
        rule, remedy = f"{protocol}:// does not keep files", "use a path, s3://…, gs://… or the like"
        require(protocol not in _NO_PLACE, field, place, rule, remedy)
    return place


def chosen(place: str, field: str) -> Location:
    """Return the place at which a person wants one file written.

    Raises:
        ConfigurationError: that is a folder, no place where files stay, or one that nobody can look at.
    """
    found = location(lasting(place, field), field)
    if isinstance(found, RemotePath):
        return found
    with refusing(OSError, field=field, value=place, rule="cannot be written", remedy="name another"):
        is_folder = found.is_dir()  # the user's own link to one, too
        folder = Path(os.path.realpath(found.parent))  # his own links to where it lies are followed, here and now
        require(not folder.exists() or folder.is_dir(), field, place, f"{folder} is not a folder", "name another place")
    require(not is_folder, field, place, "is a folder", "name a file in it")
    return folder / found.name


def _masked(rest: str) -> str:
    """Hide password and query, which is where signatures are, in what follows a URL's protocol."""
    path, mark, _ = rest.partition("?")
    return _PASSWORD.sub("***@", path) + ("?***" if mark else "")


def _require_file_system(field: str, protocol: str, text: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        remedy = "use a path, s3://…, gs://… or another one that fsspec knows"
        raise refusal(field, text, f"no file system is known for {protocol}://", remedy) from error
    except ImportError as error:
        package = known_implementations.get(protocol, {"class": protocol})["class"].partition(".")[0]
        package = f'"fsspec[{protocol}]"' if package == "fsspec" else package
        raise refusal(
            field, text, f"{protocol}:// needs a package that is missing", f"pip install {package}"
        ) from error


def names(folder: Location) -> list[str]:
    """List what lies in a folder; nothing where there is no such folder.

    Raises:
        OSError: it is a link or a file, or cannot be looked into.
    """
    try:
        return folder.names() if isinstance(folder, RemotePath) else local_files.names(folder)
    except FileNotFoundError:
        return []


def exists(place: Location) -> bool:
    """True where anything is at this place, also a link that leads nowhere.

    Raises:
        OSError: nobody can tell.
    """
    if isinstance(place, RemotePath):
        return place.exists()
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_bytes(place: Location, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a file.

    Raises:
        OSError: there is none, it is a link, a pipe or the like, or larger than `limit` bytes.
    """
    return place.read_bytes(limit) if isinstance(place, RemotePath) else local_files.read(place, limit)


@contextlib.contextmanager
def opened(place: Location, limit: int) -> Iterator[BufferedIOBase]:
    """Open a file to read from, of which not all has to be in memory.

    Raises:
        OSError: as `read_bytes` does.
    """
    if isinstance(place, RemotePath):
        yield BytesIO(place.read_bytes(limit))
        return
    with local_files.opened(place, limit) as file:
        yield file


def remove(place: Location) -> None:
    """Remove a file, if it is there.

    Raises:
        OSError: it is a folder, or cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        place.unlink() if isinstance(place, RemotePath) else local_files.remove(place)


@contextlib.contextmanager
def writing(place: Location) -> Iterator[None]:
    """Turn what fails in here into `CannotWrite`, of this place."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(error.errno or errno.EIO, reason(error), str(place)) from error


def write_whole(place: Location, data: bytes) -> None:
    """Write a file, whole or not at all, even if the machine stops; make its folder if need be.

    Raises:
        CannotWrite: the disk is full, say. What was there before stands and nothing is left beside it.
    """
    with writing(place):
        if isinstance(place, RemotePath):
            place.write_bytes(data)
        else:
            local_files.write_whole(place, data)
