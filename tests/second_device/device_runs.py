"""Runs a small form of every experiment with the learner on any device, and says how often the host may wait for it.

The budget of one update, in order:

* Environments on the device: one wait for each rollout, which reads whether all is finite and which episodes ended;
  one for the scalars of the update; and one after it, when nothing is left to wait for, for the count of frames.
* Populations of agents on the device: as often as they like; `lifetimes` is not held to a number there.
* Pools of C++ in the learner's process: one wait for each step, for what the policy on the device says; and one for the
  scalars.
* Other environments on the host, and actors on Ray, whose policy is there too: one wait for each batch of rollouts, for
  the weights that it acts with; and one for the scalars.

So nothing waits within the learner's part until its scalars are there.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from metagrad.actors.envs import DeviceEnvironmentConfig
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.rollout import AnyActor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.cluster.on_ray.rollout_actor import _map_arrays
from metagrad.cluster.run import learning
from metagrad.cluster.run.colocated import colocated_actors
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.reports import Report, Row
from metagrad.learner.team import ALONE, Team
from metagrad.lpg import Lpg
from metagrad.networks import ImpalaCnn, NatureCnn, SnakeCnn
from metagrad.types import Rollout, WeightSnapshot

SMALL: dict[str, dict[str, Any]] = {
    "snake-6x6": {"network": SnakeCnn(channels=2, policy_hidden=4, value_hidden=4)},
    "atari": {"network": NatureCnn(hidden=8)},
    "atari-released": {"network": NatureCnn(hidden=8, gamma_embedding=2)},
    "stacx": {"network": NatureCnn(hidden=8)},
    "stacx-impala": {"network": ImpalaCnn(hidden=8)},
    "lirpg-atari": {"network": NatureCnn(hidden=8)},
    "pong": {"network": NatureCnn(hidden=8, is_standardised=True)},
    "discounting-chain": {"env": DiscountingChainConfig(horizon=2)},
    "ipd": {"env": IteratedPrisonersDilemmaConfig(steps=2), "inner_rollouts": 1},
    "lifetimes": {"agents": 2, "rule": Lpg(units=4)},
    "lifetimes-families": {"agents": 2, "rule": Lpg(units=4)},
    "lifetimes-correction": {"agents": 2},
}
LIFETIMES = ("lifetimes", "lifetimes-families", "lifetimes-correction", "lifetimes-disco")
WITHOUT_PEEK = ("atari-released", "lirpg-atari", "lirpg-snake", "discounting-chain", "ipd", *LIFETIMES)
TIMES = ("time/", "throughput/")
UPDATES = 2  # peek fills its window in the first, so the waits of the second are compared


def small(name: str, topology: str, schedule: str, product: str, learners: int = 1) -> BaseExperiment:
    """Return the experiment with two environments, rollouts of two steps and a small network."""
    experiment = EXPERIMENTS[name]()
    changes: dict[str, Any] = {"topology": topology, "schedule": schedule}
    if isinstance(experiment, Experiment):
        changes["meta"] = replace(experiment.meta, product=product)
        if experiment.minibatches > 1:  # not with several learners, each of which sees its share of a batch alone
            experiment = replace(experiment, reuse=2, minibatches=2 if learners == 1 else 1)
    updates = UPDATES * (experiment.meta.n if _is_sequential(experiment) else experiment.updates_per_batch)
    short = {
        "environments": 2,
        "rollout_length": 2,
        "actors": learners,
        "learners": learners,
        "updates": updates,
        "learner_threads": 1,
    }
    return replace(experiment, **short | {"log_every": 1_000} | SMALL.get(name, {}) | changes)


def _is_sequential(experiment: BaseExperiment) -> bool:
    return isinstance(experiment, Experiment) and experiment.meta.strategy == "sequential"


@dataclass
class Trained:
    """Holds what a run came to."""

    state: Any
    rows: list[dict[str, float]]
    waits: list[str]  # of the last update


@dataclass
class Never:
    """A request to stop that is never made; the loop asks for it between updates, each of which waits at least once."""

    waits: list[str]
    marks: list[int] = field(default_factory=list)

    @property
    def signal_name(self) -> None:
        self.marks.append(len(self.waits))


class Sending:
    """Hands over an actor's arrays, as an actor on Ray does."""

    def __init__(self, actor: AnyActor):
        self._actor, self.setup = actor, actor.setup
        self.state, self.close = actor.state, actor.close

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        return _map_arrays(self._actor.rollout(snapshot, lookahead_step), _read_only)


def _read_only(x: Any) -> Any:
    if isinstance(x, Tensor):
        x = x.numpy()
        x.flags.writeable = False
    return x


def train(experiment: BaseExperiment, device: torch.device, waits: list[str], team: Team = ALONE) -> Trained:
    """Train with the learner on a device; in the topology of Ray, without Ray, its part sees what Ray's sees.

    Whoever records the waits of the host appends them to `waits`. Of several learners `team` is the one here.
    """
    reports: list[Report] = []
    stop = Never(waits)
    actor = experiment.actor_type
    make = actor if experiment.topology == "colocated" else lambda setup: Sending(actor(setup))
    rollouts = len(learning.share_of_learner(experiment, team.rank, team.size).rollouts)
    with ExitStack() as stack:
        stack.enter_context(patch.object(learning, "resolve_device", lambda _: device))  # a run knows cpu and cuda
        assignment = learning.Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None)
        training = stack.enter_context(
            learning.prepared_training(
                assignment,
                lambda setups, states: colocated_actors(setups, states, rollouts, make),
                reports.append,
                stop,
                1,
                team,
            )
        )
        training.run(stop)
    rows = [report.scalars for report in reports if isinstance(report, Row)]
    kept = [{name: x for name, x in row.items() if not name.startswith(TIMES)} for row in rows]
    of_updates = [waits[i:j] for i, j in pairwise(sorted(set(stop.marks)))]
    return Trained(training.algorithm.to_tree(training.state), kept, of_updates[UPDATES - 1] if waits else [])


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Return all leaves of a state by name."""
    if isinstance(tree, dict):
        return {k: v for key, x in tree.items() for k, v in leaves(x, f"{name}.{key}").items()}
    if isinstance(tree, list | tuple):
        return leaves(dict(enumerate(tree)), name)
    return {name: tree}


def require_equal(ours: Trained, cpus: Trained, device: torch.device) -> None:
    """Compare all numbers bit for bit."""
    assert ours.rows == cpus.rows
    tensors, expected = leaves(ours.state), leaves(cpus.state)
    assert tensors.keys() == expected.keys()
    for name, x in tensors.items():
        if isinstance(x, Tensor):
            assert x.device == device, name
            assert torch.equal(x.cpu(), expected[name]), name
        else:
            assert x == expected[name], name


def budget(experiment: BaseExperiment) -> list[str] | None:
    """List where the host waits in one update, in order; None: a population is there, which waits at every step."""
    batches = 1
    if isinstance(experiment, LifetimesExperiment) and experiment.topology == "colocated":
        return None
    if _is_sequential(experiment):
        batches = experiment.look_ahead_batches  # the first batch of a window was the last one's outer batch
    elif experiment.schedule == "lockstep":
        batches = 1 + (experiment.look_ahead_batches or 2 * (experiment.name == "ipd"))  # `ipd`: one for each player
    scalars = "algorithm.py:fetched: copy to the host"
    if experiment.topology == "colocated" and isinstance(experiment.env, DeviceEnvironmentConfig):
        return [*["rollout.py:_on_host: copy to the host"] * batches, scalars, "tally.py:count: copy to the host"]
    if experiment.topology == "colocated" and experiment.env.has_threads and experiment.actor_device != "cpu":
        return [*["policy.py:apply: copy to the host"] * (batches * experiment.rollout_length), scalars]
    return [*["colocated.py:_local: copy to the host"] * batches, scalars]
