"""Measures meta-gradient samples per second in tabular MDPs: 20 samples of 10 MDPs as a batch and in a Python loop.

The paper's settings: MAML, one inner update at rate 10, 20 states, 5 actions, T = 20, low-variance curvature (LVC),
everything sampled (SSS), at four of its numbers of trajectories per estimate. Three ways to the same 200 samples, on
one thread:

    batched        one call of `maml_gradients` on 200 copies
    loop           200 calls of `maml_gradients` on one copy: the same code, one sample at a time
    written loop   200 times what one would write by hand for one sample: `torch.autograd.grad` with `create_graph`,
                   no `vmap`; of the library the sampled loss and the sampler

Each draws trajectories of its own. That all three compute the same is asserted beforehand, on the data of the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.harness import Timing, at_most, interleave, ratio_summary, summary, time_summary, torch_threads
from metagrad.experiments.gradient_bias.tabular_estimators import (
    Data,
    Estimation,
    Trajectories,
    copy_of,
    data_sampler,
    inner_problem,
    maml_gradients,
    mdp_stack,
    outer_loss,
    sampled_loss,
)
from metagrad.monte_carlo import LookAhead, Sampler, unroll_gradients
from metagrad.tabular import TabularMdp

MDPS, SAMPLES = 10, 20
TRAJECTORIES = (2, 16, 32, 256)  # of the paper's 2, 4, … 256
SPEEDUP = 20.0  # promised over the faster of the two loops …
PROMISED_UP_TO = 32  # … at Table 2's number of trajectories and below; with many of them one sample is a batch already


def written_gradient(estimation: Estimation, theta: Float[Tensor, "P"], sampler: Sampler) -> Float[Tensor, "P"]:
    """Draw one sample of ∂J(θ₁)/∂θ₀, all of it sampled, as one would write it for a single MDP.

    Equation: θ₁ = ⊥(θ₀ + α ∇Ĵ_I) + θ₀ + α ∇Ĵ_II - ⊥(θ₀ + α ∇Ĵ_II); the gradient is that of Ĵ_III at θ₁, each Ĵ on data
    of its own.

    Args:
        estimation: permutation SSS, one inner update.
        theta: θ₀.
        sampler: data of one copy, each tensor with a leading axis of length 1.
    """

    def objective(theta: Tensor, data: Data, trajectories: Trajectories | None) -> Tensor:
        assert trajectories is not None
        one = Trajectories(*(x[0] for x in trajectories))
        return -sampled_loss(theta, theta[:0], copy_of(data.mdp, 0), one, estimation.estimator, 1.0)

    theta = theta.detach().requires_grad_()
    data = sampler(theta.detach().unsqueeze(0), 0)
    (value,) = torch.autograd.grad(objective(theta, data, data.value), theta)
    (derivative,) = torch.autograd.grad(objective(theta, data, data.derivative), theta, create_graph=True)
    kept = theta + estimation.learning_rate * derivative
    after = (theta.detach() + estimation.learning_rate * value) + kept - kept.detach()
    data = sampler(after.detach().unsqueeze(0), 1)
    return torch.autograd.grad(objective(after, data, data.outer), theta)[0]


def library_gradients(
    estimation: Estimation, theta: Float[Tensor, "P"], sampler: Sampler, copies: int
) -> Float[Tensor, "N P"]:
    """Do what `maml_gradients` does, on data of any sampler."""
    problem = inner_problem(estimation)
    start = (theta, problem.optimizer.init(theta), theta[:0])
    gradient = unroll_gradients(
        problem, outer_loss(estimation), sampler, start, LookAhead([1.0], wants_theta=True), copies
    ).theta
    assert gradient is not None
    return -gradient


def largest_difference(estimation: Estimation, mdps: TabularMdp) -> float:
    """Return how far either loop departs from the batch on the same data, relative to the largest component."""
    copies, theta = len(mdps.reward), _theta(mdps)
    seen: dict[int, Data] = {}
    sampler = data_sampler(estimation, mdps, seed=0)

    def recorded(theta: Tensor, j: int) -> Data:
        seen[j] = sampler(theta, j)
        return seen[j]

    def replayed(copy: int) -> Sampler:
        def one(place: Trajectories | None) -> Trajectories | None:
            return None if place is None else Trajectories(*(x[copy : copy + 1] for x in place))

        return lambda theta, j: Data(_one(mdps, copy), *(one(place) for place in seen[j][1:]))

    batched = library_gradients(estimation, theta, recorded, copies)
    loop = torch.cat([library_gradients(estimation, theta, replayed(copy), 1) for copy in range(copies)])
    written = torch.stack([written_gradient(estimation, theta, replayed(copy)) for copy in range(copies)])
    apart = torch.stack([loop - batched, written - batched]).abs().max() / batched.abs().max()
    return float(apart)


def _theta(mdps: TabularMdp) -> Tensor:
    """θ₀ = 0 of one MDP."""
    return mdps.reward.new_zeros(mdps.reward[0].numel())


def _one(mdps: TabularMdp, copy: int) -> TabularMdp:
    """Make a stack of one."""
    return mdps._replace(
        transition=mdps.transition[copy : copy + 1],
        reward=mdps.reward[copy : copy + 1],
        initial=mdps.initial[copy : copy + 1],
    )


def _cases(estimation: Estimation, mdps: TabularMdp) -> dict[str, Callable[[], object]]:
    theta, ones = _theta(mdps), [_one(mdps, copy) for copy in range(len(mdps.reward))]

    def loop() -> None:
        for seed, mdp in enumerate(ones):
            maml_gradients(estimation, mdp, seed)

    def written_loop() -> None:
        for seed, mdp in enumerate(ones):
            written_gradient(estimation, theta, data_sampler(estimation, mdp, seed))

    return {"batched": lambda: maml_gradients(estimation, mdps, 0), "loop": loop, "written loop": written_loop}


def _record(timings: dict[str, list[Timing]], copies: int, difference: float) -> dict[str, Any]:
    median = {name: summary([timing.wall_s for timing in each])["median"] for name, each in timings.items()}
    faster = min("loop", "written loop", key=lambda name: median[name])
    return {
        "largest_relative_difference": difference,
        "time": {name: time_summary(each) for name, each in timings.items()},
        "samples_per_s": {name: copies / seconds for name, seconds in median.items()},
        "faster_loop": faster,
        "speedup_over_loop": ratio_summary(timings["loop"], timings["batched"]),
        "speedup_over_written_loop": ratio_summary(timings["written loop"], timings["batched"]),
        "batched_over_faster_loop": ratio_summary(timings["batched"], timings[faster]),
    }


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Time 200 samples three ways; quick: 2 samples of 2 MDPs at 2 trajectories."""
    counts: Sequence[int] = TRAJECTORIES[:1] if quick else TRAJECTORIES
    seeds = [seed for seed in range(2 if quick else MDPS) for _ in range(2 if quick else SAMPLES)]
    mdps = mdp_stack(seeds)
    result, targets = {}, []
    with torch_threads(1):
        for count in counts:
            estimation = Estimation(estimator="lvc", permutation="SSS", trajectories=count)
            difference = largest_difference(estimation, mdps)
            if difference > 1e-9:
                raise RuntimeError(f"the batch and the loops differ by {difference:.1e} on the same data")
            name = f"{count} trajectories"
            result[name] = _record(interleave(_cases(estimation, mdps), rounds), len(seeds), difference)
            if count <= PROMISED_UP_TO:
                ratio = result[name]["batched_over_faster_loop"]["wall"]["median"]
                targets.append(at_most(f"batched over the faster loop, {name}", ratio, 1.0 / SPEEDUP))
    setting = {"mdps": MDPS, "samples": SAMPLES, "estimator": "lvc", "permutation": "SSS", "steps": 1, "horizon": 20}
    ratios = {
        f"samples/s over the faster loop, {name}": 1.0 / case["batched_over_faster_loop"]["wall"]["median"]
        for name, case in result.items()
    }
    setting |= {"samples_timed": len(seeds)}
    return {"setting": setting, "trajectories": result, "ratios": ratios, "targets": targets}
