"""Populations: agents share nothing but the rule, are replaced at different times, and go on from a checkpoint."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.population import AgentGroup, Population, PopulationSetup
from metagrad.actors.rollout import ActorSetup
from metagrad.lpg import Lpg
from metagrad.networks import LinearPolicy
from metagrad.optimizers import Adam, OptimizerState
from metagrad.types import MetaGradients, Rollout, WeightSnapshot

SMALL, PICTURES = GridWorldFamily(distribution="small"), GridWorldFamily(distribution="rand_small")
RULE = Lpg(units=4, predictions=3, embedding=3)
POPULATION = PopulationSetup(
    rule=RULE,
    agent=AgentConfig(hidden=4),
    families=(SMALL,),
    environments=2,
    updates=2,
    lifetime=6,
    normaliser=None,
    product="recompute",
)
ETA = RULE.init(torch.Generator().manual_seed(0))


def setup_of(agents: int, index: int = 0, seed: tuple[int, ...] = (1, 0, 0)) -> ActorSetup:
    return ActorSetup(
        index=index,
        environment=SMALL,
        network=LinearPolicy(),
        has_outer_critic=False,
        batch_size=2 * agents,
        rollout_length=4,
        lookahead="continue",
        seed=seed,
        rollouts=3,
    )


def population(agents: int, index: int = 0, **changes: Any) -> Population:
    return Population(setup_of(agents, index), replace(POPULATION, **changes))


def brought(actor: Population, eta: Tensor = ETA, version: int = 0) -> MetaGradients:
    with torch.no_grad():  # as actors are asked
        rollout: Rollout = actor.rollout(WeightSnapshot(version, eta, eta.new_zeros(0)), 0)
    assert isinstance(rollout.trajectory, MetaGradients)
    return rollout.trajectory


def agents_of(*actors: Population) -> Tensor:
    return torch.cat([actor.state()["family 0/agent/0"] for actor in actors])


def test_two_populations_are_one() -> None:
    """Lives, tasks and random numbers are the agents' own, and so are families, whoever holds them."""
    families = (SMALL, PICTURES)
    whole, halves = population(4, families=families), [population(2, index, families=families) for index in (0, 1)]
    for version in range(4):
        one, two = brought(whole, version=version), [brought(half, version=version) for half in halves]
        torch.testing.assert_close(sum(each.gradient for each in two), one.gradient, rtol=1e-5, atol=1e-7)
        for name in ("agents", "frames", "lifetimes"):
            assert sum(int(getattr(each, name)) for each in two) == int(getattr(one, name))
        for name, (amount, count) in one.facts.items():
            own = [each.facts.get(name, (0.0, 0.0)) for each in two]
            assert sum(each[1] for each in own) == count or name == "lifetimes/diverged"
            assert sum(each[0] for each in own) == pytest.approx(amount, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(agents_of(*halves), agents_of(whole), rtol=1e-5, atol=1e-6)
    assert (int(one.agents), int(one.frames), one.policy_version) == (4, 4 * 2 * 4 * 3, 3)


def test_lives_end_at_different_times_and_then_last_their_whole_length() -> None:
    actor = population(12)
    ended = [int(brought(actor, version=version).lifetimes) for version in range(9)]
    assert sum(ended[:3]) == 12  # of 6 updates with 2 at a time, the first ones shorter
    assert max(ended[:3]) < 12
    assert ended[3:6] == ended[:3] == ended[6:]
    assert actor.state()["family 0/lives"].tolist() == [3] * 12


def test_an_agent_that_is_replaced_is_a_fresh_one_in_another_task() -> None:
    actor = population(1, lifetime=2)
    for _ in range(2):
        before = actor.state()
        brought(actor)
        after = actor.state()
        assert not torch.equal(
            before["family 0/tasks/environment/task_reward"], after["family 0/tasks/environment/task_reward"]
        )
        assert after["family 0/agent/0"].abs().max() == 0  # a table of zeros
        assert after["family 0/tasks/episode_length"].max() == 0
    group = AgentGroup(setup_of(1), replace(POPULATION, lifetime=None), 0, [0])
    seeds = group._seeds([0], "task")
    assert group._lifetimes([0]) == [SMALL.lifetime(seeds[0])] == [250]


def test_a_copy_of_the_state_goes_on_bit_for_bit() -> None:
    normaliser = Adam(learning_rate=1.0)
    actor = population(3, families=(SMALL, PICTURES), normaliser=normaliser)
    for _ in range(2):
        brought(actor)
    other = Population(
        setup_of(3, seed=(9, 9, 9)), replace(POPULATION, families=(SMALL, PICTURES), normaliser=normaliser)
    )
    fresh = other.state()
    other.load_state({})
    assert all(torch.equal(x, fresh[name]) for name, x in other.state().items())
    other.load_state(actor.state())
    for _ in range(3):  # beyond the lives that were going on
        one, two = brought(actor), brought(other)
        assert torch.equal(one.gradient, two.gradient)
        assert one.facts == two.facts
    found, expected = other.state(), actor.state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


def test_each_agent_has_a_normaliser_of_its_own() -> None:
    """Against one optimizer for each agent, by hand, of which one begins later."""
    normaliser = Adam(learning_rate=1.0)
    group = AgentGroup(setup_of(2), replace(POPULATION, normaliser=normaliser), 0, [0, 1])
    generator, nothing = torch.Generator().manual_seed(0), torch.zeros(ETA.numel())
    states = [normaliser.init(nothing) for _ in range(2)]
    for round_ in range(3):
        gradient = torch.randn(2, ETA.numel(), generator=generator) * torch.tensor([[1e-3], [1e3]])
        found = group._normalised(gradient)
        for n in range(2):
            moved, states[n] = normaliser.update(gradient[n], states[n], nothing, nothing)
            torch.testing.assert_close(found[n], -moved)
        if round_ == 0:
            group._replace([1])
            states[1] = normaliser.init(nothing)
    assert isinstance(states[0], OptimizerState)
    assert found.abs().max() < 2


def test_an_agent_that_is_nan_is_left_out_replaced_and_counted() -> None:
    healthy, ill = population(2), population(2)
    for actor in (healthy, ill):
        brought(actor)
    state = ill.state()
    state["family 0/agent/0"][1] = torch.nan
    lives = state["family 0/lives"].clone()
    ill.load_state(state)
    alone, found = brought(population(1)), brought(ill)
    assert (int(found.agents), found.facts["lifetimes/diverged"]) == (1, (1.0, 1.0))
    assert torch.isfinite(found.gradient).all()
    assert alone.facts["lifetimes/diverged"] == (0.0, 1.0)
    assert (ill.state()["family 0/lives"] - lives)[1] == 1
    assert torch.isfinite(ill.state()["family 0/agent/0"]).all()


def test_agents_are_tables_where_states_are_numbered_else_hidden_layers() -> None:
    config = AgentConfig(hidden=4)
    for family, is_tabular in ((SMALL, True), (PICTURES, False)):
        spec = family.make_tasks(seeds=[0], batch_size=1, device=torch.device("cpu")).spec
        learning = config.learning(RULE, spec, is_tabular)
        names = learning.network.layout.names
        assert ("logits.table" in names) == is_tabular == ("value.table" in learning.value_network.layout.names)
        assert family.is_tabular == is_tabular
        rates = [each.learning_rate for each in learning.optimizer.optimizers]  # type: ignore[attr-defined]
        assert rates == ([40.0, 4.0] if is_tabular else [1e-3, 1e-3])
