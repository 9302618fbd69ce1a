import os
import pickle
from pathlib import Path

import pytest
import torch

from learner.checkpoint import NoCheckpoint, Unreadable, checkpoint_path, load, paths, restore_newest, save, update_of

TREE = {"theta": torch.arange(4.0), "count": 3, "names": ["a"], "nothing": None, "nested": {"x": 1.5, "ok": True}}


def equal(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return left == right


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", 12, TREE, keep=2)
    assert path == checkpoint_path(tmp_path / "new" / "folder", 12)
    assert update_of(path) == 12
    assert equal(load(path), TREE)
    restored = restore_newest(path.parent)
    assert (restored.path, restored.unreadable) == (path, ())
    assert equal(restored.tree, TREE)


def test_the_newest_k_stay(tmp_path: Path) -> None:
    for update in (1, 2, 10, 999_999_999):
        save(tmp_path, update, {"update": update}, keep=3)
    assert [update_of(path) for path in paths(tmp_path)] == [2, 10, 999_999_999]
    assert restore_newest(tmp_path).tree == {"update": 999_999_999}


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

    def crash(*_args: object) -> None:
        raise OSError("no space left on device")

    def write_half(_tree: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        crash()

    with monkeypatch.context() as patch:
        if crash_in == "write":
            patch.setattr(torch, "save", write_half)
        elif crash_in == "fsync":
            patch.setattr(os, "fsync", crash)
        else:
            patch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, 2, {"update": 2}, keep=1)
    restored = restore_newest(tmp_path)
    assert restored.tree == {"update": 1}
    assert restored.unreadable == ()
    save(tmp_path, 2, {"update": 2}, keep=1)
    assert restore_newest(tmp_path).tree == {"update": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["update-000000002.pt"], "no partial file is left"


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_an_unreadable_newest_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    good = save(tmp_path, 1, TREE, keep=3)
    bad = save(tmp_path, 2, TREE, keep=3)
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"\x00garbage" * 50}[damage])
    restored = restore_newest(tmp_path)
    assert restored.path == good
    assert equal(restored.tree, TREE)
    assert len(restored.unreadable) == 1
    assert restored.unreadable[0].startswith("update-000000002.pt: ")
    assert "\n" not in restored.unreadable[0]


def test_no_file_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="no readable checkpoint in"):
        restore_newest(tmp_path / "absent")
    for update in (1, 2):
        save(tmp_path, update, TREE, keep=3).write_bytes(b"\x80")
    with pytest.raises(NoCheckpoint, match=r"^no readable checkpoint in .*; update-000000002.pt: .*; update-000000001"):
        restore_newest(tmp_path)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    folder, target = tmp_path / "checkpoints", tmp_path / "broken-in"
    good = save(folder, 1, TREE, keep=3)
    bad = checkpoint_path(folder, 2)
    if form == "torch":
        torch.save({"theta": Malicious(target)}, bad)
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
