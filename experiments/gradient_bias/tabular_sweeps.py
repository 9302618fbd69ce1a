"""What the tabular studies share: sweeps of estimated meta-gradients, a part for each MDP, and their tables and plots.

A part scores every estimator, permutation and value of a sweep on one MDP, with independent trials at one point.
"""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings
from metagrad.diagnostics import add_samples, cosine_accuracy, no_samples, pearson, standard_deviation
from metagrad.experiments.gradient_bias.tabular_estimators import (
    Estimation,
    copy_of,
    lirpg_gradients,
    maml_gradients,
    mdp_stack,
)
from metagrad.experiments.reporting.claims import Point
from metagrad.experiments.reporting.report import Array, Panel, Row, interquartile_mean, number
from metagrad.learner.storage import write_whole
from metagrad.tabular import TabularMdp, lirpg_meta_gradient, maml_meta_gradient

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
"""For the introductions of the reports: what `claims.verdict` decides, and where the numbers are."""


class Sweep(NamedTuple):
    """Estimations that differ in one number, for some estimators and permutations."""

    name: str
    field: str  # of `Estimation`
    label: str  # of the x axis
    symbol: str  # of x in a sentence
    values: tuple[float, ...]
    quick_values: tuple[float, ...]
    base: dict[str, Any]  # the other fields of `Estimation`
    estimators: tuple[str, ...]
    permutations: tuple[str, ...]
    is_log: bool = False


class Curves(NamedTuple):
    """Results of one sweep: `metric[estimator, permutation]` has a line for each MDP and a column for each x."""

    sweep: Sweep
    x: Array
    of: dict[Metric, dict[tuple[str, str], Array]]


def parts(problem: Problem, sweeps: Sequence[Sweep], seeds: int, trials: int, is_quick: bool) -> dict[str, Settings]:
    """A part for each sweep and MDP, "trajectories-mdp3" for instance; MDPs are numbered by their seeds."""
    return {
        f"{sweep.name}-mdp{mdp}": {
            "problem": problem,
            "mdp": mdp,
            "trials": trials,
            "field": sweep.field,
            "values": list(sweep.quick_values if is_quick else sweep.values),
            "estimators": list(sweep.estimators),
            "permutations": list(sweep.permutations),
            "base": sweep.base,
        }
        for sweep in sweeps
        for mdp in range(seeds)
    }


def run_part(settings: Settings) -> Result:
    """{estimator: {permutation: {metric: [value for each x]}}} of one MDP."""
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


def curves_of(sweeps: Sequence[Sweep], done: dict[str, tuple[Settings, Result]]) -> dict[str, Curves]:
    """All parts of each sweep together, MDPs in the order of their seeds."""
    found = {}
    for sweep in sweeps:
        own = [(s, r) for name, (s, r) in done.items() if name.rpartition("-mdp")[0] == sweep.name]
        own.sort(key=lambda each: each[0]["mdp"])
        pairs = [(estimator, permutation) for estimator in sweep.estimators for permutation in sweep.permutations]
        found[sweep.name] = Curves(
            sweep,
            np.asarray(own[0][0]["values"], dtype=np.float64),
            {metric: {(e, p): np.array([r[e][p][metric] for _, r in own]) for e, p in pairs} for metric in METRICS},
        )
    return found


def write_numbers(path: Path, all_curves: dict[str, Curves]) -> None:
    """Every number behind the figures: mean, median, IQM and standard deviation over the MDPs."""
    content = StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(
        ["sweep", "x", "estimator", "permutation", "metric", "mdps", "mean", "median", "iqm", "std", "low", "high"]
    )
    for name, curves in all_curves.items():
        for metric, of_pair in curves.of.items():
            for (estimator, permutation), values in of_pair.items():
                for x, column in zip(curves.x, values.T, strict=True):
                    std = column.std(ddof=1) if len(column) > 1 else 0.0
                    middle = (column.mean(), np.median(column), float(interquartile_mean(column)))
                    numbers = (*middle, std, column.min(), column.max())
                    table.writerow(
                        [name, f"{x:g}", estimator, permutation, metric, len(column)]
                        + [f"{each:.6g}" for each in numbers]
                    )
    write_whole(path, content.getvalue().encode())


def panel(curves: Curves, metric: Metric, estimator: str, permutations: Sequence[str], is_median: bool) -> Panel:
    """One estimator's permutations along a sweep."""
    sweep = curves.sweep
    lines = [(name, curves.x, *band(curves.of[metric][estimator, name], is_median)) for name in permutations]
    return Panel(TITLES[estimator], sweep.label, axis_label(metric, is_median), lines, sweep.is_log, metric in SPREADS)


def band(values: Array, is_median: bool) -> tuple[Array, Array | None]:
    """Mean and standard error over the MDPs [N, X], or their median, which no single MDP can dominate."""
    return (np.median(values, axis=0), None) if is_median else (values.mean(0), standard_error(values))


def axis_label(metric: Metric, is_median: bool) -> str:
    """What `band` shows."""
    return METRICS[metric] + (", median" if is_median else ", mean")


def standard_error(values: Array) -> Array:
    """Of the mean over MDPs [N, …]; nan for a single one."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / len(values) ** 0.5)


def compared(
    curves: Curves,
    metric: Metric,
    above: tuple[str, str],
    below: tuple[str, str],
    at: Sequence[float] | None = None,
) -> list[Point]:
    """Paired differences of two (estimator, permutation) at the points `at` of a sweep (None: all).

    Of variances, differences of their logarithms. Of `at`, what the sweep has: a quick version has fewer points.
    """
    first, second = curves.of[metric][above], curves.of[metric][below]
    if metric in SPREADS:
        first, second = np.log(first), np.log(second)
    return [
        Point(f"{curves.sweep.symbol} = {x:g}", first[:, i] - second[:, i])
        for i, x in enumerate(curves.x)
        if at is None or x in at
    ]


def change(curves: Curves, metric: Metric, pair: tuple[str, str]) -> Point:
    """How far a curve rises from the first x to the last one."""
    values, x = curves.of[metric][pair], curves.x
    return Point(f"{curves.sweep.symbol} = {x[0]:g} to {x[-1]:g}", values[:, -1] - values[:, 0])


def summary_rows(curves: Curves, figure: str, pairs: Sequence[tuple[str, str]], at: Sequence[float]) -> list[Row]:
    """Correlations at some points of a sweep for the report's table; both forms, and how far MDPs are apart."""
    rows = []
    for estimator, permutation in pairs:
        values, cosines = (curves.of[metric][estimator, permutation] for metric in ("pearson", "cosine"))
        for i, x in enumerate(curves.x):
            if x not in at:
                continue
            column = values[:, i]
            middle = f"mean {number(column.mean())}, median {number(float(np.median(column)))}"
            middle += f", IQM {number(float(interquartile_mean(column)))} (cosine: mean {number(cosines[:, i].mean())})"
            std = number(float(column.std(ddof=1))) if len(column) > 1 else "-"
            spread = f"std {std}, from {number(column.min())} to {number(column.max())}"
            name = f"{figure}, {TITLES[estimator]} {permutation}, {curves.sweep.symbol} = {x:g}: correlation"
            rows.append(Row(name, "figure only", middle, f"{len(column)} MDPs", spread))
    return rows
