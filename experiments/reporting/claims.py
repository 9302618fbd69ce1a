"""What a paper says about an ordering, decided by our numbers: paired differences over MDPs (or seeds) and their error.

A paper whose figures carry no numbers still claims that one curve lies above another, or at its side. Each claim is
held against the paired differences at every point where it is made; what is written about it follows from them alone.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from metagrad.experiments.reporting.report import Array, Row, critical, mean_and_error

Relation = Literal["above", "similar"]
Verdict = Literal["holds", "contradicted", "undecided"]

SIMILAR = 0.05  # differences up to this one are "similar"


class Point(NamedTuple):
    """Paired differences at one place: the curve that the paper has above less the other one, one for each MDP."""

    where: str
    difference: Array


class Claim(NamedTuple):
    """One ordering in the paper's text, at all the points where it is made."""

    quantity: str  # which figure and which curves
    paper: str  # what it says
    relation: Relation
    points: Sequence[Point]
    similar: float = SIMILAR
    is_somewhere: bool = False  # it is said to be found at some of the points, not at all of them


def verdict(claim: Claim, point: Point) -> Verdict:
    """Whether the relation holds at a point.

    By the 95 % interval of the mean difference (Student's t). "above": it lies above 0 (contradicted: below).
    "similar": it lies within ± `similar` (contradicted: outside). Otherwise undecided, as is all with a single MDP.
    """
    mean, error = mean_and_error(point.difference)
    margin = critical(len(point.difference)) * error
    if claim.relation == "similar":
        if abs(mean) + margin <= claim.similar:
            return "holds"
        return "contradicted" if abs(mean) - margin > claim.similar else "undecided"
    if mean - margin > 0.0:
        return "holds"
    return "contradicted" if mean + margin < 0.0 else "undecided"


def row(claim: Claim) -> Row:
    """The claim in the report's table: where it holds, all the differences, and how many MDPs have one above 0."""
    places = _places(claim)
    if len(places) == 1 and len(claim.points) > 1:
        ours = f"{next(iter(places))} everywhere"
    else:
        ours = "; ".join(f"{kind} at {', '.join(p.where for p in points)}" for kind, points in places.items())
    ours += " (claimed somewhere)" if claim.is_somewhere else ""
    spread = "difference " + ", ".join(f"{p.where}: {_shown(p)} ({(p.difference > 0).sum()})" for p in claim.points)
    return Row(claim.quantity, claim.paper, ours, f"{len(claim.points[0].difference)} MDPs", spread)


def differences(claims: Sequence[Claim]) -> list[str]:
    """For each sentence of the paper that our numbers contradict somewhere or do not decide: where, by how much."""
    sentences = []
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [(claim, _places(claim)) for claim in claims if claim.paper == paper]
        own = [(claim, places) for claim, places in own if not (claim.is_somewhere and "holds" in places)]
        against = [
            f"{claim.quantity} at " + ", ".join(f"{point.where} ({_shown(point)})" for point in places["contradicted"])
            for claim, places in own
            if "contradicted" in places
        ]
        open_ = [
            claim.quantity
            + (f" at {', '.join(point.where for point in places['undecided'])}" if len(places) > 1 else "")
            for claim, places in own
            if "undecided" in places
        ]
        found = [f"Our numbers contradict it for {'; '.join(against)}." if against else ""]
        found += [f"Our numbers do not decide {'; '.join(open_)}." if open_ else ""]
        if any(found):
            sentences.append(" ".join([f"The paper says: {paper}.", *(text for text in found if text)]))
    return sentences


def _places(claim: Claim) -> dict[Verdict, list[Point]]:
    """Where each verdict is found; without those that are not."""
    kinds: tuple[Verdict, ...] = ("holds", "contradicted", "undecided")
    found = {kind: [point for point in claim.points if verdict(claim, point) == kind] for kind in kinds}
    return {kind: points for kind, points in found.items() if points}


def _shown(point: Point) -> str:
    mean, error = mean_and_error(point.difference)
    return f"{mean:+.2f}" if np.isnan(error) else f"{mean:+.2f} ± {error:.2f}"
