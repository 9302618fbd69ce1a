import pytest

from benchmarks import environments


def test_quick_run_measures_every_case_alone_and_in_the_loop():
    result = environments.run(rounds=1, quick=True)["environments"]
    assert len(result) == len(environments.CASES)  # no label twice
    for case in result.values():
        assert case["alone_steps_per_s"]["median"] > 0
        assert case["loop_steps_per_s"]["count"] == 1
        quotient = case["loop_steps_per_s"]["median"] / case["alone_steps_per_s"]["median"]
        assert case["loop_over_alone"]["wall"]["median"] == pytest.approx(quotient)


def test_timed_steps_are_whole_rollouts():
    assert all(case.steps % environments.ROLLOUT_LENGTH == 0 for case in environments.CASES)
