"""Hold every use of a name that Ray's documentation does not promise; without one of them Ray is refused.

Nothing else of metagrad imports `ray._private` or the like, overrides a private method of Ray's, or reads one; Tune,
an extra, has `metagrad.cluster.sweeps.tune_private`.
"""

import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import ray
from ray.job_config import JobConfig
from ray.job_submission import JobSubmissionClient

from metagrad.errors import refusal

TESTED = "2.60"
NAMES = (
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER",
    "ray._private.runtime_env.packaging:_get_excludes",
    "ray._private.runtime_env.packaging:get_excludes_from_ignore_files",
    "ray._private.services:canonicalize_bootstrap_address",
    "ray._private.state:available_resources_per_node",
    "ray._private.utils:set_sigterm_handler",
    "ray._private.worker:connect",
    "ray._private.worker:print_to_stdstream",
    "ray._raylet:AuthenticationTokenLoader.instance",
    "ray._raylet:Config.initialize",
    "ray._common.network_utils:parse_address",
    "ray.job_config:JobConfig._runtime_env_has_working_dir",
    "ray.job_submission:JobSubmissionClient._do_request",
)


_SECONDS_TO_CONNECT, _SECONDS_TO_GREET, _SECONDS_TO_ANSWER = 5.0, 10.0, 60.0  # of a dashboard
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")
Excluded = Callable[[Path], bool]


class Endpoint(NamedTuple):
    """Says where a process of Ray listens."""

    host: str
    port: int


def require_names() -> None:
    """Refuse a Ray that lacks one of the names.

    Raises:
        ConfigurationError: it does.
    """
    remedy = f"install a release that was tested: pip install 'ray=={TESTED}.*'"
    for name in NAMES:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            rule = f"this release of Ray has no {name.replace(':', '.')}, which metagrad needs"
            raise refusal("ray", ray.__version__, rule, remedy) from error


def on_loopback() -> AbstractContextManager[None]:
    """Let a cluster that starts meanwhile listen on the loopback interface alone, with all of its processes.

    It is what Ray does on systems where it has no clusters of several nodes. `_node_ip_address` would not do: Ray turns
    a loopback address that it is given into the node's own.
    """
    return _replaced("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False)


def leaving_sigterm() -> AbstractContextManager[None]:
    """Keep `ray.init` from taking SIGTERM over, of which it would end the process."""
    return _replaced("ray._private.utils", "set_sigterm_handler", lambda handler: None)


def connecting_within(around: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
    """Have `ray.init` enter a context of ours while it connects in C++, its node having started."""
    connect = import_module("ray._private.worker").connect

    def connected(*arguments: Any, **options: Any) -> Any:
        with around():
            return connect(*arguments, **options)

    return _replaced("ray._private.worker", "connect", connected)


def printing_with(replacement: Callable[..., None]) -> AbstractContextManager[None]:
    """Send `replacement` what processes of a Ray that is connected to meanwhile print, in batches of lines."""
    return _replaced("ray._private.worker", "print_to_stdstream", replacement)


@contextmanager
def _replaced(module: str, name: str, value: Any) -> Iterator[None]:
    owner = import_module(module)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def read_environment() -> None:
    """Have Ray look again at RAY_AUTH_MODE and at where the token is: it keeps both from the first time."""
    raylet = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def gcs_address(given: str) -> Endpoint:
    """Return where Ray would look for the cluster that RAY_ADDRESS names.

    Raises:
        ConnectionError: "auto", and no cluster was started here.
        ValueError: no address.
    """
    if given != "auto":
        _endpoint(given)  # Ray's own refusal comes with a traceback on the console
    found = import_module("ray._private.services").canonicalize_bootstrap_address(given)
    return _endpoint(str(found))


def _endpoint(address: str) -> Endpoint:
    parts = import_module("ray._common.network_utils").parse_address(address)
    if parts is None or not parts[0]:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return Endpoint(parts[0], int(parts[1]))


def endpoints() -> dict[str, Endpoint]:
    """Return what this process cannot do without while connected: the cluster's head, and its own node's raylet."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    raylet = Endpoint(own["NodeManagerAddress"], int(own["NodeManagerPort"]))
    return {"GCS": _endpoint(context.gcs_address), "raylet": raylet}


def free_by_node() -> dict[str, dict[str, float]]:
    """Return the resources that nobody uses of each living node, by its id."""
    return dict(import_module("ray._private.state").available_resources_per_node())


def excluded_by(root: Path, patterns: Sequence[str]) -> Excluded:
    """Return what tells which files Ray would leave out of an upload from `root`, for patterns as in a .gitignore."""
    packaging: Any = import_module("ray._private.runtime_env.packaging")
    return cast(Excluded, packaging._get_excludes(root, list(patterns)))


def excluded_by_files_in(folder: Path, logger: logging.Logger) -> list[Excluded]:
    """Return the same for the .gitignore and .rayignore of a folder."""
    packaging: Any = import_module("ray._private.runtime_env.packaging")
    return list(packaging.get_excludes_from_ignore_files(folder, include_gitignore=True, logger=logger))


def files_in(folder: Path) -> dict[str, Any]:
    """Return the arguments with which `ray.init` keeps all files of a cluster that it starts in a folder."""
    return {"_temp_dir": str(folder)}


class OwnPathJobConfig(JobConfig):
    """Has workers import from where this process does, and from nowhere else.

    Ray puts the current folder first on their path, where a `torch.py` or `metagrad/` would take the place of ours. It
    does not where a job has a working folder, which is what it is told here, unless the folder is on the path of this
    process as well (`python -m`).
    """

    def _runtime_env_has_working_dir(self) -> bool:
        here = os.getcwd()
        is_own = any(os.path.abspath(entry) == here for entry in sys.path)
        return not is_own or bool(super()._runtime_env_has_working_dir())


class ImpatientJobClient(JobSubmissionClient):
    """Limits the time that Ray's client waits for an answer, which is for ever otherwise."""

    @property
    def server_version(self) -> str:
        """Return the version of Ray that the cluster runs."""
        return str(self._server_ray_version)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        seconds = _SECONDS_TO_GREET if endpoint == "/api/version" else _SECONDS_TO_ANSWER
        return super()._do_request(method, endpoint, timeout=(_SECONDS_TO_CONNECT, seconds), **options)


def silence_job_client() -> None:
    """Keep Ray's client of jobs from logging what it does."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
