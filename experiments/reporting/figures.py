"""Draws figures of the studies' reports: panels of curves with bands, drawn as PNG files."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.experiments.reporting.statistics import Array, mean_and_std
from metagrad.learner.storage import write_whole

# Okabe and Ito's colours, which people with any colour vision tell apart; styles repeat it for print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_POINTS_MARKED = 25

Curve = tuple[str, ArrayLike, ArrayLike, ArrayLike | None]
"""Label, x [N], mean [N] and spread [N]; the band is mean ± spread, None draws no band."""


class Panel(NamedTuple):
    """Represents one set of axes, and the curves that it shows."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    is_log_x: bool = False
    is_log_y: bool = False


class Figure(NamedTuple):
    """Represents a picture of a report: a file in its folder, the caption, and the panels that are drawn into it."""

    name: str
    caption: str
    panels: Sequence[Panel]
    columns: int = 3


def mean_curve(label: str, x: ArrayLike, trials: ArrayLike) -> Curve:
    """Return the mean over trials [seeds, N] with a band of one standard deviation."""
    return label, x, *mean_and_std(trials)


def median_curve(label: str, x: ArrayLike, trials: ArrayLike) -> Curve:
    """Return the median over trials [seeds, N], which no single trial can dominate, without a band."""
    return label, x, np.median(np.asarray(trials), axis=0), None


def line_panels(path: Path, panels: Sequence[Panel], columns: int = 3) -> None:
    """Draw curves with bands, panels side by side, at most `columns` in a row; curves of one label look the same."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    labels = list(dict.fromkeys(label for panel in panels for label, *_ in panel.curves))
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    with pyplot.rc_context({"font.size": 10, "axes.titlesize": 11, "lines.linewidth": 1.8}):
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(4.4 * columns, 3.4 * lines), squeeze=False, layout="constrained"
        )
        try:
            for axis in axes.flat[len(panels) :]:
                axis.set_visible(False)
            for axis, panel in zip(axes.flat, panels, strict=False):
                _draw(axis, panel, labels)
            _add_legends(figure, axes.flat, panels)
            drawn, small = BytesIO(), BytesIO()
            figure.savefig(drawn, dpi=110)
        finally:
            pyplot.close(figure)
    with Image.open(drawn) as picture:  # lines in a few colours: a palette takes a quarter of the bytes
        picture.convert("RGB").quantize(128).save(small, format="PNG", optimize=True)
    write_whole(path, small.getvalue())


def _add_legends(figure: Any, axes: Iterable[Any], panels: Sequence[Panel]) -> None:
    """Draw one legend above the figure if several panels show the same curves; else one wherever the curves change."""
    shown: list[str] = []
    named = [[label for label, *_ in panel.curves if label] for panel in panels]
    is_common = len(panels) > 1 and all(labels == named[0] for labels in named)
    for axis, labels in zip(axes, named, strict=False):
        if labels and labels != shown:
            if is_common:
                lines = axis.get_legend_handles_labels()
                figure.legend(*lines, loc="outside upper center", ncols=len(labels), fontsize=9)
            else:
                axis.legend(fontsize=9)
        shown = labels


def _draw(axis: Any, panel: Panel, labels: Sequence[str]) -> None:
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axis.grid(alpha=0.3)
    if panel.is_log_x:
        axis.set_xscale("log")
    elif all(float(each).is_integer() for _, x, *_ in panel.curves for each in _array(x)):
        axis.xaxis.get_major_locator().set_params(integer=True)
    bands = [(label, _array(x), *_band(mean, spread)) for label, x, mean, spread in panel.curves]
    positive = [values[values > 0] for _, _, *band in bands for values in band]
    floor = min((float(values.min()) for values in positive if values.size), default=0.0)
    is_log_y = panel.is_log_y and floor > 0  # nothing positive is drawn on a linear axis
    if is_log_y:
        axis.set_yscale("log")
    for label, x, mean, low, high in bands:
        index = labels.index(label)
        colour = _COLOURS[index % len(_COLOURS)]
        if is_log_y:  # a band that reaches 0 has no lower end on a logarithmic axis: it goes down to the lowest
            low = np.where(low > 0, low, np.where(np.isnan(low), low, floor))
        axis.plot(
            x,
            mean,
            color=colour,
            linestyle=_STYLES[index % len(_STYLES)],
            marker=_MARKERS[index % len(_MARKERS)] if len(x) <= _MOST_POINTS_MARKED else None,
            markersize=4,
            label=label,
        )
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _band(mean: ArrayLike, spread: ArrayLike | None) -> tuple[Array, Array, Array]:
    middle = _array(mean)
    width = np.zeros_like(middle) if spread is None else _array(spread)
    return middle, middle - width, middle + width
