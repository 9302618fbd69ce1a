import json
import math
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib import pyplot

from metagrad.experiments.reporting import figures
from metagrad.experiments.reporting.figures import Figure, Panel, line_panels
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import critical, interquartile_mean, mean_and_std

ROWS = [Row("bias", "0.10", "0.11", "30", "0.01 (std)"), Row("a | b", "-", "1", "2", "-")]


def origin(**changes: Any) -> dict[str, Any]:
    made = {"metagrad": "0.1.0", "commit": "abc", "torch": "2.13", "python": "3.11", "hardware": "a CPU, 2 cores"}
    return {"provenance": made | {"wall_seconds": 1_800.0} | changes}


def test_a_report_has_table_figures_and_no_differences(tmp_path: Path) -> None:
    write_report(tmp_path, "Title", "What it is.\n", ROWS, [Figure("a.png", "A caption", [panel()])])
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[:3] == ["# Title", "", "What it is."]
    start = lines.index("| quantity | paper | ours | seeds | spread |")
    assert lines[start + 1 : start + 4] == [
        "| --- | --- | --- | --- | --- |",
        "| bias | 0.10 | 0.11 | 30 | 0.01 (std) |",
        "| a \\| b | - | 1 | 2 | - |",
    ]
    assert "![A caption](a.png)" in lines
    assert lines[-3:] == ["## Where ours differs", "", "Nowhere in the table."]
    assert "Made by" not in "".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "report.md"]


def test_differences_are_listed(tmp_path: Path) -> None:
    write_report(tmp_path, "T", "I", ROWS, [], ["The first.", "The second."])
    text = (tmp_path / "report.md").read_text()
    assert text.endswith("## Where ours differs\n\n- The first.\n- The second.\n")
    assert "Figures" not in text


def test_a_rows_sentences_are_among_the_differences_unless_others_are_given(tmp_path: Path) -> None:
    rows = [ROWS[0]._replace(differences=["Off by 0.01."]), ROWS[1]]
    write_report(tmp_path, "T", "I", rows, [])
    assert (tmp_path / "report.md").read_text().endswith("## Where ours differs\n\n- Off by 0.01.\n")
    write_report(tmp_path, "T", "I", rows, [], ["Too short."])
    assert (tmp_path / "report.md").read_text().endswith("## Where ours differs\n\n- Too short.\n")


def test_a_report_says_what_made_it(tmp_path: Path) -> None:
    parts = {"x": origin(), "y": origin(commit="def"), "z": origin(commit=None)}
    (tmp_path / "results.json").write_text(json.dumps({"command": "metagrad reproduce toy --seeds 3", "parts": parts}))
    write_report(tmp_path, "T", "I", ROWS, [], [])
    text = (tmp_path / "report.md").read_text()
    assert "```\nmetagrad reproduce toy --seeds 3\n```" in text
    assert "- metagrad 0.1.0, commit abc and def and unknown\n" in text
    assert "- torch 2.13, Python 3.11\n- a CPU, 2 cores\n- 3 parts, 1.50 CPU hours, on one thread each\n" in text


def test_a_figure_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png"):
        write_report(tmp_path, "T", "I", ROWS, [Figure("b.png", "c", [panel()]), Figure("a.png", "c", [])])
    assert list(tmp_path.iterdir()) == []


def panel(**changes: Any) -> Panel:
    x = [1.0, 10.0, 100.0]
    curves = [("ours", x, [1.0, 0.5, 0.1], [0.2, 0.5, 0.3]), ("exact", x, [0.3, 0.3, 0.3], None)]
    return Panel("a title", "samples", "bias", curves)._replace(**changes)


@pytest.mark.parametrize("is_log_y", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_panels_are_drawn(tmp_path: Path, count: int, is_log_y: bool) -> None:
    line_panels(tmp_path / "a.png", [panel(is_log_x=True, is_log_y=is_log_y)] * count)
    height, width, _ = pyplot.imread(tmp_path / "a.png").shape
    assert width == pytest.approx(110 * 4.4 * min(count, 3), abs=1)
    assert height == pytest.approx(110 * 3.4 * (1 + (count > 3)), abs=1)
    assert pyplot.get_fignums() == []


def drawn(panel: Panel, labels: list[str]) -> Any:
    figure, axis = pyplot.subplots()
    figures._draw(axis, panel, labels)
    pyplot.close(figure)
    return axis


def test_a_band_is_mean_and_spread() -> None:
    axis = drawn(panel(), ["ours", "exact"])
    assert [line.get_label() for line in axis.lines] == ["ours", "exact"]
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [1.0, 0.5, 0.1])
    corners = {tuple(corner) for corner in axis.collections[0].get_paths()[0].vertices.round(6).tolist()}
    assert {(1.0, 0.8), (1.0, 1.2), (100.0, -0.2), (100.0, 0.4)} <= corners
    assert axis.get_xscale() == axis.get_yscale() == "linear"


def test_a_band_that_reaches_zero_goes_down_to_the_lowest_value_of_a_logarithmic_axis() -> None:
    axis = drawn(panel(is_log_y=True, is_log_x=True), ["ours", "exact"])
    corners = axis.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.1)
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_a_label_looks_the_same_in_every_panel() -> None:
    first, second = (drawn(panel(curves=curves), ["ours", "exact"]) for curves in (panel().curves, panel().curves[1:]))
    for aspect in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first.lines[1], aspect)() == getattr(second.lines[0], aspect)()
        assert getattr(first.lines[0], aspect)() != getattr(second.lines[0], aspect)()


def test_nothing_positive_on_a_logarithmic_axis_is_no_error(tmp_path: Path) -> None:
    line_panels(tmp_path / "a.png", [panel(curves=[("zero", [1.0, 2.0], [0.0, 0.0], None)], is_log_y=True)])


TRIALS = arrays(np.float64, array_shapes(max_dims=2, max_side=12), elements=st.floats(-1e3, 1e3))


@hypothesis.given(TRIALS)
def test_statistics_do_not_depend_on_the_order_of_trials(trials: np.ndarray) -> None:
    for statistic in (mean_and_std, lambda x: (interquartile_mean(x),)):
        for one, other in zip(statistic(trials), statistic(trials[::-1]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9)


@hypothesis.given(TRIALS)
def test_statistics_against_slow_ones(trials: np.ndarray) -> None:
    count = len(trials)
    mean = sum(trials) / count
    squares = sum((trial - mean) ** 2 for trial in trials)
    np.testing.assert_allclose(mean_and_std(trials)[0], mean, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(mean_and_std(trials)[1], np.sqrt(squares / max(count - 1, 1)), rtol=1e-9, atol=1e-9)
    for index in np.ndindex(trials.shape[1:]):
        column = sorted(trial[index] for trial in trials)
        kept = column[count // 4 : count - count // 4]
        assert interquartile_mean(trials)[index] == pytest.approx(sum(kept) / len(kept), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("trials", [[], 1.0])
def test_no_trials_are_an_error(trials: Any) -> None:
    with pytest.raises(AssertionError, match="trials"):
        mean_and_std(trials)


def test_critical_values_are_those_of_students_t() -> None:
    # P(|t| > c) = 5 %, by numerical integration of the density.
    for count in range(2, 11):
        freedom = count - 1
        t = np.linspace(0.0, critical(count), 200_001)
        log_norm = math.lgamma(count / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = np.exp(log_norm - count / 2 * np.log1p(t**2 / freedom))
        assert 2.0 * np.trapezoid(density, t) == pytest.approx(0.95, abs=1e-4)
    assert critical(50) == critical(10)
    assert np.isnan(critical(1))
