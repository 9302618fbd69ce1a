"""Study `mrp`: a part against the algorithm written out, its parts, and verdicts on invented curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time import mrp
from metagrad.experiments.one_step_at_a_time import mrp_problem as problem
from metagrad.meta_gradient import reference_meta_gradient
from metagrad.optimizers import OptimizerState

SETTINGS: Settings = {"n": 2, "seed": 3, "updates": 4, "copies": 3, "record_every": 2, "is_outer_fresh": True}


def test_parts_are_every_n_and_seed_of_figure_4() -> None:
    parts = mrp.STUDY.parts(mrp.STUDY.seeds, False)
    assert len(parts) == 15
    assert {(s["n"], s["seed"]) for s in parts.values()} == {(n, seed) for n in (1, 5, 10) for seed in range(5)}
    assert all(settings["copies"] == 256 for settings in parts.values())
    assert mrp.STUDY.parts(2, True).items() <= mrp.STUDY.parts(5, True).items()


def written_out(settings: Settings) -> tuple[list[float], list[float]]:
    """Losses and the last discounts of a part, with torch's optimizers and one unroll after another."""
    training = torch.Generator().manual_seed(2 * settings["seed"])
    looking_ahead = torch.Generator().manual_seed(2 * settings["seed"] + 1)
    theta = problem.init_theta(training).requires_grad_()
    eta = problem.init_eta().requires_grad_()
    adam = torch.optim.Adam([theta], lr=1e-3)
    meta_adam = torch.optim.Adam([eta], lr=2e-3)
    losses = []
    for done in range(settings["updates"]):
        kept = adam.state.get(theta, {})
        moments = tuple(kept.get(name, torch.zeros_like(theta)).clone() for name in ("exp_avg", "exp_avg_sq"))
        episodes = [
            problem.sample_rewards((settings["copies"], 32), looking_ahead, torch.float32)
            for _ in range(settings["n"] + 1)
        ]
        gradients = []
        for k in range(settings["copies"]):
            own = [problem.MrpBatch(rewards[:, k], rewards[:, k]) for rewards in episodes]
            outers = [(float(j == settings["n"]), own[j]) for j in range(1, settings["n"] + 1)]
            state = OptimizerState(done, moments)
            at = (theta.detach(), state, eta.detach())
            gradients.append(
                reference_meta_gradient(problem.inner_problem(), problem.outer_loss, *at, own[:-1], outers).eta
            )
        rewards = problem.sample_rewards((32,), training, torch.float32)
        loss, _ = problem.inner_loss(theta, eta.detach(), problem.MrpBatch(rewards, rewards))
        (theta.grad,) = torch.autograd.grad(loss, theta)
        eta.grad = torch.stack(gradients).mean(0)
        adam.step()
        meta_adam.step()
        losses.append(float(loss.detach()))
    return losses, problem.discounts(eta.detach()).tolist()


def test_a_part_is_the_algorithm_of_equations_8_and_9() -> None:
    result = mrp.run_part(SETTINGS)
    losses, gamma = written_out(SETTINGS)
    assert result["updates"] == [2, 4]
    assert result["training_loss"] == pytest.approx(
        [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2], rel=1e-4
    )
    # Meta-Adam divides by the gradient's size: what float32 rounds off of small gradients is seen in the discounts.
    assert result["discounts"][-1] == pytest.approx(gamma, abs=1e-5)


def test_training_starts_alike_on_the_same_episodes_for_every_n() -> None:
    first = {n: mrp.run_part(SETTINGS | {"n": n, "updates": 1, "record_every": 1}) for n in (1, 3)}
    for key in ("training_loss", "value_error"):
        assert first[1][key] == first[3][key]


def invented(n: int, seed: int, odd: float, even: float) -> tuple[Settings, Result]:
    """A part whose discounts go straight to `odd` and `even`, whose error falls faster for larger n."""
    share = np.linspace(0.1, 1.0, 10)[:, None]
    gamma = 0.5 + share * (np.array([even, odd] * 5) - 0.5) + 1e-4 * seed
    loss = np.exp(-n * share[:, 0]) * (1 + 0.01 * seed)
    result: dict[str, Any] = {
        "updates": list(range(100, 1100, 100)),
        "training_loss": loss.tolist(),
        "value_error": loss.tolist(),
        "discounts": gamma.tolist(),
    }
    return mrp.STUDY.parts(5, False)[f"n{n}-seed{seed}"], result


def report_of(folder: Path, ends: dict[int, tuple[float, float]]) -> str:
    parts = {f"n{n}-seed{seed}": invented(n, seed, *end) for seed in range(3) for n, end in ends.items()}
    mrp.STUDY.report(folder, parts, False)
    assert (folder / "figure_4.png").stat().st_size > 10_000
    return (folder / "report.md").read_text(encoding="utf-8")


def test_curves_as_in_the_paper_are_said_to_be(tmp_path: Path) -> None:
    text = report_of(tmp_path, {1: (0.09, 0.95), 5: (0.05, 0.99), 10: (0.01, 0.991)})
    assert "the opposite" not in text
    assert "not distinguishable" not in text
    assert "Nowhere in the table" in text


def test_every_difference_is_a_sentence(tmp_path: Path) -> None:
    differences = report_of(tmp_path, {1: (0.6, 0.95), 5: (0.2, 0.9), 10: (0.01, 0.99)}).split("Where ours differs")[1]
    assert "- Discounts of odd states, start → end, 1-step: 0.5 → 0.6, the opposite" in differences
    assert "mean over training, 1-step → 5-step: 0.748 → 0.72, the opposite (larger n converges faster" in differences
    assert "Discounts of odd states, mean over training" not in differences
    assert "training, 5-step → 10-step" not in differences
    assert "5- and 10-step lines do not coincide: they are up to 0.09 apart" in differences
    assert (
        "With 5-step meta-gradients the discounts of odd states are at 0.2 on average after 1,000 updates"
        in differences
    )
    assert "With 10-step" not in differences
