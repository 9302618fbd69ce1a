"""Defines experiment `lifetimes`: an update rule is learnt over the lifetimes of many agents in worlds of their own.

Source: Jackson et al. (2023), "Discovering General Reinforcement Learning Algorithms with Adversarial Environment
Design" (GROOVE), for LPG's settings; they have 512 agents.
"""

from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.lpg import Lpg
from metagrad.optimizers import Adam


def lifetimes() -> LifetimesExperiment:
    """Return LPG on small tabular grid worlds, with a population for one machine."""
    return LifetimesExperiment(
        name="lifetimes",
        description="LPG: an update rule, learnt over the lifetimes of agents in small grid worlds",
        env=GridWorldFamily(distribution="small"),
        rule=Lpg(),
        agents=64,
        environments=64 * 64,
        rollout_length=20,
        updates=5_000,
        meta_optimizer=Adam(learning_rate=1e-4, max_gradient_norm=0.5),
    )
