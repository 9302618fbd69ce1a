"""Connect to the Ray cluster that is there, or start a local one inside this process and take it down again."""

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ray
from ray.exceptions import RayError

from metagrad.cluster.on_ray import private as ray_private
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.address import cluster_address, find_cluster, masked, masked_address, without_proxy
from metagrad.cluster.on_ray.faults import first_line
from metagrad.cluster.on_ray.job_environment import ray_job
from metagrad.cluster.on_ray.worker_prints import WorkerPrints
from metagrad.cluster.run.stop import children_left_alone, sigterm_kept
from metagrad.cluster.run.variables import environment_variables
from metagrad.cores import usable_cores
from metagrad.errors import counted, refusal, refusing, require

OBJECT_STORE_BYTES = 2**30  # rollouts in flight are tens of megabytes; Ray's default takes a third of the memory
_LOG_BYTES, _LOG_BACKUPS = 2**24, 1  # of one process in an embedded Ray's folder; Ray's default is half a gigabyte
_LONGEST_SOCKET = 107  # bytes, of a Unix socket's path
_RAYS_PART_OF_A_SOCKET = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


class Demand(NamedTuple):
    """Counts the CPUs and GPUs that must run at the same time."""

    least: int  # without so many nothing would ever start
    wanted: int  # what is used where it is there
    gpus: int
    actors: int = 0  # and what they need in words, for the one who is refused
    needs: str = ""


ANY_ROOM = Demand(least=0, wanted=0, gpus=0)  # of tasks, which unlike actors take turns


@contextmanager
def ray_session(demand: Demand) -> Iterator[None]:
    """Connect to Ray for the time of a run: RAY_ADDRESS (or a submitted job's cluster) if set, else an embedded one.

    Raises:
        ConfigurationError: no cluster at RAY_ADDRESS, one with fewer CPUs or GPUs than must run together, so that they
            would wait for ever, or a computer on which Ray does not start.
    """
    ray_private.require_names()
    address = cluster_address()
    with _embedded(demand) if address is None else _connected(address):
        with ray_watch.watching(ray_watch.RayWatch(ray_private.endpoints(), is_embedded=address is None)):
            _check_room(demand)
            yield


@contextmanager
def _embedded(demand: Demand) -> Iterator[None]:
    """Start a Ray of this process's own, out of reach of the network and of other users of the computer."""
    with (
        _private_folder() as folder,
        _environment(_of_embedded(folder, os.environ)),
        ray_private.printing_with(WorkerPrints(f"{folder}/ray/session_latest/logs")),
    ):
        try:
            with ray_private.on_loopback(), _signals_left_alone():
                ray.init(
                    address="local",
                    num_cpus=max(demand.wanted, usable_cores()),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=True,
                    **ray_private.files_in(folder / "ray"),
                    **ray_job(is_embedded=True),
                )
        except Exception as error:  # Ray raises whatever it met, `Exception` itself among it
            ray.shutdown()
            remedy = (
                f"see that {folder.parent} has room, or name another folder in TMPDIR; "
                "--topology colocated works without Ray"
            )
            raise refusal("topology", "ray", f"Ray does not start here ({first_line(error)})", remedy) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Signals stay the run's, which answers them with a checkpoint (cluster/run/stop.py), also while Ray starts.

    Ray would take SIGTERM over twice, in Python and, while it connects, in C++, and end the process at once. What it
    starts here hears of no other signal.
    """
    with ray_private.leaving_sigterm(), ray_private.connecting_within(sigterm_kept), children_left_alone():
        yield


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter. Ray makes its own, within, accessible to everybody."""
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    rule, remedy = "Ray needs a folder there", "name one that can be written to"
    with refusing(OSError, field="TMPDIR", value=base, rule=rule, remedy=remedy):
        folder = tempfile.mkdtemp(prefix="metagrad-", dir=base)
    try:
        room = _LONGEST_SOCKET - _RAYS_PART_OF_A_SOCKET - len(os.fsencode(folder)) + len(os.fsencode(base))
        rule = f"Ray's sockets have no longer names than {room} bytes before their own part"
        require(len(os.fsencode(base)) <= room, "TMPDIR", base, rule, "name a shorter folder, such as /tmp")
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that Ray has just killed may still hold a file


def _of_embedded(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an embedded Ray and its workers find in their environment.

    Ray would write its token readable by everybody into the home folder; this one is the session's own.
    """
    ours = {
        "RAY_USAGE_STATS_ENABLED": "0",  # a run of ours reports to nobody
        "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": str(_LOG_BACKUPS),
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",  # Ray's 15 leaves a run a thirtieth of a core beside any other busy process
    }
    has_token = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if environment.get("RAY_AUTH_MODE", "token").lower() == "token" and not has_token:
        token = folder / "token"
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        ours["RAY_AUTH_TOKEN_PATH"] = str(token)
    return {name: value for name, value in ours.items() if not environment.get(name)} | without_proxy(environment)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, and have Ray notice."""
    try:
        with environment_variables(changes):
            ray_private.read_environment()
            yield
    finally:
        ray_private.read_environment()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    find_cluster(address)
    with ray_private.printing_with(WorkerPrints("Ray's session folder, logs")):
        try:
            with _signals_left_alone():
                ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=True, **ray_job(is_embedded=False))
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:  # nobody there, no address, no token
            remedy = (
                "start a cluster there, run this on one of its nodes (elsewhere: metagrad submit), and for one with "
                "token authentication (Ray's default) set RAY_AUTH_MODE=token beside its token"
            )
            rule = f"cannot be connected to ({masked(first_line(error))})"
            raise refusal("RAY_ADDRESS", masked_address(address), rule, remedy) from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_room(demand: Demand) -> None:
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    rule = f"{demand.needs}, the run needs {counted(demand.least, 'CPU')}, and the cluster has {cpus}"
    require(demand.least <= cpus, "actors", demand.actors, rule, "use fewer actors or add nodes")
    require(demand.gpus <= gpus, "device", "cuda", "no node of this cluster has a GPU", "use --device auto or cpu")


def free_resources() -> str:
    """Say in words what of the cluster nobody uses."""
    there, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if there.get(kind)]
    return ", ".join(f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s are free" for kind in kinds)
