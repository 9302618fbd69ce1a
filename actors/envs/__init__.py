"""Environments as configurations, and the one function that makes them."""

import torch

from actors.envs.atari import AtariConfig, make_atari
from actors.envs.base import Environment
from actors.envs.discounting_chain import DiscountingChain, DiscountingChainConfig
from actors.envs.markov_reward_process import MarkovRewardProcess, MarkovRewardProcessConfig
from actors.envs.snake import Snake, SnakeConfig
from actors.envs.tabular_mdp import TabularMdp, TabularMdpConfig

DeviceEnvironmentConfig = SnakeConfig | TabularMdpConfig | MarkovRewardProcessConfig | DiscountingChainConfig
"""Environments that are tensor operations on any torch device, and whose state can be copied."""

EnvironmentConfig = DeviceEnvironmentConfig | AtariConfig


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
        case TabularMdpConfig():
            return TabularMdp(config, batch_size, seed, device)
        case MarkovRewardProcessConfig():
            return MarkovRewardProcess(config, batch_size, seed, device)
        case DiscountingChainConfig():
            return DiscountingChain(config, batch_size, seed, device)
        case AtariConfig():
            return make_atari(config, batch_size, seed, threads=threads, is_training=is_training)
