import pytest
import torch

from benchmarks import tabular
from metagrad.experiments.gradient_bias.tabular_estimators import Estimation, mdp_stack


def test_quick_run_compares_the_batch_with_both_loops():
    result = tabular.run(rounds=1, quick=True)
    (case,) = result["trajectories"].values()
    assert case["samples_per_s"].keys() == {"batched", "loop", "written loop"}
    assert case["largest_relative_difference"] < 1e-12
    faster = case["time"][case["faster_loop"]]["wall_s"]["median"]
    assert faster == min(case["time"][name]["wall_s"]["median"] for name in ("loop", "written loop"))
    (target,) = result["targets"]
    assert target["at_most"] == pytest.approx(0.05)
    assert target["value"] == pytest.approx(case["time"]["batched"]["wall_s"]["median"] / faster)


@pytest.mark.parametrize("estimator", ["ad", "dice"])
def test_batch_and_both_loops_agree_on_the_same_data(estimator):
    estimation = Estimation(estimator=estimator, permutation="SSS", trajectories=3)
    assert tabular.largest_difference(estimation, mdp_stack([0, 0, 1])) < 1e-12


def test_loops_that_compute_something_else_are_not_timed(monkeypatch):
    monkeypatch.setattr(tabular, "written_gradient", lambda estimation, theta, sampler: torch.ones_like(theta))
    with pytest.raises(RuntimeError, match="differ by"):
        tabular.run(rounds=1, quick=True)
