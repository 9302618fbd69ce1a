"""Gradients through another player's learning, against finite differences and one plain reverse pass."""

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.opponent_shaping import shaping_gradients
from metagrad.optimizers import Adam, Sgd, constant
from metagrad.unroll import InnerProblem

OPTIMIZERS = {
    "sgd": Sgd(learning_rate=constant(0.3)),
    "momentum": Sgd(learning_rate=constant(0.3), momentum=0.9),
    "learnt-rate": Sgd(learning_rate=lambda _count, eta: eta[:1].exp() * 0.1),
    "adam": Adam(learning_rate=constant(0.1)),
}


def theirs(theta, eta, batch):
    """The opponent's loss: of both players' parameters, not symmetric."""
    return (torch.tanh(theta[:2] * eta[0] + batch).square() * eta[1:3].exp()).sum() + theta[2] ** 2 * eta.sum(), None


def ours(theta, eta, batch):
    return torch.sin(theta * batch.mean()).sum() * eta.prod() + (eta * theta[0]).square().sum(), {"unused": eta}


def setting(copies, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(copies, 3), draw(copies, 4), draw(steps + 1, copies, 2)


def objective(optimizer, theta, eta, data, inner_eta=None):
    """L₁(η, θ_K), one learner, with the opponent's gradients by reverse mode."""
    inner_eta = eta if inner_eta is None else inner_eta
    theta = theta.clone().requires_grad_()
    state = optimizer.init(theta)
    for batch in data[:-1]:
        (gradient,) = torch.autograd.grad(theirs(theta, inner_eta, batch)[0], theta, create_graph=True)
        theta, state = optimizer.update(gradient, state, theta, inner_eta)
    return ours(theta, eta, data[-1])[0], theta


def differences(function, x, step=1e-5):
    """Central finite differences."""
    columns = []
    for unit in torch.eye(len(x), dtype=x.dtype):
        columns.append((function(x + step * unit) - function(x - step * unit)) / (2 * step))
    return torch.stack(columns).detach()


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_parts_are_finite_differences_of_the_look_ahead(name, steps, product):
    optimizer, copies = OPTIMIZERS[name], 2
    theta, eta, data = setting(copies, steps)
    problem = InnerProblem(theirs, optimizer)
    found = shaping_gradients(problem, ours, lambda _theta, j: data[j], theta, eta, steps, product)
    assert torch.equal(found.outer_batch, data[-1])
    assert torch.equal(found.total, found.direct + found.shaping)
    for k in range(copies):
        one = (optimizer, theta[k], data[:, k], eta[k])
        direct = differences(lambda x, one=one: objective(*one[:2], x, *one[2:])[0], eta[k])
        shaping = differences(lambda x, one=one: objective(*one[:2], one[3], one[2], x)[0], eta[k])
        torch.testing.assert_close(found.direct[k], direct, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.shaping[k], shaping, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.opponent[k], objective(optimizer, theta[k], eta[k], data[:, k])[1].detach())


def test_the_sampler_sees_where_each_opponent_is():
    theta, eta, data = setting(2, 2)
    seen = []

    def sampler(theta, j):
        seen.append((j, theta.clone()))
        return data[j]

    found = shaping_gradients(InnerProblem(theirs, OPTIMIZERS["sgd"]), ours, sampler, theta, eta, 2)
    assert [j for j, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], theta)
    assert torch.equal(seen[2][1], found.opponent)


def test_value_and_derivative_of_an_update_from_different_losses():
    optimizer, (theta, eta, data) = OPTIMIZERS["sgd"], setting(1, 1)
    split = InnerProblem(lambda theta, eta, batch: (1.7 * theirs(theta, eta, batch)[0], None), optimizer, theirs)
    found = shaping_gradients(split, ours, lambda _theta, j: data[j], theta, eta, 1)
    theta, eta = theta[0].requires_grad_(), eta[0].requires_grad_()
    (gradient,) = torch.autograd.grad(theirs(theta, eta, data[0, 0])[0], theta, create_graph=True)
    ahead = theta - 0.3 * (1.7 * gradient.detach() + gradient - gradient.detach())
    (total,) = torch.autograd.grad(ours(ahead, eta, data[1, 0])[0], eta)
    torch.testing.assert_close(found.total[0], total)


def test_negative_look_ahead_is_refused():
    theta, eta, data = setting(1, 0)
    with pytest.raises(ConfigurationError, match="steps"):
        shaping_gradients(InnerProblem(theirs, OPTIMIZERS["sgd"]), ours, lambda _theta, j: data[j], theta, eta, -1)
