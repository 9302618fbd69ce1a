import json
import os
import statistics
import threading

import pytest
import torch

from benchmarks import harness
from metagrad.cluster.run.variables import environment_variables


def test_cases_run_in_turn_and_the_first_round_is_not_counted():
    calls = []
    timings = harness.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(of_case) for name, of_case in timings.items()} == {"a": 3, "b": 3}
    assert all(timing.wall_s >= 0 and timing.cpu_s >= 0 for of_case in timings.values() for timing in of_case)


@pytest.mark.parametrize("warm_up_rounds", [0, 2])
def test_rounds_that_are_not_counted_are_as_many_as_asked(warm_up_rounds):
    calls = []
    timings = harness.interleave({"a": lambda: calls.append("a")}, rounds=2, warm_up_rounds=warm_up_rounds)
    assert len(calls) == 2 + warm_up_rounds
    assert len(timings["a"]) == 2
    assert all(timing.wall_s > 0 for timing in timings["a"])
    elsewhere = harness.Timing(5.0, 4.0)
    assert harness.interleave({"b": lambda: elsewhere}, 1, warm_up_rounds) == {"b": [elsewhere]}


def test_summaries_are_medians_with_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert harness.summary(values) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "count": 5}
    assert harness.summary([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "count": 1}


def test_ratios_are_taken_round_by_round():
    slow = [harness.Timing(2.0, 4.0), harness.Timing(6.0, 4.0), harness.Timing(9.0, 2.0)]
    base = [harness.Timing(1.0, 2.0), harness.Timing(2.0, 1.0), harness.Timing(3.0, 2.0)]
    ratios = harness.ratio_summary(slow, base)
    assert ratios["wall"]["median"] == statistics.median([2.0, 3.0, 3.0])
    assert ratios["cpu"]["median"] == statistics.median([2.0, 4.0, 1.0])


def test_a_target_is_met_at_its_limit():
    assert harness.at_most("x", 1.05, 1.05)["met"]
    assert not harness.at_most("x", 1.06, 1.05)["met"]
    assert harness.at_least("x", 3.0, 3.0)["met"]
    assert not harness.at_least("x", 2.9, 3.0)["met"]


def test_a_case_of_another_process_brings_its_own_seconds():
    elsewhere = harness.Timing(100.0, 50.0)
    timings = harness.interleave({"here": lambda: None, "there": lambda: elsewhere}, rounds=2)
    assert timings["there"] == [elsewhere, elsewhere]
    assert all(timing.wall_s < elsewhere.wall_s for timing in timings["here"])


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with harness.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_one_core_is_given_back_and_inherited():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with harness.one_core():
        seen = []
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        assert seen == [{max(before)}]
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads


def test_variables_are_put_back(monkeypatch):
    monkeypatch.setenv("METAGRAD_THERE", "before")
    monkeypatch.delenv("METAGRAD_NEW", raising=False)
    with environment_variables({"METAGRAD_THERE": "1", "METAGRAD_NEW": "2"}):
        assert (os.environ["METAGRAD_THERE"], os.environ["METAGRAD_NEW"]) == ("1", "2")
    assert os.environ["METAGRAD_THERE"] == "before"
    assert "METAGRAD_NEW" not in os.environ


def hold(megabytes: int) -> int:
    return harness.peak_growth_bytes(lambda: torch.ones(megabytes, 2**18))


def test_the_peak_of_a_fresh_process_is_what_was_alive():
    assert 256 <= harness.in_fresh_process(hold, 256) / 2**20 <= 256 + 16


def test_a_result_is_written_and_rendered(tmp_path):
    result = {"case": harness.summary([1.0, 2.0]), "targets": [harness.at_most("t", 1.0, 2.0)]}
    path = tmp_path / "new" / "result.json"
    harness.write_json(path, result)
    assert json.loads(path.read_text()) == result
    assert "case: 1.5 [1.25, 1.75] of 2" in harness.render(result)


def test_the_machine_is_recorded_with_versions():
    record = harness.machine_record()
    assert record["versions"]["torch"] == torch.__version__
    assert record["cores"] >= 1
