"""The study's settings against the paper's, its claims on made-up curves, and a report of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.gradient_bias import tabular_maml as study
from metagrad.experiments.gradient_bias.tabular_estimators import ESTIMATORS, Estimation
from metagrad.experiments.gradient_bias.tabular_sweeps import METRICS, curves_of

STUDY = study.STUDY
# Best first, as the paper has them: by what is exact, and by estimator where the Hessian is sampled.
RANKS = {"SEE": 8, "ESE": 7, "SSE": 5, "EES": 4, "SES": 3, "ESS": 2, "SSS": 1}
LEVELS = {"loaded-dice": 0.03, "lvc": 0.04, "ad": -0.3, "dice": -1.0}


def made_up(seeds: int, is_upside_down: bool = False, is_quick: bool = False):
    """Correlations that follow RANKS and LEVELS with a little noise over MDPs; upside down: the other way round."""
    generator = np.random.default_rng(0)
    done = {}
    for name, settings in STUDY.parts(seeds, is_quick).items():
        result = {}
        for e in ESTIMATORS:
            result[e] = {}
            for p, rank in RANKS.items():
                score = rank / 10 + (LEVELS[e] if p[1] == "S" or e == "dice" else 0.0)
                score = np.array([-score if is_upside_down else score] * len(settings["values"]))
                score = score + 1e-3 * generator.normal(size=score.shape)
                spread = np.exp(-score)
                result[e][p] = {m: (spread if m in ("deviation", "variance") else score).tolist() for m in METRICS}
        done[name] = (settings, result)
    return done


def verdicts(done) -> dict[str, set[str]]:
    made = study.claims(curves_of(study.SWEEPS, done))
    return {claim.quantity: {claim.verdict(point) for point in claim.points} for claim in made}


def test_settings_are_the_papers() -> None:
    parts = STUDY.parts(10, False)
    assert len(parts) == 30
    assert STUDY.seeds == 10
    base = {"estimators": list(ESTIMATORS), "permutations": list(study.PERMUTATIONS), "trials": 20, "problem": "maml"}
    sizes = {"field": "trajectories", "values": [2, 4, 8, 16, 32, 64, 128, 256]}
    rates = {"field": "learning_rate", "values": [1, 3, 5, 7, 9, 11, 13]}
    steps = {"field": "steps", "values": [1, 2, 3, 4, 5, 6]}
    for name, expected in (
        ("trajectories-mdp3", sizes | {"base": {"learning_rate": 10.0, "steps": 1}}),
        ("learning-rate-mdp3", rates | {"base": {"steps": 5, "trajectories": 32}}),
        ("steps-mdp3", steps | {"base": {"learning_rate": 10.0, "trajectories": 32}}),
    ):
        assert parts[name] == base | expected | {"mdp": 3}
    default = Estimation(estimator="ad", permutation="SSS")
    assert (default.horizon, default.noise, default.is_noise_shared, default.inner_lambda) == (20, 1.0, True, 1.0)
    assert len(study.PERMUTATIONS) == 7
    assert set(study.PERMUTATIONS) == set(RANKS)


def test_orderings_like_the_papers_are_confirmed_and_reversed_ones_contradicted() -> None:
    upright, reversed_ = verdicts(made_up(6)), verdicts(made_up(6, is_upside_down=True))
    orderings = [
        "fig. 1a, LVC: SEE > SSE",
        "fig. 1a, LVC: ESE > SSE",
        "fig. 1b, AD: SEE > ESE",
        *[f"fig. 4, {e}: SSE > {p}" for e in ("LVC", "Loaded-DiCE") for p in ("SES", "ESS")],
        *[f"fig. 4, {e}: {pair}" for e in ("LVC", "DiCE") for pair in ("EES > SES", "SES > ESS", "ESS > SSS")],
        *[f"fig. 4, {p}: {e} > DiCE" for p in ("SSS", "SSE", "ESE", "ESS") for e in ("AD", "LVC", "Loaded-DiCE")],
        *[f"fig. 4, {p}: all others > DiCE" for p in ("SES", "SEE", "EES")],
        *[f"fig. 4, {p}: {e} > AD" for p in ("SSS", "SSE", "ESE", "ESS") for e in ("LVC", "Loaded-DiCE")],
        "fig. 4, Loaded-DiCE: SEE > ESE",
        "fig. 4, Loaded-DiCE: ESE > SSE",
        "fig. 6, AD: SSE / ESE, log ratio of summed std",
    ]
    for quantity in orderings:
        assert upright[quantity] == {"holds"}, quantity
        assert reversed_[quantity] == {"contradicted"}, quantity
    for permutation in ("SSS", "ESS"):
        assert upright[f"fig. 4, {permutation}: LVC, Loaded-DiCE, correlation"] == {"holds"}
        assert upright[f"fig. 4, {permutation}: LVC, Loaded-DiCE, log ratio of summed std"] == {"holds"}
    assert upright["fig. 5, LVC: SEE ≈ ESE"] == {"contradicted"}  # 0.1 apart
    assert upright["fig. 1b, AD: SEE above 0.95"] == {"contradicted"}
    assert upright["fig. 1b, AD: ESE below 0.95"] == {"holds"}


@pytest.mark.parametrize(("sign", "expected"), [(1.0, "holds"), (-1.0, "contradicted")])
def test_claims_about_trends(sign: float, expected: str) -> None:
    found = curves_of(study.SWEEPS, made_up(6))
    for name, curves in found.items():
        correlations, along = curves.of["pearson"], np.linspace(0.0, sign, len(curves.x))
        for e in ESTIMATORS:
            # Along N sampled inner values gain on exact ones; along α and K they lose more than sampled outer ones do.
            correlations[e, "SSE"] += along if name == "trajectories" else -along
            correlations[e, "ESE"] -= 0.0 if name == "trajectories" else along
            correlations[e, "EES"] += 2.0 * sign
        if name == "trajectories":
            correlations["lvc", "ESE"] += 0.1 * along
    made = {claim.quantity: {claim.verdict(p) for p in claim.points} for claim in study.claims(found)}
    names = [
        "fig. 1a, LVC: gap SEE - SSE",
        "fig. 1a, LVC: gap ESE - SSE",
        "fig. 5, AD: ESE falls",
        "fig. 6, AD: ESE falls",
    ]
    names += [f"fig. {i}, {e}: {what}" for i in (5, 6) for e in ("AD", "DiCE") for what in ("SSE falls", "EES > SSE")]
    for quantity in names:
        assert made[quantity] == {expected}, quantity


def test_claims_about_large_updates_look_at_large_updates() -> None:
    found = curves_of(study.SWEEPS, made_up(3))
    points = {claim.quantity: [p.where for p in claim.points] for claim in study.claims(found)}
    assert points["fig. 5, LVC: SEE ≈ ESE"] == ["α = 9", "α = 11", "α = 13"]
    assert points["fig. 6, LVC: SES ≈ ESS"] == ["K = 4", "K = 5", "K = 6"]
    assert points["fig. 1a, LVC: SEE ≈ ESE"] == ["N = 2", "N = 4", "N = 8", "N = 16"]
    assert points["fig. 5, AD: SSE falls"] == ["α = 1 to 13"]
    assert len(points["fig. 4, AD: SES > ESS"]) == 8
    assert len(points) == len(study.claims(found))  # no two rows with one name


@pytest.mark.parametrize(("seeds", "is_quick"), [(3, False), (1, True)])
def test_report(tmp_path: Path, drawn: dict[str, Any], page_of: Any, seeds: int, is_quick: bool) -> None:
    page, _ = page_of(STUDY.report, made_up(seeds, is_quick=is_quick), is_quick)
    assert f"averaged over\n{10 if is_quick else 20} trials" in page
    assert "| fig. 1b, AD: SEE > ESE |" in page
    assert "| fig. 1, LVC SEE, N = 2: correlation |" in page
    assert ("(quick version)" in page) == is_quick
    whole = dict.fromkeys(("figure-4.png", "figure-5.png", "figure-6.png"), (16, 4))
    assert drawn == {"figure-1ab.png": (4, 2), **whole}
    for name in (*drawn, "numbers.csv"):
        assert (tmp_path / name).stat().st_size > 1_000
