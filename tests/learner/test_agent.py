from collections.abc import Callable
from typing import Any

import torch

from learner.agent import Agent
from learner.state import init_state
from metagrad.losses import OuterObjective, inner_loss, outer_loss
from metagrad.meta_parameters import hyperparameters
from metagrad.surrogates import SURROGATES

MakeAgent = Callable[..., Agent]


def test_the_inner_loss_is_the_configured_one(make_agent: MakeAgent, trajectory: Any) -> None:
    values = {}
    for surrogate in ("ad", "lvc"):
        agent = make_agent(n=1, surrogate=surrogate)
        state = init_state(agent, 0, torch.device("cpu"))
        hyper = hyperparameters(agent.declaration, state.eta)
        outer = OuterObjective(0.99, 0.95, uses_outer_critic=True, outer_critic_coefficient=0.5)
        expected, _ = inner_loss(agent.network, state.theta, hyper, trajectory(0), SURROGATES[surrogate], outer)
        loss, _ = agent.problem.loss(state.theta, state.eta, trajectory(0))
        assert torch.equal(loss, expected)
        values[surrogate] = loss.item()
    assert values["ad"] != values["lvc"], "the two surrogates have other values, only equal gradients"


def test_weights_and_optimizers_follow_the_configuration(make_agent: MakeAgent) -> None:
    assert make_agent(n=0).weights == ()
    assert make_agent(n=3).weights == (0.0, 0.0, 1.0)
    assert make_agent(n=2, estimator="mix", kappa=1.0).weights == (0.5, 0.5)
    agent = make_agent(n=1)
    one = torch.ones(1)
    theta, _ = agent.meta_optimizer.update(one, agent.meta_optimizer.init(one), one, one)
    torch.testing.assert_close(theta, torch.tensor([0.9]))  # Adam's first step is its learning rate


def test_the_outer_loss_is_on_the_outer_objective(make_agent: MakeAgent, trajectory: Any) -> None:
    agent = make_agent(n=1)
    state = init_state(agent, 0, torch.device("cpu"))
    biased = agent._replace(outer=agent.outer._replace(uses_outer_critic=False))
    assert agent.outer.uses_outer_critic
    for chosen in (agent, biased):
        expected, _ = outer_loss(agent.network, state.theta, trajectory(0), chosen.outer)
        assert torch.equal(chosen.outer_loss(state.theta, state.eta, trajectory(0))[0], expected)
    losses = [chosen.outer_loss(state.theta, state.eta, trajectory(0))[0] for chosen in (agent, biased)]
    assert not torch.equal(*losses)
