from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import broadcast, scaling
from benchmarks.broadcast import Broadcast
from benchmarks.harness import summary
from benchmarks.queueing import Learner, Lockstep, Pace, Peek, Rollouts
from benchmarks.scaling import ENVIRONMENTS, FITTED, HELD_OUT, Case, Measured

ROLLOUTS = Rollouts(0.1, 0.02)
MODELS = {
    "lockstep": Lockstep(ROLLOUTS, Learner(0.02, 0.001), 4, 0.01, 0.001),
    "peek": Peek(ROLLOUTS, Learner(0.03, 0.0), 4, 4, 0.005, 0.002),
}


def test_seconds_are_those_from_row_to_row() -> None:
    rows = {
        "throughput/real_frames_per_second": [1.0, 1.0, 100.0, 50.0],
        "time/sample_seconds": [9.0, 9.0, 0.5, 1.0],
        "transport/dropped_steps": [0.0, 0.0, 0.0, 5.0],
    }
    found = scaling.steady(rows, frames=100)
    assert found.pace.update_s == pytest.approx(1.5)
    assert found.pace.learner_idle_share == pytest.approx(1.5 / 3)
    assert found.dropped_steps == 5.0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_actor_has_the_same_environments(environment: str) -> None:
    for actors in (1, 3, 16):
        lockstep, peek = (Case(environment, schedule, actors).experiment for schedule in scaling.SCHEDULES)
        assert lockstep.environments_of_an_actor == peek.environments_of_an_actor == ENVIRONMENTS[environment]
        assert lockstep.environments == actors * ENVIRONMENTS[environment]
        assert peek.environments == 4 * ENVIRONMENTS[environment]
    assert Case(environment, "lockstep", 3).rollouts_per_update == 4 * 3
    assert Case(environment, "peek", 3).rollouts_per_update == 4


def test_bytes_are_those_of_all_rollouts() -> None:
    runs = [Measured(Pace(2.0, 0.5), 0.0)]
    found = scaling.row(Case("waiting", "lockstep", 2), runs)
    per_rollout = 16 * (6 * 32 * 4 + 5 * (8 + 4 + 3 + 4))
    assert found["rollout_bytes_per_second"]["median"] == pytest.approx(4 * 2 * per_rollout / 2.0)
    assert found["real_frames_per_second"]["median"] == pytest.approx(2 * 16 * 5 / 2.0)


def test_waiting_is_known_and_computing_is_measured() -> None:
    found = scaling.rollout_times(Case("waiting", "peek", 1).experiment, 3)
    assert 0.1 < found.mean_s < 0.2
    assert found.sd_s == pytest.approx(5**0.5 * 0.01)


def measured(models: dict[str, Any], off: float) -> Any:
    """A cluster that does what the models say, and at held-out numbers of actors is slower by a share `off`."""

    def on_raylets(
        cpus: Sequence[int], function: Any, cases: Sequence[Case], rounds: int, quick: bool, sent: Sequence[Broadcast]
    ) -> dict[str, Any]:
        assert sum(cpus) >= max(case.actors for case in cases)
        assert function is scaling.measure
        assert not quick
        runs = {}
        for case in cases:
            pace = models[case.schedule].pace(case.actors)
            slower = pace.update_s * (1 + off * (case.actors in HELD_OUT))
            runs[case.label] = [Measured(Pace(slower, pace.learner_idle_share), 0.0)] * rounds
        return {
            "runs": runs,
            "broadcasts": {each.label: {"by_reference_over_by_value": summary([3.0])} for each in sent},
        }

    return on_raylets


@pytest.mark.parametrize(("off", "is_met"), [(0.0, True), (0.3, False)])
def test_the_model_is_held_to_what_it_has_not_seen(monkeypatch: pytest.MonkeyPatch, off: float, is_met: bool) -> None:
    monkeypatch.setattr(scaling, "on_raylets", measured(MODELS, off))
    monkeypatch.setattr(scaling, "rollout_times", lambda *_: ROLLOUTS)
    result = scaling.run(rounds=5, quick=False)
    points = {(point["schedule"], point["actors"]): point for point in result["model"]["points"]}
    assert len(points) == 2 * len(FITTED + HELD_OUT)
    for (_, actors), point in points.items():
        assert point["is_held_out"] == (actors in HELD_OUT)
        expected = off if actors in HELD_OUT else 0.0
        assert point["throughput_relative_error"] == pytest.approx(expected, abs=0.02)
    assert [target["met"] for target in result["targets"]] == [is_met] * 2
    assert result["targets"][0]["value"] == pytest.approx(off, abs=0.02)
    assert result["ratios"] == {
        f"broadcast of {size} MB to {actors} actors by reference over by value": 3.0
        for size in ("1", "6.8")
        for actors in (1, 2, 4, 8)
    }
    assert list(result["broadcast"]) == ["1 node", "2 nodes", "4 nodes"]
    assert [row["nodes"] for row in result["runs"].values()][-6:] == [1, 1, 2, 2, 4, 4]
    assert "snake, peek, 8 actors" in result["runs"]
    assert result["model"]["lockstep"]["batch_s"] == pytest.approx(0.01, rel=1e-3)


def test_nothing_need_be_broadcast() -> None:
    assert broadcast.measure([], [], 1, rounds=1) == {}


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quick_run() -> None:
    result = scaling.run(rounds=1, quick=True)
    assert [row["actors"] for row in result["runs"].values()] == [1, 1, 2, 2]
    for row in result["runs"].values():
        assert row["real_frames_per_second"]["median"] > 0
        assert 0 < row["learner_idle_share"]["median"] < 1
    (point, *_) = [point for point in result["model"]["points"] if point["actors"] == 2]
    assert point["predicted_frames_per_second"] > 0
    assert list(result["ratios"]) == ["broadcast of 1 MB to 2 actors by reference over by value"]
