"""Compares estimators of Hessians and meta-gradients in expectation with exact answers of small MDPs.

Two kinds of test. *Enumerated*: the expectation is the sum over every path of a tiny MDP, so theory must hold to
rounding. *Sampled*: the mean of many independent estimates from the library's own unrolls, with fixed seeds; unbiased
means within 4 standard errors in every component, biased means more than 10 away in some.
"""

from itertools import product as cartesian

import pytest
import torch

from metagrad.meta_gradient import outer_weights
from metagrad.monte_carlo import LookAhead, independent, unroll_gradients
from metagrad.optimizers import Sgd, constant
from metagrad.surrogates import SURROGATES, dice, discounted_objective
from metagrad.tabular import (
    TabularMdp,
    ascend,
    compositional_bias_bound,
    exact_loss,
    exact_outer_loss,
    hessian,
    hessian_norm,
    lirpg_meta_gradient,
    log_policy,
    maml_meta_gradient,
    policy,
    policy_gradient,
    state_values,
    with_intrinsic_reward,
)
from metagrad.unroll import InnerProblem, inner_update

ESTIMATORS = ("ad", "lvc", "loaded-dice", "dice")
STANDARD_ERRORS = 4.0  # one of 100 components beyond it, by chance: once in 160 seeds
BIASED = 10.0


def make_mdp(seed, states, actions, horizon):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mdp = TabularMdp(
        transition=torch.softmax(2.0 * normal(states, actions, states), dim=-1),
        reward=normal(states, actions),
        initial=torch.softmax(normal(states), dim=-1),
        gamma=0.9,
        horizon=horizon,
    )
    return mdp, 0.7 * normal(states * actions), 0.5 * normal(states * actions)


def returns(reward, gamma):
    """G_t = Σ_{k≥t} γ^{k-t} r_k."""
    rows = [reward[-1]]
    for row in reversed(reward[:-1]):
        rows.append(row + gamma * rows[-1])
    return torch.stack(rows[::-1])


def to_go_values(mdp, theta):
    """V_t(s) with H - t steps to go, [H, S]."""
    return torch.stack([state_values(mdp._replace(horizon=h), theta) for h in range(mdp.horizon, 0, -1)])


def estimate(name, mdp, theta, paths, baseline=None):
    """-J as one estimator sees it, mean over the paths (state [T, B], action [T, B]); baseline [T, S], a constant."""
    state, action = paths
    log_prob = log_policy(theta, mdp.reward.shape[-1])[state, action]
    reward = mdp.reward[state, action]
    value = None if baseline is None else baseline.gather(1, state)
    if name == "dice":
        return -dice(log_prob, reward, mdp.gamma, value)
    advantage = returns(reward, mdp.gamma) - (0.0 if value is None else value)
    return -discounted_objective(SURROGATES[name], log_prob, advantage, mdp.gamma)


def all_paths(mdp, theta):
    """Every path of an episode and its probability: state [T, paths], action [T, paths], probability [paths]."""
    states, actions = mdp.reward.shape
    pi = policy(theta, actions)
    rows = []
    for path in cartesian(cartesian(range(states), range(actions)), repeat=mdp.horizon):
        probability = mdp.initial[path[0][0]]
        for t, (s, a) in enumerate(path):
            probability = probability * pi[s, a]
            if t + 1 < mdp.horizon:
                probability = probability * mdp.transition[s, a, path[t + 1][0]]
        rows.append((*zip(*path, strict=True), probability))
    state, action, probability = zip(*rows, strict=True)
    return (torch.tensor(state).T, torch.tensor(action).T), torch.stack(probability)


def draw(probabilities, generator):
    """One index of each distribution along the last axis."""
    uniform = torch.rand(*probabilities.shape[:-1], 1, generator=generator, dtype=torch.float64)
    return (uniform > probabilities.cumsum(-1)).sum(-1).clamp(max=probabilities.shape[-1] - 1)


def sample_paths(mdp, theta, trajectories, generator):
    """Trajectories of N policies, θ [N, P]: state [N, T, B], action [N, T, B]."""
    copies = len(theta)
    pi = torch.softmax(theta.view(copies, *mdp.reward.shape), dim=-1)
    each = torch.arange(copies).unsqueeze(-1)
    state = draw(mdp.initial.expand(copies, trajectories, -1), generator)
    states, actions = [], []
    for _ in range(mdp.horizon):
        action = draw(pi[each, state], generator)
        states.append(state)
        actions.append(action)
        state = draw(mdp.transition[state, action], generator)
    return torch.stack(states, dim=1), torch.stack(actions, dim=1)


def worst_standard_errors(samples, exact):
    """Return how many standard errors the mean of samples [N, ...] is from the exact answer, in the worst component."""
    error = (samples.mean(0) - exact).abs()
    standard_error = samples.std(0) / len(samples) ** 0.5
    is_rounding = error <= 1e-12 * exact.norm()  # components that every sample has right
    return float(torch.where(is_rounding, 0.0, error / standard_error).max())  # infinite: the same and wrong in all


def path_hessians(name, mdp, theta, paths, baseline=None):
    """∇²Ĵ from each path alone, [paths, P, P]."""

    def one(state, action):
        single = state.unsqueeze(-1), action.unsqueeze(-1)
        return torch.func.hessian(lambda theta: -estimate(name, mdp, theta, single, baseline))(theta)

    return torch.func.vmap(one, in_dims=(1, 1))(*paths)


# ----------------------------------------------------------------------------------------- enumerated expectations


class Enumerated:
    """A tiny MDP with all of its paths, and the terms of its Hessian by the formulas of the policy gradient theorem."""

    def __init__(self, states=2, actions=2, horizon=3):
        self.mdp, self.theta, _ = make_mdp(1, states, actions, horizon)
        self.paths, self.probability = all_paths(self.mdp, self.theta)
        self.baseline = to_go_values(self.mdp, self.theta)
        self.exact = hessian(self.mdp, self.theta)

    def expected(self, name, baseline=None):
        hessians = path_hessians(name, self.mdp, self.theta, self.paths, baseline)
        return torch.einsum("n,nij->ij", self.probability, hessians)

    def action_values(self, theta):
        """Q_t(s, a), [H, S, A]."""
        after = torch.cat([to_go_values(self.mdp, theta)[1:], torch.zeros_like(self.baseline[:1])])
        return self.mdp.reward + self.mdp.gamma * torch.einsum("saz,tz->tsa", self.mdp.transition, after)

    def occupancy(self):
        """γ^t P(s_t = s, a_t = a), [H, S, A]."""
        pi, state, rows = policy(self.theta, self.mdp.reward.shape[1]), self.mdp.initial, []
        for t in range(self.mdp.horizon):
            rows.append(self.mdp.gamma**t * state.unsqueeze(-1) * pi)
            state = torch.einsum("s,sa,saz->z", state, pi, self.mdp.transition)
        return torch.stack(rows)

    def terms(self, weight):
        """(H1, H2, H12) with `weight` [H, S, A] in the place of Q in the first two."""
        actions = self.mdp.reward.shape[1]
        score = torch.func.jacrev(log_policy)(self.theta, actions)
        curvature = torch.func.hessian(log_policy)(self.theta, actions)
        slope = torch.func.jacrev(self.action_values)(self.theta)
        occupancy = self.occupancy()
        h1 = torch.einsum("tsa,tsa,sai,saj->ij", occupancy, weight, score, score)
        h2 = torch.einsum("tsa,tsa,saij->ij", occupancy, weight, curvature)
        return h1, h2, torch.einsum("tsa,sai,tsaj->ij", occupancy, score, slope)


@pytest.fixture(scope="module")
def enumerated():
    return Enumerated()


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def test_paths_are_complete(enumerated):
    assert enumerated.probability.sum().item() == pytest.approx(1.0, rel=1e-14)


def test_first_order_is_exact_for_every_estimator_and_baseline(enumerated):
    exact = policy_gradient(enumerated.mdp, enumerated.theta)

    def gradient(name, baseline, state, action):
        single = state.unsqueeze(-1), action.unsqueeze(-1)
        return torch.func.grad(lambda x: -estimate(name, enumerated.mdp, x, single, baseline))(enumerated.theta)

    for baseline in (None, enumerated.baseline, 2.0 * enumerated.baseline + 1.0):
        per_path = [
            torch.func.vmap(lambda s, a, n=name, b=baseline: gradient(n, b, s, a), in_dims=(1, 1))(*enumerated.paths)
            for name in ESTIMATORS
        ]
        for gradients in per_path:
            assert_equal(gradients, per_path[0])  # path by path
            assert_equal(enumerated.probability @ gradients, exact)


def test_the_exact_hessian_falls_into_its_terms(enumerated):
    h1, h2, h12 = enumerated.terms(enumerated.action_values(enumerated.theta))
    assert_equal(h1 + h2 + h12 + h12.T, enumerated.exact)
    assert h12.norm() > 0.05 * enumerated.exact.norm()


@pytest.mark.parametrize("name", ["dice", "loaded-dice"])
def test_dice_is_the_exact_hessian_whatever_the_baseline(enumerated, name):
    for baseline in (None, enumerated.baseline, 2.0 * enumerated.baseline + 1.0):
        assert_equal(enumerated.expected(name, baseline), enumerated.exact)


def test_lvc_misses_the_cross_terms_and_nothing_else(enumerated):
    h1, h2, _ = enumerated.terms(enumerated.action_values(enumerated.theta))
    for baseline in (None, enumerated.baseline, 2.0 * enumerated.baseline + 1.0):
        assert_equal(enumerated.expected("lvc", baseline), h1 + h2)


def test_lvc_is_exact_for_episodes_of_one_step():
    one_step = Enumerated(states=3, actions=3, horizon=1)
    assert_equal(one_step.expected("lvc"), one_step.exact)
    assert (one_step.expected("ad") - one_step.exact).norm() > 0.1 * one_step.exact.norm()


def test_ad_keeps_one_term_only_and_depends_on_the_baseline(enumerated):
    action_values = enumerated.action_values(enumerated.theta)
    for baseline in (torch.zeros_like(enumerated.baseline), 2.0 * enumerated.baseline + 1.0):
        _, h2, _ = enumerated.terms(action_values - baseline.unsqueeze(-1))
        assert_equal(enumerated.expected("ad", baseline), h2)
        assert (h2 - enumerated.exact).norm() > 0.1 * enumerated.exact.norm()


def test_ad_with_the_true_baseline_has_no_hessian_at_all(enumerated):
    # ∇²log π of a softmax does not depend on the action, and advantages have zero mean: MAML becomes first-order MAML.
    zeros = torch.zeros_like(enumerated.exact)
    assert_equal(enumerated.expected("ad", enumerated.baseline), zeros)


# -------------------------------------------------------------------------------------------- sampled expectations

LEARNING_RATE = 1.0


@pytest.fixture(scope="module")
def setting():
    """(MDP, θ, φ ≠ θ): 4 states, 2 actions, 5 steps."""
    return make_mdp(3, states=4, actions=2, horizon=5)


@pytest.fixture(scope="module")
def hessians(setting):
    """20 000 Hessian estimates of each kind from the same trajectories, no baseline."""
    mdp, theta, _ = setting
    paths = sample_paths(mdp, theta.unsqueeze(0), 20_000, torch.Generator().manual_seed(0))
    paths = paths[0][0], paths[1][0]
    return {name: path_hessians(name, mdp, theta, paths) for name in ESTIMATORS}


@pytest.mark.parametrize("name", ["dice", "loaded-dice"])
def test_mean_dice_hessian_is_the_exact_one(setting, hessians, name):
    mdp, theta, _ = setting
    assert worst_standard_errors(hessians[name], hessian(mdp, theta)) < STANDARD_ERRORS


@pytest.mark.parametrize("name", ["ad", "lvc"])
def test_mean_hessian_of_the_others_is_not(setting, hessians, name):
    mdp, theta, _ = setting
    exact = hessian(mdp, theta)
    assert worst_standard_errors(hessians[name].diagonal(dim1=1, dim2=2), exact.diagonal()) > BIASED
    # Of two different states' logits neither has any second derivative, in any sample; the exact Hessian has.
    states = torch.arange(len(theta)) // mdp.reward.shape[1]
    is_across = states.unsqueeze(0) != states.unsqueeze(1)
    assert (hessians[name][:, is_across] == 0.0).all()
    assert exact[is_across].norm() > 0.1 * exact.norm()


def test_lvc_has_less_bias_than_ad_and_less_variance_than_dice(setting, hessians):
    mdp, theta, _ = setting
    exact = hessian(mdp, theta)
    bias = {name: float((samples.mean(0) - exact).norm()) for name, samples in hessians.items()}
    variance = {name: float(samples.var(0).sum()) for name, samples in hessians.items()}
    assert bias["lvc"] < bias["ad"]
    assert variance["lvc"] < 0.2 * variance["dice"]
    # With full returns and no baseline, Loaded-DiCE is DiCE, path by path.
    assert_equal(hessians["loaded-dice"], hessians["dice"])


def exact_value_problem(mdp, name, has_baseline):
    """Inner updates with the exact gradient as value and a sampled estimator's Hessian and Jacobian (E, then S)."""

    def derivative(theta, eta, paths):
        inner = with_intrinsic_reward(mdp, eta)
        baseline = to_go_values(inner, theta.detach()) if has_baseline else None  # of R + φ, and moves with φ
        return estimate(name, inner, theta, paths, baseline), None

    return InnerProblem(
        lambda theta, eta, _paths: exact_loss(theta, eta, mdp),
        Sgd(learning_rate=constant(LEARNING_RATE)),
        derivative,
    )


def sampled_meta_gradients(
    mdp, theta, eta, name, steps, *, copies, trajectories=4, product="retain", has_baseline=False
):
    """N independent meta-gradients ∂J(θ_K)/∂(η, θ₀), stochastic in their second derivatives only (ESE)."""
    generator = torch.Generator().manual_seed(1)
    problem = exact_value_problem(mdp, name, has_baseline)
    gradients = unroll_gradients(
        problem,
        lambda theta, _paths: exact_outer_loss(theta, mdp),
        lambda theta, _i: sample_paths(mdp, theta, trajectories, generator),
        (theta, problem.optimizer.init(theta), eta),
        LookAhead(outer_weights("n-step", steps), product, wants_theta=True),
        copies,
    )
    assert gradients.theta is not None
    return gradients.eta.neg(), gradients.theta.neg()


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_one_step_maml_with_a_sampled_hessian(setting, product):
    mdp, theta, phi = setting
    exact = maml_meta_gradient(mdp, theta, LEARNING_RATE, 1)

    def errors(name):
        _, samples = sampled_meta_gradients(mdp, theta, phi[:0], name, 1, copies=4000, product=product)
        return worst_standard_errors(samples, exact)

    assert errors("dice") < STANDARD_ERRORS
    assert errors("loaded-dice") < STANDARD_ERRORS
    assert errors("ad") > BIASED


def test_one_step_maml_with_lvc_where_there_are_no_cross_terms():
    # Episodes of one step: LVC's Hessian is exact, AD's is not. The two must not be exchanged.
    mdp, theta, phi = make_mdp(5, states=3, actions=3, horizon=1)
    exact = maml_meta_gradient(mdp, theta, LEARNING_RATE, 1)

    def errors(name):
        samples = sampled_meta_gradients(mdp, theta, phi[:0], name, 1, copies=4000)[1]
        return worst_standard_errors(samples, exact)

    assert errors("lvc") < STANDARD_ERRORS
    assert errors("ad") > BIASED


@pytest.mark.parametrize(("product", "has_baseline"), [("retain", True), ("recompute", False)])
def test_one_step_lirpg_needs_no_hessian(setting, product, has_baseline):
    mdp, theta, phi = setting
    exact = lirpg_meta_gradient(mdp, theta, phi, LEARNING_RATE, 1)
    options = {"copies": 2000, "product": product, "has_baseline": has_baseline}
    samples = {name: sampled_meta_gradients(mdp, theta, phi, name, 1, **options)[0] for name in ESTIMATORS}
    for name in ESTIMATORS:
        assert worst_standard_errors(samples[name], exact) < STANDARD_ERRORS
        assert_equal(samples[name], samples["ad"])  # sample by sample


def test_two_step_lirpg_shows_the_bias_of_ad(setting):
    mdp, theta, phi = setting
    exact = lirpg_meta_gradient(mdp, theta, phi, LEARNING_RATE, 2)

    def errors(name):
        return worst_standard_errors(sampled_meta_gradients(mdp, theta, phi, name, 2, copies=4000)[0], exact)

    assert errors("dice") < STANDARD_ERRORS
    assert errors("loaded-dice") < STANDARD_ERRORS
    assert errors("ad") > BIASED


# ------------------------------------------------------------------------------- the compositional bias, Lemma 4.4


def distances(mdp, theta, steps, trajectories, copies=2000):
    """‖θ̂_K - θ_K‖ of N unrolls of K sampled updates, and all parameters they saw, [K, N, P]."""
    generator = torch.Generator().manual_seed(2)
    problem = InnerProblem(
        lambda theta, _eta, paths: (estimate("ad", mdp, theta, paths), None),
        Sgd(learning_rate=constant(LEARNING_RATE)),
    )
    many, x, visited = independent(problem, copies), theta.repeat(copies), []
    state = many.optimizer.init(x)
    for _ in range(steps):
        visited.append(x.view(copies, -1))
        paths = sample_paths(mdp, visited[-1], trajectories, generator)
        update = inner_update(many, x, state, x[:0], paths, keep_graph=False)
        x, state = update.theta, update.state
    return (x.view(copies, -1) - ascend(mdp, theta, LEARNING_RATE, steps)).norm(dim=-1), torch.stack(visited)


def gradient_variance(mdp, theta, paths=20_000):
    """Summed variance of the policy gradient estimated from one path."""
    state, action = sample_paths(mdp, theta.unsqueeze(0), paths, torch.Generator().manual_seed(3))

    def one(state, action):
        single = state.unsqueeze(-1), action.unsqueeze(-1)
        return torch.func.grad(lambda theta: estimate("ad", mdp, theta, single))(theta)

    gradients = torch.func.vmap(one, in_dims=(1, 1))(state[0], action[0])
    return gradients.var(0).sum()


@pytest.mark.parametrize("trajectories", [4, 16])
def test_compositional_bias_of_one_step_is_the_bound_but_for_jensen(setting, trajectories):
    # One step: E‖θ̂₁ - θ₁‖² = α²σ²/|τ|, the bound squared; the lemma's only slack is E‖x‖ ≤ √E‖x‖².
    mdp, theta, _ = setting
    sigma = float(gradient_variance(mdp, theta).sqrt())
    bound = compositional_bias_bound(LEARNING_RATE, 1, 1.0, sigma, trajectories)
    distance, _ = distances(mdp, theta, 1, trajectories)
    squares = distance.square()
    assert abs(squares.mean() - bound**2) < STANDARD_ERRORS * squares.std() / len(squares) ** 0.5
    assert distance.mean() < bound


def test_compositional_bias_stays_below_its_bound(setting):
    mdp, theta, _ = setting
    for steps in (2, 4):
        distance, visited = distances(mdp, theta, steps, 16, copies=500)
        flat = visited.flatten(0, 1)  # stands for the set in which curvature and variance must be bounded
        lipschitz = float(torch.func.vmap(lambda x: hessian_norm(mdp, x))(flat).max())
        variance = max(float(gradient_variance(mdp, x, paths=2000)) for x in flat[:: len(flat) // 20])
        bound = compositional_bias_bound(LEARNING_RATE, steps, lipschitz, variance**0.5, 16)
        assert distance.mean() < bound
        # Steps add up: the bound of one step would not hold, so the growth with K is needed.
        assert distance.mean() > compositional_bias_bound(LEARNING_RATE, 1, lipschitz, variance**0.5, 16)
