"""Provides environments that cost nothing: what is left to measure of a run is how its rollouts reach the learner."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentConfig, EnvironmentSpec, EnvironmentStep

FEATURES = 84 * 84  # float32: as many bytes as a stack of four pictures of Atari
_ACTIONS = tuple(f"action {i}" for i in range(6))  # as many as Pong has


@dataclass(frozen=True, kw_only=True, slots=True)
class StillConfig(EnvironmentConfig):
    """Observations of Atari's size that never change; no reward, no end."""

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "Still":
        del seed, threads, is_training
        return Still(batch_size, device)


class Still:
    """Returns the same tensors at each step."""

    def __init__(self, batch_size: int, device: torch.device):
        self.spec = EnvironmentSpec(
            batch_size=batch_size,
            observation_shape=(FEATURES,),
            observation_dtype=torch.float32,
            action_names=_ACTIONS,
            device=torch.zeros(0, device=device).device,
            name="Still",
        )
        self._observation = torch.full((batch_size, FEATURES), 0.5, device=device)
        never = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self._step = EnvironmentStep.same_step(self._observation, torch.zeros(batch_size, device=device), never)

    def reset(self) -> Float[Tensor, "B features"]:
        """Return the observation."""
        return self._observation

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Return what every step returns."""
        del action
        return self._step

    def close(self) -> None:
        """Nothing is held."""
