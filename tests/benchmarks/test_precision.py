from typing import Any

import pytest

from benchmarks import precision
from benchmarks.harness import Timing
from metagrad.cluster.config.actor_critic import Experiment


def test_both_precisions_make_updates_of_the_same_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def interleave(cases: dict[str, Any], rounds: int, warm_up_rounds: int) -> dict[str, list[Timing]]:
        for name, case in cases.items():
            asked.append((name, case.__self__.experiment.meta.n))
            assert case.__self__.experiment.precision == name
            case()
        assert (rounds, warm_up_rounds) == (3, 2)
        seconds = {"float32": (6.0, 8.0, 10.0), "bf16-mixed": (4.0, 4.0, 4.0)}
        return {name: [Timing(99.0, cpu) for cpu in each] for name, each in seconds.items()}

    monkeypatch.setattr(precision, "interleave", interleave)
    found = precision.compared(precision.CASES["Snake 6x6"], 3)
    assert asked == [("float32", 1), ("bf16-mixed", 1)]
    assert found["times_as_fast"]["median"] == 2.0
    decisions = precision.CASES["Snake 6x6"]().steps_per_rollout
    assert found["cpu_ms_per_decision"]["float32"]["median"] == pytest.approx(8e3 / decisions)


def test_the_floor_is_of_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def terms(experiment: Experiment, repeats: int) -> dict[str, float]:
        assert repeats == 10
        return {"environment": 1e-3, "gradient": {"float32": 3e-3, "bf16-mixed": 1e-3}[experiment.precision]}

    monkeypatch.setattr(precision, "seconds_per_decision", terms)
    medians = {"cpu_ms_per_decision": {"float32": {"median": 5.0}, "bf16-mixed": {"median": 2.5}}}
    assert precision.share_of_floor(medians, 10) == pytest.approx({"float32": 0.8, "bf16-mixed": 0.8})
    cost = {"cpu_ms_per_decision": medians["cpu_ms_per_decision"], "times_as_fast": {"median": 1.7}}
    monkeypatch.setattr(precision, "compared", lambda make, rounds: cost)
    targets = {each["name"]: each["met"] for each in precision.run(5, False)["targets"]}
    assert targets == {
        "Pong, n = 3: bf16-mixed over float32": False,
        "Snake 6x6: bf16-mixed over float32": True,
        "Pong, n = 0, bf16-mixed: share of the floor": False,
    }
