"""Estimates against exact meta-gradients, expectations in closed form, slow loops in the paper's notation."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from metagrad.actors.envs.tabular_mdp import cumulative_transition, random_mdp
from metagrad.errors import ConfigurationError
from metagrad.experiments.gradient_bias import tabular_estimators as te
from metagrad.experiments.gradient_bias.tabular_estimators import (
    ESTIMATORS,
    PERMUTATIONS,
    Data,
    Estimation,
    Trajectories,
)
from metagrad.meta_gradient import reference_meta_gradient
from metagrad.tabular import (
    TabularMdp,
    lirpg_meta_gradient,
    log_policy,
    maml_meta_gradient,
    policy,
    policy_gradient,
    state_values,
    with_intrinsic_reward,
)
from metagrad.unroll import inner_update

F64 = torch.float64
ZEROS = torch.zeros(100, dtype=F64)
T = 20


def logits(seed: int, copies: int) -> Tensor:
    return torch.randn(copies, 100, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some_trajectories(mdps: TabularMdp, theta: Tensor, **changes) -> Trajectories:
    setting = Estimation(estimator="lvc", permutation="SSS", trajectories=4, **changes)
    return te.data_sampler(setting, mdps, 3)(theta, 0).value


def one_of(data: Trajectories | None, k: int) -> Trajectories | None:
    return None if data is None else Trajectories(*(x[k] for x in data))


def worst_standard_errors(samples: Tensor, expected: Tensor) -> float:
    error = (samples.mean(0) - expected).abs()
    is_rounding = error <= 1e-11 * expected.norm()
    return float(torch.where(is_rounding, 0.0, error / (samples.std(0) / len(samples) ** 0.5)).max())


# ------------------------------------------------------------------------------------------------------- exact parts


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_exact_is_the_exact_meta_gradient(steps: int, estimator: te.EstimatorName) -> None:
    mdps = te.mdp_stack([0, 1, 1, 2])
    setting = Estimation(estimator=estimator, permutation="EEE", steps=steps)
    maml, lirpg = te.maml_gradients(setting, mdps, 0), te.lirpg_gradients(setting, mdps, 0)
    for k in range(4):
        mdp = te.copy_of(mdps, k)
        exact = maml_meta_gradient(mdp, ZEROS, 10.0, steps)
        assert (maml[k] - exact).norm() <= 1e-10 * exact.norm()
        exact = lirpg_meta_gradient(mdp, ZEROS, ZEROS, 10.0, steps)
        assert (lirpg[k] - exact).norm() <= 1e-10 * exact.norm()


def test_mdps_are_those_of_their_seeds() -> None:
    mdps = te.mdp_stack([3, 0, 3])
    for k, seed in enumerate([3, 0, 3]):
        tables, mdp = random_mdp(20, 5, 0.001, seed), te.copy_of(mdps, k)
        assert torch.equal(mdp.transition, tables.transition)
        assert torch.equal(mdp.reward, tables.reward)
        assert mdp.initial.tolist() == [1.0] + [0.0] * 19
    assert mdps.gamma == 0.8
    assert mdps.horizon is None


# ------------------------------------------------------------------------------------------------------ free identities


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("permutation", ["SEE", "EES", "SES"])
def test_what_sees_first_order_gradients_only_is_the_same_for_all_but_dice(permutation: str, steps: int) -> None:
    mdps = te.mdp_stack([0, 0, 1, 2])
    for gradients in (te.maml_gradients, te.lirpg_gradients):
        found = {
            name: gradients(Estimation(estimator=name, permutation=permutation, steps=steps, trajectories=8), mdps, 5)
            for name in ESTIMATORS
        }
        for name in ("lvc", "loaded-dice"):
            torch.testing.assert_close(found[name], found["ad"], rtol=1e-9, atol=1e-10)
        assert (found["dice"] - found["ad"]).norm() > 1e-3 * found["ad"].norm()


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_one_lirpg_step_needs_no_hessian(permutation: str) -> None:
    found = [
        te.lirpg_gradients(Estimation(estimator=name, permutation=permutation), te.mdp_stack([0, 1]), 0)
        for name in ("ad", "lvc", "loaded-dice")
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------- expectations in closed form


def visits(mdp: TabularMdp, theta: Tensor) -> Tensor:
    """Σ_{t<T} γ^t P(s_t = s)."""
    pi, state, total = policy(theta, 5), mdp.initial, 0.0
    for t in range(T):
        total = total + mdp.gamma**t * state
        state = torch.einsum("s,sa,saz->z", state, pi, mdp.transition)
    return total


def action_values(mdp: TabularMdp, theta: Tensor) -> Tensor:
    return mdp.reward + mdp.gamma * mdp.transition @ state_values(mdp, theta)


def after_t_steps(mdp: TabularMdp, theta: Tensor, value: Tensor) -> Tensor:
    """E[Σ_{t<T} γ^t r_t + γ^T V(s_T)]."""
    pi = policy(theta, 5)
    for _ in range(T):
        value = (pi * (mdp.reward + mdp.gamma * mdp.transition @ value)).sum(-1)
    return mdp.initial @ value


def expected_objective(estimator: str, mdp: TabularMdp, at: Tensor):
    """A function of θ whose Hessian at `at` is that of the estimator in expectation, with a mean critic V_π."""
    q, v, d, pi = action_values(mdp, at), state_values(mdp, at), visits(mdp, at), policy(at, 5)
    return {
        "ad": lambda x: (d[:, None] * pi * (q - v[:, None]) * log_policy(x, 5)).sum(),
        "lvc": lambda x: (d[:, None] * q * policy(x, 5)).sum(),
        "loaded-dice": lambda x: after_t_steps(mdp, x, v),
        "dice": lambda x: after_t_steps(mdp, x, torch.zeros_like(v)),
    }[estimator]


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sampled_hessians_have_the_estimators_expectation(estimator: te.EstimatorName, noise: float) -> None:
    setting = Estimation(estimator=estimator, permutation="ESE", trajectories=16, noise=noise)
    samples = te.maml_gradients(setting, te.mdp_stack([1] * 2000), 0)
    mdp = te.copy_of(te.mdp_stack([1]), 0)
    outer = policy_gradient(mdp, ZEROS + 10.0 * policy_gradient(mdp, ZEROS))
    hessian = torch.func.hessian(expected_objective(estimator, mdp, ZEROS))(ZEROS)
    assert worst_standard_errors(samples, outer + 10.0 * hessian @ outer) <= 4.0


def test_sampled_outer_gradients_are_unbiased_but_for_the_horizon() -> None:
    mdp = te.copy_of(te.mdp_stack([2]), 0)
    theta = ZEROS + policy_gradient(mdp, ZEROS)
    for estimator in ("lvc", "dice"):
        setting = Estimation(estimator=estimator, permutation="EES", learning_rate=1.0, trajectories=16)
        samples = te.maml_gradients(setting, te.mdp_stack([2] * 2000), 0)
        outer = torch.func.grad(expected_objective(estimator, mdp, theta))(theta)
        hessian = torch.func.hessian(lambda x: mdp.initial @ state_values(mdp, x))(ZEROS)
        assert worst_standard_errors(samples, outer + hessian @ outer) <= 4.0


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("estimator", ["lvc", "dice"])
def test_sampled_lirpg_jacobians_have_their_expectation(estimator: te.EstimatorName, noise: float) -> None:
    setting = Estimation(estimator=estimator, permutation="ESE", trajectories=16, noise=noise, inner_lambda=0.9)
    samples = te.lirpg_gradients(setting, te.mdp_stack([1] * 2000), 0)
    mdp = te.copy_of(te.mdp_stack([1]), 0)
    outer = policy_gradient(mdp, ZEROS + 10.0 * policy_gradient(mdp, ZEROS))

    def slope(phi: Tensor) -> Tensor:
        intrinsic = with_intrinsic_reward(mdp, phi)
        return torch.func.grad(expected_objective(estimator, intrinsic, ZEROS))(ZEROS) @ outer

    assert worst_standard_errors(samples, 10.0 * torch.func.grad(slope)(ZEROS)) <= 4.0


# ------------------------------------------------------------------------------------------- copies, data, losses


@pytest.mark.parametrize(
    ("estimator", "permutation", "is_noise_shared"),
    [*product(ESTIMATORS, ("SSS", "SEE", "ESS"), [True]), *product(ESTIMATORS, ("SSS",), [False])],
)
@pytest.mark.thinned(3)
def test_copies_at_once_equal_a_loop(estimator: te.EstimatorName, permutation: str, is_noise_shared: bool) -> None:
    mdps, steps = te.mdp_stack([4, 5, 4]), 2
    setting = Estimation(
        estimator=estimator,
        permutation=permutation,
        steps=steps,
        trajectories=3,
        is_noise_shared=is_noise_shared,
        inner_lambda=0.9,
    )
    problem, sample = te.inner_problem(setting), te.data_sampler(setting, mdps, 9)
    state = problem.optimizer.init(ZEROS)
    for gradients, eta in ((te.maml_gradients, ZEROS[:0]), (te.lirpg_gradients, ZEROS)):
        thetas, batches = [ZEROS] * 3, []
        for j in range(steps + 1):
            data = sample(torch.stack(thetas), j)
            batches.append([Data(te.copy_of(mdps, k), *(one_of(x, k) for x in data[1:])) for k in range(3)])
            if j < steps:
                thetas = [
                    inner_update(problem, theta, state, eta, own, keep_graph=False).theta
                    for theta, own in zip(thetas, batches[-1], strict=True)
                ]
        together = gradients(setting, mdps, 9)
        for k, own in enumerate(zip(*batches, strict=True)):
            outers = [(0.0, None), (1.0, own[-1])]
            alone = reference_meta_gradient(problem, te.outer_loss(setting), ZEROS, state, eta, own[:-1], outers)
            torch.testing.assert_close(together[k], -(alone.eta if len(eta) else alone.theta), rtol=1e-9, atol=1e-10)


def test_trajectories_follow_their_own_mdp_and_policy() -> None:
    mdps, theta = te.mdp_stack([0, 1, 2]), 2.0 * logits(0, 3)
    uniform = torch.rand(3, T, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    states, actions = te.sample_trajectories(cumulative_transition(mdps.transition), theta, uniform)
    for k, b in product(range(3), range(4)):
        pi, transition, state = policy(theta[k], 5), mdps.transition[k], 0
        for t in range(T):
            assert states[k, t, b] == state
            action = next(a for a in range(5) if pi[state, : a + 1].sum() > uniform[k, t, 0, b])
            assert actions[k, t, b] == action
            state = next(z for z in range(20) if transition[state, action, : z + 1].sum() > uniform[k, t, 1, b])
        assert states[k, T, b] == state
    assert len(states.unique()) > 10


@pytest.mark.parametrize("lambda_", [1.0, 0.9])
@pytest.mark.parametrize("is_noise_shared", [True, False])
def test_first_order_gradient_in_slow_loops(lambda_: float, is_noise_shared: bool) -> None:
    mdps, theta, phi = te.mdp_stack([6]), logits(1, 1), logits(2, 1)[0]
    data = some_trajectories(mdps, theta, is_noise_shared=is_noise_shared)
    one, mdp, theta = one_of(data, 0), te.copy_of(mdps, 0), theta[0]
    assert one.noise.shape == (20, 1 if is_noise_shared else 4)
    reward = mdp.reward + phi.view(20, 5)
    exact = state_values(mdp._replace(reward=reward), theta)
    scores = torch.func.jacrev(log_policy)(theta, 5)
    expected = {"dice": 0.0, "others": 0.0}
    for b in range(4):
        value = exact + one.noise[:, 0 if is_noise_shared else b] * exact.square().sum().sqrt() / 20
        s, a = one.state[:, b].tolist(), one.action[:, b].tolist()
        delta = [reward[s[t], a[t]] + 0.8 * value[s[t + 1]] - value[s[t]] for t in range(T)]
        for t in range(T):
            gae = sum((0.8 * lambda_) ** (k - t) * delta[k] for k in range(t, T))
            to_go = sum(0.8 ** (k - t) * reward[s[k], a[k]] for k in range(t, T))
            expected["others"] += 0.8**t * gae * scores[s[t], a[t]] / 4
            expected["dice"] += 0.8**t * to_go * scores[s[t], a[t]] / 4
    for name in ESTIMATORS:
        gradient = torch.func.grad(te.sampled_loss)(theta, phi, mdp, one, name, lambda_)
        torch.testing.assert_close(-gradient, expected["dice" if name == "dice" else "others"], rtol=1e-10, atol=1e-12)


def test_outer_gradients_have_no_lambda() -> None:
    mdps = te.mdp_stack([0, 1])
    for permutation, is_same in (("EES", True), ("SEE", False), ("ESE", False)):
        found = [
            te.lirpg_gradients(Estimation(estimator="lvc", permutation=permutation, inner_lambda=x), mdps, 0)
            for x in (1.0, 0.9)
        ]
        assert torch.equal(*found) == is_same


def test_noisy_values_are_constant_in_theta_and_follow_the_intrinsic_reward() -> None:
    mdp, theta, phi = te.copy_of(te.mdp_stack([7]), 0), logits(3, 1)[0], logits(4, 1)[0]
    noise = torch.linspace(-1.0, 1.0, 20, dtype=F64).unsqueeze(-1)

    def values(theta: Tensor, phi: Tensor) -> Tensor:
        return te.noisy_values(with_intrinsic_reward(mdp, phi), theta, noise).squeeze(-1)

    assert (torch.func.jacrev(values)(theta, phi) == 0.0).all()
    h = 1e-5
    slope = (values(theta, phi + h) - values(theta, phi - h)) / (2 * h)
    torch.testing.assert_close(torch.func.jacrev(values, argnums=1)(theta, phi).sum(-1), slope, rtol=1e-7, atol=1e-9)
    exact = state_values(mdp, theta)
    torch.testing.assert_close(values(theta, 0.0 * phi), exact + noise[:, 0] * exact.norm() / 20)


def test_the_noises_scale_may_be_a_constant() -> None:
    mdp, theta, phi = te.copy_of(te.mdp_stack([7]), 0), logits(3, 1)[0], logits(4, 1)[0]
    noise = torch.linspace(-1.0, 1.0, 20, dtype=F64).unsqueeze(-1)

    def values(phi: Tensor, noise: Tensor = noise, is_constant: bool = True) -> Tensor:
        return te.noisy_values(with_intrinsic_reward(mdp, phi), theta, noise, is_constant).squeeze(-1)

    assert torch.equal(values(phi), values(phi, noise, False))
    of_values = torch.func.jacrev(lambda x: values(x, 0.0 * noise))(phi)
    assert torch.equal(torch.func.jacrev(values)(phi), of_values)
    mdps = te.mdp_stack([7])
    found = [
        te.lirpg_gradients(Estimation(estimator="lvc", permutation="ESE", is_noise_scale_constant=x), mdps, 0)
        for x in (False, True)
    ]
    assert (found[0] - found[1]).norm() > 1e-4 * found[0].norm()
    without = [
        te.maml_gradients(Estimation(estimator="lvc", permutation="ESE", is_noise_scale_constant=x), mdps, 0)
        for x in (False, True)
    ]
    assert torch.equal(*without), "without a learnt reward there is nothing to differentiate"


def test_data_depend_on_seed_place_and_step_alone() -> None:
    mdps, theta = te.mdp_stack([0, 1]), logits(5, 2)
    base = Estimation(estimator="ad", permutation="SSS", steps=2, trajectories=5)

    def draw(seed: int = 1, j: int = 0, **changes) -> Data:
        return te.data_sampler(replace(base, **changes), mdps, seed)(theta, j)

    first = draw()
    assert first.outer is None
    assert draw(j=2).value is None
    assert draw(j=2).derivative is None
    for changes in (
        {"estimator": "dice"},
        {"permutation": "SES"},
        {"learning_rate": 1.0},
        {"steps": 5},
        {"noise": 1.0},
    ):
        assert all(torch.equal(x, y) for x, y in zip(first.value, draw(**changes).value, strict=True))
    double = draw(noise=2.0).value
    assert torch.equal(double.action, first.value.action)
    torch.testing.assert_close(double.noise, 2.0 * first.value.noise)
    others = [first.derivative, draw(j=2).outer, draw(j=1).value, draw(seed=2).value]
    for other in others:
        assert (other.action != first.value.action).any()
        assert (other.noise != first.value.noise).all()
    assert (first.value.noise[0] != first.value.noise[1]).all()
    assert draw(permutation="ESS").value is None
    assert draw(permutation="SES").derivative is None
    assert draw(permutation="SSE", j=2).outer is None
    assert draw(j=2).outer.state.shape == (2, T + 1, 5)


def test_noise_shared_by_all_trajectories_does_not_average_out() -> None:
    """AD's Hessian is nearly deterministic given V^ (the noise, not sampling, spoils it)."""
    spread = {
        (shared, size): te.maml_gradients(
            Estimation(estimator="ad", permutation="ESE", trajectories=size, is_noise_shared=shared),
            te.mdp_stack([1] * 100),
            0,
        )
        .std(0)
        .norm()
        for shared, size in product((True, False), (8, 128))
    }
    assert spread[True, 128] > 0.8 * spread[True, 8]
    assert spread[False, 128] < 0.4 * spread[False, 8]


def test_float32() -> None:
    setting = Estimation(estimator="loaded-dice", permutation="SSS", trajectories=4)
    single, double = (te.maml_gradients(setting, te.mdp_stack([0, 1], dtype), 0) for dtype in (torch.float32, F64))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"estimator": "reinforce"},
        {"permutation": "SE"},
        {"permutation": "sse"},
        {"steps": 0},
        {"trajectories": 0},
        {"horizon": 0},
        {"noise": -1.0},
        {"inner_lambda": 1.1},
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=f"^{next(iter(change))} = "):
        Estimation(**{"estimator": "ad", "permutation": "SSS", **change})
