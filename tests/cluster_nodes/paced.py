"""Snake whose steps take a given time: a run lasts long enough on any machine, and leaves it time for other things."""

import dataclasses
import time
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentStep
from metagrad.actors.envs.snake import Snake, SnakeConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.experiments import EXPERIMENTS as OURS
from metagrad.networks import SnakeCnn


@dataclass(frozen=True, kw_only=True, slots=True)
class PacedSnakeConfig(SnakeConfig):
    """Snake with a pace."""

    seconds_per_step: float = 0.01

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> Snake:
        del threads, is_training
        return PacedSnake(self, batch_size, seed, device)


class PacedSnake(Snake):
    """Waits before every step."""

    def __init__(self, config: PacedSnakeConfig, batch_size: int, seed: int, device: torch.device):
        super().__init__(config, batch_size, seed, device)
        self._seconds = config.seconds_per_step

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        time.sleep(self._seconds)
        return super().step(action)


def paced_snake() -> Experiment:
    """snake-6x6 on boards of 4 x 4; two rollouts of 10 steps at 10 ms make an update of 0.2 s."""
    return dataclasses.replace(
        OURS["snake-6x6"](),
        name="paced-snake",
        description="snake on tiny boards, at a pace",
        env=PacedSnakeConfig(rows=4, columns=4, time_limit=50),
        network=SnakeCnn(channels=8, policy_hidden=16, value_hidden=16),
        environments=8,
        actors=4,
        rollout_length=10,
        log_every=1,
        learner_threads=1,
        checkpoint=CheckpointConfig(every=20, keep=3),
    )


EXPERIMENTS = {"paced-snake": paced_snake}
