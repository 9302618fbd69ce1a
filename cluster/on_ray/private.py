"""Every name of Ray that its documentation does not promise; one that is missing is refused with Ray's tested version.

Nothing else of metagrad imports `ray._private`, `ray._raylet` or `ray._common`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import ray

from metagrad.errors import require

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
    "ray.job_submission:JobSubmissionClient._do_request",
)


class Endpoint(NamedTuple):
    """Where a process of Ray listens."""

    host: str
    port: int


def require_names() -> None:
    """Refuse a Ray that lacks one of the names.

    Raises:
        ConfigurationError: it does.
    """
    for name in NAMES:
        module, _, path = name.partition(":")
        try:
            found: Any = import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
            is_there = True
        except (ImportError, AttributeError):
            is_there = False
        rule = f"this release of Ray has no {name.replace(':', '.')}, which metagrad needs"
        require(
            is_there, "ray", ray.__version__, rule, f"install a release that was tested: pip install 'ray=={TESTED}.*'"
        )


def on_loopback() -> AbstractContextManager[None]:
    """A cluster that starts meanwhile listens on the loopback interface alone, with all of its processes.

    It is what Ray does on systems where it has no clusters of several nodes. `_node_ip_address` would not do: Ray turns
    a loopback address that it is given into the node's own.
    """
    return _replaced("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False)


def leaving_sigterm() -> AbstractContextManager[None]:
    """`ray.init` does not take SIGTERM over, of which it would end the process."""
    return _replaced("ray._private.utils", "set_sigterm_handler", lambda handler: None)


def connecting_within(around: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
    """`ray.init` enters a context of ours while it connects in C++, its node having started."""
    connect = import_module("ray._private.worker").connect

    def connected(*arguments: Any, **options: Any) -> Any:
        with around():
            return connect(*arguments, **options)

    return _replaced("ray._private.worker", "connect", connected)


def printing_with(replacement: Callable[..., None]) -> AbstractContextManager[None]:
    """What processes of a Ray that is connected to meanwhile print comes to `replacement`, in batches of lines."""
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
    """Where Ray would look for the cluster that RAY_ADDRESS names.

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
    """What this process cannot do without while it is connected: the cluster's head, and the raylet of its own node."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    raylet = Endpoint(own["NodeManagerAddress"], int(own["NodeManagerPort"]))
    return {"GCS": _endpoint(context.gcs_address), "raylet": raylet}


def free_by_node() -> dict[str, dict[str, float]]:
    """Resources of each living node, by its id, that nobody uses."""
    return dict(import_module("ray._private.state").available_resources_per_node())


def excluded_by(root: Path, patterns: Sequence[str]) -> Callable[[Path], bool]:
    """Whether Ray would leave a file out of what it uploads from `root`, for patterns as in a .gitignore."""
    found: Callable[[Path], bool] = import_module("ray._private.runtime_env.packaging")._get_excludes(
        root, list(patterns)
    )
    return found


def excluded_by_files_in(folder: Path, logger: logging.Logger) -> list[Callable[[Path], bool]]:
    """Likewise, for the .gitignore and .rayignore of a folder."""
    packaging = import_module("ray._private.runtime_env.packaging")
    found: list[Callable[[Path], bool]] = packaging.get_excludes_from_ignore_files(
        folder, include_gitignore=True, logger=logger
    )
    return found
