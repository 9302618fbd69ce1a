"""Actor processes on Ray that one run after another uses, so that the start of processes is waited for once."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from metagrad.actors.rollout import Actor, ActorSetup, ActorState, probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.on_ray.actors import RayActors
from metagrad.cluster.on_ray.rollout_actor import create
from metagrad.cluster.on_ray.slots import Slot
from metagrad.cluster.run.learning import Assignment, learn
from metagrad.cluster.run.stop import StopRequest
from metagrad.cluster.run.transport import Actors


class Rows:
    """Reports of which only scalars are kept: of every logged update, by name."""

    def __init__(self) -> None:
        self.scalars_by_name: dict[str, list[float]] = defaultdict(list)

    def say(self, message: str) -> None:
        """Nobody listens; lost actors are counted in the rows."""

    def scalars(self, values: dict[str, float], update: int) -> None:
        del update
        for name, value in values.items():
            self.scalars_by_name[name].append(value)

    def progress(self, update: int, speed: float, return_mean: float | None, eta: dict[str, float], lag: float) -> None:
        """Do nothing: nobody looks."""

    def lags(self, versions: list[int], update: int) -> None:
        """Do nothing: it is not kept."""

    def evaluate(self, theta: Tensor, update: int) -> None:
        """Do nothing: it is never asked for."""

    def checkpoint(self, update: int, tree: dict[str, Any]) -> None:
        """Do nothing: it is not kept."""

    def summary(self, tree: dict[str, Any]) -> None:
        """Do nothing: it is not kept."""


class Fleet:
    """Actor processes, spread over the nodes of the cluster that this process is connected to."""

    def __init__(self, count: int):
        self.handles: list[Any] = create(count, 1)
        self._lives = 0

    def next_life(self, count: int = 1) -> int:
        """The first of so many numbers of a learner that these processes have heard of no weights from."""
        first = self._lives + 1
        self._lives += count
        return first

    def run(self, experiment: BaseExperiment) -> dict[str, list[float]]:
        """Train with the first so many of them, the learner in this process; scalars of every logged update.

        Raises:
            RuntimeError: an actor was lost meanwhile.
        """
        rows, life = Rows(), self.next_life()
        per_batch = experiment.environments // experiment.environments_of_an_actor

        @contextmanager
        def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
            assert states is None
            slots = [Slot(setup, handle, None) for setup, handle in zip(setups, self.handles, strict=False)]
            for slot in slots:  # a process that another run has used would keep that run's environments
                slot.handle.start.remote(slot.setup, Actor, None, {})
            yield RayActors(slots, experiment.faults, rows.say, Actor, life, per_batch)

        assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None, life=life)
        learn(assignment, open_actors, rows, StopRequest())  # which nobody makes: it is not entered
        lost = rows.scalars_by_name["transport/actors_restarted"][-1]
        if lost:
            raise RuntimeError(f"{lost:g} actors were lost meanwhile, so this is no measurement")
        return dict(rows.scalars_by_name)
