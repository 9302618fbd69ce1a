"""Study `hessian-bias`: what a wrong Hessian of the inner update alone does to MAML's meta-gradient.

Values, inner gradients and the outer gradient are exact in random tabular MDPs; only the derivative of the inner update
is that of -J + mean(θ² (c + 0.3 ε)), ε ~ N(0, I) anew for every update and estimate. At θ₀ = 0 the first update's value
is untouched by it, its Hessian is off by diag(2 (c + 0.3 ε)/P): Δ_H = 2 c/P, P = 100.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", Theorem 4.5; its slides, "Ablation study of
meta-gradient bias due to the Hessian bias", and the released code (disturbance, ranges).

Deviations: whether ε is drawn anew at each inner update is not said; K other than 2, c above 4 and the disturbance that
spares the first update are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.diagnostics import add_samples, bias, cosine_accuracy, no_samples, pearson
from metagrad.experiments.gradient_bias.hessian_bias_report import report
from metagrad.experiments.gradient_bias.tabular_estimators import copy_of, mdp_stack, meta_gradients
from metagrad.optimizers import Sgd, constant
from metagrad.tabular import (
    TabularMdp,
    ascend,
    exact_loss,
    exact_outer_loss,
    hessian_norm,
    maml_meta_gradient,
    policy_gradient,
)
from metagrad.unroll import InnerProblem

MDPS, DRAWS = 10, 20  # Table 2: independent trials, trials of each
NOISE = 0.3  # of ε beside c; released code
COEFFICIENTS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # released code; evenly spaced
BEYOND = (16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)  # where the highest power of Δ_H decides
RATES = (3.0, 3.5, 4.0, 4.5)  # released code: 3 … 4.5
STEPS = (1, 2, 3, 4, 5)  # released code: 2


class Disturbed(NamedTuple):
    """Holds what an update sees: the MDP and what its derivative is disturbed with."""

    mdp: TabularMdp
    coefficient: Float[Tensor, "*N P"]  # c + 0.3 ε


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    return {
        f"mdp{mdp}": {
            "mdp": mdp,
            "draws": DRAWS,
            "rates": [RATES[0], RATES[-1]] if is_quick else list(RATES),
            "steps": [1, 2, 4] if is_quick else list(STEPS),
            "coefficients": list(COEFFICIENTS),
            "beyond": list(BEYOND),
        }
        for mdp in range(min(seeds, 3) if is_quick else seeds)
    }


def disturbed_meta_gradients(
    mdps: TabularMdp, learning_rate: float, coefficients: Sequence[Float[Tensor, "N P"]]
) -> Float[Tensor, "N P"]:
    """Return ∂J(θ_K)/∂θ₀ at θ₀ = 0 for N MDPs, exact but for a disturbed derivative of every inner update.

    Equation: Π_i (I + α ∇²J(θᵢ) - 2 α diag(xᵢ)/P) ∇J(θ_K) on the exact path θ₀ … θ_K.

    Args:
        mdps: one for each copy.
        learning_rate: α.
        coefficients: xᵢ of the K updates; 0 disturbs nothing.
    """

    def undisturbed(theta: Tensor, eta: Tensor, batch: Disturbed) -> tuple[Tensor, None]:
        return exact_loss(theta, eta, batch.mdp)

    def disturbed(theta: Tensor, eta: Tensor, batch: Disturbed) -> tuple[Tensor, None]:
        return exact_loss(theta, eta, batch.mdp)[0] + (theta.square() * batch.coefficient).mean(), None

    def outer(theta: Tensor, batch: Disturbed) -> tuple[Tensor, None]:
        return exact_outer_loss(theta, batch.mdp)

    sizes = [*coefficients, torch.zeros_like(coefficients[0])]  # the outer gradient's batch has no derivative
    problem = InnerProblem(undisturbed, Sgd(learning_rate=constant(learning_rate)), disturbed)
    return meta_gradients(problem, outer, lambda _, j: Disturbed(mdps, sizes[j]), mdps, len(coefficients))


def draws(mdp: int, step: int, count: int, size: int) -> Float[Tensor, "N P"]:
    """Draw ε of an inner update, the same whatever the other settings are."""
    entropy = np.random.SeedSequence((mdp, step, 0x4845)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    generator = torch.Generator().manual_seed(int(entropy))
    return torch.randn((count, size), generator=generator, dtype=torch.float64)


def bias_bound(learning_rate: float, steps: int, lipschitz: float, hessian_bias: float, outer_norm: float) -> float:
    """Bound the meta-gradient's bias where only the inner Hessians are biased: Theorem 4.5 with its constants.

    Equation: ((B + α Δ_H)ᴷ - Bᴷ) ‖∇J(θ_K)‖, B = 1 + α c₂: a product of K factors, each at most B and off by at most
    α Δ_H. Of MAML each of the K factors has a Hessian; eq. 9 counts K - 1, the first one being its Δ_J.

    >>> bias_bound(0.5, 1, 2.0, 3.0, 10.0)
    15.0
    """
    base = 1.0 + learning_rate * lipschitz
    return float(((base + learning_rate * hessian_bias) ** steps - base**steps) * outer_norm)


def run_part(settings: Settings) -> Result:
    """Run all learning rates and numbers of steps on one MDP.

    Returns:
        For each rate, for each K, as lists over c (the paper's, then those beyond): "expected", the bias without
        sampling noise (ε = 0: factors of independent updates, so the mean of the product is the product of the means);
        "spared", the same with the first update undisturbed; "measured" (‖mean over draws - exact‖), "corrected" (its
        square less the noise in it), "pearson", "cosine" (means over draws), "bound"; all but the last three relative
        to the exact meta-gradient's norm. And "remainder": how far the estimate is from a polynomial of degree K in c.
    """
    return {
        f"{rate:g}": {str(steps): _point(settings, rate, steps) for steps in settings["steps"]}
        for rate in settings["rates"]
    }


def _point(settings: Settings, rate: float, steps: int) -> Result:
    """Run one learning rate and number of steps for all c."""
    seed, count = settings["mdp"], settings["draws"]
    sizes = torch.tensor([*settings["coefficients"], *settings["beyond"]], dtype=torch.float64)
    mdp = copy_of(mdp_stack([seed]), 0)
    zeros = torch.zeros_like(mdp.reward).flatten()
    exact = maml_meta_gradient(mdp, zeros, rate, steps)
    norm = torch.linalg.vector_norm(exact)
    path = [ascend(mdp, zeros, rate, i) for i in range(steps + 1)]
    lipschitz = max(float(hessian_norm(mdp, theta)) for theta in path[:-1])
    outer_norm = float(torch.linalg.vector_norm(policy_gradient(mdp, path[-1])))

    stack = mdp_stack([seed] * len(sizes))
    plain = sizes[:, None].expand(-1, len(zeros))
    expected = disturbed_meta_gradients(stack, rate, [plain] * steps)
    spared = disturbed_meta_gradients(stack, rate, [torch.zeros_like(plain)] + [plain] * (steps - 1))
    noise = [draws(seed, i, count, len(zeros)) for i in range(steps)]
    coefficients = [(plain[:, None] + NOISE * each).flatten(0, 1) for each in noise]  # [C·N, P]
    samples = disturbed_meta_gradients(mdp_stack([seed] * (len(sizes) * count)), rate, coefficients)
    samples = samples.view(len(sizes), count, -1)
    errors = [bias(add_samples(no_samples(len(zeros)), each), exact) for each in samples]
    exacts = exact.expand_as(samples)
    differences = torch.diff(expected[: len(settings["coefficients"])], n=steps + 1, dim=0)
    return {
        "expected": (torch.linalg.vector_norm(expected - exact, dim=1) / norm).tolist(),
        "spared": (torch.linalg.vector_norm(spared - exact, dim=1) / norm).tolist(),
        "measured": [float(error.norm / norm) for error in errors],
        "corrected": [float(error.squared / norm.square()) for error in errors],
        "pearson": pearson(samples, exacts).mean(1).tolist(),
        "cosine": cosine_accuracy(samples, exacts).mean(1).tolist(),
        "bound": [float(bias_bound(rate, steps, lipschitz, 2.0 * c / len(zeros), outer_norm) / norm) for c in sizes],
        "remainder": float(differences.abs().max() / norm),
        "lipschitz": lipschitz,
    }


ABOUT = "MAML in random MDPs with nothing wrong but the inner Hessian (gradient bias, Theorem 4.5)"
STUDY = Study(name="hessian-bias", description=ABOUT, seeds=MDPS, parts=_parts, run_part=run_part, report=report)
