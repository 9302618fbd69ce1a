from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.lifetimes import held_out, lpg_report
from metagrad.experiments.lifetimes.lpg_study import BUDGET, RULES, STUDY, meta_training
from metagrad.lpg import Lpg


def test_more_seeds_only_add_parts() -> None:
    parts = STUDY.parts(3, False)
    assert STUDY.parts(2, False).items() <= parts.items()
    assert set(parts) == {f"{rule}-seed{seed}" for rule in ("a2c", *RULES) for seed in range(3)}
    assert {settings["worlds"] for settings in parts.values()} == {20}
    assert {settings.get("updates") for settings in STUDY.parts(1, False, 7).values()} == {None, 7}


def test_rules_are_trained_for_the_lives_that_they_are_tested_in() -> None:
    for rule in RULES:
        experiment = meta_training(rule, 4)
        assert experiment.lifetime == experiment.inner_updates == BUDGET.updates
        assert experiment.least_environments == BUDGET.environments
        assert experiment.env.task_seed != BUDGET.family.task_seed


@pytest.mark.slow
def test_quick_parts_make_a_report(tmp_path: Path, monkeypatch: Any, without_pictures: Any) -> None:
    del without_pictures
    monkeypatch.setattr(held_out, "EVALUATED", 8)
    monkeypatch.setitem(RULES, "lpg", Lpg(units=4, predictions=3, embedding=3))
    parts = {
        name: (settings, STUDY.runner(tmp_path, name)(settings)) for name, settings in STUDY.parts(1, True).items()
    }
    for name in ("lpg-seed0", "correction-seed0"):
        result = parts[name][1]
        assert result["updates"] == [1, 2]
        assert np.array(result["scores"]).shape == (2, 1, 2)
        assert result["frames_real"] > 0
    assert np.array(parts["a2c-seed0"][1]["scores"]).shape == (1, 1, 2)
    STUDY.report(tmp_path, parts, True)
    page = (tmp_path / "report.md").read_text()
    assert "A quick run" in page
    assert all(name in page for name in lpg_report.NAMES.values())


@pytest.mark.parametrize(("learnt", "place"), [(0.95, "above"), (0.5, "below"), (0.81, "not apart from")])
def test_the_verdict_is_that_of_the_intervals(tmp_path: Path, without_pictures: Any, learnt: float, place: str) -> None:
    del without_pictures
    draw, parts = np.random.default_rng(0), {}
    for name, settings in STUDY.parts(1, False).items():
        level = 0.8 if settings["rule"] == "a2c" else learnt
        scores = (level + 0.05 * draw.normal(size=(1, 3, 20))).tolist()
        parts[name] = settings, {"scores": scores, "updates": [100], "lifetimes": [7]}
    STUDY.report(tmp_path, parts, False)
    assert f"LPG is {place} A2C by the 95 % intervals, after 7 lifetimes." in (tmp_path / "report.md").read_text()
