"""The transport on Ray: actor processes on any node, weights through the object store, replacement of lost actors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
from torch import Tensor

from actors.rollout import Actor, ActorSetup, State
from cluster.memory import keep_freed_memory
from cluster.run_config import FaultConfig
from cluster.transport import Account
from metagrad.types import Episodes, Rollout, WeightSnapshot

# What Ray says of an actor, or of a rollout that was on its way, when a process or a whole node is gone.
_LOST = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


class ActorsLost(RuntimeError):
    """Actors kept dying without delivering anything: the run cannot go on."""


class _RolloutActor:
    """The Ray side of one actor. Starting is a method of its own, so that its failure is an error, not a death."""

    def start(self, setup: ActorSetup, make: Callable[[ActorSetup], Actor], state: State | None) -> None:
        keep_freed_memory()
        torch.set_num_threads(setup.threads)
        self._actor = make(setup)
        if state:
            self._actor.load_state(state)

    def rollout(self, published: tuple[int, np.ndarray, np.ndarray], lookahead_step: int) -> Rollout:
        version, theta, eta = published
        # Own copies: the object store's arrays are read-only.
        snapshot = WeightSnapshot(version, torch.tensor(theta), torch.tensor(eta))
        with torch.no_grad():
            result = self._actor.rollout(snapshot, lookahead_step)
        return _map_arrays(result, lambda x: x.numpy() if isinstance(x, Tensor) else x)

    def state(self) -> State:
        return self._actor.state()


def _map_arrays(rollout: Rollout, convert: Callable[[Any], Any]) -> Rollout:
    trajectory, episodes = rollout.trajectory, rollout.episodes
    return rollout._replace(
        trajectory=type(trajectory)(*map(convert, trajectory)), episodes=Episodes(*map(convert, episodes))
    )


class RayActors:
    """All actors as Ray actors, each with a bounded number of rollouts in flight (one)."""

    def __init__(
        self,
        setups: Sequence[ActorSetup],
        states: Sequence[State] | None,
        faults: FaultConfig,
        report: Callable[[str], None],
        make: Callable[[ActorSetup], Actor] = Actor,
    ):
        self.account = Account()
        self._setups = list(setups)
        self._faults = faults
        self._report = report
        self._make = make
        self._restarts_in_a_row = [0] * len(self._setups)
        self._published: tuple[int, Any] | None = None
        self._handles: list[Any] = [None] * len(self._setups)
        self._starting: dict[int, Any] = {}
        for index in range(len(self._setups)):
            self._start(index, states[index] if states else None)

    def _start(self, index: int, state: State | None) -> None:
        setup = self._setups[index]
        remote = ray.remote(_RolloutActor).options(num_cpus=setup.threads, max_restarts=0)
        self._handles[index] = remote.remote()
        # Nobody waits for the start: the first rollout queues behind it, and raises its error.
        self._starting[index] = self._handles[index].start.remote(setup, self._make, state)

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """One rollout of every actor under exactly this snapshot; lost actors are replaced and asked again.

        Raises:
            ActorsLost: an actor was replaced too often without delivering.
            RayTaskError: an actor's own exception, with its traceback.
        """
        reference = self._publish(snapshot)
        pending: dict[Any, int] = {}
        deadline: dict[int, float] = {}

        def order(index: int) -> None:
            setup = self._setups[index]
            self.account.order(setup.batch_size * setup.rollout_length)
            pending[self._handles[index].rollout.remote(reference, lookahead_step)] = index
            deadline[index] = time.monotonic() + self._faults.rollout_seconds

        for index in range(len(self._setups)):
            order(index)
        rollouts: dict[int, Rollout] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
            for ready in done:
                index = pending.pop(ready)
                try:
                    self._check_start(index)
                    rollouts[index] = ray.get(ready)
                    self._restarts_in_a_row[index] = 0
                except _LOST as error:
                    self._replace(index, "actor died", str(error).strip().splitlines()[0])
                    order(index)
            now = time.monotonic()
            for late in [(ref, index) for ref, index in pending.items() if now > deadline[index]]:
                reference_lost, index = late
                del pending[reference_lost]
                self._replace(index, "actor hung", f"no rollout for {self._faults.rollout_seconds:g} s")
                order(index)
        return [rollouts[index] for index in range(len(self._setups))]

    def _check_start(self, index: int, timeout: float | None = None) -> None:
        starting = self._starting.pop(index, None)
        if starting is not None:
            ray.get(starting, timeout=timeout)

    def _publish(self, snapshot: WeightSnapshot) -> Any:
        """Object reference of this version, put once; a node fetches it at most once, whatever its actors."""
        if self._published is None or self._published[0] != snapshot.version:
            arrays = (snapshot.version, _to_numpy(snapshot.theta), _to_numpy(snapshot.eta))
            self._published = (snapshot.version, ray.put(arrays))
        return self._published[1]

    def _replace(self, index: int, reason: str, detail: str) -> None:
        setup = self._setups[index]
        ray.kill(self._handles[index])  # one that hangs or cannot be reached may still live
        self.account.drop(setup.batch_size * setup.rollout_length, reason)
        self._restarts_in_a_row[index] += 1
        limit = self._faults.restarts_without_progress
        if self._restarts_in_a_row[index] > limit:
            raise ActorsLost(
                f"actor {index} was lost {limit + 1} times in a row without delivering a rollout; last reason: "
                f"{reason} ({detail})"
            )
        self.account.actors_restarted += 1
        self._report(f"actor {index}: {reason} ({detail}); replaced by a fresh one with new random streams")
        # Another seed than its predecessor's, which would replay the same episodes.
        self._setups[index] = replace(setup, seed=(*setup.seed[:-1], setup.seed[-1] + 1))
        self._start(index, None)

    def states(self) -> list[State]:
        """Every actor's state, for a checkpoint; an actor that dies now is left out and starts afresh on resume."""
        states: list[State] = []
        deadline = time.monotonic() + self._faults.rollout_seconds
        asked = [handle.state.remote() for handle in self._handles]
        for index, reference in enumerate(asked):
            try:
                # An actor that never started raises here, in place of the AttributeError that its state would.
                self._check_start(index, max(0.0, deadline - time.monotonic()))
                states.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
            except (*_LOST, GetTimeoutError) as error:
                self._report(f"actor {index}: lost while its state was read ({error}); the checkpoint is without it")
                states.append({})
        return states

    def close(self) -> None:
        """Kill all actors."""
        for handle in self._handles:
            ray.kill(handle)


def _to_numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().cpu().numpy()
    return array
