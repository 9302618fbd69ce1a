"""A study's folder holds parts/NAME.json and results.json, each written whole, and admits one process at a time.

It may be a stranger's, who has put links there that lead out of it: it is refused as long as it holds any.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metagrad.cluster.run.folder import RunFolder, read_json, write_json
from metagrad.errors import ConfigurationError, refusing, require
from metagrad.learner import local_files
from metagrad.learner.storage import names

Settings = dict[str, Any]
Result = dict[str, Any]
Record = dict[str, Any]  # what a part's file holds: study, settings, result, provenance


def as_json(tree: dict[str, Any]) -> dict[str, Any]:
    """Convert a tree to what JSON gives back, so that a fresh part equals a stored one."""
    plain: dict[str, Any] = json.loads(json.dumps(tree))
    return plain


def _parts_folder(folder: Path) -> Path:
    return folder / "parts"


def write_part(folder: Path, name: str, record: Record) -> None:
    """Keep a finished part."""
    write_json(_parts_folder(folder) / f"{name}.json", record)


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write results.json and return its place."""
    path = folder / "results.json"
    write_json(path, results)
    return path


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of the study's folder; remove it if it was made for a study that is refused.

    Raises:
        ConfigurationError: another process is in it, it holds a training run or cannot be written.
    """
    run_folder = RunFolder(folder)
    require(not run_folder.has_run(), "run-dir", str(folder), "holds a training run", "choose another --run-dir")
    was_there = folder.exists()
    with run_folder.held():
        try:
            with _refusing(folder, "cannot be written"):
                _refuse_links(folder)
                _parts_folder(folder).mkdir(exist_ok=True)
                local_files.remove_partial(_parts_folder(folder), older_than=0.0)
            yield
        except ConfigurationError:
            with contextlib.suppress(OSError):  # not empty
                _parts_folder(folder).rmdir()
                if not was_there:
                    folder.rmdir()
            raise


def _refuse_links(folder: Path) -> None:
    """Parts keep work of their own below the folder, and what is started over there is removed first."""
    for path, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            place = os.path.join(path, name)
            require(not os.path.islink(place), "run-dir", str(folder), f"holds a link, {place!r}", "remove it")


def _raise(error: OSError) -> None:
    raise error


def read_parts(folder: Path, study: str, asked: dict[str, Settings]) -> dict[str, Record]:
    """Read the stored parts among those asked for.

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
    """Format one setting so that it can be compared, NaN included."""
    return json.dumps(settings[key], sort_keys=True) if key in settings else "nothing"


def _part_files(folder: Path) -> list[Path]:
    parts = _parts_folder(folder)
    with _refusing(folder, "parts cannot be listed"):
        return [parts / name for name in sorted(names(parts)) if name.endswith(".json")]


def _refusing(folder: Path, rule: str) -> contextlib.AbstractContextManager[None]:
    return refusing(OSError, field="run-dir", value=str(folder), rule=rule, remedy="choose another --run-dir")


def _read_part(path: Path) -> Record:
    kinds = (OSError, ValueError, AttributeError, RecursionError)  # AttributeError: JSON, but no object
    with refusing(*kinds, field="part", value=str(path), rule="cannot be read", remedy="remove it"):
        record: Record = read_json(path)
        if not {"study", "settings", "result", "provenance"} <= record.keys():
            raise ValueError("no part of a study")
    return record
