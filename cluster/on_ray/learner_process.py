"""Runs the learner as a Ray actor: it trains in one thread and answers the driver in another."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.cluster.on_ray.actors import RayActors
from metagrad.cluster.on_ray.rollout_actor import MakeActor, ProcessPlace, address_and_pid
from metagrad.cluster.on_ray.slots import Slot
from metagrad.cluster.run.learning import Assignment, prepared_training
from metagrad.cluster.run.reports import QueuedReports
from metagrad.cores import default_threads, usable_cores
from metagrad.learner.actors import Actors
from metagrad.learner.reports import Report

LEARNERS_BUNDLE = 1  # of a run's placement group; the first one is an actor's


class _Stop:
    signal_name: str | None = None


class Learner:
    """Lives one life of a learner, which touches no file: the driver fetches its reports."""

    def __init__(self) -> None:
        self._reports = QueuedReports()
        self._stop = _Stop()

    def run(self, assignment: Assignment, handles: list[Any], make: MakeActor) -> None:
        """Train with actors that the driver keeps."""

        @contextmanager
        def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
            slots = [
                Slot(setup, handle, states[i] if states else None)
                for i, (setup, handle) in enumerate(zip(setups, handles, strict=True))
            ]
            experiment, say = assignment.experiment, self._reports.say
            yield RayActors(slots, experiment.faults, say, make, assignment.life, experiment.rollouts_per_batch)

        report, stop = self._reports.put, self._stop
        with prepared_training(assignment, open_actors, report, stop, threads_of_node()) as training:
            training.run(stop)

    @ray.method(concurrency_group="control")
    def fetch(self, seconds: float) -> list[Report]:
        """Return the reports since the last time."""
        return self._reports.fetch(seconds)

    @ray.method(concurrency_group="control")
    def stop(self, signal_name: str) -> None:
        """End after the current update, with a checkpoint."""
        self._stop.signal_name = signal_name

    @ray.method(concurrency_group="control")
    def place(self) -> ProcessPlace:
        return ProcessPlace(*address_and_pid(), is_started=True)


def threads_of_node() -> int:
    """Return how many threads the learner may have here: its node's cores, at most as many as Ray counts CPUs there.

    OMP_NUM_THREADS is asked where somebody has set it, for the node or for the job. Where nobody has, Ray sets it to
    the CPUs of the process alone, and the learner uses those of its actors while they rest.
    """
    context = ray.get_runtime_context()
    (node,) = (each for each in ray.nodes() if each["NodeID"] == context.get_node_id())
    of_raylet = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    of_job = context.runtime_env.get("env_vars", {})
    is_set = "OMP_NUM_THREADS" in of_job or any(x.startswith(b"OMP_NUM_THREADS=") for x in of_raylet)
    cores = default_threads() if is_set else usable_cores()
    return max(1, min(cores, int(node["Resources"].get("CPU", 0))))


def start_learner(group: PlacementGroup, cpus: int, gpus: int) -> Any:
    """Start a learner process in its bundle of the run's group, which keeps its room when it dies."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=LEARNERS_BUNDLE)
    grouped: Any = ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
    remote = grouped(Learner).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        scheduling_strategy=strategy,
    )
    return remote.remote()
