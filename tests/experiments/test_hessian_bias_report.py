"""The report of `hessian-bias` on results made by hand: what it says follows from them."""

import numpy as np
import pytest

from metagrad.experiments.gradient_bias import hessian_bias_report

C = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 100.0, 1000.0]


def part(mdp: int, change: dict[str, object]) -> tuple[dict, dict]:
    settings = {"mdp": mdp, "draws": 4, "rates": [3.0, 4.5], "steps": [1, 2], "coefficients": C[:8], "beyond": C[8:]}

    def point(rate: float, steps: int) -> dict:
        bias = (1 + 0.01 * mdp * np.array(C)) * rate * 0.1 * np.array(C) ** steps
        values = {
            "expected": bias,
            "spared": rate * np.array(C) ** (steps - 1.0),
            "measured": bias,
            "corrected": bias**2,
            "pearson": 1.0 - 1e-4 * bias,
            "cosine": 1.0 - 1e-4 * bias,
            "bound": 2.0 * bias,
        }
        return {name: list(value) for name, value in values.items()} | {"remainder": 1e-14} | change

    return settings, {f"{a:g}": {str(k): point(a, k) for k in (1, 2)} for a in (3.0, 4.5)}


def write(folder, change):
    hessian_bias_report.report(folder, {f"mdp{i}": part(i, change) for i in range(3)}, False)
    return (folder / "report.md").read_text()


def test_what_agrees_is_said_to_agree(tmp_path):
    page = write(tmp_path, {})
    table, differences = page.split("## Where ours differs")
    assert "120 of 120 points" in table  # 3 MDPs, 2 rates, 2 K, 10 c
    assert "median 2, largest 2" in table
    assert "above its bound" not in differences
    assert "the opposite" not in page
    for name in ("coefficient", "powers", "bound"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bound": [0.0] * 10}, "The bias is above its bound at 120 of 120 points."),
        ({"remainder": 0.5}, "no polynomial of degree K in c: off by 5.0e-01"),
        ({"expected": list(1 / np.array(C))}, "the opposite"),
        ({"expected": list(np.array(C) ** 0.5)}, "At the largest c the exponent for K = 2 is 0.50, not 2"),
    ],
)
def test_what_differs_is_said(tmp_path, change, said):
    assert said in write(tmp_path, change).split("## Where ours differs")[1]
