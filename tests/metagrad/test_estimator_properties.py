"""Checks what holds between estimators whatever the problem: random MDPs and horizons, n, κ, μ, optimizers.

Data are random rewards of the MDP: fresh for each unroll and each update, so that no two steps and no two copies agree.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights, reference_meta_gradient
from metagrad.monte_carlo import LookAhead, unroll_gradients
from metagrad.optimizers import Adam, ClipByGlobalNorm, RmsProp, Sgd, constant
from metagrad.tabular import TabularMdp, objective, policy_gradient, with_intrinsic_reward
from metagrad.unroll import InnerProblem, inner_update

RATE = 0.3
OPTIMIZERS = {
    "sgd": Sgd(learning_rate=constant(RATE)),
    "learnt-rate": Sgd(learning_rate=lambda _count, eta: RATE * eta[:1].exp()),
    "momentum": Sgd(learning_rate=constant(RATE), momentum=0.9),
    "rmsprop": RmsProp(learning_rate=constant(0.02), eps=1e-3),
    "adam": Adam(learning_rate=constant(0.02), eps=1e-3),
    "clipped": ClipByGlobalNorm(max_norm=0.1, optimizer=Sgd(learning_rate=constant(RATE))),
}


class Setting:
    """A random MDP, θ₀, an intrinsic reward φ, and rewards for N unrolls of n updates."""

    def __init__(self, seed, states, actions, gamma, horizon, n, copies=2):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.mdp = TabularMdp(
            transition=torch.softmax(1.5 * normal(states, actions, states), dim=-1),
            reward=normal(states, actions),
            initial=torch.softmax(normal(states), dim=-1),
            gamma=gamma,
            horizon=horizon,
        )
        self.theta, self.phi = normal(states * actions), 0.5 * normal(states * actions)
        self.n, self.copies = n, copies
        self.rewards = [normal(copies, states, actions) for _ in range(n + 1)]

    def with_reward(self, reward):
        return self.mdp._replace(reward=self.mdp.reward + reward)

    def inner_loss(self, theta, phi, reward):
        return -objective(with_intrinsic_reward(self.with_reward(reward), phi), theta), None

    def linear_loss(self, theta, phi, reward):
        """-J linearised at θ₀: a policy-gradient step with no Hessian."""
        slope = policy_gradient(with_intrinsic_reward(self.with_reward(reward), phi), self.theta)
        return -(theta @ slope), None

    def outer_loss(self, theta, reward):
        return -objective(self.with_reward(reward), theta), None

    def start(self, problem):
        """(θ₀, optimizer state) of an optimizer in mid-run, its moments and count away from 0."""
        state, reward = problem.optimizer.init(self.theta), torch.zeros_like(self.mdp.reward)
        update = inner_update(problem, self.theta, state, self.phi, reward, keep_graph=False)
        return update.theta, update.state

    def many(self, problem, weights, copies=None, **options):
        """Meta-gradients of all copies (or of the first few) as one batched problem."""
        copies = self.copies if copies is None else copies
        start = *self.start(problem), self.phi
        look_ahead = LookAhead(weights, wants_theta=True, **options)
        return unroll_gradients(
            problem, self.outer_loss, lambda _theta, j: self.rewards[j][:copies], start, look_ahead, copies
        )

    def plain(self, problem, weights, k, product, trace=None):
        """(meta-gradient, tape, outer gradients) of copy k by the plain loop of a learner."""
        (theta, state), tape, outer = self.start(problem), [], []
        for i, weight in enumerate(weights):
            update = inner_update(problem, theta, state, self.phi, self.rewards[i][k], product == "retain")
            theta, state = update.theta, update.state
            tape.append(update.step)
            gradient = outer_gradient(self.outer_loss, theta, self.rewards[i + 1][k]).gradient
            outer.append(weight * gradient if weight else None)
        return meta_gradient(problem, tape, outer, product, wants_theta=True, trace=trace), tape, outer


SETTINGS = st.builds(
    Setting,
    seed=st.integers(0, 2**31),
    states=st.integers(1, 4),
    actions=st.integers(2, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.9]),
    horizon=st.one_of(st.none(), st.integers(1, 4)),
    n=st.integers(1, 4),
)
UNIT = st.floats(0.0, 1.0)
NAMES = st.sampled_from(tuple(OPTIMIZERS))
PRODUCTS = st.sampled_from(("retain", "recompute"))
MAYBE_TRACE = st.one_of(st.none(), UNIT)
some = settings(max_examples=12)  # each is several whole unrolls; all six optimizers and both products are among them


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, trace=MAYBE_TRACE)
def test_kappa_zero_is_the_one_step_estimator_bit_by_bit(setting, optimizer, product, trace):
    problem = InnerProblem(setting.inner_loss, OPTIMIZERS[optimizer])
    mixed = setting.many(problem, outer_weights("mix", setting.n, 0.0), product=product, trace=trace)
    one_step = setting.many(problem, outer_weights("n-step", 1), product=product, trace=trace)
    assert torch.equal(mixed.eta, one_step.eta)
    assert torch.equal(mixed.theta, one_step.theta)


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, kappa=UNIT, trace=MAYBE_TRACE)
def test_mix_is_the_weighted_mean_of_the_i_step_estimators(setting, optimizer, product, kappa, trace):
    problem, n = InnerProblem(setting.inner_loss, OPTIMIZERS[optimizer]), setting.n
    mixed = setting.many(problem, outer_weights("mix", n, kappa), product=product, trace=trace)
    i_step = [setting.many(problem, outer_weights("n-step", i), product=product, trace=trace) for i in range(1, n + 1)]
    shares = [kappa**i / sum(kappa**j for j in range(n)) for i in range(n)]  # eq. 10
    assert_equal(mixed.eta, sum(share * each.eta for share, each in zip(shares, i_step, strict=True)))
    assert_equal(mixed.theta, sum(share * each.theta for share, each in zip(shares, i_step, strict=True)))


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, kappa=UNIT)
def test_trace_with_mu_one_and_no_hessian_is_exact_bit_by_bit(setting, optimizer, product, kappa):
    problem = InnerProblem(setting.linear_loss, OPTIMIZERS[optimizer])
    for weights in (outer_weights("n-step", setting.n), outer_weights("mix", setting.n, kappa)):
        traced = setting.many(problem, weights, product=product, trace=1.0)
        exact = setting.many(problem, weights, product=product)
        assert torch.equal(traced.eta, exact.eta)
        assert torch.equal(traced.theta, exact.theta)


@some
@given(setting=SETTINGS, product=PRODUCTS, kappa=UNIT, mu=UNIT)
def test_trace_is_the_formula_of_the_paper(setting, product, kappa, mu):
    # "One Step at a Time" D.1 under the weights of eq. 10: Σᵢ wᵢ Tᵢ Σⱼ₌₁ⁱ μʲ⁻¹ Nᵢ₋ⱼ with whole Jacobians N.
    problem, weights = InnerProblem(setting.inner_loss, OPTIMIZERS["sgd"]), outer_weights("mix", setting.n, kappa)
    many = setting.many(problem, weights, product=product, trace=mu)
    for k in range(setting.copies):
        _, tape, outer = setting.plain(problem, _scored(weights), k, product="recompute")
        direct = []
        for step in tape:
            gradient = torch.func.grad(lambda theta, phi, r=step.batch: setting.inner_loss(theta, phi, r)[0])
            direct.append(-RATE * torch.func.jacrev(gradient, argnums=1)(step.theta, step.eta))
        terms = [mu ** (j - 1) * outer[i - 1] @ direct[i - j] for i in range(1, len(tape) + 1) for j in range(1, i + 1)]
        assert_equal(many.eta[k], sum(terms))
        assert_equal(many.theta[k], sum(mu**i * gradient for i, gradient in enumerate(outer, start=1)))


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, kappa=UNIT, trace=MAYBE_TRACE)
def test_one_copy_is_the_plain_estimator(setting, optimizer, product, kappa, trace):
    problem, weights = InnerProblem(setting.inner_loss, OPTIMIZERS[optimizer]), outer_weights("mix", setting.n, kappa)
    one = setting.many(problem, weights, copies=1, product=product, trace=trace)
    plain, _, _ = setting.plain(problem, _scored(weights), 0, product, trace)
    assert_equal(one.eta[0], plain.eta)
    assert_equal(one.theta[0], plain.theta)


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS)
def test_copies_know_nothing_of_one_another(setting, optimizer, product):
    problem, weights = InnerProblem(setting.inner_loss, OPTIMIZERS[optimizer]), outer_weights("n-step", setting.n)
    both = setting.many(problem, weights, product=product)
    setting.rewards = [reward.clone() for reward in setting.rewards]
    for reward in setting.rewards:
        reward[1] *= 3.0
    other = setting.many(problem, weights, product=product)
    assert torch.equal(other.eta[0], both.eta[0])
    assert torch.equal(other.theta[0], both.theta[0])
    assert not torch.equal(other.theta[1], both.theta[1])


@some
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, kappa=UNIT, trace=MAYBE_TRACE)
def test_a_split_into_one_loss_twice_is_no_split(setting, optimizer, product, kappa, trace):
    inner, weights = OPTIMIZERS[optimizer], outer_weights("mix", setting.n, kappa)
    whole = InnerProblem(setting.inner_loss, inner)
    split = InnerProblem(setting.inner_loss, inner, setting.inner_loss)
    for k in range(setting.copies):
        (one, steps, _), (other, others, _) = (
            setting.plain(problem, _scored(weights), k, product, trace) for problem in (whole, split)
        )
        assert all(torch.equal(x.theta, y.theta) for x, y in zip(steps, others, strict=True))
        assert torch.equal(one.eta, other.eta)
        assert torch.equal(one.theta, other.theta)


@some
@example(setting=Setting(0, 3, 2, 0.9, None, 3), optimizer="adam", product="retain", kappa=0.5)
@given(setting=SETTINGS, optimizer=NAMES, product=PRODUCTS, kappa=UNIT)
def test_a_split_equals_differentiating_through_all_steps(setting, optimizer, product, kappa):
    def smaller(theta, phi, reward):
        return 0.5 * setting.inner_loss(theta, phi, reward)[0] + theta.pow(3).sum() * phi.sum(), None

    problem = InnerProblem(setting.inner_loss, OPTIMIZERS[optimizer], smaller)
    weights = outer_weights("mix", setting.n, kappa)
    many = setting.many(problem, weights, product=product)
    for k in range(setting.copies):
        reference = reference_meta_gradient(
            problem,
            setting.outer_loss,
            *setting.start(problem),
            setting.phi,
            [reward[k] for reward in setting.rewards[:-1]],
            [(weight, reward[k]) for weight, reward in zip(weights, setting.rewards[1:], strict=True)],
        )
        assert_equal(many.eta[k], reference.eta)
        assert_equal(many.theta[k], reference.theta)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_the_trace_is_an_approximation_where_there_is_curvature(mu):
    setting = Setting(0, states=3, actions=2, gamma=0.9, horizon=None, n=3)
    problem = InnerProblem(setting.inner_loss, OPTIMIZERS["sgd"])
    weights = outer_weights("n-step", 3)
    exact, traced = setting.many(problem, weights).eta, setting.many(problem, weights, trace=mu).eta
    assert (traced - exact).norm() > 1e-2 * exact.norm()


def _scored(weights):
    """Without the zeros behind the last weight that is not 0: nothing is unrolled for them."""
    return weights[: max(i for i, weight in enumerate(weights, start=1) if weight)]
