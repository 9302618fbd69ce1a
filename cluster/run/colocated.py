"""Runs actors inside the learner's process: no copies, no Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from metagrad.actors.rollout import Actor, ActorSetup, ActorState, AnyActor
from metagrad.learner.actors import Account
from metagrad.types import Rollout, WeightSnapshot


class ColocatedActors:
    """Calls one actor after another."""

    def __init__(
        self,
        setups: Sequence[ActorSetup],
        states: Sequence[ActorState] | None,
        rollouts_per_batch: int,
        make: Callable[[ActorSetup], AnyActor] = Actor,
    ):
        self.account = Account()
        self._actors = [make(setup) for setup in setups]
        self._rollouts_per_batch = rollouts_per_batch
        if states is not None:
            for actor, state in zip(self._actors, states, strict=True):
                actor.load_state(state)

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """Return one rollout of every actor."""
        local = self._local(snapshot)
        return [self._rollout(actor, local, lookahead_step) for actor in self._actors]

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        """Return one rollout of actor after actor, in turn, under this snapshot."""
        del oldest  # none is older than the snapshot
        first = self.account.sampled // self._actors[0].setup.steps  # of the whole run: a resumed one continues there
        actors = [self._actors[i % len(self._actors)] for i in range(first, first + self._rollouts_per_batch)]
        local = self._local(snapshot)
        return [self._rollout(actor, local, 0) for actor in actors]

    def _local(self, snapshot: WeightSnapshot) -> WeightSnapshot:
        """Return the snapshot for the actors' device, which all of them share."""
        return snapshot._replace(theta=snapshot.theta.to(self._actors[0].setup.device))

    def _rollout(self, actor: AnyActor, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        self.account.order(actor.setup.steps)
        with torch.no_grad():
            return actor.rollout(snapshot, lookahead_step)

    def states(self) -> list[ActorState]:
        """Return every actor's state."""
        return [actor.state() for actor in self._actors]

    def close(self) -> None:
        """Close all environments."""
        for actor in self._actors:
            actor.close()


@contextmanager
def colocated_actors(
    setups: Sequence[ActorSetup],
    states: Sequence[ActorState] | None,
    rollouts_per_batch: int,
    make: Callable[[ActorSetup], AnyActor],
) -> Iterator[ColocatedActors]:
    """Make the actors, and close their environments at the end."""
    actors = ColocatedActors(setups, states, rollouts_per_batch, make)
    try:
        yield actors
    finally:
        actors.close()
