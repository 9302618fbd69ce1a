import json
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from metagrad.cluster.run.provenance import commit, hardware, provenance


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit.cache_clear()
    return tmp_path


def test_it_names_versions_and_no_machine() -> None:
    found = provenance()
    assert found["torch"] == torch.__version__
    assert socket.gethostname() not in json.dumps(found)
    assert all(isinstance(value, str) or value is None for value in found.values())


def test_a_checkout_has_a_commit(checkout: Path) -> None:
    head = commit(checkout)
    assert head is not None
    assert git(checkout, "rev-parse", "HEAD").startswith(head)


def test_changes_are_marked_and_new_files_are_none(checkout: Path) -> None:
    head = commit(checkout)
    (checkout / "new").write_text("")
    commit.cache_clear()
    assert commit(checkout) == head
    (checkout / "file").write_text("2")
    commit.cache_clear()
    assert commit(checkout) == f"{head}+changes"


def test_a_folder_inside_somebody_elses_checkout_has_none(checkout: Path) -> None:
    (checkout / "site-packages").mkdir()
    assert commit(checkout / "site-packages") is None


def test_a_checkout_without_a_commit_or_without_git_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) is None
    commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None


def test_hardware_is_model_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metagrad.cluster.run.provenance.usable_cores", lambda: 2)
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    assert hardware(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz, 2 cores"
    monkeypatch.setattr("metagrad.cluster.run.provenance.usable_cores", lambda: 1)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert hardware(tmp_path / "none") == "aarch64, 1 core"
