"""What every inner loss owes to the meta-gradient: a row of LOSSES each."""

from dataclasses import dataclass, replace

import pytest
import torch

from metagrad.actor_critic import A2cLoss, InnerLoss, VtraceLoss
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.losses import OuterObjective, action_log_prob, forward
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta, learnt_names
from metagrad.networks import Mlp, SnakeCnn, build_network
from metagrad.optimizers import Adam, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update

STEPS, BATCH, ACTIONS = 5, 4, 3
OUTER = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
RATES = {"gamma": MetaParameter(initial=0.8), "lambda_": MetaParameter(initial=0.7)}
A2C = RATES | {
    "value_coefficient": MetaParameter(initial=0.5),
    "entropy_coefficient": MetaParameter(initial=0.05),
}
VTRACE = {
    "policy_coefficient": MetaParameter(initial=0.9, high=2.0),
    "rho_clip": MetaParameter(initial=1.3, high=3.0),
    "c_clip": MetaParameter(initial=0.9, high=3.0),
}
MIXTURE = {
    "extrinsic_coefficient": MetaParameter(initial=0.8, high=2.0),
    "intrinsic_coefficient": MetaParameter(initial=0.4, high=2.0),
}


@dataclass(frozen=True)
class Row:
    """A loss and the observations it is tried on."""

    loss: InnerLoss
    shape: tuple = (3,)


def intrinsic(spec, shape):
    return Row(IntrinsicRewardLoss(**A2C, **MIXTURE, reward_network=spec), shape)


LOSSES = {
    "a2c": Row(A2cLoss(**A2C)),
    "vtrace": Row(VtraceLoss(**A2C, **VTRACE)),
    "intrinsic-mlp": intrinsic(Mlp(hidden=2), (3,)),
    "intrinsic-convolutions": intrinsic(SnakeCnn(channels=2, policy_hidden=3, value_hidden=3), (3, 3, 5)),
}


class Setting:
    """One look-ahead problem in mid-run: network, batches, θ₀, η, and the meta-objective as a plain map of η."""

    def __init__(self, make_trajectory, name, n=3, surrogate="lvc", uses_outer_critic=True):
        generator = torch.Generator().manual_seed(5)
        row = self.row = LOSSES[name]
        self.n, self.outer = n, replace(OUTER, critic="outer" if uses_outer_critic else "inner")
        # One torso for all heads: through separate networks the critic's coefficient would never reach the policy.
        self.network = build_network(Mlp(hidden=4), row.shape, ACTIONS, uses_outer_critic)
        self.declaration = row.loss.declaration(row.shape, ACTIONS)
        self.eta = init_eta(self.declaration, torch.float64, generator)
        self.theta = self.network.init(generator).double()
        # Wide weights: derivatives of every order matter, and no reward is near zero.
        for x in (self.eta, self.theta):
            x += 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        self.problem = InnerProblem(self.loss(SURROGATES[surrogate]), Adam(learning_rate=constant(0.02)))
        self.state = self.problem.optimizer.init(self.theta)
        self.batches = [self.batch(make_trajectory, generator) for _ in range(n + 1)]
        for _ in range(3):
            update = inner_update(self.problem, self.theta, self.state, self.eta, self.batches[0], keep_graph=False)
            self.theta, self.state = update.theta, update.state

    def loss(self, surrogate):
        def loss(theta, eta, batch):
            hyper = hyperparameters(self.declaration, eta)
            return self.row.loss.inner_loss(self.network, theta, hyper, batch, surrogate, self.outer)

        return loss

    def batch(self, make_trajectory, generator):
        """Of μ: the present policy, or one that is not (ratios from about .2 to 5)."""
        trajectory = make_trajectory(generator, STEPS, BATCH, self.row.shape, ACTIONS)
        logits = forward(self.network, self.theta, trajectory, ("logits",))["logits"]
        noise = 0.8 * torch.randn(STEPS, BATCH, generator=generator, dtype=torch.float64)
        log_prob = action_log_prob(logits, trajectory)
        return trajectory._replace(
            behaviour_log_prob=log_prob + noise if self.row.loss.corrects_off_policy else log_prob
        )

    def outer_loss(self, theta, batch):
        return self.row.loss.outer_loss(self.network, theta, {}, batch, self.outer)

    def objective(self, eta):
        theta, state = self.theta, self.state
        for batch in self.batches[:-1]:
            update = inner_update(self.problem, theta, state, eta, batch, keep_graph=False)
            theta, state = update.theta, update.state
        with torch.no_grad():
            return self.outer_loss(theta, self.batches[-1])[0]

    def adjoint(self, product):
        theta, state, tape = self.theta, self.state, []
        for batch in self.batches[:-1]:
            update = inner_update(self.problem, theta, state, self.eta, batch, product == "retain")
            theta, state = update.theta, update.state
            tape.append(update.step)
        outer = outer_gradient(self.outer_loss, theta, self.batches[-1]).gradient
        return meta_gradient(self.problem, tape, [None] * (self.n - 1) + [outer], product).eta

    def derivatives(self, batch):
        """Loss, ∇θ, and ∂(∇θ · probe) in θ and η on one batch."""
        probe = torch.randn(self.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        theta, eta = self.theta.clone().requires_grad_(), self.eta.clone().requires_grad_()
        loss, _ = self.problem.loss(theta, eta, batch)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        products = torch.autograd.grad(gradient @ probe, (theta, eta))
        return torch.cat([loss.detach().reshape(1), gradient.detach(), *products])


@pytest.fixture
def setting(make_trajectory):
    return lambda *arguments, **options: Setting(make_trajectory, *arguments, **options)


def assert_relative(actual, expected, tolerance):
    error = float((actual - expected).norm() / expected.norm())
    assert error <= tolerance, f"relative error {error:.2e}: {actual} against {expected}"


@pytest.mark.pairs(
    name=tuple(LOSSES), n=(1, 3), product=("retain", "recompute"), surrogate=tuple(SURROGATES), critic=(True, False)
)
@pytest.mark.thinned(2)
def test_meta_gradient_against_finite_differences(
    setting, freeze, finite_differences, name, n, product, surrogate, critic
):
    """Along every scalar, and along random directions of a vector."""
    s = setting(name, n, surrogate, critic)
    scalars = len(learnt_names(s.declaration))
    generator = torch.Generator().manual_seed(1)
    directions = torch.eye(len(s.eta), dtype=torch.float64)[:scalars]
    if len(s.eta) > scalars:
        random = torch.randn(1, len(s.eta), generator=generator, dtype=torch.float64)
        random[:, :scalars] = 0.0
        directions = torch.cat([directions, random / random.norm(dim=-1, keepdim=True)])
    expected = finite_differences(freeze(s.objective, s.eta), s.eta, directions)
    actual = s.adjoint(product)
    assert_relative(directions @ actual, expected, 1e-6)
    assert expected.abs().min() > 1e-4 * expected.norm(), f"some have no effect: {expected}"


@pytest.mark.parametrize("name", LOSSES)
def test_both_products_agree_in_every_component(setting, name):
    s = setting(name)
    retained = s.adjoint("retain")
    torch.testing.assert_close(s.adjoint("recompute"), retained, rtol=1e-9, atol=1e-13)
    # ReLU units that are off have no derivative; a tanh layer has none of them.
    assert (retained != 0.0).double().mean() > (0.5 if "convolutions" in name else 0.999)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_after_an_end_that_only_reset_enter_nothing(setting, name):
    s = setting(name)
    trajectory = s.batches[0]
    invalid = ~trajectory.valid
    assert invalid.any()
    observation = trajectory.observation.clone()
    after_terminal = invalid.clone()
    after_terminal[1:] &= trajectory.is_terminal[:-1]
    observation[:-1][after_terminal] = 7.0
    changed = trajectory._replace(
        observation=observation,
        reward=torch.where(invalid, 1e3, trajectory.reward),
        action=torch.where(invalid, (trajectory.action + 1) % ACTIONS, trajectory.action),
        is_terminal=trajectory.is_terminal ^ invalid,
        behaviour_log_prob=torch.where(invalid, torch.nan, trajectory.behaviour_log_prob),
    )
    torch.testing.assert_close(s.derivatives(changed), s.derivatives(trajectory), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_an_action_that_nobody_chose_is_neither_rewarded_nor_corrected_for(setting, name):
    """A forced FIRE in the middle of a life: its reward counts in the returns before it, its action nowhere."""
    s = setting(name, surrogate="loaded-dice")
    forced, never = torch.zeros(2, STEPS, BATCH, dtype=torch.bool)
    forced[2] = True
    trajectory = s.batches[0]._replace(valid=~forced, is_terminal=never, is_truncated=never)
    changed = trajectory._replace(
        action=torch.where(forced, (trajectory.action + 1) % ACTIONS, trajectory.action),
        behaviour_log_prob=torch.where(forced, 3.0, trajectory.behaviour_log_prob),
    )
    before = s.derivatives(trajectory)
    torch.testing.assert_close(s.derivatives(changed), before, rtol=1e-12, atol=1e-14)
    rewarded = trajectory._replace(reward=torch.where(forced, trajectory.reward + 1.0, trajectory.reward))
    assert (s.derivatives(rewarded) - before).norm() > 1e-3 * before.norm()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["terminal", "truncated"])
def test_nothing_crosses_an_episode_end(setting, name, kind):
    s = setting(name, surrogate="loaded-dice")
    trajectory, end = s.batches[0], 1
    is_end = torch.zeros_like(trajectory.is_terminal)
    is_end[end] = True
    never = torch.zeros_like(is_end)
    counted = trajectory.valid.clone()
    counted[end + 1 :] = False  # only the losses of the steps up to the end are looked at
    trajectory = trajectory._replace(
        is_terminal=is_end if kind == "terminal" else never,
        is_truncated=is_end if kind == "truncated" else never,
        valid=counted,
    )
    reward, observation = trajectory.reward.clone(), trajectory.observation.clone()
    log_prob, action = trajectory.behaviour_log_prob.clone(), trajectory.action.clone()
    reward[end + 1 :] = 50.0
    observation[end + 2 :] = -3.0  # the row before shows the true successor of a truncated step
    log_prob[end + 1 :] = -9.0
    action[end + 1 :] = 0
    changed = trajectory._replace(reward=reward, observation=observation, behaviour_log_prob=log_prob, action=action)
    torch.testing.assert_close(s.derivatives(changed), s.derivatives(trajectory), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_step_gives_nothing(setting, name):
    s = setting(name)
    assert (s.derivatives(s.batches[0]._replace(valid=torch.zeros_like(s.batches[0].valid))) == 0.0).all()
