"""Environments as configurations, and the one function that makes them."""

import torch

from actors.envs.atari import AtariConfig
from actors.envs.base import DeviceEnvironmentConfig, Environment, EnvironmentConfig
from actors.envs.discounting_chain import DiscountingChainConfig
from actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from actors.envs.markov_reward_process import MarkovRewardProcessConfig
from actors.envs.snake import SnakeConfig
from actors.envs.tabular_mdp import TabularMdpConfig

__all__ = [
    "AtariConfig",
    "DeviceEnvironmentConfig",
    "DiscountingChainConfig",
    "EnvironmentConfig",
    "IteratedPrisonersDilemmaConfig",
    "MarkovRewardProcessConfig",
    "SnakeConfig",
    "TabularMdpConfig",
    "make_environment",
]


def make_environment(
    config: EnvironmentConfig,
    batch_size: int,
    seed: int,
    device: torch.device,
    threads: int,
    is_training: bool,
) -> Environment:
    """B environments of one kind; `is_training` False plays full lives (evaluation)."""
    return config.make(batch_size, seed, device, threads, is_training)
