"""Verdicts and pictures of the study `discounting-chain` on invented curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing import discounting_chain_report as page
from metagrad.experiments.debiasing.discounting_chain_study import STUDY

Parts = dict[str, tuple[Settings, Result]]
Ends = tuple[float, float, float]  # γ, return, advantage at step 0
AS_PUBLISHED: dict[str, Ends] = {
    "a2c": (0.95, 1.0, 0.0),
    "mg": (0.9, 1.0, 0.1),
    "mg-outer": (0.9999, 1.078, 0.0),
    "bmg": (0.9, 1.0, 0.1),
    "bmg-outer": (0.9999, 1.078, 0.0),
}


def invented(updates: int = 50_000, is_quick: bool = False, **changes: Ends) -> Parts:
    """Curves that go straight from the start to their ends; seeds differ a little. `mg_outer` and so on are changed."""
    parts = {}
    for name, settings in STUDY.parts(10, is_quick).items():
        changed = settings["arm"].replace("-", "_")
        gamma, paid, advantage = changes.get(changed, AS_PUBLISHED[settings["arm"]])
        if settings["is_first_value_exact"]:
            advantage = 0.0
        share = np.linspace(0.1, 1.0, 10)
        rows = [1e-4 * (seed - 4.5) for seed in settings["seeds"]]
        result: dict[str, Any] = {
            "updates": (updates * share).astype(int).tolist(),
            "discount": [(0.95 + share * (gamma - 0.95)).tolist() for _ in rows],
            "return": [(1.02 + share * (paid - 1.02) + shift).tolist() for shift in rows],
        }
        if settings["meta"] != "none":
            result |= {"first_advantage": [[advantage + shift] * 10 for shift in rows], "advantage": [[1e-17] * 10]}
        parts[name] = (settings | {"updates": updates}, result)
    return parts


@pytest.mark.usefixtures("without_pictures")
def test_published_curves_are_said_to_be(page_of: Any) -> None:
    above, below = page_of(page.report, invented())
    assert "| MG, outer value: return at the end | 1.078 (std 0.003) | 1.078 | 10 |" in above
    assert "| BMG: γ at the end | 0.900 | 0.900 | 10 |" in above
    assert "differs)" not in above
    assert below.count("\n- ") == 2  # only the control's sentences, on MG and BMG
    for title in ("MG", "BMG"):
        assert f"- {title}: the mean outer advantage at step 0, 0.100 with the released value" in below


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mg_outer": (0.997, 1.078, 0.0)}, "MG, outer value: γ at the end: 0.997, published 1.000"),
        ({"bmg_outer": (1.0, 1.06, 0.0)}, "BMG, outer value: return at the end: 1.060, published 1.078"),
        ({"mg": (0.9, 1.0, 0.05)}, "MG: outer advantage at step 0, second half: 0.050, published 0.10"),
        ({"a2c": (0.96, 1.0, 0.0)}, "A2C: γ at the end: 0.960, published 0.95"),
        ({"bmg": (0.99, 1.0, 0.1)}, "BMG: γ rises from 0.95 to 0.990 (update 50,000) before it ends at 0.990"),
        ({"mg": (0.9, 1.07, 0.1)}, "MG, advantages normalised: γ, return at the end: 0.900 and 1.070; the paper says"),
        ({"mg_outer": (1.0, 1.0, 0.0)}, "MG, outer value, advantages normalised: γ, return at the end: 1.000 and 1.0"),
    ],
)
def test_every_difference_is_a_sentence(page_of: Any, changes: dict[str, Ends], sentence: str) -> None:
    above, below = page_of(page.report, invented(**changes))
    assert f"- {sentence}" in below
    if "published" in sentence:
        assert "(differs)" in above


@pytest.mark.usefixtures("without_pictures")
def test_single_seeds_far_off_are_named(page_of: Any) -> None:
    parts = invented()
    _, result = parts["mg-outer-seeds5-9"]
    result["return"][0][-1] += 0.02
    _, below = page_of(page.report, parts)
    assert "- MG, outer value: return at the end: 1.078 as published on average (1.080), with 1 of 10 seeds" in below


@pytest.mark.usefixtures("without_pictures")
def test_the_control_says_where_training_ends_elsewhere(page_of: Any) -> None:
    parts = invented()
    _, result = parts["mg-exact-start-seeds0-4"]
    for row in result["return"]:
        row[-1] = 1.07
    _, below = page_of(page.report, parts)
    assert "- MG: return at the end 1.070 with the exact value of the start, 1.000 with the released one." in below


@pytest.mark.usefixtures("without_pictures")
def test_a_short_run_passes_no_verdict(page_of: Any) -> None:
    above, below = page_of(page.report, invented(updates=1_000, mg=(0.99, 1.05, 0.0)))
    assert "This run ends after 1,000 updates" in above
    assert "differs)" not in above
    assert below.strip() == "- Only 1,000 updates were made, the paper's curves have 50,000: no verdicts."


def test_seeds_of_all_parts_are_in_order() -> None:
    parts = invented()
    curves = page.curves_of(dict(reversed(parts.items())), "")
    assert list(curves) == list(page.ARMS)
    assert curves["mg"].of["return"].shape == (10, 10)
    assert (np.diff(curves["mg"].end("return")) > 0).all()
    assert "first_advantage" not in curves["a2c"].of
    assert len(page.curves_of(parts, "normalised")["bmg"].of["return"]) == 1


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_a_report_too(tmp_path: Path, page_of: Any, seeds: int) -> None:
    every = invented()
    parts = {}
    for name, settings in STUDY.parts(seeds, False).items():
        like = next(r for s, r in every.values() if _alike(s, settings))
        count = len(settings["seeds"])
        parts[name] = (settings, {k: v if k == "updates" else v[:count] for k, v in like.items()})
    page_of(page.report, parts)
    for name in ("figure_2.png", "figure_5a.png", "figure_6.png", "exact_start.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def _alike(first: Settings, second: Settings) -> bool:
    return all(first[key] == second[key] for key in ("arm", "is_normalised", "is_first_value_exact"))
