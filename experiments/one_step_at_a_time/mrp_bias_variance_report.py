"""Reports bias and spread of the Markov reward process's meta-gradient estimators: Figure 5 and the study's page.

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 2.4 (eq. 7), 3.4, 3.5.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metagrad.experiments.reporting.claims import Change, change_row, neighbours
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, first_settings, results_of
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_of, number, std_of


class Errors(NamedTuple):
    """Holds bias and spread of one estimator, over seeds and points; averaged over some of the discounts."""

    bias: Array  # [seeds, K], mean |E[g] - E[oracle]|: what noise adds is in it
    corrected: Array  # [seeds, K], mean of (E[g] - E[oracle])² less what noise adds to it: may be negative
    noise: Array  # [seeds, K], root mean square of the standard errors of E[g] - E[oracle]
    std: Array  # [seeds, K], mean of the standard deviations


def errors_of(moments: list[list[dict[str, Any]]], states: slice, copies: int) -> Errors:
    """Measure the bias of each component, averaged over components as in Figure 5.

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
    """Return each seed's root mean squared bias over all of training, without noise; 0 where noise explains it all."""
    return np.sqrt(np.maximum(errors.corrected.mean(1), 0.0))


def _mean_std(errors: Errors) -> Array:
    return np.asarray(errors.std.mean(1))


def _mean_bias(errors: Errors) -> Array:
    return np.asarray(errors.bias.mean(1))


STATES_SHOWN = {"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}


class _Table(NamedTuple):
    """Return errors of all estimators over some of the discounts, by n; mix has the 1-step estimator at n = 1."""

    states: str
    updates: Array
    n_step: dict[int, Errors]
    mix: dict[int, Errors]


def _table(parts: Parts, states: str) -> _Table:
    results, settings = results_of(parts), first_settings(parts)

    def errors(name: str) -> Errors:
        return errors_of([result["moments"][name] for result in results], STATES_SHOWN[states], settings["copies"])

    n_step = {n: errors(f"n-step-{n}") for n in settings["steps"]}
    mix = {n: errors(f"mix-{n}") if n > 1 else n_step[n] for n in settings["steps"]}
    return _Table(states, np.array(results[0]["updates"], dtype=np.float64), n_step, mix)


def _figure(table: _Table) -> Figure:
    """Return Figure 5 for some of the discounts."""
    states, panels = table.states, []
    for title, label, field in (("(a) bias", "bias", "bias"), ("(b) standard deviation", "standard deviation", "std")):
        curves = [mean_curve(f"{n}-step", table.updates, getattr(e, field)) for n, e in table.n_step.items()]
        panels.append(Panel(f"{title}, {states} states", "updates", label, curves, is_log_y=True))
    averages = [
        mean_curve(f"{label}, {kind}", list(by_n), np.stack([value(errors) for errors in by_n.values()], axis=1))
        for kind, by_n in (("n-step", table.n_step), ("mix", table.mix))
        for label, value in (("bias", _mean_bias), ("std", _mean_std))
    ]
    panels.append(Panel("(c) averages over training", "n", "bias, standard deviation", averages, is_log_y=True))
    caption = "As the paper's Figure 5: even states." if states == "even" else f"The same for {states} states."
    return Figure(f"figure_5_{states}.png", caption, panels)


def _claims(table: _Table) -> Iterator[Row]:
    """Hold what the paper says of Figure 5 and of mixing against our runs."""
    n_step, mix, states = table.n_step, table.mix, table.states
    whose = "" if states == "even" else "beyond Figure 5, which averages even states: "
    without_noise = "bias without sampling noise (rms)"
    for name, text, is_larger, value in (
        ("standard deviation", "the higher n, the higher", True, _mean_std),
        ("bias", "the higher n, the lower", False, _mean_bias),
        (without_noise, "the higher n, the lower", False, corrected_bias),
    ):
        changes = neighbours([f"{n}-step" for n in n_step], [value(errors) for errors in n_step.values()])
        yield change_row(f"{name}, {states} states", whose + text, is_larger, changes)
    for name, text, value in (
        ("standard deviation", "mixing reduces it", _mean_std),
        (without_noise, "mixing keeps it low: below 1-step", corrected_bias),
    ):
        pairs = [(n if value is _mean_std else 1, n) for n in mix if n > 1]
        changes = [Change(f"{one}-step", value(n_step[one]), f"{n}-mix", value(mix[n])) for one, n in pairs]
        yield change_row(f"{name}, {states} states, mix", whose + text, False, changes)


def _noise_row(table: _Table) -> Row:
    """Tell how far the measured bias is from what noise alone would show."""
    biases = {n: _mean_bias(errors) for n, errors in table.n_step.items()}
    noises = [number(errors.noise.mean(), 2) for errors in table.n_step.values()]
    pairs = zip(biases.items(), noises, strict=True)
    ours = "; ".join(f"{n}-step {mean_of(bias)} (noise {noise})" for (n, bias), noise in pairs)
    seeds = len(next(iter(biases.values())))
    spread = "std " + ", ".join(std_of(bias) for bias in biases.values())
    return Row(f"bias, {table.states} states", "not given", ours, seeds, spread)


_INTRODUCTION = """\
Along runs of a standard 1-step meta-gradient algorithm (one meta-gradient for each update) {copies} samples of every
estimator were drawn at {points} evenly spaced points of {updates:,} updates, from the θ, η and optimizer state there.
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


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page, with Figure 5 for even, odd and all states."""
    tables = [_table(parts, states) for states in STATES_SHOWN]
    rows = [row for table in tables for row in (*_claims(table), _noise_row(table))]
    settings = first_settings(parts)
    quick = " This is the quick version: too few points, samples and updates for the paper's numbers."
    introduction = _INTRODUCTION.format(quick=quick if is_quick else "", oracle=settings["oracle_steps"], **settings)
    title = "Markov reward process: bias and spread of meta-gradients"
    write_report(folder, title, introduction, rows, [_figure(table) for table in tables])
