"""Seconds until every actor has new weights: published once, by reference, against passed to each actor by value.

By reference is what training does (`RayActors`): one copy in the object store, a node fetches it once and its actors
copy it out of shared memory. By value is what one would write first: the array as an argument of each actor's call, for
which Ray makes one copy per actor. Both, and a third case with next to no weights, consist of the same two calls to the
same actors, which in place of a rollout only say what they have received.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.harness import Timing, interleave, summary
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.rollout import Actor, ActorSetup
from metagrad.cluster.config.experiment import FaultConfig
from metagrad.cluster.on_ray.actors import RayActors
from metagrad.cluster.on_ray.slots import Slot
from metagrad.networks import Mlp
from metagrad.types import Episodes, MetaGradients, Rollout, Trajectory, WeightSnapshot

WAYS = ("by reference", "by value", "of nothing")
_BYTES = 4  # of a number
_ETA = torch.zeros(1)


class Receiver(Actor):
    """An actor without environments: its rollout says which weights it has, and how many numbers they are."""

    def __init__(self, setup: ActorSetup, weights: np.ndarray | None):
        self.setup = setup
        self._weights = None if weights is None else torch.tensor(weights)  # an own copy, as of published ones

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        del lookahead_step
        theta = snapshot.theta if self._weights is None else self._weights
        one = torch.full((1, 1), theta.numel())
        no = torch.zeros((1, 1), dtype=torch.bool)
        trajectory = Trajectory(one, one, one, no, no, no, one, policy_version=int(theta[0]))
        return Rollout(trajectory, Episodes(torch.zeros(0), torch.zeros(0)), self.setup.index, False)


class Broadcast(NamedTuple):
    """Sends weights of one size to some actors."""

    weight_bytes: int
    actors: int

    @property
    def label(self) -> str:
        return f"{self.weight_bytes / 1e6:g} MB to {self.actors} actors"


def _setup(index: int) -> ActorSetup:
    return ActorSetup(
        index=index,
        environment=MarkovRewardProcessConfig(),
        network=Mlp(),
        has_outer_critic=False,
        batch_size=1,
        rollout_length=1,
        lookahead="continue",
        seed=(0, 0, 0),
    )


def cases(handles: Sequence[Any], broadcasts: Sequence[Broadcast], life: int) -> dict[str, Callable[[], object]]:
    """Return the three ways of each broadcast; `life` is one that these actor processes have not heard of yet."""
    versions = itertools.count(1)

    def send(actors: RayActors, chosen: Sequence[Any], numbers: int, way: str) -> None:
        version = next(versions)
        weights = torch.full((numbers,), float(version))
        nothing = torch.full((1,), float(version))
        by_value = weights.numpy() if way == "by value" else None
        for index, handle in enumerate(chosen):
            handle.start.remote(_setup(index), partial(Receiver, weights=by_value), None, {})
        published = weights if way == "by reference" else nothing
        wanted = nothing if way == "of nothing" else weights
        for rollout in actors.sample(WeightSnapshot(version, published, _ETA), 0):
            trajectory = rollout.trajectory
            assert not isinstance(trajectory, MetaGradients)
            there = (trajectory.policy_version, int(trajectory.action[0, 0]))
            if there != (version, wanted.numel()):
                raise RuntimeError(f"actor {rollout.actor} has weights {there}, not {(version, wanted.numel())}")

    made: dict[str, Callable[[], object]] = {}
    for number, broadcast in enumerate(broadcasts):
        chosen = handles[: broadcast.actors]
        slots = [Slot(_setup(index), handle, None) for index, handle in enumerate(chosen)]
        make = partial(Receiver, weights=None)
        actors = RayActors(slots, FaultConfig(), lambda _: None, make, life + number)
        for way in WAYS:
            made[f"{broadcast.label}, {way}"] = partial(send, actors, chosen, broadcast.weight_bytes // _BYTES, way)
    return made


def measure(handles: Sequence[Any], broadcasts: Sequence[Broadcast], life: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way, and how much faster by reference is, round by round."""
    timings = interleave(cases(handles, broadcasts, life), rounds)
    return {broadcast.label: compared(broadcast, timings) for broadcast in broadcasts}


def compared(broadcast: Broadcast, timings: dict[str, list[Timing]]) -> dict[str, Any]:
    """Compare the ways in one row.

    Both parts of the ratio include the time of the calls without any weights; the last number does not.
    """
    reference, value, nothing = ([x.wall_s for x in timings[f"{broadcast.label}, {way}"]] for way in WAYS)
    rounds = list(zip(reference, value, nothing, strict=True))
    return {
        "actors": broadcast.actors,
        "weight_bytes": broadcast.weight_bytes,
        "by_reference_s": summary(reference),
        "by_value_s": summary(value),
        "calls_without_weights_s": summary(nothing),
        "by_reference_over_by_value": summary([b / a for a, b, _ in rounds]),  # of speeds
        "by_reference_beyond_calls_s_per_actor": summary([(a - c) / broadcast.actors for a, _, c in rounds]),
    }
