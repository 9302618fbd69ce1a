"""The problem against the paper's sums term by term, its meta-gradient against slow exact references."""

import math

import pytest
import torch
from torch import Tensor

from metagrad.experiments.one_step_at_a_time import mrp_problem as mrp
from metagrad.meta_gradient import outer_weights, reference_meta_gradient
from metagrad.monte_carlo import LookAhead, unroll_gradients
from metagrad.optimizers import OptimizerState
from metagrad.unroll import inner_update

F64 = torch.float64


def a_start(seed: int = 0) -> tuple[Tensor, OptimizerState, Tensor]:
    """θ, the optimizer's state and η some updates into training, where Adam's moments are no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    problem = mrp.inner_problem()
    theta, eta = mrp.init_theta(generator, F64), torch.randn(mrp.STATES, generator=generator, dtype=F64)
    state = problem.optimizer.init(theta)
    sample = mrp.batch_sampler(generator, dtype=F64)
    for _ in range(5):
        update = inner_update(problem, theta, state, eta, one_of(sample(theta[None], 0)), keep_graph=False)
        theta, state = update.theta, update.state
    return theta, state, eta


def one_of(batch: mrp.MrpBatch) -> mrp.MrpBatch:
    return mrp.MrpBatch(batch.inner[0], batch.outer[0])


def slow_losses(theta: Tensor, eta: Tensor, rewards: Tensor) -> tuple[float, float]:
    """L and L' by loops over episodes, states and rewards still to come, with C.1's indices."""
    values = mrp.state_values(theta)
    inner = outer = 0.0
    states, episodes = rewards.shape
    for b in range(episodes):
        for i in range(states):
            g_inner = g_outer = 0.0
            for j in range(i, states):
                gamma_j = 1.0 / (1.0 + math.exp(-float(eta[j])))
                g_inner += gamma_j ** (j - i + 1) * float(rewards[j, b])
                g_outer += float(rewards[j, b])
            inner += 0.5 * (g_inner - float(values[i])) ** 2 / (states * episodes)
            outer += 0.5 * (g_outer - float(values[i])) ** 2 / (states * episodes)
    return inner, outer


def test_losses_are_the_papers_sums() -> None:
    theta, _, eta = a_start()
    batch = one_of(mrp.batch_sampler(torch.Generator().manual_seed(1), batch_size=3, dtype=F64)(theta[None], 0))
    inner, outer = slow_losses(theta, eta, batch.inner)
    torch.testing.assert_close(float(mrp.inner_loss(theta, eta, batch)[0]), inner)
    torch.testing.assert_close(float(mrp.outer_loss(theta, batch)[0]), outer)


def test_losses_see_their_own_episodes() -> None:
    theta, _, eta = a_start()
    batch = one_of(mrp.batch_sampler(torch.Generator().manual_seed(1), dtype=F64)(theta[None], 0))
    inner, outer = (mrp.MrpBatch(batch.inner, 0 * batch.outer), mrp.MrpBatch(0 * batch.inner, batch.outer))
    assert mrp.inner_loss(theta, eta, batch)[0] == mrp.inner_loss(theta, eta, inner)[0]
    assert mrp.outer_loss(theta, batch)[0] == mrp.outer_loss(theta, outer)[0]


def test_with_discounts_0_and_1_targets_are_noise_free_and_the_values_of_even_states_to_come() -> None:
    ideal = torch.tensor([40.0, -1000.0] * 5, dtype=F64)
    rewards = mrp.sample_rewards((4,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(mrp.inner_target(ideal, rewards), mrp.true_values(F64)[:, None].expand(-1, 4))


def test_true_values_are_the_mean_return() -> None:
    rewards = mrp.sample_rewards((100_000,), torch.Generator().manual_seed(0))
    returns = mrp.outer_target(rewards)
    standard_error = returns.std(1) / math.sqrt(returns.shape[1])
    assert ((returns.mean(1) - mrp.true_values(F64)).abs() <= 4 * standard_error + 1e-12).all()


def test_values_are_a_two_layer_relu_network_of_s_over_10() -> None:
    theta = mrp.init_theta(torch.Generator().manual_seed(3), F64) + 0.1
    layers = mrp.LAYOUT.unflatten(theta)
    for s in range(mrp.STATES):
        x = torch.tensor([s / 10], dtype=F64)
        for number in (1, 2, 3):
            x = layers[f"weight_{number}"] @ x + layers[f"bias_{number}"]
            x = x.clamp(min=0) if number < 3 else x
        torch.testing.assert_close(mrp.state_values(theta)[s], x[0], rtol=1e-6, atol=1e-7)  # s / 10 is float32 there


def test_initialisation_is_haikus() -> None:
    theta = torch.stack([mrp.init_theta(torch.Generator().manual_seed(seed)) for seed in range(200)])
    layers = [mrp.LAYOUT.unflatten(row) for row in theta]
    for name, inputs in (("weight_1", 1), ("weight_2", 10), ("weight_3", 10)):
        weights = torch.stack([layer[name] for layer in layers])
        assert weights.abs().max() <= 2 / math.sqrt(inputs)
        assert abs(weights.mean()) < 0.05
        assert weights.std() == pytest.approx(0.88 / math.sqrt(inputs), rel=0.05)  # a normal cut at 2 σ has 0.88 σ
    assert all((layer[f"bias_{number}"] == 0).all() for layer in layers for number in (1, 2, 3))
    assert (mrp.discounts(mrp.init_eta()) == 0.5).all()


@pytest.mark.parametrize("is_outer_fresh", [True, False])
def test_outer_episodes_are_fresh_or_those_of_the_last_update(is_outer_fresh: bool) -> None:
    sample = mrp.batch_sampler(torch.Generator().manual_seed(0), is_outer_fresh, batch_size=4)
    theta = torch.zeros(2, mrp.LAYOUT.size)
    batches = [sample(theta, j) for j in range(3)]
    assert batches[0].inner.shape == (2, mrp.STATES, 4)
    assert len({float(batch.inner[0, 1, 0]) for batch in batches}) == 3
    assert (batches[0].inner[0] != batches[0].inner[1])[1::2].all()  # every unroll has its own
    for j in (1, 2):
        torch.testing.assert_close(batches[j].outer, batches[j if is_outer_fresh else j - 1].inner, rtol=0, atol=0)


@pytest.mark.parametrize("is_outer_fresh", [True, False])
@pytest.mark.parametrize(("estimator", "n"), [("n-step", 1), ("n-step", 4), ("mix", 4)])
def test_meta_gradient_is_that_of_the_whole_graph(estimator: str, n: int, is_outer_fresh: bool) -> None:
    theta, state, eta = start = a_start()
    problem, weights = mrp.inner_problem(), outer_weights("mix" if estimator == "mix" else "n-step", n)

    def sampler() -> mrp.Sampler:
        return mrp.batch_sampler(torch.Generator().manual_seed(7), is_outer_fresh, dtype=F64)

    for product in ("retain", "recompute"):
        ours = unroll_gradients(problem, mrp.outer_loss, sampler(), start, LookAhead(weights, product), 3).eta
        sample = sampler()
        batches = [sample(theta.expand(3, -1), j) for j in range(n + 1)]
        for k in range(3):
            own = [mrp.MrpBatch(batch.inner[k], batch.outer[k]) for batch in batches]
            outers = list(zip(weights, own[1:], strict=True))
            exact = reference_meta_gradient(problem, mrp.outer_loss, theta, state, eta, own[:-1], outers).eta
            torch.testing.assert_close(ours[k], exact)


def test_meta_gradient_is_the_slope_of_the_outer_loss_after_the_updates() -> None:
    theta, state, eta = start = a_start()
    problem, n = mrp.inner_problem(), 3
    seeded = [mrp.batch_sampler(torch.Generator().manual_seed(7), dtype=F64) for _ in range(2)]
    own = [one_of(seeded[0](theta[None], j)) for j in range(n + 1)]

    def after(eta: Tensor) -> Tensor:
        at, moments = theta, state
        for batch in own[:-1]:
            update = inner_update(problem, at, moments, eta, batch, keep_graph=False)
            at, moments = update.theta, update.state
        return mrp.outer_loss(at, own[-1])[0]

    look_ahead = LookAhead(outer_weights("n-step", n))
    gradient = unroll_gradients(problem, mrp.outer_loss, seeded[1], start, look_ahead, 1).eta[0]
    h = 1e-4
    slopes = torch.stack([(after(eta + h * e) - after(eta - h * e)) / (2 * h) for e in torch.eye(10, dtype=F64)])
    torch.testing.assert_close(gradient, slopes, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("is_outer_fresh", [True, False])
def test_averaged_episodes_give_the_meta_gradients_of_all(is_outer_fresh: bool) -> None:
    gradients = []
    for is_averaged in (False, True):
        sample = mrp.batch_sampler(torch.Generator().manual_seed(7), is_outer_fresh, is_averaged, dtype=F64)
        assert sample(torch.zeros(2, 1), 0).inner.shape == (2, mrp.STATES, 1 if is_averaged else mrp.BATCH_SIZE)
        look_ahead = LookAhead(outer_weights("mix", 3))
        gradients.append(unroll_gradients(mrp.inner_problem(), mrp.outer_loss, sample, a_start(), look_ahead, 2).eta)
    torch.testing.assert_close(*gradients)
