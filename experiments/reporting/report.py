"""What the studies' reports share: a page with a table "paper | ours", plots of curves with bands, statistics."""

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metagrad.cluster.run.folder import read_json
from metagrad.learner.storage import write_whole

Array = NDArray[np.float64]

# Okabe and Ito's colours, which people with any colour vision tell apart; styles repeat it for print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_POINTS_MARKED = 25


class Row(NamedTuple):
    """One line of a report's table; `spread` says over what (standard deviation, interval)."""

    quantity: str
    paper: str
    ours: str
    seeds: str
    spread: str


class Panel(NamedTuple):
    """One set of axes; a curve is (label, x [N], mean [N], spread [N]), its band mean ± spread; None: no band."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]]
    is_log_x: bool = False
    is_log_y: bool = False


def write_report(
    folder: Path,
    title: str,
    introduction: str,
    rows: Sequence[Row],
    figures: Sequence[tuple[str, str]],
    differences: Sequence[str],
) -> None:
    """Write report.md: table, figures, where ours differs, and from the folder's results.json what made it.

    Args:
        folder: The study's; without a results.json in it the page says nothing of command and provenance.
        title: The heading.
        introduction: Paragraphs in Markdown.
        rows: The table.
        figures: (file name in the folder, caption).
        differences: One plain sentence each; none: the page says that there are none.

    Raises:
        FileNotFoundError: a figure is not in the folder.
    """
    for name, _ in figures:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: a figure of the report that nobody drew")
    blocks = [f"# {title}", introduction.strip()]
    results = folder / "results.json"
    if results.exists():
        blocks += _made_by(read_json(results))
    blocks += ["## Paper and ours", markdown_table(Row._fields, rows)]
    if figures:
        blocks += ["## Figures", *(f"![{caption}]({name})\n\n*{caption}*" for name, caption in figures)]
    listed = "\n".join(f"- {sentence}" for sentence in differences)
    blocks += ["## Where ours differs", listed or "Nowhere in the table."]
    write_whole(folder / "report.md", ("\n\n".join(blocks) + "\n").encode())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; what a cell has of its own bars is escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _made_by(results: dict[str, Any]) -> list[str]:
    """Command and provenance; parts may have been made at different times, so each line names all there were."""
    origins = [part["provenance"] for part in results["parts"].values()]
    seconds = sum(origin["wall_seconds"] for origin in origins)

    def all_of(key: str) -> str:
        return " and ".join(sorted({str(origin[key] or "unknown") for origin in origins}))

    lines = [
        f"- metagrad {all_of('metagrad')}, commit {all_of('commit')}",
        f"- torch {all_of('torch')}, Python {all_of('python')}",
        f"- {all_of('hardware')}",
        f"- {len(origins)} parts, {seconds / 3600:.2f} CPU hours, on one thread each",
    ]
    return ["## Made by", f"```\n{results['command']}\n```", "\n".join(lines)]


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
    """One legend above the figure where several panels show the same curves; else one wherever the curves change."""
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


def mean_and_std(trials: ArrayLike) -> tuple[Array, Array]:
    """Mean and standard deviation over independent trials.

    Args:
        trials: [N, …], trials first.

    Returns:
        mean […]; std […], N - 1 in the denominator, 0 for a single trial.

    >>> mean_and_std([1.0, 2.0, 3.0])
    (array(2.), array(1.))
    """
    values = _trials(trials)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return np.asarray(values.mean(axis=0)), np.asarray(std)


def mean_and_error(trials: ArrayLike) -> tuple[float, float]:
    """Mean over independent trials [N] and its standard error, nan for one.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    values = _array(trials)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


# Student's t, 97.5 %, for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def critical(count: int) -> float:
    """Standard errors beyond which a mean of `count` values is off 0 at the two-sided 5 % level; nan for one value.

    Above 10 values that of 10: a little stricter than the level asks for.
    """
    return _T[min(count - 1, len(_T)) - 1] if count > 1 else np.nan


def median_and_quartiles(trials: ArrayLike) -> tuple[Array, Array, Array]:
    """Median, first and third quartile over independent trials [N, …], linear between order statistics.

    >>> [float(x) for x in median_and_quartiles([4.0, 1.0, 2.0, 3.0, 5.0])]
    [3.0, 2.0, 4.0]
    """
    first, median, third = np.quantile(_trials(trials), [0.25, 0.5, 0.75], axis=0)
    return np.asarray(median), np.asarray(first), np.asarray(third)


def interquartile_mean(trials: ArrayLike) -> Array:
    """IQM: mean over trials [N, …] without the lowest and the highest quarter (⌊N/4⌋ each).

    Source: Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice", §4.3.

    >>> interquartile_mean([0.0, 1.0, 2.0, 300.0])
    array(1.5)
    """
    values = np.sort(_trials(trials), axis=0)
    cut = len(values) // 4
    return np.asarray(values[cut : len(values) - cut].mean(axis=0))


def bootstrap_interval(
    trials: ArrayLike, statistic: Callable[[Array], ArrayLike], coverage: float = 0.95, resamples: int = 2_000
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of a statistic over trials [N, …]; the same trials give the same interval.

    Source: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", §13.3.
    """
    values = _trials(trials)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(values), size=(resamples, len(values)))
    tails = [(1 - coverage) / 2, (1 + coverage) / 2]
    low, high = np.quantile(np.stack([_array(statistic(values[row])) for row in drawn]), tails, axis=0)
    return np.asarray(low), np.asarray(high)


def _trials(trials: ArrayLike) -> Array:
    values = _array(trials)
    assert values.ndim >= 1, "trials are [N, …]"
    assert len(values), "no trials"
    return values


def number(value: float, digits: int = 3) -> str:
    """A number as the table shows it.

    >>> number(0.123456), number(-2.0), number(1234567.0)
    ('0.123', '-2', '1.23e+06')
    """
    return f"{value:.{digits}g}"
