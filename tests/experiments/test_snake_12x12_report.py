"""Rows, verdicts and pictures of the study `snake-12x12` on invented results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time import snake_12x12_report as page
from metagrad.experiments.one_step_at_a_time.snake_12x12 import UPDATES
from metagrad.experiments.one_step_at_a_time.snake_12x12_study import ETA, STUDY

Parts = dict[str, tuple[Settings, Result]]


def curve(start: float, end: float, updates: int) -> dict[str, list[Any]]:
    at = [updates // 4, updates // 2, updates]
    return {"updates": at, "values": np.interp(at, [0, updates], [start, end]).tolist()}


def invented(updates: int = UPDATES, seeds: int = 3, **changes: tuple[float, float]) -> Parts:
    """Table 1 as it is printed, seeds a little apart; (return, spread) of `arm_3_mix` and so on are changed."""
    parts = {}
    for name, settings in STUDY.parts(seeds, False, updates).items():
        arm = settings["arm"]
        paper = page.PUBLISHED[arm]

        def ends(arm: str) -> tuple[float, float]:
            spread = page.PUBLISHED[arm].spread
            default = (page.PUBLISHED[arm].final_return[0], spread[0] if spread else np.nan)
            return changes.get("arm_" + arm.replace("-", "_"), default)

        final, _ = ends(arm)
        shift = 0.01 * (settings["seed"] - 1)
        unit = np.array([[1e-4, 2e-4, 1e-3, 1e-5], [2e-4, 2e-4, 1e-3, 3e-5]])
        probes = {
            other: {
                "updates": [updates // 2, updates],
                "mean": (0 * unit).tolist(),
                "std": (unit * (ends(other)[1] + shift * (other != "1"))).tolist(),
            }
            for other in settings["probed"]
        }
        result: Result = {"return": {"mean": final + shift, "std": 1.0, "episodes": 512}, "probes": probes}
        result |= {"episode/return_mean": curve(0.1, final, updates)}
        result |= {eta: curve(0.5, 0.5 if paper.spread is None else 0.6, updates) for eta in ETA}
        parts[name] = (settings, result)
    return parts


@pytest.mark.usefixtures("without_pictures")
def test_the_papers_own_numbers_agree_with_it(page_of: Any) -> None:
    above, below = page_of(page.report, invented())
    assert "| 3-mix: return at the end | 115 (std 2) | 115 | 3 | std 0.01, 115 to 115 |" in above
    label = "10-step: std of the meta-gradient / that of 1-step, along its own run"
    assert f"| {label} | 23.5 (std 8.4) | 23.5 (ratio of means), 23.5 (mean of ratios) | 3 |" in above
    assert "5-mix: std of the meta-gradient / that of 1-step, along the 1-step run | 2.6 (std 0.8) | 2.6 (" in above
    assert above.count(": as in the paper") == 2 + 2 + 1 + 2 * (3 + 2)
    assert "Nowhere in the table." in below


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arm_3": (80.0, 4.6)}, "Return at the end, 1-step → 3-step: 85 → 80, the opposite (rises with n at first)"),
        ({"arm_10": (98.0, 23.5)}, "Return at the end, more steps, 5-step → 10-step: 97 → 98, the opposite"),
        ({"arm_5_mix": (97.0, 2.6)}, "mixing 5, 5-step → 5-mix: 97 → 97, not distinguishable"),
        ({"arm_5": (97.0, 3.0)}, "along own runs), 3-step → 5-step: 4.6 → 3, the opposite (the higher n, the higher)"),
        ({"arm_3_mix": (115.0, 5.0)}, "along the 1-step run), mixing, 3-step → 3-mix: 4.6 → 5, the opposite"),
    ],
)
def test_every_claim_that_fails_is_a_sentence(
    page_of: Any, changes: dict[str, tuple[float, float]], sentence: str
) -> None:
    _, below = page_of(page.report, invented(**changes))
    assert sentence in below


def test_spreads_are_taken_seed_by_seed_along_either_run() -> None:
    """The 3-step arm's own run has twice the spread of the common one at its second point."""
    parts = invented(seeds=1)
    _, result = parts["n3-seed0"]
    std = np.array(result["probes"]["3"]["std"])
    std[1] *= 2
    result["probes"]["3"]["std"] = std.tolist()
    results = page.by_arm(parts)
    [common] = page.spreads(results, "3", "1-step")
    [own] = page.spreads(results, "3", "own")
    level = 4.6 - 0.01
    assert (common.ratio_of_means, common.mean_of_ratios) == (pytest.approx(level), pytest.approx(level))
    assert own.mean_of_ratios == pytest.approx(1.5 * level)
    shares = np.array([(1 + 2 * 2) / 3, 1.5, 1.5, (1 + 2 * 3) / 4])
    assert own.ratio_of_means == pytest.approx(level * shares.mean())
    assert page.spreads(results, "0", "own") == []


@pytest.mark.usefixtures("without_pictures")
def test_a_short_run_passes_no_verdict(page_of: Any) -> None:
    above, below = page_of(page.report, invented(updates=1_000, arm_3=(1.0, 0.5)))
    assert "This run ends after 1,000 of 50,000 updates" in above
    assert "as in the paper" not in above
    assert "opposite" not in above
    assert below.strip() == "- Only 1,000 updates were made, the paper's runs are taken to have 50,000: no verdicts."


def test_seeds_are_in_order_and_curves_share_their_updates(tmp_path: Path) -> None:
    parts = invented(seeds=2)
    _, late = parts["n0-seed1"]  # its first episode ended later
    late["episode/return_mean"] = {key: row[1:] for key, row in late["episode/return_mean"].items()}
    results = page.by_arm(dict(reversed(parts.items())))
    assert list(results) == list(page.PUBLISHED)
    assert [each["return"]["mean"] for each in results["0"]] == [66.99, 67.0]
    [_, at, mean, _] = page._panels(results)[0].curves[0]
    assert np.array_equal(at, [UPDATES // 2, UPDATES])
    assert np.asarray(mean)[-1] == 67
    page.report(tmp_path, parts, False)
    for name in ("figure_3.png", "spread.png"):
        assert (tmp_path / name).stat().st_size > 5_000
