"""Find the files of a working folder that may travel with a job: no secrets, and nothing from outside of it."""

import contextlib
import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from metagrad.cluster.on_ray.private import Excluded, excluded_by, excluded_by_files_in
from metagrad.errors import refusing, require

MOST_BYTES = 100 * 2**20  # Ray's own limit is 512 MiB, and it finds out after it has read everything
MOST_FILES = 20_000
_GENERATED = (
    *(".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
    *(".tox", ".nox", "/runs", "/studies", "node_modules", ".ipynb_checkpoints"),
)
# By a file's or folder's name, in lower case. A name too many is left out and said; a name too few is published.
_SECRET = """
    .env .env.* *.env .envrc .direnv .flaskenv
    id_rsa* id_dsa* id_ecdsa* id_ed25519* *_rsa *_dsa *_ecdsa *_ed25519 .ssh .gnupg
    *.pem *.key *.p8 *.p12 *.pfx *.pkcs12 *.ppk *.gpg *.pgp *.ovpn
    *.jks *.keystore *.keytab *.kdb *.kdbx *.keychain* .password-store
    .git-credentials .gitcookies .netrc _netrc .authinfo* .npmrc .yarnrc* .pypirc pip.conf
    .pgpass pgpass.conf .my.cnf .mylogin.cnf .dbshell .rediscli_auth .htpasswd *.htpasswd
    .docker .dockercfg .dockerconfigjson *pull-secret* .kube kubeconfig* *.kubeconfig
    .aws .azure .gcloud gcloud .gsutil .boto .s3cfg .passwd-s3fs .oci .config
    .bluemix .ray .huggingface .kaggle kaggle.json .wandb* .netlify .vercel .heroku .cargo
    *credential* *secret* *password* *passwd* client_secret* *service-account* *service_account*
    *serviceaccount* auth.json auth_token* token *.token *_token *-token *token.txt
    token.json tokens.json *_token.json rclone.conf *.der *apikey* *api_key* *api-key* *access_key*
    *accesskeys* *private_key* *private-key* *privatekey* *.tfstate *.tfstate.* *.tfvars *.tfvars.*
    .terraform .terraformrc terraform.rc .terraform.d .vault* vault_pass* *.vault .*_history
    .pulumi .chef .jupyter .mozilla .thunderbird *.cookies cookies.txt cookies.sqlite
""".split()
_IS_SECRET = re.compile("|".join(map(fnmatch.translate, _SECRET)))
_SILENT = logging.getLogger("metagrad.silent")
_SILENT.disabled = True
_REMEDY = "name what the job does not need in .rayignore, or choose another --working-dir"


@dataclass(kw_only=True, slots=True)
class Folder:
    """Lists the files of a folder that travel, by their place in it."""

    files: dict[str, Path] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    """Folders in which nothing travels."""
    left_out: list[str] = field(default_factory=list)
    """Secrets, virtual environments, links that lead out of the folder, and what is neither file nor folder."""


def is_secret(place: Path) -> bool:
    """True where a part of this path has a name that looks like a secret."""
    return any(_IS_SECRET.fullmatch(part.lower()) for part in place.parts)


def travelling(root: Path) -> Folder:
    """Look through a folder.

    Raises:
        ConfigurationError: one of its files cannot be read or has a name that cannot travel, or they are too many.
    """
    found = Folder()
    _Walk(root, found, excluded_by(root, _GENERATED)).into(root, (), ())
    return found


class _Walk:
    """Looks through a folder once and counts its files on the way."""

    def __init__(self, root: Path, found: Folder, is_generated: Excluded):
        self._root, self._found, self._is_generated = root, found, is_generated
        self._sizes: dict[str, int] = {}
        self._total = 0

    def into(self, folder: Path, ignored: tuple[Excluded, ...], above: tuple[Path, ...]) -> None:
        """Take all below a folder, in order; a link to a folder that it lies in is left out."""
        place = folder.relative_to(self._root).as_posix()
        before = len(self._found.files) + len(self._found.empty)
        with _naming(self._root, place):
            ignored = (*ignored, *excluded_by_files_in(folder, _SILENT))
            paths = sorted(folder.iterdir())
        for path in paths:
            if not self._is_generated(path) and not any(is_ignored(path) for is_ignored in ignored):
                self._take(path, ignored, (*above, folder.resolve()))
        if folder != self._root and len(self._found.files) + len(self._found.empty) == before:
            self._found.empty.append(place)

    def _take(self, path: Path, ignored: tuple[Excluded, ...], above: tuple[Path, ...]) -> None:
        place = path.relative_to(self._root).as_posix()
        if is_secret(Path(path.name)) or not self._is_inside(path):
            self._found.left_out.append(place)
        elif path.is_dir():
            if path.name in ("venv", ".venv") or any((path / sign).exists() for sign in ("pyvenv.cfg", "conda-meta")):
                self._found.left_out.append(f"{place}/")
            elif path.resolve() not in above:
                self.into(path, ignored, above)
        elif path.exists() and S_ISREG(path.stat().st_mode):
            self._add(place, path)
        else:
            self._found.left_out.append(place)

    def _is_inside(self, path: Path) -> bool:
        """True unless this is a link to something that does not travel under its own name either."""
        if not path.is_symlink():
            return True
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # it leads nowhere, or to itself
            return False
        if not target.is_relative_to(self._root) or is_secret(target.relative_to(self._root)):
            return False
        between = (target, *target.parents)
        return not any(self._is_generated(x) for x in between if x.is_relative_to(self._root) and x != self._root)

    def _add(self, place: str, path: Path) -> None:
        is_named = not any("\ud800" <= c <= "\udfff" for c in place)
        rule = f"the name of {place!r} cannot travel: it has a backslash, or bytes that are not UTF-8"
        remedy = "rename it, or name it in .rayignore"
        require(is_named and "\\" not in place, "working-dir", str(self._root), rule, remedy)
        with _naming(self._root, place):
            self._sizes[place] = path.stat().st_size
            self._total += self._sizes[place]
            path.open("rb").close()
        self._found.files[place] = path
        if self._total > MOST_BYTES:
            self._refuse()
        count = len(self._sizes)
        require(count <= MOST_FILES, "working-dir", str(self._root), f"holds more than {MOST_FILES:,} files", _REMEDY)

    def _refuse(self) -> None:
        largest = sorted(self._sizes, key=self._sizes.__getitem__, reverse=True)[:3]
        shown = ", ".join(f"{place} ({self._sizes[place] / 2**20:.1f} MiB)" for place in largest)
        rule = f"more than {MOST_BYTES / 2**20:.0f} MiB would travel with the job, among it {shown}"
        require(False, "working-dir", str(self._root), rule, _REMEDY)


@contextlib.contextmanager
def _naming(root: Path, place: str) -> Iterator[None]:
    """Refuse whatever cannot be read in here, and name it."""
    rule, remedy = f"{place!r} cannot be read", "fix that, or name it in .rayignore"
    with refusing(OSError, UnicodeError, field="working-dir", value=str(root), rule=rule, remedy=remedy):
        yield


def read(root: Path, place: str, path: Path) -> bytes:
    """Read one of the files.

    Raises:
        ConfigurationError: it has gone or changed meanwhile.
    """
    with _naming(root, place):
        return path.read_bytes()


def is_executable(path: Path) -> bool:
    """True where anybody may execute it."""
    return bool(os.stat(path).st_mode & 0o111)
