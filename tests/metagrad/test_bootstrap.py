"""Bootstrapped meta-gradients against finite differences, whole-graph reverse mode, closed forms, sample by sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical

from metagrad import autodiff
from metagrad.actor_critic import A2cLoss
from metagrad.bootstrap import LastUpdate, Matching, bootstrap_target, kl_divergence, matching_loss
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import meta_gradient, outer_gradient, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import Mlp, Network, SnakeCnn, build_network
from metagrad.optimizers import Adam, RmsProp, Sgd, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update

A2C = A2cLoss(
    gamma=MetaParameter(initial=0.8),
    lambda_=MetaParameter(initial=0.7),
    value_coefficient=MetaParameter(initial=0.5),
    entropy_coefficient=MetaParameter(initial=0.05),
)
DECLARATION = A2C.declaration((), 0)
STEPS, BATCH, ACTIONS = 5, 4, 3
NETWORKS = {"mlp": (Mlp(hidden=6), (3,)), "snake": (SnakeCnn(channels=2, policy_hidden=4, value_hidden=5), (3, 3, 5))}
OPTIMIZERS = {
    "sgd": Sgd(learning_rate=constant(0.1)),
    "rmsprop": RmsProp(learning_rate=constant(0.02)),
    "adam": Adam(learning_rate=constant(0.02)),
}
DIRECTIONS = ("target||online", "online||target")
STATES = ("all", "first")
WARM_UP = 3  # updates before the look-ahead, so that moments and step count are not at their start
OUTER = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")


class Setting:
    """A look-ahead of n updates and a target L updates beyond it; J(η) as a plain map and by the adjoint pass."""

    def __init__(self, make_trajectory, network="mlp", n=3, updates=2, optimizer="sgd", target="sgd", matching=None):
        generator = torch.Generator().manual_seed(11)
        spec, shape = NETWORKS[network]
        self.network = build_network(spec, shape, ACTIONS, True)
        self.n, self.updates, self.matching = n, updates, matching or Matching()
        self.eta = init_eta(DECLARATION, torch.float64)
        self.problem = InnerProblem(self.inner_loss, OPTIMIZERS[optimizer])
        self.target_optimizer = OPTIMIZERS[target]
        many = [make_trajectory(generator, STEPS, BATCH, shape, ACTIONS) for _ in range(n + updates + 1)]
        self.batches, self.target_batches, self.matching_batch = many[:n], many[n:-1], many[-1]
        self.theta = self.network.init(generator).to(torch.float64)
        self.theta += 0.1 * torch.randn(self.theta.shape, generator=generator, dtype=torch.float64)
        self.state = self.problem.optimizer.init(self.theta)
        self.target_state = self.target_optimizer.init(self.theta)
        for _ in range(WARM_UP):
            update = inner_update(self.problem, self.theta, self.state, self.eta, self.matching_batch, keep_graph=False)
            self.theta, self.state = update.theta, update.state
            self.target_state = self.target(self.theta, self.state, self.eta).state

    def inner_loss(self, theta, eta, batch):
        hyper = hyperparameters(DECLARATION, eta)
        return A2C.inner_loss(self.network, theta, hyper, batch, SURROGATES["lvc"], OUTER)

    def outer_loss(self, theta, batch):
        return A2C.outer_loss(self.network, theta, {}, batch, OUTER)

    def target(self, theta, state, eta):
        return bootstrap_target(
            self.problem,
            self.outer_loss,
            theta,
            state,
            eta,
            self.updates,
            lambda _theta, j: self.target_batches[j],
            LastUpdate(self.target_optimizer, self.target_state),
        )

    def match(self, theta, target):
        return matching_loss(self.network, theta, target, self.matching_batch, self.matching)

    def look_ahead(self, eta, keep_graph=False):
        theta, state, tape = self.theta, self.state, []
        for batch in self.batches:
            update = inner_update(self.problem, theta, state, eta, batch, keep_graph)
            theta, state = update.theta, update.state
            tape.append(update.step)
        return theta, state, tape

    def objective(self, eta):
        """J(η), the target computed anew; only its values are used, `freeze` holds the target at the base point."""
        theta, state, _ = self.look_ahead(eta)
        target = self.target(theta, state, eta).theta
        with torch.no_grad():
            return self.match(theta, target)[0]

    def adjoint(self, product, wants_theta=False):
        theta, state, tape = self.look_ahead(self.eta, product == "retain")
        target = self.target(theta, state, self.eta).theta
        outer = outer_gradient(lambda theta, _batch: self.match(theta, target), theta, None).gradient
        return meta_gradient(self.problem, tape, [None] * (self.n - 1) + [outer], product, wants_theta)

    def reference(self):
        theta, state, _ = self.look_ahead(self.eta)
        target = self.target(theta, state, self.eta).theta
        return reference_meta_gradient(
            self.problem,
            lambda theta, _batch: self.match(theta, target),
            self.theta,
            self.state,
            self.eta,
            self.batches,
            [(0.0, None)] * (self.n - 1) + [(1.0, None)],
        )


@pytest.mark.pairs(
    network=("mlp", "snake"),
    n=(1, 2, 3),
    updates=(1, 2, 3),
    optimizer=tuple(OPTIMIZERS),
    target=tuple(OPTIMIZERS),
    direction=DIRECTIONS,
    value_coefficient=(0.0, 0.4),
    states=STATES,
)
@pytest.mark.thinned(3)
def test_meta_gradient_is_the_derivative_with_the_target_frozen(
    setting,
    freeze,
    finite_differences,
    network,
    n,
    updates,
    optimizer,
    target,
    direction,
    value_coefficient,
    states,
    assert_relative,
):
    problem = setting(
        network=network,
        n=n,
        updates=updates,
        optimizer=optimizer,
        target=target,
        matching=Matching(direction=direction, value_coefficient=value_coefficient, states=states),
    )
    reference = problem.reference()
    for product in ("retain", "recompute"):
        gradient = problem.adjoint(product, wants_theta=True)
        assert_relative(gradient.eta, reference.eta, 1e-10)
        assert_relative(gradient.theta, reference.theta, 1e-10)
    # Every component agrees with whole-graph reverse mode; along one random direction that is the derivative.
    direction = torch.randn(1, len(problem.eta), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = finite_differences(freeze(problem.objective, problem.eta), problem.eta, direction)
    assert_relative(direction @ reference.eta, expected, 1e-6)


def slow_matching(network, theta, target, trajectory, matching):
    """mean KL + c mean (V_θ̃ - V_θ)², observation by observation."""
    steps = {"all": range(STEPS), "first": [0]}[matching.states]
    rows = [(t, b) for t in steps for b in range(BATCH) if trajectory.valid[t, b]]
    total = 0.0
    for t, b in rows:
        observation = trajectory.observation[t, b].unsqueeze(0)
        online, aim = (network.apply(x, observation, ("logits", "value")) for x in (theta, target))
        pi, pi_target = (Categorical(logits=x["logits"][0]) for x in (online, aim))
        first, second = (pi_target, pi) if matching.direction == "target||online" else (pi, pi_target)
        total = total + torch.distributions.kl_divergence(first, second)
        total = total + matching.value_coefficient * (aim["value"][0] - online["value"][0]) ** 2
    return total / len(rows)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("value_coefficient", [0.0, 0.4])
@pytest.mark.parametrize("states", STATES)
def test_matching_loss_observation_by_observation(setting, direction, value_coefficient, states, assert_relative):
    problem = setting(matching=Matching(direction=direction, value_coefficient=value_coefficient, states=states))
    valid = problem.matching_batch.valid.clone()
    valid[0, 1] = False  # a first row that only resets
    problem.matching_batch = problem.matching_batch._replace(valid=valid)
    target = problem.target(problem.theta, problem.state, problem.eta).theta
    theta = problem.theta.clone().requires_grad_()
    loss, metrics = problem.match(theta, target)
    expected = slow_matching(problem.network, theta, target, problem.matching_batch, problem.matching)
    assert_relative(loss.detach(), expected.detach(), 1e-10)  # a small KL is a difference of larger numbers
    actual, wanted = (torch.autograd.grad(x, theta)[0] for x in (loss, expected))
    assert_relative(actual, wanted, 1e-12)
    total = metrics.kl_divergence + value_coefficient * metrics.value_distance
    torch.testing.assert_close(loss.detach(), total, rtol=1e-15, atol=0.0)
    assert (metrics.value_distance != 0.0) == (value_coefficient != 0.0)
    assert not metrics.kl_divergence.requires_grad
    assert not metrics.value_distance.requires_grad


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_of_each_direction(setting, finite_differences, direction, assert_relative):
    problem = setting(matching=Matching(direction=direction, value_coefficient=0.4))
    target = problem.theta + 0.3
    gradient = outer_gradient(lambda theta, _: problem.match(theta, target), problem.theta, None).gradient
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, len(target), generator=generator, dtype=torch.float64)
    expected = finite_differences(lambda theta: problem.match(theta, target)[0], problem.theta, directions)
    assert_relative(directions @ gradient, expected, 1e-6)


def test_without_value_matching_no_critic_is_evaluated(setting, monkeypatch):
    problem, heads = setting(), []
    apply = problem.network.apply
    monkeypatch.setattr(problem.network, "apply", lambda theta, x, h: heads.append(tuple(h)) or apply(theta, x, h))
    problem.match(problem.theta, problem.theta)
    assert heads == [("logits",), ("logits",)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_target_carries_no_derivative(setting, direction):
    problem = setting(matching=Matching(direction=direction, value_coefficient=0.4))
    theta = problem.theta.clone().requires_grad_()
    target = theta + 0.1  # a target that still has its graph
    (attached,) = torch.autograd.grad(problem.match(theta, target)[0], theta)
    (expected,) = torch.autograd.grad(problem.match(theta, target.detach())[0], theta)
    assert torch.equal(attached, expected)
    leaf = target.detach().requires_grad_()
    loss = problem.match(theta, leaf)[0]
    assert torch.autograd.grad(loss, leaf, allow_unused=True) == (None,)


def test_the_target_is_stopped_where_every_constant_is(setting, monkeypatch):
    problem = setting()
    theta = problem.theta.clone().requires_grad_()
    stopped = outer_gradient(lambda theta, _: problem.match(theta, theta + 0.1), theta, None).gradient
    monkeypatch.setattr(autodiff, "stop_gradient", lambda x: x)
    leaking = outer_gradient(lambda theta, _: problem.match(theta, theta + 0.1), theta, None).gradient
    assert (leaking - stopped).norm() > 1e-2 * stopped.norm()


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("target", list(OPTIMIZERS))
def test_target_is_made_of_plain_updates_bitwise(setting, updates, target):
    problem = setting(updates=updates, optimizer="adam", target=target)
    theta, moving = problem.theta, problem.state
    for batch in problem.target_batches[:-1]:
        leaf = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.inner_loss(leaf, problem.eta, batch)[0], leaf)
        theta, moving = problem.problem.optimizer.update(gradient, moving, theta, problem.eta)
    outer = outer_gradient(problem.outer_loss, theta, problem.target_batches[-1])
    theta, state = problem.target_optimizer.update(outer.gradient, problem.target_state, theta, problem.eta)

    actual = problem.target(problem.theta, problem.state, problem.eta)
    assert torch.equal(actual.theta, theta)
    assert actual.state.updates == state.updates == problem.target_state.updates + 1
    assert all(torch.equal(x, y) for x, y in zip(actual.state.moments, state.moments, strict=True))
    assert torch.equal(actual.outer_loss, outer.loss)
    assert torch.equal(actual.metrics, outer.metrics)


def test_without_an_optimizer_of_its_own_the_last_update_goes_on(setting):
    problem = setting(updates=3, optimizer="adam")
    arguments = (problem.problem, problem.outer_loss, problem.theta, problem.state, problem.eta)
    target = bootstrap_target(*arguments, 3, lambda _theta, j: problem.target_batches[j])
    before = bootstrap_target(*arguments, 1, lambda _theta, _j: problem.target_batches[0])  # one update, from θₙ
    assert before.state.updates == problem.state.updates + 1
    assert target.state.updates == problem.state.updates + 3
    problem.updates, problem.target_optimizer, problem.target_state = 1, problem.problem.optimizer, problem.state
    problem.target_batches = problem.target_batches[:1]
    same = problem.target(problem.theta, problem.state, problem.eta)
    assert torch.equal(before.theta, same.theta), "with one update it is the state that decides"


@pytest.mark.parametrize(("n", "updates"), [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_the_whole_graph_in_the_papers_notation(setting, n, updates, assert_relative):
    """Debiasing paper's release: L - 1 inner updates with the look-ahead's RMSProp, one outer with a ν of its own."""
    problem = setting(n=n, updates=updates, optimizer="rmsprop", target="rmsprop")
    alpha, rho, eps = 0.02, 0.9, 1e-8

    def rmsprop(theta, nu, gradient):
        nu = rho * nu + (1 - rho) * gradient**2
        return theta - alpha * gradient / (nu + eps) ** 0.5, nu

    eta = problem.eta.clone().requires_grad_()
    theta, (nu,) = problem.theta.clone().requires_grad_(), problem.state.moments
    for tau in problem.batches:
        (gradient,) = torch.autograd.grad(problem.inner_loss(theta, eta, tau)[0], theta, create_graph=True)
        theta, nu = rmsprop(theta, nu, gradient)
    target = theta
    for tau in problem.target_batches[:-1]:
        (gradient,) = torch.autograd.grad(problem.inner_loss(target, eta, tau)[0], target, create_graph=True)
        target, nu = rmsprop(target, nu, gradient)
    (gradient,) = torch.autograd.grad(problem.outer_loss(target, problem.target_batches[-1])[0], target)
    target, own_nu = rmsprop(target, problem.target_state.moments[0], gradient)
    pi, pi_target = (
        torch.log_softmax(
            problem.network.apply(x, problem.matching_batch.observation[:-1].flatten(0, 1), ("logits",))["logits"], -1
        )
        for x in (theta, target.detach())
    )
    kl = (pi_target.exp() * (pi_target - pi)).sum(-1)
    (expected,) = torch.autograd.grad(kl[problem.matching_batch.valid.flatten()].mean(), eta)
    theta, state, _ = problem.look_ahead(problem.eta)
    assert_relative(problem.target(theta, state, problem.eta).state.moments[0], own_nu.detach(), 1e-12)
    for product in ("retain", "recompute"):
        assert_relative(problem.adjoint(product).eta, expected, 1e-12)


def test_target_is_pure_and_has_no_graph(setting):
    problem = setting(updates=3, target="adam")
    theta, eta = problem.theta.clone().requires_grad_(), problem.eta.clone().requires_grad_()
    before = [x.clone() for x in (theta, eta, *problem.target_state.moments)]
    target = problem.target(theta, problem.state, eta)
    results = (target.theta, target.outer_loss, *target.state.moments)
    assert not any(x.requires_grad for x in results)
    assert all(torch.equal(x, y) for x, y in zip((theta, eta, *problem.target_state.moments), before, strict=True))
    assert torch.equal(problem.target(theta, problem.state, eta).theta, target.theta)


def test_every_update_of_the_target_has_its_own_batch(setting):
    problem, seen = setting(updates=3), []

    def sampler(theta, j):
        seen.append((theta, j))
        return problem.target_batches[j]

    arguments = (problem.problem, problem.outer_loss, problem.theta, problem.state, problem.eta)
    target = bootstrap_target(*arguments, 3, sampler)
    assert [j for _, j in seen] == [0, 1, 2]
    problem.updates = 1
    problem.outer_loss = lambda theta, batch: problem.inner_loss(theta, problem.eta, batch)
    first = problem.target(problem.theta, problem.state, problem.eta).theta
    assert torch.equal(seen[0][0], problem.theta)
    assert torch.equal(seen[1][0], first), "sampled with the parameters that the update starts from"
    assert not torch.equal(seen[2][0], target.theta)


class LinearSoftmax(nn.Module):
    """logits = W φ."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ACTIONS, 3))

    def forward(self, observation, heads):
        assert tuple(heads) == ("logits",)
        return {"logits": observation @ self.weight.T}


@pytest.mark.parametrize("rows", ["all", "initial"])
def test_linear_softmax_policy_in_closed_form(make_trajectory, rows):
    # One SGD step on L' = -mean A log π: θ̃ = θ + α mean A (1_a - π) φᵀ; ∂KL(π_θ̃ || π_θ)/∂θ = mean (π_θ - π_θ̃) φᵀ.
    generator = torch.Generator().manual_seed(2)
    network, rate = Network(LinearSoftmax()), 0.5
    theta = torch.randn(ACTIONS * 3, generator=generator, dtype=torch.float64)
    sampled, matched = (make_trajectory(generator, STEPS, BATCH, (3,), ACTIONS) for _ in range(2))
    if rows == "initial":
        matched = matched._replace(valid=torch.zeros_like(matched.valid).index_fill(0, torch.tensor([0]), True))

    def policy_gradient(theta, batch):
        logits = network.apply(theta, batch.observation[:-1].flatten(0, 1), ("logits",))["logits"]
        log_prob = Categorical(logits=logits).log_prob(batch.action.flatten())
        return -(batch.reward.flatten() * log_prob).mean(), None

    problem = InnerProblem(lambda theta, _eta, batch: policy_gradient(theta, batch), Sgd(learning_rate=constant(rate)))
    state, eta = problem.optimizer.init(theta), torch.zeros(0, dtype=torch.float64)
    target = bootstrap_target(problem, policy_gradient, theta, state, eta, 1, lambda _theta, _j: sampled).theta

    def matrix(flat):
        return flat.view(ACTIONS, 3)

    features = sampled.observation[:-1].flatten(0, 1)
    pi = torch.softmax(features @ matrix(theta).T, -1)
    score = torch.eye(ACTIONS, dtype=torch.float64)[sampled.action.flatten()] - pi
    step = (sampled.reward.flatten().unsqueeze(-1) * score).T @ features / len(features)
    torch.testing.assert_close(matrix(target), matrix(theta) + rate * step, rtol=1e-13, atol=1e-15)

    gradient = outer_gradient(
        lambda theta, batch: matching_loss(network, theta, target, batch, Matching()), theta, matched
    ).gradient
    features = matched.observation[:-1][matched.valid]
    pi, pi_target = (torch.softmax(features @ matrix(x).T, -1) for x in (theta, target))
    torch.testing.assert_close(matrix(gradient), (pi - pi_target).T @ features / len(features), rtol=1e-12, atol=1e-16)


def test_rows_that_do_not_count_change_nothing(setting):
    problem = setting(matching=Matching(value_coefficient=0.4))
    target = problem.theta + 0.3
    batch, rows = problem.matching_batch, torch.zeros(STEPS, BATCH, dtype=torch.bool)
    rows[0] = True
    initial = matching_loss(problem.network, problem.theta, target, batch._replace(valid=rows), problem.matching)[0]
    observation = batch.observation.clone()
    observation[1:] += 10.0  # the bootstrap row among them
    other = batch._replace(observation=observation, valid=rows)
    assert torch.equal(matching_loss(problem.network, problem.theta, target, other, problem.matching)[0], initial)
    nothing = batch._replace(valid=torch.zeros_like(rows))
    assert matching_loss(problem.network, problem.theta, target, nothing, problem.matching)[0] == 0.0


logits = st.lists(st.floats(-30.0, 30.0), min_size=2 * ACTIONS, max_size=2 * ACTIONS).map(
    lambda x: torch.tensor(x, dtype=torch.float64).view(2, 1, 1, ACTIONS)
)


@given(logits)
def test_kl_of_categorical_distributions(pair):
    # 4 ulp of the largest term: every term p (log p - log q) is at most 60 + log 3.
    rounding = 4 * 64 * torch.finfo(torch.float64).eps
    p, q = pair
    actual = kl_divergence(p, q)
    assert actual.shape == (1, 1)
    expected = torch.distributions.kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=rounding)
    assert (actual >= -rounding).all()
    assert (kl_divergence(p, p) == 0.0).all()


@given(logits)
def test_kl_gradients_in_closed_form(pair):
    # ∂KL(p||q)/∂x_q = q - p; ∂KL(p||q)/∂x_p = p (log p - log q - KL).
    p, q = (x.clone().requires_grad_() for x in pair)
    kl = kl_divergence(p, q)
    in_p, in_q = torch.autograd.grad(kl.sum(), (p, q))
    with torch.no_grad():
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        torch.testing.assert_close(in_q, log_q.exp() - log_p.exp(), rtol=0.0, atol=1e-15)
        expected = log_p.exp() * (log_p - log_q - kl.unsqueeze(-1))
        torch.testing.assert_close(in_p, expected, rtol=0.0, atol=4 * 64 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("blocked", [-torch.inf, -2000.0])
def test_kl_where_an_action_has_probability_zero(blocked):
    p, q = (
        torch.tensor([[[0.3, -0.2, blocked]]], dtype=torch.float64).requires_grad_(),
        torch.tensor([[[0.1, 0.5, -torch.inf]]], dtype=torch.float64).requires_grad_(),
    )
    kl = kl_divergence(p, q)
    short_p, short_q = (x.detach()[..., :2].requires_grad_() for x in (p, q))
    expected = kl_divergence(short_p, short_q)
    torch.testing.assert_close(kl, expected, rtol=1e-15, atol=0.0)
    for gradient, short in zip(
        torch.autograd.grad(kl.sum(), (p, q)), torch.autograd.grad(expected.sum(), (short_p, short_q)), strict=True
    ):
        torch.testing.assert_close(gradient[..., :2], short, rtol=1e-14, atol=1e-16)
        assert gradient[0, 0, 2] == 0.0
    finite = torch.zeros(1, 1, 3, dtype=torch.float64)
    assert kl_divergence(finite, q) == torch.inf


@given(st.integers(0, 2**31 - 1), st.sampled_from(DIRECTIONS), st.sampled_from([0.0, 0.5]), st.floats(0.0, 3.0))
def test_distance_is_never_negative_and_flat_at_the_target(make_trajectory, seed, direction, coefficient, scale):
    generator = torch.Generator().manual_seed(seed)
    network = build_network(Mlp(hidden=3), (3,), ACTIONS, False)
    theta, offset = torch.randn(2, network.layout.size, generator=generator, dtype=torch.float64)
    batch = make_trajectory(generator)
    matching = Matching(direction=direction, value_coefficient=coefficient)
    # Rounding: log-probabilities here are below 100 in size.
    assert matching_loss(network, theta, theta + scale * offset, batch, matching)[0] >= -1e-13
    at_target = outer_gradient(lambda x, b: matching_loss(network, x, theta, b, matching), theta, batch)
    assert at_target.loss == 0.0
    assert at_target.gradient.norm() <= 1e-14


def test_a_target_on_the_spot_gives_no_meta_gradient(setting):
    # The outer loss flat at θₙ: BMG's fixed point.
    problem = setting(n=2, updates=1)
    problem.outer_loss = lambda theta, _batch: (0.0 * theta.sum(), theta.new_zeros(()))
    assert problem.adjoint("retain").eta.norm() <= 1e-15


def test_wrong_coefficients_are_refused():
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match=r"matching\.value_coefficient"):
            Matching(value_coefficient=value)


@pytest.mark.parametrize("updates", [0, -1])
def test_a_target_needs_an_update(setting, updates):
    problem = setting(updates=1)
    problem.updates = updates
    with pytest.raises(ConfigurationError, match=r"bootstrap\.updates"):
        problem.target(problem.theta, problem.state, problem.eta)
