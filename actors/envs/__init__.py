"""Environments as configurations, and the one function that makes them."""

import torch

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import DeviceEnvironmentConfig, Environment, EnvironmentConfig
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig

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
