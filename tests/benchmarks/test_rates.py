import json

import pytest

from benchmarks.harness import Timing
from benchmarks.rates import Program, compare


def timings(*seconds):
    return [Timing(wall, 2 * wall) for wall in seconds]


PROGRAMS = {
    "ours, threads: 1": Program(lambda: None, 100),
    "ours, threads: 2": Program(lambda: None, 100),
    "theirs": Program(lambda: None, 10),
}
TIMINGS = {
    "ours, threads: 1": timings(1.0, 1.0, 4.0),
    "ours, threads: 2": timings(0.5, 2.0, 2.0),
    "theirs": timings(1.0, 1.0, 0.5),
}


def test_the_best_settings_are_compared_round_by_round():
    result = compare(PROGRAMS, TIMINGS, {"ours over theirs": ("ours", "theirs")})
    assert result["best"] == {"ours": "ours, threads: 1", "theirs": "theirs"}
    # 100 over 10, 100 over 10, 25 over 20 steps per second
    assert result["ratios"] == {"ours over theirs": {"median": 10.0, "q1": 5.625, "q3": 10.0, "count": 3}}
    assert json.dumps(result)
    named = compare(PROGRAMS, TIMINGS, {"two threads": ("ours, threads: 2", "theirs")})["ratios"]["two threads"]
    assert named["median"] == 5.0  # 200, 50 and 50 over 10, 10 and 20


def test_a_row_has_steps_per_second_and_cores():
    row = compare(PROGRAMS, TIMINGS, {})["programs"]["ours, threads: 2"]
    assert row["steps_per_s"] == {"median": 50.0, "q1": 50.0, "q3": 125.0, "count": 3}
    assert row["cores_busy"]["median"] == pytest.approx(2.0)
