from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from metagrad.actors.rollout import Actor, ActorSetup
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import actor_setups
from metagrad.learner.actors import Account
from metagrad.networks import build_network
from metagrad.types import WeightSnapshot

CPU = torch.device("cpu")


def balance(account: Account) -> int:
    return account.sampled - account.consumed - account.dropped.total() - account.in_flight


@hypothesis.given(st.lists(st.tuples(st.sampled_from(["order", "consume", "drop"]), st.integers(0, 100))))
def test_whatever_happens_sampled_is_consumed_dropped_or_in_flight(events: list[tuple[str, int]]) -> None:
    account = Account()
    for kind, steps in events:
        match kind:
            case "order":
                account.order(steps)
            case "consume":
                account.consume(steps)
            case _:
                account.drop(steps, "actor died")
        assert balance(account) == 0


def test_an_account_continues_from_its_tree() -> None:
    account = Account()
    account.order(30)
    account.consume(10)
    account.drop(5, "actor died")
    account.actors_restarted = 1
    tree = account.to_tree()
    assert type(tree["dropped"]) is dict, "a checkpoint holds plain data"
    account.drop(5, "actor died")
    assert tree["dropped"] == {"actor died": 5}, "the tree is a copy"
    other = Account()
    other.load_tree(tree)
    other.drop(1, "actor hung")
    assert (other.sampled, other.consumed, other.in_flight, other.actors_restarted) == (30, 10, 14, 1)
    assert other.dropped == {"actor died": 5, "actor hung": 1}
    assert tree["dropped"] == {"actor died": 5}
    assert balance(other) == 0


def start(setups: list[ActorSetup], states: Any = None) -> tuple[ColocatedActors, WeightSnapshot]:
    setup = setups[0]
    network = build_network(setup.network, (3, 3, 5), 4, setup.has_outer_critic)
    theta = network.init(torch.Generator().manual_seed(0))
    return ColocatedActors(setups, states, len(setups)), WeightSnapshot(0, theta, torch.zeros(1))


def test_rollouts_come_in_the_order_of_the_actors_and_differ(tiny: Callable[..., Experiment]) -> None:
    actors, snapshot = start(actor_setups(tiny(), CPU, 0))
    rollouts = actors.sample(snapshot, 0)
    assert [rollout.actor for rollout in rollouts] == [0, 1]
    first, second = (rollout.trajectory for rollout in rollouts)
    assert not torch.equal(first.observation, second.observation)
    assert actors.account.sampled == actors.account.in_flight == 12
    actors.close()


def test_states_continue_the_same_streams(tiny: Callable[..., Experiment]) -> None:
    setups = actor_setups(tiny(), CPU, 0)
    actors, snapshot = start(setups)
    actors.sample(snapshot, 0)
    states = actors.states()
    expected = [rollout.trajectory for rollout in actors.sample(snapshot, 0)]
    resumed, _ = start(actor_setups(tiny(), CPU, 17), states)
    for trajectory, rollout in zip(expected, resumed.sample(snapshot, 0), strict=True):
        for name in (x for x in trajectory._fields if isinstance(getattr(trajectory, x), torch.Tensor)):
            assert torch.equal(getattr(trajectory, name), getattr(rollout.trajectory, name)), name


def test_a_state_for_an_actor_that_is_not_there_is_refused(tiny: Callable[..., Experiment]) -> None:
    setups = actor_setups(tiny(), CPU, 0)
    actors, _ = start(setups)
    with pytest.raises(ValueError, match="zip"):
        start(setups, [*actors.states(), {}])


def test_close_closes_every_environment(tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(Actor, "close", lambda self: closed.append(self.setup.index))
    actors, _ = start(actor_setups(tiny(), CPU, 0))
    actors.close()
    assert closed == [0, 1]
