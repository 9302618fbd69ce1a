"""Runs the learner as a Ray actor: it trains in one thread and answers the driver in another."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.cluster.config.experiment import BaseExperiment, FaultConfig
from metagrad.cluster.on_ray.actors import RayActors
from metagrad.cluster.on_ray.rendezvous import Meeting, joined, listen
from metagrad.cluster.on_ray.rollout_actor import MakeActor, ProcessPlace, address_and_pid
from metagrad.cluster.on_ray.slots import Slot
from metagrad.cluster.run.learning import Assignment, prepared_training
from metagrad.cluster.run.reports import QueuedReports
from metagrad.cores import default_threads, usable_cores
from metagrad.learner.actors import Actors
from metagrad.learner.reports import Message, Report
from metagrad.learner.team import ALONE, Team, share_of
from metagrad.shares import RankLost

LEARNERS_BUNDLE = 1  # of a run's placement group; the first one is an actor's
_SECONDS_TO_MEET = 120.0


class _Stop:
    signal_name: str | None = None


class Learner:
    """Lives one life of a learner, which touches no file: the driver fetches its reports."""

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._reports = QueuedReports()
        self._stop = _Stop()
        self._listener: socket.socket | None = None
        self._listening = threading.Lock()

    def run(self, assignment: Assignment, handles: list[Any], make: MakeActor, first: Any = None) -> None:
        """Train with actors that the driver keeps.

        `first` is the first of several learners, for the others.
        """

        @contextmanager
        def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
            slots = [Slot(setup, handles[setup.index], states[i] if states else None) for i, setup in enumerate(setups)]
            experiment, say = assignment.experiment, self._say
            rollouts = len(share_of(experiment.rollouts_per_batch, self._rank, experiment.learners))
            yield RayActors(slots, experiment.faults, say, make, assignment.life, rollouts)

        stop = self._stop
        with (
            self._team(assignment.experiment, first) as team,
            prepared_training(assignment, open_actors, self._report, stop, threads_of_node(), team) as training,
        ):
            training.run(stop)

    def _report(self, report: Report) -> None:
        """Queue a report; of several learners the first one speaks for all, and messages are each one's own."""
        if self._rank == 0:
            self._reports.put(report)
        elif isinstance(report, Message):
            self._say(report.text)

    def _say(self, text: str) -> None:
        self._reports.say(f"learner {self._rank}: {text}" if self._rank else text)

    @contextmanager
    def _team(self, experiment: BaseExperiment, first: Any) -> Iterator[Team]:
        size, host = experiment.learners, address_and_pid()[0]
        if size == 1:
            yield ALONE
            return
        try:
            meeting = self._listen() if self._rank == 0 else ray.get(first.meeting.remote(), timeout=_SECONDS_TO_MEET)
        except GetTimeoutError as error:
            raise RankLost(f"the first learner has not answered for {_SECONDS_TO_MEET:g} s") from error
        limit = seconds_of_a_collective(experiment.faults)
        with joined(self._rank, size, Meeting(*meeting), self._listener, host, limit) as team:
            yield team

    @ray.method(concurrency_group="control")
    def meeting(self) -> tuple[str, int]:
        """Return where the first learner listens for the others."""
        return self._listen()

    def _listen(self) -> tuple[str, int]:
        with self._listening:
            if self._listener is None:
                self._listener = listen(address_and_pid()[0])
                self._meeting: tuple[str, int] = self._listener.getsockname()[:2]
        return self._meeting

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


def seconds_of_a_collective(faults: FaultConfig) -> float:
    """Return how long learners wait for each other: as long as one of them may wait for an actor that is replaced."""
    return (faults.restarts_without_progress + 2) * max(_SECONDS_TO_MEET, faults.rollout_seconds)


def start_learner(group: PlacementGroup, cpus: int, gpus: float, rank: int = 0, bundle: int = LEARNERS_BUNDLE) -> Any:
    """Start a learner process in its bundle of the run's group, which keeps its room when it dies."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    grouped: Any = ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
    remote = grouped(Learner).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        scheduling_strategy=strategy,
    )
    return remote.remote(rank)
