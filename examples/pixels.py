"""Defines an environment with pictures for metagrad's `NatureCnn`, and an outer loss, in one file.

    metagrad --import examples/pixels.py train walls
    metagrad --import examples/pixels.py train walls --network.hidden 256 --env.walls 20 --outer.caution 1

Walls with a gap fall down the picture, one cell a step, and the player below moves to be in the gap: +1 for each wall
that passes; the game ends at the first one that hits the player, or after `walls` of them.

The outer loss is cautious: outer advantages below 0 count `caution` times, so that the discount is tuned for a policy
that avoids mistakes more than it seeks luck. Value, entropy and KL terms are options (`--outer.kl-coefficient 1`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.losses import Estimates, OuterObjective
from metagrad.networks import Head, NatureCnn
from metagrad.types import Trajectory

CELLS, PIXELS = 9, 4  # cells per side and pixels per cell: 36 x 36 pixels, the least that NatureCnn takes


@dataclass(frozen=True, kw_only=True, slots=True)
class WallsConfig(DeviceEnvironmentConfig):
    """Gives the length of a game."""

    walls: int = 10

    def __post_init__(self) -> None:
        self.require_whole("walls", 1)

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "Walls":
        """Make B games on `device`."""
        del threads, is_training
        return Walls(self, batch_size, seed, device)


class WallsState(NamedTuple):
    """Holds B games."""

    row: Int64[Tensor, "B"]  # of the wall
    gap: Int64[Tensor, "B"]  # column of the hole in it
    player: Int64[Tensor, "B"]  # column
    passed: Int64[Tensor, "B"]  # walls so far


class Walls(DeviceEnvironment[WallsState]):
    """Plays B games with SAME_STEP autoreset."""

    def __init__(self, config: WallsConfig, batch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(
            name="Walls",
            batch_size=batch_size,
            observation_shape=(1, CELLS * PIXELS, CELLS * PIXELS),
            observation_dtype=torch.uint8,
            action_names=("left", "stay", "right"),
            device=device,
            seed=seed,
        )
        self._config = config

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Let the wall fall by a cell and the player move by at most one."""
        before, fresh = self._running(), self._start()
        player = (before.player + action.to(torch.int64) - 1).clamp(0, CELLS - 1)
        row = before.row + 1
        has_landed = row == CELLS - 1
        is_passed = has_landed & (player == before.gap)
        passed = before.passed + is_passed.to(torch.int64)
        is_end = has_landed & (~is_passed | (passed == self._config.walls))
        self._state = WallsState(
            row=torch.where(has_landed, fresh.row, row),
            gap=torch.where(has_landed, fresh.gap, before.gap),
            player=torch.where(is_end, fresh.player, player),
            passed=torch.where(is_end, fresh.passed, passed),
        )
        return EnvironmentStep.same_step(self.observe(), is_passed.to(torch.float32), is_end)

    def observe(self) -> UInt8[Tensor, "B 1 height width"]:
        """Draw the wall and the player in white on black."""
        games = self._running()
        cells = torch.zeros(self.spec.batch_size, 1, CELLS, CELLS, dtype=torch.uint8, device=self.spec.device)
        index = torch.arange(self.spec.batch_size, device=self.spec.device)
        cells[index, 0, games.row] = 255
        cells[index, 0, games.row, games.gap] = 0
        cells[index, 0, -1, games.player] = 255
        return cells.repeat_interleave(PIXELS, dim=-2).repeat_interleave(PIXELS, dim=-1)

    def _start(self) -> WallsState:
        gap = torch.randint(CELLS, (self.spec.batch_size,), generator=self._generator, device=self.spec.device)
        return WallsState(torch.zeros_like(gap), gap, torch.full_like(gap, CELLS // 2), torch.zeros_like(gap))


@dataclass(frozen=True, kw_only=True, slots=True)
class CautiousObjective(OuterObjective):
    """Weighs outer advantages below 0 more than those above."""

    caution: float = 2.0
    """How many times an advantage below 0 counts."""

    def loss(
        self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, estimates: Estimates
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the usual outer loss with the weighted advantages."""
        advantage = estimates.advantage
        weighted = torch.where(advantage < 0.0, self.caution * advantage, advantage)
        return OuterObjective.loss(self, outputs, trajectory, estimates._replace(advantage=weighted))


def walls() -> Experiment:
    """Return A2C on pictures with a learnt discount, tuned for a cautious objective."""
    base = snake_6x6()
    return replace(
        base,
        name="walls",
        description="Walls, your own pictures on NatureCnn, a cautious outer loss (examples/pixels.py)",
        env=WallsConfig(),
        network=NatureCnn(hidden=64),
        optimizer=replace(base.optimizer, learning_rate=2e-3),
        outer=CautiousObjective(gamma=1.0, lambda_=0.95, critic="outer"),
        environments=32,
        updates=600,
    )


EXPERIMENTS = {"walls": walls}
