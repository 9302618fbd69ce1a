"""The class itself, without Ray; Ray's object store is a dictionary."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from metagrad.actors.rollout import Actor, ActorSetup
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.on_ray import rollout_actor
from metagrad.cluster.on_ray.rollout_actor import Published, RolloutActor, versions
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError
from metagrad.networks import build_network

Tiny = Callable[..., Experiment]


@pytest.fixture
def setup(tiny: Tiny) -> ActorSetup:
    return actor_setups(tiny(topology="ray"), torch.device("cpu"), 0)[0]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, setup: ActorSetup) -> list[Any]:
    """References that were fetched; each is the version whose weights it stands for."""
    network = build_network(setup.network, (3, 3, 5), 4, setup.has_outer_critic)
    theta = network.init(torch.Generator().manual_seed(0)).numpy()
    asked: list[Any] = []

    def get(reference: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(reference)
        theta.setflags(write=False)
        return theta, np.zeros(1, np.float32)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.9")
    return asked


def published(learner: int, version: int) -> Published:
    return Published(learner, version, [(learner, version)])


def test_it_rolls_out_what_was_ordered_or_the_newer_it_was_told_of(setup: ActorSetup, fetched: list[Any]) -> None:
    actor = RolloutActor()
    assert not actor.place().is_started
    actor.start(setup, Actor, None, versions())
    assert (actor.place().node, actor.place().is_started) == ("10.0.0.9", True)

    def version(ordered: Published) -> int:
        return actor.rollout(tuple(ordered), 0).trajectory.policy_version

    assert version(published(0, 3)) == 3
    actor.publish(tuple(published(0, 5)))
    assert version(published(0, 4)) == 5, "newer weights are there"
    assert version(published(0, 6)) == 6
    assert version(published(0, 6)) == 6
    assert fetched == [(0, 3), (0, 5), (0, 6)], "each version once"
    assert version(published(1, 2)) == 2, "a learner that began anew counts from where it began"
    assert version(published(1, 5)) == 5
    assert fetched[3:] == [(1, 2), (1, 5)], "and its versions are others"


def test_small_weights_travel_with_the_order_and_are_not_fetched(setup: ActorSetup, fetched: list[Any]) -> None:
    network = build_network(setup.network, (3, 3, 5), 4, setup.has_outer_critic)
    theta = network.init(torch.Generator().manual_seed(0)).numpy()
    by_value, by_reference = RolloutActor(), RolloutActor()
    rollouts = []
    for actor, weights in ((by_value, (theta, np.zeros(1, np.float32))), (by_reference, [(0, 3)])):
        actor.start(setup, Actor, None, versions())
        rollouts.append(actor.rollout((0, 3, weights), 0).trajectory)
    assert fetched == [(0, 3)]
    assert np.array_equal(rollouts[0].behaviour_log_prob, rollouts[1].behaviour_log_prob)


def test_arrays_travel_as_numpy(setup: ActorSetup, fetched: list[Any]) -> None:
    actor = RolloutActor()
    actor.start(setup, Actor, None, versions())
    rollout = actor.rollout(published(0, 0), 0)
    arrays = rollout.trajectory._asdict() | rollout.episodes._asdict()
    assert arrays.pop("first_state") is arrays.pop("first_return") is None
    assert arrays.pop("policy_version") == 0
    assert all(isinstance(x, np.ndarray) for x in arrays.values())


@pytest.mark.usefixtures("fetched")
def test_another_version_of_a_package_is_refused_with_node_and_remedy(setup: ActorSetup) -> None:
    message = r"^node = '10.0.0.9': has torch .* where the learner has 9\.9; install the same versions on all nodes"
    with pytest.raises(ConfigurationError, match=message):
        RolloutActor().start(setup, Actor, None, versions() | {"torch": "9.9"})


def test_states_go_on(setup: ActorSetup, fetched: list[Any]) -> None:
    first, second = RolloutActor(), RolloutActor()
    first.start(setup, Actor, None, versions())
    first.rollout(published(0, 0), 0)
    second.start(setup, Actor, first.state(), versions())
    one, other = first.rollout(published(0, 0), 0), second.rollout(published(0, 0), 0)
    assert np.array_equal(one.trajectory.observation, other.trajectory.observation)
    assert np.array_equal(one.trajectory.action, other.trajectory.action)


@pytest.mark.usefixtures("fetched")
def test_a_node_whose_torch_sees_no_gpu_is_named(setup: ActorSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = r"^node = '10\.0\.0\.9': its torch sees no GPU where Ray counts one; install there "
    with pytest.raises(ConfigurationError, match=line):
        RolloutActor().start(replace(setup, device="cuda"), Actor, None, versions())


@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize("package", ["torch", "numpy", "ray", "metagrad"])
@pytest.mark.parametrize(
    ("learner", "node"), [("2.13.0+cpu", "2.13.0"), ("2.13.0", "2.13.0+cpu"), ("2.13.0+cu130", "2.13.0+cpu")]
)
def test_builds_of_one_version_work_together(
    setup: ActorSetup, monkeypatch: pytest.MonkeyPatch, package: str, learner: str, node: str
) -> None:
    """A CPU worker of a GPU head: what the index of a build is called is no part of its version."""
    real = rollout_actor.version

    def installed(there: str) -> dict[str, str]:
        monkeypatch.setattr(rollout_actor, "version", lambda name: there if name == package else real(name))
        return versions()

    expected = installed(learner)
    installed(node)
    RolloutActor().start(setup, Actor, None, expected)
    installed("2.13.1+cpu")
    with pytest.raises(ConfigurationError, match=rf"has {package} 2\.13\.1 where the learner has 2\.13\.0; "):
        RolloutActor().start(setup, Actor, None, expected)
