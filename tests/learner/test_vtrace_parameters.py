from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.actor_critic import VtraceLoss
from metagrad.errors import ConfigurationError
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.config import LearnerConfig
from metagrad.meta_parameters import MetaParameter, hyperparameters, learnt_names, shown
from metagrad.networks import Mlp, build_network
from metagrad.surrogates import SURROGATES
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
NAMES = (
    "gamma",
    "lambda",
    "policy_coefficient",
    "value_coefficient",
    "entropy_coefficient",
    "rho_clip",
    "c_clip",
)


def parameters(**changes: MetaParameter) -> VtraceLoss:
    values = {
        "gamma": MetaParameter(initial=0.9),
        "lambda_": MetaParameter(initial=0.8),
        "policy_coefficient": MetaParameter(initial=0.9),
        "value_coefficient": MetaParameter(initial=0.5),
        "entropy_coefficient": MetaParameter(initial=0.01),
        "rho_clip": MetaParameter(initial=1.0, high=2.0),
        "c_clip": MetaParameter(initial=0.9, high=2.0),
    }
    return VtraceLoss(**values | changes)


MakeVtraceAgent = Callable[..., ActorCritic]


@pytest.fixture
def make_vtrace_agent(config: Callable[..., LearnerConfig]) -> MakeVtraceAgent:
    def make(losses: VtraceLoss | None = None, **meta: Any) -> ActorCritic:
        learner = replace(config(**meta), meta_parameters=losses or parameters())
        return build_actor_critic(learner, build_network(Mlp(hidden=8), (5,), 3, True), (5,), 3)

    return make


def test_all_seven_are_declared_in_order_and_each_can_be_fixed() -> None:
    assert tuple(parameters().declaration((5,), 3)) == NAMES
    assert learnt_names(parameters().declaration((5,), 3)) == NAMES
    fixed = parameters(rho_clip=MetaParameter(initial=1.0, is_learnt=False))
    assert learnt_names(fixed.declaration((5,), 3)) == tuple(name for name in NAMES if name != "rho_clip")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", MetaParameter(initial=0.9, high=1.5)),
        ("lambda_", MetaParameter(initial=0.9, low=-0.5)),
        ("rho_clip", MetaParameter(initial=0.9, low=-0.5)),
        ("c_clip", MetaParameter(initial=0.9, low=-0.5)),
    ],
)
def test_bounds_without_a_meaning_are_refused(field: str, value: MetaParameter) -> None:
    with pytest.raises(ConfigurationError, match=rf"^meta_parameters.{field.rstrip('_')}\S* = .*: .*; .*$"):
        parameters(**{field: value})


def test_the_losses_are_the_librarys(make_vtrace_agent: MakeVtraceAgent, trajectory: Any) -> None:
    algorithm = make_vtrace_agent(n=1, surrogate="ad")
    state = algorithm.init(0, CPU)
    hyper = hyperparameters(algorithm.declaration, state.eta)
    arguments = (algorithm.network, state.theta, hyper, trajectory(0), SURROGATES["ad"], algorithm.outer)
    loss, _ = algorithm.problem.loss(state.theta, state.eta, trajectory(0))
    assert torch.equal(loss, parameters().inner_loss(*arguments)[0])
    ours = algorithm.outer_loss(state.theta, state.eta, trajectory(0))
    expected = parameters().outer_loss(algorithm.network, state.theta, {}, trajectory(0), algorithm.outer)
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_two_updates_on_stale_rollouts_move_all_of_them(
    make_vtrace_agent: MakeVtraceAgent, sampler: Any, n: int, product: str
) -> None:
    algorithm = make_vtrace_agent(n=n, product=product)
    state = algorithm.init(0, CPU)
    before = shown(algorithm.declaration, state.eta)

    def stale(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        """Each action taken by μ = (.6, .2, .2): ratios on both sides of 1."""
        batch: Trajectory = sampler(snapshot, lookahead_step)
        return batch._replace(behaviour_log_prob=torch.tensor([0.6, 0.2, 0.2]).log()[batch.action])

    for _ in range(2):
        state, metrics = algorithm.update(state, stale)
        assert len(metrics.meta_gradient) == len(NAMES)
        assert all(metrics.meta_gradient), dict(zip(NAMES, metrics.meta_gradient, strict=True))
    after = shown(algorithm.declaration, state.eta)
    assert all((after[name] - before[name]).abs() > 1e-3 * before[name] for name in NAMES)
