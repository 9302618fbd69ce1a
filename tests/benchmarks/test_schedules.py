from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import schedules
from benchmarks.harness import Timing
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments import EXPERIMENTS


def test_what_phases_allow_is_of_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "throughput/real_frames_per_second": [100.0, 50.0],
        "time/sample_seconds": [4.0, 4.0],
        "time/inner_seconds": [3.0, 3.0],
        "time/meta_seconds": [4.0, 4.0],
    }
    monkeypatch.setattr(schedules, "updates_of", lambda _: rows)
    experiment = EXPERIMENTS["demo"]()
    assert isinstance(experiment, Experiment)
    assert experiment.look_ahead_batches == 3
    speed, allowed = schedules.one_run(experiment)
    assert speed == pytest.approx(2 / (1 / 100 + 1 / 50))
    assert allowed == pytest.approx((4 * 1 + 7) / (1 + 7))


def test_schedules_are_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    def one_run(experiment: Experiment) -> tuple[float, float]:
        asked.append((experiment.name, experiment.schedule, experiment.meta.n))
        return (10.0 if experiment.schedule == "lockstep" else 15.0), 1.4

    monkeypatch.setattr(schedules, "one_run", one_run)
    monkeypatch.setattr(schedules, "arithmetic", lambda _: {name: int for name in ("rollouts", "lockstep", "peek")})
    monkeypatch.setattr(schedules, "interleave", lambda cases, _: {name: [Timing(9.0, 1.0)] for name in cases})
    monkeypatch.setattr(schedules, "usable_cores", lambda: 2)
    result = schedules.run(rounds=2, quick=False)["schedules"]
    assert asked[:4] == [("demo", "lockstep", 1), ("demo", "peek", 1)] * 2
    assert asked[-1] == ("atari", "peek", 3)
    assert list(result) == [case.label for case in schedules.CASES]
    assert result["demo, n = 3"]["peek_over_lockstep"]["median"] == 1.5
    assert result["demo, n = 3"]["ratio_that_phases_allow"]["count"] == 2
    assert result["demo, n = 5"]["ratio_that_cpu_allows"]["median"] == (6 + 1) / 2
    # an update of lockstep takes 512 x 5 / 10 s on two cores, one of peek 1 + 1 CPU seconds
    assert result["demo, n = 5"]["ratio_at_most"] == 2 * 256 / 2


def test_what_cpu_seconds_allow_is_taken_round_by_round() -> None:
    timings = {
        "rollouts": [Timing(0.0, 1.0), Timing(0.0, 2.0)],
        "lockstep": [Timing(0.0, 6.0), Timing(0.0, 8.0)],
        "peek": [Timing(0.0, 4.0), Timing(0.0, 8.0)],
    }
    found = schedules.cpu_seconds(timings, n=3)
    assert found["ratio_that_cpu_allows"]["median"] == pytest.approx(((4 + 6) / (1 + 4) + (8 + 8) / (2 + 8)) / 2)
    assert found["learner_peek_cpu_s"]["median"] == 6.0


def test_both_learners_update_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On rollouts of the policy itself V-trace with IMPALA's clips is A2C: after one step of each, the same θ₁."""
    tiny = replace(EXPERIMENTS["demo"](), environments=4)
    assert isinstance(tiny, Experiment)
    monkeypatch.setattr(
        schedules.Case,
        "experiment",
        lambda case, schedule: replace(
            case.make(), schedule=schedule, meta=replace(tiny.meta, n=0), ratio_clip=1.0 if schedule == "peek" else None
        ),
    )
    cases = schedules.arithmetic(schedules.Case("tiny", lambda: tiny, 0, 1))
    found: dict[str, Any] = {name: case() for name, case in cases.items()}
    (lockstep, _), (peek, _) = found["lockstep"], found["peek"]
    assert lockstep.update == 1
    torch.testing.assert_close(lockstep.theta, peek.theta)
    assert found["rollouts"].action.shape == (5, 4)
