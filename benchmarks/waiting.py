"""Provides environments that take time and no core: what is left to measure of a run is its coordination.

A machine with two cores steps games for two actors and no more. Here a step of a batch waits as if its games ran on
cores elsewhere, so that as many actors as memory holds work at the same time.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentConfig, EnvironmentSpec, EnvironmentStep
from metagrad.errors import require

ACTION_NAMES = ("left", "right")
EPISODE_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingConfig(EnvironmentConfig):
    """A step of a batch takes `least_s` and an exponential time of `mean_beyond_s` on average, whatever its size."""

    least_s: float = 0.01
    mean_beyond_s: float = 0.01
    features: int = 32
    """Numbers in an observation."""

    def __post_init__(self) -> None:
        for name, seconds in (("least_s", self.least_s), ("mean_beyond_s", self.mean_beyond_s)):
            is_time = 0 <= seconds < math.inf
            require(is_time, f"env.{name}", seconds, "must be a time in seconds", "use 0 or more")
        require(self.features >= 1, "env.features", self.features, "must be at least 1", "raise env.features")

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "Waiting":
        del threads, is_training
        return Waiting(self, batch_size, seed, device)

    def rollout_s(self, length: int) -> tuple[float, float]:
        """Return mean and standard deviation of the waiting in `length` steps."""
        return length * (self.least_s + self.mean_beyond_s), math.sqrt(length) * self.mean_beyond_s


class Waiting:
    """Runs B episodes of `EPISODE_STEPS` steps with SAME_STEP autoreset; random observations, reward 1 for action 1."""

    def __init__(self, config: WaitingConfig, batch_size: int, seed: int, device: torch.device):
        self._config = config
        self._delays = np.random.default_rng(seed)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._steps = 0
        self.spec = EnvironmentSpec(
            batch_size=batch_size,
            observation_shape=(config.features,),
            observation_dtype=torch.float32,
            action_names=ACTION_NAMES,
            device=torch.zeros(0, device=device).device,
            name="Waiting",
        )

    def reset(self) -> Float[Tensor, "B features"]:
        """Start all B episodes."""
        return self._observe()

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Wait, then step."""
        time.sleep(self._config.least_s + self._delays.exponential() * self._config.mean_beyond_s)
        self._steps += 1
        reward = action.to(torch.float32)
        is_terminal = torch.full(action.shape, self._steps % EPISODE_STEPS == 0, device=self.spec.device)
        return EnvironmentStep.same_step(self._observe(), reward, is_terminal)

    def close(self) -> None:
        """Nothing is held."""

    def _observe(self) -> Float[Tensor, "B features"]:
        shape = (self.spec.batch_size, self._config.features)
        return torch.rand(shape, generator=self._generator, device=self.spec.device)
