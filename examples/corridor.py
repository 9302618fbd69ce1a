"""Trains on your own Gymnasium environment: a corridor with a reward at its end.

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
    """Walks left (action 0) or right (1) from a start in the left half; the right end gives a reward of 1."""

    observation_space = spaces.Discrete(LENGTH)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(LENGTH // 2))
        return self.place, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move by one place, at a cost of .01."""
        self.place = max(0, self.place + (1 if action else -1))
        is_end = self.place == LENGTH - 1
        return self.place, float(is_end) - 0.01, is_end, False, {}


def corridor() -> Experiment:
    """Return self-tuned A2C on corridors of at most 40 steps."""
    env = GymConfig(id=f"{__name__}:Corridor", max_episode_steps=40)
    return replace(gym(), name="corridor", description="a corridor (examples/corridor.py)", env=env)


EXPERIMENTS = {"corridor": corridor}
