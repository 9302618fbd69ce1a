"""Wraps an `Actor` in a Ray actor: started by a method, told of weights while it works, outliving its learner."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from packaging.version import Version
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from metagrad.actors.rollout import ActorSetup, ActorState, AnyActor
from metagrad.cluster.on_ray.faults import NotStarted
from metagrad.cluster.run.actor_group import ActorGroup, MemberLost, on_host
from metagrad.cluster.run.memory import keep_freed_memory
from metagrad.errors import ConfigurationError, require
from metagrad.types import Episodes, Rollout, WeightSnapshot

MakeActor = Callable[[ActorSetup], AnyActor]
Weights = tuple[np.ndarray, np.ndarray]  # θ, η


class Published(NamedTuple):
    """Refers to the weights of one version; a node fetches them once for all its actors.

    It travels as a plain tuple: Ray takes three times as long over a call with a class among its arguments.
    """

    learner: int  # which life of the learner published it: versions of two lives do not compare
    version: int
    weights: Weights | list[Any]  # small ones; or the reference, in a list: an actor fetches it when it needs it


class ProcessPlace(NamedTuple):
    """Says where an actor process runs."""

    node: str  # address
    pid: int
    is_started: bool  # True: it has environments, from before

    def __str__(self) -> str:
        return f"{self.node}, process {self.pid}"


def versions() -> dict[str, str]:
    """Return what must agree between a learner and its actors; torch 2.13.0+cpu and the 2.13.0 of a GPU node do."""
    packages = {name: Version(version(name)).public for name in ("metagrad", "ray", "torch", "numpy")}
    return {"python": platform.python_version()} | packages


class RolloutActor:
    """Rolls out in one process. Its constructor does nothing, so that a failed start is an error and no death."""

    def __init__(self) -> None:
        self._actor: AnyActor | None = None
        self._newest: Published | None = None
        self._weights: tuple[int, WeightSnapshot] | None = None  # of which learner, what was fetched last

    @ray.method(concurrency_group="control")
    def place(self) -> ProcessPlace:
        return ProcessPlace(*address_and_pid(), self._actor is not None)

    @ray.method(concurrency_group="control")
    def publish(self, published: tuple[Any, ...]) -> None:
        """Use these weights, or newer ones, for rollouts that begin from now on."""
        self._newest = Published(*published)

    def start(self, setup: ActorSetup, make: MakeActor, state: ActorState | None, expected: dict[str, str]) -> None:
        """Make the environments.

        Raises:
            ConfigurationError: another version of a package than the learner's is installed here, or none.
        """
        here, (node, _) = versions(), address_and_pid()
        for package, wanted in expected.items():
            if here[package] != wanted:
                raise ConfigurationError(
                    f"node = {node!r}: has {package} {here[package]} where the learner has {wanted}; install the same "
                    "versions on all nodes (pip install -c constraints.txt .)"
                )
        is_seen = not setup.device.startswith("cuda") or torch.cuda.is_available()
        rule = "its torch sees no GPU where Ray counts one"
        require(is_seen, "node", node, rule, "install there the torch of its CUDA driver, or leave out --actor-gpus")
        keep_freed_memory()
        torch.set_num_threads(setup.threads)
        try:
            with self._ending_with_its_processes():
                self._actor = make(setup) if setup.processes == 1 else ActorGroup(setup, make)
                if state:
                    self._actor.load_state(state)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"node = {node!r}: cannot make {type(setup.environment).__name__} there ({error}); install the same "
                "packages on all nodes (pip install -c constraints.txt .)"
            ) from error

    def restore(self, state: ActorState) -> None:
        """Go back to a state of these environments, for the learner that follows another one.

        Raises:
            NotStarted: this process has no environments.
        """
        actor = self._started()
        with self._ending_with_its_processes():
            actor.load_state(state)

    def rollout(self, order: tuple[Any, ...], lookahead_step: int) -> Rollout:
        """Roll out T steps under the ordered weights, or newer ones of the same learner that were published since.

        Raises:
            NotStarted: this process has no environments.
        """
        actor, ordered, newest = self._started(), Published(*order), self._newest
        if newest is not None and newest.learner == ordered.learner and newest.version > ordered.version:
            ordered = newest
        with torch.no_grad(), self._ending_with_its_processes():
            result = actor.rollout(self._snapshot(ordered), lookahead_step)
        return _map_arrays(result, lambda x: x.cpu().numpy() if isinstance(x, Tensor) else x)

    def _snapshot(self, published: Published) -> WeightSnapshot:
        held = self._weights
        if held is None or (held[0], held[1].version) != (published.learner, published.version):
            weights = published.weights
            theta, eta = weights if isinstance(weights, tuple) else ray.get(weights[0])
            # Own copies: the object store's arrays are read-only.
            setup = self._started().setup
            own = torch.tensor(theta, device=setup.device if setup.processes == 1 else "cpu")  # else they have each one
            snapshot = WeightSnapshot(published.version, own, torch.tensor(eta))
            held = self._weights = (published.learner, snapshot)
        return held[1]

    def state(self) -> ActorState:
        actor = self._started()
        with self._ending_with_its_processes():
            return on_host(actor.state())

    @contextmanager
    def _ending_with_its_processes(self) -> Iterator[None]:
        """Forget an actor of several processes of which one has died: it is lost as one that was alone would be."""
        try:
            yield
        except MemberLost as error:
            actor, self._actor = self._actor, None
            if actor is not None:
                actor.close()
            raise NotStarted(f"{ProcessPlace(*address_and_pid(), False)}: {error}") from error

    def _started(self) -> AnyActor:
        if self._actor is None:
            raise NotStarted(f"{ProcessPlace(*address_and_pid(), False)}, has taken the place of one that died")
        return self._actor


def _map_arrays(rollout: Rollout, convert: Callable[[Any], Any]) -> Rollout:
    trajectory, episodes = rollout.trajectory, rollout.episodes
    return rollout._replace(
        trajectory=type(trajectory)(*map(convert, trajectory)), episodes=Episodes(*map(convert, episodes))
    )


def address_and_pid() -> tuple[str, int]:
    """Return where this process runs."""
    return ray.util.get_node_ip_address(), os.getpid()


def create(
    count: int,
    cpus: int,
    group: PlacementGroup | None = None,
    reserved: Mapping[int, int] | None = None,
    gpus: float = 0.0,
) -> list[Any]:
    """Start so many actor processes, spread over the nodes, and return their handles.

    Each asks for `cpus` of its node and for a part `gpus` of one of its GPUs, which is the only one that it sees.

    Ray restarts a lost one where there is room.

    They belong to the process that calls this: they outlive a learner, and end with the driver. The first one has its
    place in the run's placement group, so that a run which has found room has an actor; `reserved` says so of others,
    with the bundle of each.
    """
    grouped: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
    places: dict[int, PlacementGroupSchedulingStrategy] = {}
    if group is not None:
        for actor, bundle in (reserved or {0: 0}).items():
            places[actor] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    return [
        grouped(RolloutActor)
        .options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=places.get(index, "SPREAD"),
        )
        .remote()
        for index in range(count)
    ]
