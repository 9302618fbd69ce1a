"""Makes tables and figures of the study `precision`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result
from metagrad.experiments.mixed_precision.rounding import MU, PRECISIONS
from metagrad.experiments.reporting.figures import Figure, Panel
from metagrad.experiments.reporting.parts import Parts, results_of
from metagrad.experiments.reporting.report import Row, differences_of, markdown_table, write_report
from metagrad.experiments.reporting.statistics import Array, critical, mean_and_error, number

LOGGED = ("episode/return_mean", "eta/gamma")
QUANTITIES = dict(zip(LOGGED, ("return", "γ"), strict=True))
INNER, APART = "inner gradient", "apart"
_SYMBOLS = {
    "gamma": "γ",
    "lambda_": "λ",
    "value_coefficient": "value coefficient",
    "entropy_coefficient": "entropy coefficient",
}
_INTRODUCTION = f"""\
What does `--precision bf16-mixed` cost in accuracy? Layers of networks compute in bfloat16 there, all else in float32.
Every pair of numbers is float32 · bf16-mixed.

Gradients are compared with float64 at the same θ, η, optimizer state and rollouts, all three converted from one run in
float32. Each window of rollouts is sampled under the parameters of float32's look-ahead, and each precision unrolls its
own. The meta-gradient is that of all four hyper-parameters, in unconstrained space and before clipping, also where the
run learns γ alone. The trace has μ = {MU}; BMG has one update from θₙ to its target, whose optimizer starts from the
moments of the run's; at n = 1, mix and trace are n-step. Relative errors are norms of the difference over the norm in
float64. Cells are medians over windows. The last column is the standard deviation of the exact meta-gradient over
windows, as a norm, over the norm of its mean: what one batch leaves open anyway. A dash: exactly 0, or there is none.

Curves are of whole runs of both precisions from the same seeds. Values are means over what was logged in each tenth of
a run, with 95 % intervals of the mean over seeds (Student's t). Intervals may overlap although a difference exists that
more seeds would show.
"""


def relative_error(found: ArrayLike, exact: ArrayLike) -> Array:
    """Return ‖found - exact‖ / ‖exact‖ of vectors [..., M]; nan where both are 0.

    >>> relative_error([3.0, 5.0], [3.0, 4.0])
    array(0.2)
    """
    x, y = np.asarray(found, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(x - y, axis=-1) / np.linalg.norm(y, axis=-1))


def cosine(found: ArrayLike, exact: ArrayLike) -> Array:
    """Return the cosine of the angle between vectors [..., M].

    >>> cosine([1.0, 0.0], [3.0, 4.0])
    array(0.6)
    """
    x, y = np.asarray(found, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    return np.asarray((x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1))


class Interval(NamedTuple):
    """Holds a mean over seeds and half the width of its 95 % interval; nan of a single seed."""

    mean: float
    margin: float

    @classmethod
    def of(cls, values: Array) -> "Interval":
        """Summarise values [seeds] by Student's t."""
        mean, error = mean_and_error(values)
        return cls(float(mean), float(critical(len(values)) * error))

    def verdict(self, other: "Interval") -> str:
        """Say whether two intervals overlap."""
        margins = self.margin + other.margin
        if np.isnan(margins):
            return "no interval"
        return "overlap" if abs(self.mean - other.mean) <= margins else APART

    def __str__(self) -> str:
        return f"{number(self.mean)} ± {_shown(self.margin)}"


def _shown(value: float | Array, digits: int = 2) -> str:
    return "–" if np.isnan(value) else number(value, digits)


def _both(values: Sequence[Array], digits: int = 2) -> str:
    """Write the medians of both precisions over windows."""
    return " · ".join(_shown(np.median(each), digits) for each in values)


class _Compared(NamedTuple):
    """Holds one gradient at one update, float32's and bf16-mixed's, over windows."""

    update: int
    gradient: str
    errors: list[Array]  # [windows] of each precision
    cosines: list[Array]
    of_each: list[list[Array]]  # relative errors of each component; the inner gradient has none
    spread: float  # of the exact one over windows, relative; nan of one window and of the inner gradient


def _compared(update: int, result: Result) -> Iterator[_Compared]:
    windows = result["windows"]
    inner = [{k: np.array([w["inner"][p][k] for w in windows]) for k in ("error", "cosine")} for p in PRECISIONS]
    yield _Compared(update, INNER, [x["error"] for x in inner], [x["cosine"] for x in inner], [], np.nan)
    for case in windows[0]["meta"]:
        exact, *found = (np.array([w["meta"][case][p] for w in windows]) for p in ("float64", *PRECISIONS))
        of_each = [[relative_error(x[:, [m]], exact[:, [m]]) for x in found] for m in range(exact.shape[1])]
        mean = exact.mean(axis=0)
        variance = ((exact - mean) ** 2).sum() / (len(exact) - 1) if len(exact) > 1 else np.nan
        spread = float(variance**0.5 / np.linalg.norm(mean))
        errors, cosines = [relative_error(x, exact) for x in found], [cosine(x, exact) for x in found]
        yield _Compared(update, case, errors, cosines, of_each, spread)


def _gradient_table(compared: Sequence[_Compared], names: Sequence[str]) -> str:
    head = ["update", "gradient", "relative error", "cosine", *(f"∂ {_SYMBOLS[name]}" for name in names), "spread"]
    lines = [
        [f"{x.update:,}", x.gradient, _both(x.errors), _both(x.cosines, 4)]
        + [_both(pair) for pair in x.of_each or [[np.full(1, np.nan)]] * len(names)]
        + [_shown(x.spread)]
        for x in compared
    ]
    return markdown_table(head, lines)


def _gradient_rows(title: str, compared: Sequence[_Compared]) -> Iterator[Row]:
    """Condense the table: each estimator over all n, updates and windows."""
    for kind in dict.fromkeys(x.gradient.partition(",")[0] for x in compared):
        own = [x for x in compared if x.gradient.partition(",")[0] == kind]
        errors = [np.concatenate([x.errors[p] for x in own]) for p in range(len(PRECISIONS))]
        cosines = np.concatenate([x.cosines[1] for x in own])
        ours = f"{_both(errors)}; largest {' · '.join(number(x.max(), 2) for x in errors)}"
        turned = int((cosines < 0).sum())
        spread = f"cosine in bf16-mixed: median {number(np.median(cosines), 4)}, least {number(cosines.min(), 4)}"
        what = f"{title}: {kind if kind == INNER else f'meta-gradient, {kind}'}"
        worst = max(own, key=lambda x: float(x.errors[1].max()))
        sentence = (
            f"{what}: bf16-mixed is off by {number(np.median(errors[1]), 2)} of its norm (median), and by "
            f"{number(errors[1].max(), 2)} at most, at update {worst.update:,}{_of(worst)}"
        )
        sentence += f"; it points the other way (cosine < 0) in {turned} of {len(cosines)}." if turned else "."
        yield Row(f"{what}, relative error", "0", ours, f"{len(cosines)} comparisons", spread, [sentence])


def _of(x: _Compared) -> str:
    return "" if x.gradient == INNER else f" with {x.gradient.partition(', ')[2]}"


def _curves(parts: Parts, experiment: str, name: str) -> list[dict[int, Array]]:
    """Return for each precision the values [seeds] by update, where every seed that has run has one."""
    found = []
    for precision in PRECISIONS:
        runs = [r[name] for r in results_of(parts, experiment=experiment, precision=precision) if name in r]
        each = [dict(zip(run["updates"], run["values"], strict=True)) for run in runs]
        shared = sorted(set(each[0]).intersection(*each)) if each else []
        found.append({update: np.array([run[update] for run in each]) for update in shared})
    return found


def _curve_rows(parts: Parts, experiment: str) -> Iterator[Row]:
    for name, quantity in QUANTITIES.items():
        found = _curves(parts, experiment, name)
        for update in sorted(set(found[0]) & set(found[1])):
            values = [each[update] for each in found]
            first, second = (Interval.of(x) for x in values)
            verdict = first.verdict(second)
            what = f"{experiment}: {quantity} by update {update:,}"
            ours = f"{first} · {second}: {verdict}"
            sentences = [f"{what}: {ours}."] if verdict == APART else []
            seeds = " · ".join(str(len(x)) for x in values)
            stds = " · ".join(_shown(x.std(ddof=1)) if len(x) > 1 else "–" for x in values)
            yield Row(what, "intervals overlap", ours, seeds, f"std {stds}", sentences)


def _panels(parts: Parts, experiment: str) -> Iterator[Panel]:
    for name, quantity in QUANTITIES.items():
        curves = []
        for precision, found in zip(PRECISIONS, _curves(parts, experiment, name), strict=True):
            if found:
                intervals = [Interval.of(x) for x in found.values()]
                band = np.nan_to_num([x.margin for x in intervals])
                curves.append((precision, list(found), [x.mean for x in intervals], band))
        if curves:
            yield Panel(experiment, "update", quantity, curves)


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the study's page."""
    tables: list[str] = []
    rows: list[Row] = []
    probed = [part for part in parts.values() if "windows" in part[0]]
    for title in dict.fromkeys(settings["experiment"] for settings, _ in probed):
        own = [part for part in probed if part[0]["experiment"] == title]
        compared = [x for settings, result in own for x in _compared(settings["updates"], result)]
        (settings, result) = own[0]
        about = f"{settings['windows']} windows, {settings['environments']} environments, seed {settings['seed']}"
        tables += [f"## Gradients: {title}, {about}", _gradient_table(compared, result["names"])]
        rows += _gradient_rows(title, compared)
    trained = {name: part for name, part in parts.items() if "precision" in part[0]}
    experiments = list(dict.fromkeys(settings["experiment"] for settings, _ in trained.values()))
    compared_curves = [row for experiment in experiments for row in _curve_rows(trained, experiment)]
    rows += compared_curves
    panels = [panel for experiment in experiments for panel in _panels(trained, experiment)]
    caption = "Return and γ along training in both precisions; mean and 95 % interval of it over seeds."
    figures = [Figure("curves.png", caption, panels, columns=2)] if panels else []
    apart = sum(bool(row.differences) for row in compared_curves)
    pairs = sum("no interval" not in row.ours for row in compared_curves)
    closing = [f"Of {pairs} pairs of intervals along the curves, {apart} do not overlap."]
    closing += ["A quick version: it shows that things work, and nothing else."] if is_quick else []
    introduction = "\n\n".join([_INTRODUCTION.strip(), *tables])
    write_report(
        folder, "What bf16-mixed costs in accuracy", introduction, rows, figures, [*differences_of(rows), *closing]
    )
