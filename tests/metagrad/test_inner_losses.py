"""Checks what every inner and outer loss owes to the meta-gradient; each is a row of LOSSES or of OUTERS."""

import math
from dataclasses import dataclass, replace
from inspect import isabstract

import pytest
import torch

from metagrad.actor_critic import A2cLoss, InnerLoss, VtraceLoss
from metagrad.bootstrap import Matching, matching_loss
from metagrad.distributions import Categorical
from metagrad.errors import ConfigurationError
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.losses import OuterObjective, forward
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta, learnt_names
from metagrad.networks import Mlp, SnakeCnn, build_network
from metagrad.optimizers import Adam, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update

STEPS, BATCH, ACTIONS = 5, 4, 3
RHO_CLIP = 1.3
OUTER = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
OUTERS = {
    "policy-gradient": OUTER,
    "inner-critic": replace(OUTER, critic="inner"),
    "normalised": replace(OUTER, is_advantage_normalised=True),
    "value": replace(OUTER, value_coefficient=0.5),
    "entropy": replace(OUTER, entropy_coefficient=0.3),
    "kl": replace(OUTER, kl_coefficient=2.0),
    "all": replace(OUTER, critic="inner", value_coefficient=0.25, entropy_coefficient=0.1, kl_coefficient=1.0),
}
RATES = {"gamma": MetaParameter(initial=0.8), "lambda_": MetaParameter(initial=0.7)}
A2C = RATES | {
    "value_coefficient": MetaParameter(initial=0.5),
    "entropy_coefficient": MetaParameter(initial=0.05),
}
VTRACE = {
    "policy_coefficient": MetaParameter(initial=0.9, high=2.0),
    "rho_clip": MetaParameter(initial=RHO_CLIP, high=3.0),
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


def kinds_below(kind):
    return {kind} | {below for child in kind.__subclasses__() for below in kinds_below(child)}


def test_every_loss_of_the_library_has_its_row():
    """Losses of experiments and examples, which need environments of their own, are tested beside these."""
    of_library = {x.__name__ for x in kinds_below(InnerLoss) if x.__module__.count(".") == 1 and not isabstract(x)}
    assert {type(row.loss).__name__ for row in LOSSES.values()} == of_library


class Setting:
    """One look-ahead problem in mid-run: network, batches, θ₀, η, and the meta-objective as a plain map of η."""

    def __init__(self, make_trajectory, name, n=3, surrogate="lvc", outer="policy-gradient", network=None):
        generator = torch.Generator().manual_seed(5)
        row = self.row = LOSSES[name]
        self.n, self.outer = n, OUTERS[outer]
        # One torso for all heads: through separate networks the critic's coefficient would never reach the policy.
        self.network = build_network(network or Mlp(hidden=4), row.shape, ACTIONS, self.outer.uses_outer_critic)
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
        """Return the log-probabilities of μ: the present policy, or one that is not (ratios from about .2 to 5)."""
        trajectory = make_trajectory(generator, STEPS, BATCH, self.row.shape, ACTIONS)
        logits = forward(self.network, self.theta, trajectory, ("logits",))["logits"]
        noise = 0.8 * torch.randn(STEPS, BATCH, generator=generator, dtype=torch.float64)
        log_prob = Categorical(logits).log_prob(trajectory.action)
        return trajectory._replace(
            behaviour_log_prob=log_prob + noise if self.row.loss.corrects_off_policy else log_prob
        )

    def outer_loss(self, theta, batch):
        """The learner adds the KL divergence, which needs θ₀."""
        loss, advantage = self.row.loss.outer_loss(self.network, theta, {}, batch, self.outer)
        kl, _ = matching_loss(self.network, theta, self.theta, batch, Matching(direction="online||target"))
        return loss + self.outer.kl_coefficient * kl, advantage

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
        """Loss, ∇θ, and ∂(∇θ · probe) in θ and η on one batch; outer loss and its ∇θ away from θ₀."""
        probe = torch.randn(self.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        theta, eta = self.theta.clone().requires_grad_(), self.eta.clone().requires_grad_()
        loss, _ = self.problem.loss(theta, eta, batch)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        products = torch.autograd.grad(gradient @ probe, (theta, eta))
        x = (self.theta + 0.1 * probe).requires_grad_()
        outer = self.outer_loss(x, batch)[0]
        outer = [outer.detach().reshape(1), *torch.autograd.grad(outer, x)]
        return torch.cat([loss.detach().reshape(1), gradient.detach(), *products, *outer])


@pytest.mark.pairs(
    name=tuple(LOSSES), n=(1, 3), product=("retain", "recompute"), surrogate=tuple(SURROGATES), outer=tuple(OUTERS)
)
@pytest.mark.thinned(5)
def test_meta_gradient_against_finite_differences(
    setting, freeze, finite_differences, name, n, product, surrogate, outer, assert_relative
):
    """Along every scalar, and along random directions of a vector."""
    s = setting(name, n, surrogate, outer)
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


@pytest.mark.pairs(name=tuple(LOSSES), outer=tuple(OUTERS))
def test_rows_after_an_end_that_only_reset_enter_nothing(setting, name, outer):
    s = setting(name, outer=outer)
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


SEPARATE = SnakeCnn(channels=2, policy_hidden=3, value_hidden=3)


@pytest.mark.pairs(name=("a2c", "vtrace"), outer=tuple(OUTERS))
def test_a_loss_that_says_so_keeps_its_policy_term_apart_from_critics(setting, monkeypatch, name, outer):
    """Networks without a torso: no critic's parameter has a share in the policy's gradient, or in the outer loss's."""
    monkeypatch.setitem(LOSSES, name, replace(LOSSES[name], shape=(3, 3, 5)))
    s = setting(name, outer=outer, network=SEPARATE)
    assert s.row.loss.is_policy_apart
    theta = s.theta.clone().requires_grad_()
    loss, _ = s.problem.loss(theta, s.eta, s.batches[0])
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    is_critics = torch.cat(
        [
            torch.full((math.prod(shape),), not part.startswith("logits."))
            for part, shape in zip(s.network.layout.names, s.network.layout.shapes, strict=True)
        ]
    )
    (shares,) = torch.autograd.grad(gradient[~is_critics].square().sum(), theta)
    assert shares[~is_critics].abs().max() > 0.0
    assert (shares[is_critics] == 0.0).all()
    slope = outer_gradient(s.outer_loss, s.theta, s.batches[1]).gradient
    assert (slope[is_critics] != 0.0).any() == s.outer.reaches_critics


@dataclass(frozen=True, kw_only=True, slots=True)
class Inherited(A2cLoss):
    """A loss of a user's own that says nothing of itself."""


def test_what_a_loss_of_ones_own_does_not_say_is_the_safe_answer():
    own = Inherited(**A2C)
    assert (A2cLoss.is_policy_apart, own.is_policy_apart) == (True, False)
    assert own.learns_critics
    with pytest.raises(ConfigurationError, match=r"^meta_parameters = 'Inherited': has no losses that correct"):
        own.streamed()


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnObjective(OuterObjective):
    """An outer loss of a user's own, which may do anything to critics."""

    def loss(self, outputs, trajectory, estimates):
        return estimates.target.sum(), estimates.advantage.mean()


def test_an_outer_loss_of_ones_own_may_reach_critics():
    assert OwnObjective(gamma=1.0, lambda_=1.0, critic="inner").reaches_critics


@pytest.mark.parametrize("name", LOSSES)
def test_the_off_policy_flag_is_honest(setting, name):
    """One state, one step: over μ's actions the mean gradient is that over π's where the loss corrects, else not."""
    s = setting(name, outer="inner-critic")
    observation = s.batches[0].observation[:2, :1]
    yes = torch.ones(1, 1, dtype=torch.bool)
    logits = s.network.apply(s.theta, observation[0], ("logits",))["logits"][0]
    own = logits.softmax(-1)
    other = (1.2 * logits).softmax(-1)  # ratios stay below ρ̄
    assert 1.0 < (own / other).max() < RHO_CLIP

    def mean_gradient(policy):
        total = torch.zeros_like(s.theta)
        for action in range(ACTIONS):
            step = s.batches[0]._replace(
                observation=observation,
                action=torch.tensor([[action]]),
                reward=torch.tensor([[1.0 - action]], dtype=torch.float64),
                is_terminal=yes,
                is_truncated=~yes,
                valid=yes,
                behaviour_log_prob=policy[action].log().reshape(1, 1),
            )
            theta = s.theta.clone().requires_grad_()
            loss, _ = s.problem.loss(theta, s.eta, step)
            total += policy[action] * torch.autograd.grad(loss, theta)[0]
        return total

    difference = (mean_gradient(other) - mean_gradient(own)).norm() / mean_gradient(own).norm()
    assert (difference < 1e-12) == s.row.loss.corrects_off_policy, difference
    assert difference < 1e-12 or difference > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_a_streamed_loss_corrects_off_policy_or_is_refused(name):
    loss = LOSSES[name].loss
    if name.startswith("intrinsic"):
        with pytest.raises(ConfigurationError, match=r"which --schedule peek and --reuse need; use --reuse 1 and"):
            loss.streamed()
    else:
        assert loss.streamed().corrects_off_policy
