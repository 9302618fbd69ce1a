"""Defines the meta-updates that the benchmark `meta_gradient` runs: two networks, and three forms of ours.

One problem for all of them and for the alternatives, which import this module or get its numbers in a file: Adam behind
a clip of the global norm, LVC, an outer critic, four learnt hyper-parameters, an outer loss after the last update. The
optimizer is in mid-run. `eps_root` is not 0: where an entry of the gradient has always been 0, as behind a dead ReLU,
the derivative of √v is infinite, which ours takes for 0 and other implementations for NaN.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import NatureCnn, NetworkSpec, SnakeCnn, build_network
from metagrad.optimizers import Adam, ClipByGlobalNorm, OptimizerState, constant
from metagrad.surrogates import lvc
from metagrad.tape import Tape, recorded
from metagrad.trees import map_tensors
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem, Product, inner_update

STEPS = 5
LENGTHS = (1, 3, 5, 10, 20)  # of the look-ahead
FORMS = ("retain", "recompute", "reference")

# The Atari setting of "A Theoretical Understanding of Gradient Bias in Meta-RL" (G.3).
A2C = A2cLoss(
    gamma=MetaParameter(initial=0.99),
    lambda_=MetaParameter(initial=0.95),
    value_coefficient=MetaParameter(initial=0.5),
    entropy_coefficient=MetaParameter(initial=0.01),
)
DECLARATION = A2C.declaration((), 0)
LEARNING_RATE, MAX_NORM = 7e-4, 0.5
ADAM = Adam(learning_rate=constant(LEARNING_RATE), eps_root=1e-8)
OPTIMIZER = ClipByGlobalNorm(max_norm=MAX_NORM, optimizer=ADAM)
OUTER = OuterObjective(gamma=0.99, lambda_=0.95, critic="outer")
UPDATES_DONE = 10  # by the optimizer, before the look-ahead


class Setting(NamedTuple):
    """Describes a network and what it sees."""

    network: NetworkSpec
    observation_shape: tuple[int, ...]
    sees_bytes: bool  # pictures 0..255; else planes of 0 and 1 in float32
    num_actions: int
    environments: int


SETTINGS: Mapping[str, Setting] = {
    "nature": Setting(NatureCnn(), (4, 84, 84), True, 6, 64),
    "snake": Setting(SnakeCnn(), (6, 6, 5), False, 4, 512),
}


class MetaUpdate:
    """One fixed meta-update, ready to be run in each of its forms. Equal arguments give equal numbers.

    Every inner step and the outer loss use one and the same batch object, so that trajectories, which the caller owns,
    are no part of what a form takes.
    """

    def __init__(self, setting: Setting):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(0)
        network = build_network(setting.network, setting.observation_shape, setting.num_actions, has_outer_critic=True)
        self.layout = network.layout
        theta = network.init(generator)
        # Second moments so large that an update moves θ little. With those of clipped gradients, near 1e-7, the
        # derivative of the random batch's updates grows sixfold from each to the next: after 20 it says nothing, and
        # differs between implementations by a tenth.
        first = 1e-4 * torch.randn(theta.shape, generator=generator)
        second = 1e-4 * (0.5 + torch.rand(theta.shape, generator=generator))
        self.theta = theta.to(self.device)
        self.state = OptimizerState(UPDATES_DONE, (first.to(self.device), second.to(self.device)))
        self.eta = init_eta(DECLARATION).to(self.device)
        self.batch = _random_trajectory(setting, generator, self.device)

        def loss(theta: Tensor, eta: Tensor, batch: Trajectory) -> tuple[Tensor, Any]:
            return A2C.inner_loss(network, theta, hyperparameters(DECLARATION, eta), batch, lvc, OUTER)

        self.problem = InnerProblem(loss, OPTIMIZER)
        self.outer_loss = lambda theta, batch: A2C.outer_loss(network, theta, {}, batch, OUTER)

    def plain(self) -> None:
        """Make one A2C update that is not differentiated."""
        inner_update(self.problem, self.theta, self.state, self.eta, self.batch, keep_graph=False)

    def adjoint(self, product: Product, n: int) -> Tensor:
        """Return the meta-gradient by the adjoint pass, as the learner runs it."""
        theta, state, outer_gradients = self.theta, self.state, []
        tape: Tape = ()
        for weight in outer_weights("n-step", n):
            update = inner_update(self.problem, theta, state, self.eta, self.batch, keep_graph=product == "retain")
            theta, state, tape = update.theta, update.state, recorded(tape, update.step)
            del update
            outer = outer_gradient(self.outer_loss, theta, self.batch).gradient if weight else None
            outer_gradients.append(outer)
        return meta_gradient(self.problem, tape, outer_gradients, product).eta

    def reference(self, n: int) -> Tensor:
        """Return the meta-gradient by one reverse pass through the whole graph."""
        outers = [(weight, self.batch) for weight in outer_weights("n-step", n)]
        return reference_meta_gradient(
            self.problem, self.outer_loss, self.theta, self.state, self.eta, [self.batch] * n, outers
        ).eta

    def form(self, name: str, n: int) -> Callable[[], Tensor]:
        """Return the meta-update in one of its forms."""
        match name:
            case "retain" | "recompute":
                return lambda: self.adjoint(name, n)
            case "reference":
                return lambda: self.reference(n)
        raise ValueError(f"form = {name!r}: must be one of {FORMS}")

    def write(self, path: Path) -> None:
        """Write all numbers of the meta-update as .npz, for a program without torch."""
        constants = {
            "lengths": LENGTHS,
            "names": self.layout.names,
            "shapes": self.layout.shapes,
            "bounds": [(x.low, x.high) for x in DECLARATION.values() if isinstance(x, MetaParameter)],
            "learning_rate": LEARNING_RATE,
            "max_norm": MAX_NORM,
            "adam": {name: getattr(ADAM, name) for name in ("beta1", "beta2", "eps", "eps_root")},
            "outer": dataclasses.asdict(OUTER),
        }
        first, second = self.state.moments
        tensors = {"theta": self.theta, "first": first, "second": second, "eta": self.eta}
        tensors |= {name: x for name, x in self.batch._asdict().items() if isinstance(x, Tensor)}
        arrays: dict[str, Any] = {name: x.cpu().numpy() for name, x in tensors.items()}
        np.savez(path, constants=json.dumps(constants), count=self.state.updates, **arrays)


def _random_trajectory(setting: Setting, generator: torch.Generator, device: torch.device) -> Trajectory:
    rows = (STEPS, setting.environments)
    is_terminal = torch.rand(rows, generator=generator) < 0.01
    pixels = torch.randint(
        256 if setting.sees_bytes else 2,
        (STEPS + 1, setting.environments, *setting.observation_shape),
        generator=generator,
        dtype=torch.uint8,
    )
    trajectory = Trajectory(
        observation=pixels if setting.sees_bytes else pixels.float(),
        action=torch.randint(setting.num_actions, rows, generator=generator),
        reward=torch.randn(rows, generator=generator).sign(),
        is_terminal=is_terminal,
        is_truncated=torch.zeros_like(is_terminal),
        valid=torch.ones_like(is_terminal),
        behaviour_log_prob=torch.zeros(rows),
        policy_version=0,
    )
    moved: Trajectory = map_tensors(lambda x: x.to(device), trajectory)
    return moved
