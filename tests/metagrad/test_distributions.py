"""Every distribution against torch.distributions, in values and in first and second derivatives, and as samples."""

import math

import pytest
import torch
from torch import distributions as reference

from metagrad.actor_critic import A2cLoss, VtraceLoss
from metagrad.bootstrap import Matching, matching_loss
from metagrad.distributions import (
    Categorical,
    ContinuousActions,
    DiagonalGaussian,
    DiscreteActions,
    MultiDiscreteActions,
    Outputs,
    policy_of,
)
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective, forward
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import Mlp, build_network
from metagrad.optimizers import Adam, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update

SPACES = {
    "discrete": DiscreteActions(4),
    "multi-discrete": MultiDiscreteActions((2, 3, 2)),
    "continuous": ContinuousActions(3),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
STEPS, BATCH = 4, 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class IndependentChoices:
    """Several categoricals of torch as one distribution."""

    def __init__(self, logits, sizes):
        self.parts = [reference.Categorical(logits=part) for part in logits.split(sizes, -1)]

    def log_prob(self, action):
        return sum(part.log_prob(chosen) for part, chosen in zip(self.parts, action.unbind(-1), strict=True))

    def entropy(self):
        return sum(part.entropy() for part in self.parts)


def of_torch(space, parameters):
    match space:
        case DiscreteActions():
            return reference.Categorical(logits=parameters)
        case MultiDiscreteActions(sizes):
            return IndependentChoices(parameters, sizes)
    mean, unbounded = parameters.chunk(2, -1)
    return reference.Independent(reference.Normal(mean, torch.exp(5 * torch.tanh(unbounded / 5))), 1)


def kl_of_torch(p, q):
    if isinstance(p, IndependentChoices):
        return sum(reference.kl_divergence(first, second) for first, second in zip(p.parts, q.parts, strict=True))
    return reference.kl_divergence(p, q)


def actions_of(space, *rows):
    return space.policy(drawn(*rows, space.outputs, seed=1)).sample(torch.Generator().manual_seed(2)).action


QUANTITIES = {
    "log_prob": lambda p, q, action: p.log_prob(action),
    "entropy": lambda p, q, action: p.entropy(),
    "kl": lambda p, q, action: p.kl_divergence(q) if hasattr(p, "kl_divergence") else kl_of_torch(p, q),
}


@every_space
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_values_and_derivatives_of_torch(space, quantity):
    """First and second derivatives in both distributions' parameters."""
    read, action = QUANTITIES[quantity], actions_of(space, 2)

    def ours(x):
        p, q = x.unflatten(0, (2, 2, space.outputs))
        return read(space.policy(p), space.policy(q), action)

    def theirs(x):
        p, q = x.unflatten(0, (2, 2, space.outputs))
        return read(of_torch(space, p), of_torch(space, q), action)

    x = drawn(2 * 2 * space.outputs, seed=3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ours, x.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(ours, x.clone().requires_grad_())
    for derivative in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        of = (lambda f: f) if derivative is torch.autograd.functional.jacobian else (lambda f: lambda x: f(x).sum())
        torch.testing.assert_close(derivative(of(ours), x), derivative(of(theirs), x), rtol=1e-9, atol=1e-9)


@every_space
def test_samples_follow_their_density(space):
    """The mean of -log π(a) over samples is the entropy, and shares are the probabilities."""
    rows = 40_000
    policy = space.policy(drawn(space.outputs).expand(rows, -1))
    action, log_prob, _ = policy.sample(torch.Generator().manual_seed(5))
    assert action.shape == (rows, *space.shape)
    assert torch.equal(log_prob, policy.log_prob(action))
    error = (-log_prob).std() / math.sqrt(rows)
    assert abs(-log_prob.mean() - policy.entropy()[0]) < 4 * error
    again = policy.sample(torch.Generator().manual_seed(5)).action
    assert torch.equal(action, again)


@every_space
def test_the_mode_is_the_most_likely_action(space):
    policy = space.policy(drawn(50, space.outputs))
    best = policy.log_prob(policy.mode())
    for seed in range(20):
        assert (best >= policy.sample(torch.Generator().manual_seed(seed)).log_prob).all()


def test_deviations_are_bounded_smoothly():
    extreme = torch.tensor([0.0, 1e6, 0.0, -1e6]).view(2, 2).double()
    policy = DiagonalGaussian(extreme)
    deviation = (policy.entropy() - 0.5 * math.log(2 * math.pi * math.e)).exp()
    assert deviation.tolist() == pytest.approx([math.exp(5), math.exp(-5)])
    near = DiagonalGaussian(torch.tensor([[0.0, 0.01]]).double())
    assert near.entropy().item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e) + 0.01, abs=1e-7)


@every_space
def test_an_action_less_or_more_is_refused(space):
    policy = space.policy(drawn(4, space.outputs))
    for wrong in (actions_of(space, 1), actions_of(space, 5)):
        with pytest.raises(ConfigurationError, match=r"^action\.shape"):
            policy.log_prob(wrong)
    with pytest.raises(ConfigurationError, match=r"^policy\.shape"):
        policy.kl_divergence(space.policy(drawn(1, space.outputs)))


def test_a_plain_mapping_is_of_discrete_actions():
    logits = drawn(2, 4)
    assert torch.equal(policy_of({"logits": logits}).entropy(), Categorical(logits).entropy())
    gaussian = Outputs({"logits": logits}, ContinuousActions(2).policy)
    assert isinstance(policy_of(gaussian), DiagonalGaussian)


RATES = {"gamma": MetaParameter(initial=0.8), "lambda_": MetaParameter(initial=0.7)}
WEIGHTS = {"value_coefficient": MetaParameter(initial=0.5), "entropy_coefficient": MetaParameter(initial=0.05)}
ONE = MetaParameter(initial=0.9, high=3.0)
LOSSES = {
    "a2c": A2cLoss(**RATES, **WEIGHTS),
    "vtrace": VtraceLoss(**RATES, **WEIGHTS, policy_coefficient=ONE, rho_clip=ONE, c_clip=ONE),
}
OUTER = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer", entropy_coefficient=0.1, value_coefficient=0.2)
MATCHING = Matching(direction="online||target")


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("product", ["retain", "recompute"])
@every_space
def test_meta_gradients_are_finite_differences(
    space, name, product, make_trajectory, freeze, finite_differences, assert_relative
):
    """Through two updates, of policy gradient, entropy, V-trace's ratios, outer loss and matching loss."""
    generator, loss = torch.Generator().manual_seed(5), LOSSES[name]
    network = build_network(Mlp(hidden=4), (3,), space, True)
    declaration = loss.declaration((3,), space.outputs)
    eta = init_eta(declaration, torch.float64)
    start = network.init(generator).double()
    start += 0.2 * torch.randn(start.shape, generator=generator, dtype=torch.float64)

    def batch():
        trajectory = make_trajectory(generator, STEPS, BATCH, (3,), 2)
        policy = forward(network, start, trajectory, ("logits",)).policy
        action, log_prob, _ = policy.sample(generator)
        noise = 0.5 * torch.randn(log_prob.shape, generator=generator, dtype=torch.float64)
        is_off_policy = loss.corrects_off_policy
        return trajectory._replace(action=action, behaviour_log_prob=log_prob + noise * is_off_policy)

    batches = [batch() for _ in range(3)]

    def inner(theta, eta, batch):
        hyper = hyperparameters(declaration, eta)
        return loss.inner_loss(network, theta, hyper, batch, SURROGATES["lvc"], OUTER)

    def outer_loss(theta, batch):
        value, advantage = loss.outer_loss(network, theta, {}, batch, OUTER)
        return value + matching_loss(network, theta, start, batch, MATCHING)[0], advantage

    problem = InnerProblem(inner, Adam(learning_rate=constant(0.02)))

    def unrolled(eta, keep_graph):
        theta, state, tape = start, problem.optimizer.init(start), []
        for each in batches[:2]:
            update = inner_update(problem, theta, state, eta, each, keep_graph)
            theta, state = update.theta, update.state
            tape.append(update.step)
        return theta, tape

    def objective(eta):
        theta, _ = unrolled(eta, keep_graph=False)
        with torch.no_grad():
            return outer_loss(theta, batches[-1])[0]

    theta, tape = unrolled(eta, product == "retain")
    found = meta_gradient(problem, tape, [None, outer_gradient(outer_loss, theta, batches[-1]).gradient], product).eta
    directions = torch.eye(len(eta), dtype=torch.float64)
    expected = finite_differences(freeze(objective, eta), eta, directions)
    assert_relative(found, expected, 1e-6)
    assert expected.abs().min() > 1e-4 * expected.norm()


@every_space
def test_actions_of_rows_that_nobody_chose_enter_nothing(space, make_trajectory):
    generator = torch.Generator().manual_seed(1)
    network = build_network(Mlp(hidden=4), (3,), space, True)
    theta = network.init(generator).double()
    trajectory = make_trajectory(generator, STEPS, BATCH, (3,), 2)
    action = actions_of(space, STEPS, BATCH)
    valid = torch.ones(STEPS, BATCH, dtype=torch.bool)
    valid[1, 0] = False
    trajectory = trajectory._replace(action=action, valid=valid)
    changed = action.clone()
    changed[1, 0] = math.nan if action.is_floating_point() else 0
    loss, hyper = LOSSES["a2c"], hyperparameters(LOSSES["a2c"].declaration((3,), 1), torch.zeros(4).double())

    def gradient(trajectory):
        x = theta.clone().requires_grad_()
        value, _ = loss.inner_loss(network, x, hyper, trajectory, SURROGATES["lvc"], OUTER)
        return torch.autograd.grad(value, x)[0]

    assert torch.equal(gradient(trajectory._replace(action=changed)), gradient(trajectory))
