"""Runs the tabular studies' sweeps of estimated meta-gradients, a part for each MDP, and draws tables and plots.

A part scores every estimator, permutation and value of a sweep on one MDP, with independent trials at one point.
"""

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings
from metagrad.diagnostics import add_samples, cosine_accuracy, no_samples, pearson, standard_deviation
from metagrad.experiments.gradient_bias.tabular_estimators import (
    ESTIMATORS,
    PERMUTATIONS,
    Estimation,
    copy_of,
    lirpg_gradients,
    maml_gradients,
    mdp_stack,
)
from metagrad.experiments.reporting.claims import Claim, Point, Relation, differences, place_row
from metagrad.experiments.reporting.figures import Curve, Figure, Panel, median_curve
from metagrad.experiments.reporting.parts import Parts
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import (
    Array,
    interquartile_mean,
    mean_and_error,
    mean_and_std,
    mean_of,
    number,
)
from metagrad.learner.storage import write_whole
from metagrad.tabular import TabularMdp, lirpg_meta_gradient, maml_meta_gradient

TRIALS, QUICK_TRIALS = 20, 10  # "same trials", Table 2
MDPS, QUICK_MDPS = 10, 4  # "independent trials", Table 2

Problem = Literal["maml", "lirpg"]
Metric = Literal["pearson", "cosine", "deviation", "variance"]
METRICS: dict[Metric, str] = {
    "pearson": "correlation",
    "cosine": "cosine (eq. 63)",
    "deviation": "summed std",
    "variance": "total variance",
}
"""Of the estimates of one MDP: the first two are means over its trials, the third is the release's "variance"."""

SPREADS: tuple[Metric, ...] = ("deviation", "variance")
SHOWN: tuple[tuple[Metric, bool], ...] = (
    ("pearson", False),
    ("pearson", True),
    ("deviation", True),
    ("variance", True),
)
"""Rows of a figure: a metric, and whether its median is drawn or its mean with standard error."""
CAPTION = (
    "From above: mean ± standard error and median over MDPs of the correlation (Pearson); medians of the summed"
    " standard deviation (the release's variance) and of the total variance."
)
TITLES: dict[str, str] = {"ad": "AD", "lvc": "LVC", "dice": "DiCE", "loaded-dice": "Loaded-DiCE"}

HOW_DECIDED = """\
The paper's figures carry no numbers, so the table holds its sentences against ours. A relation *holds* where the 95 %
interval (Student's t) of the mean paired difference over MDPs lies on its side of 0 (“≈”: within ±0.05), is
*contradicted* where it lies on the other one (“≈”: outside), and is *undecided* otherwise. The many verdicts are not
corrected for their number: where the true difference is 0, about one in forty is contradicted by chance. Differences
are mean ± standard error (number of MDPs above 0). Every number behind the figures (mean, median, IQM, spread over
MDPs; Pearson as released, cosine of eq. 63, summed standard deviation as released, total variance) is in
[numbers.csv](numbers.csv)."""
"""Ends the introductions of the reports: it tells how a claim is decided, and where the numbers are."""


class Sweep(NamedTuple):
    """Describes estimations that differ in one number, for some estimators and permutations."""

    name: str
    field: str  # of `Estimation`
    label: str  # of the x axis; its last word is the symbol of x in a sentence
    values: tuple[float, ...]
    quick_values: tuple[float, ...]
    base: dict[str, Any]  # the other fields of `Estimation`
    estimators: tuple[str, ...] = ESTIMATORS
    permutations: tuple[str, ...] = PERMUTATIONS
    is_log: bool = False

    @property
    def symbol(self) -> str:
        return self.label.rpartition(" ")[2]


class SweepCurves(NamedTuple):
    """Holds the results of one sweep: `metric[estimator, permutation]` has a line for each MDP, a column for each x."""

    sweep: Sweep
    x: Array
    of: dict[Metric, dict[tuple[str, str], Array]]


def parts(problem: Problem, sweeps: Sequence[Sweep], seeds: int, is_quick: bool) -> dict[str, Settings]:
    """Return a part for each sweep and MDP, "trajectories-mdp3" for instance; MDPs are numbered by their seeds."""
    return {
        f"{sweep.name}-mdp{mdp}": {
            "problem": problem,
            "mdp": mdp,
            "trials": QUICK_TRIALS if is_quick else TRIALS,
            "field": sweep.field,
            "values": list(sweep.quick_values if is_quick else sweep.values),
            "estimators": list(sweep.estimators),
            "permutations": list(sweep.permutations),
            "base": sweep.base,
        }
        for sweep in sweeps
        for mdp in range(min(seeds, QUICK_MDPS) if is_quick else seeds)
    }


def run_part(settings: Settings) -> Result:
    """Return {estimator: {permutation: {metric: [value for each x]}}} of one MDP."""
    mdps = mdp_stack([settings["mdp"]] * settings["trials"])
    curves: Result = {
        estimator: {permutation: {metric: [] for metric in METRICS} for permutation in settings["permutations"]}
        for estimator in settings["estimators"]
    }
    for value in settings["values"]:
        exact: Tensor | None = None
        for estimator, of_estimator in curves.items():
            for permutation, of_permutation in of_estimator.items():
                changes = {**settings["base"], settings["field"]: value, "estimator": estimator}
                estimation = Estimation(permutation=permutation, **changes)
                exact = _exact(settings["problem"], estimation, mdps) if exact is None else exact
                for metric, score in _scores(settings, estimation, mdps, exact).items():
                    of_permutation[metric].append(score)
    return curves


def _exact(problem: Problem, estimation: Estimation, mdps: TabularMdp) -> Tensor:
    mdp, learning_rate, steps = copy_of(mdps, 0), estimation.learning_rate, estimation.steps
    zeros = torch.zeros_like(mdp.reward).flatten()
    if problem == "maml":
        return maml_meta_gradient(mdp, zeros, learning_rate, steps)
    return lirpg_meta_gradient(mdp, zeros, zeros, learning_rate, steps)


def _scores(settings: Settings, estimation: Estimation, mdps: TabularMdp, exact: Tensor) -> dict[Metric, float]:
    estimate = maml_gradients if settings["problem"] == "maml" else lirpg_gradients
    samples = estimate(estimation, mdps, settings["mdp"])
    assert samples.isfinite().all(), f"{estimation}: not finite"
    exact = exact.expand_as(samples)
    spread = standard_deviation(add_samples(no_samples(samples.shape[1]), samples))
    scores: dict[Metric, Tensor] = {
        "pearson": pearson(samples, exact).mean(),
        "cosine": cosine_accuracy(samples, exact).mean(),
        "deviation": spread.sum(),
        "variance": spread.square().sum(),
    }
    return {metric: float(score) for metric, score in scores.items()}


def curves_of(sweeps: Sequence[Sweep], done: Parts) -> dict[str, SweepCurves]:
    """Join all parts of each sweep, MDPs in the order of their seeds."""
    found = {}
    for sweep in sweeps:
        own = [part for name, part in done.items() if name.rpartition("-mdp")[0] == sweep.name]
        own.sort(key=lambda part: part[0]["mdp"])
        pairs = list(product(sweep.estimators, sweep.permutations))
        found[sweep.name] = SweepCurves(
            sweep,
            np.asarray(own[0][0]["values"], dtype=np.float64),
            {metric: {(e, p): np.array([r[e][p][metric] for _, r in own]) for e, p in pairs} for metric in METRICS},
        )
    return found


def write_numbers(path: Path, all_curves: dict[str, SweepCurves]) -> None:
    """Write every number behind the figures: mean, median, IQM and standard deviation over the MDPs."""
    content = StringIO()
    table = csv.writer(content, lineterminator="\n")
    head = ("sweep", "x", "estimator", "permutation", "metric", "mdps", "mean", "median", "iqm", "std", "low", "high")
    table.writerow(head)
    for name, curves in all_curves.items():
        for metric, of_pair in curves.of.items():
            for pair, values in of_pair.items():
                for x, column in zip(curves.x, values.T, strict=True):
                    mean, std = mean_and_std(column)
                    numbers = (mean, np.median(column), interquartile_mean(column), std, column.min(), column.max())
                    table.writerow([name, f"{x:g}", *pair, metric, len(column), *(f"{each:.6g}" for each in numbers)])
    write_whole(path, content.getvalue().encode())


def curve(label: str, x: Array, values: Array, is_median: bool) -> Curve:
    """Return the mean over the MDPs [N, X] with its standard error as a band, or their median."""
    return median_curve(label, x, values) if is_median else (label, x, *mean_and_error(values))


def panel(curves: SweepCurves, metric: Metric, estimator: str, permutations: Sequence[str], is_median: bool) -> Panel:
    """Return the axes of one estimator's permutations along a sweep."""
    sweep = curves.sweep
    lines = [curve(name, curves.x, curves.of[metric][estimator, name], is_median) for name in permutations]
    return Panel(TITLES[estimator], sweep.label, axis_label(metric, is_median), lines, sweep.is_log, metric in SPREADS)


def axis_label(metric: Metric, is_median: bool) -> str:
    """Name what `curve` shows."""
    return METRICS[metric] + (", median" if is_median else ", mean")


def compared(
    curves: SweepCurves,
    metric: Metric,
    above: tuple[str, str],
    below: tuple[str, str],
    at: Sequence[float] | None = None,
) -> list[Point]:
    """Compare two (estimator, permutation) pair by pair at the points `at` of a sweep (None: all).

    Variances are compared by their logarithms. Points that the sweep lacks are left out: a quick version has fewer.
    """
    first, second = curves.of[metric][above], curves.of[metric][below]
    if metric in SPREADS:
        first, second = np.log(first), np.log(second)
    return [
        Point(f"{curves.sweep.symbol} = {x:g}", first[:, i] - second[:, i])
        for i, x in enumerate(curves.x)
        if at is None or x in at
    ]


def ordering(
    curves: SweepCurves,
    quantity: str,
    paper: str,
    pair: tuple[tuple[str, str], tuple[str, str]],
    at: Sequence[float] | None = None,
    metric: Metric = "pearson",
    relation: Relation = "above",
) -> Claim:
    """Return the paper's claim that one (estimator, permutation) lies above another, or is similar, along a sweep."""
    return Claim(quantity, paper, relation, compared(curves, metric, *pair, at))


def change(curves: SweepCurves, metric: Metric, pair: tuple[str, str]) -> Point:
    """Measure how far a curve rises from the first x to the last one."""
    values, x = curves.of[metric][pair], curves.x
    return Point(f"{curves.sweep.symbol} = {x[0]:g} to {x[-1]:g}", values[:, -1] - values[:, 0])


def summary_rows(curves: SweepCurves, figure: str, pairs: Sequence[tuple[str, str]], at: Sequence[float]) -> list[Row]:
    """Return correlations at some points of a sweep: both forms, and how far MDPs are apart."""
    rows = []
    for estimator, permutation in pairs:
        values, cosines = (curves.of[metric][estimator, permutation] for metric in ("pearson", "cosine"))
        for i, x in enumerate(curves.x):
            if x not in at:
                continue
            column = values[:, i]
            middle = f"mean {mean_of(column)}, median {number(np.median(column))}"
            middle += f", IQM {number(interquartile_mean(column))} (cosine: mean {mean_of(cosines[:, i])})"
            std = number(column.std(ddof=1)) if len(column) > 1 else "-"
            spread = f"std {std}, from {number(column.min())} to {number(column.max())}"
            name = f"{figure}, {TITLES[estimator]} {permutation}, {curves.sweep.symbol} = {x:g}: correlation"
            rows.append(Row(name, "figure only", middle, f"{len(column)} MDPs", spread))
    return rows


def identity_row(
    curves: Sequence[SweepCurves], permutations: Sequence[str], where: str, at: slice = slice(None)
) -> Row:
    """Compare AD, LVC and Loaded-DiCE, sample by sample, where their definitions make them one estimator."""
    pairs = [
        [each.of["pearson"][name, p][:, at] for name in ("lvc", "loaded-dice", "ad")]
        for each in curves
        for p in permutations
        if p in each.sweep.permutations
    ]
    worst = max(float(np.abs(other - ad).max()) for *others, ad in pairs for other in others)
    ours = f"largest difference of a correlation {number(worst, 2)}"
    seeds = f"{len(pairs[0][0])} MDPs"
    return Row(where, "not in the paper (identical by definition)", ours, seeds, "over all points and MDPs")


def write_tabular_report(
    folder: Path,
    title: str,
    introduction: str,
    all_curves: dict[str, SweepCurves],
    table: Sequence[Row | Claim],
    figures: Sequence[Figure],
    is_quick: bool,
) -> None:
    """Write numbers.csv and the page; a claim of the table is decided by the numbers."""
    write_numbers(folder / "numbers.csv", all_curves)
    claims = [each for each in table if isinstance(each, Claim)]
    rows = [place_row(each) if isinstance(each, Claim) else each for each in table]
    title += " (quick version)" if is_quick else ""
    write_report(folder, title, f"{introduction}\n{HOW_DECIDED}", rows, figures, differences(claims))
