"""Verdicts on a paper's claims: differences paired over seeds, and what is said where they are otherwise."""

import numpy as np
import pytest

from metagrad.experiments.reporting.paired import AGREES, OPPOSITE, UNDECIDED, Change, claim_row, neighbours, paired


def test_pairing_removes_what_seeds_have_in_common() -> None:
    seeds = 100.0 * np.arange(5)
    noise = np.array([-0.1, 0.1, 0.0, -0.05, 0.05])
    difference = paired(seeds, seeds + 1.0 + noise)
    assert difference.difference == pytest.approx(1.0)
    assert difference.standard_error == pytest.approx(noise.std(ddof=1) / 5**0.5)
    assert difference.verdict(is_larger_claimed=True) == AGREES
    assert difference.verdict(is_larger_claimed=False) == OPPOSITE


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        # Of 3 seeds the interval reaches 4.303 standard errors to both sides.
        ([1.41, 0.59, 1.0], UNDECIDED),  # 1 ± 0.237
        ([1.40, 0.60, 1.0], AGREES),  # 1 ± 0.231
        ([-1.40, -0.60, -1.0], OPPOSITE),
        ([0.0, 0.0, 0.0], UNDECIDED),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(second: list[float], verdict: str) -> None:
    assert paired([0.0, 0.0, 0.0], second).verdict(is_larger_claimed=True) == verdict


def test_one_seed_decides_nothing() -> None:
    assert paired([0.0], [5.0]).verdict(is_larger_claimed=True) == UNDECIDED


def test_a_claim_is_one_row_and_a_sentence_for_every_change_that_is_otherwise() -> None:
    changes = neighbours(["a", "b", "c"], [[0.0, 0.0], [2.0, 2.1], [1.0, 1.1]])
    assert changes == [Change("a", [0.0, 0.0], "b", [2.0, 2.1]), Change("b", [2.0, 2.1], "c", [1.0, 1.1])]
    row, sentences = claim_row("height", "higher", True, changes)
    assert row.quantity == "height"
    assert row.paper == "higher"
    assert row.ours == "a 0 → b 2.05: as in the paper; b 2.05 → c 1.05: the opposite"
    assert row.seeds == "2"
    assert row.spread.startswith("paired 2.05 (SE 0.05), -1 (SE ")
    (sentence,) = sentences
    assert sentence.startswith("Height, b → c: 2.05 → 1.05, the opposite (higher); paired difference -1 (SE ")
