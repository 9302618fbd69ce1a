from dataclasses import replace

import pytest

from benchmarks import schedules
from experiments import EXPERIMENTS


def test_what_phases_allow_is_of_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "throughput/real_frames_per_second": [100.0, 50.0],
        "time/sample_seconds": [4.0, 4.0],
        "time/inner_seconds": [3.0, 3.0],
        "time/meta_seconds": [4.0, 4.0],
    }
    monkeypatch.setattr(schedules, "updates_of", lambda _: rows)
    experiment = replace(EXPERIMENTS["demo"]())
    assert experiment.look_ahead_batches == 3
    speed, allowed = schedules.one_run(experiment)
    assert speed == pytest.approx(2 / (1 / 100 + 1 / 50))
    assert allowed == pytest.approx((4 * 1 + 7) / (1 + 7))


def test_schedules_are_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def one_run(experiment: object) -> tuple[float, float]:
        asked.append((experiment.schedule, experiment.meta.n))  # type: ignore[attr-defined]
        return (10.0 if asked[-1][0] == "lockstep" else 15.0), 1.4

    monkeypatch.setattr(schedules, "one_run", one_run)
    result = schedules.run(rounds=2, quick=False)["schedules"]
    assert asked[:4] == [("lockstep", 1), ("peek", 1)] * 2
    assert set(result) == {"n1", "n3", "n5"}
    assert result["n3"]["peek_over_lockstep"]["median"] == 1.5
    assert result["n3"]["ratio_that_phases_allow"]["count"] == 2
