"""The report of study `compositional-bias`: what the numbers say of Lemma 4.4, decided by the numbers."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.paired import claim_row, neighbours
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report

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
    """All parts of one sweep; of each estimator and quantity [MDPs, values]."""

    field: str
    base: Settings
    x: Array
    of: dict[str, dict[str, Array]]

    @property
    def fixed(self) -> str:
        return ", ".join(f"{AXES[field][1]} = {value:g}" for field, value in self.base.items())


def _collect(done: dict[str, tuple[Settings, Result]]) -> list[_Sweep]:
    sweeps = []
    for field in AXES:
        own = [(s, r) for s, r in done.values() if s["field"] == field]
        settings, result = own[0]
        of = {
            estimator: {name: np.array([r[estimator][name] for _, r in own]) for name in lists}
            for estimator, lists in result.items()
        }
        sweeps.append(_Sweep(field, settings["base"], np.array(settings["values"], dtype=np.float64), of))
    return sweeps


def _same_rows(sweeps: list[_Sweep]) -> tuple[list[Row], list[str]]:
    """AD, LVC and Loaded-DiCE on the same samples."""
    worst = max(
        float(np.abs(sweep.of[other][name] - sweep.of["ad"][name]).max())
        for sweep in sweeps
        for other in SAME
        for name in ("distance", "bias", "pearson")
    )
    mdps = str(len(sweeps[0].of["ad"]["bias"]))
    ours = f"largest difference of distance, bias, correlation {number(worst, 2)}"
    row = Row("AD, LVC, Loaded-DiCE in SEE", "identical (follows from the definitions)", ours, mdps, "over all points")
    return [row], [] if worst < 1e-9 else [f"AD, LVC and Loaded-DiCE differ by {worst:.1e} in SEE."]


def _bound_rows(sweeps: list[_Sweep]) -> tuple[list[Row], list[str]]:
    """Is the measured distance within the bound at every point, and how far below it?"""
    rows, sentences = [], []
    for sweep in sweeps:
        for estimator, title in SHOWN.items():
            values = sweep.of[estimator]
            over = values["distance"] - values["bound"]
            above, certain = over > 0, over > ERRORS * values["error"]
            kept = f"{above.size - int(above.sum())} of {above.size} points"
            if above.any():
                kept += f"; {int(certain.sum())} above it by more than {ERRORS:g} standard errors"
            ratio = values["bound"] / values["distance"]
            looseness = ", ".join(f"{r:.3g} at {x:g}" for x, r in zip(sweep.x, np.median(ratio, axis=0), strict=True))
            name = f"E‖θ̂_K - θ_K‖ ≤ bound, {title}, {AXES[sweep.field][1]} from {sweep.x[0]:g} to {sweep.x[-1]:g}"
            name += f" ({sweep.fixed})"
            spread = f"bound/measured, median over MDPs: {looseness}; from {ratio.min():.3g} to {ratio.max():.3g}"
            rows.append(Row(name, "at every point (Lemma 4.4)", kept, str(len(over)), spread))
            if certain.any():
                worst = float((values["distance"] / values["bound"])[certain].max())
                sentences.append(
                    f"{title}: measured above the bound at {int(certain.sum())} of {certain.size} points of the "
                    f"{AXES[sweep.field][1]} sweep, by up to {100 * (worst - 1):.1f} %."
                )
    return rows, sentences


def _slope_rows(sweep: _Sweep) -> tuple[list[Row], list[str]]:
    """The power of N in the distance: a line through the logarithms for each MDP."""
    rows, sentences = [], []
    for estimator, title in SHOWN.items():
        values = sweep.of[estimator]
        for name, of in (("E‖θ̂_K - θ_K‖", values["distance"]), ("the bound as measured", values["bound"])):
            slopes = np.polyfit(np.log(sweep.x), np.log(of).T, 1)[0]
            mean, std = (float(x) for x in mean_and_std(slopes))
            error = std / len(slopes) ** 0.5 if len(slopes) > 1 else np.nan
            quantity = f"power of N in {name}, {title} ({sweep.fixed})"
            ours = f"{number(mean)} ± {number(error, 2)} (standard error)"
            rows.append(Row(quantity, "-1/2", ours, str(len(slopes)), f"std over MDPs {number(std, 2)}"))
            if not abs(mean + 0.5) <= ERRORS * error + ROUNDING:
                sentences.append(
                    f"{title}: {name} falls as N to the {mean:.3f} ± {error:.3f}, not as 1/√N within {ERRORS:g} "
                    f"standard errors."
                )
    return rows, sentences


def _growth_rows(sweep: _Sweep) -> tuple[list[Row], list[str]]:
    """The direction of distance, bias and correlation along a sweep, from one value to the next."""
    symbol, is_rising = AXES[sweep.field][1], sweep.field != "trajectories"
    verb = "grows" if is_rising else "falls"
    labels = [f"{symbol} = {x:g}" for x in sweep.x]
    rows, sentences = [], []
    for estimator, title in SHOWN.items():
        values = sweep.of[estimator]
        for name, of, paper in (
            ("E‖θ̂_K - θ_K‖", values["distance"], f"the bound {verb} with {symbol} (eq. 6)"),
            ("squared relative bias", values["corrected"], f"the bound {verb} with {symbol} (eq. 9)"),
            (
                "1 - correlation",
                1.0 - values["pearson"],
                f"slides: figure only; the bound {verb} with {symbol} (eq. 9)",
            ),
        ):
            # From one value to the next a bias changes by less than the noise of a mean over trials.
            at = [0, len(labels) - 1] if name == "squared relative bias" else range(len(labels))
            changes = neighbours([labels[i] for i in at], [of[:, i] for i in at])
            row, differing = claim_row(f"{name}, {title} ({sweep.fixed})", paper, is_rising, changes)
            rows.append(row)
            sentences += differing
    return rows, sentences


def _draw(folder: Path, sweeps: list[_Sweep]) -> list[tuple[str, str]]:
    def panel(sweep: _Sweep, name: str, label: str, is_log: bool) -> Panel:
        def band(values: Array) -> tuple[Array, Array | None]:
            return (np.median(values, axis=0), None) if is_log else mean_and_std(values)

        curves = [(title, sweep.x, *band(sweep.of[e][name])) for e, title in SHOWN.items()]
        return Panel(sweep.fixed, AXES[sweep.field][0], label, curves, sweep.field == "trajectories", is_log)

    def bounds(sweep: _Sweep, estimator: str, title: str) -> Panel:
        curves = [
            (label, sweep.x, np.median(sweep.of[estimator][name], axis=0), None)
            for label, name in (("measured", "distance"), ("bound", "bound"))
        ]
        is_log_x = sweep.field == "trajectories"
        return Panel(f"{title}; {sweep.fixed}", AXES[sweep.field][0], "E‖θ̂_K - θ_K‖", curves, is_log_x, True)

    line_panels(folder / "bound.png", [bounds(sweep, *shown) for shown in SHOWN.items() for sweep in sweeps])
    line_panels(
        folder / "meta-gradient.png",
        [
            panel(sweep, *shown)
            for shown in (("pearson", "correlation", False), ("bias", "‖bias‖ / norm of the exact", True))
            for sweep in sweeps
        ],
    )
    return [
        ("bound.png", "Compositional bias and the bound of Lemma 4.4, medians over MDPs."),
        (
            "meta-gradient.png",
            "Correlation (mean ± standard deviation over MDPs) and bias (median) of the meta-gradient. The noise of "
            "the mean over trials is still in this bias; the table has it taken out.",
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


def report(folder: Path, done: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Table, figures and where ours differs, of the parts of `compositional-bias`."""
    sweeps = _collect(done)
    by_size = next(sweep for sweep in sweeps if sweep.field == "trajectories")
    rows: list[Row] = []
    sentences: list[str] = []
    made = [_same_rows(sweeps), _bound_rows(sweeps), _slope_rows(by_size), *(_growth_rows(each) for each in sweeps)]
    for some_rows, some_sentences in made:
        rows += some_rows
        sentences += some_sentences
    title = f"Bias of sampled inner updates alone{' (quick version)' if is_quick else ''}"
    introduction = INTRODUCTION.format(trials=next(iter(done.values()))[0]["trials"])
    write_report(folder, title, introduction, rows, _draw(folder, sweeps), sentences)
