"""Defines Snake 6x6 of "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function"."""

from dataclasses import replace

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import SnakeCnn
from metagrad.optimizers import Adam, RmsProp


def snake_6x6() -> Experiment:
    """Return the paper's MG agent with outer critic (Table 1, C.2, released code): only γ is learnt, from .8."""
    return Experiment(
        name="snake-6x6",
        description="Snake 6x6, A2C with a learnt discount, n = 1, outer critic (the debiasing paper)",
        env=SnakeConfig(rows=6, columns=6, time_limit=500),
        network=SnakeCnn(),
        optimizer=RmsProp(learning_rate=5e-4, decay=0.9, eps=0.0, eps_root=1e-8),
        meta=MetaGradientConfig(
            n=1,
            surrogate="ad",
            # eps_root floors the denominator at 1e-4 and so sets γ's speed: released code, not in the paper.
            optimizer=Adam(learning_rate=3e-3, max_gradient_norm=0.1, eps_root=1e-8),
        ),
        outer=OuterObjective(gamma=1.0, lambda_=1.0, critic="outer", critic_coefficient=0.5),
        meta_parameters=A2cLoss(
            gamma=MetaParameter(initial=0.8),
            lambda_=MetaParameter(initial=0.95, is_learnt=False),
            value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=0.01, is_learnt=False),
        ),
        environments=512,
        rollout_length=5,
        updates=29_346,  # 201 epochs of 146 updates
    )


def demo() -> Experiment:
    """Return a first run that shows everything in minutes: three-step look-ahead, LVC, outer critic, γ learnt."""
    paper = snake_6x6()
    return replace(
        paper,
        name="demo",
        description="Snake 6x6 in minutes on two cores: n = 3 look-ahead, LVC, outer critic, learnt discount",
        meta=replace(paper.meta, n=3, surrogate="lvc"),
        updates=1_000,
    )
