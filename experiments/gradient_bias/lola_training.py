"""Makes LOLA an algorithm of the training loop: both players look ahead at one another, in games that actors play.

One update of both players' tables (θ₁, θ₂), for K looked-ahead updates of the opponent:

    games under (θ₁, θ₂), real                               the score; the opponents' first virtual updates
    for each player p and j = 1…K-1: (θ_p, θ₋ₚ after j)       the opponent's next virtual update
    for each player p:               (θ_p, θ₋ₚ after K)       the player's own objective, and its table of values

Games that an exact place needs none of are not played; the real ones always are. Both players look at the same real
games, which leaves the mean of each one's estimate as it is. `metagrad.experiments.gradient_bias.lola` says what is
estimated, and how.

Shapes: tables of both players [2, 5], T steps, B games; games are codes as in
`metagrad.experiments.gradient_bias.ipd_games`.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.2 and Table 3. Deviation: the tables of values,
which the release trains on outer games, learn from the real games where the outer gradient is exact and plays none.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad.actors.envs.iterated_prisoners_dilemma import START, STATE_NAMES
from metagrad.experiments.gradient_bias.ipd_games import (
    JOINT,
    STATES,
    Games,
    ValueTarget,
    other_code,
    rewards,
    value_gradient,
)
from metagrad.experiments.gradient_bias.lola import Data, Estimation, inner_problem, outer_loss
from metagrad.learner.algorithm import Clock, Sample, UpdateMetrics, fetched, finite_scalars
from metagrad.learner.plain_data import is_finite, is_like
from metagrad.monte_carlo import Sampler
from metagrad.networks import Network
from metagrad.opponent_shaping import ShapingGradients, shaping_gradients
from metagrad.optimizers import Optimizer, OptimizerState
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot

PLAYERS = (1, 2)  # as they are named to people
WATCHED = ("start", "CC")  # the states of lasting cooperation


class LolaState(NamedTuple):
    """State in, state out: nothing here is changed in place."""

    update: int  # updates done
    version: int  # of the next published snapshot
    theta: Float[Tensor, "10"]  # both players' rows
    optimizer: OptimizerState
    values: Float[Tensor, "10"]  # both players' tables of values
    value_optimizer: OptimizerState

    @property
    def held_batches(self) -> int:
        """Return 0: no games wait for the next update."""
        return 0


def codes(trajectory: Trajectory) -> Int64[Tensor, "T B"]:
    """Return games of the joint environment as player 0 sees them; rollouts are whole games."""
    return JOINT * trajectory.observation[:-1].argmax(-1) + trajectory.action


class _ActorGames:
    """Games of one update; every pair of policies is published under a version of its own, the first one is real."""

    def __init__(self, sample: Sample, version: int, clock: Clock) -> None:
        self._sample = sample
        self._clock = clock
        self._first = self.version = version

    def under(self, pair: Float[Tensor, "2 5"], rollouts: int) -> Int64[Tensor, "T B"]:
        """Return the codes of so many rollouts."""
        snapshot = WeightSnapshot(self.version, pair.flatten(), pair.new_empty(0))
        self._clock.lap("shaping")
        code = [codes(self._sample(snapshot, self.version - self._first)) for _ in range(rollouts)]
        self._clock.lap("sample")
        self.version += 1
        return torch.cat(code, dim=1)


@dataclass(frozen=True, slots=True)
class Lola:
    """Trains two players, each of whom improves its objective through the other's learning.

    With K = 0 they are independent learners.
    """

    network: Network
    estimation: Estimation
    look_ahead: int
    inner_rollouts: int  # of each virtual update that is not exact
    value_target: ValueTarget
    optimizer: Optimizer
    value_optimizer: Optimizer

    def init(self, seed: int, device: torch.device) -> LolaState:
        theta = self.network.init(torch.Generator().manual_seed(seed)).to(device, torch.float64)
        values = torch.zeros_like(theta)
        return LolaState(0, 0, theta, self.optimizer.init(theta), values, self.value_optimizer.init(values))

    def update(self, state: LolaState, sample: Sample) -> tuple[LolaState, UpdateMetrics]:
        """Update both players at once, each against what the other one would become.

        Raises:
            NonFinite: names the quantity and the update.
        """
        clock = Clock()
        games = _ActorGames(sample, state.version, clock)
        pair, values = state.theta.view(2, STATES), state.values.view(2, STATES)
        is_inner_sampled = self.look_ahead > 0 and self.estimation.value != "exact"
        real = games.under(pair, self.inner_rollouts if is_inner_sampled else 1)
        sampler = self._sampler(pair, values, real, games)
        gradients = shaping_gradients(
            inner_problem(self.estimation), outer_loss(self.estimation), sampler, pair.flip(0), pair, self.look_ahead
        )
        new = state._replace(update=state.update + 1, version=games.version)
        outer = gradients.outer_batch.outer
        if outer is not None or is_inner_sampled:
            seen = _both_views(real) if outer is None else outer.code
            slope = value_gradient(values, seen, self.estimation.gamma, self.value_target).flatten()
            tables, optimizer = self.value_optimizer.update(slope, state.value_optimizer, state.values, state.values)
            new = new._replace(values=tables, value_optimizer=optimizer)
        # Component by component, so that each player has an optimizer of its own.
        theta, optimizer = self.optimizer.update(gradients.total.flatten(), state.optimizer, state.theta, state.theta)
        new = new._replace(theta=theta, optimizer=optimizer)
        clock.lap("shaping")
        return new, self._metrics(new, pair, real, gradients, clock)

    def _sampler(
        self, pair: Float[Tensor, "2 5"], values: Float[Tensor, "2 5"], real: Int64[Tensor, "T B"], games: _ActorGames
    ) -> Sampler:
        """Collect both learners' data at every θⱼ of their opponents: for virtual updates, then for the objectives."""

        def played(other: Tensor, j: int, rollouts: int) -> Games:
            if j == 0:
                return Games(_both_views(real))
            pairs = torch.stack([pair[0], other[0]]), torch.stack([other[1], pair[1]])
            first, second = (games.under(both, rollouts) for both in pairs)
            return Games(torch.stack([first, other_code(second)]))

        def data(other: Tensor, j: int) -> Data:
            if j == self.look_ahead:
                outer = None if self.estimation.outer == "exact" else played(other, j, 1)
                return Data(None, None, outer, values, None)
            inner = None if self.estimation.value == "exact" else played(other, j, self.inner_rollouts)
            return Data(inner, None, None, None, values.flip(0))

        return data

    def _metrics(
        self, new: LolaState, pair: Tensor, real: Tensor, gradients: ShapingGradients, clock: Clock
    ) -> UpdateMetrics:
        """Log rewards of the real games, losses and gradients at their policies, and the new policies."""
        reward = [rewards(code, pair.dtype).mean() for code in (real, other_code(real))]
        tensors = {f"reward/player_{p}_per_step": x for p, x in zip(PLAYERS, reward, strict=True)}
        tensors["reward/mean_per_step"] = (reward[0] + reward[1]) / 2
        batch, loss = gradients.outer_batch, outer_loss(self.estimation)
        for row, player in enumerate(PLAYERS):
            outer = None if batch.outer is None else Games(batch.outer.code[row])
            own = Data(None, None, outer, batch.own_values[row], None)
            tensors[f"loss/player_{player}"] = loss(gradients.opponent[row], pair[row], own)[0]
        tensors |= {
            "norm/direct_gradient": gradients.direct.norm(),
            "norm/shaping_gradient": gradients.shaping.norm(),
            "norm/theta": new.theta.norm(),
        }
        for (player, state), probability in _cooperation(new).items():
            when = "at_start" if state == STATE_NAMES[START] else f"after_{state}"
            tensors[f"cooperation/player_{player}_{when}"] = probability
        scalars = finite_scalars(tensors, new.update)
        clock.lap("metrics")
        return UpdateMetrics(scalars | clock.scalars(), ())

    def shown(self, state: LolaState) -> dict[str, float]:
        """Return the probability that player 1 or 2 cooperates, by state; its own action first."""
        return fetched({f"cooperation_{player}_{name}": x for (player, name), x in _cooperation(state).items()})

    def learnt(self, state: LolaState) -> dict[str, float]:
        """Select those in the states of lasting cooperation."""
        return {name: x for name, x in self.shown(state).items() if name.endswith(WATCHED)}

    def to_tree(self, state: LolaState) -> dict[str, Any]:
        return {
            "update": state.update,
            "version": state.version,
            "theta": state.theta,
            "moments": torch.stack(state.optimizer.moments),
            "values": state.values,
            "value_moments": torch.stack(state.value_optimizer.moments),
            "value_updates": state.value_optimizer.updates,
        }

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> LolaState:
        moved = map_tensors(lambda x: x.to(device), tree)
        return LolaState(
            update=moved["update"],
            version=moved["version"],
            theta=moved["theta"],
            optimizer=OptimizerState(moved["update"], tuple(moved["moments"])),
            values=moved["values"],
            value_optimizer=OptimizerState(moved["value_updates"], tuple(moved["value_moments"])),
        )

    def misfit(self, tree: Any) -> str | None:
        for name, expected in self.to_tree(self.init(0, torch.device("cpu"))).items():
            found: Any = tree.get(name) if isinstance(tree, dict) else None
            if not is_like(found, expected) or (name in ("theta", "values") and not is_finite(found)):
                return name
        return None


def _both_views(code: Int64[Tensor, "T B"]) -> Int64[Tensor, "2 T B"]:
    """Return the same games as both players see them."""
    return torch.stack([code, other_code(code)])


def _cooperation(state: LolaState) -> dict[tuple[int, str], Tensor]:
    """Return P(cooperate | s) by player and name of the state."""
    rows = torch.sigmoid(-state.theta).view(2, STATES)
    return {
        (p, name): x for p, row in zip(PLAYERS, rows, strict=True) for name, x in zip(STATE_NAMES, row, strict=True)
    }
