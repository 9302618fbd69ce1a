"""What travels with a job: the files of a working folder, the files of --import, and with --install metagrad itself."""

import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import metagrad
from metagrad.errors import ConfigurationError, require

MOST_BYTES = 100 * 2**20  # Ray's own limit is 512 MiB, and it finds out after it has read everything
MOST_FILES = 20_000
_NEVER = (
    *(".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
    *("/runs", "/studies"),
    *(".env", ".netrc", ".ssh", ".aws", ".gnupg", ".kube", ".ray", "*.pem", "*.key"),  # of no use there, and secret
)
_EXTENSIONS = "metagrad_extensions"  # folder in the job's working folder, for files from outside of the one here
_SAME_TIME = (1980, 1, 1, 0, 0, 0)  # the same files are the same archive, which Ray does not upload twice

_SILENT = logging.getLogger("metagrad.silent")
_SILENT.disabled = True

Excluded = Callable[[Path], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Files by their place in the job's working folder."""

    files: dict[str, Path]
    texts: dict[str, str]
    extensions: tuple[str, ...]
    """Places of the --import files, in their order."""

    def write(self, archive: Path) -> None:
        """As a zip that depends on names and contents alone."""
        with zipfile.ZipFile(archive, "w") as opened:
            for place in sorted([*self.files, *self.texts]):
                content = self.files[place].read_bytes() if place in self.files else self.texts[place].encode()
                entry = zipfile.ZipInfo(place, _SAME_TIME)
                entry.external_attr = 0o644 << 16
                opened.writestr(entry, content, zipfile.ZIP_DEFLATED)


def package(working_dir: Path, extensions: Sequence[Path], brings_metagrad: bool) -> Package:
    """Collect what a job needs.

    Args:
        working_dir: whose files it sees in its current directory, which is also first on its Python path.
        extensions: files of --import; one from elsewhere goes into a folder of its own.
        brings_metagrad: add the code that is running here, where the working folder has none.

    Raises:
        ConfigurationError: no such folder, one that is hardly meant, or more than `MOST_BYTES`.
    """
    root = working_dir.resolve()
    require(root.is_dir(), "working-dir", str(working_dir), "is no folder", "name the one whose files the job needs")
    is_meant = root not in (Path.home().resolve(), Path(root.anchor))
    remedy = "change into the folder of the job's files, or name it"
    require(is_meant, "working-dir", str(working_dir), "all of it would travel with the job", remedy)
    files = {path.relative_to(root).as_posix(): path for path in _within_limit(root, _walk(root, root, [], ()))}
    places = []
    for extension in (path.resolve() for path in extensions):
        is_inside = extension.is_relative_to(root)
        place = extension.relative_to(root).as_posix() if is_inside else f"{_EXTENSIONS}/{extension.name}"
        files[place] = extension
        places.append(place)
    texts = {}
    if brings_metagrad:
        files = files if "metagrad/cluster/cli.py" in files else _own_code() | files
        name = f"metagrad-{version('metagrad')}.dist-info/METADATA"  # by which an installed package says its version
        texts[name] = f"Metadata-Version: 2.1\nName: metagrad\nVersion: {version('metagrad')}\n"
    return Package(files=files, texts=texts, extensions=tuple(places))


def _own_code() -> dict[str, Path]:
    """The Python files of the metagrad that runs here; in a checkout some of its folders are links."""
    code = Path(metagrad.__path__[0])
    folders = (Path(folder) for folder, _, _ in os.walk(code, followlinks=True))
    return {path.relative_to(code.parent).as_posix(): path for folder in folders for path in folder.glob("*.py")}


def _walk(folder: Path, root: Path, inherited: list[Excluded], above: tuple[Path, ...]) -> Iterator[Path]:
    """Files below a folder, in order; a link to a folder that it lies in is left out."""
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    if folder.resolve() in above:
        return
    above = (*above, folder.resolve())
    own = get_excludes_from_ignore_files(folder, include_gitignore=True, logger=_SILENT)
    excluded = [*(inherited or [_get_excludes(root, list(_NEVER))]), *own]
    for path in sorted(folder.iterdir()):
        if any(is_excluded(path) for is_excluded in excluded):
            continue
        if path.is_dir():
            yield from _walk(path, root, excluded, above)
        elif path.is_file():
            yield path


def _within_limit(root: Path, paths: Iterator[Path]) -> list[Path]:
    """The paths, unless they are too many or too large."""
    sizes: dict[Path, int] = {}
    total = 0
    remedy = "name what the job does not need in .rayignore, or choose another --working-dir"
    for path in paths:
        sizes[path] = path.stat().st_size
        total += sizes[path]
        if total > MOST_BYTES:
            largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
            shown = ", ".join(f"{path.relative_to(root)} ({sizes[path] / 2**20:.1f} MiB)" for path in largest)
            rule = f"more than {MOST_BYTES / 2**20:.0f} MiB would travel with the job, among it {shown}"
            raise ConfigurationError(f"working-dir = {str(root)!r}: {rule}; {remedy}")
        require(len(sizes) <= MOST_FILES, "working-dir", str(root), f"holds more than {MOST_FILES:,} files", remedy)
    return list(sizes)


def pinned_requirements(extra: Sequence[str] = ()) -> list[str]:
    """metagrad's packages and theirs, each in the version that is installed here; without Ray, which the nodes have.

    Args:
        extra: requirements to add, or to take instead; pinned like the others where they ask for no version.

    Raises:
        ConfigurationError: one of them is no requirement.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    pinned: dict[str, str] = {}
    waiting = [Requirement(text) for text in (distribution("metagrad").requires or [])]
    for text in extra:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            remedy = 'name packages as pip does: s3fs, "s3fs>=2026"'
            raise ConfigurationError(f"packages = {text!r}: is no requirement; {remedy}") from error
        if requirement.specifier or requirement.url:
            pinned[_canonical(requirement.name)] = text
        else:
            waiting.append(requirement)
    while waiting:
        requirement = waiting.pop()
        name = _canonical(requirement.name)
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


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
