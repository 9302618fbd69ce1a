"""What a study's folder may hold; whole studies in it are tests/cluster/test_studies.py's."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.studies.folder import as_json, held, read_parts, write_part, write_results
from metagrad.errors import ConfigurationError
from metagrad.learner.storage import CannotWrite

SETTINGS = {"seed": 0, "power": [2, 3]}
PART = {"study": "toy", "settings": SETTINGS, "result": {"value": 4}, "provenance": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that holds the part "zero"."""
    with held(tmp_path / "toy"):
        write_part(tmp_path / "toy", "zero", PART)
    return tmp_path / "toy"


def test_parts_that_are_asked_for_are_read(folder: Path) -> None:
    assert read_parts(folder, "toy", {"zero": SETTINGS, "one": SETTINGS}) == {"zero": PART}
    assert read_parts(folder, "toy", {"one": SETTINGS}) == {}


def test_a_part_that_was_being_written_is_none(folder: Path) -> None:
    (folder / "parts" / "one.partial").write_text("{")
    assert list(read_parts(folder, "toy", {"zero": SETTINGS, "one": SETTINGS})) == ["zero"]


def test_a_file_is_whole_or_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    results = write_results(folder, {"a": 1})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(folder, {"a": 2})
    assert json.loads(results.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"seed": 1, "power": [2, 3]}, "seed = 0, now asked 1"),
        ({"seed": 0, "power": [2]}, r"power = \[2, 3\], now asked \[2\]"),
        ({"seed": 0}, r"power = \[2, 3\], now asked nothing"),
        (SETTINGS | {"new": None}, "new = nothing, now asked null"),
        ({"seed": False, "power": [2, 3]}, "seed = 0, now asked false"),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_named(folder: Path, settings: dict[str, Any], rule: str) -> None:
    message = rf"^run-dir = '.*toy': its part zero was made with {rule}; choose another --run-dir$"
    with pytest.raises(ConfigurationError, match=message):
        read_parts(folder, "toy", {"zero": settings})


def test_settings_that_are_not_a_number_are_the_same(folder: Path) -> None:
    nan = {"x": float("nan")}
    write_part(folder, "nan", PART | {"settings": nan})
    assert "nan" in read_parts(folder, "toy", {"nan": as_json(nan)})


def test_another_studys_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^run-dir = .*: holds parts of the study 'toy'; choose another"):
        read_parts(folder, "other", {"elsewhere": {}})


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000], ids=range(6))
def test_a_part_that_cannot_be_read_is_refused(folder: Path, damage: bytes) -> None:
    (folder / "parts" / "zero.json").write_bytes(damage)
    with pytest.raises(ConfigurationError, match=r"^part = '.*zero.json': cannot be read \(.*\); remove it$"):
        read_parts(folder, "toy", {"zero": SETTINGS})


def training_run(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")


def file_in_the_way(path: Path) -> None:
    path.mkdir()
    (path / "parts").write_text("")


@pytest.mark.parametrize(
    ("prepare", "rule"),
    [
        (training_run, r"holds a training run; choose another --run-dir"),
        (file_in_the_way, r"cannot be written \(File exists\); choose another --run-dir"),
        (Path.touch, r"cannot be .* \(.*\); choose another folder"),
    ],
)
def test_what_is_no_studys_folder_is_refused(tmp_path: Path, prepare: Callable[[Path], None], rule: str) -> None:
    prepare(tmp_path / "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match=rf"^run-dir = '.*x': {rule}"), held(tmp_path / "x"):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("was_there", [False, True])
def test_a_refused_study_leaves_what_was_there(tmp_path: Path, was_there: bool) -> None:
    if was_there:
        (tmp_path / "toy").mkdir()
    with pytest.raises(ConfigurationError, match="refused"), held(tmp_path / "toy"):
        raise ConfigurationError("refused")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "toy"] if was_there else [])


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "toy").held(),
        pytest.raises(ConfigurationError, match="another process"),
        held(tmp_path / "toy"),
    ):
        pass
    with held(tmp_path / "toy"):
        pass


def test_a_link_anywhere_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("mine")
    (folder / "work").mkdir()
    for place in ("results.json", "work/part", "parts/one.json", ".hidden"):
        (folder / place).symlink_to(tmp_path / "home")
        with pytest.raises(ConfigurationError, match=rf"holds a link, '.*{place}'; remove it$"), held(folder):
            pass
        (folder / place).unlink()
    (folder / "parts").rename(tmp_path / "parts")
    (folder / "parts").symlink_to("../parts")
    with pytest.raises(ConfigurationError, match=r"holds a link, '.*/parts'; remove it$"), held(folder):
        pass
    with pytest.raises(OSError, match="parts is a link"):
        write_part(folder, "one", PART)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["secret"]


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_part_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    place = folder / "parts" / "one.json"
    {"pipe": lambda: os.mkfifo(place), "link": lambda: place.symlink_to("/dev/zero"), "folder": place.mkdir}[kind]()
    with pytest.raises(ConfigurationError, match=rf"cannot be read \(it is a {kind}.*\); remove it$"):
        read_parts(folder, "toy", {"one": SETTINGS})


def test_a_folder_that_is_replaced_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    with held(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        for write in (lambda: write_part(folder, "one", PART), lambda: write_results(folder, {})):
            with pytest.raises(CannotWrite, match="was removed, moved or replaced"):
                write()
    assert list(folder.iterdir()) == []


def test_a_results_file_is_never_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    for name in ("results.partial", "results.json"):
        (folder / name).symlink_to(tmp_path / "secret")
    write_results(folder, {"a": 1})
    assert (tmp_path / "secret").read_text() == "mine"
    assert json.loads((folder / "results.json").read_text()) == {"a": 1}
