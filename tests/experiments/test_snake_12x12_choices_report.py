"""Rows and pictures of the study `snake-12x12-choices` on invented results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time import snake_12x12_choices_report as page
from metagrad.experiments.one_step_at_a_time.snake_12x12_choices import (
    NAMES,
    STUDY,
    VARIANTS,
    probed_estimators,
    variant_experiment,
)

Parts = dict[str, tuple[Settings, Result]]


def curve(updates: int, slope: float) -> dict[str, list[Any]]:
    at = np.linspace(updates / 10, updates, 10)
    return {"updates": at.astype(int).tolist(), "values": (slope * at).tolist()}


def invented(is_quick: bool = False) -> Parts:
    """Returns that rise by .001 an update; γ moves in forks and without eps_root, and by chance with a ½."""
    parts = {}
    for name, settings in STUDY.parts(2, is_quick).items():
        kind, seed, updates = settings["variant"], settings["seed"], settings["updates"]
        noise = 1e-5 * (seed - 0.5)
        moved = {"n1-fork": 0.98, "n1-halved-critic": 0.99 + 40 * noise, "n1-eps-roots-0": 0.95 - noise}
        gamma = moved.get(kind, 0.99) + noise
        result: Result = {
            "frames_real": 32 * settings["rollout_length"] * updates,
            "return": {"mean": 0.001 * updates, "std": 1.0},
            "curves": {"episode/return_mean": curve(updates, 0.001)}
            | {f"eta/{eta}": {"updates": [1, min(300, updates - 1), updates], "values": [0.5] * 3} for eta in NAMES},
            "norms": {"norm/gradient": {"mean": 1.0, "max": 12.0, "clipped": 0.25}},
            "meta_gradient_rms": [
                {"updates": [1, 2, updates], "values": [x, 7 * x, 99.0]} for x in (1e-4, 2e-4, 3e-4, 4e-4)
            ],
            "probes": {},
        }
        result["curves"]["eta/gamma"]["values"] = [0.99, 0.97, gamma]
        if VARIANTS[kind].is_probed:
            every = probed_estimators(variant_experiment(VARIANTS[kind]))
            ratio = {"1": 1.0, "3": 4.0, "3-fork": 8.0}
            result["probes"] = {
                each: {
                    "updates": [updates // 2, updates],
                    "mean": [[3e-4] * 4] * 2,
                    "std": [[4e-4 * ratio.get(each, 2.0)] * 4] * 2,
                }
                for each in every
            }
        parts[name] = (settings, result)
    return parts


def text_of(folder: Path, parts: Parts, is_quick: bool = False) -> str:
    page.report(folder, parts, is_quick)
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_rows_say_what_was_measured(tmp_path: Path) -> None:
    text = text_of(tmp_path, invented())
    # At equal updates and at equal frames: 8,000 updates of 5 steps are 2,000 of 20.
    label = "0-step, T = 20: return at 8,000 updates, at 1,280,000 frames, at its end (8,000 updates)"
    assert f"| {label} | not given | 8, 1.6, 8 | 1 | full episodes at the end: 8 (std 1 over episodes) |" in text
    label = "0-step, T = 5: updates to a return of 67, extrapolated from the second half"
    assert f"| {label} | not given | 6.7e+04 (line), 6.7e+04 (power law) | 1 |" in text
    label = "T = 20, 3-step: std of the meta-gradient / that of 1-step, updates 4,000 and 8,000"
    assert f"| {label} | 4.6 (std 0.5) | 4, 4 |" in text
    assert "| T = 20: std of the meta-gradient, 3-step in forks / continuing | not given | 2, 2 |" in text
    assert "| not given | 0.0005, 0.0005, 0.0005, 0.0005; 0.0005, " in text  # √(3² + 4²) in units of 1e-4
    # Of the bins that end within 300 updates, 1 and 7 in units of 1e-4: a root mean square of 5.
    assert (
        "| n1-fork: rms of the meta-gradient in 300 updates (γ, λ, critic, entropy) | not given | 0.0005, 0.001,"
        in text
    )
    assert "| t20: norm/gradient, clip 10 | not given | largest 12, mean 1 | 1 | clipped in 25.00% of updates |" in text


@pytest.mark.usefixtures("without_pictures")
def test_differences_between_variants_are_held_against_the_seeds(tmp_path: Path) -> None:
    text = text_of(tmp_path, invented())
    assert "| look-ahead in forks: discount γ after 800 updates | not given | 0.99 → 0.98 | 2 | paired -0.01 " in text
    assert "| look-ahead in forks: return of full episodes after 800 updates | not given | 0.8 → 0.8: not dist" in text
    [line] = [line for line in text.splitlines() if "½ in the critic's loss: discount γ" in line]
    assert "0.99 → 0.99: not distinguishable" in line
    # The standard run is longer: it is looked at after as many updates, and its seeds beyond are left out.
    assert (
        "| both Adams without eps_root: discount γ after 300 updates | not given | 0.97 → 0.95 | 1 | one seed |" in text
    )
    assert "both Adams without eps_root: return" not in text
    assert "½ in the critic's loss: critic coefficient" not in text  # another quantity


@pytest.mark.usefixtures("without_pictures")
def test_a_quick_run_extrapolates_nothing(tmp_path: Path) -> None:
    text = text_of(tmp_path, invented(is_quick=True), is_quick=True)
    assert "A quick run shows that the path works" in text
    assert "extrapolated" not in text


@pytest.mark.parametrize(
    ("values", "linear", "power"),
    [
        ([1.0, 2.0, 3.0, 4.0], 10.0, 10.0),
        ([1.0, 4.0, 9.0, 16.0], 3.5 + (10 - 12.5) / 7, 10**0.5),
        ([4.0, 3.0, 2.0, 1.0], np.inf, np.inf),
    ],
)
def test_extrapolation_by_hand(values: list[float], linear: float, power: float) -> None:
    found = page.extrapolate([1.0, 2.0, 3.0, 4.0], values, 10.0)
    assert found.linear == pytest.approx(linear)
    assert found.power == pytest.approx(power)


@pytest.mark.parametrize("is_quick", [False, True])
def test_pictures_are_drawn(tmp_path: Path, is_quick: bool) -> None:
    parts = invented(is_quick)
    if is_quick:  # no episode has ended
        for _, result in parts.values():
            del result["curves"]["episode/return_mean"]
    text_of(tmp_path, parts, is_quick)
    assert (tmp_path / "length.png").exists() != is_quick
    assert (tmp_path / "meta_parameters.png").stat().st_size > 5_000
