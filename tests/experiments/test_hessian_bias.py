"""Study `hessian-bias`: its estimate against the product of Jacobians written out, its bound, its parts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metagrad.experiments.gradient_bias import hessian_bias as study
from metagrad.experiments.gradient_bias.tabular_estimators import copy_of, mdp_stack
from metagrad.tabular import TabularMdp, ascend, hessian, maml_meta_gradient, policy_gradient

SETTINGS = {"mdp": 2, "draws": 6, "rates": [3.0], "steps": [1, 3], "coefficients": [1.0, 2.0, 3.0, 4.0, 5.0]}
SETTINGS["beyond"] = [1e4, 1e6]


def written_out(mdp: TabularMdp, rate: float, coefficients: list[Tensor]) -> Tensor:
    """Π_i (I + α H_i - 2 α diag(x_i)/P) ∇J(θ_K)."""
    theta = torch.zeros(100, dtype=torch.float64)
    jacobian = torch.eye(100, dtype=torch.float64)
    for i, x in enumerate(coefficients):
        here = ascend(mdp, theta, rate, i)
        jacobian = jacobian @ (torch.eye(100) + rate * (hessian(mdp, here) - torch.diag(2.0 * x / 100.0)))
    return jacobian @ policy_gradient(mdp, ascend(mdp, theta, rate, len(coefficients)))


@pytest.fixture(scope="module")
def result():
    return study.run_part(SETTINGS)["3"]


@pytest.mark.parametrize("steps", [1, 3])
def test_estimate_is_the_product_of_disturbed_jacobians(steps):
    mdps = mdp_stack([0, 1])
    x = [study.draws(0, i, 2, 100) for i in range(steps)]
    found = study.disturbed_meta_gradients(mdps, 4.0, x)
    for n in range(2):
        expected = written_out(copy_of(mdps, n), 4.0, [each[n] for each in x])
        torch.testing.assert_close(found[n], expected, rtol=1e-10, atol=1e-12)


def test_nothing_disturbed_is_the_exact_meta_gradient():
    mdps = mdp_stack([3])
    found = study.disturbed_meta_gradients(mdps, 4.5, [torch.zeros(1, 100, dtype=torch.float64)] * 2)
    exact = maml_meta_gradient(copy_of(mdps, 0), torch.zeros(100, dtype=torch.float64), 4.5, 2)
    torch.testing.assert_close(found[0], exact)


def test_draws_are_those_of_mdp_and_step_alone():
    assert torch.equal(study.draws(1, 0, 4, 5), study.draws(1, 0, 4, 5))
    assert not torch.equal(study.draws(1, 0, 4, 5), study.draws(1, 1, 4, 5))
    assert not torch.equal(study.draws(1, 0, 4, 5), study.draws(2, 0, 4, 5))


def test_bound_is_kept_and_tight_for_one_step(result):
    for point in result.values():
        assert np.all(np.array(point["expected"]) <= np.array(point["bound"]) * (1 + 1e-9))
    # One factor, and the disturbance is a multiple of the identity: nothing is lost.
    np.testing.assert_allclose(result["1"]["expected"], result["1"]["bound"])


@pytest.mark.parametrize(("name", "power"), [("expected", 3), ("spared", 2)])
def test_highest_power_decides_in_the_end(result, name, power):
    found = result["3"][name]
    slope = np.log(found[-1] / found[-2]) / np.log(100.0)
    assert slope == pytest.approx(power, abs=0.02)
    assert result["3"]["remainder"] < 1e-12


def test_sparing_the_only_update_leaves_no_bias(result):
    assert max(result["1"]["spared"]) < 1e-12


def test_measured_bias_is_that_of_the_mean_over_draws(result):
    mdp = copy_of(mdp_stack([2]), 0)
    exact = maml_meta_gradient(mdp, torch.zeros(100, dtype=torch.float64), 3.0, 1)
    samples = torch.stack([written_out(mdp, 3.0, [5.0 + 0.3 * x]) for x in study.draws(2, 0, 6, 100)])
    norm = torch.linalg.vector_norm(exact)
    measured = torch.linalg.vector_norm(samples.mean(0) - exact) / norm
    assert result["1"]["measured"][4] == pytest.approx(float(measured))
    cosine = torch.nn.functional.cosine_similarity(samples, exact.expand_as(samples)).mean()
    assert result["1"]["cosine"][4] == pytest.approx(float(cosine))


def test_parts_are_the_mdps_and_more_seeds_change_none():
    parts = study.STUDY.parts(study.STUDY.seeds, False)
    assert [settings["mdp"] for settings in parts.values()] == list(range(10))
    assert study.STUDY.parts(2, False).items() <= parts.items()
    assert study.STUDY.parts(2, True).items() <= study.STUDY.parts(5, True).items()
