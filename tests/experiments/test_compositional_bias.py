"""Study `compositional-bias`: its unrolls, variance and curvature against slow versions of each."""

import numpy as np
import pytest
import torch

from metagrad.experiments.gradient_bias import compositional_bias as study
from metagrad.experiments.gradient_bias.tabular_estimators import (
    Estimation,
    copy_of,
    data_sampler,
    maml_gradients,
    mdp_stack,
    sampled_loss,
)
from metagrad.tabular import ascend, compositional_bias_bound, hessian_norm, maml_meta_gradient

SETTINGS = {"mdp": 1, "field": "trajectories", "base": {"learning_rate": 3.0, "steps": 2}, "values": [2, 32]}
SETTINGS |= {"trials": 6, "singles": 16, "curvatures": 2}


@pytest.fixture(scope="module")
def result():
    return study.run_part(SETTINGS)


def test_unrolls_give_the_meta_gradients_and_the_way_there():
    estimation = Estimation(estimator="lvc", permutation="SEE", learning_rate=3.0, steps=2, trajectories=4)
    mdps = mdp_stack([0, 1, 1])
    thetas: list[torch.Tensor] = []
    torch.testing.assert_close(maml_gradients(estimation, mdps, 7, thetas), maml_gradients(estimation, mdps, 7))
    assert len(thetas) == 3
    data = data_sampler(estimation, mdps, 7)(thetas[1], 1)
    for n, before in enumerate(thetas[1]):
        theta = before.clone().requires_grad_()
        assert data.value is not None
        one = type(data.value)(*(x[n] for x in data.value))
        loss = sampled_loss(theta, theta[:0], copy_of(mdps, n), one, "lvc", 1.0)
        (gradient,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(thetas[2][n], before - 3.0 * gradient)


def test_variance_of_an_average_is_that_of_one_trajectory_over_their_number():
    estimation = Estimation(
        estimator="ad", permutation="SEE", learning_rate=1.0, trajectories=16, is_noise_shared=False
    )
    mdps = mdp_stack([0] * 2)
    theta = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = study.gradient_variance(estimation, mdps, theta, 4_000, seed=1)
    # From θ₀ = 0 the update at rate 1 is the gradient's estimate: the same quantity from averages of 16.
    at_zero = study.gradient_variance(estimation, mdps, torch.zeros_like(theta), 4_000, seed=1)
    thetas: list[torch.Tensor] = []
    maml_gradients(estimation, mdp_stack([0] * 1_000), 2, thetas)
    averaged = thetas[1].var(dim=0).sum()
    assert single.shape == (2,)
    assert float(averaged) == pytest.approx(float(at_zero.mean()) / 16, rel=0.05)
    assert not torch.allclose(single, at_zero)


def test_curvature_is_the_largest_on_and_between_the_paths_before_the_end():
    mdp = copy_of(mdp_stack([0]), 0)
    zeros = torch.zeros(100, dtype=torch.float64)
    path = [ascend(mdp, zeros, 9.0, i) for i in range(3)]
    sampled = [theta + 0.3 * torch.sin(torch.arange(200.0).view(2, 100)) for theta in path]
    points = [path[0], path[1], *sampled[1], *((path[1] + x) / 2 for x in sampled[1])]
    expected = max(float(hessian_norm(mdp, theta)) for theta in points)
    assert study.largest_curvature(mdp, path, sampled) == pytest.approx(expected)
    assert study.largest_curvature(mdp, path[:2], sampled[:2]) == pytest.approx(float(hessian_norm(mdp, zeros)))


@pytest.mark.parametrize("highest", ["exact", "half-way", "sampled"])
def test_curvature_is_looked_for_in_all_three_places(monkeypatch, highest):
    exact, sampled = torch.zeros(2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    peak = {"exact": 0.0, "half-way": 0.5, "sampled": 1.0}[highest]
    monkeypatch.setattr(study, "hessian_norm", lambda mdp, theta: 9.0 - (theta - peak).abs().sum())
    far = exact + 50.0
    found = study.largest_curvature(copy_of(mdp_stack([0]), 0), [far, exact, exact], [far[None], sampled, sampled])
    assert found == 9.0


def test_distance_bias_and_bound_of_a_point(result):
    estimation = Estimation(estimator="ad", permutation="SEE", learning_rate=3.0, steps=2, trajectories=32)
    mdps = mdp_stack([1] * 6)
    mdp, zeros = copy_of(mdps, 0), torch.zeros(100, dtype=torch.float64)
    thetas: list[torch.Tensor] = []
    gradients = maml_gradients(estimation, mdps, 1, thetas)
    exact = maml_meta_gradient(mdp, zeros, 3.0, 2)
    found = {name: values[1] for name, values in result["ad"].items()}
    apart = [float(torch.linalg.vector_norm(theta - ascend(mdp, zeros, 3.0, 2))) for theta in thetas[2]]
    assert found["distance"] == pytest.approx(np.mean(apart))
    assert found["error"] == pytest.approx(np.std(apart, ddof=1) / 6**0.5)
    norm = torch.linalg.vector_norm(exact)
    assert found["bias"] == pytest.approx(float(torch.linalg.vector_norm(gradients.mean(0) - exact) / norm))
    cosine = torch.nn.functional.cosine_similarity(gradients, exact.expand(6, -1)).mean()
    assert found["cosine"] == pytest.approx(float(cosine))
    bound = compositional_bias_bound(3.0, 2, found["lipschitz"], found["deviation"], 32)
    assert found["bound"] == pytest.approx(bound)
    assert found["distance"] < bound


def test_three_estimators_are_one_and_dice_is_another(result):
    for name in ("distance", "bias", "pearson"):
        np.testing.assert_allclose(result["lvc"][name], result["ad"][name])
        np.testing.assert_allclose(result["loaded-dice"][name], result["ad"][name])
    assert result["dice"]["distance"][0] > result["ad"]["distance"][0]
    assert "bound" not in result["lvc"]


def test_parts_are_three_sweeps_of_ten_mdps_and_more_seeds_change_none():
    parts = study.STUDY.parts(study.STUDY.seeds, False)
    assert len(parts) == 30
    first = parts["learning-rate-mdp0"]
    assert first["base"] == {"steps": 6, "trajectories": 32}
    assert first["values"] == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]
    assert study.STUDY.parts(2, False).items() <= parts.items()
    assert study.STUDY.parts(2, True).items() <= study.STUDY.parts(5, True).items()
