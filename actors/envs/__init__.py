"""Environments as configurations, and the one function that makes them."""

import torch

from actors.envs.atari import AtariConfig, make_atari
from actors.envs.base import Environment
from actors.envs.snake import Snake, SnakeConfig

EnvironmentConfig = SnakeConfig | AtariConfig


def make_environment(
    config: EnvironmentConfig,
    batch_size: int,
    seed: int,
    device: torch.device,
    threads: int,
    is_training: bool,
) -> Environment:
    """B environments of one kind; `is_training` False plays full lives (evaluation)."""
    match config:
        case SnakeConfig():
            return Snake(config, batch_size, seed, device)
        case AtariConfig():
            return make_atari(config, batch_size, seed, threads=threads, is_training=is_training)
