"""The losses against the study's on the same episodes, in float64; the experiment through the actor-learner system."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from metagrad.actors import policy
from metagrad.actors.envs.discounting_chain import DiscountingChain, DiscountingChainConfig, chains
from metagrad.actors.rollout import Pool, collect
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.errors import ConfigurationError
from metagrad.experiments.debiasing import discounting_chain_agents as agents
from metagrad.experiments.debiasing import discounting_chain_problem as chain
from metagrad.experiments.debiasing.discounting_chain import (
    DiscountingChainExperiment,
    discounting_chain,
    true_values,
)
from metagrad.learner.actor_critic import ActorCritic, LearnerState, build_actor_critic
from metagrad.learner.config import BootstrapConfig
from metagrad.losses import forward
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.networks import LinearPolicy, build_network
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import inner_update

F64 = torch.float64
TABLE = chain.tables()
NETWORK = build_network(LinearPolicy(), (2,), 5, False)
VARIANTS = [(False, False), (True, False), (False, True)]  # normalised, exact first value
every_variant = pytest.mark.parametrize(("is_normalised", "is_exact"), VARIANTS)
every_critic = pytest.mark.parametrize("critic", ["outer", "inner"])


def experiment(
    critic: str = "outer", is_normalised: bool = False, is_exact: bool = False
) -> DiscountingChainExperiment:
    base = discounting_chain()
    return replace(
        base,
        outer=replace(base.outer, critic=critic, is_advantage_normalised=is_normalised),
        meta_parameters=replace(
            base.meta_parameters, is_advantage_normalised=is_normalised, is_first_value_exact=is_exact
        ),
    )


def a_policy(seed: int) -> Tensor:
    """Mild, so that every chain is chosen."""
    return 0.5 * torch.randn(15, generator=torch.Generator().manual_seed(seed), dtype=F64)


def episodes(theta: Tensor, seed: int) -> Trajectory:
    """128 whole ones, by the actors' own loop."""
    pool = Pool(DiscountingChain(DiscountingChainConfig(), 128), seed)
    trajectory, _ = collect(pool, partial(policy.sample, NETWORK.at(theta)), 0, 100)
    reward = (trajectory.reward.to(F64) * 10).round() / 10  # the chain with the bonus gives 1.1 in float64 too
    return trajectory._replace(observation=trajectory.observation.to(F64), reward=reward)


def as_in_the_study(theta: Tensor) -> Tensor:
    """Weights and bias of each action together."""
    return torch.cat([theta[:10].view(5, 2), theta[10:].view(5, 1)], dim=1).flatten()


def counts_of(trajectory: Trajectory) -> chain.Counts:
    index = torch.zeros(6, 100, dtype=torch.int64)
    rows = TABLE.inputs.T
    index[rows[:, 0].round().long(), (100 * rows[:, 1]).round().long()] = torch.arange(len(rows))
    seen = trajectory.observation[:-1]
    row = index[seen[..., 0].round().long(), (100 * seen[..., 1]).round().long()]
    taken = torch.bincount((5 * row + trajectory.action).flatten(), minlength=5 * len(rows)).view(-1, 5).to(F64)
    return chain.Counts(taken[None, 0], taken[1:].T[None])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-16)


@every_variant
@pytest.mark.parametrize("seed", [0, 1])
def test_inner_loss_and_its_derivatives_are_the_studys(is_normalised: bool, is_exact: bool, seed: int) -> None:
    config = experiment("outer", is_normalised, is_exact)
    theta, eta = a_policy(seed).requires_grad_(), torch.tensor([0.3], dtype=F64, requires_grad=True)
    trajectory = episodes(theta.detach(), seed)
    agent = build_actor_critic(config.learner, NETWORK, (2,), 5)
    ours, metrics = agent.problem.loss(theta, eta, trajectory)
    study = agents.inner_problem(agents.ChainAgent("mg", True, chain.Objective(is_normalised, is_exact)), TABLE)
    other = as_in_the_study(theta.detach()).requires_grad_()
    theirs, _ = study.loss(other, eta, counts_of(trajectory))
    close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, theta, create_graph=True)
    (expected,) = torch.autograd.grad(theirs, other, create_graph=True)
    close(as_in_the_study(gradient), expected)
    direction = torch.randn(15, generator=torch.Generator().manual_seed(9), dtype=F64)
    (mixed,) = torch.autograd.grad(gradient @ direction, eta)
    (expected_mixed,) = torch.autograd.grad(expected @ as_in_the_study(direction), eta)
    assert mixed.abs() > 1e-8
    close(mixed, expected_mixed)
    assert metrics.value_loss == metrics.outer_value_loss == 0.0


@every_variant
@every_critic
def test_outer_loss_and_its_gradient_are_the_studys(critic: str, is_normalised: bool, is_exact: bool) -> None:
    config = experiment(critic, is_normalised, is_exact)
    theta, eta = a_policy(2), torch.tensor([0.3], dtype=F64)
    trajectory = episodes(theta, 5)
    agent = build_actor_critic(config.learner, NETWORK, (2,), 5)
    ours = outer_gradient(lambda x, batch: agent.outer_loss(x, eta, batch), theta, trajectory)
    study = agents.ChainAgent("mg", critic == "outer", chain.Objective(is_normalised, is_exact))
    theirs = outer_gradient(agents.outer_loss_of(study, TABLE, eta), as_in_the_study(theta), counts_of(trajectory))
    close(ours.loss, theirs.loss)
    close(as_in_the_study(ours.gradient), theirs.gradient)
    if not is_normalised:
        close(ours.metrics, theirs.metrics.advantage.squeeze())


def double(agent: ActorCritic) -> LearnerState:
    state = agent.init(0, torch.device("cpu"))
    return state._replace(theta=a_policy(3), eta=state.eta.to(F64))


@every_variant
@every_critic
def test_the_meta_gradient_is_the_studys(critic: str, is_normalised: bool, is_exact: bool) -> None:
    agent = build_actor_critic(experiment(critic, is_normalised, is_exact).learner, NETWORK, (2,), 5)
    state = double(agent)
    batches: list[Trajectory] = []
    thetas: list[Tensor] = []

    def sample(snapshot: WeightSnapshot, j: int) -> Trajectory:
        assert j == len(batches)
        thetas.append(snapshot.theta)
        batches.append(episodes(snapshot.theta, j))
        return batches[-1]

    ours = agent.estimate_meta_gradient(state, sample)
    study = agents.ChainAgent("mg", critic == "outer", chain.Objective(is_normalised, is_exact))
    problem = agents.inner_problem(study, TABLE)
    start = as_in_the_study(state.theta)
    inner = inner_update(problem, start, problem.optimizer.init(start), state.eta, counts_of(batches[0]), True)
    close(as_in_the_study(thetas[1]), inner.theta)
    outer = outer_gradient(agents.outer_loss_of(study, TABLE, state.eta), inner.theta, counts_of(batches[1]))
    theirs = meta_gradient(problem, [inner.step], [outer.gradient], "retain").eta
    assert theirs.abs() > 1e-9
    close(ours, theirs)


@every_variant
@every_critic
def test_the_bootstrapped_meta_gradient_on_first_states_is_the_studys(
    critic: str, is_normalised: bool, is_exact: bool
) -> None:
    config = experiment(critic, is_normalised, is_exact)
    target = BootstrapConfig(updates=1, states="first")
    agent = build_actor_critic(replace(config, meta=replace(config.meta, bootstrap=target)).learner, NETWORK, (2,), 5)
    state = double(agent)
    batches: list[Trajectory] = []

    def sample(snapshot: WeightSnapshot, j: int) -> Trajectory:
        batches.append(episodes(snapshot.theta, j))
        return batches[-1]

    ours = agent.estimate_meta_gradient(state, sample)
    assert len(batches) == 3
    study = agents.ChainAgent("bmg", critic == "outer", chain.Objective(is_normalised, is_exact))
    problem = agents.inner_problem(study, TABLE)
    start = as_in_the_study(state.theta)
    of_study = iter(batches)
    # Through the study's own update, whose first moment of Adam is a tenth of its meta-gradient.
    before = agents.AgentState(start, problem.optimizer.init(start), state.eta, agents.META_OPTIMIZER.init(state.eta))
    after, _ = agents.advance(study, TABLE, before, lambda _theta: counts_of(next(of_study)))
    theirs = after.meta_optimizer.moments[0] / 0.1
    assert theirs.abs() > 1e-9
    close(ours, theirs)


@pytest.mark.parametrize("horizon", [100, 20])
@pytest.mark.parametrize("is_exact", [False, True])
def test_true_values_are_discounted_payments(horizon: int, is_exact: bool) -> None:
    policy = torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]], dtype=F64).expand(5, 5)
    g = 0.9
    values = true_values(chains(3), torch.arange(5), policy, torch.tensor([g], dtype=F64), horizon, is_exact)
    assert values.shape == (horizon + 1, 5)
    steps, rewards = (1, 3, 10, 30, 100), (1.0, 1.0, 1.0, 1.1, 1.0)
    paying = [c for c in range(5) if steps[c] <= horizon]
    late = 0 if is_exact else 1
    start = sum(policy[0, c].item() * g ** (steps[c] - 1 + late) * rewards[c] for c in paying)
    for c in range(5):
        expected = [start]
        for t in range(1, horizon + 1):
            # Paid by the step from K - 1 to K.
            is_ahead = c in paying and t <= steps[c] - 1
            expected.append(g ** (steps[c] - 1 - t) * rewards[c] if is_ahead else 0.0)
        assert values[:, c].tolist() == pytest.approx(expected, rel=1e-12)


def test_with_full_returns_nothing_is_left_to_be_gained_after_the_first_step() -> None:
    """λ = 1: returns of a deterministic chain are its values, so only the first action has an advantage."""
    parameters = replace(discounting_chain().meta_parameters, is_first_value_exact=True)
    theta = a_policy(4)
    trajectory = episodes(theta, 0)
    hyper = {"gamma": torch.tensor([0.93], dtype=F64), "lambda": torch.ones(1, dtype=F64)}
    terms = parameters.terms(forward(NETWORK, theta, trajectory, ("logits",)), trajectory, hyper)
    assert terms.advantage[1:].abs().max() < 1e-12
    policy = NETWORK.apply(theta, trajectory.observation[0], ("logits",))["logits"][0].softmax(-1)
    by_action = torch.stack([terms.advantage[0][trajectory.action[0] == a][0] for a in range(5)])
    assert (policy @ by_action).abs() < 1e-12
    assert by_action.abs().min() > 1e-4


def tiny(**changes: Any) -> DiscountingChainExperiment:
    base = discounting_chain()
    short = {"env": DiscountingChainConfig(horizon=10), "rollout_length": 10, "environments": 8, "updates": 4}
    there = {"topology": "colocated", "actors": 2, "learner_threads": 1, "log_every": 2}
    return replace(base, **short | there | changes)


def test_the_papers_settings() -> None:
    """Debiasing paper, Table 1, and the released code."""
    paper = discounting_chain()
    assert (paper.environments, paper.rollout_length, paper.updates, paper.meta.n) == (128, 100, 50_000, 1)
    assert (paper.optimizer.learning_rate, paper.meta.optimizer.learning_rate) == (0.5, 0.1)
    assert (paper.meta.optimizer.eps, paper.meta.optimizer.eps_root) == (1e-8, 0.0)
    assert (paper.outer.gamma, paper.outer.lambda_, paper.outer.critic) == (1.0, 0.0, "outer")
    assert (paper.env.mapping_seed, paper.network) == (3, LinearPolicy(init_scale=1e-4))
    declared = paper.meta_parameters.declaration((2,), 5)
    assert {name: x.is_learnt for name, x in declared.items()} == {
        "gamma": True,
        "lambda": False,
        "entropy_coefficient": False,
    }
    assert (declared["gamma"].initial, declared["gamma"].low, declared["gamma"].high) == (0.95, 0.9, 1.0)
    assert (declared["lambda"].initial, declared["entropy_coefficient"].initial) == (0.0, 0.005)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda x: replace(x, rollout_length=5), "rollout_length"),
        (lambda x: replace(x, env=DiscountingChainConfig(horizon=10, mapping_seed=1)), "meta_parameters.mapping_seed"),
        (lambda x: replace(x, outer=replace(x.outer, critic_coefficient=0.5)), "outer.critic_coefficient"),
        (lambda x: replace(x, outer=replace(x.outer, value_coefficient=0.5)), "outer.value_coefficient"),
        (lambda x: replace(x, outer=replace(x.outer, entropy_coefficient=0.5)), "outer.entropy_coefficient"),
        (
            lambda x: replace(x, meta=replace(x.meta, bootstrap=BootstrapConfig(updates=1, value_coefficient=0.1))),
            "meta.bootstrap.value_coefficient",
        ),
        (
            lambda x: replace(x, meta_parameters=replace(x.meta_parameters, outer_entropy_coefficient=math.inf)),
            "meta_parameters.outer_entropy_coefficient",
        ),
    ],
)
def test_what_the_losses_would_not_look_at_is_refused(change: Callable[[Any], Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        change(tiny())


@every_critic
def test_no_critic_is_asked_of_the_network(critic: str, tmp_path: Path) -> None:
    base = tiny()
    run(replace(base, outer=replace(base.outer, critic=critic)), tmp_path, False, Console(file=StringIO()))
    assert not base.has_outer_critic
    evaluate_run(tmp_path, None, 3, 0, True, False)
    assert list(tmp_path.glob("evaluation-*.json"))


def test_bootstrapped_targets_run(tmp_path: Path) -> None:
    base = tiny()
    target = BootstrapConfig(updates=1, states="first")  # the release's
    bootstrapped = replace(base, meta=replace(base.meta, bootstrap=target))
    summary = run(bootstrapped, tmp_path, False, Console(file=StringIO()))
    assert summary["frames_lookahead"] == 2 * summary["frames_real"] == 2 * 4 * 80


def test_the_critic_decides_where_the_discount_goes(tmp_path: Path) -> None:
    """As in the study: up at once where values are under γ, slowly down at first where they are under γ'."""
    here: dict[str, Any] = {"updates": 8, "topology": "colocated", "actors": 1, "learner_threads": 1}
    ends = {}
    for critic in ("outer", "inner"):
        base = discounting_chain()
        short = replace(base, outer=replace(base.outer, critic=critic), **here)
        ends[critic] = run(short, tmp_path / critic, False, Console(file=StringIO()))["eta"]["gamma"]
    assert ends["outer"] < 0.9501
    assert ends["inner"] > 0.955
