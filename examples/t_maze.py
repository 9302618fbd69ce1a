"""Trains on a maze that needs memory: a signal at its start says where to turn at its end.

    metagrad --import examples/t_maze.py train t-maze
    metagrad --import examples/t_maze.py train t-maze --network.gru None    # can only guess

The T-maze of Bakker (2002): a corridor whose first place shows a signal and whose end is a junction. Turning there as
the signal said is worth 1, turning the other way -1, and any turn before it costs .1 and leads nowhere. All places of
the corridor look alike, so without memory the best is 0 on average.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.tasks.any_task import gym
from metagrad.networks import Mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class TMazeConfig(DeviceEnvironmentConfig):
    """Gives the length of the corridor and of an episode."""

    length: int = 6
    """Steps from the signal to the junction."""
    time_limit: int = 24
    """Steps after which an episode ends without a reward."""

    def __post_init__(self) -> None:
        self.require_whole("length", 1)
        self.require_whole("time_limit", self.length + 1)

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "TMaze":
        """Make B mazes on `device`."""
        del threads, is_training
        return TMaze(self, batch_size, seed, device)


class TMazeState(NamedTuple):
    """Holds B mazes."""

    place: Int64[Tensor, "B"]  # steps from the start
    goes_up: Bool[Tensor, "B"]  # what the signal says
    age: Int64[Tensor, "B"]  # steps of the episode


class TMaze(DeviceEnvironment[TMazeState]):
    """Walks B mazes with SAME_STEP autoreset."""

    def __init__(self, config: TMazeConfig, batch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(
            name="TMaze",
            batch_size=batch_size,
            observation_shape=(4,),
            action_names=("forward", "up", "down"),
            device=device,
            seed=seed,
        )
        self._config = config

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Go forward, or turn."""
        before, age = self._running(), self._running().age + 1
        is_at_junction, turns = before.place == self._config.length, action > 0
        is_right = (action == 1) == before.goes_up
        reward = torch.where(turns, torch.where(is_at_junction, 2.0 * is_right - 1.0, -0.1), 0.0)
        is_end = (turns & is_at_junction) | (age == self._config.time_limit)
        moved = TMazeState((before.place + ~turns).clamp(max=self._config.length), before.goes_up, age)
        self._state = TMazeState(
            *(torch.where(is_end, new, old) for new, old in zip(self._start(), moved, strict=True))
        )
        return EnvironmentStep.same_step(self.observe(), reward, is_end)

    def observe(self) -> Float[Tensor, "B 4"]:
        """Return what is seen: the signal up or down at the start, the corridor, or the junction."""
        place, goes_up, _ = self._running()
        is_start, is_junction = place == 0, place == self._config.length
        seen = (is_start & goes_up, is_start & ~goes_up, ~is_start & ~is_junction, is_junction)
        return torch.stack(seen, -1).float()

    def _start(self) -> TMazeState:
        shape, device = (self.spec.batch_size,), self.spec.device
        goes_up = torch.randint(2, shape, generator=self._generator, device=device) == 1
        none = torch.zeros(shape, dtype=torch.int64, device=device)
        return TMazeState(none, goes_up, none)


def t_maze() -> Experiment:
    """Return self-tuned A2C on T-mazes, with a GRU of 32 units."""
    base = gym()
    return replace(
        base,
        name="t-maze",
        description="a maze that needs memory, with a GRU (examples/t_maze.py)",
        env=TMazeConfig(),
        network=Mlp(hidden=32, gru=32),
        optimizer=replace(base.optimizer, learning_rate=5e-3),
        environments=32,
        rollout_length=32,
        updates=500,
    )


EXPERIMENTS = {"t-maze": t_maze}
