import pytest
import torch

from metagrad.surrogates import SURROGATES, ad, lvc


def log_prob(logits):
    """log π(action 0) as a [1, 1] tensor, for a softmax policy over three actions."""
    return torch.log_softmax(logits, -1)[0].reshape(1, 1)


@pytest.fixture
def logits():
    return torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)


def test_names():
    assert SURROGATES == {"ad": ad, "lvc": lvc}


@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_first_derivative_is_the_score(surrogate, logits):
    score = torch.func.grad(lambda x: log_prob(x).sum())(logits)
    torch.testing.assert_close(torch.func.grad(lambda x: surrogate(log_prob(x)).sum())(logits), score)


def test_second_derivatives_by_hand(logits):
    # Softmax: ∇ log π₀ = e₀ - π, ∇² log π = -(diag π - ππᵀ); ∇²π₀/π₀ = ∇² log π₀ + ∇ log π₀ ∇ log π₀ᵀ.
    pi = torch.softmax(logits, -1)
    score = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - pi
    hessian_log_pi = torch.outer(pi, pi) - torch.diag(pi)
    hessian = {
        name: torch.func.hessian(lambda x, s=surrogate: s(log_prob(x)).sum())(logits)
        for name, surrogate in SURROGATES.items()
    }
    torch.testing.assert_close(hessian["ad"], hessian_log_pi, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hessian["lvc"], hessian_log_pi + torch.outer(score, score), rtol=1e-12, atol=1e-14)
    hessian_pi = torch.func.hessian(lambda x: log_prob(x).exp().sum())(logits)
    torch.testing.assert_close(hessian["lvc"], hessian_pi / pi[0], rtol=1e-12, atol=1e-14)
    assert (hessian["ad"] - hessian["lvc"]).abs().max() > 0.1


def test_values(logits):
    assert torch.equal(ad(log_prob(logits)), log_prob(logits))
    assert torch.equal(lvc(log_prob(logits)), torch.ones(1, 1, dtype=torch.float64))


def test_lvc_mean_hessian_is_that_of_the_expected_reward(logits):
    # E_π[r · s(log π)] has, with s = lvc, the exact Hessian of Σ π r; with s = ad it has not: the bias of AD.
    reward = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    pi = torch.softmax(logits, -1)
    exact = torch.func.hessian(lambda x: (torch.softmax(x, -1) * reward).sum())(logits)

    def mean(surrogate):
        def objective(x):
            return (pi * reward * surrogate(torch.log_softmax(x, -1).unsqueeze(0)).squeeze(0)).sum()

        return torch.func.hessian(objective)(logits)

    torch.testing.assert_close(mean(lvc), exact, rtol=1e-12, atol=1e-14)
    assert (mean(ad) - exact).abs().max() > 0.05
