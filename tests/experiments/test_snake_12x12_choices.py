"""Study `snake-12x12-choices`: what its variants change, and a part against its own training run."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.experiments.one_step_at_a_time import snake_12x12_choices as study
from metagrad.experiments.one_step_at_a_time.snake_12x12 import snake_12x12
from metagrad.meta_parameters import MetaParameter

TINY: dict[str, Any] = {"seed": 1, "updates": 4, "environments": 2, "rollout_length": 3, "samples": 2, "episodes": 2}


def changed(name: str) -> set[str]:
    """Fields in which a variant's experiment is not `snake-12x12` with the same n."""
    base = snake_12x12()
    base = replace(base, meta=replace(base.meta, n=study.VARIANTS[name].n))
    own = study.variant_experiment(study.VARIANTS[name])
    return {f.name for f in fields(own) if getattr(own, f.name) != getattr(base, f.name)}


def test_one_value_is_changed_at_a_time() -> None:
    assert {name: changed(name) for name in study.VARIANTS} == {
        "t20": set(),
        "t5": {"rollout_length"},
        "n1": set(),
        "n1-meta-eps-root-0": {"meta"},
        "n1-eps-roots-0": {"meta", "optimizer"},
        "n1-fork": {"lookahead"},
        "n1-halved-critic": {"meta_parameters"},
    }
    rootless = study.variant_experiment(study.VARIANTS["n1-eps-roots-0"])
    assert (rootless.optimizer.eps_root, rootless.meta.optimizer.eps_root) == (0.0, 0.0)  # type: ignore[union-attr]
    halved = study.variant_experiment(study.VARIANTS["n1-halved-critic"]).meta_parameters
    assert halved.value_coefficient == MetaParameter(initial=0.25, high=0.5)  # type: ignore[attr-defined]


def test_parts_have_the_lengths_of_their_variants() -> None:
    parts = study.STUDY.parts(2, False)
    assert {"t20-seed0", "t5-seed0"} <= set(parts)
    assert not {"t20-seed1", "t5-seed1", "n1-eps-roots-0-seed1"} & set(parts)
    assert {"n1-fork-seed0", "n1-fork-seed1"} <= set(parts)
    assert study.STUDY.parts(1, False).items() <= parts.items()
    for settings in parts.values():
        variant = study.VARIANTS[settings["variant"]]
        assert (settings["updates"], settings["rollout_length"]) == (variant.updates, variant.rollout_length)
    assert {settings["updates"] for settings in study.STUDY.parts(2, True).values()} == {6}


def test_estimators_differ_from_table_1_in_one_choice() -> None:
    run = study.variant_experiment(study.VARIANTS["t20"])
    estimators = study.probed_estimators(run)
    assert [(name, e.meta.n) for name, e in estimators.items()][:4] == [("1", 1), ("3", 3), ("5", 5), ("10", 10)]
    three = estimators["3"]
    assert replace(estimators["3-fork"], lookahead="continue") == three
    assert replace(estimators["3-inner-eps-root-0"], optimizer=three.optimizer) == three
    assert estimators["1-inner-eps-root-0"].optimizer.eps_root == 0.0  # type: ignore[union-attr]


def test_a_probed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = study.probed_estimators
    monkeypatch.setattr(study, "probed_estimators", lambda run: {name: every(run)[name] for name in ("1", "3-fork")})
    result = study.run_part(TINY | {"variant": "t20"}, tmp_path / "run")
    assert json.loads(json.dumps(result)) == result
    assert result["frames_real"] == 4 * 2 * 3
    assert list(result["probes"]) == ["1", "3-fork"]
    assert all(each["updates"] == [2, 4] and len(each["std"][1]) == 4 for each in result["probes"].values())
    assert result["norms"].keys() == {"norm/gradient"}
    assert result["meta_gradient_rms"] == []
    assert study.run_part(TINY | {"variant": "t20"}, tmp_path / "run") == result


def test_parts_that_learn_their_hyper_parameters(tmp_path: Path) -> None:
    moved = {}
    for variant in ("n1", "n1-meta-eps-root-0"):
        result = study.run_part(TINY | {"variant": variant}, tmp_path / variant)
        assert result["probes"] == {}
        assert len(result["meta_gradient_rms"]) == 4
        assert all(min(curve["values"]) > 0 for curve in result["meta_gradient_rms"])
        assert result["meta_gradient_rms"][0]["updates"] == [1, 2, 3, 4]
        assert result["norms"]["norm/gradient"]["clipped"] == 0.0
        gamma = result["curves"]["eta/gamma"]
        assert gamma["updates"] == [1, 2, 3, 4]
        moved[variant] = abs(np.array(gamma["values"]) - 0.99).max()
    # The floor of 1e-4 is far above the first meta-gradients; without it a step is up to .001 in the logit of .99.
    assert 10 * moved["n1"] < moved["n1-meta-eps-root-0"] < 4 * 1e-3 * 0.99 * 0.01
    assert moved["n1-meta-eps-root-0"] > 0.2 * 1e-3 * 0.99 * 0.01


def test_bins_are_means_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "POINTS", 2)
    values = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    assert study.binned(np.arange(1, 6), values) == {"updates": [3, 5], "values": [3.0, 8.0]}
    monkeypatch.setattr(study, "POINTS", 100)
    assert study.binned(np.arange(1, 6), values) == {"updates": [1, 2, 3, 4, 5], "values": values.tolist()}


def test_norms_say_how_often_they_are_clipped() -> None:
    assert study._norm(np.array([1.0, 9.0, 11.0, 15.0]), 10.0) == {"mean": 9.0, "max": 15.0, "clipped": 0.5}


def test_root_mean_squares_are_taken_in_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "POINTS", 2)
    found = study._rms(np.array([1, 2, 3]), np.array([3.0, -4.0, 2.0]))
    assert found == {"updates": [2, 3], "values": [pytest.approx(12.5**0.5, rel=1e-5), 2.0]}
