import pytest
import torch

from benchmarks import lifetimes
from benchmarks.lifetimes_alone import Alone


@pytest.mark.slow  # six processes
def test_quick_run_compares_the_batch_with_both_loops_and_three_ways_in_memory():
    result = lifetimes.run(rounds=1, quick=True)
    assert result["speed"].keys() == result["memory_mib"].keys() == lifetimes.RULES.keys()
    for name, by_size in result["speed"].items():
        (found,) = by_size.values()
        assert found["updates_per_cpu_s"].keys() == {"batched", "loop", "written loop"}
        rates = {way: x["median"] for way, x in found["updates_per_cpu_s"].items()}
        faster = max(rates["loop"], rates["written loop"])
        assert found["over_faster_loop"] == pytest.approx(rates["batched"] / faster)
        assert all(peak > 0 for peak in result["memory_mib"][name].values())
    assert [target["at_most"] for target in result["targets"]] == pytest.approx([1 / 20, 1 / 5] * 2)


def test_loops_that_compute_something_else_are_not_timed(monkeypatch):
    monkeypatch.setattr(Alone, "gradient", lambda self, eta: torch.ones_like(eta))
    with pytest.raises(RuntimeError, match="differ by"):
        lifetimes.run(rounds=1, quick=True)
