"""Results by their settings, and curves at the updates that all seeds logged."""

from typing import Any

import numpy as np

from metagrad.experiments.reporting.parts import Curves, by_setting, curves_of, first_settings, results_of


def part(arm: str, seed: int, *updates: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"arm": arm, "seed": seed}, {"loss": {"updates": list(updates), "values": [seed + 0.1 * u for u in updates]}}


PARTS = {"a": part("new", 10, 1, 2, 3), "b": part("old", 2, 1, 2), "c": part("new", 9, 2, 3)}


def test_results_are_in_the_order_of_the_seeds() -> None:
    assert first_settings(PARTS) == {"arm": "new", "seed": 10}
    assert results_of(PARTS, arm="new") == [PARTS["c"][1], PARTS["a"][1]]
    assert results_of(PARTS) == [PARTS[name][1] for name in "bca"]
    assert results_of(PARTS, arm="new", mdp=3) == []
    assert by_setting(PARTS, "arm") == {"new": [PARTS["c"][1], PARTS["a"][1]], "old": [PARTS["b"][1]]}


def test_curves_hold_what_all_seeds_logged() -> None:
    curves = curves_of([*results_of(PARTS, arm="new"), {}], "loss")
    assert curves is not None
    assert curves.updates.tolist() == [2, 3]
    np.testing.assert_allclose(curves.values, [[9.2, 9.3], [10.2, 10.3]])
    assert curves_of([{}], "loss") is None
    assert curves_of([part("x", 0, 1)[1], part("x", 1, 2)[1]], "loss") is None


def test_values_at_an_update() -> None:
    curves = Curves(np.array([2.0, 4.0]), np.array([[1.0, 2.0], [3.0, 5.0]]))
    at = curves.at(4)
    assert at is not None
    assert at.tolist() == [2.0, 5.0]
    assert curves.at(3) is None
