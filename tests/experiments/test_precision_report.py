from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.mixed_precision.precision_report import Interval, report

NAMES = ["gamma", "lambda_", "value_coefficient", "entropy_coefficient"]
Part = tuple[dict[str, Any], dict[str, Any]]


def gradients(update: int, bf16: list[list[float]]) -> Part:
    exact = [[3.0, 4.0, 0.0, 0.0], [0.0, 10.0, 0.0, 0.0]]  # one window each
    near = [[3.0, 4.0005, 0.0, 0.0], [0.0, 10.001, 0.0, 0.0]]
    windows = [
        {
            "inner": {"float32": {"error": 1e-7, "cosine": 1.0}, "bf16-mixed": {"error": error, "cosine": 0.9995}},
            "meta": {"n-step, n = 1": {"float32": x, "bf16-mixed": y, "float64": z}},
        }
        for error, x, y, z in zip((0.01, 0.03), near, bf16, exact, strict=True)
    ]
    settings = {"experiment": "pong", "seed": 1, "updates": update, "windows": 2, "environments": 64}
    return settings, {"names": NAMES, "windows": windows}


def curve(precision: str, seed: int, returns: list[float]) -> Part:
    settings = {"experiment": "demo", "precision": precision, "seed": seed, "updates": 20}
    found = {"updates": [10, 20], "values": returns}
    return settings, {"episode/return_mean": found, "eta/gamma": {"updates": [10, 20], "values": [0.8, 0.9]}}


def page(folder: Path, parts: dict[str, Part]) -> tuple[str, str]:
    report(folder, parts, is_quick=False)
    above, below = (folder / "report.md").read_text(encoding="utf-8").split("## Where ours differs")
    return above, below


def test_gradients_are_told_by_update_and_condensed(tmp_path: Path) -> None:
    parts = {
        "one": gradients(10, [[3.0, 4.5, 0.0, 0.0], [0.0, 12.0, 0.0, 0.0]]),  # off by .1 and .2
        "two": gradients(30, [[3.0, 4.5, 0.0, 0.0], [0.0, -10.0, 0.0, 0.0]]),  # .1 and 2
    }
    above, below = page(tmp_path, parts)
    assert "## Gradients: pong, 2 windows, 64 environments, seed 1" in above
    assert "| 10 | inner gradient | 1e-07 · 0.02 | 1 · 0.9995 | – | – | – | – | – |" in above
    # λ: .125 and .2; γ: exact in the first window, 0 in both in the second; spread: √(4.5 + 18) / ‖(1.5, 7)‖
    assert "| 10 | n-step, n = 1 | 0.0001 · 0.15 |" in above
    assert "| 0.00011 · 0.16 | – · – | – · – | 0.66 |" in above
    assert "| pong: meta-gradient, n-step, relative error | 0 | 0.0001 · 0.15; largest 0.0001 · 2 | 4 comp" in above
    assert "pong: inner gradient: bf16-mixed is off by 0.02 of its norm (median), and by 0.03 at most" in below
    assert "and by 2 at most, at update 30 with n = 1; it points the other way (cosine < 0) in 1 of 4." in below


def test_intervals_that_do_not_overlap_are_named(tmp_path: Path, without_pictures: None) -> None:
    first, second = [[1.0, 5.0], [2.0, 5.1]], [[1.5, 7.0], [2.5, 7.1]]
    parts = {f"a{i}": curve("float32", i, x) for i, x in enumerate(first)}
    parts |= {f"b{i}": curve("bf16-mixed", i, x) for i, x in enumerate(second)}
    above, below = page(tmp_path, parts)
    # 12.706 standard errors of .5 and of .05
    assert "| demo: return by update 10 | intervals overlap | 1.5 ± 6.4 · 2 ± 6.4: overlap | 2 · 2 |" in above
    assert "- demo: return by update 20: 5.05 ± 0.64 · 7.05 ± 0.64: apart." in below
    assert "Of 4 pairs of intervals along the curves, 1 do not overlap." in below
    assert "![Return and γ along training" in above


def test_one_seed_has_no_interval(tmp_path: Path, without_pictures: None) -> None:
    parts = {"a": curve("float32", 1, [1.0, 5.0]), "b": curve("bf16-mixed", 1, [1.0, 9.0])}
    above, below = page(tmp_path, parts)
    assert "| 5 ± – · 9 ± –: no interval | 1 · 1 | std – · – |" in above
    assert "4 pairs" not in below
    assert "apart" not in below


def test_intervals_overlap_as_long_as_they_share_a_point() -> None:
    first = Interval.of(np.array([0.0, 2.0]))
    assert first.margin == pytest.approx(12.706)
    assert first.verdict(Interval(1.0 + 12.706 + 0.5, 0.5)) == "overlap"
    assert first.verdict(Interval(1.0 + 12.706 + 0.6, 0.5)) == "apart"
