"""Trains on a Gymnasium environment of one's own: a corridor whose end is rewarded.

metagrad --import examples/corridor.py train corridor
metagrad --import examples/corridor.py train corridor --env.vectorisation async --network.layers 1
"""

from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium import spaces

from metagrad.actors.envs.gym import GymConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.tasks.any_task import gym

LENGTH = 8


class Corridor(gymnasium.Env[Any, Any]):
    """Begins in the left half; 0 is a step to the left, 1 one to the right, and the right end is worth 1."""

    observation_space = spaces.Discrete(LENGTH)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(LENGTH // 2))
        return self.place, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; each step costs a little."""
        self.place = max(0, self.place + (1 if action else -1))
        is_end = self.place == LENGTH - 1
        return self.place, float(is_end) - 0.01, is_end, False, {}


def corridor() -> Experiment:
    """Return self-tuned A2C on corridors of at most 40 steps."""
    env = GymConfig(id=f"{__name__}:Corridor", max_episode_steps=40)
    return replace(gym(), name="corridor", description="a corridor (examples/corridor.py)", env=env)


EXPERIMENTS = {"corridor": corridor}
