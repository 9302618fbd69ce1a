"""Keeps actor processes on Ray that one run after another uses, so that the start of processes is waited for once."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from metagrad.actors.rollout import Actor, ActorSetup, ActorState, probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.on_ray.actors import RayActors
from metagrad.cluster.on_ray.rollout_actor import create
from metagrad.cluster.on_ray.slots import Slot
from metagrad.cluster.run.learning import Assignment, prepared_training
from metagrad.cluster.run.stop import StopRequest
from metagrad.learner.actors import Actors
from metagrad.learner.reports import Report, Reporter, Row
from metagrad.learner.training import Training


class Fleet:
    """Actor processes, spread over the nodes of the cluster that this process is connected to."""

    def __init__(self, count: int):
        self.handles: list[Any] = create(count, 1)
        self._lives = 0

    def next_life(self, count: int = 1) -> int:
        """Return the first of so many learner numbers from which these processes have heard no weights."""
        first = self._lives + 1
        self._lives += count
        return first

    def run(self, experiment: BaseExperiment) -> dict[str, list[float]]:
        """Train with the first so many of them, the learner in this process; scalars of every logged update.

        Raises:
            RuntimeError: an actor was lost meanwhile.
        """
        rows: dict[str, list[float]] = defaultdict(list)

        def report(each: Report) -> None:
            if isinstance(each, Row):
                for name, value in each.scalars.items():
                    rows[name].append(value)

        with self.training(experiment, report) as training:
            training.run(StopRequest())  # which nobody makes: it is not entered
        lost = rows["transport/actors_restarted"][-1]
        if lost:
            raise RuntimeError(f"{lost:g} actors were lost meanwhile, so this is no measurement")
        return dict(rows)

    @contextmanager
    def training(self, experiment: BaseExperiment, report: Reporter) -> Iterator[Training]:
        """Prepare a training with the first so many of them, the learner in this process."""
        life = self.next_life()

        @contextmanager
        def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
            assert states is None
            slots = [Slot(setup, handle, None) for setup, handle in zip(setups, self.handles, strict=False)]
            for slot in slots:  # a process that another run has used would keep that run's environments
                slot.handle.start.remote(slot.setup, Actor, None, {})
            yield RayActors(slots, experiment.faults, _unheard, Actor, life, experiment.rollouts_per_batch)

        assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None, life=life)
        with prepared_training(assignment, open_actors, report, StopRequest()) as training:
            yield training


def _unheard(message: str) -> None:
    """Ignore a message: nobody listens, and lost actors are counted in the rows."""
