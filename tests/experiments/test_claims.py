"""Verdicts and sentences from differences whose mean and standard error are known."""

import numpy as np
import pytest

from metagrad.experiments.reporting import claims
from metagrad.experiments.reporting.claims import (
    AGREES,
    OPPOSITE,
    UNDECIDED,
    WORDS,
    Change,
    Claim,
    Point,
    change_row,
    neighbours,
    paired,
)
from metagrad.experiments.reporting.statistics import mean_and_error

PAPER = "A > B in all sample size settings"


def point(mean: float, error: float, where: str = "N = 2", count: int = 4) -> Point:
    """Differences with this mean and this standard error of the mean."""
    shape = np.linspace(-1.0, 1.0, count)
    return Point(where, mean + error * shape / (shape.std(ddof=1) / count**0.5))


def claim(*points: Point, relation: claims.Relation = "above", quantity: str = "fig. 1b: A > B") -> Claim:
    return Claim(quantity, PAPER, relation, points)


def test_mean_and_error() -> None:
    values = np.array([1.0, 2.0, 6.0])
    assert mean_and_error(values) == pytest.approx((3.0, (7.0 / 3) ** 0.5))
    assert mean_and_error(point(0.3, 0.1).difference) == pytest.approx((0.3, 0.1))
    mean, error = mean_and_error(values[:1])
    assert mean == 1.0
    assert np.isnan(error)


@pytest.mark.parametrize(
    ("mean", "error", "above", "similar"),
    [
        # Of 4 MDPs the interval reaches 3.18 standard errors to both sides.
        (0.37, 0.10, "holds", "contradicted"),
        (0.36, 0.10, "holds", "undecided"),
        (0.31, 0.10, "undecided", "undecided"),
        (-0.37, 0.10, "contradicted", "contradicted"),
        (-0.36, 0.10, "contradicted", "undecided"),
        (-0.31, 0.10, "undecided", "undecided"),
        (0.04, 0.01, "holds", "undecided"),
        (0.04, 0.003, "holds", "holds"),
        (-0.04, 0.003, "contradicted", "holds"),
        (0.01, 0.01, "undecided", "holds"),
        (0.0, 0.0, "undecided", "holds"),
    ],
)
def test_verdicts(mean: float, error: float, above: str, similar: str) -> None:
    at = point(mean, error)
    assert claim(at).verdict(at) == above
    assert claim(at, relation="similar").verdict(at) == similar


@pytest.mark.parametrize("relation", ["above", "similar"])
def test_one_mdp_decides_nothing(relation: claims.Relation) -> None:
    at = Point("N = 2", np.array([0.01]))
    assert claim(at, relation=relation).verdict(at) == "undecided"
    assert claims.place_row(claim(at, relation=relation)).spread == "difference N = 2: +0.01 (1)"


def test_similar_has_a_margin_of_its_own() -> None:
    at = point(0.3, 0.1)
    assert claim(at, relation="similar")._replace(similar=0.62).verdict(at) == "holds"
    assert claim(at, relation="similar")._replace(similar=0.61).verdict(at) == "undecided"


def test_row_says_where_the_claim_holds() -> None:
    mixed = claims.place_row(claim(point(0.4, 0.1), point(-0.4, 0.1, "N = 4"), point(0.05, 0.1, "N = 8")))
    assert mixed.quantity == "fig. 1b: A > B"
    assert mixed.paper == PAPER
    assert mixed.ours == "holds at N = 2; contradicted at N = 4; undecided at N = 8"
    assert mixed.seeds == "4 MDPs"
    assert mixed.spread == ("difference N = 2: +0.40 ± 0.10 (4), N = 4: -0.40 ± 0.10 (0), N = 8: +0.05 ± 0.10 (2)")
    assert claims.place_row(claim(point(0.4, 0.1), point(0.4, 0.1, "N = 4"))).ours == "holds everywhere"
    assert claims.place_row(claim(point(0.4, 0.1))).ours == "holds at N = 2"


def test_differences_follow_from_the_numbers_alone() -> None:
    holds, against, open_ = point(0.4, 0.1), point(-0.4, 0.1, "N = 4"), point(0.0, 0.1, "N = 8")
    assert claims.differences([claim(holds)]) == []
    assert claims.differences([claim(holds, open_)]) == [
        f"The paper says: {PAPER}. Our numbers do not decide fig. 1b: A > B at N = 8."
    ]
    found = claims.differences(
        [
            claim(holds, against, quantity="first"),
            claim(open_, quantity="second"),
            claim(against, holds, against._replace(where="N = 16"), quantity="third"),
            claim(open_, quantity="fourth")._replace(paper="something else"),
        ]
    )
    assert found == [
        f"The paper says: {PAPER}. Our numbers contradict it for first at N = 4 (-0.40 ± 0.10); third at N = 4 "
        "(-0.40 ± 0.10), N = 16 (-0.40 ± 0.10). Our numbers do not decide second.",
        "The paper says: something else. Our numbers do not decide fourth.",
    ]


def test_what_is_claimed_somewhere_may_fail_elsewhere() -> None:
    holds, against, open_ = point(0.4, 0.1), point(-0.4, 0.1, "N = 4"), point(0.0, 0.1, "N = 8")
    somewhere = claim(holds, against, open_)._replace(is_somewhere=True)
    assert claims.differences([somewhere]) == []
    assert claims.place_row(somewhere).ours.endswith("undecided at N = 8 (claimed somewhere)")
    nowhere = claim(against)._replace(is_somewhere=True)
    assert claims.differences([nowhere]) == [
        f"The paper says: {PAPER}. Our numbers contradict it for fig. 1b: A > B at N = 4 (-0.40 ± 0.10)."
    ]


def test_pairing_removes_what_seeds_have_in_common() -> None:
    seeds = 100.0 * np.arange(5)
    noise = np.array([-0.1, 0.1, 0.0, -0.05, 0.05])
    difference = paired(seeds, seeds + 1.0 + noise)
    assert difference.difference == pytest.approx(1.0)
    assert difference.standard_error == pytest.approx(noise.std(ddof=1) / 5**0.5)
    assert WORDS[difference.verdict("above")] == AGREES
    assert WORDS[difference.verdict("below")] == OPPOSITE


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
    assert WORDS[paired([0.0, 0.0, 0.0], second).verdict("above")] == verdict


def test_one_seed_decides_nothing() -> None:
    assert WORDS[paired([0.0], [5.0]).verdict("above")] == UNDECIDED


def test_a_claim_is_one_row_and_a_sentence_for_every_change_that_is_otherwise() -> None:
    changes = neighbours(["a", "b", "c"], [[0.0, 0.0], [2.0, 2.1], [1.0, 1.1]])
    assert changes == [Change("a", [0.0, 0.0], "b", [2.0, 2.1]), Change("b", [2.0, 2.1], "c", [1.0, 1.1])]
    row = change_row("height", "higher", True, changes)
    assert row.quantity == "height"
    assert row.paper == "higher"
    assert row.ours == "a 0 → b 2.05: as in the paper; b 2.05 → c 1.05: the opposite"
    assert str(row.seeds) == "2"
    assert row.spread.startswith("paired 2.05 (SE 0.05), -1 (SE ")
    (sentence,) = row.differences
    assert sentence.startswith("Height, b → c: 2.05 → 1.05, the opposite (higher); paired difference -1 (SE ")
