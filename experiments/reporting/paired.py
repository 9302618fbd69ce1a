"""A paper's "A is larger than B" against measurements of both with the same seeds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.experiments.reporting.report import Row, critical, mean_and_error, number

AGREES = "as in the paper"
OPPOSITE = "the opposite"
UNDECIDED = "not distinguishable"


class Paired(NamedTuple):
    """Mean difference of two quantities over the seeds that both were measured with."""

    difference: float
    standard_error: float  # nan with a single seed
    seeds: int

    def verdict(self, is_larger_claimed: bool) -> str:
        """Does the difference have the claimed sign? Undecided where 0 is in its 95 % interval, and with one seed."""
        if not abs(self.difference) > critical(self.seeds) * self.standard_error:
            return UNDECIDED
        return AGREES if (self.difference > 0) == is_larger_claimed else OPPOSITE

    def __str__(self) -> str:
        return f"{number(self.difference)} (SE {number(self.standard_error, 2)})"


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """second - first, seed by seed.

    >>> paired([1.0, 1.0], [3.0, 5.0])
    Paired(difference=3.0, standard_error=1.0, seeds=2)
    """
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return Paired(*mean_and_error(difference), len(difference))


class Change(NamedTuple):
    """Two quantities [seeds], the second one claimed to be larger, or smaller, than the first."""

    first_label: str
    first: ArrayLike
    second_label: str
    second: ArrayLike


def neighbours(labels: Sequence[str], values: Sequence[ArrayLike]) -> list[Change]:
    """Every quantity of a sequence against the one before it."""
    named = list(zip(labels, values, strict=True))
    return [Change(*first, *second) for first, second in pairwise(named)]


def claim_row(quantity: str, claim: str, is_larger_claimed: bool, changes: Sequence[Change]) -> tuple[Row, list[str]]:
    """One line of a report for a claim about several changes, and a sentence for each change that is otherwise."""
    ours, spreads, sentences = [], [], []
    for change in changes:
        difference = paired(change.first, change.second)
        verdict = difference.verdict(is_larger_claimed)
        first, second = (
            number(float(np.asarray(values, dtype=np.float64).mean())) for values in (change.first, change.second)
        )
        ours.append(f"{change.first_label} {first} → {change.second_label} {second}: {verdict}")
        spreads.append(str(difference))
        if verdict != AGREES:
            what = f"{quantity[0].upper()}{quantity[1:]}, {change.first_label} → {change.second_label}"
            sentences.append(f"{what}: {first} → {second}, {verdict} ({claim}); paired difference {difference}.")
    seeds = str(len(np.asarray(changes[0].first)))
    return Row(quantity, claim, "; ".join(ours), seeds, "paired " + ", ".join(spreads)), sentences
