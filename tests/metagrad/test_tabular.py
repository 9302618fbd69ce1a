from itertools import product as cartesian

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.errors import ConfigurationError
from metagrad.meta_gradient import meta_gradient, outer_gradient, reference_meta_gradient
from metagrad.monte_carlo import independent
from metagrad.optimizers import Sgd, constant
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
    objective,
    policy,
    policy_gradient,
    state_values,
    validate,
    with_intrinsic_reward,
)
from metagrad.unroll import InnerProblem, inner_update

PRODUCTS = ("retain", "recompute")
HORIZONS = (None, 1, 4)


def random_mdp(seed, states=3, actions=2, gamma=0.8, horizon=None):
    """MDP with well spread transitions, logits θ and an intrinsic reward φ ≠ θ."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mdp = TabularMdp(
        transition=torch.softmax(1.5 * normal(states, actions, states), dim=-1),
        reward=normal(states, actions),
        initial=torch.softmax(normal(states), dim=-1),
        gamma=gamma,
        horizon=horizon,
    )
    return mdp, normal(states * actions), 0.5 * normal(states * actions)


def stack(mdps):
    first = mdps[0]
    tensors = {name: torch.stack([getattr(m, name) for m in mdps]) for name in ("transition", "reward", "initial")}
    return first._replace(**tensors)


def over(mdp):
    """Axes for vmap over a stack of MDPs."""
    return mdp._replace(transition=0, reward=0, initial=0, gamma=None, horizon=None)


def enumerated_return(mdp, theta, state, steps):
    """Expected return from a state: the sum over every path of its probability times its discounted reward."""
    states, actions = mdp.reward.shape
    logits = theta.view(states, actions)
    total = 0.0
    for path in cartesian(cartesian(range(actions), range(states)), repeat=steps):
        probability, reward, s = 1.0, 0.0, state
        for t, (action, successor) in enumerate(path):
            probability *= float(logits[s, action].exp() / logits[s].exp().sum())
            probability *= float(mdp.transition[s, action, successor])
            reward += mdp.gamma**t * float(mdp.reward[s, action])
            s = successor
        total += probability * reward
    return total


def policy_gradient_theorem(mdp, theta, steps):
    """∇J[s, a] = Σ_t γᵗ P(s_t = s) π(a|s) A_{H-t}(s, a), with Q and the state distribution by plain loops."""
    states, actions = mdp.reward.shape
    pi = [[float(p) for p in row] for row in torch.softmax(theta.view(states, actions), dim=-1)]
    p, r = mdp.transition.tolist(), mdp.reward.tolist()
    value = [[0.0] * states]  # value[h][s], h steps to go
    q = []
    for _ in range(steps):
        last = value[-1]
        q.append(
            [
                [r[s][a] + mdp.gamma * sum(p[s][a][z] * last[z] for z in range(states)) for a in range(actions)]
                for s in range(states)
            ]
        )
        value.append([sum(pi[s][a] * q[-1][s][a] for a in range(actions)) for s in range(states)])
    gradient = torch.zeros(states, actions, dtype=torch.float64)
    occupied = mdp.initial.tolist()
    for t in range(steps):
        to_go = steps - t
        for s, a in cartesian(range(states), range(actions)):
            advantage = q[to_go - 1][s][a] - value[to_go][s]
            gradient[s, a] += mdp.gamma**t * occupied[s] * pi[s][a] * advantage
        occupied = [
            sum(occupied[s] * pi[s][a] * p[s][a][z] for s in range(states) for a in range(actions))
            for z in range(states)
        ]
    return gradient.flatten()


def test_policy():
    theta = torch.tensor([0.0, 0.0, 1.0, 1.0 + torch.log(torch.tensor(3.0)).item()], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(policy(theta, 2), expected)
    torch.testing.assert_close(log_policy(theta, 2), expected.log())


def test_values_satisfy_the_bellman_equation():
    mdp, theta, _ = random_mdp(0, states=5, actions=3)
    value, pi = state_values(mdp, theta), policy(theta, 3)
    for s in range(5):
        backed_up = sum(pi[s, a] * (mdp.reward[s, a] + mdp.gamma * mdp.transition[s, a] @ value) for a in range(3))
        torch.testing.assert_close(value[s], backed_up, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_values_of_a_horizon_are_sums_over_all_paths(steps):
    mdp, theta, _ = random_mdp(1, horizon=steps)
    expected = [enumerated_return(mdp, theta, s, steps) for s in range(3)]
    assert state_values(mdp, theta).tolist() == pytest.approx(expected, rel=1e-12)
    assert objective(mdp, theta).item() == pytest.approx(sum(mdp.initial.numpy() * expected), rel=1e-12)


def test_without_a_horizon_is_the_limit_of_long_horizons():
    mdp, theta, _ = random_mdp(2, gamma=0.8)
    for function, tolerance in ((state_values, 1e-12), (policy_gradient, 1e-12), (hessian, 1e-10)):
        torch.testing.assert_close(
            function(mdp._replace(horizon=250), theta), function(mdp, theta), rtol=tolerance, atol=1e-14
        )


def test_undiscounted_horizon_counts_steps():
    mdp, theta, _ = random_mdp(3, gamma=1.0, horizon=7)
    value = state_values(mdp._replace(reward=torch.ones_like(mdp.reward)), theta)
    assert value.tolist() == pytest.approx([7.0] * 3, rel=1e-14)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_gradient_is_that_of_the_policy_gradient_theorem(finite_differences, horizon, assert_relative):
    mdp, theta, _ = random_mdp(4, states=4, actions=3, gamma=0.7, horizon=horizon)
    gradient = policy_gradient(mdp, theta)
    assert_relative(gradient, policy_gradient_theorem(mdp, theta, horizon or 120), 1e-12)
    assert_relative(gradient, finite_differences(lambda x: objective(mdp, x), theta), 1e-6)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_hessian_is_the_derivative_of_the_gradient(finite_differences, horizon, assert_relative):
    mdp, theta, _ = random_mdp(5, horizon=horizon)
    exact = hessian(mdp, theta)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weights = torch.randn(len(theta), generator=generator, dtype=torch.float64)
        expected = finite_differences(lambda x, w=weights: w @ policy_gradient(mdp, x), theta)
        assert_relative(exact @ weights, expected, 1e-6)
    torch.testing.assert_close(exact, exact.T, rtol=0.0, atol=1e-13)
    assert hessian_norm(mdp, theta).item() == pytest.approx(torch.linalg.matrix_norm(exact, 2).item(), rel=1e-12)


def test_gradient_and_hessian_without_a_choice_are_zero():
    # All actions of a state alike: J does not depend on the policy.
    mdp, theta, _ = random_mdp(6)
    mdp = mdp._replace(
        transition=mdp.transition[:, :1].expand_as(mdp.transition), reward=mdp.reward[:, :1].expand_as(mdp.reward)
    )
    torch.testing.assert_close(policy_gradient(mdp, theta), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(hessian(mdp, theta), torch.zeros(6, 6, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("horizon", [None, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_maml_meta_gradient_is_the_derivative_of_the_exact_objective(
    finite_differences, steps, horizon, assert_relative
):
    mdp, theta, _ = random_mdp(10 + steps, states=4, actions=2, horizon=horizon)
    expected = finite_differences(lambda x: objective(mdp, ascend(mdp, x, 0.7, steps)), theta)
    for product in PRODUCTS:
        assert_relative(maml_meta_gradient(mdp, theta, 0.7, steps, product), expected, 1e-6)
    # The second order is no rounding: first-order MAML is far off.
    first_order = policy_gradient(mdp, ascend(mdp, theta, 0.7, steps))
    assert (first_order - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("horizon", [None, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_lirpg_meta_gradient_is_the_derivative_of_the_exact_objective(
    finite_differences, steps, horizon, assert_relative
):
    mdp, theta, phi = random_mdp(20 + steps, states=4, actions=2, horizon=horizon)

    def outer(phi):
        return objective(mdp, ascend(with_intrinsic_reward(mdp, phi), theta, 0.7, steps))

    expected = finite_differences(outer, phi)
    for product in PRODUCTS:
        assert_relative(lirpg_meta_gradient(mdp, theta, phi, 0.7, steps, product), expected, 1e-6)


def test_one_maml_step_by_hand(assert_relative):
    # eq. 3 with K = 1: (I + α∇²J(θ)) ∇J(θ + α∇J(θ)).
    mdp, theta, _ = random_mdp(30)
    expected = (torch.eye(6, dtype=torch.float64) + 0.4 * hessian(mdp, theta)) @ policy_gradient(
        mdp, theta + 0.4 * policy_gradient(mdp, theta)
    )
    assert_relative(maml_meta_gradient(mdp, theta, 0.4, 1), expected, 1e-12)


def test_one_lirpg_step_by_hand(assert_relative):
    # α (∂∇J/∂φ)ᵀ ∇J_R(θ₁); J is linear in the reward, so the Jacobian has ∇J for unit reward k as column k.
    mdp, theta, phi = random_mdp(31)
    theta_1 = theta + 0.4 * policy_gradient(with_intrinsic_reward(mdp, phi), theta)
    units = [mdp._replace(reward=unit.view(3, 2)) for unit in torch.eye(6, dtype=torch.float64)]
    outer = policy_gradient(mdp, theta_1)
    expected = torch.stack([0.4 * policy_gradient(unit, theta) @ outer for unit in units])
    assert_relative(lirpg_meta_gradient(mdp, theta, phi, 0.4, 1), expected, 1e-12)


MDPS = st.builds(
    random_mdp,
    seed=st.integers(0, 2**31),
    states=st.integers(2, 5),
    actions=st.integers(2, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.9]),
    horizon=st.one_of(st.none(), st.integers(1, 6)),
)


@settings(deadline=None, max_examples=40)
@given(setting=MDPS, steps=st.integers(1, 3), learning_rate=st.floats(0.0, 2.0))
def test_adjoint_pass_equals_differentiating_through_all_steps(setting, steps, learning_rate):
    mdp, theta, phi = setting
    through = torch.func.grad(lambda x: objective(mdp, ascend(mdp, x, learning_rate, steps)))(theta)
    in_phi = torch.func.grad(
        lambda x: objective(mdp, ascend(with_intrinsic_reward(mdp, x), theta, learning_rate, steps))
    )(phi)
    problem = InnerProblem(exact_loss, Sgd(learning_rate=constant(learning_rate)))
    reference = reference_meta_gradient(
        problem,
        exact_outer_loss,
        theta,
        problem.optimizer.init(theta),
        phi,
        [mdp] * steps,
        [(0.0, None)] * (steps - 1) + [(1.0, mdp)],
    )
    torch.testing.assert_close(-reference.eta, in_phi, rtol=1e-9, atol=1e-11)
    for product in PRODUCTS:
        maml = maml_meta_gradient(mdp, theta, learning_rate, steps, product)
        lirpg = lirpg_meta_gradient(mdp, theta, phi, learning_rate, steps, product)
        torch.testing.assert_close(maml, through, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(lirpg, in_phi, rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=40)
@given(setting=MDPS)
def test_values_are_backed_up_and_scores_of_a_state_cancel(setting):
    mdp, theta, _ = setting
    states, actions = mdp.reward.shape
    pi = policy(theta, actions)
    longer = mdp if mdp.horizon is None else mdp._replace(horizon=mdp.horizon + 1)
    backed_up = (pi * (mdp.reward + mdp.gamma * mdp.transition @ state_values(mdp, theta))).sum(-1)
    torch.testing.assert_close(state_values(longer, theta), backed_up, rtol=1e-10, atol=1e-12)
    # A constant added to the logits of one state changes nothing.
    zeros = torch.zeros(states, dtype=torch.float64)
    torch.testing.assert_close(policy_gradient(mdp, theta).view(states, actions).sum(-1), zeros, rtol=0, atol=1e-11)


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("function", [state_values, objective, policy_gradient, hessian, hessian_norm])
def test_mapped_over_mdps_and_parameters_equals_a_loop(function, horizon):
    settings = [random_mdp(seed, horizon=horizon) for seed in range(4)]
    mdps, thetas = stack([mdp for mdp, _, _ in settings]), torch.stack([theta for _, theta, _ in settings])
    mapped = torch.func.vmap(function, in_dims=(over(mdps), 0))(mdps, thetas)
    loop = torch.stack([function(mdp, theta) for mdp, theta, _ in settings])
    torch.testing.assert_close(mapped, loop, rtol=1e-12, atol=1e-14)
    mdp = settings[0][0]
    mapped = torch.func.vmap(lambda theta: function(mdp, theta))(thetas)
    loop = torch.stack([function(mdp, theta) for theta in thetas])
    torch.testing.assert_close(mapped, loop, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("horizon", [None, 4])
def test_many_mdps_as_one_problem_equal_a_loop(product, horizon):
    settings = [random_mdp(seed, horizon=horizon) for seed in range(3)]
    mdps = stack([mdp for mdp, _, _ in settings])
    theta = torch.cat([theta for _, theta, _ in settings])
    phi = torch.cat([phi for _, _, phi in settings])
    outer = independent(
        InnerProblem(lambda x, _eta, mdp: exact_outer_loss(x, mdp), Sgd(learning_rate=constant(0.0))), 3
    )
    for eta in (phi, phi[:0]):
        many = independent(InnerProblem(exact_loss, Sgd(learning_rate=constant(0.7))), 3)
        state, tape, x = many.optimizer.init(theta), [], theta
        for _ in range(2):
            update = inner_update(many, x, state, eta, mdps, keep_graph=product == "retain")
            x, state = update.theta, update.state
            tape.append(update.step)
        last = outer_gradient(lambda x, mdps, eta=eta: outer.loss(x, eta, mdps), x, mdps).gradient
        gradient = meta_gradient(many, tape, [None, last], product, wants_theta=True)
        if eta.numel():
            without_theta = meta_gradient(many, tape, [None, last], product) if product == "recompute" else gradient
            torch.testing.assert_close(without_theta.eta, gradient.eta, rtol=1e-10, atol=1e-12)
            loop = torch.cat([lirpg_meta_gradient(mdp, theta, phi, 0.7, 2) for mdp, theta, phi in settings])
            torch.testing.assert_close(-gradient.eta, loop, rtol=1e-10, atol=1e-12)
        else:
            loop = torch.cat([maml_meta_gradient(mdp, theta, 0.7, 2) for mdp, theta, _ in settings])
            torch.testing.assert_close(-gradient.theta, loop, rtol=1e-10, atol=1e-12)


def test_exact_losses():
    mdp, theta, phi = random_mdp(40)
    assert exact_outer_loss(theta, mdp)[0] == -objective(mdp, theta)
    assert exact_loss(theta, phi[:0], mdp)[0] == -objective(mdp, theta)
    intrinsic = mdp._replace(reward=mdp.reward + phi.view(3, 2))
    assert exact_loss(theta, phi, mdp)[0] == -objective(intrinsic, theta)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_compositional_bias_bound_is_the_recursion_of_its_proof(steps):
    # Δ_{i+1} = (1 + α c₂) Δᵢ + α σ / √|τ|, Δ₀ = 0.
    distance = 0.0
    for _ in range(steps):
        distance = (1.0 + 0.3 * 2.0) * distance + 0.3 * 1.5 / 8.0**0.5
    assert compositional_bias_bound(0.3, steps, 2.0, 1.5, 8) == pytest.approx(distance, rel=1e-13)


def test_compositional_bias_bound_without_curvature():
    assert compositional_bias_bound(0.3, 5, 0.0, 1.5, 9) == pytest.approx(5 * 0.3 * 0.5, rel=1e-14)
    assert compositional_bias_bound(0.3, 5, 1e-12, 1.5, 9) == pytest.approx(5 * 0.3 * 0.5, rel=1e-11)
    assert compositional_bias_bound(0.0, 5, 1.0, 1.5, 9) == 0.0
    assert compositional_bias_bound(0.3, 0, 1.0, 1.5, 9) == 0.0


@pytest.mark.parametrize("lipschitz", [5e-324, 1e-300])
def test_compositional_bias_bound_where_the_growth_vanishes(lipschitz):
    assert compositional_bias_bound(1e-30, 5, lipschitz, 1.0, 1) == pytest.approx(5e-30, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.0}, "gamma = 1.0: must be below 1 without a horizon"),
        ({"gamma": -0.1}, "gamma = -0.1"),
        ({"horizon": 0}, "horizon = 0"),
        ({"initial": torch.tensor([0.5, 0.6, 0.0])}, "initial = 'off by 1.0e-01'"),
        ({"initial": torch.tensor([1.5, -0.5, 0.0])}, "initial = 'off by 5.0e-01'"),
        ({"initial": torch.ones(2) / 2}, "initial.shape"),
        ({"transition": torch.ones(3, 2, 2) / 2}, "transition.shape"),
        ({"transition": torch.ones(3, 2, 3)}, "transition = "),
    ],
)
def test_what_is_no_mdp_is_refused(change, message):
    mdp, _, _ = random_mdp(50)
    assert validate(mdp) is mdp
    with pytest.raises(ConfigurationError) as error:
        validate(mdp._replace(**change))
    assert str(error.value).startswith(message)


def test_counts_and_sizes_are_checked():
    mdp, theta, phi = random_mdp(51)
    for call in (
        lambda: maml_meta_gradient(mdp, theta, 0.1, 0),
        lambda: lirpg_meta_gradient(mdp, theta, phi, 0.1, 0),
        lambda: compositional_bias_bound(0.1, 1, 1.0, 1.0, 0),
        lambda: compositional_bias_bound(0.1, 1, -1.0, 1.0, 1),
    ):
        with pytest.raises(ConfigurationError):
            call()


def test_meta_gradients_refuse_an_mdp_without_an_answer() -> None:
    mdp = TabularMdp(torch.ones(1, 2, 1), torch.zeros(1, 2), torch.ones(1), 1.0, None)
    for ask in (
        lambda: maml_meta_gradient(mdp, torch.zeros(2), 0.1, 1),
        lambda: lirpg_meta_gradient(mdp, torch.zeros(2), torch.zeros(2), 0.1, 1),
    ):
        with pytest.raises(ConfigurationError, match="gamma"):
            ask()
