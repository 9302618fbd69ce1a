"""Bias and spread of the Markov reward process's meta-gradient estimators: Figure 5 and the report of its study.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 2.4 (eq. 7), 3.4, 3.5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.paired import Change, claim_row, neighbours
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report


class Errors(NamedTuple):
    """Bias and spread of one estimator, over seeds and points; averaged over some of the discounts."""

    bias: Array  # [seeds, K], mean |E[g] - E[oracle]|: what noise adds is in it
    corrected: Array  # [seeds, K], mean of (E[g] - E[oracle])² less what noise adds to it: may be negative
    noise: Array  # [seeds, K], root mean square of the standard errors of E[g] - E[oracle]
    std: Array  # [seeds, K], mean of the standard deviations


def errors_of(moments: list[list[dict[str, Any]]], states: slice, copies: int) -> Errors:
    """Bias per component, averaged over components as in Figure 5.

    Equation: with d the mean of N differences from the oracle and s their standard deviation, E[d²] = bias² + s²/N.

    Args:
        moments: of one estimator, for each seed and point, as `run_part` gives them.
        states: which discounts.
        copies: N.
    """

    def of(key: str) -> Array:
        return np.array([[point[key][states] for point in run] for run in moments])

    difference, variance = of("difference"), of("difference_std") ** 2 / copies
    squared = (difference**2 - variance).mean(-1)
    return Errors(abs(difference).mean(-1), squared, np.sqrt(variance.mean(-1)), of("std").mean(-1))


def corrected_bias(errors: Errors) -> Array:
    """Root mean squared bias over the whole training for each seed, without noise; 0 where noise explains it all."""
    return np.sqrt(np.maximum(errors.corrected.mean(1), 0.0))


STATES_SHOWN = {"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}


class _Table(NamedTuple):
    """Errors of all estimators: kind ("n-step", "mix") -> n -> Errors; mix has the 1-step estimator at n = 1."""

    updates: Array
    by_kind: dict[str, dict[int, Errors]]


def _table(parts: Mapping[str, tuple[Settings, Result]], states: slice) -> _Table:
    runs = [parts[name] for name in sorted(parts, key=lambda name: parts[name][0]["seed"])]
    settings = runs[0][0]

    def errors(name: str) -> Errors:
        return errors_of([result["moments"][name] for _, result in runs], states, settings["copies"])

    n_step = {n: errors(f"n-step-{n}") for n in settings["steps"]}
    mix = {n: errors(f"mix-{n}") if n > 1 else n_step[n] for n in settings["steps"]}
    return _Table(np.array(runs[0][1]["updates"], dtype=np.float64), {"n-step": n_step, "mix": mix})


def _draw(folder: Path, table: _Table, states: str) -> str:
    """Figure 5 for some of the discounts; its file name."""
    n_step = table.by_kind["n-step"]
    along = [
        Panel(
            title, "updates", label, [(f"{n}-step", table.updates, *mean_and_std(value(e))) for n, e in n_step.items()]
        )
        for title, label, value in (
            (f"(a) bias, {states} states", "bias", lambda e: e.bias),
            (f"(b) standard deviation, {states} states", "standard deviation", lambda e: e.std),
        )
    ]
    along = [panel._replace(is_log_y=True) for panel in along]
    averages = []
    for kind, by_n in table.by_kind.items():
        steps = list(by_n)
        for label, value in (("bias", _mean_bias), ("std", _mean_std)):
            mean, std = mean_and_std(np.stack([value(errors) for errors in by_n.values()], axis=1))
            averages.append((f"{label}, {kind}", steps, mean, std))
    panel = Panel("(c) averages over training", "n", "bias, standard deviation", averages, is_log_y=True)
    name = f"figure_5_{states}.png"
    line_panels(folder / name, [*along, panel])
    return name


def _claims(table: _Table, states: str) -> list[tuple[Row, list[str]]]:
    """What the paper says of Figure 5 and of mixing, each with the sentences for where ours differs."""
    n_step, mix = table.by_kind["n-step"], table.by_kind["mix"]
    labels = [f"{n}-step" for n in n_step]
    whose = "" if states == "even" else "beyond Figure 5, which averages even states: "
    measures = (
        ("standard deviation", "the higher n, the higher", True, _mean_std),
        ("bias", "the higher n, the lower", False, _mean_bias),
        ("bias without sampling noise (rms)", "the higher n, the lower", False, corrected_bias),
    )
    claims = []
    for name, text, is_larger, value in measures:
        changes = neighbours(labels, [value(errors) for errors in n_step.values()])
        claims.append(claim_row(f"{name}, {states} states", whose + text, is_larger, changes))
    against = [n for n in mix if n > 1]
    for name, text, value in (
        ("standard deviation", "mixing reduces it", _mean_std),
        ("bias without sampling noise (rms)", "mixing keeps it low: below 1-step", corrected_bias),
    ):
        is_std = value is _mean_std
        changes = [
            Change(f"{n if is_std else 1}-step", value(n_step[n if is_std else 1]), f"{n}-mix", value(mix[n]))
            for n in against
        ]
        claims.append(claim_row(f"{name}, {states} states, mix", whose + text, False, changes))
    return claims


def _mean_std(errors: Errors) -> Array:
    return np.asarray(errors.std.mean(1))


def _mean_bias(errors: Errors) -> Array:
    return np.asarray(errors.bias.mean(1))


def _noise_row(table: _Table, states: str) -> Row:
    """How far the measured bias is from what noise alone would show."""
    n_step = table.by_kind["n-step"]
    ours = [f"{n}-step {number(_mean_bias(e).mean())} (noise {number(e.noise.mean(), 2)})" for n, e in n_step.items()]
    spreads = [number(mean_and_std(_mean_bias(errors))[1].item(), 2) for errors in n_step.values()]
    seeds = len(next(iter(n_step.values())).bias)
    return Row(f"bias, {states} states", "not given", "; ".join(ours), str(seeds), "std " + ", ".join(spreads))


_INTRODUCTION = """\
Along runs of a standard 1-step meta-gradient algorithm (one meta-gradient for each update) {copies} samples of every
estimator were drawn at {points} evenly spaced points of {updates} updates, from the θ, η and optimizer state there.
The oracle is the mean of the {oracle}-step estimator; mix has κ = 1 - 1/n. Bias and standard deviation are taken for
each discount (of its logit), averaged over the even states as in the paper, over the odd and over all beyond it.
Bands are standard deviations over seeds.

All estimators see common random numbers: sample k of each starts with the same episodes. The spread of the
sample-by-sample differences from the oracle gives the standard error of a bias. |mean difference| never falls below
that noise, which itself falls as n nears the oracle; hence what bears on the claim is the "bias without sampling
noise", the root of the mean over states and points of (mean difference)² - variance / {copies}. The oracle's own bias,
of {oracle} steps against the end of training, is seen by none of this.

The first point is one interval into training: at the start Adam's update is the sign of the gradient, whose
derivative is 0. The problem and its open choices are those of study `mrp`. The verdicts in the table go
by the 95 % interval (Student's t) of the differences paired over seeds.{quick}
"""


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Figure 5 for even, odd and all states, and the page."""
    settings = next(iter(parts.values()))[0]
    rows: list[Row] = []
    differences: list[str] = []
    figures = []
    for states, chosen in STATES_SHOWN.items():
        table = _table(parts, chosen)
        caption = "As the paper's Figure 5: even states." if states == "even" else f"The same for {states} states."
        figures.append((_draw(folder, table, states), caption))
        for row, sentences in _claims(table, states):
            rows.append(row)
            differences += sentences
        rows.append(_noise_row(table, states))
    introduction = _INTRODUCTION.format(
        copies=settings["copies"],
        points=settings["points"],
        updates=f"{settings['updates']:,}",
        oracle=settings["oracle_steps"],
        quick=" This is the quick version: too few points, samples and updates for the paper's numbers."
        if is_quick
        else "",
    )
    title = "Markov reward process: bias and spread of meta-gradients"
    write_report(folder, title, introduction, rows, figures, differences)
