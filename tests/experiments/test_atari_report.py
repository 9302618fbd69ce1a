from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.gradient_bias.atari_report import (
    ETA,
    RETURN,
    TITLES,
    curve_of,
    games_of,
    normalised_of,
    report,
    scores_of,
)
from metagrad.experiments.gradient_bias.atari_scores import HUMAN_NORMALISATION

GAMES = ("Qbert", "Alien")


def parts(updates: int = 125_000, seeds: int = 3, **levels: float) -> dict[str, Any]:
    """Every agent at its level of the human scale, seeds .01 apart; returns are two games around it."""
    found = {}
    for seed in reversed(range(seeds)):
        for game in GAMES:
            for arm in TITLES:
                level = levels.get(arm.replace("-", "_"), 0.5) + 0.01 * seed
                reference = HUMAN_NORMALISATION[game]
                score = reference.random + level * (reference.human - reference.random)
                settings = {"game": game, "arm": arm, "seed": seed, "updates": updates, "environments": 64}
                result: dict[str, Any] = {"returns": [score - 1.0, score + 1.0]}
                result |= {name: {"updates": [100, 200], "values": [0.1, 0.2 + seed]} for name in (RETURN, *ETA)}
                found[f"{game}-{arm}-seed{seed}"] = (settings | {"episodes": 2, "backend": "envpool"}, result)
    return found


def page(folder: Path, found: dict[str, Any], is_quick: bool = False) -> str:
    report(folder, found, is_quick)
    return (folder / "report.md").read_text()


def test_scores_are_seeds_by_games() -> None:
    found = parts(mgrl=0.2)
    assert games_of(found) == list(GAMES)
    normalised = normalised_of(found, "mgrl")
    np.testing.assert_allclose(normalised, [[0.2, 0.2], [0.21, 0.21], [0.22, 0.22]])
    qbert = HUMAN_NORMALISATION["Qbert"]
    assert scores_of(found, "mgrl")[0, 0] == pytest.approx(qbert.random + 0.2 * (qbert.human - qbert.random))


def test_curves_keep_what_all_seeds_logged() -> None:
    found = parts()
    found["Alien-mgrl-seed1"][1][RETURN] = {"updates": [200], "values": [7.0]}
    curve = curve_of(found, "mgrl", "Alien", RETURN)
    assert curve is not None
    assert curve.updates.tolist() == [200]
    assert curve.values[:, 0].tolist() == [0.2, 7.0, 2.2]
    del found["Alien-mgrl-seed0"][1][RETURN]
    assert curve_of(found, "mgrl", "Alien", RETURN) is None, "no game of that seed has ended"


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("lvc", "is_worse"), [(0.4, True), (0.6, False), (0.5, False)])
def test_a_game_that_contradicts_the_paper_is_named(tmp_path: Path, lvc: float, is_worse: bool) -> None:
    found = parts(mgrl_lvc=lvc)
    for (settings, result), shift in zip(found.values(), np.linspace(-1.0, 1.0, len(found)), strict=True):
        if settings["arm"] == "mgrl-lvc":  # else the differences have no spread at all
            result["returns"] = [x + shift for x in result["returns"]]
    differences = page(tmp_path, found).partition("## Where ours differs")[2]
    for game in GAMES:
        assert (f"{game}: with LVC lower by" in differences) == is_worse


@pytest.mark.usefixtures("without_pictures")
def test_aggregates_stand_with_their_intervals(tmp_path: Path) -> None:
    text = page(tmp_path, parts(a2c=0.3))
    assert "| A2C: human-normalised IQM | not in the paper | 0.3100 | 3 on 2 games | 95 % interval 0.30" in text
    assert "| A2C: human-normalised optimality gap | not in the paper | 0.6900 |" in text
    assert "one seed: no interval" in page(tmp_path, parts(seeds=1))


@pytest.mark.usefixtures("without_pictures")
def test_a_short_run_says_nothing_of_the_papers_scores(tmp_path: Path) -> None:
    differences = page(tmp_path, parts(updates=500, mgrl_lvc=0.1)).partition("## Where ours differs")[2].strip()
    assert differences == "- 500 of 125,000 updates were made: nothing is said of the paper's scores."


def test_a_quick_report_is_drawn(tmp_path: Path) -> None:
    text = page(tmp_path, parts(updates=6, seeds=1), is_quick=True)
    assert "**Quick" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure_9.png", "figure_10.png"}
