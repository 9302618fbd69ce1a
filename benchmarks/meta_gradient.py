"""What a meta-update costs: time over one plain A2C update, and memory over the length of the look-ahead.

Time: n = 3 virtual updates, the outer gradient and the adjoint pass on the Nature network, 5 steps of 64 environments,
Adam behind a gradient clip, LVC, outer critic, in the forms `retain` and `recompute`, against the same derivative by
one reverse pass through the whole graph (`reference`) and against one plain update (`plain`) on the same batch. One
thread on the CPU. Target: `retain` takes at most 1.05 times as long as `reference` (median of the rounds' ratios).

Memory: peak growth of a fresh process at n = 1 and n = 20. Every step uses one and the same batch object, so that
trajectories, which the caller owns, are not counted. Target: `recompute` grows by at most 1.2 times what the tape must
hold, 19 copies of parameters, optimizer moments and gradient; `retain` and `reference` keep each step's activations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    at_most,
    in_fresh_process,
    interleave,
    peak_growth_bytes,
    ratio_summary,
    time_summary,
    torch_threads,
)
from metagrad.losses import OuterObjective, inner_loss, outer_loss
from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import NatureCnn, build_network
from metagrad.optimizers import Adam, ClipByGlobalNorm, constant
from metagrad.surrogates import lvc
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem, Product, inner_update

STEPS, ENVIRONMENTS, ACTIONS, SHAPE = 5, 64, 6, (4, 84, 84)
LOOK_AHEAD = 3
MEMORY_LENGTHS = (1, 20)
TIME_LIMIT, MEMORY_LIMIT = 1.05, 1.2

# The Atari setting of "A Theoretical Understanding of Gradient Bias in Meta-RL" (G.3).
DECLARATION = {
    "gamma": MetaParameter(initial=0.99),
    "lambda": MetaParameter(initial=0.95),
    "value_coefficient": MetaParameter(initial=0.5),
    "entropy_coefficient": MetaParameter(initial=0.01),
}
OPTIMIZER = ClipByGlobalNorm(max_norm=0.5, optimizer=Adam(learning_rate=constant(7e-4)))
OUTER = OuterObjective(gamma=0.99, lambda_=0.95, uses_outer_critic=True, outer_critic_coefficient=0.5)


class MetaUpdate:
    """One fixed meta-update, ready to be run in each of its forms."""

    def __init__(self, environments: int):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(0)
        network = build_network(NatureCnn(), SHAPE, ACTIONS, has_outer_critic=True)
        self.theta = network.init(generator).to(self.device)
        self.eta = init_eta(DECLARATION).to(self.device)
        self.state = OPTIMIZER.init(self.theta)
        self.batch = _random_trajectory(generator, environments, self.device)

        def loss(theta: Tensor, eta: Tensor, batch: Trajectory) -> tuple[Tensor, Any]:
            return inner_loss(network, theta, hyperparameters(DECLARATION, eta), batch, lvc, OUTER)

        self.problem = InnerProblem(loss, OPTIMIZER)
        self.outer_loss = lambda theta, batch: outer_loss(network, theta, batch, OUTER)

    def plain(self) -> None:
        """One A2C update that nobody differentiates."""
        inner_update(self.problem, self.theta, self.state, self.eta, self.batch, keep_graph=False)

    def adjoint(self, product: Product, n: int) -> Tensor:
        """Meta-gradient by the adjoint pass."""
        weights = outer_weights("n-step", n)
        theta, state, tape, outer_gradients = self.theta, self.state, [], []
        for weight in weights:
            update = inner_update(self.problem, theta, state, self.eta, self.batch, keep_graph=product == "retain")
            theta, state = update.theta, update.state
            tape.append(update.step)
            outer = outer_gradient(self.outer_loss, theta, self.batch).gradient if weight else None
            outer_gradients.append(outer)
        return meta_gradient(self.problem, tape, outer_gradients, product).eta

    def reference(self, n: int) -> Tensor:
        """Meta-gradient by one reverse pass through the whole graph."""
        outers = [(weight, self.batch) for weight in outer_weights("n-step", n)]
        return reference_meta_gradient(
            self.problem, self.outer_loss, self.theta, self.state, self.eta, [self.batch] * n, outers
        ).eta

    def form(self, name: str, n: int) -> Callable[[], Tensor]:
        """The meta-update in one of its forms."""
        match name:
            case "retain" | "recompute":
                return lambda: self.adjoint(name, n)
            case _:
                return lambda: self.reference(n)


FORMS = ("retain", "recompute", "reference")


def _random_trajectory(generator: torch.Generator, environments: int, device: torch.device) -> Trajectory:
    rows = (STEPS, environments)
    is_terminal = torch.rand(rows, generator=generator) < 0.01
    trajectory = Trajectory(
        observation=torch.randint(256, (STEPS + 1, environments, *SHAPE), generator=generator, dtype=torch.uint8),
        action=torch.randint(ACTIONS, rows, generator=generator),
        reward=torch.randn(rows, generator=generator).sign(),
        is_terminal=is_terminal,
        is_truncated=torch.zeros_like(is_terminal),
        valid=torch.ones_like(is_terminal),
        behaviour_log_prob=torch.zeros(rows),
        policy_version=0,
    )
    return Trajectory._make([x.to(device) if isinstance(x, Tensor) else x for x in trajectory])


def _peak(form: str, n: int, environments: int) -> tuple[int, int]:
    """(peak growth, size of one tape step) in bytes; runs in a fresh process."""
    with torch_threads(1):
        update = MetaUpdate(environments)
        copy = sum(x.numel() * x.element_size() for x in (update.theta, update.theta, *update.state.moments))
        return peak_growth_bytes(update.form(form, n)), copy


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Times, peaks and the two targets; quick: 2 environments and n up to 3."""
    environments = 2 if quick else ENVIRONMENTS
    short, long = (1, 3) if quick else MEMORY_LENGTHS
    with torch_threads(1):
        update = MetaUpdate(environments)
        meta_gradients = {name: update.form(name, LOOK_AHEAD)() for name in FORMS}
        for name in FORMS:
            torch.testing.assert_close(meta_gradients[name], meta_gradients["reference"], rtol=1e-2, atol=1e-7)
        cases = {"plain": update.plain} | {name: update.form(name, LOOK_AHEAD) for name in FORMS}
        timings = interleave(cases, rounds)
    time_ratio = ratio_summary(timings["retain"], timings["reference"])

    peaks = {name: [in_fresh_process(_peak, name, n, environments) for n in (short, long)] for name in FORMS}
    copies = (long - short) * peaks["recompute"][0][1]
    growth = {name: peak_long - peak_short for name, ((peak_short, _), (peak_long, _)) in peaks.items()}
    return {
        "setting": {
            "device": str(update.device),
            "network": "NatureCnn",
            "parameters": len(update.theta),
            "batch": [STEPS, environments],
            "n": LOOK_AHEAD,
        },
        "time": {name: time_summary(timings[name]) for name in cases},
        "times_one_plain_update": {name: ratio_summary(timings[name], timings["plain"]) for name in FORMS},
        "times_reference": {name: ratio_summary(timings[name], timings["reference"]) for name in FORMS[:2]},
        "memory_mib": {
            name: {f"n={n}": round(peak / 2**20, 1) for n, (peak, _) in zip((short, long), peaks[name], strict=True)}
            for name in FORMS
        },
        "memory_growth_over_tape": {name: growth[name] / copies for name in FORMS},
        "targets": [
            at_most("retain's wall time over the reference's", time_ratio["wall"]["median"], TIME_LIMIT),
            at_most(
                f"recompute's memory growth from n={short} to n={long} over {long - short} tape steps",
                growth["recompute"] / copies,
                MEMORY_LIMIT,
            ),
        ],
    }
