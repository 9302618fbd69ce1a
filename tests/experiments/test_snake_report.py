import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.debiasing.snake_published import DISCOUNTS, RETURNS
from metagrad.experiments.debiasing.snake_report import TITLES, Curves, curves_of, report, returns_of

UPDATES = (0, 584, 1_460)


def made_up(arm: str, seed: int, shift: float = 0.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A part whose curves are the published ones, up to a shift in their standard deviations."""
    plain = arm.removesuffix("-normalised")

    def curve(table: Any) -> dict[str, list[float]]:
        numbers = [table[plain][update] for update in UPDATES]
        return {"updates": list(UPDATES), "values": [x.mean + shift * (x.std or 0.0) for x in numbers]}

    advantage = 0.001 if "outer" in arm else 0.4
    settings = {"arm": arm, "seed": seed, "updates": 1_460, "epoch": 146, "environments": 512, "episodes": 512}
    result: dict[str, Any] = {"sampled": curve(RETURNS), "greedy": curve(RETURNS)}
    if arm != "a2c":
        result["eta/gamma"] = curve(DISCOUNTS)
        result["advantage/outer_mean"] = {"updates": [584, 730, 1_460], "values": [9.0, advantage, advantage]}
    return settings, result


def parts(shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    found = {f"{arm}-seed{seed}": made_up(arm, seed, shift) for arm in TITLES for seed in (2, 1)}
    for name, (quantity, values) in changes.items():
        found[name.replace("_", "-")][1][quantity]["values"] = values
    return found


def text(folder: Path, found: dict[str, Any], is_quick: bool = False) -> str:
    report(folder, found, is_quick)
    return (folder / "report.md").read_text()


def differences(page: str) -> str:
    return page.partition("## Where ours differs")[2].strip()


def test_curves_are_by_agent_and_seeds_in_order() -> None:
    found = parts()
    found["mg-seed1"][1]["sampled"]["values"] = [0.0, 1.0, 2.0]
    curves = curves_of(found, "sampled")
    assert list(curves) == list(TITLES)
    assert curves["mg"].values[0].tolist() == [0.0, 1.0, 2.0]
    assert "a2c" not in curves_of(found, "eta/gamma")
    at = Curves(np.array([0.0, 5.0]), np.array([[1.0, 2.0], [3.0, 4.0]])).at
    assert at(5) is not None
    assert at(5).tolist() == [2.0, 4.0]  # type: ignore[union-attr]
    assert at(4) is None


def test_the_published_a2c_curve_is_greedy_and_the_others_sample() -> None:
    found = parts()
    for _, result in found.values():
        result["greedy"]["values"] = [7.0, 7.0, 7.0]
    returns = returns_of(found)
    assert (returns["a2c"].values == 7.0).all()
    assert (returns["mg"].values != 7.0).all()


def test_published_numbers_are_found(tmp_path: Path) -> None:
    page = text(tmp_path, parts())
    assert differences(page) == "- Only 1,460 updates were made: nothing is said of the rest of the curves."
    assert "| MG, outer critic: γ, update 584 | 0.912 (std 0.007) | 0.912 (0.0 of the paper's std away" in page
    assert "update 2,920" not in page, "not reached"
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure_3.png", "figure_5b.png", "figure_6.png"}


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("shift", "is_off"), [(2.9, False), (-2.9, False), (3.1, True), (-3.1, True)])
def test_three_published_standard_deviations_are_the_limit(tmp_path: Path, shift: float, is_off: bool) -> None:
    page = differences(text(tmp_path, parts(shift)))
    assert ("BMG, outer critic: return, update 1,460:" in page) == is_off
    assert ("MG: γ, update 584:" in page) == is_off


@pytest.mark.usefixtures("without_pictures")
def test_a_single_seed_that_is_off_is_named(tmp_path: Path) -> None:
    far = [0.15, 3.53 + 4 * 0.18, 5.44]
    page = differences(text(tmp_path, parts(mg_seed2=("sampled", far))))
    assert "MG: return, update 584: within 3 published standard deviations on average, one seed is not." in page


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("name", "advantage", "is_off"),
    [
        ("mg_outer_seed1", 0.0061, True),
        ("mg_outer_seed1", -0.0061, True),
        ("mg_outer_seed1", 0.0059, False),
        ("bmg_seed2", 0.29, True),
        ("bmg_seed2", 0.31, False),
    ],
)
def test_the_bias_of_the_outer_advantage_is_judged_after_update_584(
    tmp_path: Path, name: str, advantage: float, is_off: bool
) -> None:
    page = differences(text(tmp_path, parts(**{name: ("advantage/outer_mean", [9.0, advantage, advantage])})))
    assert ("mean outer advantage from update 584 on" in page) == is_off


@pytest.mark.usefixtures("without_pictures")
def test_a_quick_report_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"command": "metagrad …", "parts": {}}))
    page = text(tmp_path, parts(5.0), is_quick=True)
    assert differences(page) == "- A quick run decides nothing."
    assert "Quick" in page
