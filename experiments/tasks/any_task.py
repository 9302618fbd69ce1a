"""Defines self-tuned A2C for any task of EnvPool or Gymnasium and any grid world.

γ, λ and the entropy coefficient are learnt.
"""

from dataclasses import replace

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.gym import GymConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import AutoNetwork, Mlp
from metagrad.optimizers import Adam


def envpool() -> Experiment:
    """Return self-tuned A2C on a task of EnvPool, CartPole-v1 unless told otherwise.

    Its values are ours, chosen on CartPole-v1; no paper has them.
    """
    return Experiment(
        name="envpool",
        description="Any EnvPool task (--env.task): A2C with learnt γ, λ and entropy coefficient",
        env=EnvPoolConfig(reward_scale=0.1),
        network=AutoNetwork(),
        optimizer=Adam(learning_rate=2e-3, annealing_updates=1_000),
        meta=MetaGradientConfig(n=1, optimizer=Adam(learning_rate=3e-3, max_gradient_norm=0.1)),
        outer=OuterObjective(gamma=0.99, lambda_=0.95, critic="outer"),
        meta_parameters=A2cLoss(
            gamma=MetaParameter(initial=0.99),
            lambda_=MetaParameter(initial=0.95),
            value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=0.01, high=0.1),
        ),
        environments=16,
        rollout_length=32,
        updates=1_000,
    )


def gym() -> Experiment:
    """Return `envpool` on a Gymnasium environment, CartPole-v1 unless told otherwise."""
    return replace(
        envpool(),
        name="gym",
        description="Any Gymnasium environment (--env.id): A2C with learnt γ, λ and entropy coefficient",
        env=GymConfig(reward_scale=0.1),
    )


def grid_world() -> Experiment:
    """Return `envpool` on one of LPG's grid worlds, a small one unless told otherwise.

    Its values are ours, chosen on small worlds; no paper has them.
    """
    return replace(
        envpool(),
        name="grid-world",
        description="Any grid world of LPG's (--env.distribution): A2C with learnt γ, λ and entropy coefficient",
        env=GridWorldFamily(),
        network=Mlp(hidden=64),
        optimizer=Adam(learning_rate=5e-3),
        environments=64,
        rollout_length=20,
        updates=250,
    )
