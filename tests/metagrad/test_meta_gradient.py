"""The meta-gradient against finite differences, whole-graph reverse mode, and closed forms."""

from importlib import import_module

import pytest
import torch

from metagrad.actor_critic import A2cLoss
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import AutoNetwork, Mlp, NatureCnn, SnakeCnn, build_network
from metagrad.observations import MixedShape
from metagrad.optimizers import Adam, ClipByGlobalNorm, OptimizerState, RmsProp, Sgd, constant, linear_annealing
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update

engine = import_module("metagrad.meta_gradient")  # `from metagrad import meta_gradient` is the function
A2C = A2cLoss(
    gamma=MetaParameter(initial=0.8),
    lambda_=MetaParameter(initial=0.7),
    value_coefficient=MetaParameter(initial=0.5),
    entropy_coefficient=MetaParameter(initial=0.05),
)
DECLARATION = A2C.declaration((), 0)
ACTIONS = 3
NETWORKS = {
    "mlp": (Mlp(hidden=6), (3,)),
    "snake": (SnakeCnn(channels=2, policy_hidden=4, value_hidden=5), (3, 3, 5)),
    "nature": (NatureCnn(hidden=3), (1, 36, 36)),
    "mixed": (AutoNetwork(hidden=4, layers=1, picture_hidden=3), MixedShape(((1, 4, 4),), 3)),
    "gru": (Mlp(hidden=4, gru=3), (3,)),
    "gru-separate": (AutoNetwork(hidden=3, layers=1, gru=2), (3,)),
}
OPTIMIZERS = {
    "sgd": lambda rate: Sgd(learning_rate=rate(0.1)),
    "momentum": lambda rate: Sgd(learning_rate=rate(0.1), momentum=0.9),
    "rmsprop": lambda rate: RmsProp(learning_rate=rate(0.02)),
    "rmsprop-eps": lambda rate: RmsProp(learning_rate=rate(0.02), eps=1e-3, eps_root=0.0),
    "adam": lambda rate: Adam(learning_rate=rate(0.02)),
    "adam-eps-root": lambda rate: Adam(learning_rate=rate(0.02), eps_root=1e-6),
}
RATES = {"constant": constant, "annealed": lambda initial: linear_annealing(initial, 12)}
MAX_NORMS = {"unclipped": None, "clipped": 0.3, "clip-inactive": 1e4}
WARM_UP = 3  # updates before the look-ahead, so that moments and step count are not at their start


class Setting:
    """One look-ahead problem: networks, batches, optimizer state in mid-run, and its meta-objective as a plain map."""

    def __init__(
        self,
        make_trajectory,
        network="mlp",
        n=3,
        optimizer=None,
        surrogate="lvc",
        estimator="n-step",
        uses_outer_critic=True,
        declaration=DECLARATION,
        batch=4,
    ):
        generator = torch.Generator().manual_seed(7)
        spec, shape = NETWORKS[network]
        self.network = build_network(spec, shape, ACTIONS, uses_outer_critic)
        self.outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer" if uses_outer_critic else "inner")
        self.optimizer = optimizer or Sgd(learning_rate=constant(0.1))
        self.declaration, self.n = declaration, n
        self.eta = init_eta({k: v for k, v in declaration.items()}, torch.float64)
        self.weights = outer_weights(estimator, n)
        self.problem = InnerProblem(
            lambda theta, eta, batch: A2C.inner_loss(
                self.network, theta, hyperparameters(declaration, eta), batch, SURROGATES[surrogate], self.outer
            ),
            self.optimizer,
        )
        self.batches = [make_trajectory(generator, 5, batch, shape, ACTIONS) for _ in range(n + 1)]
        if size := self.network.state_size:
            states = torch.randn(n + 1, batch, size, generator=generator, dtype=torch.float64)
            states[:, 0] = 0.0  # an episode begins there
            self.batches = [b._replace(first_state=x) for b, x in zip(self.batches, states, strict=True)]
        if network == "nature":
            self.batches = [b._replace(observation=b.observation * 255.0) for b in self.batches]
        if network == "mixed":
            pixels = torch.arange(shape[0]) < shape.sizes[0]
            scale = torch.where(pixels, 255.0, 1.0)
            self.batches = [b._replace(observation=b.observation * scale) for b in self.batches]
        # Wide initial weights: derivatives of every order matter, and no head is near zero.
        self.theta = self.network.init(generator).to(torch.float64)
        self.theta += 0.1 * torch.randn(self.theta.shape, generator=generator, dtype=torch.float64)
        self.state = self.optimizer.init(self.theta)
        for _ in range(WARM_UP):
            update = inner_update(self.problem, self.theta, self.state, self.eta, self.batches[0], keep_graph=False)
            self.theta, self.state = update.theta, update.state

    def outer_loss(self, theta, batch):
        return A2C.outer_loss(self.network, theta, {}, batch, self.outer)

    def objective(self, theta, eta):
        """J(θ₀, η) by n plain updates; only its values are used."""
        state, total = self.state, torch.zeros((), dtype=torch.float64)
        for i in range(self.n):
            update = inner_update(self.problem, theta, state, eta, self.batches[i], keep_graph=False)
            theta, state = update.theta, update.state
            if self.weights[i]:
                with torch.no_grad():
                    total = total + self.weights[i] * self.outer_loss(theta, self.batches[i + 1])[0]
        return total

    def adjoint(self, product, wants_theta=False):
        theta, state, tape, outer_gradients = self.theta, self.state, [], []
        for i in range(self.n):
            update = inner_update(self.problem, theta, state, self.eta, self.batches[i], product == "retain")
            theta, state = update.theta, update.state
            tape.append(update.step)
            weight = self.weights[i]
            outer_gradients.append(
                weight * outer_gradient(self.outer_loss, theta, self.batches[i + 1]).gradient if weight else None
            )
        return meta_gradient(self.problem, tape, outer_gradients, product, wants_theta)

    def reference(self):
        return reference_meta_gradient(
            self.problem,
            self.outer_loss,
            self.theta,
            self.state,
            self.eta,
            self.batches[:-1],
            list(zip(self.weights, self.batches[1:], strict=True)),
        )

    def gradient_norms(self):
        theta, state, norms = self.theta, self.state, []
        for i in range(self.n):
            update = inner_update(self.problem, theta, state, self.eta, self.batches[i], keep_graph=False)
            theta, state = update.theta, update.state
            norms.append(float(update.step.gradient.norm()))
        return norms


@pytest.mark.pairs(
    network=("mlp", "snake", "gru", "gru-separate"),
    uses_outer_critic=(True, False),
    n=(1, 2, 3, 5),
    optimizer=tuple(OPTIMIZERS),
    clip=tuple(MAX_NORMS),
    rate=tuple(RATES),
    surrogate=("ad", "lvc", "loaded-dice"),
    estimator=("n-step", "mix"),
)
@pytest.mark.thinned(3)
def test_meta_gradient_is_the_derivative_of_the_look_ahead(
    setting,
    freeze,
    finite_differences,
    network,
    uses_outer_critic,
    n,
    optimizer,
    clip,
    rate,
    surrogate,
    estimator,
    assert_relative,
):
    inner = OPTIMIZERS[optimizer](RATES[rate])
    max_norm = MAX_NORMS[clip]
    look_ahead = setting(
        network=network,
        n=n,
        surrogate=surrogate,
        estimator=estimator,
        uses_outer_critic=uses_outer_critic,
        optimizer=inner if max_norm is None else ClipByGlobalNorm(max_norm=max_norm, optimizer=inner),
    )
    if max_norm is not None:
        is_active = [norm > max_norm for norm in look_ahead.gradient_norms()]
        assert all(is_active) if clip == "clipped" else not any(is_active)

    reference = look_ahead.reference().eta
    assert_relative(look_ahead.adjoint("retain").eta, reference, 1e-10)
    assert_relative(look_ahead.adjoint("recompute").eta, reference, 1e-10)
    frozen = freeze(lambda eta: look_ahead.objective(look_ahead.theta, eta), look_ahead.eta)
    # Every component agrees with whole-graph reverse mode; along one random direction that is the derivative.
    direction = torch.randn(1, len(reference), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert_relative(direction @ reference, finite_differences(frozen, look_ahead.eta, direction), 1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
@pytest.mark.thinned(3)
def test_meta_gradient_from_a_fresh_optimizer_state(setting, freeze, finite_differences, optimizer, assert_relative):
    look_ahead = setting(optimizer=OPTIMIZERS[optimizer](constant), n=2)
    look_ahead.state = look_ahead.optimizer.init(look_ahead.theta)
    frozen = freeze(lambda eta: look_ahead.objective(look_ahead.theta, eta), look_ahead.eta)
    # Adam's and RMSProp's first step is nearly the gradient's sign, whose derivative lives on the scale of eps.
    expected = finite_differences(frozen, look_ahead.eta, step=1e-2)
    for product in ("retain", "recompute"):
        assert_relative(look_ahead.adjoint(product).eta, expected, 1e-6)


@pytest.mark.parametrize("network", ["nature", "mixed"])
@pytest.mark.parametrize("estimator", ["n-step", "mix"])
def test_meta_gradient_through_a_shared_convolutional_torso(
    setting, freeze, finite_differences, estimator, network, assert_relative
):
    optimizer = ClipByGlobalNorm(max_norm=0.3, optimizer=Adam(learning_rate=constant(1e-3), eps_root=1e-6))
    look_ahead = setting(network=network, n=3, optimizer=optimizer, estimator=estimator, batch=3)
    frozen = freeze(lambda eta: look_ahead.objective(look_ahead.theta, eta), look_ahead.eta)
    reference = look_ahead.reference().eta
    for product in ("retain", "recompute"):
        assert_relative(look_ahead.adjoint(product).eta, reference, 1e-10)
    direction = torch.randn(1, len(reference), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert_relative(direction @ reference, finite_differences(frozen, look_ahead.eta, direction), 1e-6)


@pytest.mark.parametrize(
    ("network", "optimizer"), [("mlp", "momentum"), ("mlp", "rmsprop"), ("mlp", "adam"), ("snake", "rmsprop")]
)
@pytest.mark.thinned(3)
def test_derivative_in_the_initial_parameters(setting, freeze, finite_differences, network, optimizer, assert_relative):
    inner = ClipByGlobalNorm(max_norm=0.3, optimizer=OPTIMIZERS[optimizer](constant))
    look_ahead = setting(network=network, n=3, optimizer=inner, estimator="mix")
    reference = look_ahead.reference()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, len(look_ahead.theta), generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    frozen = freeze(lambda theta: look_ahead.objective(theta, look_ahead.eta), look_ahead.theta)
    expected = finite_differences(frozen, look_ahead.theta, directions, step=1e-2)
    for product in ("retain", "recompute"):
        gradient = look_ahead.adjoint(product, wants_theta=True)
        assert_relative(gradient.theta, reference.theta, 1e-10)
        assert_relative(gradient.eta, reference.eta, 1e-10)
        assert_relative(directions @ gradient.theta, expected, 1e-6)


@pytest.mark.parametrize(
    ("optimizer", "clip"), [("sgd", None), ("momentum", 0.3), ("rmsprop", None), ("adam", 0.3), ("sgd", 0.3)]
)
@pytest.mark.thinned(3)
def test_learnt_learning_rate(setting, freeze, finite_differences, optimizer, clip, assert_relative):
    declaration = DECLARATION | {"learning_rate": MetaParameter(initial=0.02, high=0.1)}

    def rate(_initial):
        return lambda count, eta: hyperparameters(declaration, eta)["learning_rate"] / (1 + count)

    inner = OPTIMIZERS[optimizer](rate)
    look_ahead = setting(
        n=3, declaration=declaration, optimizer=ClipByGlobalNorm(max_norm=clip, optimizer=inner) if clip else inner
    )
    reference = look_ahead.reference().eta
    assert reference[-1].abs() > 1e-3 * reference.norm()
    frozen = freeze(lambda eta: look_ahead.objective(look_ahead.theta, eta), look_ahead.eta)
    expected = finite_differences(frozen, look_ahead.eta)
    for product in ("retain", "recompute"):
        gradient = look_ahead.adjoint(product).eta
        assert_relative(gradient, reference, 1e-10)
        assert_relative(gradient, expected, 1e-6)
        torch.testing.assert_close(gradient[-1], expected[-1], rtol=1e-6, atol=0.0)


def test_trajectories_hold_every_kind_of_row(setting):
    for trajectory in setting(n=5).batches:
        assert trajectory.is_terminal.any()
        assert trajectory.is_truncated.any()
        assert not trajectory.valid.all()
        assert not (trajectory.is_terminal & trajectory.is_truncated).any()
        ends = (trajectory.is_terminal | trajectory.is_truncated)[:-1]
        assert ends[~trajectory.valid[1:]].all(), "an invalid row follows an episode's end"
        assert trajectory.valid[1:][ends].any(), "an episode also follows at once"


def test_ad_and_lvc_differ_from_two_steps_on(setting):
    def gradient(surrogate, n):
        return setting(surrogate=surrogate, n=n).adjoint("retain").eta

    # One step sees g₀ alone, which is the same function of η for both; the Hessians enter with the second step.
    torch.testing.assert_close(gradient("ad", 1), gradient("lvc", 1), rtol=1e-12, atol=0.0)
    ad, lvc = gradient("ad", 2), gradient("lvc", 2)
    assert (ad - lvc).norm() > 1e-3 * lvc.norm()


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_a_meta_parameter_that_no_loss_uses_has_gradient_zero(setting, product):
    declaration = {"unused": MetaParameter(initial=0.3)} | DECLARATION
    gradient = setting(declaration=declaration, n=3).adjoint(product).eta
    assert gradient[0] == 0.0
    assert (gradient[1:] != 0.0).all()
    torch.testing.assert_close(gradient[1:], setting(n=3).adjoint(product).eta, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_nothing_learnt_gives_an_empty_meta_gradient(setting, product):
    declaration = {
        name: MetaParameter(initial=parameter.initial, is_learnt=False) for name, parameter in DECLARATION.items()
    }
    assert setting(declaration=declaration, n=2).adjoint(product).eta.shape == (0,)


def test_single_precision_agrees_with_double(setting, assert_relative):
    look_ahead = setting(n=3, estimator="mix", optimizer=OPTIMIZERS["adam-eps-root"](constant))
    expected = look_ahead.reference().eta
    look_ahead.theta, look_ahead.eta = look_ahead.theta.float(), look_ahead.eta.float()
    look_ahead.state = look_ahead.state._replace(moments=tuple(m.float() for m in look_ahead.state.moments))
    for gradient in (look_ahead.reference(), look_ahead.adjoint("retain"), look_ahead.adjoint("recompute")):
        assert gradient.eta.dtype == torch.float32
        assert_relative(gradient.eta.double(), expected, 1e-4)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_one_quadratic_step_by_hand(product):
    # L = ½ η (θ - 1)², L' = ½ θ², SGD: θ₁ = θ - α η (θ - 1); dJ/dη = -α (θ - 1) θ₁, dJ/dθ = (1 - α η) θ₁.
    problem = InnerProblem(
        lambda theta, eta, _batch: ((0.5 * eta * (theta - 1.0).square()).sum(), None),
        Sgd(learning_rate=constant(0.1)),
    )
    theta, eta = torch.tensor([3.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    update = inner_update(problem, theta, problem.optimizer.init(theta), eta, None, product == "retain")
    theta_1 = 3.0 - 0.1 * 2.0 * 2.0
    assert update.theta.item() == pytest.approx(theta_1, rel=1e-15)
    outer = outer_gradient(lambda theta, _batch: (0.5 * theta.square().sum(), None), update.theta, None).gradient
    gradient = meta_gradient(problem, [update.step], [outer], product, wants_theta=True)
    assert gradient.eta.item() == pytest.approx(-0.1 * 2.0 * theta_1, rel=1e-15)
    assert gradient.theta.item() == pytest.approx((1.0 - 0.1 * 2.0) * theta_1, rel=1e-15)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_loss_linear_in_theta_and_free_of_eta(product):
    problem = InnerProblem(lambda theta, _eta, batch: (theta @ batch, None), Sgd(learning_rate=lambda _count, eta: eta))
    slope, theta = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    eta = torch.tensor([0.5], dtype=torch.float64)
    state, tape, outer = problem.optimizer.init(theta), [], []
    for _ in range(2):
        update = inner_update(problem, theta, state, eta, slope, product == "retain")
        theta, state = update.theta, update.state
        tape.append(update.step)
        outer.append(outer_gradient(lambda theta, _batch: (theta[0], None), theta, None).gradient)
    gradient = meta_gradient(problem, tape, outer, product, wants_theta=True)
    assert gradient.eta.tolist() == [-3.0]  # J = θ₁[0] + θ₂[0] = -η - 2η
    assert gradient.theta.tolist() == [2.0, 0.0]


def tanh_step(theta, eta, batch):
    """L with Hessian and cross derivative away from 0; the batch is a vector."""
    return (torch.tanh(theta * batch).sum() * eta[0].exp() + (theta**4).sum() * eta[1] + theta @ batch), None


def cubic_step(theta, eta, batch):
    return ((theta**3 * batch).sum() * eta[1] + (theta.sum() * eta[0]) ** 2), None


def unrolled(problem, product, n=4, weights=None, **options):
    """(meta-gradient of `n` steps, θ₀, outer gradients, steps)."""
    generator = torch.Generator().manual_seed(3)
    theta, *batches = torch.randn(n + 1, 3, generator=generator, dtype=torch.float64)
    eta = torch.tensor([0.3, -0.4], dtype=torch.float64)
    state, tape, outer_gradients = problem.optimizer.init(theta), [], []
    for batch, weight in zip(batches, weights or (1.0,) * n, strict=True):
        update = inner_update(problem, theta, state, eta, batch, product == "retain")
        theta, state = update.theta, update.state
        tape.append(update.step)
        outer_gradients.append(weight * theta.exp())  # L' = Σ exp θ
    steps = [step._replace(gradient=step.gradient.detach()) for step in tape]
    return meta_gradient(problem, tape, outer_gradients, product, **options), steps, outer_gradients


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
def test_accumulative_trace_is_the_formula_of_the_paper(product, mu, assert_relative):
    # "One Step at a Time" D.1: Σᵢ Tᵢ Σⱼ₌₁ⁱ μʲ⁻¹ Nᵢ₋ⱼ with Nᵢ = -α ∂²L/∂θ∂η at θᵢ, by whole Jacobians.
    gradient, steps, outer_gradients = unrolled(
        InnerProblem(tanh_step, Sgd(learning_rate=constant(0.1))), product, trace=mu
    )
    direct = [
        -0.1
        * torch.func.jacrev(torch.func.jacrev(lambda theta, eta, s=s: tanh_step(theta, eta, s.batch)[0]), 1)(
            s.theta.detach(), s.eta.detach()
        )
        for s in steps
    ]
    expected = sum(
        outer @ sum(mu ** (j - 1) * direct[i - j] for j in range(1, i + 1))
        for i, outer in enumerate(outer_gradients, start=1)
    )
    assert_relative(gradient.eta, expected, 1e-12)
    assert gradient.theta is None


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_trace_without_curvature_is_exact_at_mu_one(optimizer):
    def linear(theta, eta, batch):
        return (theta * batch * torch.stack([eta[0], eta[1], eta[0] * eta[1]])).sum(), None

    problem = InnerProblem(linear, OPTIMIZERS[optimizer](constant))
    for product in ("retain", "recompute"):
        traced = unrolled(problem, product, trace=1.0)[0].eta
        assert torch.equal(traced, unrolled(problem, product)[0].eta)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_trace_at_mu_zero_sees_one_update(optimizer):
    # ∂J/∂η with everything before the last update held constant: a one-step meta-gradient from θₙ₋₁.
    problem, weights = InnerProblem(tanh_step, OPTIMIZERS[optimizer](constant)), (0.0, 0.0, 0.0, 1.0)
    traced, steps, outer_gradients = unrolled(problem, "recompute", weights=weights, trace=0.0)
    last = meta_gradient(problem, steps[-1:], outer_gradients[-1:], "recompute")
    torch.testing.assert_close(traced.eta, last.eta, rtol=1e-14, atol=0.0)


class Decaying:
    """Gradient descent with weight decay: ∂θ'/∂θ is not the identity even without curvature."""

    def init(self, theta):
        return OptimizerState(0, ())

    def update(self, gradient, state, theta, eta):
        return 0.5 * theta - 0.1 * gradient, OptimizerState(state.updates + 1, ())


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_trace_replaces_the_whole_jacobian_of_an_update(product, assert_relative):
    traced, _, outer_gradients = unrolled(
        InnerProblem(tanh_step, Decaying()), product, weights=(0.0, 0.0, 0.0, 1.0), trace=0.7, wants_theta=True
    )
    assert_relative(traced.theta, 0.7**4 * outer_gradients[-1], 1e-14)


def test_trace_never_takes_a_product_in_theta(monkeypatch):
    calls = []
    retained = engine._retained
    monkeypatch.setattr(engine, "_retained", lambda *args: calls.append(args[-1]) or retained(*args))
    unrolled(InnerProblem(tanh_step, Sgd(learning_rate=constant(0.1))), "retain", trace=0.5, wants_theta=True)
    assert calls == [False] * 4


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_value_of_one_loss_and_derivative_of_another(product, optimizer, assert_relative):
    inner = OPTIMIZERS[optimizer](constant)
    values = unrolled(InnerProblem(tanh_step, inner), product)
    split = unrolled(InnerProblem(tanh_step, inner, cubic_step), product, wants_theta=True)
    for step, other in zip(split[1], values[1], strict=True):
        assert torch.equal(step.theta, other.theta), "values come from the first loss alone"

    # θ' = ⊥θ_c + θ_h - ⊥θ_h written out with forward mode, A linearised where the value was taken.
    def tangent(theta_0, eta, direction_theta, direction_eta):
        d_theta, state = direction_theta, inner.init(theta_0)
        d_moments = tuple(torch.zeros_like(m) for m in state.moments)
        total = torch.zeros((), dtype=torch.float64)
        for step, outer in zip(split[1], split[2], strict=True):
            gradient_of = torch.func.grad(lambda theta, eta, b=step.batch: cubic_step(theta, eta, b)[0])
            d_gradient = torch.func.jvp(gradient_of, (step.theta.detach(), eta), (d_theta, direction_eta))[1]

            def update(theta, gradient, moments, eta, state=step.state):
                theta, new = inner.update(gradient, state._replace(moments=moments), theta, eta)
                return theta, new.moments

            at = (step.theta.detach(), step.gradient, step.state.moments, eta)
            along = (d_theta, d_gradient, d_moments, direction_eta)
            d_theta, d_moments = torch.func.jvp(update, at, along)[1]
            total = total + outer @ d_theta
        return total

    eta, zero = split[1][0].eta.detach(), torch.zeros(3, dtype=torch.float64)
    theta_0 = split[1][0].theta.detach()
    basis = torch.eye(3, dtype=torch.float64)
    in_eta = torch.stack([tangent(theta_0, eta, zero, e) for e in basis[:2, :2]])
    in_theta = torch.stack([tangent(theta_0, eta, e, torch.zeros_like(eta)) for e in basis])
    assert_relative(split[0].eta, in_eta, 1e-10)
    assert_relative(split[0].theta, in_theta, 1e-10)
    assert (split[0].eta - values[0].eta).norm() > 1e-2 * values[0].eta.norm()


def test_outer_weights():
    assert outer_weights("trace", 3) == outer_weights("n-step", 3)
    assert outer_weights("n-step", 3) == (0.0, 0.0, 1.0)
    kappa = 2.0 / 3.0  # 1 - 1/n
    assert outer_weights("mix", 3) == pytest.approx([kappa**i * (1 - kappa) / (1 - kappa**3) for i in range(3)])
    assert outer_weights("mix", 4, kappa=1.0) == (0.25,) * 4
    assert outer_weights("mix", 4, kappa=0.0) == (1.0, 0.0, 0.0, 0.0)
    assert outer_weights("mix", 1) == outer_weights("n-step", 1) == (1.0,)
    assert sum(outer_weights("mix", 7, kappa=0.3)) == pytest.approx(1.0)


@pytest.mark.parametrize("estimator", ["n-step", "mix"])
def test_no_look_ahead_leaves_eta_alone(setting, estimator):
    assert outer_weights(estimator, 0) == ()
    gradient = setting(n=0, estimator=estimator).reference()
    assert (gradient.eta == 0.0).all()
    assert (gradient.theta == 0.0).all()


def test_tape_and_outer_gradients_must_match(setting):
    look_ahead = setting(n=1)
    step = inner_update(
        look_ahead.problem, look_ahead.theta, look_ahead.state, look_ahead.eta, look_ahead.batches[0], True
    ).step
    for tape, outer_gradients in (([], []), ([step], []), ([step], [None])):
        with pytest.raises(ConfigurationError, match="outer_gradients"):
            meta_gradient(look_ahead.problem, tape, outer_gradients, "retain")


def test_first_step_takes_no_product_in_theta(setting, monkeypatch):
    calls = []
    retained = engine._retained
    monkeypatch.setattr(engine, "_retained", lambda *args: calls.append(args[-1]) or retained(*args))
    look_ahead = setting(n=3)
    look_ahead.adjoint("retain")
    look_ahead.adjoint("retain", wants_theta=True)
    assert calls == [True, True, False, True, True, True]
