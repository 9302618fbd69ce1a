"""Masked actions, and rows that the policy did not choose: whatever they hold, losses and derivatives are the same."""

from dataclasses import replace

import jaxtyping
import pytest
import torch

from metagrad.actor_critic import A2cLoss, VtraceLoss
from metagrad.bootstrap import Matching, matching_loss
from metagrad.distributions import Categorical
from metagrad.errors import ConfigurationError
from metagrad.intrinsic_reward import IntrinsicRewardLoss, reward_weights
from metagrad.losses import (
    Estimates,
    OuterObjective,
    Terms,
    actor_critic_loss,
    masked_mean,
    without_unused_rows,
)
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, Network, build_network
from metagrad.returns import lambda_returns, vtrace
from metagrad.surrogates import SURROGATES
from metagrad.types import Trajectory

STEPS, BATCH, ACTIONS = 6, 3, 3
OUTER = OuterObjective(gamma=0.9, lambda_=0.8, critic="outer")
SCALARS = (
    *("gamma", "lambda", "value_coefficient", "entropy_coefficient", "policy_coefficient", "rho_clip", "c_clip"),
    *("extrinsic_coefficient", "intrinsic_coefficient"),
)
SPEC = Mlp(hidden=4)
NETWORK = build_network(SPEC, (3,), ACTIONS, has_outer_critic=True)
WEIGHTS = reward_weights(SPEC, (3,), ACTIONS)
HALF = MetaParameter(initial=0.5)
A2C_LOSS = A2cLoss(gamma=HALF, lambda_=HALF, value_coefficient=HALF, entropy_coefficient=HALF)
A2C_NORMALISED = replace(A2C_LOSS, is_advantage_normalised=True)
VTRACE_LOSS = VtraceLoss(
    **dict.fromkeys(("gamma", "lambda_", "policy_coefficient", "value_coefficient"), HALF),
    **dict.fromkeys(("entropy_coefficient", "rho_clip", "c_clip"), HALF),
)
INTRINSIC_LOSS = IntrinsicRewardLoss(
    **dict.fromkeys(("gamma", "lambda_", "value_coefficient", "entropy_coefficient"), HALF),
    **dict.fromkeys(("extrinsic_coefficient", "intrinsic_coefficient"), HALF),
    reward_network=SPEC,
)


def trajectory(spoilt=None):
    """Column 0: terminal at 1, two rows of reset; 1: two unchosen rows first; 2: truncated at 2, terminal at 5."""
    generator = torch.Generator().manual_seed(0)
    is_terminal = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    is_truncated, invalid = is_terminal.clone(), is_terminal.clone()
    is_terminal[1, 0] = is_truncated[2, 2] = is_terminal[5, 2] = True
    invalid[2, 0] = invalid[3, 0] = invalid[0, 1] = invalid[1, 1] = invalid[3, 2] = True
    whole = Trajectory(
        observation=torch.randn(STEPS + 1, BATCH, 3, generator=generator),
        action=torch.randint(ACTIONS, (STEPS, BATCH), generator=generator),
        reward=torch.randn(STEPS, BATCH, generator=generator),
        is_terminal=is_terminal,
        is_truncated=is_truncated,
        valid=~invalid,
        behaviour_log_prob=-torch.rand(STEPS, BATCH, generator=generator),
        policy_version=0,
    )
    if spoilt is None:
        return whole
    unseen = torch.cat([invalid, is_terminal[-1:]])
    unseen[3, 2] = False  # the true successor of a truncated step: its value is needed
    fields = {
        "observation": torch.where(unseen.unsqueeze(-1), spoilt, whole.observation),
        "reward": torch.where(invalid, spoilt, whole.reward),
        "behaviour_log_prob": torch.where(invalid, spoilt, whole.behaviour_log_prob),
        "action": torch.where(invalid, -7, whole.action),
    }
    return whole._replace(**fields)


def hyper(eta):
    """Scalars in (0, 1), the weights as they are; the clips below and above the ratios that occur."""
    values = {name: torch.sigmoid(eta[i : i + 1]) for i, name in enumerate(SCALARS)}
    return {**values, "reward_weights": eta[len(SCALARS) :]}


def inner(surrogate="lvc"):
    s = SURROGATES[surrogate]
    return {
        "a2c": lambda theta, eta, t: A2C_LOSS.inner_loss(NETWORK, theta, hyper(eta), t, s, OUTER)[0],
        "a2c normalised": lambda theta, eta, t: A2C_NORMALISED.inner_loss(NETWORK, theta, hyper(eta), t, s, OUTER)[0],
        "vtrace": lambda theta, eta, t: VTRACE_LOSS.inner_loss(NETWORK, theta, hyper(eta), t, s, OUTER)[0],
        "intrinsic": lambda theta, eta, t: INTRINSIC_LOSS.inner_loss(NETWORK, theta, hyper(eta), t, s, OUTER)[0],
    }


def matching(kind, network=NETWORK):
    return lambda theta, _eta, t: matching_loss(network, theta, theta.detach() * 0.9, t, kind)[0]


LOSSES = {
    **{f"{name} {surrogate}": loss for surrogate in SURROGATES for name, loss in inner(surrogate).items()},
    "outer": lambda theta, _eta, t: A2C_LOSS.outer_loss(NETWORK, theta, {}, t, OUTER)[0],
    "outer normalised": lambda theta, _eta, t: A2C_LOSS.outer_loss(
        NETWORK, theta, {}, t, replace(OUTER, is_advantage_normalised=True)
    )[0],
    "outer vtrace": lambda theta, _eta, t: VTRACE_LOSS.outer_loss(NETWORK, theta, {}, t, OUTER)[0],
    **{
        f"matching {direction} {states}": matching(Matching(direction=direction, states=states, value_coefficient=0.5))
        for direction in ("target||online", "online||target")
        for states in ("all", "first")
    },
}


def derivatives(loss, data):
    """Loss, its gradient, and the derivatives of (gradient · fixed vector) in θ and η: what a meta-gradient uses."""
    generator = torch.Generator().manual_seed(1)
    theta = NETWORK.init(generator).add(0.1).requires_grad_()
    eta = torch.cat([torch.randn(len(SCALARS), generator=generator), WEIGHTS.init(generator) + 0.1]).requires_grad_()
    direction = torch.randn(theta.shape, generator=generator)
    value = loss(theta, eta, data)
    (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
    slope = (gradient * direction).sum()
    second = torch.autograd.grad(slope, (theta, eta), allow_unused=True, materialize_grads=True, retain_graph=True)
    first = torch.autograd.grad(value, eta, allow_unused=True, materialize_grads=True)
    return (value.detach(), gradient.detach(), *second, *first)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_what_a_left_out_row_holds_changes_nothing(name, spoilt):
    for found, expected in zip(
        derivatives(LOSSES[name], trajectory(spoilt)), derivatives(LOSSES[name], trajectory()), strict=True
    ):
        assert expected.isfinite().all()
        assert torch.equal(found, expected)


class Masked(Network):
    """The network with the logits of one action at -∞ where the observation says so, and of all in unchosen rows."""

    def __init__(self, fill):
        self.layout, self.distribution, self.fill = NETWORK.layout, NETWORK.distribution, fill

    def apply(self, theta, observation, heads):
        outputs = NETWORK.apply(theta, observation, heads)
        if "logits" in outputs:
            is_masked = torch.zeros_like(outputs["logits"], dtype=torch.bool)
            is_masked[:, 2] = observation[:, 0] > 0.0
            outputs["logits"] = outputs["logits"].masked_fill(is_masked, self.fill)
        return outputs


def masked_losses(fill):
    network, t_hyper = Masked(fill), hyper
    ad = SURROGATES["ad"]
    return {
        **{
            f"a2c {name}": lambda theta, eta, t, s=s: A2C_LOSS.inner_loss(network, theta, t_hyper(eta), t, s, OUTER)[0]
            for name, s in SURROGATES.items()
        },
        "vtrace": lambda theta, eta, t: VTRACE_LOSS.inner_loss(network, theta, t_hyper(eta), t, ad, OUTER)[0],
        "intrinsic": lambda theta, eta, t: INTRINSIC_LOSS.inner_loss(network, theta, t_hyper(eta), t, ad, OUTER)[0],
        "outer": lambda theta, _eta, t: A2C_LOSS.outer_loss(network, theta, {}, t, OUTER)[0],
        "outer vtrace": lambda theta, _eta, t: VTRACE_LOSS.outer_loss(network, theta, {}, t, OUTER)[0],
        "matching": matching(Matching(), network),
        "matching backwards": matching(Matching(direction="online||target"), network),
    }


@pytest.mark.parametrize("name", masked_losses(0.0))
def test_a_masked_action_is_as_one_of_tiny_probability(name):
    data = trajectory()
    data = data._replace(action=torch.where(data.observation[:-1, :, 0] > 0.0, data.action % 2, data.action))
    found = derivatives(masked_losses(-torch.inf)[name], data)
    for x, expected in zip(found, derivatives(masked_losses(-1e4)[name], data), strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-7)


def test_a_needed_value_or_reward_that_is_nan_is_not_hidden():
    data = trajectory()
    observation = data.observation.clone()
    observation[3, 2] = torch.nan  # the true successor of a truncated step bootstraps
    assert LOSSES["a2c lvc"](*start(), data._replace(observation=observation)).isnan()
    reward, valid = data.reward.clone(), data.valid.clone()
    reward[4, 2], valid[4, 2] = torch.nan, True
    assert LOSSES["a2c lvc"](*start(), data._replace(reward=reward)).isnan()
    valid[5, 1], reward = False, data.reward.clone()  # in the middle of an episode its reward is part of the returns
    reward[5, 1] = torch.nan
    assert LOSSES["a2c lvc"](*start(), data._replace(reward=reward, valid=valid)).isnan()


def start():
    generator = torch.Generator().manual_seed(1)
    return NETWORK.init(generator), torch.cat([torch.zeros(len(SCALARS)), WEIGHTS.init(generator)])


def test_only_rows_that_nothing_depends_on_are_emptied():
    data = without_unused_rows(trajectory(float("nan")))
    assert data.reward.isnan().sum() == 0
    clean = trajectory()
    is_emptied = (data.reward != clean.reward) & (data.reward == 0.0)
    assert is_emptied.nonzero().tolist() == [[0, 1], [1, 1], [2, 0], [3, 0], [3, 2]]
    assert torch.equal(data.observation[3, 2], clean.observation[3, 2])
    assert data.action.min() >= 0


@pytest.mark.parametrize("function", [lambda_returns, vtrace])
def test_returns_of_the_episode_before_do_not_see_the_next(function):
    data = trajectory(float("nan"))
    value = torch.where(data.observation.isnan().any(-1), torch.nan, 1.0)
    rates = [torch.tensor([x], requires_grad=True) for x in (0.9, 0.8, 0.7, 0.6)]
    if function is vtrace:
        log_ratio = torch.zeros_like(data.reward)
        target = vtrace(log_ratio, data.reward, value, data.is_terminal, data.is_truncated, data.valid, *rates).target
    else:
        target = lambda_returns(data.reward, value, data.is_terminal, data.is_truncated, *rates[:2])
    assert target[data.valid].isfinite().all()


def test_the_entropy_of_a_masked_policy_has_both_derivatives():
    logits = torch.tensor([0.3, -0.2, -torch.inf], requires_grad=True)
    small = torch.tensor([0.3, -0.2], requires_grad=True)

    def both(x):
        entropy = Categorical(x).entropy()
        (first,) = torch.autograd.grad(entropy, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return entropy.detach().reshape(1), first.detach()[:2], second[:2]

    for found, expected in zip(both(logits), both(small), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.fixture
def unchecked_shapes():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


FLAGS = torch.zeros(3, 2, dtype=torch.bool)
ROWS, VALUES = torch.zeros(3, 2), torch.zeros(4, 2)
LONGER, STEPWISE = {"logits": torch.zeros(STEPS + 1, BATCH, ACTIONS)}, torch.zeros(STEPS, BATCH)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: masked_mean(ROWS, FLAGS[0]), "x.shape"),
        (lambda: Categorical(torch.zeros(4, 2, 3)).log_prob(trajectory().action), "action.shape"),
        (lambda: OUTER.loss(LONGER, trajectory(), Estimates(STEPWISE, STEPWISE)), "action.shape"),
        (
            lambda: actor_critic_loss(
                LONGER, trajectory(), {}, SURROGATES["ad"], Terms(STEPWISE, STEPWISE, STEPWISE), 0.5
            ),
            "action.shape",
        ),
        (lambda: lambda_returns(ROWS, VALUES[:3], FLAGS, FLAGS, 0.9, 0.9), "value.shape"),
        (lambda: lambda_returns(ROWS, torch.zeros(5, 2), FLAGS, FLAGS, 0.9, 0.9), "value.shape"),
        (lambda: lambda_returns(ROWS, VALUES, FLAGS[:1], FLAGS, 0.9, 0.9), "is_terminal"),
        (lambda: lambda_returns(ROWS, VALUES, FLAGS.long(), FLAGS, 0.9, 0.9), "is_terminal"),
        (lambda: lambda_returns(ROWS, VALUES, FLAGS, FLAGS, torch.full((2,), 0.9), 0.9), "gamma.shape"),
        (lambda: lambda_returns(ROWS, VALUES, FLAGS, FLAGS, 1.5, 0.9), "gamma"),
        (lambda: lambda_returns(ROWS, VALUES, FLAGS, FLAGS, 0.9, -0.1), "lambda_"),
        (lambda: vtrace(ROWS[:1], ROWS, VALUES, FLAGS, FLAGS, ~FLAGS, 0.9, 0.9, 1.0, 1.0), "log_ratio.shape"),
        (lambda: vtrace(ROWS, ROWS, VALUES, FLAGS, FLAGS, FLAGS.long(), 0.9, 0.9, 1.0, 1.0), "is_terminal"),
        (lambda: vtrace(ROWS, ROWS, VALUES, FLAGS, FLAGS, ~FLAGS, 0.9, 0.9, -1.0, 1.0), "rho_clip"),
    ],
)
def test_shapes_that_would_broadcast_and_values_out_of_range_are_refused(call, field, unchecked_shapes):
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        call()
