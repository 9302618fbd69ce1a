"""N unrolls as one batched problem, against one unroll after the other."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from metagrad.actor_critic import A2cLoss
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import outer_weights, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.monte_carlo import LookAhead, in_chunks, independent, unroll_gradients
from metagrad.networks import SnakeCnn, build_network
from metagrad.optimizers import Adam, ClipByGlobalNorm, RmsProp, Sgd, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem

OPTIMIZERS = {
    "sgd": Sgd(learning_rate=constant(0.1)),
    "momentum": Sgd(learning_rate=constant(0.1), momentum=0.9),
    "rmsprop": RmsProp(learning_rate=constant(0.02)),
    "adam-learnt-rate": Adam(learning_rate=lambda _count, eta: 0.01 * eta[:1].exp()),
    "clipped": ClipByGlobalNorm(max_norm=0.1, optimizer=Sgd(learning_rate=constant(0.1))),
}


def regression(theta, eta, batch):
    """A tanh regression whose target and penalty are meta-parameters; metrics are there to be dropped."""
    x, y = batch["x"], batch["y"] * batch["scale"]
    error = torch.tanh(x @ theta.view(3, 2)).sum(-1) - y * torch.sigmoid(eta[0])
    return error.square().mean() + eta[1:].exp().sum() * theta.pow(4).sum(), {"error": error}


def other(theta, eta, batch):
    """Another loss of the same data: where derivatives come from in the split."""
    return regression(theta, eta, batch)[0] + 0.3 * (theta.sum() ** 3 * eta[1]), None


def plain(theta, batch):
    return (torch.tanh(batch["x"] @ theta.view(3, 2)).sum(-1) - batch["y"]).square().mean(), None


def one_of(batch, k):
    return {name: x[k] if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


class Setting:
    def __init__(self, n, copies, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.theta, self.eta = normal(6), normal(2)
        self.data = [{"x": normal(copies, 5, 3), "y": normal(copies, 5), "scale": 1.5} for _ in range(n + 1)]

    def batched(self, problem, weights, copies, **options):
        start = (self.theta, problem.optimizer.init(self.theta), self.eta)
        look_ahead = LookAhead(weights, **options)
        return unroll_gradients(problem, plain, lambda _theta, j: self.data[j], start, look_ahead, copies)

    def looped(self, problem, weights, copies):
        return [
            reference_meta_gradient(
                problem,
                plain,
                self.theta,
                problem.optimizer.init(self.theta),
                self.eta,
                [one_of(batch, k) for batch in self.data[:-1]],
                [(w, one_of(batch, k)) for w, batch in zip(weights, self.data[1:], strict=True)],
            )
            for k in range(copies)
        ]


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("derivative", [None, other])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_equals_one_unroll_after_the_other(optimizer, derivative, product):
    setting, problem = Setting(3, 4), InnerProblem(regression, OPTIMIZERS[optimizer], derivative)
    weights = outer_weights("mix", 3)
    batched = setting.batched(problem, weights, 4, product=product, wants_theta=True)
    for k, single in enumerate(setting.looped(problem, weights, 4)):
        torch.testing.assert_close(batched.eta[k], single.eta, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(batched.theta[k], single.theta, rtol=1e-10, atol=1e-15)


@hypothesis.given(n=st.integers(1, 5), kappa=st.floats(0.0, 1.0), copies=st.integers(1, 3), seed=st.integers(0, 99))
def test_one_copy_is_the_plain_estimator(n, kappa, copies, seed):
    setting, problem = Setting(n, copies, seed), InnerProblem(regression, OPTIMIZERS["momentum"])
    weights = outer_weights("mix", n, kappa)
    many = setting.batched(problem, weights, copies).eta
    for k, single in enumerate(setting.looped(problem, weights, copies)):
        torch.testing.assert_close(many[k], single.eta, rtol=1e-9, atol=1e-13)


@hypothesis.given(n=st.integers(2, 5), seed=st.integers(0, 99))
def test_kappa_zero_is_the_one_step_estimator_exactly(n, seed):
    setting, problem = Setting(n, 2, seed), InnerProblem(regression, OPTIMIZERS["rmsprop"])
    mixed = setting.batched(problem, outer_weights("mix", n, 0.0), 2).eta
    assert torch.equal(mixed, setting.batched(problem, outer_weights("n-step", 1), 2).eta)


def test_looks_no_further_than_the_last_weight():
    setting, problem, asked = Setting(4, 2), InnerProblem(regression, OPTIMIZERS["sgd"]), []
    start = (setting.theta, problem.optimizer.init(setting.theta), setting.eta)

    def sampler(theta, j):
        assert theta.shape == (2, 6)
        asked.append(j)
        return setting.data[j]

    unroll_gradients(problem, plain, sampler, start, LookAhead((0.0, 1.0, 0.0, 0.0)), 2)
    assert asked == [0, 1, 2]


def test_each_copy_is_sampled_at_its_own_parameters():
    setting, problem, seen = Setting(2, 3), InnerProblem(regression, OPTIMIZERS["sgd"]), []
    start = (setting.theta, problem.optimizer.init(setting.theta), setting.eta)

    def sampler(theta, j):
        seen.append(theta)
        return setting.data[j]

    unroll_gradients(problem, plain, sampler, start, LookAhead(outer_weights("n-step", 2)), 3)
    assert torch.equal(seen[0], setting.theta.expand(3, 6))
    for k in range(3):
        theta = setting.theta.clone().requires_grad_()
        loss = regression(theta, setting.eta, one_of(setting.data[0], k))[0]
        expected = theta.detach() - 0.1 * torch.autograd.grad(loss, theta)[0]
        torch.testing.assert_close(seen[1][k], expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("weights", [(), (0.0,)])
def test_no_look_ahead_is_zero(weights):
    setting, problem = Setting(1, 2), InnerProblem(regression, OPTIMIZERS["sgd"])
    gradients = setting.batched(problem, weights, 2, wants_theta=True)
    assert torch.equal(gradients.eta, torch.zeros(2, 2, dtype=torch.float64))
    assert torch.equal(gradients.theta, torch.zeros(2, 6, dtype=torch.float64))


def test_nothing_learnt_gives_gradients_of_theta_alone():
    setting = Setting(2, 3)
    setting.eta = setting.eta[:0]
    problem = InnerProblem(lambda theta, _eta, batch: plain(theta, batch), OPTIMIZERS["sgd"])
    gradients = setting.batched(problem, outer_weights("n-step", 2), 3, wants_theta=True)
    assert gradients.eta.shape == (3, 0)
    for k, single in enumerate(setting.looped(problem, outer_weights("n-step", 2), 3)):
        torch.testing.assert_close(gradients.theta[k], single.theta, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_convolutional_actor_critic(make_trajectory, product):
    generator = torch.Generator().manual_seed(1)
    network = build_network(SnakeCnn(channels=2, policy_hidden=4, value_hidden=5), (3, 3, 5), 3, True)
    objective = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    a2c = A2cLoss(
        gamma=MetaParameter(initial=0.8),
        lambda_=MetaParameter(initial=0.7),
        value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
        entropy_coefficient=MetaParameter(initial=0.05),
    )
    declaration = a2c.declaration((), 0)

    def loss(theta, eta, batch):
        return a2c.inner_loss(network, theta, hyperparameters(declaration, eta), batch, SURROGATES["lvc"], objective)

    def outer(theta, batch):
        return a2c.outer_loss(network, theta, {}, batch, objective)

    problem = InnerProblem(loss, OPTIMIZERS["rmsprop"])
    theta = network.init(generator).to(torch.float64)
    eta, state = init_eta(declaration, torch.float64), problem.optimizer.init(theta)
    singles = [[make_trajectory(generator, 4, 3, (3, 3, 5), 3) for _ in range(3)] for _ in range(2)]

    def stacked(j):
        pair = [of_copy[j] for of_copy in singles]
        fields = [torch.stack(x) if isinstance(x[0], torch.Tensor) else x[0] for x in zip(*pair, strict=True)]
        return pair[0]._make(fields)

    weights = outer_weights("mix", 2)
    many = unroll_gradients(
        problem, outer, lambda _theta, j: stacked(j), (theta, state, eta), LookAhead(weights, product), 2
    )
    for k in range(2):
        outers = list(zip(weights, singles[k][1:], strict=True))
        single = reference_meta_gradient(problem, outer, theta, state, eta, singles[k][:-1], outers)
        torch.testing.assert_close(many.eta[k], single.eta, rtol=1e-9, atol=1e-15)


def test_independent_problem_is_a_sum():
    setting = Setting(0, 3)
    many = independent(InnerProblem(regression, OPTIMIZERS["sgd"]), 3)
    assert many.derivative is None
    loss, metrics = many.loss(setting.theta.repeat(3), setting.eta.repeat(3), setting.data[0])
    expected = sum(regression(setting.theta, setting.eta, one_of(setting.data[0], k))[0] for k in range(3))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    assert metrics is None


@hypothesis.given(copies=st.integers(0, 200), at_once=st.integers(1, 50))
def test_chunks_add_up(copies, at_once):
    chunks = list(in_chunks(copies, at_once))
    assert sum(chunks) == copies
    assert all(0 < chunk <= at_once for chunk in chunks)


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("optimizer", ["momentum", "rmsprop"])
def test_a_constant_state_is_that_of_each_copy(optimizer, product):
    setting, problem = Setting(3, 2), InnerProblem(regression, OPTIMIZERS[optimizer])
    options = {"product": product}
    many, free = (
        setting.batched(problem, outer_weights("n-step", 3), 2, **options | choice).eta
        for choice in ({"constant_state": 1}, {})
    )
    for k in range(2):
        theta, eta = setting.theta.clone().requires_grad_(), setting.eta.clone().requires_grad_()
        state = problem.optimizer.init(theta)
        for i, batch in enumerate(setting.data[:-1]):
            if i == 1:
                state = state._replace(moments=tuple(moment.detach() for moment in state.moments))
            loss = problem.loss(theta, eta, one_of(batch, k))[0]
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta, state = problem.optimizer.update(gradient, state, theta, eta)
        (expected,) = torch.autograd.grad(plain(theta, one_of(setting.data[-1], k))[0], eta)
        torch.testing.assert_close(many[k], expected, rtol=1e-10, atol=1e-15)
        assert (many[k] - free[k]).norm() > 1e-3 * free[k].norm()


@pytest.mark.parametrize("state", [-1, 0, 2])
def test_a_constant_state_lies_between_two_updates(state):
    setting, problem = Setting(2, 1), InnerProblem(regression, OPTIMIZERS["momentum"])
    with pytest.raises(
        ConfigurationError, match=rf"^constant_state = {state}: is a state between two of the 2 updates"
    ):
        setting.batched(problem, outer_weights("n-step", 2), 1, constant_state=state)
