import os
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metagrad.cluster.jobs import files as job_files
from metagrad.cluster.jobs.files import travelling
from metagrad.cluster.jobs.package import package
from metagrad.errors import ConfigurationError

Write = Callable[..., Path]
SECRETS = (
    *(
        "id_rsa",
        "id_ed25519.bak",
        "deploy_rsa",
        "ID_RSA",
        ".env",
        ".env.local",
        "prod.env",
        ".envrc",
        ".git-credentials",
    ),
    *(".netrc", ".npmrc", ".pypirc", ".pgpass", ".my.cnf", ".htpasswd", ".docker/config.json", ".dockercfg", ".s3cfg"),
    *("credentials.json", "Credentials", "gcp-credentials.yaml", "service-account.json", "my-service_account-1.json"),
    *(
        "client_secret_1.json",
        "secrets.toml",
        ".streamlit/secrets.toml",
        "kubeconfig",
        "prod.kubeconfig",
        ".kube/config",
    ),
    *("auth_token", "token", "hf_token", "token.json", "github.token", "passwords.txt", "kaggle.json", ".vault-token"),
    *("a.p12", "a.pfx", "server.PEM", "Server.Key", "a.jks", "a.keystore", "a.kdbx", "a.ppk", "a.gpg", "a.ovpn"),
    *("terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", ".terraform/x", ".aws/config", ".azure/x"),
    *(".config/gcloud/x.db", ".ssh/config", ".gnupg/x", ".ray/auth_token", ".bash_history", ".huggingface/x"),
)
KEPT = (
    "mine.py",
    "tokenizer.json",
    "special_tokens_map.json",
    "keys.csv",
    "environment.yaml",
    "env/maze.py",
    "history",
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(place: str, content: str = "x") -> Path:
        path = tmp_path / "work" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    write("mine.py")
    return write


@pytest.fixture
def root(write: Write, tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_secrets_stay_here_whatever_their_case_and_wherever_they_lie(write: Write, root: Path) -> None:
    for place in (*SECRETS, *(f"deep/er/{place}" for place in SECRETS), *KEPT):
        write(place)
    found = travelling(root)
    assert sorted(found.files) == sorted(KEPT)
    out = {Path(place).parts[0] for place in found.left_out if not place.startswith("deep/")}
    assert out == {Path(place).parts[0] for place in SECRETS} - {".streamlit"} | {".streamlit"}
    assert len(found.left_out) >= 2 * len({Path(place).parts[0] for place in SECRETS})


@pytest.mark.parametrize("name", ["env", ".venv311", "venv", "anything"])
@pytest.mark.parametrize("sign", ["pyvenv.cfg", "conda-meta/history"])
def test_virtual_environments_stay_here_by_what_is_in_them(write: Write, root: Path, name: str, sign: str) -> None:
    write(f"sub/{name}/{sign}")
    write(f"sub/{name}/lib/site.py")
    found = travelling(root)
    assert list(found.files) == ["mine.py"]
    assert found.left_out == [f"sub/{name}/"]


def test_links_that_lead_out_or_to_what_does_not_travel_are_left_out(write: Write, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private.txt").write_text("private")
    write(".env")
    write(".git/config")
    write("data/table.csv")
    write("runs/1/config.json")
    targets = {
        "file": "../outside/private.txt", "folder": "../outside", "absolute": "/etc/passwd", "all": "/",
        "hidden": ".env", "repository": ".git", "setting": ".git/config", "nowhere": "none", "itself": "itself",
        "newest": "runs/1", "twice": "file", "data/up": "../../outside/private.txt",
    }  # fmt: skip
    for name, target in targets.items():
        (root / name).symlink_to(target)
    (root / "inside").symlink_to("data")
    (root / "table").symlink_to("data/table.csv")
    found = travelling(root)
    assert set(found.files) == {"mine.py", "data/table.csv", "inside/table.csv", "table"}
    assert set(found.left_out) == {*targets, ".env", "inside/up"}


def test_what_is_no_file_is_left_out_and_never_opened(write: Write, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(root / "socket")[-100:] if len(str(root)) > 90 else str(root / "socket"))
        assert travelling(root).left_out == ["pipe", "socket"]


def test_executable_bits_and_empty_folders_arrive(write: Write, root: Path, tmp_path: Path) -> None:
    write("tool.sh").chmod(0o750)
    (root / "logs" / "deep").mkdir(parents=True)
    write("ignored/.gitignore", "*\n")
    package(root, [], False, {"TOKEN": "it's"}).write(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as opened:
        modes = {entry.filename: entry.external_attr >> 16 for entry in opened.infolist()}
        assert opened.read("variables.sh") == b"export TOKEN='it'\"'\"'s'\n"
    assert modes["folder/tool.sh"] == 0o755
    assert modes["folder/mine.py"] == 0o644
    assert modes["variables.sh"] == 0o600
    assert stat.S_ISDIR(modes["folder/logs/deep/"])
    assert "folder/ignored/" in modes


@pytest.mark.parametrize("name", [b"back\\slash.csv", b"no-\xff-text.csv"])
def test_a_file_whose_name_cannot_travel_is_named(root: Path, name: bytes) -> None:
    """Ray leaves names with a backslash out and says so in a log; zip knows no bytes that are no text."""
    path = os.fsdecode(os.path.join(os.fsencode(root), name))
    Path(path).touch()
    with pytest.raises(ConfigurationError, match=r"^working-dir = .*: the name of '.*.csv' cannot travel") as refusal:
        travelling(root)
    assert str(refusal.value).isprintable()
    (root / ".rayignore").write_text("*.csv")
    assert list(travelling(root).files) == [".rayignore", "mine.py"]


def test_odd_names_that_can_travel_do(write: Write, root: Path, tmp_path: Path) -> None:
    names = ("two words.txt", "ünï.txt", "line\nbreak.txt", "-dash", "'quote", "%41", "a" * 255)
    for name in names:
        write(name)
    package(root, [], False).write(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as opened:
        assert set(opened.namelist()) == {"folder/", "folder/mine.py", *(f"folder/{name}" for name in names)}


def test_what_cannot_be_read_is_named(
    write: Write, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("data/closed.csv")
    packed = package(root, [], False)
    (root / "data" / "closed.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"'folder/data/closed.csv' cannot be read \(No such file"):
        packed.write(tmp_path / "job.zip")
    write("data/closed.csv")
    opened = Path.open

    def refuse(path: Path, *words: object) -> object:
        if path.name == "closed.csv":
            raise PermissionError(13, "Permission denied")
        return opened(path, *words)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigurationError, match=r"'data/closed.csv' cannot be read \(Permission denied\); fix that"):
        travelling(root)


def test_an_ignore_file_that_is_no_text_is_named(root: Path) -> None:
    (root / ".gitignore").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"'\.' cannot be read"):
        travelling(root)


def test_files_of_import_travel_with_those_that_they_import(write: Write, root: Path, tmp_path: Path) -> None:
    """Whatever they are called, since they were asked for; from two folders they do not meet."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in (f"env_{folder}.py", "secrets_of_it.py"):
            (tmp_path / folder / name).touch()
    inside = [write("sub/env.py"), write("sub/token.py")]
    outside = [[tmp_path / f / f"env_{f}.py", tmp_path / f / "secrets_of_it.py"] for f in ("a", "b")]
    packed = package(root, [inside, *outside], False)
    assert packed.extensions == ("sub/env.py", "metagrad_extensions/env_a.py", "metagrad_extensions_1/env_b.py")
    assert packed.files["sub/token.py"] == inside[1]
    assert packed.files["metagrad_extensions_1/secrets_of_it.py"] == outside[1][1]


def test_too_many_bytes_are_refused_before_all_is_looked_at(
    write: Write, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "MOST_BYTES", 10)
    write("a.csv", "x" * 11)
    write("z\\.csv")
    with pytest.raises(ConfigurationError, match=r"more than 0 MiB would travel .* a.csv \(0.0 MiB\)"):
        travelling(root)
