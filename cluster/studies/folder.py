"""A study's folder: parts/NAME.json, results.json; each file whole or not there, and one process at a time.

It may be a stranger's, who has put links there that lead out of it: it is refused as long as it holds any.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metagrad.cluster.run.folder import RunFolder, read_json, write_json
from metagrad.errors import ConfigurationError, require
from metagrad.learner import local_files
from metagrad.learner.storage import names, reason

Settings = dict[str, Any]
Result = dict[str, Any]
Record = dict[str, Any]  # what a part's file holds: study, settings, result, provenance


def as_json(tree: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that a fresh part and a stored one are the same."""
    plain: dict[str, Any] = json.loads(json.dumps(tree))
    return plain


def _parts_folder(folder: Path) -> Path:
    return folder / "parts"


def write_part(folder: Path, name: str, record: Record) -> None:
    """Keep a finished part."""
    write_json(_parts_folder(folder) / f"{name}.json", record)


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """results.json, and where it is."""
    path = folder / "results.json"
    write_json(path, results)
    return path


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The study's folder, to this process alone; one that was made for a study that is refused goes again.

    Raises:
        ConfigurationError: another process is in it, it holds a training run or cannot be written.
    """
    run_folder = RunFolder(folder)
    require(not run_folder.has_run(), "run-dir", str(folder), "holds a training run", "choose another --run-dir")
    was_there = folder.exists()
    with run_folder.held():
        try:
            try:
                _refuse_links(folder)
                _parts_folder(folder).mkdir(exist_ok=True)
                local_files.remove_partial(_parts_folder(folder), older_than=0.0)
            except OSError as error:
                raise ConfigurationError(
                    f"run-dir = {str(folder)!r}: cannot be written ({reason(error)}); choose another --run-dir"
                ) from error
            yield
        except ConfigurationError:
            with contextlib.suppress(OSError):  # not empty
                _parts_folder(folder).rmdir()
                if not was_there:
                    folder.rmdir()
            raise


def _refuse_links(folder: Path) -> None:
    """Parts keep work of their own below the folder, and what is begun anew there is removed first."""
    for path, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            place = os.path.join(path, name)
            require(not os.path.islink(place), "run-dir", str(folder), f"holds a link, {place!r}", "remove it")


def _raise(error: OSError) -> None:
    raise error


def read_parts(folder: Path, study: str, asked: dict[str, Settings]) -> dict[str, Record]:
    """The stored parts among those asked for.

    Raises:
        ConfigurationError: one is of another study, was made with other settings, or cannot be read.
    """
    done = {}
    remedy = "choose another --run-dir"
    for path in _part_files(folder):
        record = _read_part(path)
        place = ("run-dir", str(folder))
        require(record["study"] == study, *place, f"holds parts of the study {record['study']!r}", remedy)
        if path.stem in asked:
            new, old = asked[path.stem], record["settings"]
            field = next((key for key in sorted({*new, *old}) if _text(new, key) != _text(old, key)), None)
            rule = f"its part {path.stem} was made with {field} = {_text(old, field)}, now asked {_text(new, field)}"
            require(field is None, *place, rule, remedy)
            done[path.stem] = record
    return done


def _text(settings: Settings, key: str | None) -> str:
    """One setting as text that can be compared, NaN included."""
    return json.dumps(settings[key], sort_keys=True) if key in settings else "nothing"


def _part_files(folder: Path) -> list[Path]:
    parts = _parts_folder(folder)
    try:
        return [parts / name for name in sorted(names(parts)) if name.endswith(".json")]
    except OSError as error:
        rule = f"parts cannot be listed ({reason(error)})"
        raise ConfigurationError(f"run-dir = {str(folder)!r}: {rule}; choose another --run-dir") from error


def _read_part(path: Path) -> Record:
    try:
        record: Record = read_json(path)
        if not {"study", "settings", "result", "provenance"} <= record.keys():
            raise ValueError("no part of a study")
        return record
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # AttributeError: JSON, but no object
        raise ConfigurationError(f"part = {str(path)!r}: cannot be read ({reason(error)}); remove it") from error
