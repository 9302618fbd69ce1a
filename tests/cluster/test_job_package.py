import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from metagrad.cluster.jobs import files as job_files
from metagrad.cluster.jobs.package import package, pinned_requirements
from metagrad.errors import ConfigurationError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(place: str, content: str = "x") -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return write


def test_ignored_secret_and_generated_files_stay_here(write: Write, tmp_path: Path) -> None:
    kept = ("mine.py", "data/table.csv", "data/runs/table.csv", ".rayignore", ".gitignore", "data/.gitignore")
    for place in (*kept, "big/model.bin", "local.txt", "data/local.csv"):
        write(place)
    write(".rayignore", "big/\n")
    write(".gitignore", "local.txt\n")
    write("data/.gitignore", "local.csv\n")
    write("runs/demo/config.json")
    write("studies/demo/report.md")
    for folder in (".git", ".venv", "venv", "__pycache__", "data/__pycache__", ".mypy_cache", ".ray", ".ssh", ".aws"):
        write(f"{folder}/file")
    for secret in (".env", ".netrc", "data/server.pem", "data/server.key"):
        write(secret)
    assert sorted(package(tmp_path, [], False).files) == sorted(kept)


def test_a_folder_that_is_linked_into_itself_travels_once(write: Write, tmp_path: Path) -> None:
    write("data/table.csv")
    (tmp_path / "data" / "again").symlink_to(tmp_path)
    assert list(package(tmp_path, [], False).files) == ["data/table.csv"]


def test_imported_files_travel_even_if_they_are_ignored_or_elsewhere(write: Write, tmp_path: Path) -> None:
    inside, outside = write("work/mine/toy.py"), write("elsewhere/other.py")
    write("work/.gitignore", "mine\n")
    packed = package(tmp_path / "work", [[inside], [outside]], False)
    assert packed.extensions == ("mine/toy.py", "metagrad_extensions/other.py")
    assert packed.files["mine/toy.py"] == inside
    assert packed.files["metagrad_extensions/other.py"] == outside


def test_the_archive_depends_on_names_and_contents_alone(write: Write, tmp_path: Path) -> None:
    path = write("work/mine.py", "a = 1")
    write("work/data/table.csv", "1,2")
    archives = [tmp_path / "1.zip", tmp_path / "2.zip", tmp_path / "3.zip"]
    package(tmp_path / "work", [], False).write(archives[0])
    path.touch()
    package(tmp_path / "work", [], False).write(archives[1])
    path.write_text("a = 2")
    package(tmp_path / "work", [], False).write(archives[2])
    first, second, third = (archive.read_bytes() for archive in archives)
    assert first == second != third
    with zipfile.ZipFile(archives[0]) as opened:
        assert opened.namelist() == ["folder/", "folder/data/table.csv", "folder/mine.py"]
        assert opened.read("folder/mine.py") == b"a = 1"


def test_the_running_code_is_brought_along_unless_the_folder_has_its_own(write: Write, tmp_path: Path) -> None:
    write("plain/mine.py")
    packed = package(tmp_path / "plain", [], True)
    ours = {"metagrad/cli/entry.py", "metagrad/returns.py", "metagrad/actors/envs/snake.py"}
    assert list(packed.files) == ["mine.py"]
    assert ours <= set(packed.code)
    assert all(place.endswith(".py") for place in packed.code)
    (place,) = packed.texts
    assert place == f"metagrad-{version('metagrad')}.dist-info/METADATA"
    own = write("checkout/cli/main.py")
    (tmp_path / "checkout" / "metagrad").mkdir()
    (tmp_path / "checkout" / "metagrad" / "cli").symlink_to("../cli")
    for brings_metagrad in (True, False):
        packed = package(tmp_path / "checkout", [], brings_metagrad)
        assert packed.code == {"metagrad/cli/main.py": tmp_path / "checkout" / "metagrad" / "cli" / "main.py"}
        assert set(packed.files) == {"cli/main.py", *packed.code}
        assert packed.files["cli/main.py"] == own
    write("other/metagrad/mine.py")
    assert package(tmp_path / "other", [], False).code == {}, "somebody else's metagrad stands in for none"


def test_a_folder_that_is_none_or_too_much_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("work/small.csv", "12").parent
    write("work/large.csv", "x" * 90)
    with pytest.raises(ConfigurationError, match=r"^working-dir = 'none': is not a folder; "):
        package(Path("none"), [], False)
    for root in (Path("/"), folder):
        monkeypatch.setattr(Path, "home", lambda: folder)
        with pytest.raises(ConfigurationError, match=r"^working-dir = .*: all of it would travel with the job; "):
            package(root, [], False)
    monkeypatch.undo()
    monkeypatch.setattr(job_files, "MOST_BYTES", 80)
    with pytest.raises(
        ConfigurationError, match=r"large.csv \(0.0 MiB\)[^;]*; name what the job does not need in .ray"
    ):
        package(folder, [], False)
    monkeypatch.undo()
    monkeypatch.setattr(job_files, "MOST_FILES", 1)
    with pytest.raises(ConfigurationError, match=r"holds more than 1 files; "):
        package(folder, [], False)


def test_packages_are_pinned_to_what_runs_here_and_ray_is_the_nodes_own() -> None:
    pinned = dict(line.partition("==")[::2] for line in pinned_requirements())
    assert pinned["numpy"] == version("numpy")
    assert pinned["torch"] == version("torch").partition("+")[0]
    assert "gymnasium" in pinned
    assert "typing-extensions" in pinned, "needed by those that metagrad needs"
    assert not {"ray", "pytest", "metagrad"} & set(pinned)
    extra = pinned_requirements(["pytest", "no-such-package", "rich==1.0"])
    assert {f"pytest=={version('pytest')}", "no-such-package", "rich==1.0"} <= set(extra)
    assert f"rich=={version('rich')}" not in extra
    with pytest.raises(ConfigurationError, match=r"^packages = 's3fs gcsfs': is not a requirement; "):
        pinned_requirements(["s3fs gcsfs"])
