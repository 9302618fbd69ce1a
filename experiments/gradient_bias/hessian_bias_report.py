"""Reports study `hessian-bias`: what the numbers say about Theorem 4.5."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.experiments.reporting.claims import change_row, neighbours
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve, median_curve
from metagrad.experiments.reporting.parts import Parts, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_of, number, std_of

NAMES = ("expected", "spared", "measured", "corrected", "pearson", "cosine", "bound", "remainder")


class _Found(NamedTuple):
    """Holds all parts: [MDPs, rates, K, c] of each quantity."""

    rates: list[float]
    steps: list[int]
    c: Array  # the paper's, then those beyond
    own: int  # how many of c are the paper's
    of: dict[str, Array]


def _collect(done: Parts) -> _Found:
    settings = first_settings(done)
    rates, steps = settings["rates"], settings["steps"]

    def values(name: str) -> Array:
        return np.array([[[r[f"{a:g}"][str(k)][name] for k in steps] for a in rates] for _, r in done.values()])

    c = np.array([*settings["coefficients"], *settings["beyond"]])
    return _Found(rates, steps, c, len(settings["coefficients"]), {name: values(name) for name in NAMES})


def _claims(found: _Found) -> Iterator[Row]:
    """Yield what slides and theorem say of the direction of each effect."""
    bias, distance = found.of["expected"], 1.0 - found.of["pearson"]
    two, last = found.steps.index(2), found.own - 1
    shown = [i for i, c in enumerate(found.c[: found.own]) if c in (0.5, 1.0, 2.0, 4.0)]
    c_labels = [f"c = {found.c[i]:g}" for i in shown]
    for j in dict.fromkeys((0, len(found.rates) - 1)):
        for what, values, paper in (
            ("relative bias in c", bias, "the bound grows with the Hessian bias (eq. 9)"),
            ("1 - correlation in c", distance, "slides: figure only; ablated as growing with the Hessian bias"),
        ):
            changes = neighbours(c_labels, [values[:, j, two, i] for i in shown])
            yield change_row(f"{what}, K = 2, α = {found.rates[j]:g}", paper, True, changes)
    changes = neighbours([f"α = {a:g}" for a in found.rates], list(bias[:, :, two, last].T))
    yield change_row("relative bias in α, K = 2, c = 4", "the bound grows with α (eq. 9)", True, changes)
    changes = neighbours([f"K = {k}" for k in found.steps], list(bias[:, -1, :, last].T))
    name = f"relative bias in K, α = {found.rates[-1]:g}, c = 4"
    yield change_row(name, "the bound grows with K (eq. 9)", True, changes)


def _exponents(found: _Found) -> Iterator[Row]:
    """Measure the power of Δ_H: slope of the bias's logarithm over the paper's c, and between the two largest c."""
    for name, claimed, what in (
        ("expected", 0, "every update disturbed; MAML has K Hessians"),
        ("spared", 1, "the first update spared (Δ_J = 0); K - 1 Hessians"),
    ):
        for k, steps in enumerate(found.steps):
            power = steps - claimed
            if power == 0:
                continue
            logs = np.log(found.of[name][:, -1, k])
            near = np.polyfit(np.log(found.c[: found.own]), logs[:, : found.own].T, 1)[0]
            far = (logs[:, -1] - logs[:, -2]) / np.log(found.c[-1] / found.c[-2])
            middle, at_end = near.mean(), far.mean()
            ours = f"{mean_of(near)} over c = 0.5 to 4; {mean_of(far, 4)} at c → {found.c[-1]:g}"
            quantity = f"exponent of Δ_H in the bias, K = {steps}: {what}"
            sentences = []
            if abs(at_end - power) > 0.05:
                where = f"At the largest c the exponent for K = {steps}"
                sentences.append(f"{where} is {at_end:.2f}, not {power} ({what}).")
            if middle < power - 0.05:
                sentences.append(
                    f"At the paper's c the bias grows as Δ_H to the {middle:.2f} for K = {steps}, slower than the "
                    f"power {power} of the bound ({what}): lower powers of Δ_H decide there, with alternating signs."
                )
            spread = f"std over MDPs {std_of(near)}; {std_of(far)}"
            yield Row(quantity, f"{power} at most", ours, len(near), spread, sentences)


def _bound_and_noise(found: _Found) -> Iterator[Row]:
    """Compare the bound at every point, the polynomial, and the mean over draws with the exact expectation."""
    bias, bound = found.of["expected"], found.of["bound"]
    kept, count, mdps = int((bias <= bound * (1 + 1e-9)).sum()), bias.size, len(bias)
    ratio = (bound / bias)[..., : found.own]
    looseness = f"bound/bias at c ≤ 4: median {number(np.median(ratio))}, largest {number(ratio.max())}"
    above = [f"The bias is above its bound at {count - kept} of {count} points."] if kept < count else []
    name = "bias ≤ ((B + α Δ_H)ᴷ - Bᴷ) ‖∇J(θ_K)‖"
    yield Row(name, "at every point", f"{kept} of {count} points", mdps, looseness, above)
    worst = float(found.of["remainder"].max())
    off = f"The estimate is no polynomial of degree K in c: off by {worst:.1e} of the exact norm."
    yield Row(
        "the mean estimate is a polynomial of degree K in Δ_H",
        "exactly (follows from eq. 8)",
        f"differences of order K + 1 at most {number(worst, 2)} of the exact norm",
        mdps,
        "largest over all points",
        [off] if worst > 1e-9 else [],
    )
    corrected = found.of["corrected"][..., : found.own]
    error = np.abs(np.sqrt(np.maximum(corrected.mean(0), 0)) - np.sqrt((bias[..., : found.own] ** 2).mean(0))).max()
    yield Row(
        "mean over draws of ε, noise taken out, against ε = 0",
        "equal in expectation",
        f"root mean squared relative bias apart by at most {number(error, 2)}",
        mdps,
        "largest over α, K and c ≤ 4",
    )


def _figures(found: _Found) -> list[Figure]:
    two, own, middle = found.steps.index(2), slice(0, found.own), found.c[: found.own]
    rate, axis, bias = f"α = {found.rates[-1]:g}", "Hessian bias coefficient c", "bias / norm of the exact"
    shown = (("expected", bias), ("pearson", "correlation"))
    coefficient = []
    for name, label in shown:
        of = found.of[name][:, :, two, own]
        curves = [mean_curve(f"α = {a:g}", middle, of[:, j]) for j, a in enumerate(found.rates)]
        coefficient.append(Panel("K = 2", axis, label, curves))
    for name, label in shown:
        of = found.of[name][:, -1, :, own]
        curves = [mean_curve(f"K = {k}", middle, of[:, i]) for i, k in enumerate(found.steps)]
        coefficient.append(Panel(rate, axis, label, curves))
    powers = []
    for name, title in (("expected", "every update disturbed"), ("spared", "first update spared")):
        steps = [(i, k) for i, k in enumerate(found.steps) if name == "expected" or k > 1]
        curves = [median_curve(f"K = {k}", 2.0 * found.c / 100.0, found.of[name][:, -1, i]) for i, k in steps]
        powers.append(Panel(title, "bias of the inner Hessian Δ_H", bias, curves, is_log_x=True, is_log_y=True))
    bounds = []
    for i, k in enumerate(found.steps):
        curves = [median_curve(name, middle, found.of[name][:, -1, i, own]) for name in ("measured", "bound")]
        bounds.append(Panel(f"K = {k}", axis, bias, curves, is_log_y=True))
    beyond = f"The bias of the expectation far beyond the paper's c; medians over MDPs, {rate}."
    over = f"Bias of the mean over draws, and its bound; medians over MDPs, {rate}. At K = 1 they are one line."
    text = "Bias and correlation of the meta-gradient, mean ± standard deviation over MDPs."
    return [
        Figure("coefficient.png", text, coefficient, columns=2),
        Figure("powers.png", beyond, powers),
        Figure("bound.png", over, bounds),
    ]


INTRODUCTION = """
MAML in random tabular MDPs (20 states, 5 actions), all exact but the derivative of the inner updates, whose loss has an
additional mean(θ² (c + 0.3 ε)). Its Hessian is off by Δ_H = 2c/100 on average. The bias is that of the expectation over
ε, which is exact (ε = 0); correlations are means over {draws} draws of ε. Biases are relative to the norm of the exact
meta-gradient. The disturbance shrinks I + α∇²J, so its powers alternate in sign: within the paper's range of c they
partly cancel, and the highest power shows only far beyond it.

An order counts as found where the mean paired difference over MDPs has a 95 % interval (Student's t) without 0.
"""


def report(folder: Path, done: Parts, is_quick: bool) -> None:
    """Write the page of `hessian-bias`."""
    found = _collect(done)
    title = f"Bias of the inner Hessian alone{' (quick version)' if is_quick else ''}"
    introduction = INTRODUCTION.format(draws=first_settings(done)["draws"])
    rows = [*_claims(found), *_exponents(found), *_bound_and_noise(found)]
    write_report(folder, title, introduction, rows, _figures(found))
