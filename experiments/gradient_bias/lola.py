"""Computes LOLA-DiCE on the iterated prisoner's dilemma: exact and sampled objectives, and where the samples come from.

Both players are learners, and the game is symmetric, so one set of functions serves both: everything is seen by a
learner ("own"), whose opponent is the "other" one. In the terms of `metagrad.opponent_shaping` the learner's own
parameters are the meta-parameters η, and the other's are θ of the inner problem.

An estimate has three places, as in the paper's tabular study: the value of the opponent's update, its derivative (the
Hessian), and the outer gradient. Each is exact or from games; the first two also from a ring of older games.

Shapes: N learners, B games, T steps; games as in `metagrad.experiments.gradient_bias.ipd_games`.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.2, A.2, G.2, and its released code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.actors.envs.iterated_prisoners_dilemma import STEPS
from metagrad.errors import require
from metagrad.experiments.gradient_bias.ipd_games import (
    JOINT,
    STATES,
    Games,
    Ring,
    exact_value,
    fresh_games,
    joint_log_prob,
    other_code,
    rewards,
)
from metagrad.monte_carlo import Sampler
from metagrad.optimizers import Sgd, constant
from metagrad.surrogates import dice, off_policy_dice
from metagrad.unroll import InnerProblem

GAMMA = 0.96  # Table 3
INNER_LEARNING_RATE = 0.3  # Table 3
BATCH_SIZE = 128  # Table 3
RING_SIZE = 1024  # Table 3, "off-policy buffer size"

Source = int | Literal["exact", "ring"]
"""Of an estimate: so many fresh games, no game at all, or those of the ring."""
STREAMS = ("value", "derivative", "outer", "ring", "score")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimation:
    """Says how a LOLA gradient is estimated; the defaults are Table 3's."""

    value: Source = BATCH_SIZE
    """Of the opponent's update."""
    derivative: Source | Literal["same"] = "same"
    """Of that update's derivative; "same": the very games of its value. Everything else has games of its own."""
    outer: int | Literal["exact"] = BATCH_SIZE
    has_inner_baseline: bool = True
    """The opponent's table of values in the inner objective; the outer one always has the learner's."""
    learning_rate: float = INNER_LEARNING_RATE
    gamma: float = GAMMA
    steps: int = STEPS
    """Rounds of a game; exact objectives never end."""

    def __post_init__(self) -> None:
        sources = {"value": ("exact", "ring"), "derivative": ("exact", "ring", "same"), "outer": ("exact",)}
        for name, words in sources.items():
            source = getattr(self, name)
            is_known = source in words if isinstance(source, str) else source >= 1
            require(is_known, name, source, f"must be a number of games or one of {words}", "choose one")
        is_split_ring = self.value == self.derivative == "ring"
        require(not is_split_ring, "derivative", "ring", "cannot be apart from a value of the ring", 'write "same"')
        require(0.0 <= self.gamma < 1.0, "gamma", self.gamma, "must lie in [0, 1)", "lower it")

    @property
    def uses_ring(self) -> bool:
        """True if some estimate uses older games."""
        return "ring" in (self.value, self.derivative)

    @property
    def is_exact(self) -> bool:
        """True if no estimate uses games, so that there is no baseline to learn either."""
        return self.value == self.outer == "exact" and self.derivative in ("exact", "same")


class Data(NamedTuple):
    """Holds what is evaluated at one θ. Games are None where a place is exact or not looked at; values: no baseline."""

    value: Games | None
    derivative: Games | None
    outer: Games | None
    own_values: Float[Tensor, "*N 5"] | None
    other_values: Float[Tensor, "*N 5"] | None


def dice_objective(
    own: Float[Tensor, "5"],
    other: Float[Tensor, "5"],
    games: Games,
    values: Float[Tensor, "5"] | None,
    gamma: float,
    of_other: bool,
) -> Float[Tensor, ""]:
    """Return the DiCE objective of games that the learner `own` sees: its own, or the other player's with `of_other`.

    Both players' log probabilities are in the products, so mixed derivatives are unbiased.
    """
    code = games.code
    log_prob = joint_log_prob(own, other).gather(0, code.flatten()).view_as(code)
    by_code = torch.arange(STATES * JOINT, device=code.device)
    seen = other_code(by_code) if of_other else by_code  # what the player whose objective it is sees
    reward = rewards(seen, log_prob.dtype)[code]
    value = None if values is None else values[seen // JOINT].gather(0, code.flatten()).view_as(code)
    if games.behaviour_log_prob is None:
        return dice(log_prob, reward, gamma, value)
    return off_policy_dice(log_prob, games.behaviour_log_prob, reward, gamma, value)


def inner_problem(estimation: Estimation) -> InnerProblem:
    """Return the opponent's learning, θ' = θ + α ∇J₂(θ, η); η is the learner's own parameters, batches are `Data`."""

    def loss_at(place: Literal["value", "derivative"]) -> Callable[[Tensor, Tensor, Data], tuple[Tensor, None]]:
        def loss(theta: Tensor, eta: Tensor, data: Data) -> tuple[Tensor, None]:
            games: Games | None = getattr(data, place)
            if games is None:
                return -exact_value(theta, eta, estimation.gamma), None
            return -dice_objective(eta, theta, games, data.other_values, estimation.gamma, of_other=True), None

        return loss

    derivative = None if estimation.derivative == "same" else loss_at("derivative")
    return InnerProblem(loss_at("value"), Sgd(learning_rate=constant(estimation.learning_rate)), derivative)


def outer_loss(estimation: Estimation) -> Callable[[Tensor, Tensor, Data], tuple[Tensor, None]]:
    """Return the learner's own objective against the looked-ahead opponent, -J₁(η, θ_K)."""

    def loss(theta: Tensor, eta: Tensor, data: Data) -> tuple[Tensor, None]:
        if data.outer is None:
            return -exact_value(eta, theta, estimation.gamma), None
        return -dice_objective(eta, theta, data.outer, data.own_values, estimation.gamma, of_other=False), None

    return loss


def streams(seed: int) -> dict[str, torch.Generator]:
    """Make a separate generator for each purpose."""
    entropy = np.random.SeedSequence(seed).generate_state(len(STREAMS), np.uint64) >> np.uint64(1)
    return {name: torch.Generator().manual_seed(int(number)) for name, number in zip(STREAMS, entropy, strict=True)}


class Learners(NamedTuple):
    """Holds N learners at one moment, with all that their estimates depend on."""

    players: Sequence[int]  # 0 or 1: which of the two each one is
    own: Float[Tensor, "N 5"]
    own_values: Float[Tensor, "N 5"] | None  # None: no baseline
    other_values: Float[Tensor, "N 5"] | None


def data_sampler(
    estimation: Estimation,
    learners: Learners,
    look_ahead: int,
    generators: dict[str, torch.Generator],
    ring: Ring | None = None,
) -> Sampler:
    """Return a sampler of data at every θⱼ of the opponents: for their updates at j < K, for the outer objective at K.

    An update that looks at the ring first pushes `BATCH_SIZE` games of its own.
    """
    own = learners.own

    def games(other: Tensor, place: str, source: Source | Literal["same"]) -> Games | None:
        if isinstance(source, int):
            return Games(fresh_games(own, other, estimation.steps, source, generators[place]))
        if source != "ring":
            return None
        assert ring is not None, "an estimate from the ring needs one"
        code = fresh_games(own, other, estimation.steps, BATCH_SIZE, generators["ring"])
        log_prob = joint_log_prob(own, other).gather(-1, code.flatten(1)).view_as(code)
        seen = [ring.look_ahead(player, code[n], log_prob[n]) for n, player in enumerate(learners.players)]
        return Games(*(torch.stack(field) for field in zip(*seen, strict=True)))

    def sample(other: Tensor, j: int) -> Data:
        if j == look_ahead:
            return Data(None, None, games(other, "outer", estimation.outer), learners.own_values, None)
        value = games(other, "value", estimation.value)
        derivative = games(other, "derivative", estimation.derivative)
        baseline = learners.other_values if estimation.has_inner_baseline else None
        return Data(value, derivative, None, None, baseline)

    return sample
