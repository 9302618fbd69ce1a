"""Reports study `compositional-bias`: what the numbers say about Lemma 4.4."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Settings
from metagrad.experiments.reporting.claims import change_row, neighbours
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve, median_curve
from metagrad.experiments.reporting.parts import Parts, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_and_error, number, std_of

SHOWN = {"ad": "AD, LVC, Loaded-DiCE", "dice": "DiCE"}  # AD stands for the three that are one estimator here
SAME = ("lvc", "loaded-dice")
AXES = {
    "learning_rate": ("inner learning rate α", "α"),
    "trajectories": ("trajectories N", "N"),
    "steps": ("steps K", "K"),
}
ERRORS = 2.0  # standard errors by which a mean must be off to count
ROUNDING = 5e-4  # of a power as it is shown


class _Sweep(NamedTuple):
    """Holds all parts of one sweep: [MDPs, values] for each estimator and quantity."""

    field: str
    base: Settings
    x: Array
    of: dict[str, dict[str, Array]]

    @property
    def fixed(self) -> str:
        return ", ".join(f"{AXES[field][1]} = {value:g}" for field, value in self.base.items())

    @property
    def symbol(self) -> str:
        return AXES[self.field][1]


def _collect(done: Parts) -> dict[str, _Sweep]:
    sweeps = {}
    for field in AXES:
        own = [(s, r) for s, r in done.values() if s["field"] == field]
        settings, result = own[0]
        of = {
            estimator: {name: np.array([r[estimator][name] for _, r in own]) for name in lists}
            for estimator, lists in result.items()
        }
        sweeps[field] = _Sweep(field, settings["base"], np.array(settings["values"], dtype=np.float64), of)
    return sweeps


def _same_row(sweeps: list[_Sweep]) -> Row:
    """Compare AD, LVC and Loaded-DiCE on the same samples."""
    worst = max(
        float(np.abs(sweep.of[other][name] - sweep.of["ad"][name]).max())
        for sweep in sweeps
        for other in SAME
        for name in ("distance", "bias", "pearson")
    )
    mdps = len(sweeps[0].of["ad"]["bias"])
    ours = f"largest difference of distance, bias, correlation {number(worst, 2)}"
    sentences = [] if worst < 1e-9 else [f"AD, LVC and Loaded-DiCE differ by {worst:.1e} in SEE."]
    paper = "identical (follows from the definitions)"
    return Row("AD, LVC, Loaded-DiCE in SEE", paper, ours, mdps, "over all points", sentences)


def _bound_rows(sweep: _Sweep) -> Iterator[Row]:
    """Tell whether the measured distance is within the bound at every point, and how far below it."""
    for estimator, title in SHOWN.items():
        values = sweep.of[estimator]
        over = values["distance"] - values["bound"]
        above, certain = over > 0, over > ERRORS * values["error"]
        kept = f"{above.size - int(above.sum())} of {above.size} points"
        if above.any():
            kept += f"; {int(certain.sum())} above it by more than {ERRORS:g} standard errors"
        ratio = values["bound"] / values["distance"]
        looseness = ", ".join(f"{r:.3g} at {x:g}" for x, r in zip(sweep.x, np.median(ratio, axis=0), strict=True))
        name = f"E‖θ̂_K - θ_K‖ ≤ bound, {title}, {sweep.symbol} from {sweep.x[0]:g} to {sweep.x[-1]:g} ({sweep.fixed})"
        spread = f"bound/measured, median over MDPs: {looseness}; from {ratio.min():.3g} to {ratio.max():.3g}"
        sentences = []
        if certain.any():
            worst = float((values["distance"] / values["bound"])[certain].max())
            sentences.append(
                f"{title}: measured above the bound at {int(certain.sum())} of {certain.size} points of the "
                f"{sweep.symbol} sweep, by up to {100 * (worst - 1):.1f} %."
            )
        yield Row(name, "at every point (Lemma 4.4)", kept, len(over), spread, sentences)


def _slope_rows(sweep: _Sweep) -> Iterator[Row]:
    """Measure the power of N in the distance: a line through the logarithms for each MDP."""
    for estimator, title in SHOWN.items():
        values = sweep.of[estimator]
        for name, of in (("E‖θ̂_K - θ_K‖", values["distance"]), ("the bound as measured", values["bound"])):
            slopes = np.polyfit(np.log(sweep.x), np.log(of).T, 1)[0]
            mean, error = mean_and_error(slopes)
            quantity = f"power of N in {name}, {title} ({sweep.fixed})"
            ours = f"{number(mean)} ± {number(error, 2)} (standard error)"
            sentences = []
            if not abs(mean + 0.5) <= ERRORS * error + ROUNDING:
                fall = f"{title}: {name} falls as N to the {mean:.3f} ± {error:.3f}"
                sentences.append(f"{fall}, not as 1/√N within {ERRORS:g} standard errors.")
            yield Row(quantity, "-1/2", ours, len(slopes), f"std over MDPs {std_of(slopes)}", sentences)


def _growth_rows(sweep: _Sweep) -> Iterator[Row]:
    """Follow distance, bias and correlation along a sweep, from one value to the next."""
    is_rising = sweep.field != "trajectories"
    bound = f"the bound {'grows' if is_rising else 'falls'} with {sweep.symbol}"
    labels = [f"{sweep.symbol} = {x:g}" for x in sweep.x]
    for estimator, title in SHOWN.items():
        values = sweep.of[estimator]
        for name, of, paper in (
            ("E‖θ̂_K - θ_K‖", values["distance"], f"{bound} (eq. 6)"),
            ("squared relative bias", values["corrected"], f"{bound} (eq. 9)"),
            ("1 - correlation", 1.0 - values["pearson"], f"slides: figure only; {bound} (eq. 9)"),
        ):
            # From one value to the next a bias changes by less than the noise of a mean over trials.
            at = [0, len(labels) - 1] if name == "squared relative bias" else range(len(labels))
            changes = neighbours([labels[i] for i in at], [of[:, i] for i in at])
            yield change_row(f"{name}, {title} ({sweep.fixed})", paper, is_rising, changes)


def _figures(sweeps: list[_Sweep]) -> list[Figure]:
    def panel(sweep: _Sweep, name: str, label: str, is_log: bool) -> Panel:
        curve = median_curve if is_log else mean_curve
        curves = [curve(title, sweep.x, sweep.of[e][name]) for e, title in SHOWN.items()]
        return Panel(sweep.fixed, AXES[sweep.field][0], label, curves, sweep.field == "trajectories", is_log)

    def bounds(sweep: _Sweep, estimator: str, title: str) -> Panel:
        values, is_log_x = sweep.of[estimator], sweep.field == "trajectories"
        named = (("measured", "distance"), ("bound", "bound"))
        curves = [median_curve(label, sweep.x, values[name]) for label, name in named]
        return Panel(f"{title}; {sweep.fixed}", AXES[sweep.field][0], "E‖θ̂_K - θ_K‖", curves, is_log_x, True)

    shown = (("pearson", "correlation", False), ("bias", "‖bias‖ / norm of the exact", True))
    return [
        Figure(
            "bound.png",
            "Compositional bias and the bound of Lemma 4.4, medians over MDPs.",
            [bounds(sweep, *each) for each in SHOWN.items() for sweep in sweeps],
        ),
        Figure(
            "meta-gradient.png",
            "Correlation (mean ± standard deviation over MDPs) and bias (median) of the meta-gradient. The noise of "
            "the mean over trials is still in this bias; the table has it taken out.",
            [panel(sweep, *each) for each in shown for sweep in sweeps],
        ),
    ]


INTRODUCTION = """
MAML in random tabular MDPs (20 states, 5 actions, uniform θ₀) where nothing is sampled but the values of the inner
updates (SEE). The bound is ((1 + α c₂)ᴷ - 1) σ / (c₂ √N) with c₂ the largest Hessian norm met on exact and sampled
paths and between them, and σ² the summed variance of one trajectory's gradient estimate, greatest over the updates;
both are measured for every MDP and setting. {trials} trials in each MDP. Biases are relative to the norm of the exact
meta-gradient; "squared" has the noise of a mean over trials taken out, and so may be below 0. Two things of the lemma
hold only nearly here: trajectories end after 20 steps, so estimates are off by a term of order γ²⁰ (0.01), and the
trajectories of one estimate share the noise in their values.

An order counts as found where the mean paired difference over MDPs has a 95 % interval (Student's t) without 0.
"""


def report(folder: Path, done: Parts, is_quick: bool) -> None:
    """Write the page of `compositional-bias`."""
    by_field = _collect(done)
    sweeps = list(by_field.values())
    rows = [_same_row(sweeps)]
    rows += [row for sweep in sweeps for row in _bound_rows(sweep)]
    rows += _slope_rows(by_field["trajectories"])
    rows += [row for sweep in sweeps for row in _growth_rows(sweep)]
    title = f"Bias of sampled inner updates alone{' (quick version)' if is_quick else ''}"
    introduction = INTRODUCTION.format(trials=first_settings(done)["trials"])
    write_report(folder, title, introduction, rows, _figures(sweeps))
