from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.errors import ConfigurationError
from metagrad.meta_parameters import MetaParameter, init_eta
from metagrad.optimizers import (
    Adam,
    ClipByGlobalNorm,
    FirstOrderOptimizer,
    Optimizer,
    RmsProp,
    Sgd,
    constant,
    learnt_rate,
    linear_annealing,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (Sgd, {"learning_rate": 0.0}, "learning_rate"),
        (Sgd, {"learning_rate": NAN}, "learning_rate"),
        (Sgd, {"learning_rate": float("inf")}, "learning_rate"),
        (Sgd, {"learning_rate": 0.1, "momentum": 1.0}, "momentum"),
        (RmsProp, {"learning_rate": -1.0}, "learning_rate"),
        (RmsProp, {"learning_rate": 0.1, "decay": 1.0}, "decay"),
        (RmsProp, {"learning_rate": 0.1, "eps": -1.0}, "eps"),
        (RmsProp, {"learning_rate": 0.1, "eps_root": NAN}, "eps_root"),
        (RmsProp, {"learning_rate": 0.1, "eps_root": 0.0}, "eps_root"),
        (Adam, {"learning_rate": 0.1, "eps": 0.0}, "eps_root"),
        (Adam, {"learning_rate": 0.1, "annealing_updates": 0}, "annealing_updates"),
        (Adam, {"learning_rate": 0.1, "max_gradient_norm": 0.0}, "max_gradient_norm"),
        (Adam, {"learning_rate": 0.1, "max_gradient_norm": NAN}, "max_gradient_norm"),
        (Adam, {"learning_rate": 0.1, "is_clip_coefficient_constant": True}, "is_clip_coefficient_constant"),
        (Adam, {"learning_rate": 0.1, "beta1": 1.0}, "beta1"),
        (Adam, {"learning_rate": 0.1, "beta2": -0.1}, "beta2"),
    ],
)
def test_wrong_values_are_refused_with_field_and_value(kind: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^[^=]*{field}\S* = .*: .*; .*$"):
        kind(**fields)


@pytest.mark.parametrize("kind", [Sgd, RmsProp, Adam])
def test_annealing_and_clip_reach_the_optimizer(kind: Any) -> None:
    one = torch.ones(1)
    plain = kind(learning_rate=0.5)
    optimizer = replace(plain, annealing_updates=2, max_gradient_norm=1e-3)
    state = optimizer.init(one)
    steps = []
    theta = one
    for _ in range(3):
        moved, state = optimizer.update(100 * one, state, theta, one)
        steps.append((theta - moved).item())
        theta = moved
    assert steps[0] > 0
    assert steps[2] == 0, "the step size is 0 after annealing_updates updates"
    if kind is Sgd:  # the only one whose step shows the gradient's size
        assert steps[0] == pytest.approx(0.5 * 1e-3, rel=1e-4)
        assert steps[1] == pytest.approx(0.25 * 1e-3, rel=1e-4)


CONFIGURED = {
    "momentum": Sgd(learning_rate=0.1, momentum=0.5),
    "rmsprop": RmsProp(learning_rate=0.1, decay=0.7, eps=0.2, eps_root=0.3),
    "adam": Adam(learning_rate=0.1, beta1=0.5, beta2=0.6, eps=0.2, eps_root=0.3),
}


def moved(optimizer: Optimizer) -> tuple[Tensor, ...]:
    """θ after two updates, and the moments."""
    theta = torch.tensor([1.0, -2.0])
    state = optimizer.init(theta)
    for _ in range(2):
        theta, state = optimizer.update(theta.sin(), state, theta, torch.zeros(0))
    return theta, *state.moments


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("momentum", field) for field in ("learning_rate", "momentum")),
        *(("rmsprop", field) for field in ("learning_rate", "decay", "eps", "eps_root")),
        *(("adam", field) for field in ("learning_rate", "beta1", "beta2", "eps", "eps_root")),
    ],
)
def test_every_field_reaches_the_update(name: str, field: str) -> None:
    optimizer = CONFIGURED[name]
    other = replace(optimizer, **{field: 1.2 * getattr(optimizer, field)})
    assert not all(map(torch.equal, moved(optimizer), moved(other)))


@pytest.mark.parametrize("optimizer", CONFIGURED.values(), ids=CONFIGURED)
def test_a_number_is_a_constant_step_size_and_the_fields_are_decay_and_clip(optimizer: FirstOrderOptimizer) -> None:
    as_function = replace(optimizer, learning_rate=constant(0.1))
    assert all(map(torch.equal, moved(optimizer), moved(as_function)))
    annealed = replace(optimizer, annealing_updates=3)
    as_function = replace(optimizer, learning_rate=linear_annealing(0.1, 3))
    assert all(map(torch.equal, moved(annealed), moved(as_function)))
    clipped = replace(optimizer, max_gradient_norm=0.1)
    wrapped = ClipByGlobalNorm(max_norm=0.1, optimizer=optimizer)
    assert all(map(torch.equal, moved(clipped), moved(wrapped)))
    assert clipped.couples_parameters
    assert not optimizer.couples_parameters


@pytest.mark.parametrize("is_constant", [False, True])
def test_the_clips_coefficient_is_a_constant_where_that_is_asked_for(is_constant: bool) -> None:
    sgd = Sgd(learning_rate=1.0, max_gradient_norm=1.0, is_clip_coefficient_constant=is_constant)
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    theta, _ = sgd.update(gradient, sgd.init(gradient), torch.zeros(2, dtype=torch.float64), torch.zeros(0))
    (slope,) = torch.autograd.grad(theta[0], gradient)
    # θ₀ = -g₀ / ‖g‖: ∂/∂g = -(1/‖g‖)(1 - g₀²/‖g‖², -g₀ g₁/‖g‖²), or -(1/‖g‖)(1, 0).
    expected = [-0.2, 0.0] if is_constant else [-0.2 * 16 / 25, 0.2 * 12 / 25]
    assert slope.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_learnt_step_size_lies_in_eta_and_anneals() -> None:
    declaration = {"gamma": MetaParameter(initial=0.9), "rate": MetaParameter(initial=0.1, high=0.4)}
    eta = init_eta(declaration, torch.float64).requires_grad_()
    sgd = Sgd(learning_rate=learnt_rate("rate", declaration), annealing_updates=2)
    theta, state = torch.ones(1, dtype=torch.float64), sgd.init(torch.ones(1, dtype=torch.float64))
    first, state = sgd.update(torch.ones(1, dtype=torch.float64), state, theta, eta)
    second, _ = sgd.update(torch.ones(1, dtype=torch.float64), state, first, eta)
    assert (1.0 - first).item() == pytest.approx(0.1)
    assert (first - second).item() == pytest.approx(0.05)
    (slope,) = torch.autograd.grad(second, eta)
    assert slope.tolist() == pytest.approx([0.0, -1.5 * 0.4 * 0.25 * 0.75])


def test_a_learnt_step_size_without_a_place_in_eta_is_refused() -> None:
    sgd = Sgd(learning_rate=MetaParameter(initial=0.1))
    with pytest.raises(ConfigurationError, match=r"^learning_rate = .*nothing says where it lies in η; use "):
        moved(sgd)
    with pytest.raises(ConfigurationError, match=r"^learning_rate\.low = -1\.0: must be 0 or more"):
        Sgd(learning_rate=MetaParameter(initial=0.1, low=-1.0))
