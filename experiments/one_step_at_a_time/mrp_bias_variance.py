"""Measures bias and spread of estimators along a run of a standard 1-step algorithm (study `mrp-bias-variance`).

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 2.4 (eq. 7), 3.4, 3.5,
Figure 5.
"""

from typing import Any

import torch
from torch import Tensor

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.diagnostics import Moments, add_samples, no_samples, standard_deviation
from metagrad.experiments.one_step_at_a_time.mrp import UPDATES
from metagrad.experiments.one_step_at_a_time.mrp_bias_variance_report import report
from metagrad.experiments.one_step_at_a_time.mrp_problem import (
    MrpBatch,
    batch_sampler,
    discounts,
    init_eta,
    init_theta,
    inner_problem,
    meta_optimizer,
    outer_loss,
)
from metagrad.experiments.reporting.parts import sizes
from metagrad.meta_gradient import Estimator, meta_gradient, outer_gradient, outer_weights
from metagrad.monte_carlo import LookAhead, in_chunks, unroll_gradients
from metagrad.optimizers import OptimizerState
from metagrad.unroll import inner_update

STEPS = (1, 2, 3, 5, 10, 20)
ORACLE_STEPS = 40  # Figure 5
COPIES = 2048  # Figure 5
POINTS = 25  # along the run; not in the paper
AT_ONCE = 512  # copies in memory at once: a process with 40-step unrolls of them stays below 0.5 GB

Start = tuple[Tensor, OptimizerState, Tensor]
"""θ, the inner optimizer's state, η: a point of a run."""


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    length = sizes(is_quick, updates=(UPDATES, 600), points=(POINTS, 3), copies=(COPIES, 128))
    length |= sizes(is_quick, steps=(list(STEPS), [1, 2, 5]), oracle_steps=(ORACLE_STEPS, 10))
    return {f"seed{seed}": {"seed": seed, **length, "is_outer_fresh": True} for seed in range(seeds)}


def run_part(settings: Settings) -> Result:
    """Run the standard algorithm once, with every estimator's moments at evenly spaced points of it.

    One 1-step meta-gradient for each update, through the very update that θ keeps (Figure 1), from fresh episodes. The
    first point is one interval after the start: at the start itself Adam's update is the gradient's sign, and every
    derivative of it 0.

    Returns:
        "updates" of the points, "discounts" [S] there, and "moments": for each estimator ("n-step-5", "mix-5", …; the
        oracle is the n-step estimator of most steps) a list over points of `estimator_moments`.
    """
    generator = torch.Generator().manual_seed(2 * settings["seed"])
    problem, meta = inner_problem(), meta_optimizer()
    theta, eta = init_theta(generator), init_eta()
    state, meta_state = problem.optimizer.init(theta), meta.init(eta)
    interval = settings["updates"] // settings["points"]
    result: Result = {"updates": [], "discounts": [], "moments": {}}
    for done in range(1, interval * settings["points"] + 1):
        sample = batch_sampler(generator, settings["is_outer_fresh"])
        inner, outer = (_only(sample(theta[None], j)) for j in (0, 1))
        update = inner_update(problem, theta, state, eta, inner, keep_graph=True)
        scored = outer_gradient(outer_loss, update.theta, outer)
        gradient = meta_gradient(problem, [update.step], [scored.gradient], "retain").eta
        theta, state = update.theta, update.state
        with torch.no_grad():
            eta, meta_state = meta.update(gradient, meta_state, eta, eta)
        if done % interval == 0:
            result["updates"].append(done)
            result["discounts"].append(discounts(eta).tolist())
            for name, moments in _moments_at((theta, state, eta), done, settings).items():
                result["moments"].setdefault(name, []).append(moments)
    return result


def _only(batch: MrpBatch) -> MrpBatch:
    """Return the batch of a single unroll."""
    return MrpBatch(batch.inner[0], batch.outer[0])


def _estimators(settings: Settings) -> dict[str, LookAhead]:
    """Return estimators by name, the oracle first.

    Mix has κ = 1 - 1/n (3.5), which at n = 1 is the 1-step estimator.
    """

    def look_ahead(estimator: Estimator, n: int) -> LookAhead:
        return LookAhead(outer_weights(estimator, n))

    oracle = settings["oracle_steps"]
    n_step = {f"n-step-{n}": look_ahead("n-step", n) for n in (oracle, *settings["steps"])}
    return n_step | {f"mix-{n}": look_ahead("mix", n) for n in settings["steps"] if n > 1}


def _moments_at(start: Start, done: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the moments of every estimator at one point, from common random numbers.

    Sample k of every estimator sees the same episodes: its own n + 1 are the first of the oracle's. Differences from
    the oracle are taken sample by sample, and their spread gives the noise in the bias.
    """
    estimators, copies = _estimators(settings), settings["copies"]
    oracle = f"n-step-{settings['oracle_steps']}"
    size = len(start[2])
    samples = {name: no_samples(size) for name in estimators}
    differences = {name: no_samples(size) for name in estimators}
    for chunk, count in enumerate(in_chunks(copies, AT_ONCE)):
        gradients = {}
        for name, look_ahead in estimators.items():
            seed = (settings["seed"] * (settings["updates"] + 1) + done) * copies + chunk
            generator = torch.Generator().manual_seed(1_000_000 + seed)
            sampler = batch_sampler(generator, settings["is_outer_fresh"], is_averaged=True)
            gradient = unroll_gradients(inner_problem(), outer_loss, sampler, start, look_ahead, count).eta
            gradients[name] = gradient.double()
            samples[name] = add_samples(samples[name], gradients[name])
            differences[name] = add_samples(differences[name], gradients[name] - gradients[oracle])
    return {name: estimator_moments(samples[name], differences[name]) for name in estimators}


def estimator_moments(samples: Moments, differences: Moments) -> dict[str, Any]:
    """Return as JSON mean and std [M] of an estimator's samples, and the same of sample minus oracle's sample."""
    return {
        "mean": samples.mean.tolist(),
        "std": standard_deviation(samples).tolist(),
        "difference": differences.mean.tolist(),
        "difference_std": standard_deviation(differences).tolist(),
    }


ABOUT = "Markov reward process: bias and spread of n-step and mix (One Step at a Time, Fig. 5)"
STUDY = Study(name="mrp-bias-variance", description=ABOUT, seeds=5, parts=_parts, run_part=run_part, report=report)
