"""Defines the experiments in which an update rule is learnt over the lifetimes of many agents in tasks of their own.

Source: Jackson et al. (2023), "Discovering General Reinforcement Learning Algorithms with Adversarial Environment
Design" (GROOVE), for LPG's settings; they have 512 agents. Oh et al. (2025), "Discovering state-of-the-art
reinforcement learning algorithms" (DiscoRL), for those of the public meta-training of its rule on Catch.
"""

from dataclasses import replace

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.disco import DiscoRule
from metagrad.lpg import Lpg
from metagrad.objective_correction import ObjectiveCorrection
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


def lifetimes_families() -> LifetimesExperiment:
    """Return `lifetimes` over three families: agents are in grid worlds, random MDPs and delayed chains by turns."""
    return replace(
        lifetimes(),
        name="lifetimes-families",
        description="The same over three families of tasks: grid worlds, random MDPs, delayed chains",
        other_families=(RandomMdpFamily(), DelayedChainFamily()),
        agents=66,
        environments=66 * 64,
    )


def lifetimes_correction() -> LifetimesExperiment:
    """Return a correction of A2C on the worlds of `lifetimes`; its values are ours, no paper has them."""
    return replace(
        lifetimes(),
        name="lifetimes-correction",
        description="A correction of A2C's loss that starts at A2C, learnt over lifetimes in grid worlds",
        rule=ObjectiveCorrection(),
        meta_optimizer=Adam(learning_rate=1e-3, max_gradient_norm=0.5),
    )


def lifetimes_disco() -> LifetimesExperiment:
    """Return DiscoRL's rule on Catch 5 x 5, with two agents whose meta-gradients are normalised one by one.

    Deviations from the public meta-training: agents have a hidden layer for each output instead of a shared torso and
    an LSTM over actions, and plain Adam.
    """
    return replace(
        lifetimes(),
        name="lifetimes-disco",
        description="DiscoRL's rule, learnt over the lifetimes of two agents in Catch 5 x 5",
        env=CatchFamily(min_size=5, max_size=5),
        rule=DiscoRule(),
        agents=2,
        environments=2 * 32,
        rollout_length=16,
        inner_updates=2,
        updates=800,
        agent=AgentConfig(learning_rate=5e-4, value_learning_rate=1e-3, lambda_=0.96),
        meta_optimizer=Adam(learning_rate=5e-4),
        is_normalised_per_agent=True,
    )
