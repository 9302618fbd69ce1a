"""Without jaxtyping's import hook: shapes that torch would broadcast, and flags that it would misread, are refused."""

import jaxtyping
import pytest
import torch

from metagrad.bootstrap import Matching, kl_divergence
from metagrad.diagnostics import add_samples, bias, cosine_accuracy, merge, no_samples, pearson
from metagrad.errors import ConfigurationError
from metagrad.surrogates import SURROGATES, ad, dice, discounted_objective, off_policy_dice
from metagrad.tabular import TabularMdp, ascend, compositional_bias_bound, objective

ROWS, FLAGS = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
MDP = TabularMdp(torch.full((2, 2, 2), 0.5), torch.zeros(2, 2), torch.full((2,), 0.5), 0.9, None)


@pytest.fixture(autouse=True)
def _unchecked_shapes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


CALLS = {
    "dice reward": (lambda: dice(ROWS, ROWS[:1], 0.9), "reward.shape"),
    "dice value": (lambda: dice(ROWS, ROWS, 0.9, ROWS[0]), "value.shape"),
    "dice gamma": (lambda: dice(ROWS, ROWS, 1.1), "gamma"),
    "dice gammas": (lambda: dice(ROWS, ROWS, torch.full((3,), 0.9)), "gamma.shape"),
    "off-policy": (lambda: off_policy_dice(ROWS, ROWS[:, :1], ROWS, 0.9), "behaviour_log_prob.shape"),
    "objective": (lambda: discounted_objective(ad, ROWS, ROWS[:, :1], 0.9), "advantage.shape"),
    "samples of one number": (lambda: add_samples(no_samples(5), torch.zeros(4, 1)), "samples.shape"),
    "samples in a row": (lambda: add_samples(no_samples(5), torch.zeros(5)), "samples.shape"),
    "merge": (lambda: merge(no_samples(5), no_samples(1)), "second.mean.shape"),
    "bias": (lambda: bias(add_samples(no_samples(5), torch.zeros(4, 5)), torch.zeros(1)), "exact.shape"),
    "cosine": (lambda: cosine_accuracy(torch.ones(5), torch.ones(1)), "y.shape"),
    "pearson": (lambda: pearson(torch.ones(5), torch.ones(1)), "y.shape"),
    "kl": (lambda: kl_divergence(torch.zeros(4, 3), torch.zeros(1, 3)), "policy.shape"),
    "matching direction": (lambda: Matching(direction="online||online"), "matching.direction"),
    "matching states": (lambda: Matching(states="last"), "matching.states"),
    "one row of logits": (lambda: objective(MDP, torch.zeros(2)), "theta.shape"),
    "steps": (lambda: ascend(MDP, torch.zeros(4), 0.1, -1), "steps"),
    "bound": (lambda: compositional_bias_bound(0.1, -1, 1.0, 1.0, 1), "steps"),
}
for _name, _surrogate in SURROGATES.items():
    CALLS[f"{_name} shape"] = (lambda s=_surrogate: s(ROWS, FLAGS[:1]), "is_last.shape")
    CALLS[f"{_name} dtype"] = (lambda s=_surrogate: s(ROWS, FLAGS.long()), "is_last.dtype")


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused(name):
    call, field = CALLS[name]
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        call()
