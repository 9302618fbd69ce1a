"""A study's folder: parts/NAME.json, results.json; each file whole or not there, and one process at a time."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metagrad.cluster.run_folder import RunFolder, write_json
from metagrad.errors import ConfigurationError, require

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
    was_there = folder.exists()
    run_folder = RunFolder(folder)
    require(not run_folder.has_run(), "run-dir", str(folder), "holds a training run", "choose another --run-dir")
    with run_folder.held():
        try:
            try:
                _parts_folder(folder).mkdir(exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"run-dir = {str(folder)!r}: cannot be written ({error.strerror}); choose another --run-dir"
                ) from error
            yield
        except ConfigurationError:
            with contextlib.suppress(OSError):  # not empty
                _parts_folder(folder).rmdir()
                if not was_there:
                    folder.rmdir()
            raise


def read_parts(folder: Path, study: str, asked: dict[str, Settings]) -> dict[str, Record]:
    """The stored parts among those asked for.

    Raises:
        ConfigurationError: one is of another study, was made with other settings, or cannot be read.
    """
    done = {}
    remedy = "choose another --run-dir"
    for path in sorted(_parts_folder(folder).glob("*.json")):
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


def _read_part(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if not {"study", "settings", "result", "provenance"} <= record.keys():
            raise ValueError("no part of a study")
        return record
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # AttributeError: JSON, but no object
        raise ConfigurationError(f"part = {str(path)!r}: cannot be read ({error}); remove it") from error
