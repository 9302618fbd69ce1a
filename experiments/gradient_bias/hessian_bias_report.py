"""The report of study `hessian-bias`: what the numbers say of Theorem 4.5, decided by the numbers."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.paired import claim_row, neighbours
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report


class _Found(NamedTuple):
    """All parts: [MDPs, rates, K, c] of each quantity."""

    rates: list[float]
    steps: list[int]
    c: Array  # the paper's, then those beyond
    own: int  # how many of c are the paper's
    of: dict[str, Array]


def _collect(done: dict[str, tuple[Settings, Result]]) -> _Found:
    settings = next(iter(done.values()))[0]
    rates, steps = settings["rates"], settings["steps"]
    names = ("expected", "spared", "measured", "corrected", "pearson", "cosine", "bound", "remainder")

    def values(name: str) -> Array:
        return np.array([[[r[f"{a:g}"][str(k)][name] for k in steps] for a in rates] for _, r in done.values()])

    c = np.array([*settings["coefficients"], *settings["beyond"]])
    return _Found(rates, steps, c, len(settings["coefficients"]), {name: values(name) for name in names})


def _claims(found: _Found) -> tuple[list[Row], list[str]]:
    """What slides and theorem say of the direction of each effect."""
    bias, distance = found.of["expected"], 1.0 - found.of["pearson"]
    steps, two = found.steps, found.steps.index(2)
    shown = [i for i, c in enumerate(found.c[: found.own]) if c in (0.5, 1.0, 2.0, 4.0)]
    c_labels, k_labels = [f"c = {found.c[i]:g}" for i in shown], [f"K = {k}" for k in steps]
    a_labels = [f"α = {a:g}" for a in found.rates]
    rows, sentences = [], []
    made = [
        claim_row(
            f"{what}, K = 2, α = {a:g}",
            claim,
            True,
            neighbours(c_labels, [values[:, j, two, i] for i in shown]),
        )
        for j, a in enumerate(found.rates)
        if j in (0, len(found.rates) - 1)
        for what, values, claim in (
            ("relative bias in c", bias, "the bound grows with the Hessian bias (eq. 9)"),
            ("1 - correlation in c", distance, "slides: figure only; ablated as growing with the Hessian bias"),
        )
    ]
    last = found.own - 1
    by_rate = [bias[:, j, two, last] for j in range(len(found.rates))]
    by_steps = [bias[:, -1, k, last] for k in range(len(steps))]
    made.append(
        claim_row(
            "relative bias in α, K = 2, c = 4", "the bound grows with α (eq. 9)", True, neighbours(a_labels, by_rate)
        )
    )
    name = f"relative bias in K, α = {found.rates[-1]:g}, c = 4"
    made.append(claim_row(name, "the bound grows with K (eq. 9)", True, neighbours(k_labels, by_steps)))
    for row, differing in made:
        rows.append(row)
        sentences += differing
    return rows, sentences


def _exponents(found: _Found) -> tuple[list[Row], list[str]]:
    """The power of Δ_H in the bias: slope of its logarithm over the paper's c, and between the two largest of all."""
    rows, sentences = [], []
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
            (middle, spread), (at_end, end_spread) = mean_and_std(near), mean_and_std(far)
            ours = f"{number(float(middle))} over c = 0.5 to 4; {number(float(at_end), 4)} at c → {found.c[-1]:g}"
            quantity = f"exponent of Δ_H in the bias, K = {steps}: {what}"
            deviations = f"std over MDPs {number(float(spread), 2)}; {number(float(end_spread), 2)}"
            rows.append(Row(quantity, f"{power} at most", ours, str(len(near)), deviations))
            if abs(at_end - power) > 0.05:
                sentences.append(
                    f"At the largest c the exponent for K = {steps} is {at_end:.2f}, not {power} ({what})."
                )
            if middle < power - 0.05:
                sentences.append(
                    f"At the paper's c the bias grows as Δ_H to the {middle:.2f} for K = {steps}, slower than the "
                    f"power {power} of the bound ({what}): lower powers of Δ_H decide there, with alternating signs."
                )
    return rows, sentences


def _bound_and_noise(found: _Found) -> tuple[list[Row], list[str]]:
    """The bound at every point, the polynomial, and the mean over draws against the exact expectation."""
    bias, bound = found.of["expected"], found.of["bound"]
    kept, count = int((bias <= bound * (1 + 1e-9)).sum()), bias.size
    ratio = (bound / bias)[..., : found.own]
    looseness = f"bound/bias at c ≤ 4: median {number(float(np.median(ratio)))}, largest {number(float(ratio.max()))}"
    mdps = str(len(bias))
    worst = float(found.of["remainder"].max())
    corrected = found.of["corrected"][..., : found.own]
    error = np.abs(np.sqrt(np.maximum(corrected.mean(0), 0)) - np.sqrt((bias[..., : found.own] ** 2).mean(0))).max()
    rows = [
        Row("bias ≤ ((B + α Δ_H)ᴷ - Bᴷ) ‖∇J(θ_K)‖", "at every point", f"{kept} of {count} points", mdps, looseness),
        Row(
            "the mean estimate is a polynomial of degree K in Δ_H",
            "exactly (follows from eq. 8)",
            f"differences of order K + 1 at most {number(worst, 2)} of the exact norm",
            mdps,
            "largest over all points",
        ),
        Row(
            "mean over draws of ε, noise taken out, against ε = 0",
            "equal in expectation",
            f"root mean squared relative bias apart by at most {number(float(error), 2)}",
            mdps,
            "largest over α, K and c ≤ 4",
        ),
    ]
    sentences = []
    if kept < count:
        sentences.append(f"The bias is above its bound at {count - kept} of {count} points.")
    if worst > 1e-9:
        sentences.append(f"The estimate is no polynomial of degree K in c: off by {worst:.1e} of the exact norm.")
    return rows, sentences


def _draw(folder: Path, found: _Found) -> list[tuple[str, str]]:
    two, own, middle = found.steps.index(2), slice(0, found.own), found.c[: found.own]

    def by_rate(name: str, label: str) -> Panel:
        curves = [
            (f"α = {a:g}", middle, *mean_and_std(found.of[name][:, j, two, own])) for j, a in enumerate(found.rates)
        ]
        return Panel("K = 2", "Hessian bias coefficient c", label, curves)

    def by_steps(name: str, label: str) -> Panel:
        title = f"α = {found.rates[-1]:g}"
        curves = [(f"K = {k}", middle, *mean_and_std(found.of[name][:, -1, i, own])) for i, k in enumerate(found.steps)]
        return Panel(title, "Hessian bias coefficient c", label, curves)

    shown = (("expected", "bias / norm of the exact"), ("pearson", "correlation"))
    line_panels(folder / "coefficient.png", [make(*each) for make in (by_rate, by_steps) for each in shown], columns=2)
    hessian = 2.0 * found.c / 100.0
    powers = [
        Panel(
            title,
            "bias of the inner Hessian Δ_H",
            "bias / norm of the exact",
            [
                (f"K = {k}", hessian, np.median(found.of[name][:, -1, i], axis=0), None)
                for i, k in enumerate(found.steps)
                if name == "expected" or k > 1
            ],
            is_log_x=True,
            is_log_y=True,
        )
        for name, title in (("expected", "every update disturbed"), ("spared", "first update spared"))
    ]
    line_panels(folder / "powers.png", powers)
    bounds = [
        Panel(
            f"K = {k}",
            "Hessian bias coefficient c",
            "bias / norm of the exact",
            [
                (label, middle, np.median(found.of[label][:, -1, i, own], axis=0), None)
                for label in ("measured", "bound")
            ],
            is_log_y=True,
        )
        for i, k in enumerate(found.steps)
    ]
    line_panels(folder / "bound.png", bounds)
    rate = f"α = {found.rates[-1]:g}"
    return [
        ("coefficient.png", "Bias and correlation of the meta-gradient, mean ± standard deviation over MDPs."),
        ("powers.png", f"The bias of the expectation far beyond the paper's c; medians over MDPs, {rate}."),
        (
            "bound.png",
            f"Bias of the mean over draws, and its bound; medians over MDPs, {rate}. At K = 1 they are one line.",
        ),
    ]


INTRODUCTION = """
MAML in random tabular MDPs (20 states, 5 actions), all exact but the derivative of the inner updates, whose loss has an
additional mean(θ² (c + 0.3 ε)). Its Hessian is off by Δ_H = 2c/100 on average. The bias is that of the expectation over
ε, which is exact (ε = 0); correlations are means over {draws} draws of ε. Biases are relative to the norm of the exact
meta-gradient. The disturbance shrinks I + α∇²J, so its powers alternate in sign: within the paper's range of c they
partly cancel, and the highest power shows only far beyond it.

An order counts as found where the mean paired difference over MDPs has a 95 % interval (Student's t) without 0.
"""


def report(folder: Path, done: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Table, figures and where ours differs, of the parts of `hessian-bias`."""
    found = _collect(done)
    rows: list[Row] = []
    sentences: list[str] = []
    for made in (_claims(found), _exponents(found), _bound_and_noise(found)):
        rows += made[0]
        sentences += made[1]
    title = f"Bias of the inner Hessian alone{' (quick version)' if is_quick else ''}"
    introduction = INTRODUCTION.format(draws=next(iter(done.values()))[0]["draws"])
    write_report(folder, title, introduction, rows, _draw(folder, found), sentences)
