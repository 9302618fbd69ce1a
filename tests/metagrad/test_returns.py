import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.returns import lambda_returns, vtrace

NEAR = {"rtol": 1e-10, "atol": 1e-10}
UNIT = st.floats(0.0, 1.0)


@st.composite
def rollouts(draw):
    """Reward [T, B], value [T+1, B], is_terminal and is_truncated [T, B] (a step may be marked as both)."""
    steps, batch = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rate = draw(st.sampled_from([0.0, 0.2, 0.6]))
    reward = torch.randn(steps, batch, generator=generator, dtype=torch.float64)
    value = torch.randn(steps + 1, batch, generator=generator, dtype=torch.float64)
    is_terminal = torch.rand(steps, batch, generator=generator) < rate
    is_truncated = torch.rand(steps, batch, generator=generator) < rate
    return reward, value, is_terminal, is_truncated


def slow_lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_):
    """Sum over n-step returns: G_t = Σₖ (1-λ)λᵏ G⁽ᵏ⁺¹⁾ + λᴺ⁻¹ G⁽ᴺ⁾, N steps to the episode's or the rollout's end."""
    steps, batch = reward.shape
    result = torch.zeros(steps, batch, dtype=torch.float64)
    for b in range(batch):
        for t in range(steps):
            ends = [i for i in range(t, steps) if is_terminal[i, b] or is_truncated[i, b]]
            horizon = (ends[0] if ends else steps - 1) - t + 1  # N

            def n_step(n, t=t, b=b):
                total = sum(gamma**i * reward[t + i, b].item() for i in range(n))
                if not is_terminal[t + n - 1, b]:
                    total += gamma**n * value[t + n, b].item()
                return total

            weights = [(1.0 - lambda_) * lambda_**k for k in range(horizon - 1)] + [lambda_ ** (horizon - 1)]
            assert sum(weights) == pytest.approx(1.0)
            result[t, b] = sum(weight * n_step(k + 1) for k, weight in enumerate(weights))
    return result


@given(rollouts(), UNIT, UNIT)
def test_equals_the_sum_over_n_step_returns(rollout, gamma, lambda_):
    torch.testing.assert_close(
        lambda_returns(*rollout, gamma, lambda_), slow_lambda_returns(*rollout, gamma, lambda_), **NEAR
    )


@given(rollouts(), UNIT)
def test_lambda_zero_is_one_step_td(rollout, gamma):
    reward, value, is_terminal, _ = rollout
    expected = reward + gamma * torch.where(is_terminal, 0.0, value[1:])
    torch.testing.assert_close(lambda_returns(*rollout, gamma, 0.0), expected, **NEAR)


@given(rollouts(), UNIT)
def test_lambda_one_is_the_bootstrapped_return(rollout, gamma):
    reward, value, is_terminal, is_truncated = rollout
    future, expected = value[-1], []
    for t in reversed(range(len(reward))):
        future = torch.where(is_truncated[t], value[t + 1], future)
        future = torch.where(is_terminal[t], 0.0, future)
        future = reward[t] + gamma * future
        expected.insert(0, future)
    torch.testing.assert_close(lambda_returns(*rollout, gamma, 1.0), torch.stack(expected), **NEAR)


@given(rollouts(), UNIT)
def test_values_that_solve_the_bellman_equation_are_their_own_return(rollout, gamma):
    _, value, is_terminal, is_truncated = rollout
    reward = value[:-1] - gamma * torch.where(is_terminal, 0.0, value[1:])
    for lambda_ in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_), value[:-1], **NEAR
        )


@given(rollouts(), UNIT, UNIT, st.data())
def test_nothing_crosses_an_episode_end(rollout, gamma, lambda_, data):
    reward, value, is_terminal, is_truncated = rollout
    end = data.draw(st.integers(0, len(reward) - 1))
    is_terminal, is_truncated = is_terminal.clone(), is_truncated.clone()
    kind = data.draw(st.sampled_from(["terminal", "truncated"]))
    (is_terminal if kind == "terminal" else is_truncated)[end] = True
    before = lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_)
    reward, value = reward.clone(), value.clone()
    reward[end + 1 :] += 100.0
    # value[end+1] belongs to the true successor where the end is a truncation, and to nobody at a terminal step.
    value[end + 1 if kind == "terminal" else end + 2 :] -= 100.0
    after = lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_)
    assert torch.equal(before[: end + 1], after[: end + 1])


def test_truncation_bootstraps_and_termination_does_not():
    reward, value = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[0.0], [8.0]], dtype=torch.float64)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assert lambda_returns(reward, value, no, yes, 0.5, 0.9).item() == 4.0
    assert lambda_returns(reward, value, yes, no, 0.5, 0.9).item() == 0.0
    assert lambda_returns(reward, value, yes, yes, 0.5, 0.9).item() == 0.0


@given(rollouts(), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_derivatives_in_gamma_and_lambda(rollout, gamma, lambda_):
    point = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (gamma, lambda_)]
    assert torch.autograd.gradcheck(lambda gamma, lambda_: lambda_returns(*rollout, gamma, lambda_), point)
    assert torch.autograd.gradgradcheck(lambda gamma, lambda_: lambda_returns(*rollout, gamma, lambda_), point)


def test_derivatives_in_reward_and_value():
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda reward, value: lambda_returns(reward, value, ends, ends.flip(1), 0.9, 0.7), (reward, value)
    )


@st.composite
def off_policy_rollouts(draw):
    """(log_ratio [T, B], then a rollout, then valid [T, B]); ratios from about .2 to 5."""
    rollout = draw(rollouts())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = rollout[0].shape
    log_ratio = 0.8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    valid = torch.rand(shape, generator=generator) > draw(st.sampled_from([0.0, 0.3]))
    return log_ratio, *rollout, valid


def slow_vtrace(log_ratio, reward, value, is_terminal, is_truncated, valid, gamma, lambda_, rho_clip, c_clip):
    """Eq. 1 of the paper in its notation: a sum over the later steps t of each start s, a product for each of them.

    The advantage bootstraps from (1 - λ) V + λ v.
    """
    steps, batch = reward.shape
    x = dict(V=value.tolist(), r=reward.tolist(), pi_over_mu=log_ratio.exp().tolist())
    target, advantage = torch.zeros_like(reward), torch.zeros_like(reward)
    for b in range(batch):
        V, r = [row[b] for row in x["V"]], [row[b] for row in x["r"]]
        ratio = [row[b] if ok else 1.0 for row, ok in zip(x["pi_over_mu"], valid[:, b].tolist(), strict=True)]
        rho, c = [min(rho_clip, y) for y in ratio], [lambda_ * min(c_clip, y) for y in ratio]
        gammas = [0.0 if is_over else gamma for is_over in is_terminal[:, b].tolist()]
        ends = [t for t in range(steps) if is_terminal[t, b] or is_truncated[t, b] or t == steps - 1]
        v = list(V)
        for s in range(steps):
            for t in range(s, min(end for end in ends if end >= s) + 1):
                product = 1.0
                for i in range(s, t):
                    product *= gammas[i] * c[i]
                v[s] += product * rho[t] * (r[t] + gammas[t] * V[t + 1] - V[t])
        for s in range(steps):
            v_next = V[s + 1] if s in ends else (1.0 - lambda_) * V[s + 1] + lambda_ * v[s + 1]
            target[s, b], advantage[s, b] = v[s], rho[s] * (r[s] + gammas[s] * v_next - V[s])
    return target, advantage


CLIP = st.floats(0.0, 4.0)


@given(off_policy_rollouts(), UNIT, UNIT, CLIP, CLIP)
def test_vtrace_equals_the_papers_sum(rollout, gamma, lambda_, rho_clip, c_clip):
    expected = slow_vtrace(*rollout, gamma, lambda_, rho_clip, c_clip)
    as_tensors = [torch.tensor([x], dtype=torch.float64) for x in (gamma, lambda_, rho_clip, c_clip)]
    for arguments in ((gamma, lambda_, rho_clip, c_clip), as_tensors):
        result = vtrace(*rollout, *arguments)
        torch.testing.assert_close(result.target, expected[0], **NEAR)
        torch.testing.assert_close(result.policy_advantage, expected[1], **NEAR)


@given(rollouts(), UNIT, UNIT, st.floats(1.0, 4.0), st.floats(1.0, 4.0), st.booleans())
def test_vtrace_on_policy_is_the_lambda_return(rollout, gamma, lambda_, rho_clip, c_clip, is_valid):
    reward, value, is_terminal, _ = rollout
    # Steps that the policy did not choose have ratio 1 whatever is recorded for them.
    log_ratio = torch.zeros_like(reward) if is_valid else torch.full_like(reward, torch.nan)
    valid = torch.full_like(is_terminal, is_valid)
    result = vtrace(log_ratio, *rollout, valid, gamma, lambda_, rho_clip, c_clip)
    target = lambda_returns(*rollout, gamma, lambda_)
    torch.testing.assert_close(result.target, target, **NEAR)
    torch.testing.assert_close(result.policy_advantage, target - value[:-1], **NEAR)


@given(off_policy_rollouts(), UNIT, UNIT, CLIP, CLIP, st.data())
def test_vtrace_lets_nothing_cross_an_episode_end(rollout, gamma, lambda_, rho_clip, c_clip, data):
    log_ratio, reward, value, is_terminal, is_truncated, valid = (x.clone() for x in rollout)
    end = data.draw(st.integers(0, len(reward) - 1))
    kind = data.draw(st.sampled_from(["terminal", "truncated"]))
    (is_terminal if kind == "terminal" else is_truncated)[end] = True

    def results():
        rows = (log_ratio, reward, value, is_terminal, is_truncated, valid)
        return vtrace(*rows, gamma, lambda_, rho_clip, c_clip)

    before = results()
    log_ratio[end + 1 :] += 1.0
    reward[end + 1 :] += 100.0
    valid[end + 1 :] ^= True
    # value[end+1] belongs to the true successor where the end is a truncation, and to nobody at a terminal step.
    value[end + 1 if kind == "terminal" else end + 2 :] -= 100.0
    for x, y in zip(before, results(), strict=True):
        assert torch.equal(x[: end + 1], y[: end + 1])


def test_vtrace_truncation_bootstraps_and_termination_does_not():
    reward, value = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[1.0], [8.0]], dtype=torch.float64)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    log_ratio = torch.full_like(reward, 3.0).log()
    for ends, td_error in (((no, no), 3.0), ((no, yes), 3.0), ((yes, no), -1.0), ((yes, yes), -1.0)):
        result = vtrace(log_ratio, reward, value, *ends, yes, 0.5, 0.9, 2.0, 1.0)
        assert result.target.item() == pytest.approx(1.0 + 2.0 * td_error)
        assert result.policy_advantage.item() == pytest.approx(2.0 * td_error)


@given(off_policy_rollouts(), UNIT, UNIT, CLIP)
def test_vtrace_without_rho_is_the_value(rollout, gamma, lambda_, c_clip):
    result = vtrace(*rollout, gamma, lambda_, 0.0, c_clip)
    assert torch.equal(result.target, rollout[2][:-1])
    assert (result.policy_advantage == 0.0).all()


@given(off_policy_rollouts(), UNIT, UNIT, CLIP)
def test_vtrace_without_c_is_one_clipped_step(rollout, gamma, lambda_, rho_clip):
    log_ratio, reward, value, is_terminal, _, valid = rollout
    rho = torch.where(valid, log_ratio.exp(), 1.0).clamp(max=rho_clip)
    expected = value[:-1] + rho * (reward + gamma * torch.where(is_terminal, 0.0, value[1:]) - value[:-1])
    torch.testing.assert_close(vtrace(*rollout, gamma, lambda_, rho_clip, 0.0).target, expected, **NEAR)


def test_vtrace_without_clips_is_importance_sampling():
    """Over one episode with V = 0: Σ γ^k (Π_{i≤k} π_i/μ_i) r_k, off_policy_dice's value."""
    generator = torch.Generator().manual_seed(0)
    log_ratio, reward = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    value, no = torch.zeros(6, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.bool)
    end = no.clone()
    end[-1] = True
    result = vtrace(log_ratio, reward, value, end, no, ~no, 0.9, 1.0, float("inf"), float("inf"))
    discount = 0.9 ** torch.arange(5, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(result.target[0], (discount * log_ratio.cumsum(0).exp() * reward).sum(0), **NEAR)


@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.3, 0.9), (0.7, 1.6), (2.0, 2.0)])
def test_vtrace_derivatives_in_gamma_lambda_and_both_clips(rho_clip, c_clip):
    generator = torch.Generator().manual_seed(1)
    log_ratio, reward = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    value = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    is_terminal, is_truncated, valid = (torch.rand(8, 3, generator=generator) < rate for rate in (0.15, 0.15, 0.8))
    ratio = torch.where(valid, log_ratio.exp(), 1.0)
    for clip in (rho_clip, c_clip):
        assert 3 < (ratio > clip).sum() < 20
        assert (ratio - clip).abs().min() > 1e-3, "finite differences need a distance from the kink"

    def function(*hyper):
        return vtrace(log_ratio, reward, value, is_terminal, is_truncated, valid, *hyper)

    point = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.9, 0.8, rho_clip, c_clip)]
    assert torch.autograd.gradcheck(function, point, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, point)
    for i in range(2):
        assert all(x.abs() > 1e-3 for x in torch.autograd.grad(function(*point)[i].square().sum(), point))


def test_vtrace_derivative_in_a_clip_that_equals_the_ratio():
    """On-policy with clips of 1 every ratio is at its clip: half the derivative of the clipped side, in both modes."""
    reward, value = torch.ones(1, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    no = torch.zeros(1, 1, dtype=torch.bool)

    def target(rho_clip):
        return vtrace(torch.zeros_like(reward), reward, value, no, no, ~no, 0.9, 1.0, rho_clip, 1.0).target.sum()

    one = torch.ones(1, dtype=torch.float64)
    assert torch.func.grad(target)(one).item() == 0.5
    assert torch.func.jvp(target, (one,), (one,))[1].item() == 0.5
    assert torch.func.grad(target)(one - 1e-9).item() == 1.0
    assert torch.func.grad(target)(one + 1e-9).item() == 0.0


def test_vtrace_derivatives_in_reward_and_value():
    generator = torch.Generator().manual_seed(0)
    log_ratio, reward = (torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda reward, value: vtrace(log_ratio, reward, value, ends, ends.flip(1), ~ends, 0.9, 0.7, 1.2, 0.9),
        (reward.requires_grad_(), value),
    )


@pytest.mark.parametrize("log_ratio", [90.0, -200.0])
def test_vtrace_is_finite_for_ratios_beyond_float32(log_ratio):
    reward, value = torch.ones(3, 1), torch.zeros(4, 1)
    no = torch.zeros(3, 1, dtype=torch.bool)
    clips = [torch.tensor([1.5], requires_grad=True), torch.tensor([1.0], requires_grad=True)]
    result = vtrace(torch.full_like(reward, log_ratio), reward, value, no, no, ~no, 0.9, 1.0, *clips)
    gradients = torch.autograd.grad(result.target.sum() + result.policy_advantage.sum(), clips)
    assert all(x.isfinite().all() for x in (*result, *gradients))
