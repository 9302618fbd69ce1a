"""Many agents are as many single ones; the meta-gradient is the derivative of what becomes of an agent."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.lifetimes_alone import Alone
from metagrad import trees
from metagrad.actor_critic import A2cLoss
from metagrad.agent_networks import HiddenAgent, TabularAgent, per_head
from metagrad.disco import DiscoRule
from metagrad.distributions import Categorical, Outputs
from metagrad.errors import ConfigurationError
from metagrad.lifetimes import (
    Agents,
    Learning,
    LifetimeGradient,
    agent_logits,
    agent_outputs,
    fresh_agents,
    lifetime_gradient,
    lifetime_update,
    per_agent,
    reference_lifetime_gradient,
    replaced,
    taken,
)
from metagrad.losses import OuterObjective
from metagrad.lpg import Lpg
from metagrad.meta_parameters import hyperparameters, init_eta
from metagrad.monte_carlo import independent
from metagrad.networks import Network
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.optimizers import Adam, OptimizerState, Sgd
from metagrad.surrogates import ad
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem, Product, inner_update
from metagrad.update_rules import LifetimeRollout, UpdateRule

AGENTS, STEPS, BATCH, ACTIONS, STATES = 3, 5, 4, 3, 6
UPDATES = 3
SHAPE = (2, 3)
RULES: dict[str, UpdateRule] = {
    "lpg": Lpg(predictions=4, units=6, embedding=5),
    "correction": ObjectiveCorrection(hidden=5),
    "disco": DiscoRule(prediction=4, largest_value=3, hidden=5, meta_hidden=3),
}


def learning_of(rule: UpdateRule, is_tabular: bool) -> Learning:
    """Tabular agents as GROOVE's, with a clip that is active; others with Adam over all of θ."""
    heads, value = rule.heads(ACTIONS), {"value": ()}
    if is_tabular:
        table = TabularAgent(states=STATES, heads=heads)
        rates = dict.fromkeys(heads, 4.0) | {"logits": 40.0}
        optimizers = {head: Sgd(learning_rate=rate, max_gradient_norm=0.05) for head, rate in rates.items()}
        value_table = TabularAgent(states=STATES, heads=value)
        adam = Adam(learning_rate=0.1)
        return Learning(
            rule=rule,
            network=table,
            optimizer=per_head(table, optimizers),
            value_network=value_table,
            value_optimizer=adam,
        )
    hidden = HiddenAgent(observation_shape=SHAPE, heads=heads, hidden=4)
    adam = Adam(learning_rate=0.05, max_gradient_norm=0.5, eps=1e-3)
    value_hidden = HiddenAgent(observation_shape=SHAPE, heads=value, hidden=4)
    return Learning(rule=rule, network=hidden, optimizer=adam, value_network=value_hidden, value_optimizer=adam)


def rollouts_of(is_tabular: bool, dtype: torch.dtype, count: int, seed: int = 1) -> list[LifetimeRollout]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(AGENTS, *shape, generator=generator, dtype=dtype)

    def one() -> LifetimeRollout:
        states = torch.randint(STATES, (AGENTS, STEPS + 1, BATCH), generator=generator)
        return LifetimeRollout(
            observation=states if is_tabular else normal(STEPS + 1, BATCH, *SHAPE),
            action=torch.randint(ACTIONS, (AGENTS, STEPS + 1, BATCH), generator=generator),
            reward=normal(STEPS, BATCH),
            is_terminal=torch.rand(AGENTS, STEPS, BATCH, generator=generator) < 0.25,
            valid=torch.rand(AGENTS, STEPS, BATCH, generator=generator) < 0.9,
            behaviour_logits=normal(STEPS + 1, BATCH, ACTIONS),
        )

    return [one() for _ in range(count)]


def floats(tree: Any, dtype: torch.dtype) -> Any:
    return trees.map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def case(name: str, is_tabular: bool, dtype: torch.dtype = torch.float64) -> tuple[Learning, Tensor, Agents]:
    """A rule with weights that do something, and agents in the middle of lifetimes of different ages."""
    learning = learning_of(RULES[name], is_tabular)
    generator = torch.Generator().manual_seed(0)
    eta = floats(learning.rule.init(generator), dtype)
    eta = eta + 0.3 * torch.randn(eta.shape, generator=generator, dtype=dtype)
    agents: Agents = floats(fresh_agents(learning, [generator] * AGENTS), dtype)
    disturbed = agents.theta + torch.randn(agents.theta.shape, generator=generator, dtype=dtype)
    ages = torch.arange(AGENTS) * 2
    moments = tuple(torch.rand(x.shape, generator=generator, dtype=dtype) * 0.01 for x in agents.moments)
    return learning, eta, agents._replace(theta=disturbed, updates=ages, moments=moments)


def lived(
    learning: Learning, eta: Tensor, agents: Agents, rollouts: Sequence[LifetimeRollout], product: Product
) -> tuple[LifetimeGradient, Agents]:
    steps = []
    for rollout in rollouts[:-1]:
        update = lifetime_update(learning, eta, agents, rollout, product)
        agents = update.agents
        assert update.step is not None
        steps.append(update.step)
    return lifetime_gradient(learning, steps, agents, rollouts[-1]), agents


CASES = [("lpg", True), ("correction", False)]  # every rule and every network
ALL = [
    *CASES,
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (("lpg", False), ("correction", True), ("disco", False))),
]


@pytest.mark.parametrize(("name", "is_tabular"), ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_agents_side_by_side_are_agents_alone(
    name: str, is_tabular: bool, dtype: torch.dtype, tolerance: float
) -> None:
    learning, eta, agents = case(name, is_tabular, dtype)
    rollouts = rollouts_of(is_tabular, dtype, UPDATES + 1)
    gradient, after = lived(learning, eta, agents, rollouts, "recompute")
    assert after.updates.tolist() == [UPDATES + 2 * i for i in range(AGENTS)]
    for i in range(AGENTS):
        alone = Alone(learning, agents, rollouts, i)
        leaf = eta.clone().requires_grad_()
        objective = alone.objective(leaf)
        (expected,) = torch.autograd.grad(objective, leaf)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(gradient.eta[i], expected, rtol=0, atol=tolerance * scale)
        scale = max(1.0, float(alone.theta.abs().max()))
        torch.testing.assert_close(after.theta[i], alone.theta, rtol=0, atol=tolerance * scale)
        torch.testing.assert_close(after.value_theta[i], alone.value_theta, rtol=0, atol=tolerance)
        weights = learning.rule.coefficients
        total = gradient.outer_loss[i] + sum(weights[key] * x[i] for key, x in gradient.regularisers.items())
        torch.testing.assert_close(total, objective.detach(), rtol=0, atol=10 * tolerance)
        assert expected.abs().max() > 1e-4


@pytest.mark.parametrize(("name", "is_tabular"), ALL)
def test_meta_gradient_against_finite_differences(
    name: str, is_tabular: bool, freeze: Callable[..., Any], finite_differences: Callable[..., Tensor]
) -> None:
    learning, eta, agents = case(name, is_tabular)
    rollouts = rollouts_of(is_tabular, torch.float64, UPDATES + 1)
    gradient, _ = lived(learning, eta, agents, rollouts, "retain")
    directions = torch.randn(2, len(eta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    alone = Alone(learning, agents, rollouts, AGENTS - 1)
    objective = freeze(lambda eta: alone.objective(eta).detach(), eta)
    found = finite_differences(objective, eta, directions, step=0.01)
    torch.testing.assert_close(directions @ gradient.eta[-1], found, rtol=1e-6, atol=1e-8)
    assert found.abs().max() > 1e-5


@pytest.mark.parametrize(("name", "is_tabular"), ALL)
def test_products_are_the_derivative_of_the_whole(name: str, is_tabular: bool) -> None:
    learning, eta, agents = case(name, is_tabular)
    rollouts = rollouts_of(is_tabular, torch.float64, UPDATES + 1)
    retained, after = lived(learning, eta, agents, rollouts, "retain")
    recomputed, again = lived(learning, eta, agents, rollouts, "recompute")
    reference = reference_lifetime_gradient(learning, eta, agents, rollouts[:-1], rollouts[-1])
    torch.testing.assert_close(retained.eta, reference, rtol=0, atol=1e-10)
    torch.testing.assert_close(recomputed.eta, reference, rtol=0, atol=1e-10)
    assert all(map(torch.equal, trees.tensors(after), trees.tensors(again)))
    first, _ = lived(learning, eta, agents, rollouts[2:], "retain")  # one update alone is another number
    assert (first.eta - reference).abs().max() > 1e-4


class OfAgent(Network):
    """An agent's network as losses know networks."""

    def __init__(self, network: Any):
        self.network = network
        self.distribution = Categorical

    def apply(self, theta: Tensor, observation: Tensor, heads: Any, memory: Any = None) -> Outputs:
        outputs = self.network.apply(theta, observation)
        return Outputs({head: outputs[head] for head in heads}, Categorical)


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("is_tabular", [True, False])
def test_a_correction_of_zero_is_a2c_to_the_bit(is_tabular: bool, is_normalised: bool) -> None:
    rule = ObjectiveCorrection(is_advantage_normalised=is_normalised)
    learning = learning_of(rule, is_tabular)
    generator = torch.Generator().manual_seed(3)
    agents = fresh_agents(learning, [generator] * AGENTS)
    agents = agents._replace(theta=agents.theta + torch.randn(agents.theta.shape, generator=generator))
    rollouts = rollouts_of(is_tabular, torch.float32, 4)
    loss: A2cLoss = rule.uncorrected
    network = OfAgent(learning.network)
    outer = OuterObjective(gamma=0.99, lambda_=0.95, critic="inner")

    def a2c(theta: Tensor, eta: Tensor, trajectory: Trajectory) -> tuple[Tensor, Any]:
        hyper = hyperparameters(loss.declaration(SHAPE, ACTIONS), eta)
        return loss.inner_loss(network, theta, hyper, trajectory, ad, outer)

    def trajectory_of(rollout: LifetimeRollout) -> Trajectory:
        log_prob = Categorical(rollout.behaviour_logits[:, :-1]).log_prob(rollout.action[:, :-1])
        never = torch.zeros_like(rollout.is_terminal)
        action, flags = rollout.action[:, :-1], (rollout.is_terminal, never, rollout.valid)
        return Trajectory(rollout.observation, action, rollout.reward, *flags, log_prob, 0)

    problem = independent(InnerProblem(a2c, learning.optimizer), AGENTS)
    eta_of_a2c = init_eta(loss.declaration(SHAPE, ACTIONS)).repeat(AGENTS)
    theta = agents.theta.flatten()
    state = OptimizerState(0, ()) if is_tabular else problem.optimizer.init(theta)
    for rollout in rollouts:
        update = inner_update(problem, theta, state, eta_of_a2c, trajectory_of(rollout), keep_graph=False)
        theta, state = update.theta, update.state
        agents = lifetime_update(learning, rule.init(generator), agents, rollout, product=None).agents
        assert torch.equal(agents.theta, theta.view_as(agents.theta))
    disturbed = lifetime_update(learning, rule.init(generator) + 0.1, agents, rollouts[0], product=None).agents
    plain = lifetime_update(learning, rule.init(generator), agents, rollouts[0], product=None).agents
    assert not torch.equal(disturbed.theta, plain.theta)


def test_replaced_agents_are_fresh_and_the_others_untouched() -> None:
    learning, _, agents = case("lpg", is_tabular=False, dtype=torch.float32)
    fresh = fresh_agents(learning, [torch.Generator().manual_seed(9)])
    new = replaced(agents, [1], fresh)
    for before, one, after in zip(*map(trees.tensors, (agents, fresh, new)), strict=True):
        assert torch.equal(after[1], one[0])
        assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert [float(x.shape[0]) for x in trees.tensors(taken(new, slice(0, 2)))] == [2] * len(trees.tensors(new))


def test_columns_of_agents_lie_one_agent_after_another() -> None:
    columns = torch.arange(2 * 6).view(2, 6)
    assert per_agent(columns, 3).tolist() == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]


def test_the_row_that_bootstraps_changes_no_bit_of_a_gradient_that_leaves_it_out() -> None:
    """At 320 rows torch adds in another order than at 336."""
    generator = torch.Generator().manual_seed(0)
    agent = HiddenAgent(observation_shape=(9,), heads={"logits": (5,)})
    theta = agent.init(generator).requires_grad_()
    observation, weight = (torch.randn(*shape, generator=generator) for shape in ((21, 16, 9), (20, 16, 5)))
    all_rows = agent_outputs(agent, theta, observation)["logits"]
    acted_on = agent.apply(theta, observation[:-1].flatten(0, 1))["logits"].view(20, 16, 5)
    found, expected = (torch.autograd.grad((x * weight).sum(), theta)[0] for x in (all_rows[:-1], acted_on))
    assert torch.equal(found, expected)
    assert torch.equal(all_rows[-1], agent.apply(theta, observation[-1])["logits"])


def test_agents_act_by_their_own_policies() -> None:
    learning, _, agents = case("lpg", is_tabular=True)
    observation = torch.tensor([[0, 1], [0, 1], [5, 2]])
    logits = agent_logits(learning, agents.theta, observation)
    tables = [learning.network.layout.unflatten(theta)["logits.table"] for theta in agents.theta]
    assert torch.equal(logits, torch.stack([table[rows] for table, rows in zip(tables, observation, strict=True)]))


def test_a_rollout_that_was_written_to_is_refused() -> None:
    learning, eta, agents = case("correction", is_tabular=True)
    first, last = rollouts_of(True, torch.float64, 2)
    update = lifetime_update(learning, eta, agents, first, "recompute")
    assert update.step is not None
    first.reward[0, 0, 0] += 1.0
    with pytest.raises(ConfigurationError, match=r"rollout of update 0.*written to since"):
        lifetime_gradient(learning, [update.step], update.agents, last)
    with pytest.raises(ConfigurationError, match="steps = 0"):
        lifetime_gradient(learning, [], update.agents, last)


def test_an_update_that_nobody_differentiates_leaves_the_value_function() -> None:
    learning, eta, agents = case("lpg", is_tabular=True)
    (rollout,) = rollouts_of(True, torch.float64, 1)
    alone = lifetime_update(learning, eta, agents, rollout, product=None)
    kept = lifetime_update(learning, eta, agents, rollout, "retain")
    assert alone.step is None
    assert torch.equal(alone.agents.theta, kept.agents.theta)
    assert torch.equal(alone.agents.value_theta, agents.value_theta)
    assert not torch.equal(kept.agents.value_theta, agents.value_theta)


class Bandits:
    """One bandit in each state for each agent, which pays 1 for one action of three; an episode is one step."""

    steps, batch, states, actions = 5, 4, 3, 3

    def __init__(self, agents: int, generator: torch.Generator):
        self.generator = generator
        self.best = torch.randint(self.actions, (agents, self.states), generator=generator)

    def played(self, learning: Learning, agents: Agents) -> LifetimeRollout:
        shape = (len(self.best), self.steps + 1, self.batch)
        observation = torch.randint(self.states, shape, generator=self.generator)
        logits = agent_logits(learning, agents.theta, observation.flatten(1)).view(*shape, self.actions)
        action = Categorical(logits).sample(self.generator).action
        reward = (self.best.gather(1, observation.flatten(1)).view(shape) == action).float()
        ones = torch.ones(shape[0], self.steps, self.batch, dtype=torch.bool)
        return LifetimeRollout(observation, action, reward[:, :-1], ones, ones, logits)


@pytest.mark.slow
def test_meta_training_makes_a_rule_that_solves_bandits() -> None:
    """LPG from random weights that make agents worse than chance (1/3), in 25 meta-steps on 24 agents."""
    rule = Lpg(predictions=3, units=8, embedding=4)
    table = TabularAgent(states=Bandits.states, heads=rule.heads(Bandits.actions))
    value_table, adam = TabularAgent(states=Bandits.states, heads={"value": ()}), Adam(learning_rate=0.1)
    sgd = Sgd(learning_rate=20.0, max_gradient_norm=0.5)
    learning = Learning(rule=rule, network=table, optimizer=sgd, value_network=value_table, value_optimizer=adam)

    def reward_of(eta: Tensor) -> float:
        generator = torch.Generator().manual_seed(99)
        bandits, agents = Bandits(64, generator), fresh_agents(learning, [generator] * 64)
        for _ in range(10):
            agents = lifetime_update(learning, eta, agents, bandits.played(learning, agents), product=None).agents
        return float(bandits.played(learning, agents).reward.mean())

    generator = torch.Generator().manual_seed(0)
    before = eta = rule.init(generator)
    meta_optimizer = Adam(learning_rate=0.02)
    state = meta_optimizer.init(eta)
    for _ in range(25):
        bandits, agents, steps = Bandits(24, generator), fresh_agents(learning, [generator] * 24), []
        for _ in range(3):
            update = lifetime_update(learning, eta, agents, bandits.played(learning, agents), "retain")
            agents = update.agents
            steps.append(update.step)
        gradient = lifetime_gradient(learning, steps, agents, bandits.played(learning, agents))
        eta, state = meta_optimizer.update(gradient.eta.mean(0), state, eta, eta)
    assert reward_of(before) < 0.3
    assert reward_of(eta) > 0.9
