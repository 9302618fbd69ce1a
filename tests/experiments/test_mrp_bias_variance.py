"""Study `mrp-bias-variance`: its run, and what it measures at a point, against both written out."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time import mrp_bias_variance as study
from metagrad.experiments.one_step_at_a_time import mrp_problem as problem
from metagrad.meta_gradient import outer_weights, reference_meta_gradient
from metagrad.optimizers import OptimizerState

SETTINGS: Settings = {
    "seed": 1,
    "updates": 4,
    "points": 2,
    "copies": 5,
    "steps": [1, 3],
    "oracle_steps": 4,
    "is_outer_fresh": True,
}


LEARNING_RATE = 0.03  # larger than the study's: a few updates then move θ so far that it matters where a loss is taken


@pytest.fixture(scope="module")
def result() -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "inner_problem", lambda: problem.inner_problem(LEARNING_RATE))
        yield study.run_part(SETTINGS)


def test_parts_are_the_seeds_of_figure_5() -> None:
    parts = study.STUDY.parts(study.STUDY.seeds, False)
    assert [settings["seed"] for settings in parts.values()] == [0, 1, 2, 3, 4]
    assert all((s["copies"], s["oracle_steps"]) == (2048, 40) for s in parts.values())
    assert all(s["updates"] % s["points"] == 0 for s in parts.values())
    assert study.STUDY.parts(2, True).items() <= study.STUDY.parts(5, True).items()


def one_unroll(start: tuple[Tensor, OptimizerState, Tensor], batches: list[Tensor], estimator: str) -> Tensor:
    n = len(batches) - 1
    pairs = [problem.MrpBatch(rewards, rewards) for rewards in batches]
    weights = outer_weights("mix" if estimator == "mix" else "n-step", n)
    outers = list(zip(weights, pairs[1:], strict=True))
    return reference_meta_gradient(
        problem.inner_problem(LEARNING_RATE), problem.outer_loss, *start, pairs[:-1], outers
    ).eta


def run_written_out() -> list[tuple[Tensor, OptimizerState, Tensor]]:
    """θ, Adam's state and η after each update of the standard algorithm, with torch's optimizers."""
    generator = torch.Generator().manual_seed(2)
    theta = problem.init_theta(generator).requires_grad_()
    eta = problem.init_eta().requires_grad_()
    adam, meta_adam = torch.optim.Adam([theta], lr=LEARNING_RATE), torch.optim.Adam([eta], lr=2e-3)
    points = []
    start = (theta.detach().clone(), OptimizerState(0, (torch.zeros(141), torch.zeros(141))), eta.detach().clone())
    for done in range(1, 5):
        batches = [problem.sample_rewards((1, 32), generator, torch.float32)[:, 0] for _ in range(2)]
        eta.grad = one_unroll(start, batches, "n-step")
        loss, _ = problem.inner_loss(theta, eta.detach(), problem.MrpBatch(batches[0], batches[0]))
        (theta.grad,) = torch.autograd.grad(loss, theta)
        adam.step()
        meta_adam.step()
        moments = tuple(adam.state[theta][name].clone() for name in ("exp_avg", "exp_avg_sq"))
        start = (theta.detach().clone(), OptimizerState(done, moments), eta.detach().clone())
        points.append(start)
    return points


def test_the_run_is_the_standard_algorithm(result: Result) -> None:
    points = run_written_out()
    assert result["updates"] == [2, 4]
    for done, gamma in zip(result["updates"], result["discounts"], strict=True):
        # Meta-Adam divides by the gradient's size: what float32 rounds off of small gradients is seen in the discounts.
        assert gamma == pytest.approx(problem.discounts(points[done - 1][2]).tolist(), abs=1e-5)


def test_moments_are_those_of_unrolls_one_after_another_on_common_episodes(result: Result) -> None:
    assert set(result["moments"]) == {"n-step-4", "n-step-1", "n-step-3", "mix-3"}
    copies, done = SETTINGS["copies"], 4
    start = run_written_out()[done - 1]
    generator = torch.Generator().manual_seed(1_000_000 + (5 + done) * copies)
    episodes = [problem.sample_rewards((copies, 32), generator, torch.float32) for _ in range(5)]

    def samples(estimator: str, n: int) -> np.ndarray:
        unrolls = [[rewards[:, k] for rewards in episodes[: n + 1]] for k in range(copies)]
        return torch.stack([one_unroll(start, batches, estimator) for batches in unrolls]).double().numpy()

    oracle = samples("n-step", 4)
    for estimator, n in (("n-step", 1), ("n-step", 3), ("mix", 3), ("n-step", 4)):
        ours, exact = result["moments"][f"{estimator}-{n}"][1], samples(estimator, n)
        size = abs(oracle).max()
        assert ours["mean"] == pytest.approx(exact.mean(0), rel=1e-2, abs=1e-3 * size)
        assert ours["std"] == pytest.approx(exact.std(0, ddof=1), rel=1e-2, abs=1e-3 * size)
        assert ours["difference"] == pytest.approx((exact - oracle).mean(0), rel=1e-2, abs=1e-3 * size)
        assert ours["difference_std"] == pytest.approx((exact - oracle).std(0, ddof=1), rel=1e-2, abs=1e-3 * size)


def test_chunks_are_independent_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "AT_ONCE", 1)
    chunked = study.run_part(SETTINGS | {"copies": 2})
    for name, (moments, _) in chunked["moments"].items():
        assert (np.array(moments["std"]) > 0).all(), name
    assert chunked["discounts"] == study.run_part(SETTINGS | {"copies": 1})["discounts"]  # the run has its own episodes


def test_mix_of_one_step_is_the_one_step_estimator_and_not_computed_twice() -> None:
    assert "mix-1" not in study.run_part(SETTINGS | {"steps": [1], "updates": 2, "points": 1})["moments"]
