"""Defines an environment and a meta-parameter in one file, without changing metagrad.

    metagrad --import examples/catch.py train catch
    metagrad --import examples/catch.py eval RUN_DIR

Catch (bsuite): a ball falls down a board, one row a step, and a paddle in the last row moves to meet it; the episode
ends with +1 for a caught ball and -1 for a missed one.

The meta-parameter is how much bad news counts: advantages below 0 are multiplied by a learnt β in (0, 2), which starts
at 1, plain A2C. The engine needs no change: η is a vector, and the meta-gradient goes through whatever uses it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.losses import Terms
from metagrad.meta_parameters import Hyperparameters, MetaParameter
from metagrad.networks import Head, Mlp
from metagrad.types import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class CatchConfig(DeviceEnvironmentConfig):
    """Gives the size of the board; the default is bsuite's."""

    rows: int = 10
    columns: int = 5

    def __post_init__(self) -> None:
        self.require_whole("rows", 2)
        self.require_whole("columns", 2)

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "Catch":
        """Make B boards on `device`."""
        del threads, is_training
        return Catch(self, batch_size, seed, device)


class CatchState(NamedTuple):
    """Holds B boards."""

    row: Int64[Tensor, "B"]  # of the ball
    ball: Int64[Tensor, "B"]  # column
    paddle: Int64[Tensor, "B"]  # column


class Catch(DeviceEnvironment[CatchState]):
    """Plays B games with SAME_STEP autoreset; every draw comes from one generator."""

    def __init__(self, config: CatchConfig, batch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(
            name="Catch",
            batch_size=batch_size,
            observation_shape=(config.rows, config.columns),
            action_names=("left", "stay", "right"),
            device=device,
            seed=seed,
        )
        self._config = config

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Let the ball fall by a row and the paddle move by at most a column."""
        before = self._running()
        paddle = (before.paddle + action.to(torch.int64) - 1).clamp(0, self._config.columns - 1)
        row = before.row + 1
        is_end = row == self._config.rows - 1
        reward = torch.where(is_end, torch.where(paddle == before.ball, 1.0, -1.0), 0.0)
        moved = CatchState(row, before.ball, paddle)
        self._state = CatchState(
            *(torch.where(is_end, new, old) for new, old in zip(self._start(), moved, strict=True))
        )
        return EnvironmentStep.same_step(self.observe(), reward, is_end)

    def observe(self) -> Float[Tensor, "B rows columns"]:
        """Return boards with 1 where the ball is and where the paddle is."""
        games = self._running()
        board = torch.zeros(self.spec.batch_size, *self.spec.observation_shape, device=self.spec.device)
        index = torch.arange(self.spec.batch_size, device=self.spec.device)
        board[index, games.row, games.ball] = 1.0
        board[index, -1, games.paddle] = 1.0
        return board

    def _start(self) -> CatchState:
        shape, columns = (self.spec.batch_size,), self._config.columns
        ball = torch.randint(columns, shape, generator=self._generator, device=self.spec.device)
        return CatchState(torch.zeros_like(ball), ball, torch.full_like(ball, columns // 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class BadNewsLoss(A2cLoss):
    """Computes A2C in which advantages below 0 count β times."""

    bad_news: MetaParameter

    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return A2C's terms with weights A for A > 0, β A for A < 0."""
        terms = A2cLoss.terms(self, outputs, trajectory, hyper)
        weight = torch.where(terms.weight < 0.0, hyper["bad_news"] * terms.weight, terms.weight)
        return terms._replace(weight=weight)


def catch() -> Experiment:
    """Return A2C on Catch with γ and β learnt, three updates ahead."""
    base = snake_6x6()
    return replace(
        base,
        name="catch",
        description="Catch, A2C with a learnt discount and a learnt weight of bad news (examples/catch.py)",
        env=CatchConfig(),
        network=Mlp(hidden=64),
        optimizer=replace(base.optimizer, learning_rate=3e-3),
        meta=replace(base.meta, n=3, surrogate="lvc"),
        meta_parameters=BadNewsLoss(
            gamma=MetaParameter(initial=0.9),
            lambda_=MetaParameter(initial=0.95, is_learnt=False),
            value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=0.01, is_learnt=False),
            bad_news=MetaParameter(initial=1.0, high=2.0),
        ),
        environments=64,
        updates=600,
    )


EXPERIMENTS = {"catch": catch}
