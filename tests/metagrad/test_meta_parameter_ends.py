"""Learnt meta-parameters near their bounds, and vectors that do not fit their declaration."""

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.meta_parameters import MetaParameter, MetaVector, hyperparameters, init_eta, shown

GAMMA = {"gamma": MetaParameter(initial=0.5)}


def derivative(eta, order=1, declaration=GAMMA):
    eta = torch.tensor([eta], requires_grad=True)
    value = hyperparameters(declaration, eta)["gamma"]
    for _ in range(order):
        (value,) = torch.autograd.grad(value, eta, create_graph=True)
    return value.item()


@pytest.mark.parametrize("eta", [11.0, 16.5, 17.0, 20.0, 40.0, 80.0, -17.0, -40.0, -80.0])
def test_the_derivative_is_right_where_float32_rounds_the_value_to_a_bound(eta):
    exact = torch.sigmoid(torch.tensor(eta, dtype=torch.float64)) * torch.sigmoid(
        torch.tensor(-eta, dtype=torch.float64)
    )
    assert derivative(eta) == pytest.approx(exact.item(), rel=1e-5)
    sign = -1.0 if eta > 0 else 1.0  # σ'' = σ' (1 - 2 σ)
    assert derivative(eta, order=2) == pytest.approx(sign * exact.item(), rel=1e-4)


def test_forward_mode_and_vmap_agree_with_reverse_mode():
    eta = torch.tensor([-20.0, 0.0, 9.0, 20.0])

    def value(x):
        return hyperparameters(GAMMA, x.reshape(1))["gamma"].squeeze(0)

    forward = torch.func.vmap(lambda x: torch.func.jvp(value, (x,), (torch.ones(()),))[1])(eta)
    torch.testing.assert_close(forward, torch.tensor([derivative(x.item()) for x in eta]), rtol=1e-6, atol=0.0)


def test_ordinary_values_keep_their_bits():
    for eta in torch.linspace(-30.0, 10.0, 401):
        leaf = eta.reshape(1).requires_grad_()
        value = hyperparameters({"gamma": MetaParameter(initial=0.5, low=0.25, high=0.75)}, leaf)["gamma"]
        old_leaf = eta.reshape(1).clone().requires_grad_()
        old = 0.25 + 0.5 * torch.sigmoid(old_leaf)
        assert torch.equal(value, old)
        assert torch.equal(torch.autograd.grad(value, leaf)[0], torch.autograd.grad(old, old_leaf)[0])


def test_a_saturated_meta_parameter_comes_back():
    eta = torch.tensor([20.0])
    for _ in range(50):
        leaf = eta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(hyperparameters(GAMMA, leaf)["gamma"], leaf)
        eta = eta - 0.5 * gradient / gradient.abs()  # as Adam without its ε
    assert hyperparameters(GAMMA, eta)["gamma"] < 0.5


@pytest.mark.parametrize(
    ("initial", "low", "high"),
    [
        (1.0 - 1e-9, 0.0, 1.0),
        (1.0 - 1e-8, 0.0, 1.0),
        (0.8 + 1e-9, 0.8, 1.0),
        (1.0 - 1e-17 + 1e-16, 0.0, 1.0 + 3e-16),
        (1e-300, 0.0, 1e300),
        (1000.0 - 1e-5, 0.0, 1000.0),
        (1e-50, 0.0, 1.0),
    ],
)
def test_a_learnt_initial_value_that_float32_rounds_to_its_bound_is_refused(initial, low, high):
    with pytest.raises(ConfigurationError, match=r"initial = .*float32 cannot tell it from its bound"):
        MetaParameter(initial=initial, low=low, high=high)


@pytest.mark.parametrize(
    ("initial", "high"), [(1.0 - 1e-6, 1.0), (1e-12, 1.0), (0.99999, 1.0), (1e-6, 0.1), (999.99, 1000.0)]
)
def test_a_learnt_initial_value_near_its_bound_moves(initial, high):
    parameter = MetaParameter(initial=initial, high=high)
    eta = init_eta({"gamma": parameter})
    assert hyperparameters({"gamma": parameter}, eta)["gamma"].item() == pytest.approx(initial, rel=1e-5)
    assert derivative(eta.item(), declaration={"gamma": parameter}) > 0.0


def test_a_fixed_value_may_be_its_bound():
    fixed = {"lambda": MetaParameter(initial=1.0, is_learnt=False)}
    assert hyperparameters(fixed, init_eta(fixed))["lambda"].item() == 1.0


@pytest.mark.parametrize("eta", [torch.zeros(0), torch.zeros(1), torch.zeros(5)])
def test_an_eta_that_does_not_fit_is_refused(eta):
    declaration = {**GAMMA, "weights": MetaVector(3, lambda _: torch.zeros(3))}
    for function in (hyperparameters, shown):
        with pytest.raises(ConfigurationError, match="the declaration has 4 learnt numbers"):
            function(declaration, eta)


def test_a_vector_of_another_size_than_declared_and_an_integer_eta_are_refused():
    with pytest.raises(ConfigurationError, match="declares 3 numbers"):
        init_eta({"weights": MetaVector(3, lambda _: torch.zeros(2))})
    with pytest.raises(ConfigurationError, match="dtype"):
        init_eta(GAMMA, torch.int64)
