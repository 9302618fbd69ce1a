import math

import pytest
import torch

from metagrad.optimizers import (
    Adam,
    ClipByGlobalNorm,
    Optimizer,
    OptimizerState,
    RmsProp,
    Sgd,
    constant,
    linear_annealing,
)

STEPS = 20
ETA = torch.zeros(0, dtype=torch.float64)
OPTIMIZERS = {
    "sgd": Sgd(learning_rate=constant(0.05)),
    "momentum": Sgd(learning_rate=constant(0.05), momentum=0.9),
    "rmsprop": RmsProp(learning_rate=constant(0.05)),
    "rmsprop-eps": RmsProp(learning_rate=constant(0.05), eps=1e-6, eps_root=0.0),
    "adam": Adam(learning_rate=constant(0.05)),
    "adam-eps-root": Adam(learning_rate=constant(0.05), eps_root=1e-6),
    "clipped-adam": ClipByGlobalNorm(max_norm=0.5, optimizer=Adam(learning_rate=constant(0.05))),
}


def torch_gradient(theta):
    """A gradient that depends on θ in every component, of norm between about 0.2 and 3."""
    return torch.sin(3.0 * theta) + 0.2 * theta.flip(0) ** 2


def start():
    return torch.linspace(-1.0, 1.5, 7, dtype=torch.float64)


def trajectory(optimizer: Optimizer):
    theta, steps = start(), []
    state = optimizer.init(theta)
    for _ in range(STEPS):
        theta, state = optimizer.update(torch_gradient(theta), state, theta, ETA)
        steps.append(theta)
    assert state.updates == STEPS
    return torch.stack(steps)


def torch_trajectory(make, max_norm=None, make_scheduler=None):
    parameter = torch.nn.Parameter(start())
    optimizer = make([parameter])
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    steps = []
    for _ in range(STEPS):
        parameter.grad = torch_gradient(parameter.detach())
        if max_norm:
            torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        optimizer.step()
        if scheduler:
            scheduler.step()
        steps.append(parameter.detach().clone())
    return torch.stack(steps)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(learning_rate=constant(0.1)), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Sgd(learning_rate=constant(0.1), momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            RmsProp(learning_rate=constant(0.01), decay=0.95, eps=1e-3, eps_root=0.0),
            lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.95, eps=1e-3),
        ),
        (
            Adam(learning_rate=constant(0.1), beta1=0.8, beta2=0.95, eps=1e-3),
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-3),
        ),
        (Adam(learning_rate=constant(0.1)), lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
    ids=["sgd", "momentum", "rmsprop", "adam", "adam-defaults"],
)
def test_equals_torch_step_for_step(ours, theirs):
    torch.testing.assert_close(trajectory(ours), torch_trajectory(theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_norm", [0.5, 1.5, 100.0])
def test_clipping_equals_torch(max_norm):
    norms = torch_gradient(start()).norm()
    assert norms > 1.5
    ours = ClipByGlobalNorm(max_norm=max_norm, optimizer=Adam(learning_rate=constant(0.1)))
    theirs = torch_trajectory(lambda p: torch.optim.Adam(p, lr=0.1), max_norm=max_norm)
    torch.testing.assert_close(trajectory(ours), theirs, rtol=1e-12, atol=1e-12)


def test_clipped_gradient_has_the_maximal_norm_or_is_untouched():
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for max_norm, expected in ((1.0, 1.0), (5.1, 5.0)):
        clip = ClipByGlobalNorm(max_norm=max_norm, optimizer=Sgd(learning_rate=constant(1.0)))
        theta, _ = clip.update(gradient, clip.init(gradient), torch.zeros(2, dtype=torch.float64), ETA)
        assert theta.norm().item() == pytest.approx(expected, rel=1e-6)


def test_linear_annealing_equals_torch():
    ours = trajectory(Adam(learning_rate=linear_annealing(0.1, 12)))
    theirs = torch_trajectory(
        lambda p: torch.optim.Adam(p, lr=0.1),
        make_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=12),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours[11], ours[-1]), "no step after the last update"
    assert [linear_annealing(2.0, 4)(count, ETA) for count in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]


def test_rmsprop_eps_root_equals_optax():
    # optax.rmsprop(lr, decay, eps, initial_scale=0): ν ← decay ν + (1 - decay) g²; θ ← θ - lr g rsqrt(ν + eps).
    theta = start().tolist()
    second, steps = [0.0] * len(theta), []
    for _ in range(STEPS):
        gradient = torch_gradient(torch.tensor(theta, dtype=torch.float64)).tolist()
        for k, g in enumerate(gradient):
            second[k] = 0.9 * second[k] + 0.1 * g * g
            theta[k] -= 5e-4 * g / math.sqrt(second[k] + 1e-8)
        steps.append(list(theta))
    ours = trajectory(RmsProp(learning_rate=constant(5e-4)))
    torch.testing.assert_close(ours, torch.tensor(steps, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_adam_eps_root_equals_optax():
    # optax.adam(lr, b1, b2, eps, eps_root): θ ← θ - lr m̂ / (√(v̂ + eps_root) + eps).
    theta = start().tolist()
    first, second, steps = [0.0] * len(theta), [0.0] * len(theta), []
    for count in range(1, STEPS + 1):
        gradient = torch_gradient(torch.tensor(theta, dtype=torch.float64)).tolist()
        for k, g in enumerate(gradient):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            first_hat, second_hat = first[k] / (1 - 0.9**count), second[k] / (1 - 0.999**count)
            theta[k] -= 0.01 * first_hat / (math.sqrt(second_hat + 1e-2) + 1e-3)
        steps.append(list(theta))
    ours = trajectory(Adam(learning_rate=constant(0.01), eps=1e-3, eps_root=1e-2))
    torch.testing.assert_close(ours, torch.tensor(steps, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_eps_root_matters():
    plain, rooted = (trajectory(Adam(learning_rate=constant(0.05), eps_root=e)) for e in (0.0, 1e-2))
    assert (plain - rooted).abs().max() > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_derivative_of_one_update(name):
    optimizer = OPTIMIZERS[name]
    theta = start().requires_grad_()
    gradient = torch_gradient(start()).requires_grad_()
    # Second moments well above zero, at a count where Adam's bias correction still matters.
    moments = tuple(
        (0.5 + 0.1 * i + start().square()).requires_grad_() for i in range(len(optimizer.init(theta).moments))
    )

    def update(gradient, theta, *moments):
        new_theta, new_state = optimizer.update(gradient, OptimizerState(3, moments), theta, ETA)
        return new_theta, *new_state.moments

    assert torch.autograd.gradcheck(update, (gradient, theta, *moments))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_may_depend_on_eta_and_count(name):
    seen = []

    def rate(count, eta):
        seen.append(count)
        return eta[:1]

    template = OPTIMIZERS[name]
    inner = template.optimizer if isinstance(template, ClipByGlobalNorm) else template
    fields = {field: getattr(inner, field) for field in inner.__dataclass_fields__ if field != "learning_rate"}
    optimizer = type(inner)(learning_rate=rate, **fields)
    state = optimizer.init(start())._replace(updates=5)

    def update(eta):
        return optimizer.update(torch_gradient(start()), state, start(), eta)[0]

    jacobian = torch.func.jacrev(update)(torch.tensor([0.1], dtype=torch.float64)).squeeze(1)
    step = update(torch.tensor([1.0], dtype=torch.float64)) - start()
    torch.testing.assert_close(jacobian, step, rtol=1e-12, atol=1e-12)
    assert set(seen) == {5}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_derivatives_are_finite_where_a_gradient_has_always_been_zero(name):
    # A dead unit: g = 0 and its moments are 0, in the first component.
    optimizer = OPTIMIZERS[name]
    theta = start().requires_grad_()
    gradient = torch_gradient(start())
    gradient[0] = 0.0
    state = optimizer.init(theta)
    with torch.no_grad():
        _, state = optimizer.update(gradient, state, theta, ETA)
    gradient.requires_grad_()
    moments = tuple(m.clone().requires_grad_() for m in state.moments)
    new_theta, new_state = optimizer.update(gradient, OptimizerState(state.updates, moments), theta, ETA)
    outputs = (new_theta, *new_state.moments)
    derivatives = torch.autograd.grad(
        outputs, (theta, gradient, *moments), tuple(torch.ones_like(x) for x in outputs), materialize_grads=True
    )
    assert new_theta[0] == theta[0]
    assert all(derivative.isfinite().all() for derivative in derivatives)


@pytest.mark.parametrize(
    ("optimizer", "slope"),
    [
        (RmsProp(learning_rate=constant(0.05)), 0.05 / 1e-4),  # α / √eps_root
        (RmsProp(learning_rate=constant(0.05), eps=1e-3, eps_root=0.0), 0.05 / 1e-3),  # α / eps
        (Adam(learning_rate=constant(0.05), eps=1e-3), 0.05 / 1e-3),
        (Adam(learning_rate=constant(0.05), eps=1e-3, eps_root=1e-4), 0.05 / (1e-2 + 1e-3)),
    ],
    ids=["rmsprop", "rmsprop-eps", "adam", "adam-eps-root"],
)
def test_derivative_at_a_zero_gradient_is_the_limit(optimizer, slope):
    zero = torch.zeros(1, dtype=torch.float64)

    def step(gradient):
        return -optimizer.update(gradient, optimizer.init(zero), zero, ETA)[0]

    at_zero = torch.func.jacrev(step)(zero).item()
    nearby = torch.func.jacrev(step)(zero + 1e-12).item()
    assert at_zero == pytest.approx(slope, rel=1e-12)
    assert nearby == pytest.approx(at_zero, rel=1e-6)
    _, forward = torch.func.jvp(step, (zero,), (torch.ones_like(zero),))
    assert forward.item() == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_is_pure_and_an_optimizer_is_checkable(name):
    optimizer = OPTIMIZERS[name]
    assert isinstance(optimizer, Optimizer)
    theta, gradient = start(), torch_gradient(start())
    state = optimizer.init(theta)
    kept = [x.clone() for x in (theta, gradient, *state.moments)]
    first, _ = optimizer.update(gradient, state, theta, ETA)
    second, _ = optimizer.update(gradient, state, theta, ETA)
    assert torch.equal(first, second)
    assert all(torch.equal(now, before) for now, before in zip((theta, gradient, *state.moments), kept, strict=True))
