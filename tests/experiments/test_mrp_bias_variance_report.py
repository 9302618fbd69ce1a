"""Bias and spread from moments: closed forms, noise taken out, and the report's verdicts on invented moments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.one_step_at_a_time import mrp_bias_variance_report as errors
from metagrad.experiments.one_step_at_a_time.mrp_bias_variance import STUDY


def test_errors_are_averages_over_the_chosen_states() -> None:
    point = {
        "mean": [0.0, 0.0, 0.0, 0.0],
        "std": [1.0, 10.0, 3.0, 30.0],
        "difference": [-2.0, 5.0, 4.0, 5.0],
        "difference_std": [2.0, 0.0, 6.0, 0.0],
    }
    even = errors.errors_of([[point]], slice(0, None, 2), 4)
    assert even.bias.item() == 3.0
    assert even.std.item() == 2.0
    assert even.corrected.item() == pytest.approx((4.0 - 1.0 + 16.0 - 9.0) / 2)
    assert even.noise.item() == pytest.approx(((1.0 + 9.0) / 2) ** 0.5)
    assert errors.errors_of([[point]], slice(1, None, 2), 4).bias.item() == 5.0


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_sampling_noise_is_taken_out_of_the_bias(bias: float) -> None:
    generator = np.random.default_rng(0)
    copies, points = 16, 4000
    draws = generator.normal(bias, 1.0, (points, copies, 1))
    moments: list[list[dict[str, Any]]] = [
        [{"std": [1.0], "difference": d.mean(0).tolist(), "difference_std": d.std(0, ddof=1).tolist()} for d in draws]
    ]
    measured = errors.errors_of(moments, slice(None), copies)
    assert measured.noise.mean() == pytest.approx(copies**-0.5, rel=0.03)
    assert measured.corrected.mean() == pytest.approx(bias**2, abs=4 * measured.corrected.std() / points**0.5)
    assert measured.bias.mean() > bias


def test_a_bias_that_noise_explains_is_0() -> None:
    zeros = np.zeros((2, 3))
    below = errors.Errors(bias=zeros, corrected=zeros - 1.0, noise=zeros, std=zeros)
    assert errors.corrected_bias(below).tolist() == [0.0, 0.0]


def invented(seed: int, bias: dict[str, float], std: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = STUDY.parts(5, False)[f"seed{seed}"] | {"steps": [1, 2, 5]}
    wobble = 1.0 + 0.01 * seed

    def point(name: str) -> dict[str, Any]:
        difference = [wobble * bias[name], 2 * wobble * bias[name]] * 5
        return {
            "std": [wobble * std[name], 2 * wobble * std[name]] * 5,
            "difference": difference,
            "difference_std": [1e-6] * 10,
        }

    moments = {name: [point(name), point(name)] for name in bias}
    return settings, {"updates": [100, 200], "discounts": [], "moments": moments}


NAMES = ("n-step-1", "n-step-2", "n-step-5", "mix-2", "mix-5")


def report_of(folder: Path, bias: tuple[float, ...], std: tuple[float, ...]) -> str:
    tables = dict(zip(NAMES, bias, strict=True)), dict(zip(NAMES, std, strict=True))
    STUDY.report(folder, {f"seed{seed}": invented(seed, *tables) for seed in range(3)}, False)
    for states in ("even", "odd", "all"):
        assert (folder / f"figure_5_{states}.png").stat().st_size > 10_000
    return (folder / "report.md").read_text(encoding="utf-8")


def test_errors_as_in_the_paper_are_said_to_be(tmp_path: Path) -> None:
    text = report_of(tmp_path, (4e-3, 3e-3, 1e-3, 3.5e-3, 2e-3), (1e-3, 2e-3, 8e-3, 1.5e-3, 2e-3))
    assert "the opposite" not in text
    assert "not distinguishable" not in text
    assert "Nowhere in the table" in text


def test_every_difference_is_a_sentence(tmp_path: Path) -> None:
    text = report_of(tmp_path, (2e-3, 3e-3, 1e-3, 2.5e-3, 1e-3), (2e-3, 1e-3, 8e-3, 1.5e-3, 2e-3))
    sentences = text.split("Where ours differs")[1]
    assert "- Standard deviation, even states, 1-step → 2-step: 0.00202 → 0.00101, the opposite" in sentences
    assert "- Bias, even states, 1-step → 2-step: 0.00202 → 0.00303, the opposite" in sentences
    assert "- Standard deviation, even states, mix, 2-step → 2-mix: 0.00101 → 0.00152, the opposite" in sentences
    assert "- Bias, odd states, 1-step → 2-step: 0.00404 → 0.00606, the opposite (beyond Figure 5, " in sentences
    assert "2-step → 5-step" not in sentences
