"""Study `compositional-bias`: what sampled inner updates alone do to MAML's meta-gradient.

SEE: the values of the inner updates are sampled, Hessians (at the sampled θ̂) and the outer gradient are exact. Measured
are the compositional bias E‖θ̂_K - θ_K‖ of Lemma 4.4, its bound, and bias and correlation of the meta-gradient. In SEE
AD, LVC and Loaded-DiCE are one estimator (they share first-order gradients); DiCE has neither baseline nor bootstrap.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", Lemma 4.4 and D.1; its slides, "Ablation study of
meta-gradient bias due to the compositional bias"; the released code (settings).

Deviations: 100 trials in each MDP and not 20; the bound is ours to measure, nothing published has it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.diagnostics import add_samples, bias, cosine_accuracy, no_samples, pearson
from metagrad.experiments.gradient_bias.compositional_bias_report import report
from metagrad.experiments.gradient_bias.tabular_estimators import (
    ESTIMATORS,
    Estimation,
    copy_of,
    data_sampler,
    inner_problem,
    maml_gradients,
    mdp_stack,
)
from metagrad.monte_carlo import independent
from metagrad.tabular import TabularMdp, ascend, compositional_bias_bound, hessian_norm, maml_meta_gradient

MDPS = 10  # Table 2: independent trials
TRIALS = 100  # of each; Table 2 has 20, which leaves too much noise in a bias
SINGLES = 32  # estimates from one trajectory that a variance is measured with, at every θ̂
CURVATURES = 20  # of the sampled θ̂ at which the Hessian's norm is taken, at every update
BOUNDED = ("ad", "dice")  # what the bound is measured for; LVC and Loaded-DiCE share AD's first-order gradients
SWEEPS: dict[str, dict[str, Any]] = {  # released code
    "learning_rate": {"steps": 6, "trajectories": 32, "values": [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]},
    "trajectories": {"learning_rate": 3.0, "steps": 2, "values": [2, 4, 8, 16, 32, 64, 128, 256]},
    "steps": {"learning_rate": 3.0, "trajectories": 32, "values": [1, 2, 3, 4, 5, 6]},
}
QUICK: dict[str, list[Any]] = {"learning_rate": [1.0, 5.0, 13.0], "trajectories": [2, 16, 128], "steps": [1, 3, 6]}


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    return {
        f"{name.replace('_', '-')}-mdp{mdp}": {
            "mdp": mdp,
            "field": name,
            "base": {field: value for field, value in sweep.items() if field != "values"},
            "values": QUICK[name] if is_quick else sweep["values"],
            "trials": 20 if is_quick else TRIALS,
            "singles": SINGLES,
            "curvatures": 5 if is_quick else CURVATURES,
        }
        for name, sweep in SWEEPS.items()
        for mdp in range(min(seeds, 3) if is_quick else seeds)
    }


def gradient_variance(
    estimation: Estimation, mdps: TabularMdp, theta: Float[Tensor, "N P"], singles: int, seed: int
) -> Float[Tensor, "N"]:
    """Return the summed variance of one trajectory's estimate of ∇J at each of N parameters, each with its MDP.

    The estimate is unbiased. Each trajectory has its own noise of values here, as the lemma's independent ones would.

    Args:
        estimation: whose estimator and horizon; its number of trajectories and its noise's sharing do not matter.
        mdps: one for each copy.
        theta: where.
        singles: estimates that the variance is taken over.
        seed: of their trajectories; another one than that of the unrolls gives independent ones.
    """
    single = replace(estimation, permutation="SEE", trajectories=1)
    copies = len(theta) * singles

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(singles, dim=0)

    many = mdps._replace(
        transition=repeated(mdps.transition), reward=repeated(mdps.reward), initial=repeated(mdps.initial)
    )
    where = repeated(theta)
    data = data_sampler(single, many, seed)(where, 0)
    flat = where.flatten().requires_grad_()
    loss, _ = independent(inner_problem(single), copies).loss(flat, flat[:0], data)
    (gradient,) = torch.autograd.grad(loss, flat)
    return gradient.view(len(theta), singles, -1).var(dim=1).sum(-1)


def largest_curvature(
    mdp: TabularMdp, path: Sequence[Float[Tensor, "P"]], thetas: Sequence[Float[Tensor, "N P"]]
) -> float:
    """Return c₂, the largest ‖∇²J‖₂ at the exact θᵢ, at the sampled θ̂ᵢ, and half-way from one to the other, i < K."""
    norms = torch.func.vmap(lambda theta: hessian_norm(mdp, theta))
    largest = float(hessian_norm(mdp, path[0]))  # where all unrolls start
    for exact, sampled in zip(path[1:-1], thetas[1:-1], strict=True):
        points = torch.cat([exact[None], (exact + sampled) / 2, sampled])
        largest = max(largest, float(norms(points).amax()))
    return largest


def run_part(settings: Settings) -> Result:
    """Run one sweep on one MDP.

    Returns:
        For each estimator lists over the sweep's values: "distance", the mean of ‖θ̂_K - θ_K‖ over trials, with its
        "error"; "bias" (‖mean - exact‖) and "corrected" (its square less the noise in it) of the meta-gradient,
        relative to the exact one's norm; "pearson", "cosine", means over trials. For `BOUNDED` also "bound" (Lemma
        4.4), "lipschitz" (c₂), "deviation" (σ_In).
    """
    found: Result = {estimator: {} for estimator in ESTIMATORS}
    for value in settings["values"]:
        for estimator, lists in found.items():
            for name, number in _point(settings, estimator, value).items():
                lists.setdefault(name, []).append(number)
    return found


def _point(settings: Settings, estimator: Any, value: float) -> dict[str, float]:
    estimation = Estimation(estimator=estimator, permutation="SEE", **{**settings["base"], settings["field"]: value})
    rate, steps = estimation.learning_rate, estimation.steps
    mdps = mdp_stack([settings["mdp"]] * settings["trials"])
    mdp, zeros = copy_of(mdps, 0), mdps.reward.new_zeros(mdps.reward[0].numel())
    path = [ascend(mdp, zeros, rate, i) for i in range(steps + 1)]
    exact = maml_meta_gradient(mdp, zeros, rate, steps)
    thetas: list[Tensor] = []
    gradients = maml_gradients(estimation, mdps, settings["mdp"], thetas)
    distance = torch.linalg.vector_norm(thetas[-1] - path[-1], dim=1)
    error = bias(add_samples(no_samples(len(exact)), gradients), exact)
    norm, exacts = torch.linalg.vector_norm(exact), exact.expand_as(gradients)
    scores = {
        "distance": float(distance.mean()),
        "error": float(distance.std() / len(distance) ** 0.5),
        "bias": float(error.norm / norm),
        "corrected": float(error.squared / norm.square()),
        "pearson": float(pearson(gradients, exacts).mean()),
        "cosine": float(cosine_accuracy(gradients, exacts).mean()),
    }
    if estimator in BOUNDED:
        scores |= _bound(settings, estimation, mdps, path, thetas)
    return scores


def _bound(
    settings: Settings, estimation: Estimation, mdps: TabularMdp, path: list[Tensor], thetas: list[Tensor]
) -> dict[str, float]:
    """Evaluate the bound of Lemma 4.4 with c₂ and σ_In as they are measured on the way.

    σ_In is the greatest over updates of the root mean variance over the sampled θ̂ᵢ: E√V ≤ √(E V), which is what the
    proof needs of it (eq. 23).
    """
    lipschitz = largest_curvature(copy_of(mdps, 0), path, [theta[: settings["curvatures"]] for theta in thetas])
    variances = [
        float(gradient_variance(estimation, mdps, thetas[i], settings["singles"], 1_000_000 + settings["mdp"]).mean())
        for i in range(estimation.steps)
    ]
    deviation = max(variances) ** 0.5
    bound = compositional_bias_bound(
        estimation.learning_rate, estimation.steps, lipschitz, deviation, estimation.trajectories
    )
    return {"bound": bound, "lipschitz": lipschitz, "deviation": deviation}


ABOUT = "MAML in random MDPs with nothing sampled but the inner updates (gradient bias, Lemma 4.4)"
STUDY = Study(name="compositional-bias", description=ABOUT, seeds=MDPS, parts=_parts, run_part=run_part, report=report)
