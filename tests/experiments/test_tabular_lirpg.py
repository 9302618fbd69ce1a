"""The study's settings against the paper's, its claims on made-up curves, and a report of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.gradient_bias import tabular_lirpg as study
from metagrad.experiments.gradient_bias.tabular_estimators import ESTIMATORS
from metagrad.experiments.gradient_bias.tabular_sweeps import METRICS, curves_of

STUDY = study.STUDY
SLOPES = {"ad": 0.2, "lvc": 0.05, "dice": 0.3, "loaded-dice": 0.01}  # how a correlation falls with each further step


def made_up(seeds: int, sign: float = 1.0, is_quick: bool = False):
    """Correlations that fall with the steps, AD's fastest but for DiCE's, and rise with the sample size."""
    generator = np.random.default_rng(0)
    done = {}
    for name, settings in STUDY.parts(seeds, is_quick).items():
        steps = np.array(settings["values"])
        result = {}
        for e in ESTIMATORS:
            score = 0.5 + sign * (0.1 * np.log(settings["base"]["trajectories"]) - SLOPES[e] * (steps - 1))
            score = score + 1e-3 * generator.normal() * (steps > 1)
            result[e] = {
                p: {m: (np.exp(-score) if m in ("deviation", "variance") else score).tolist() for m in METRICS}
                for p in settings["permutations"]
            }
        done[name] = (settings, result)
    return done


def test_settings_are_the_papers() -> None:
    parts = STUDY.parts(10, False)
    assert len(parts) == 60
    for n in (16, 32, 64, 128, 256):
        assert parts[f"trajectories{n}-mdp9"] == {
            "problem": "lirpg",
            "mdp": 9,
            "trials": 20,
            "field": "steps",
            "values": [1, 2, 3, 4, 5],
            "estimators": list(ESTIMATORS),
            "permutations": ["ESE"],
            "base": {"learning_rate": 10.0, "inner_lambda": 0.9, "trajectories": n},
        }
    assert set(parts["permutations-mdp0"]["permutations"]) == set(study.PERMUTATIONS)
    assert len(study.PERMUTATIONS) == 7


def test_orderings_like_the_papers_are_confirmed_and_reversed_ones_contradicted() -> None:
    found = {}
    for sign in (1.0, -1.0):
        made = study.claims(curves_of(study.SWEEPS, made_up(5, sign)))
        found[sign] = {claim.quantity: {claim.verdict(point) for point in claim.points} for claim in made}
        assert len(found[sign]) == len(made)  # no two rows with one name
    same = "fig. 1c/d, K = 1: LVC ≈ AD"
    assert len(found[1.0]) == 4 + 1 + 5 + 1 + 5
    for quantity, upright in found[1.0].items():
        assert upright == {"holds"}, quantity
        assert found[-1.0][quantity] == ({"holds"} if quantity == same else {"contradicted"}), quantity


def test_claims_about_several_steps_leave_out_one() -> None:
    made = study.claims(curves_of(study.SWEEPS, made_up(2)))
    points = {claim.quantity: [p.where for p in claim.points] for claim in made}
    assert points["fig. 1c/d, N = 64: LVC > AD"] == ["K = 2", "K = 3", "K = 4", "K = 5"]
    assert points["fig. 1c/d, AD: K = 1 > K = 5"] == [f"N = {n}" for n in study.SAMPLE_SIZES]
    assert points["fig. 1c/d, K = 1: LVC ≈ AD"] == [f"N = {n}" for n in study.SAMPLE_SIZES]


@pytest.mark.parametrize(("seeds", "is_quick"), [(3, False), (1, True)])
def test_report(tmp_path: Path, drawn: dict[str, Any], page_of: Any, seeds: int, is_quick: bool) -> None:
    page, _ = page_of(STUDY.report, made_up(seeds, is_quick=is_quick), is_quick)
    assert f"averaged over {10 if is_quick else 20} trials" in page
    assert "| fig. 1c/d, N = 64: LVC > AD |" in page
    assert "| N = 64, LVC SSS, K = 3: correlation | beyond the paper |" in page
    assert "largest difference of a correlation 0 |" in page
    assert ("(quick version)" in page) == is_quick
    assert drawn == {"figure-1cd.png": (4, 2), "figure-7.png": (16, 4), "permutations.png": (16, 4)}
    for name in (*drawn, "numbers.csv"):
        assert (tmp_path / name).stat().st_size > 1_000
