"""Re-exports the configurations of all environments; `make` of each makes a batch of them."""

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentConfig
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.snake_family import SnakeFamily
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig

__all__ = [
    "AtariConfig",
    "CatchFamily",
    "DelayedChainFamily",
    "DeviceEnvironmentConfig",
    "DiscountingChainConfig",
    "EnvironmentConfig",
    "GridWorldFamily",
    "IteratedPrisonersDilemmaConfig",
    "MarkovRewardProcessConfig",
    "RandomMdpFamily",
    "SnakeConfig",
    "SnakeFamily",
    "TabularMdpConfig",
]
