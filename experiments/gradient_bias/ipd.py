"""Defines experiment `ipd`: two learners of the iterated prisoner's dilemma, through the actor-learner system.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.2, G.2, Table 3.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.rollout import LookaheadEnvironments
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.errors import require
from metagrad.experiments.gradient_bias.ipd_games import ValueTarget
from metagrad.experiments.gradient_bias.ipd_study import OUTER_LEARNING_RATE, UPDATES, VALUE_LEARNING_RATE
from metagrad.experiments.gradient_bias.lola import BATCH_SIZE, GAMMA, INNER_LEARNING_RATE, Estimation
from metagrad.experiments.gradient_bias.lola_training import Lola
from metagrad.networks import MemoryOnePair, build_network
from metagrad.optimizers import Adam, constant

Estimate = Literal["sampled", "exact"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LolaExperiment(BaseExperiment):
    """Trains two players at the same time, each through virtual updates of the other."""

    env: IteratedPrisonersDilemmaConfig
    network: MemoryOnePair
    lookahead: LookaheadEnvironments = "separate"
    """Where games of looked-ahead policies are played; the return is that of the real ones alone unless `continue`."""
    opponent_updates: int = 1
    """Virtual updates of the opponent that a player looks through; 0: independent learners."""
    inner: Estimate = "sampled"
    """The opponent's virtual updates: from games, or from the exact value."""
    outer: Estimate = "sampled"
    """A player's own objective against the opponent that comes out: from games, or the exact value."""
    inner_rollouts: int = 8
    """Rollouts that each virtual update is estimated from; the paper's 128 games alone do not lead to cooperation."""
    inner_learning_rate: float = INNER_LEARNING_RATE
    """Step size of a virtual update."""
    learning_rate: float = OUTER_LEARNING_RATE
    """Step size of Adam for each player's table."""
    value_target: ValueTarget = "return-to-go"
    """What the tables of values, baselines of sampled objectives, regress on; the paper's release has the reward."""
    value_learning_rate: float = VALUE_LEARNING_RATE
    """Step size of Adam for each player's table of values."""
    gamma: float = GAMMA
    """Discount of both players' objectives."""

    def __post_init__(self) -> None:
        BaseExperiment.__post_init__(self)
        steps = self.env.steps
        rule = f"must be a game's {steps} steps (env.steps): objectives are of whole games"
        require(
            self.rollout_length == steps, "rollout_length", self.rollout_length, rule, f"use --rollout-length {steps}"
        )
        ahead = self.opponent_updates
        require(ahead >= 0, "opponent_updates", ahead, "must be 0 or more", "0 makes independent learners")
        rollouts = self.inner_rollouts
        require(rollouts >= 1, "inner_rollouts", rollouts, "must be at least 1", "use --inner exact for no games")
        for name in ("inner_learning_rate", "learning_rate", "value_learning_rate"):
            rate = getattr(self, name)
            require(0.0 < rate < math.inf, name, rate, "must be positive and finite", "the paper's is the default")
        require(0.0 <= self.gamma < 1.0, "gamma", self.gamma, "must lie in [0, 1)", "the paper has 0.96")
        self._check_unused()

    def _check_unused(self) -> None:
        """Refuse options that this run would not look at; their defaults are no choice and pass."""
        looks, is_inner_exact, is_outer_exact = self.opponent_updates > 0, self.inner == "exact", self.outer == "exact"
        has_games_ahead = looks and not (is_outer_exact and (is_inner_exact or self.opponent_updates == 1))
        nobody = "has no effect without a look-ahead (opponent_updates = 0)"
        no_values = "is of baselines of sampled objectives, and no objective here is sampled"
        is_sampled = not is_outer_exact or (looks and not is_inner_exact)
        for is_used, name, rule in (
            (looks, "inner", nobody),
            (looks, "inner_rollouts", nobody),
            (looks, "inner_learning_rate", nobody),
            (not is_inner_exact, "inner_rollouts", "belongs to --inner sampled"),
            (is_sampled, "value_target", no_values),
            (is_sampled, "value_learning_rate", no_values),
            (has_games_ahead, "lookahead", "no game of looked-ahead policies is played in this run"),
        ):
            default = next(f.default for f in fields(self) if f.name == name)
            value = getattr(self, name)
            require(is_used or value == default, name, value, rule, "leave it out")

    @property
    def estimation(self) -> Estimation:
        """Says what is exact and what is sampled, in the terms of the study."""
        return Estimation(
            value="exact" if self.inner == "exact" else self.inner_rollouts * self.environments,
            outer="exact" if self.outer == "exact" else self.environments,
            learning_rate=self.inner_learning_rate,
            gamma=self.gamma,
            steps=self.rollout_length,
        )

    def algorithm(self, spec: EnvironmentSpec) -> Lola:
        sizes = (spec.observation_shape, spec.actions)
        return Lola(
            network=build_network(self.network, *sizes, self.has_outer_critic, self.resolved_precision),
            estimation=self.estimation,
            look_ahead=self.opponent_updates,
            inner_rollouts=self.inner_rollouts,
            value_target=self.value_target,
            optimizer=Adam(learning_rate=constant(self.learning_rate)),
            value_optimizer=Adam(learning_rate=constant(self.value_learning_rate)),
        )


def ipd() -> LolaExperiment:
    """Return Table 3 with eight times the games of an opponent's update: 128 do not lead to cooperation."""
    env = IteratedPrisonersDilemmaConfig()
    return LolaExperiment(
        name="ipd",
        description="Iterated prisoner's dilemma, LOLA-DiCE: both players look through the other's learning",
        env=env,
        network=MemoryOnePair(),
        environments=BATCH_SIZE,
        rollout_length=env.steps,
        updates=UPDATES,
    )
