"""Connect to the Ray cluster that is there, or start a local one inside this process and take it down again."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from metagrad.cluster.ray_job import ray_job
from metagrad.cluster.stop import children_left_alone, sigterm_kept
from metagrad.cores import usable_cores
from metagrad.errors import ConfigurationError, require

OBJECT_STORE_BYTES = 2**30  # rollouts in flight are tens of megabytes; Ray's default takes a third of the memory


class Demand(NamedTuple):
    """CPUs and GPUs that must run at the same time."""

    least: int  # without so many nothing would ever start
    wanted: int  # what is used where it is there
    gpus: int
    actors: int = 0  # and what they need in words, for the one who is refused
    needs: str = ""


ANY_ROOM = Demand(least=0, wanted=0, gpus=0)  # of tasks, which unlike actors take turns


@contextmanager
def ray_session(demand: Demand) -> Iterator[None]:
    """Ray for the time of a run: RAY_ADDRESS (or a submitted job's cluster) if set, otherwise an embedded one.

    Raises:
        ConfigurationError: no cluster at RAY_ADDRESS, or one with fewer CPUs or GPUs than must run together, so that
            they would wait for ever.
    """
    if address := os.environ.get("RAY_ADDRESS"):  # empty is unset
        _check_reachable(address)
        with _signals_left_alone():
            _connect(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run of ours reports to nobody
        with _signals_left_alone():
            ray.init(
                address="local",
                num_cpus=max(demand.wanted, usable_cores()),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **ray_job(),
            )
    try:
        with _without_obituaries():
            _check_room(demand)
            yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Signals stay the run's, which answers them with a checkpoint (cluster/stop.py), also while Ray starts.

    Ray would take SIGTERM over twice, in Python and, while it connects, in C++, and end the process at once. What it
    starts here hears of no other signal.
    """
    take_over, connect = ray_utils.set_sigterm_handler, ray_worker.connect

    def connected(*arguments: Any, **options: Any) -> Any:
        with sigterm_kept():
            return connect(*arguments, **options)

    ray_utils.set_sigterm_handler = lambda handler: None
    ray_worker.connect = connected
    try:
        with children_left_alone():
            yield
    finally:
        ray_utils.set_sigterm_handler = take_over
        ray_worker.connect = connect


@contextmanager
def _without_obituaries() -> Iterator[None]:
    """Ray's paragraph on each worker that dies stays off the console, where a line of ours says it.

    It comes whatever `log_to_driver` says, and Ray has no option against it. The raylet's own log and events keep it.
    """
    print_all = ray_worker.print_to_stdstream

    def print_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if not any(line.startswith("A worker died or was killed") for line in data["lines"]):
            print_all(data, *arguments, **options)

    ray_worker.print_to_stdstream = print_others
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = print_all


def _check_room(demand: Demand) -> None:
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    rule = f"{demand.needs}, {demand.least} CPUs are needed, and the cluster has {cpus}"
    require(demand.least <= cpus, "actors", demand.actors, rule, "use fewer actors or add nodes")
    require(demand.gpus <= gpus, "device", "cuda", "no node of this cluster has a GPU", "use --device auto or cpu")


def _connect(address: str) -> None:
    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False, **ray_job())
    except (ConnectionError, ValueError) as error:  # nobody there, or no address
        raise ConfigurationError(
            f"RAY_ADDRESS = {address!r}: cannot be connected to ({error}); start a cluster there, and for one with "
            "token authentication (Ray's default) set RAY_AUTH_MODE=token beside its token"
        ) from error


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in host or not port.isdigit():  # "auto" and client addresses are Ray's to resolve
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:  # a port or a name that cannot be are no OSError
        raise ConfigurationError(
            f"RAY_ADDRESS = {address!r}: no Ray cluster answers there ({error}); start one or unset RAY_ADDRESS"
        ) from error
