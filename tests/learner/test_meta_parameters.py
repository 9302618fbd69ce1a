from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actor_critic import A2cLoss, InnerLoss, VtraceLoss
from metagrad.errors import ConfigurationError
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.config import LearnerConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import Declaration, Hyperparameters, MetaParameter, MetaVector, hyperparameters
from metagrad.networks import Network
from metagrad.surrogates import SURROGATES, Surrogate
from metagrad.types import Trajectory

CPU = torch.device("cpu")
HALF = MetaParameter(initial=0.5)
RATES = {name: HALF for name in ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")}


A2C_LOSS = A2cLoss(**RATES)
VTRACE = RATES | dict.fromkeys(("policy_coefficient", "rho_clip", "c_clip"), HALF)


def test_meta_parameters_are_declared_in_the_order_of_eta(config: Any) -> None:
    declaration = config(n=1).meta_parameters.declaration((5,), 3)
    assert list(declaration) == ["gamma", "lambda", "value_coefficient", "entropy_coefficient"]
    assert [p.initial for p in declaration.values()] == [0.8, 0.9, 0.5, 0.01]


@pytest.mark.parametrize("is_normalised", [False, True])
def test_a2c_is_the_librarys_loss(
    make_algorithm: Callable[..., ActorCritic], trajectory: Any, is_normalised: bool
) -> None:
    algorithm = make_algorithm(n=1)
    losses = replace(algorithm.losses, is_advantage_normalised=is_normalised)
    theta = algorithm.init(0, CPU).theta
    hyper = hyperparameters(algorithm.declaration, algorithm.init(0, CPU).eta)
    given = (algorithm.network, theta, hyper, trajectory(0), SURROGATES["ad"], algorithm.outer)
    found = losses.inner_loss(*given)
    expected = replace(A2C_LOSS, is_advantage_normalised=is_normalised).inner_loss(*given)
    assert torch.equal(found[0], expected[0])
    assert found[1].effective_sample_size is expected[1].effective_sample_size is None
    assert all(map(torch.equal, found[1][:-1], expected[1][:-1]))
    other = replace(A2C_LOSS, is_advantage_normalised=not is_normalised).inner_loss(*given)
    assert not torch.equal(found[0], other[0])
    outer = losses.outer_loss(algorithm.network, theta, hyper, trajectory(0), algorithm.outer)
    assert all(
        map(torch.equal, outer, A2C_LOSS.outer_loss(algorithm.network, theta, {}, trajectory(0), algorithm.outer))
    )


@pytest.mark.parametrize(
    ("name", "rate", "field"),
    [
        ("gamma", MetaParameter(initial=0.9, high=1.5), "meta_parameters.gamma"),
        ("gamma", MetaParameter(initial=0.9, low=-0.5), "meta_parameters.gamma"),
        ("lambda_", MetaParameter(initial=0.9, low=-0.5), "meta_parameters.lambda"),
        ("lambda_", MetaParameter(initial=1.5, high=2.0, is_learnt=False), "meta_parameters.lambda"),
    ],
)
def test_rates_outside_the_unit_interval_are_refused(name: str, rate: MetaParameter, field: str) -> None:
    line = rf"^{field} = \({rate.low}, {rate.high}\): .*; move them inside$"
    with pytest.raises(ConfigurationError, match=line):
        A2cLoss(**RATES | {name: rate})
    with pytest.raises(ConfigurationError, match=line):
        VtraceLoss(**VTRACE | {name: rate})


def test_other_coefficients_have_any_bounds() -> None:
    wide = MetaParameter(initial=2.0, low=-1.0, high=3.0)
    A2cLoss(**RATES | {"value_coefficient": wide, "entropy_coefficient": wide})


def test_a_loss_is_what_makes_it_one() -> None:
    with pytest.raises(TypeError, match="inner_loss"):
        InnerLoss()  # type: ignore[abstract]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyShapedRewards(InnerLoss):
    """Somebody's own loss: A2C on rewards that learnt numbers are added to, one for each action."""

    gamma: MetaParameter
    lambda_: MetaParameter = MetaParameter(initial=1.0, is_learnt=False)
    scale: float = 1.0

    def declaration(self, observation_shape: tuple[int, ...], num_actions: int) -> Declaration:
        """One more entry than the fields say."""
        shaping = MetaVector(num_actions, lambda generator: 0.1 * torch.randn(num_actions, generator=generator))
        return InnerLoss.declaration(self, observation_shape, num_actions) | {"shaping": shaping}

    def inner_loss(
        self,
        network: Network,
        theta: Tensor,
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> Any:
        """A2C on other rewards."""
        reward = trajectory.reward + self.scale * hyper["shaping"][trajectory.action]
        fixed = {"value_coefficient": theta.new_tensor([0.5]), "entropy_coefficient": theta.new_tensor([0.0])}
        trajectory = trajectory._replace(reward=reward)
        return A2C_LOSS.inner_loss(network, theta, {**hyper, **fixed}, trajectory, surrogate, outer)

    def outer_loss(
        self, network: Network, theta: Tensor, hyper: Hyperparameters, trajectory: Trajectory, outer: OuterObjective
    ) -> Any:
        """That of the library, times γ."""
        loss, advantage = A2C_LOSS.outer_loss(network, theta, hyper, trajectory, outer)
        return hyper["gamma"].squeeze() * loss, advantage


@pytest.fixture
def shaped(config: Any, make_algorithm: Callable[..., ActorCritic]) -> ActorCritic:
    base: LearnerConfig = config(n=1)
    return build_actor_critic(
        replace(base, meta_parameters=ToyShapedRewards(gamma=HALF)), make_algorithm().network, (5,), 3
    )


def test_only_meta_parameters_among_the_fields_are_declared() -> None:
    declaration = InnerLoss.declaration(ToyShapedRewards(gamma=HALF), (5,), 3)
    assert declaration == {"gamma": HALF, "lambda": MetaParameter(initial=1.0, is_learnt=False)}


def test_a_loss_of_ones_own_is_differentiated_through(shaped: ActorCritic, sampler: Any, trajectory: Any) -> None:
    """γ and the vector of rewards move, each by the derivative of the outer loss through one update."""
    state = shaped.init(0, CPU)
    assert state.eta.shape == (1 + 3,)
    new, metrics = shaped.update(state, sampler)
    assert not (new.eta == state.eta).any()

    def objective(eta: Tensor) -> Tensor:
        theta = state.theta.clone().requires_grad_()
        loss, _ = shaped.problem.loss(theta, eta, trajectory(0))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta_1, _ = shaped.problem.optimizer.update(gradient, state.optimizer, theta.detach(), eta)
        return shaped.outer_loss(theta_1, state.eta, trajectory(1))[0]

    expected = torch.autograd.functional.jacobian(objective, state.eta)
    assert metrics.meta_gradient == pytest.approx((expected[0].item(),), rel=1e-4), "a vector is no scalar"
    assert metrics.scalars["norm/meta_gradient"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert metrics.scalars["eta/shaping_norm"] == pytest.approx(new.eta[1:].norm().item())
    assert {name for name in metrics.scalars if name.startswith("eta/")} == {
        "eta/gamma",
        "eta/lambda",
        "eta/shaping_norm",
    }


def test_an_outer_loss_may_look_at_eta_and_has_no_derivative_in_it(shaped: ActorCritic, trajectory: Any) -> None:
    state = shaped.init(0, CPU)
    loss, _ = shaped.outer_loss(state.theta, state.eta.requires_grad_(), trajectory(0))
    assert not loss.requires_grad
    expected, _ = A2C_LOSS.outer_loss(shaped.network, state.theta, {}, trajectory(0), shaped.outer)
    torch.testing.assert_close(loss, 0.5 * expected)
