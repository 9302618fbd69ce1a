"""Estimators against closed forms, slow loops in the papers' notation, and all trajectories of a tiny MDP."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, jvp, vmap

from metagrad import surrogates
from metagrad.surrogates import SURROGATES, ad, dice, discounted_objective, discounts, loaded_dice, lvc, off_policy_dice

GAMMA = 0.8
STATES, ACTIONS, HORIZON = 2, 2, 3
NO_END = torch.zeros(1, 1, dtype=torch.bool)


def log_prob(logits):
    """log π(action 0) as a [1, 1] tensor, for a softmax policy over three actions."""
    return torch.log_softmax(logits, -1)[0].reshape(1, 1)


@pytest.fixture
def logits():
    return torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)


def test_names():
    assert SURROGATES == {"ad": ad, "lvc": lvc, "loaded-dice": loaded_dice}


@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_first_derivative_is_the_score(surrogate, logits):
    score = grad(lambda x: log_prob(x).sum())(logits)
    torch.testing.assert_close(grad(lambda x: surrogate(log_prob(x), NO_END).sum())(logits), score)


def test_second_derivatives_by_hand(logits):
    # Softmax: ∇ log π₀ = e₀ - π, ∇² log π = -(diag π - ππᵀ); ∇²π₀/π₀ = ∇² log π₀ + ∇ log π₀ ∇ log π₀ᵀ.
    pi = torch.softmax(logits, -1)
    score = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - pi
    hessian_log_pi = torch.outer(pi, pi) - torch.diag(pi)
    second = {
        name: hessian(lambda x, s=surrogate: s(log_prob(x), NO_END).sum())(logits)
        for name, surrogate in SURROGATES.items()
    }
    torch.testing.assert_close(second["ad"], hessian_log_pi, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(second["lvc"], hessian_log_pi + torch.outer(score, score), rtol=1e-12, atol=1e-14)
    hessian_pi = hessian(lambda x: log_prob(x).exp().sum())(logits)
    torch.testing.assert_close(second["lvc"], hessian_pi / pi[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(second["loaded-dice"], second["lvc"], rtol=1e-12, atol=1e-14)  # a single step
    assert (second["ad"] - second["lvc"]).abs().max() > 0.1


def test_values(logits):
    assert torch.equal(ad(log_prob(logits), NO_END), log_prob(logits))
    assert torch.equal(lvc(log_prob(logits), NO_END), torch.ones(1, 1, dtype=torch.float64))
    assert torch.equal(loaded_dice(log_prob(logits), NO_END), torch.zeros(1, 1, dtype=torch.float64))


# Rollouts of a softmax policy over a table, S = 3 and A = 3: closed-form derivatives, summed in slow loops.


class Rollouts:
    """Random states, actions, advantages, episode ends and invalid steps, 7 steps of 4 environments."""

    def __init__(self, seed, steps=7, batch=4, ends=0.3, invalid=0.2):
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, batch)
        self.shape = shape
        self.theta = torch.randn(9, generator=generator, dtype=torch.float64)
        self.state, self.action = (torch.randint(3, shape, generator=generator) for _ in range(2))
        self.reward, self.value, self.advantage = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        self.is_last = torch.rand(shape, generator=generator) < ends
        self.valid = torch.rand(shape, generator=generator) >= invalid

    def log_prob(self, theta, masked=False):
        log_pi = torch.log_softmax(theta.reshape(3, 3), -1)[self.state, self.action]
        return torch.where(self.valid, log_pi, 0.0) if masked else log_pi

    def score_and_hessian(self, t, b):
        """∇log π_t and ∇²log π_t of the chosen action; zero where nobody chose."""
        score, second = np.zeros((3, 3)), np.zeros((3, 3, 3, 3))
        if self.valid[t, b]:
            s, a = int(self.state[t, b]), int(self.action[t, b])
            z = np.exp(self.theta.reshape(3, 3)[s].numpy())
            pi = z / z.sum()
            score[s] = np.eye(3)[a] - pi
            second[s, :, s, :] = np.outer(pi, pi) - np.diag(pi)
        return score.reshape(9), second.reshape(9, 9)

    def second_derivatives(self, name):
        """∇²s_t of every step, [T, B, 9, 9]."""
        steps, batch = self.shape
        result = np.zeros((steps, batch, 9, 9))
        for b in range(batch):
            past_score, past_second = np.zeros(9), np.zeros((9, 9))
            for t in range(steps):
                if t and self.is_last[t - 1, b]:
                    past_score, past_second = np.zeros(9), np.zeros((9, 9))
                score, second = self.score_and_hessian(t, b)
                score_now, second_now = past_score + score, past_second + second
                result[t, b] = {
                    "ad": second,
                    "lvc": second + np.outer(score, score),
                    "dice": second_now + np.outer(score_now, score_now),
                    "loaded-dice": second_now
                    + np.outer(score_now, score_now)
                    - (past_second + np.outer(past_score, past_score)),
                }[name]
                past_score, past_second = score_now, second_now
        return result


def surrogate_loss(name, r, advantage):
    return lambda x: (torch.where(r.valid, advantage, 0.0) * SURROGATES[name](r.log_prob(x, True), r.is_last)).sum()


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("seed", range(4))
def test_hessians_in_slow_loops(name, seed):
    r = Rollouts(seed)
    assert r.is_last.any()
    weight = torch.where(r.valid, r.advantage, 0.0).numpy()
    expected = np.einsum("tb,tbij->ij", weight, r.second_derivatives(name))
    found = hessian(surrogate_loss(name, r, r.advantage))(r.theta)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 17), st.sampled_from([0.0, 0.2, 1.0]))
def test_gradients_are_identical_sample_by_sample(seed, steps, ends):
    r = Rollouts(seed, steps, 3, ends)
    jacobians = {
        name: torch.func.jacrev(lambda x, s=s: s(r.log_prob(x, True), r.is_last))(r.theta)
        for name, s in SURROGATES.items()
    }
    assert torch.equal(jacobians["ad"], jacobians["lvc"])
    torch.testing.assert_close(jacobians["loaded-dice"], jacobians["ad"], rtol=1e-13, atol=1e-14)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 17), st.sampled_from([0.0, 0.2, 1.0]))
def test_sums_within_episodes(seed, steps, ends):
    r = Rollouts(seed, steps, 3, ends)
    expected = r.reward.clone()
    for t in range(1, steps):
        expected[t] += torch.where(r.is_last[t - 1], 0.0, expected[t - 1])
    found = surrogates._sum_within_episode(r.reward, r.is_last)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_an_episode_has_no_part_in_the_next_ones_hessian():
    r = Rollouts(0, ends=0.0, invalid=0.0)
    r.is_last[3] = True

    def mixed(state, advantage):
        """∇² of the first episode's terms w.r.t. a policy that only the second episode's steps use, and back."""

        def objective(first, second):
            log_pi = torch.cat([r.log_prob(first)[:4], r.log_prob(second)[4:]])
            return (advantage * loaded_dice(log_pi, r.is_last)).sum()

        return torch.func.jacrev(grad(objective), argnums=1)(state, state)

    assert (mixed(r.theta, r.advantage) == 0.0).all()
    r.is_last[3] = False
    assert (mixed(r.theta, r.advantage) != 0.0).any()


def test_steps_that_nobody_chose_have_no_influence():
    r = Rollouts(1)
    r.is_last[:] = False
    keep = torch.tensor([0, 1, 3, 5, 6])
    r.valid[:] = False
    r.valid[keep] = True
    whole = hessian(surrogate_loss("loaded-dice", r, r.advantage))(r.theta)
    for name in ("state", "action", "advantage", "is_last", "valid"):
        setattr(r, name, getattr(r, name)[keep])
    torch.testing.assert_close(hessian(surrogate_loss("loaded-dice", r, r.advantage))(r.theta), whole)


def reward_to_go(reward):
    returns = [reward[-1]]
    for row in reversed(reward[:-1]):
        returns.insert(0, row + GAMMA * returns[0])
    return torch.stack(returns)


def derivatives(function, x):
    return function(x), grad(function)(x), hessian(function)(x)


@pytest.mark.parametrize("has_value", [False, True])
def test_dice_in_slow_loops(has_value):
    r = Rollouts(2, ends=0.0, invalid=0.0)
    discount, batch = GAMMA ** np.arange(r.shape[0]), r.shape[1]
    returns, reward, value = reward_to_go(r.reward).numpy(), r.reward.numpy(), r.value.numpy() * has_value
    gradient = sum(
        discount[t] * (returns[t, b] - value[t, b]) * r.score_and_hessian(t, b)[0] for t, b in np.ndindex(*r.shape)
    )
    second = np.einsum("t,tb,tbij->ij", discount, reward, r.second_derivatives("dice"))
    second -= np.einsum("t,tb,tbij->ij", discount, value, r.second_derivatives("lvc"))
    found = derivatives(lambda x: dice(r.log_prob(x), r.reward, GAMMA, r.value if has_value else None), r.theta)
    expected = (torch.tensor((discount @ reward).mean()), *(torch.from_numpy(x / batch) for x in (gradient, second)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dice_is_reinforce_and_loaded_dice_on_full_returns():
    r = Rollouts(3, ends=0.0, invalid=0.0)
    whole = derivatives(lambda x: dice(r.log_prob(x), r.reward, GAMMA), r.theta)
    loaded = derivatives(
        lambda x: discounted_objective(loaded_dice, r.log_prob(x), reward_to_go(r.reward), GAMMA), r.theta
    )
    reinforce = grad(lambda x: discounted_objective(ad, r.log_prob(x), reward_to_go(r.reward), GAMMA))(r.theta)
    torch.testing.assert_close(whole[1:], loaded[1:], rtol=1e-12, atol=1e-13)  # the values: a return, and 0
    torch.testing.assert_close(whole[1], reinforce, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("has_value", [False, True])
def test_off_policy_dice_on_policy_is_dice(has_value):
    r = Rollouts(4)
    value = r.value if has_value else None
    behaviour = r.log_prob(r.theta)
    found = derivatives(lambda x: off_policy_dice(r.log_prob(x), behaviour, r.reward, GAMMA, value), r.theta)
    expected = derivatives(lambda x: dice(r.log_prob(x), r.reward, GAMMA, value), r.theta)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_behaviour_is_a_constant():
    r = Rollouts(4)

    def objective(x, y):
        return off_policy_dice(r.log_prob(x), r.log_prob(y), r.reward, GAMMA, r.value)

    assert (grad(objective, argnums=1)(r.theta, r.theta + 0.1) == 0.0).all()


@pytest.mark.parametrize("name", SURROGATES)
def test_discounted_objective(name):
    r = Rollouts(5, invalid=0.0)
    s = SURROGATES[name](r.log_prob(r.theta), torch.zeros_like(r.is_last))
    expected = sum(GAMMA**t * (r.advantage[t] * s[t]).mean() for t in range(r.shape[0]))
    found = discounted_objective(SURROGATES[name], r.log_prob(r.theta), r.advantage, GAMMA)
    torch.testing.assert_close(found, expected)
    assert found.shape == ()


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_discounts_are_differentiable(gamma, logits):
    like, point = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64)
    expected = torch.tensor([1.0, gamma, gamma**2, gamma**3], dtype=torch.float64).unsqueeze(-1)
    slope = torch.tensor([0.0, 1.0, 2 * gamma, 3 * gamma**2], dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(discounts(like, gamma), expected)
    torch.testing.assert_close(
        jvp(lambda x: discounts(like, x), (point,), (torch.ones_like(point),)), (expected, slope)
    )
    torch.testing.assert_close(torch.func.jacrev(lambda x: discounts(like, x))(point)[..., 0], slope)


OBJECTIVES = {
    **{
        name: lambda lp, mu, reward, value, gamma, s=s: discounted_objective(s, lp, reward - value, gamma)
        for name, s in SURROGATES.items()
    },
    "dice": lambda lp, mu, reward, value, gamma: dice(lp, reward, gamma, value),
    "off-policy-dice": lambda lp, mu, reward, value, gamma: off_policy_dice(lp, mu, reward, gamma, value),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_transforms(objective):
    """vmap over independent problems, forward over reverse mode, learnt rewards and discounts, float32."""
    rs = [Rollouts(seed, ends=0.0, invalid=0.0) for seed in range(3)]
    states, actions = torch.stack([r.state for r in rs]), torch.stack([r.action for r in rs])
    thetas, rewards, values = (torch.stack([getattr(r, name) for r in rs]) for name in ("theta", "reward", "value"))
    gammas = torch.tensor([[0.8], [0.9], [1.0]], dtype=torch.float64)

    def function(theta, reward, gamma, value, state, action):
        log_pi = torch.log_softmax(theta.reshape(3, 3), -1)[state, action]
        return objective(log_pi, log_pi.detach() + 0.1, reward, value, gamma)

    arguments = (thetas, rewards, gammas, values, states, actions)
    second = torch.func.jacrev(grad(function), argnums=(0, 1, 2))
    found = vmap(second)(*arguments)
    for i in range(3):
        one = tuple(x[i] for x in arguments)
        torch.testing.assert_close(tuple(x[i] for x in found), second(*one), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(torch.func.jacfwd(grad(function))(*one), second(*one)[0], rtol=1e-12, atol=1e-12)
        product_ = jvp(lambda x, rest=one[1:]: grad(function)(x, *rest), one[:1], (torch.ones_like(one[0]),))[1]
        torch.testing.assert_close(product_, second(*one)[0].sum(-1), rtol=1e-12, atol=1e-12)
    assert all((x.flatten(1).norm(dim=1) > 1e-3).all() for x in found)
    single = [x.float() if x.is_floating_point() else x for x in arguments]
    for x, y in zip(vmap(second)(*single), found, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y.float(), rtol=1e-4, atol=1e-4)


# Every trajectory of a random MDP with 2 states, 2 actions and 3 steps, weighted with its probability.


class TinyMdp:
    """J(θ) by backward induction, and all 64 trajectories, of a softmax policy over the table θ."""

    def __init__(self, seed=0):
        generator = np.random.default_rng(seed)
        self.start = torch.tensor([0.4, 0.6], dtype=torch.float64)
        self.transition = torch.from_numpy(generator.dirichlet([1.0] * STATES, (STATES, ACTIONS)))
        self.reward = torch.from_numpy(generator.normal(size=(STATES, ACTIONS)))
        self.theta, self.behaviour = torch.from_numpy(generator.normal(size=(2, STATES * ACTIONS)))
        self.value = torch.from_numpy(generator.normal(size=(HORIZON, STATES)))  # any baseline
        paths = torch.tensor(list(product(*[range(STATES), range(ACTIONS)] * HORIZON))).reshape(-1, HORIZON, 2)
        self.states, self.actions = paths[..., 0], paths[..., 1]  # [64, T]

    def action_values(self, theta):
        """Q of every step, [T, S, A], by backward induction."""
        pi = torch.softmax(theta.reshape(STATES, ACTIONS), -1)
        following, q = torch.zeros(STATES, dtype=torch.float64), []
        for _ in range(HORIZON):
            q.insert(0, self.reward + GAMMA * self.transition @ following)
            following = (pi * q[0]).sum(-1)
        return torch.stack(q)

    def objective(self, theta):
        pi = torch.softmax(theta.reshape(STATES, ACTIONS), -1)
        return self.start @ (pi * self.action_values(theta)[0]).sum(-1)

    def log_prob(self, theta, states, actions):
        return torch.log_softmax(theta.reshape(STATES, ACTIONS), -1)[states, actions].unsqueeze(-1)

    def probabilities(self, theta):
        """p(τ; θ) of every trajectory, [64]."""
        pi = torch.softmax(theta.reshape(STATES, ACTIONS), -1)[self.states, self.actions].prod(-1)
        moves = self.transition[self.states[:, :-1], self.actions[:, :-1], self.states[:, 1:]].prod(-1)
        return self.start[self.states[:, 0]] * moves * pi

    def samples(self, estimator):
        """(value, gradient, Hessian) of `estimator(log_prob [T, 1], reward, value)` on every trajectory."""

        def one(x, states, actions):
            reward = self.reward[states, actions].unsqueeze(-1)
            value = self.value[torch.arange(HORIZON), states].unsqueeze(-1)
            return estimator(self.log_prob(x, states, actions), states, actions, reward, value)

        return [
            vmap(f, in_dims=(None, 0, 0))(self.theta, self.states, self.actions) for f in (one, grad(one), hessian(one))
        ]

    def expected(self, estimator, sampler=None):
        weight = self.probabilities(self.theta if sampler is None else sampler)
        torch.testing.assert_close(weight.sum(), torch.ones((), dtype=torch.float64))
        return [torch.tensordot(weight, x, 1) for x in self.samples(estimator)]

    def exact(self):
        return list(derivatives(self.objective, self.theta))

    def hessian_terms(self):
        """H1, H2, H12 of the module's docstring, and Σ γ^t E[b_t ∇²log π_t], in sums over states and actions."""
        pi = torch.softmax(self.theta.reshape(STATES, ACTIONS), -1)
        q, q_slope = self.action_values(self.theta), torch.func.jacrev(self.action_values)(self.theta)
        occupancy, terms = self.start, [torch.zeros(4, 4, dtype=torch.float64) for _ in range(4)]
        for t in range(HORIZON):
            for s, a in np.ndindex(STATES, ACTIONS):
                weight = GAMMA**t * occupancy[s] * pi[s, a]
                log_pi = lambda x, s=s, a=a: torch.log_softmax(x.reshape(STATES, ACTIONS), -1)[s, a]  # noqa: E731
                score, second = grad(log_pi)(self.theta), hessian(log_pi)(self.theta)
                terms[0] += weight * q[t, s, a] * torch.outer(score, score)
                terms[1] += weight * q[t, s, a] * second
                terms[2] += weight * torch.outer(score, q_slope[t, s, a])
                terms[3] += weight * self.value[t, s] * second
            occupancy = torch.einsum("s,sa,sap->p", occupancy, pi, self.transition)
        return terms


@pytest.fixture(scope="module", params=[0, 1])
def mdp(request):
    return TinyMdp(request.param)


def with_surrogate(surrogate, has_value):
    def estimator(log_prob, states, actions, reward, value):
        advantage = reward_to_go(reward) - (value if has_value else 0.0)
        return discounted_objective(surrogate, log_prob, advantage, GAMMA)

    return estimator


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("has_value", [False, True])
def test_expected_gradients_are_exact(mdp, has_value):
    for surrogate in SURROGATES.values():
        close(mdp.expected(with_surrogate(surrogate, has_value))[1], mdp.exact()[1])


@pytest.mark.parametrize("has_value", [False, True])
def test_dice_is_unbiased_in_every_order(mdp, has_value):
    def estimator(log_prob, states, actions, reward, value):
        return dice(log_prob, reward, GAMMA, value if has_value else None)

    close(mdp.expected(estimator), mdp.exact())


@pytest.mark.parametrize("has_value", [False, True])
def test_loaded_dice_has_an_unbiased_hessian(mdp, has_value):
    close(mdp.expected(with_surrogate(loaded_dice, has_value))[2], mdp.exact()[2])


@pytest.mark.parametrize("has_value", [False, True])
def test_lvc_misses_exactly_the_cross_terms(mdp, has_value):
    h1, h2, h12, _ = mdp.hessian_terms()
    exact, found = mdp.exact()[2], mdp.expected(with_surrogate(lvc, has_value))[2]
    close(h1 + h2 + h12 + h12.T, exact)
    close(found, h1 + h2)
    assert (h12 + h12.T).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("has_value", [False, True])
def test_ad_has_one_term_of_four_and_depends_on_the_baseline(mdp, has_value):
    _, h2, _, baseline = mdp.hessian_terms()
    found = mdp.expected(with_surrogate(ad, has_value))[2]
    close(found, h2 - baseline if has_value else h2)
    assert (found - mdp.exact()[2]).norm() > 0.05 * mdp.exact()[2].norm()
    assert baseline.norm() > 0.05 * h2.norm()


@pytest.mark.parametrize("has_value", [False, True])
def test_off_policy_dice_is_unbiased_in_every_order(mdp, has_value):
    def estimator(log_prob, states, actions, reward, value):
        behaviour = mdp.log_prob(mdp.behaviour, states, actions)
        return off_policy_dice(log_prob, behaviour, reward, GAMMA, value if has_value else None)

    close(mdp.expected(estimator, mdp.behaviour), mdp.exact())
    # The samples are of another distribution: on-policy DiCE on them is wrong.
    wrong = mdp.expected(lambda lp, s, a, reward, value: dice(lp, reward, GAMMA), mdp.behaviour)
    assert (wrong[2] - mdp.exact()[2]).norm() > 0.05 * mdp.exact()[2].norm()
