import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from metagrad.learner import checkpoint
from metagrad.learner.checkpoint import (
    NoCheckpoint,
    Unreadable,
    checkpoint_path,
    load,
    paths,
    restore_newest,
    save,
    update_of,
)
from metagrad.learner.storage import CannotWrite, Location, location, names

TREE = {"theta": torch.arange(4.0), "count": 3, "names": ["a"], "nothing": None, "nested": {"x": 1.5, "ok": True}}


@pytest.fixture(params=["", "memory://"], ids=["path", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that is not there yet."""
    return location(f"{request.param}{tmp_path}/checkpoints")


def equal(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return left == right


def test_what_was_saved_comes_back(folder: Location) -> None:
    path = save(folder, 12, TREE, keep=2)
    assert path == checkpoint_path(folder, 12)
    assert update_of(path) == 12
    assert equal(load(path), TREE)
    restored = restore_newest(folder)
    assert (restored.path, restored.unreadable) == (path, ())
    assert equal(restored.tree, TREE)


def test_the_newest_k_stay(folder: Location) -> None:
    for update in (1, 2, 10, 999_999_999):
        save(folder, update, {"update": update}, keep=3)
    assert [update_of(path) for path in paths(folder)] == [2, 10, 999_999_999]
    assert restore_newest(folder).tree == {"update": 999_999_999}


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    save(tmp_path, 1, TREE, keep=1)
    (tmp_path / ".0123456789abcdef.partial").write_bytes(b"half")
    save(tmp_path, 3, TREE, keep=2)
    assert sorted(names(tmp_path)) == ["update-000000001.pt", "update-000000003.pt"]


def test_other_files_are_neither_read_nor_removed(tmp_path: Path) -> None:
    for name in ("update-000000001.pt.bak", "update-x.pt", "notes.txt"):
        (tmp_path / name).write_text("mine")
    save(tmp_path, 1, TREE, keep=1)
    save(tmp_path, 2, TREE, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "notes.txt",
        "update-000000001.pt.bak",
        "update-000000002.pt",
        "update-x.pt",
    ]


@pytest.mark.parametrize("crash_in", ["write", "fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    save(tmp_path, 1, {"update": 1}, keep=1)

    def crash(*_args: object, **_names: object) -> None:
        raise OSError("no space left on device")

    whole = os.fdopen

    def open_and_fill(descriptor: int, mode: str) -> object:
        file = whole(descriptor, mode)
        file.write(b"half")
        file.flush()
        file.write = crash
        return file

    with monkeypatch.context() as patch:
        if crash_in == "write":
            patch.setattr(os, "fdopen", open_and_fill)
        elif crash_in == "fsync":
            patch.setattr(os, "fsync", crash)
        else:
            patch.setattr(os, "replace", crash)
        with pytest.raises(CannotWrite, match=r"^/.*/update-000000002.pt: cannot be written \(no space left"):
            save(tmp_path, 2, {"update": 2}, keep=1)
    assert names(tmp_path) == ["update-000000001.pt"], "no partial file is left"
    restored = restore_newest(tmp_path)
    assert restored.tree == {"update": 1}
    assert restored.unreadable == ()
    save(tmp_path, 2, {"update": 2}, keep=1)
    assert restore_newest(tmp_path).tree == {"update": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["update-000000002.pt"], "no partial file is left"


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_an_unreadable_newest_is_named_and_the_one_before_it_used(folder: Location, damage: str) -> None:
    good = save(folder, 1, TREE, keep=3)
    bad = save(folder, 2, TREE, keep=3)
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"\x00garbage" * 50}[damage])
    restored = restore_newest(folder)
    assert restored.path == good
    assert equal(restored.tree, TREE)
    assert len(restored.unreadable) == 1
    assert restored.unreadable[0].startswith("update-000000002.pt: ")
    assert "\n" not in restored.unreadable[0]


def test_no_file_can_be_read(folder: Location) -> None:
    with pytest.raises(NoCheckpoint, match="no readable checkpoint in"):
        restore_newest(folder)
    for update in (1, 2):
        save(folder, update, TREE, keep=3).write_bytes(b"\x80")
    with pytest.raises(NoCheckpoint, match=r"^no readable checkpoint in .*; update-000000002.pt: .*; update-000000001"):
        restore_newest(folder)


def test_a_store_that_fails_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = location(f"memory://{tmp_path}")
    good = save(folder, 1, TREE, keep=2)
    save(folder, 2, TREE, keep=2)
    read = MemoryFileSystem.cat_file

    def cut_off(self: MemoryFileSystem, path: str, **changes: object) -> bytes:
        if "000000002" in path:
            raise TimeoutError("connection lost")
        content: bytes = read(self, path, **changes)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut_off)
    restored = restore_newest(folder)
    assert restored.path == good
    assert "connection lost" in restored.unreadable[0]


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(folder: Location, tmp_path: Path, form: str) -> None:
    target = tmp_path / "broken-in"
    good = save(folder, 1, TREE, keep=3)
    bad = checkpoint_path(folder, 2)
    if form == "torch":
        file = io.BytesIO()
        torch.save({"theta": Malicious(target)}, file)
        bad.write_bytes(file.getvalue())
    else:
        bad.write_bytes(pickle.dumps({"theta": Malicious(target)}, protocol=2))
    restored = restore_newest(folder)
    assert restored.path == good
    assert "update-000000002.pt" in restored.unreadable[0]
    assert not target.exists()


def test_data_that_is_no_tree_is_no_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {}, keep=1)
    torch.save([1, 2], path)
    with pytest.raises(Unreadable, match=r"^update-000000001.pt: holds no checkpoint but a list$"):
        load(path)


def test_every_flipped_bit_of_content_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"theta": torch.arange(64.0), "update": 1}, keep=1)
    whole = path.read_bytes()
    accepted, reasons = [], []
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            tree = load(path)
        except Unreadable as error:
            reasons.append(str(error))
        else:  # dates and the like in the archive's own headers
            accepted.append(place)
            assert equal(tree, {"theta": torch.arange(64.0), "update": 1})
    assert len(accepted) < len(whole) / 2
    assert all(line.startswith("update-000000001.pt: ") and line.isprintable() for line in reasons)


class Executed:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def test_what_would_be_executed_is_refused_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1, {"x": Executed()}, keep=1)
    with pytest.raises(Unreadable) as refused:
        load(path)
    assert str(refused.value) == "update-000000001.pt: holds more than plain data, and nothing of it was executed"
    assert not (tmp_path / "executed").exists()


def test_content_that_would_grow_is_refused_unread(tmp_path: Path) -> None:
    path = save(tmp_path, 1, TREE, keep=1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(2**20))
    with pytest.raises(Unreadable, match="its content is compressed"):
        load(path)


def test_a_run_that_goes_on_is_never_seen_without_a_checkpoint(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the folder and the look at the file the run writes the next one and removes this one."""
    save(folder, 1, {"update": 1}, keep=1)
    look, updates = checkpoint.paths, iter(range(2, 100))

    def look_and_save(place: Location) -> list[Any]:
        found = look(place)
        monkeypatch.setattr(checkpoint, "paths", look)
        update = next(updates)
        save(folder, update, {"update": update}, keep=1)
        if update < 6:
            monkeypatch.setattr(checkpoint, "paths", look_and_save)
        return found

    monkeypatch.setattr(checkpoint, "paths", look_and_save)
    restored = restore_newest(folder)
    assert (restored.tree, restored.unreadable) == ({"update": 6}, ())


def test_a_file_that_is_listed_and_never_there_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "names", lambda _: ["update-000000001.pt"])
    with pytest.raises(NoCheckpoint, match="no readable checkpoint in"):
        restore_newest(tmp_path)
