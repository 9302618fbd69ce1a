"""Pack what travels with a job: the working folder's files, those of --import, and with --install metagrad itself."""

import os
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from itertools import count
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import metagrad
from metagrad.cluster.jobs.files import is_executable, read, travelling
from metagrad.errors import refusal, require

FOLDER = "folder"
"""The files lie in this folder of a job's archive, whose top is first on Python's path in all of its processes."""
VARIABLES = "variables.sh"
"""Name in the archive of the file that sets the job's variables."""
_EXTENSIONS = "metagrad_extensions"  # folder in the job's folder, for files from outside of the one here
_SAME_TIME = (1980, 1, 1, 0, 0, 0)  # the same files are the same archive, which Ray does not upload twice


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Lists files by their place in the job's folder, and what lies beside it."""

    root: Path
    files: Mapping[str, Path]
    empty: tuple[str, ...]
    """Folders without files."""
    left_out: tuple[str, ...]
    """Lists what stays behind although no ignore file names it."""
    code: Mapping[str, Path]
    """metagrad's own files, at the archive's top."""
    texts: Mapping[str, bytes]
    extensions: tuple[str, ...]
    """Places of the --import files, in their order."""

    def write(self, archive: Path) -> None:
        """Write a zip that depends on names, contents and executable bits alone.

        Raises:
            ConfigurationError: a file cannot be read any more.
        """
        placed = {f"{FOLDER}/{place}": path for place, path in self.files.items()} | dict(self.code)
        folders = {f"{FOLDER}/", *(f"{FOLDER}/{place}/" for place in self.empty)}
        with zipfile.ZipFile(archive, "w") as opened:
            for place in sorted({*placed, *self.texts, *folders}):
                entry, content = zipfile.ZipInfo(place, _SAME_TIME), b""
                if place in placed:
                    content = read(self.root, place, placed[place])
                    entry.external_attr = (0o755 if is_executable(placed[place]) else 0o644) << 16
                else:
                    content = self.texts.get(place, b"")
                    entry.external_attr = (0o40755 if place in folders else 0o600) << 16
                opened.writestr(entry, content, zipfile.ZIP_DEFLATED)


def package(
    working_dir: Path,
    extensions: Sequence[Sequence[Path]],
    brings_metagrad: bool,
    variables: Mapping[str, str] | None = None,
) -> Package:
    """Collect what a job needs.

    Args:
        working_dir: whose files it sees in its current directory.
        extensions: files of --import, each with those beside it that it imports; from elsewhere they go into a folder
            of their own.
        brings_metagrad: add the code that is running here, where the working folder has none.
        variables: of the job's environment.

    Raises:
        ConfigurationError: no such folder, one that is hardly meant, too many or too large files, or one that cannot
            travel.
    """
    root = _root(working_dir)
    found = travelling(root)
    files = dict(found.files)
    prefixes: dict[Path, str] = {}
    places = [_place(root, files, prefixes, each) for each in extensions]
    # A checkout of metagrad brings its own: as a package it must lie at the top.
    code = {place: path for place, path in files.items() if place.startswith("metagrad/")}
    if "metagrad/cli/main.py" not in code:
        code = _own_code() if brings_metagrad else {}
    texts = {}
    if brings_metagrad:
        name = f"metagrad-{version('metagrad')}.dist-info/METADATA"  # by which an installed package says its version
        texts[name] = f"Metadata-Version: 2.1\nName: metagrad\nVersion: {version('metagrad')}\n".encode()
    if variables:
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        texts[VARIABLES] = os.fsencode("".join(lines))
    asked = {place for place, path in files.items() if place not in found.files}
    return Package(
        root=root,
        files=files,
        empty=tuple(found.empty),
        left_out=tuple(place for place in found.left_out if place not in asked),
        code=code,
        texts=texts,
        extensions=tuple(places),
    )


def _root(working_dir: Path) -> Path:
    try:
        root = working_dir.resolve()
        is_folder = root.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, links that lead to themselves
        root, is_folder = working_dir, False
    require(is_folder, "working-dir", str(working_dir), "is not a folder", "name the one whose files the job needs")
    is_meant = root not in (Path.home().resolve(), Path(root.anchor))
    remedy = "change into the folder of the job's files, or name it"
    require(is_meant, "working-dir", str(working_dir), "all of it would travel with the job", remedy)
    return root


def _place(root: Path, files: dict[str, Path], prefixes: dict[Path, str], extension: Sequence[Path]) -> str:
    """Add a file of --import and those that it imports; return where it lies in the job's folder."""
    paths = [path.resolve() for path in extension]
    own = paths[0].parent
    if own.is_relative_to(root):
        prefixes[own] = f"{own.relative_to(root).as_posix()}/".removeprefix("./")
    elif own not in prefixes:
        names = (f"{_EXTENSIONS}_{number}/" if number else f"{_EXTENSIONS}/" for number in count())
        prefixes[own] = next(name for name in names if not any(place.startswith(name) for place in files))
    places = [prefixes[own] + path.relative_to(own).as_posix() for path in paths]
    files.update(zip(places, paths, strict=True))
    return places[0]


def _own_code() -> dict[str, Path]:
    """Find the Python files of the metagrad that runs here; in a checkout some of its folders are links."""
    code = Path(metagrad.__path__[0])
    folders = (Path(folder) for folder, _, _ in os.walk(code, followlinks=True))
    return {path.relative_to(code.parent).as_posix(): path for folder in folders for path in folder.glob("*.py")}


def pinned_requirements(extra: Sequence[str] = ()) -> list[str]:
    """List metagrad's packages and theirs, each in the version installed here; without Ray, which the nodes have.

    Args:
        extra: requirements to add, or to take instead; pinned like the others where they ask for no version.

    Raises:
        ConfigurationError: one of them is not a requirement.
    """
    pinned: dict[str, str] = {}
    waiting = [Requirement(text) for text in (distribution("metagrad").requires or [])]
    for text in extra:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            remedy = 'name packages as pip does: s3fs, "s3fs>=2026"'
            raise refusal("packages", text, "is not a requirement", remedy) from error
        if requirement.specifier or requirement.url:
            pinned[canonicalize_name(requirement.name)] = text
        else:
            waiting.append(requirement)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not is_wanted or name == "ray" or name in pinned:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            pinned[name] = str(requirement)
            continue
        pinned[name] = f"{name}=={found.version.partition('+')[0]}"  # a local label is of the index it came from
        waiting.extend(Requirement(text) for text in found.requires or [])
    return sorted(pinned.values())
