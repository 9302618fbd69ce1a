"""Between learner and actors: what a transport does, the account it keeps, and the one without any transport."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from metagrad.actors.rollout import Actor, ActorSetup, ActorState
from metagrad.types import Rollout, WeightSnapshot


class Account:
    """Environment steps ordered from actors and what became of them: sampled = consumed + dropped + in flight.

    `sampled` grows when a rollout is ordered and `consumed` when its update is done; what an actor's death loses is
    `dropped`, with the reason.
    """

    def __init__(self) -> None:
        self.sampled = 0
        self.consumed = 0
        self.dropped: Counter[str] = Counter()
        self.in_flight = 0
        self.actors_restarted = 0

    def order(self, steps: int) -> None:
        """A rollout was asked for."""
        self.sampled += steps
        self.in_flight += steps

    def consume(self, steps: int) -> None:
        """An update has used a rollout."""
        self.in_flight -= steps
        self.consumed += steps

    def drop(self, steps: int, reason: str) -> None:
        """A rollout will never come."""
        self.in_flight -= steps
        self.dropped[reason] += steps

    def to_tree(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return vars(self) | {"dropped": dict(self.dropped)}

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from `to_tree()`: steps in flight in it are those of the learner state's own batch."""
        vars(self).update(tree, dropped=Counter(tree["dropped"]))


class Actors(Protocol):
    """All actors of a run, seen from the learner."""

    account: Account

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """One rollout of every actor under exactly this snapshot, in the order of the actors."""
        ...

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        """The next batch of rollouts, whoever brings them, none older than version `oldest`; publishes the snapshot."""
        ...

    def states(self) -> list[ActorState]:
        """Every actor's state, for a checkpoint."""
        ...


class ColocatedActors:
    """The same actors inside the learner's process: no copies, no Ray."""

    def __init__(
        self,
        setups: Sequence[ActorSetup],
        states: Sequence[ActorState] | None,
        rollouts_per_batch: int,
        make: Callable[[ActorSetup], Actor] = Actor,
    ):
        self.account = Account()
        self._actors = [make(setup) for setup in setups]
        self._rollouts_per_batch = rollouts_per_batch
        if states is not None:
            for actor, state in zip(self._actors, states, strict=True):
                actor.load_state(state)

    def sample(self, snapshot: WeightSnapshot, lookahead_step: int) -> list[Rollout]:
        """One rollout of every actor, one after another."""
        return [self._rollout(actor, snapshot, lookahead_step) for actor in self._actors]

    def stream(self, snapshot: WeightSnapshot, oldest: int) -> list[Rollout]:
        """One rollout of actor after actor, in turn, under this snapshot."""
        del oldest  # none is older than the snapshot
        first = self.account.sampled // _steps(self._actors[0])  # of the whole run: a resumed one goes on where it was
        actors = [self._actors[i % len(self._actors)] for i in range(first, first + self._rollouts_per_batch)]
        return [self._rollout(actor, snapshot, 0) for actor in actors]

    def _rollout(self, actor: Actor, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        self.account.order(_steps(actor))
        with torch.no_grad():
            local = snapshot._replace(theta=snapshot.theta.to(actor.setup.device))
            return actor.rollout(local, lookahead_step)

    def states(self) -> list[ActorState]:
        """Every actor's state."""
        return [actor.state() for actor in self._actors]

    def close(self) -> None:
        """Close all environments."""
        for actor in self._actors:
            actor.close()


def _steps(actor: Actor) -> int:
    return actor.setup.batch_size * actor.setup.rollout_length
