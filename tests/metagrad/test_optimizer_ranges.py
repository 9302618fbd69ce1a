"""Optimizers at the ends of the floating-point range, and what they refuse."""

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.meta_gradient import meta_gradient
from metagrad.optimizers import Adam, ClipByGlobalNorm, OptimizerState, RmsProp, Sgd, constant, linear_annealing
from metagrad.unroll import InnerProblem, inner_update

NO_ETA = torch.zeros(0)
ADAPTIVE = {
    "adam": Adam(learning_rate=constant(0.1)),
    "adam-eps-root": Adam(learning_rate=constant(0.1), eps=0.0, eps_root=1e-8),
    "rmsprop": RmsProp(learning_rate=constant(0.1), decay=0.99),
    "rmsprop-eps": RmsProp(learning_rate=constant(0.1), decay=0.99, eps=1e-8, eps_root=0.0),
}


def after(optimizer, gradients, theta):
    state = optimizer.init(theta)
    for gradient in gradients:
        theta, state = optimizer.update(torch.as_tensor(gradient, dtype=theta.dtype), state, theta, NO_ETA)
    return theta


def torch_after(make, gradients):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("large", [1e19, 1e20, -3e20, 1e22, 1e38])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(learning_rate=constant(0.1)), lambda p: torch.optim.Adam(p, lr=0.1)),
        (
            RmsProp(learning_rate=constant(0.1), decay=0.99, eps=1e-8, eps_root=0.0),
            lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.99),
        ),
    ],
    ids=["adam", "rmsprop"],
)
def test_a_gradient_whose_square_overflows_moves_the_parameter_as_in_torch(ours, theirs, large):
    gradients = [[large], [1.0], [1.0]]
    found, expected = after(ours, gradients, torch.zeros(1)), torch_after(theirs, gradients)
    torch.testing.assert_close(found, expected)
    assert found.abs() < 1.1  # RMSProp begins with a step of 10 α


@pytest.mark.parametrize("optimizer", ADAPTIVE.values(), ids=ADAPTIVE)
@pytest.mark.parametrize("large", [1e20, 1e38])
def test_derivatives_after_an_overflow_are_finite_and_right(optimizer, large):
    # Seen by the next gradient g: θ' = θ - α m'(g) / √v'(g), in float64 where nothing overflows.
    def slope(dtype):
        g = torch.ones(1, dtype=dtype, requires_grad=True)
        theta = torch.zeros(1, dtype=dtype)
        theta, state = optimizer.update(torch.full((1,), large, dtype=dtype), optimizer.init(theta), theta, NO_ETA)
        theta, _ = optimizer.update(g * large, state, theta, NO_ETA)
        return torch.autograd.grad(theta, g)[0].double()

    found = slope(torch.float32)
    assert found.isfinite().all()
    if large == 1e20:  # beyond it ν itself has no float32, and nothing moves
        torch.testing.assert_close(found, slope(torch.float64), rtol=1e-4, atol=0.0)


def test_the_meta_gradient_passes_an_overflowing_step():
    # L = g·θ·η: the first inner gradient is 1e20 η, and its square has no float32.
    def loss(theta, eta, batch):
        return (batch * theta * eta).sum(), None

    def gradient(dtype, product):
        problem = InnerProblem(loss, Adam(learning_rate=constant(0.1)))
        theta, eta = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
        state, tape = problem.optimizer.init(theta), []
        for size in (1e20, 1e19):
            batch = torch.full((1,), size, dtype=dtype)
            update = inner_update(problem, theta, state, eta, batch, keep_graph=product == "retain")
            theta, state = update.theta, update.state
            tape.append(update.step)
        return meta_gradient(problem, tape, [torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype)], product).eta

    for product in ("retain", "recompute"):
        assert gradient(torch.float32, product).isfinite().all()
        exact = gradient(torch.float64, product)
        torch.testing.assert_close(gradient(torch.float32, product).double(), exact, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ADAPTIVE.values(), ids=ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradients", [[[0.0]], [[0.0], [0.5]], [[300.0], [1.0]], [[1e-4], [1e-4]]])
def test_half_precision_follows_float32(optimizer, dtype, gradients):
    found, exact = after(optimizer, gradients, torch.zeros(1, dtype=dtype)), after(optimizer, gradients, torch.zeros(1))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=1e-4)


def old_adam(optimizer, gradient, state, theta):
    """The formula of ordinary gradients, alone."""
    count = state.updates + 1
    first = torch.lerp(gradient, state.moments[0], optimizer.beta1)
    second = torch.lerp(gradient.square(), state.moments[1], optimizer.beta2)
    correction = 1.0 - optimizer.beta2**count
    root = (second + optimizer.eps_root * correction).sqrt() if optimizer.eps_root else second.sqrt()
    denominator = root + optimizer.eps * correction**0.5
    step_size = 0.1 * correction**0.5 / (1.0 - optimizer.beta1**count)
    return theta - step_size * first / denominator, OptimizerState(count, (first, second))


def old_rms_prop(optimizer, gradient, state, theta):
    second = torch.lerp(gradient.square(), state.moments[0], optimizer.decay)
    root = (second + optimizer.eps_root).sqrt() if optimizer.eps_root else second.sqrt()
    return theta - 0.1 * (gradient / (root + optimizer.eps)), OptimizerState(state.updates + 1, (second,))


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinary_gradients_keep_their_bits(name, dtype):
    optimizer, old = ADAPTIVE[name], old_adam if name.startswith("adam") else old_rms_prop
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(1000, generator=generator, dtype=dtype)
    expected, state = theta, optimizer.init(theta)
    old_state = state
    for _ in range(5):
        scale = 10.0 ** torch.randint(-12, 12, (1000,), generator=generator)
        gradient = (torch.randn(1000, generator=generator, dtype=dtype) * scale).to(dtype)
        leaf, old_leaf = gradient.clone().requires_grad_(), gradient.clone().requires_grad_()
        theta, state = optimizer.update(leaf, state, theta, NO_ETA)
        expected, old_state = old(optimizer, old_leaf, old_state, expected)
        assert torch.equal(theta, expected)
        (slope,) = torch.autograd.grad(theta.sum(), leaf)
        assert torch.equal(slope, torch.autograd.grad(expected.sum(), old_leaf)[0])
        theta, expected = theta.detach(), expected.detach()
        state = OptimizerState(state.updates, tuple(x.detach() for x in state.moments))
        old_state = OptimizerState(old_state.updates, tuple(x.detach() for x in old_state.moments))


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e20), (torch.float32, 1e38), (torch.float16, 6e4)])
def test_a_clip_keeps_the_direction_of_a_gradient_whose_norm_overflows(dtype, large):
    clip = ClipByGlobalNorm(max_norm=1.0, optimizer=Sgd(learning_rate=constant(1.0)))
    gradient = torch.tensor([0.6, 0.8]) * large
    found = after(clip, [gradient.tolist()], torch.zeros(2, dtype=dtype))
    torch.testing.assert_close(found.float(), torch.tensor([-0.6, -0.8]), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("make", [Sgd, RmsProp, Adam])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_wider_learning_rate_does_not_widen_theta(make, shape):
    eta = torch.full((1,), 0.1, dtype=torch.float64)
    problem = InnerProblem(
        lambda theta, _eta, _batch: ((theta - 1.0).square().sum(), None),
        make(learning_rate=lambda _count, eta: eta.reshape(shape)),
    )
    theta = torch.zeros(2)
    update = inner_update(problem, theta, problem.optimizer.init(theta), eta, None, keep_graph=True)
    assert update.theta.dtype == torch.float32
    gradient = meta_gradient(problem, [update.step], [torch.ones(2)], "retain").eta
    # θ' = θ - α d: the derivative in α is Σ -d, which is θ'/α from 0.
    torch.testing.assert_close(gradient, update.theta.double().sum().reshape(1) / 0.1, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: constant(-0.1), "learning_rate"),
        (lambda: constant(float("nan")), "learning_rate"),
        (lambda: linear_annealing(0.1, 0), "updates"),
        (lambda: linear_annealing(0.1, -3), "updates"),
        (lambda: linear_annealing(float("inf"), 3), "learning_rate"),
        (lambda: Sgd(learning_rate=constant(0.1), momentum=1.0), "momentum"),
        (lambda: RmsProp(learning_rate=constant(0.1), decay=1.0), "decay"),
        (lambda: RmsProp(learning_rate=constant(0.1), eps_root=-1e-8), "eps_root"),
        (lambda: RmsProp(learning_rate=constant(0.1), eps_root=0.0), "eps, eps_root"),
        (lambda: Adam(learning_rate=constant(0.1), beta1=1.0), "beta1"),
        (lambda: Adam(learning_rate=constant(0.1), beta2=-0.1), "beta2"),
        (lambda: Adam(learning_rate=constant(0.1), eps=float("nan")), "eps"),
        (lambda: ClipByGlobalNorm(max_norm=-1.0, optimizer=Sgd(learning_rate=constant(0.1))), "max_norm"),
        (lambda: ClipByGlobalNorm(max_norm=0.0, optimizer=Sgd(learning_rate=constant(0.1))), "max_norm"),
    ],
)
def test_values_outside_their_ranges_are_refused(make, field):
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        make()


@pytest.mark.parametrize("shape", [(2,), (1, 1), (3, 1)])
def test_a_learning_rate_of_another_shape_is_refused_before_it_broadcasts(shape):
    sgd = Sgd(learning_rate=lambda _count, _eta: torch.full(shape, 0.1))
    with pytest.raises(ConfigurationError, match="learning_rate = 'a tensor of shape"):
        sgd.update(torch.ones(2), sgd.init(torch.ones(2)), torch.ones(2), NO_ETA)
