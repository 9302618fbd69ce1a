"""Decides by our numbers what a paper says about an ordering: differences paired over seeds (or MDPs), their error.

A paper whose figures carry no numbers still claims that one curve lies above another, or at its side. A claim is held
against the paired differences at every point where it is made, and what is written about it follows from them alone.
There are two kinds of points: places along curves (`place_row`), and changes from one quantity to another
(`change_row`), whose two means are shown.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.experiments.reporting.report import Row
from metagrad.experiments.reporting.statistics import Array, critical, mean_and_error, mean_of, number

Relation = Literal["above", "below", "similar"]
Verdict = Literal["holds", "contradicted", "undecided"]

SIMILAR = 0.05  # differences up to this one are "similar"
AGREES, OPPOSITE, UNDECIDED = "as in the paper", "the opposite", "not distinguishable"
WORDS: dict[Verdict, str] = {"holds": AGREES, "contradicted": OPPOSITE, "undecided": UNDECIDED}
"""The verdict on a change, in words."""


class Paired(NamedTuple):
    """Holds the mean difference of two quantities over the seeds (or MDPs) that both were measured with."""

    difference: float
    standard_error: float  # nan with a single seed
    seeds: int

    @classmethod
    def of(cls, differences: Array) -> "Paired":
        """Summarise differences [seeds]."""
        mean, error = mean_and_error(differences)
        return cls(float(mean), float(error), len(differences))

    @property
    def margin(self) -> float:
        """This is half the width of the 95 % interval of the mean (Student's t)."""
        return critical(self.seeds) * self.standard_error

    def verdict(self, relation: Relation, similar: float = SIMILAR) -> Verdict:
        """Decide by the interval whether a relation holds.

        "above": it lies above 0 (contradicted: below); "below" the other way round. "similar": it lies within
        ± `similar` (contradicted: outside). Otherwise all is undecided, as it is with a single seed.
        """
        if relation == "similar":
            if abs(self.difference) + self.margin <= similar:
                return "holds"
            return "contradicted" if abs(self.difference) - self.margin > similar else "undecided"
        if not abs(self.difference) > self.margin:
            return "undecided"
        return "holds" if (self.difference > 0) == (relation == "above") else "contradicted"

    def direction(self, larger: str, smaller: str) -> str:
        """Return the word for the side of 0 on which the interval lies, or say that it holds 0."""
        return {"holds": larger, "contradicted": smaller}.get(self.verdict("above"), UNDECIDED)

    def __str__(self) -> str:
        return f"{number(self.difference)} (SE {number(self.standard_error, 2)})"


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Return second - first, seed by seed.

    >>> paired([1.0, 1.0], [3.0, 5.0])
    Paired(difference=3.0, standard_error=1.0, seeds=2)
    """
    return Paired.of(np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64))


class Point(NamedTuple):
    """Holds paired differences at one place, one for each MDP: the curve that the paper has above less the other."""

    where: str
    difference: Array

    @property
    def paired(self) -> Paired:
        return Paired.of(self.difference)

    def __str__(self) -> str:
        mean, error, _ = self.paired
        return f"{mean:+.2f}" if np.isnan(error) else f"{mean:+.2f} ± {error:.2f}"


class Change(NamedTuple):
    """Represents two quantities [seeds], the second one claimed to be larger, or smaller, than the first."""

    first_label: str
    first: ArrayLike
    second_label: str
    second: ArrayLike

    @property
    def paired(self) -> Paired:
        return paired(self.first, self.second)

    def __str__(self) -> str:
        return f"{self.first_label} {mean_of(self.first)} → {self.second_label} {mean_of(self.second)}"


class Claim(NamedTuple):
    """Represents one ordering in the paper's text, at all the points where it is made."""

    quantity: str  # which figure and which curves
    paper: str  # what it says
    relation: Relation
    points: Sequence[Point]
    similar: float = SIMILAR
    is_somewhere: bool = False  # it is said to be found at some of the points, not at all of them

    def verdict(self, point: Point) -> Verdict:
        """Decide whether the relation holds at a point."""
        return point.paired.verdict(self.relation, self.similar)

    @property
    def places(self) -> dict[Verdict, list[Point]]:
        """Group the points by their verdicts; verdicts that no point has are left out."""
        found = {kind: [point for point in self.points if self.verdict(point) == kind] for kind in WORDS}
        return {kind: points for kind, points in found.items() if points}


def place_row(claim: Claim) -> Row:
    """Return the claim's line: where it holds, all the differences, and how many MDPs have one above 0.

    What differs is said in `differences`, sentence by sentence of the paper.
    """
    places = claim.places
    if len(places) == 1 and len(claim.points) > 1:
        ours = f"{next(iter(places))} everywhere"
    else:
        ours = "; ".join(f"{kind} at {', '.join(p.where for p in points)}" for kind, points in places.items())
    ours += " (claimed somewhere)" if claim.is_somewhere else ""
    spread = "difference " + ", ".join(f"{p.where}: {p} ({(p.difference > 0).sum()})" for p in claim.points)
    return Row(claim.quantity, claim.paper, ours, f"{len(claim.points[0].difference)} MDPs", spread)


def differences(claims: Sequence[Claim]) -> list[str]:
    """Say of each sentence of the paper where our numbers contradict it, by how much, and where they are undecided."""
    sentences = []
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [(claim, claim.places) for claim in claims if claim.paper == paper]
        own = [(claim, places) for claim, places in own if not (claim.is_somewhere and "holds" in places)]
        against = [
            f"{claim.quantity} at " + ", ".join(f"{point.where} ({point})" for point in places["contradicted"])
            for claim, places in own
            if "contradicted" in places
        ]
        open_ = [
            claim.quantity
            + (f" at {', '.join(point.where for point in places['undecided'])}" if len(places) > 1 else "")
            for claim, places in own
            if "undecided" in places
        ]
        found = [f"Our numbers contradict it for {'; '.join(against)}."] if against else []
        found += [f"Our numbers do not decide {'; '.join(open_)}."] if open_ else []
        if found:
            sentences.append(" ".join([f"The paper says: {paper}.", *found]))
    return sentences


def neighbours(labels: Sequence[str], values: Sequence[ArrayLike]) -> list[Change]:
    """Compare every quantity of a sequence with the one before it."""
    named = list(zip(labels, values, strict=True))
    return [Change(*first, *second) for first, second in pairwise(named)]


def change_row(quantity: str, paper: str, is_larger_claimed: bool, changes: Sequence[Change]) -> Row:
    """Return the line of a claim about several changes, with a sentence for each change that is otherwise."""
    ours, sentences = [], []
    for change in changes:
        verdict = WORDS[change.paired.verdict("above" if is_larger_claimed else "below")]
        ours.append(f"{change}: {verdict}")
        if verdict != AGREES:
            what = f"{quantity[0].upper()}{quantity[1:]}, {change.first_label} → {change.second_label}"
            means = f"{mean_of(change.first)} → {mean_of(change.second)}"
            sentences.append(f"{what}: {means}, {verdict} ({paper}); paired difference {change.paired}.")
    spread = "paired " + ", ".join(str(change.paired) for change in changes)
    return Row(quantity, paper, "; ".join(ours), len(np.asarray(changes[0].first)), spread, sentences)
