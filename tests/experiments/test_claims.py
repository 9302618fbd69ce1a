"""Verdicts and sentences from differences whose mean and standard error are known."""

import numpy as np
import pytest

from metagrad.experiments.reporting import claims
from metagrad.experiments.reporting.claims import Claim, Point
from metagrad.experiments.reporting.report import mean_and_error

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
    assert claims.verdict(claim(at), at) == above
    assert claims.verdict(claim(at, relation="similar"), at) == similar


@pytest.mark.parametrize("relation", ["above", "similar"])
def test_one_mdp_decides_nothing(relation: claims.Relation) -> None:
    at = Point("N = 2", np.array([0.01]))
    assert claims.verdict(claim(at, relation=relation), at) == "undecided"
    assert claims.row(claim(at, relation=relation)).spread == "difference N = 2: +0.01 (1)"


def test_similar_has_a_margin_of_its_own() -> None:
    at = point(0.3, 0.1)
    assert claims.verdict(claim(at, relation="similar")._replace(similar=0.62), at) == "holds"
    assert claims.verdict(claim(at, relation="similar")._replace(similar=0.61), at) == "undecided"


def test_row_says_where_the_claim_holds() -> None:
    mixed = claims.row(claim(point(0.4, 0.1), point(-0.4, 0.1, "N = 4"), point(0.05, 0.1, "N = 8")))
    assert mixed.quantity == "fig. 1b: A > B"
    assert mixed.paper == PAPER
    assert mixed.ours == "holds at N = 2; contradicted at N = 4; undecided at N = 8"
    assert mixed.seeds == "4 MDPs"
    assert mixed.spread == ("difference N = 2: +0.40 ± 0.10 (4), N = 4: -0.40 ± 0.10 (0), N = 8: +0.05 ± 0.10 (2)")
    assert claims.row(claim(point(0.4, 0.1), point(0.4, 0.1, "N = 4"))).ours == "holds everywhere"
    assert claims.row(claim(point(0.4, 0.1))).ours == "holds at N = 2"


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
    assert claims.row(somewhere).ours.endswith("undecided at N = 8 (claimed somewhere)")
    nowhere = claim(against)._replace(is_somewhere=True)
    assert claims.differences([nowhere]) == [
        f"The paper says: {PAPER}. Our numbers contradict it for fig. 1b: A > B at N = 4 (-0.40 ± 0.10)."
    ]
