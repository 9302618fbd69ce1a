"""Defines Catch on a board of 8 x 8 for an actor-critic, or for an agent under a learnt rule."""

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import HaikuMlp
from metagrad.optimizers import Adam, BoundedAdam


def catch_8x8() -> Experiment:
    """Return A2C with the network and optimizer of DiscoRL's public evaluation, which tunes nothing (n = 0).

    Its values are ours. docs/lifetimes.md has the options with which `--rule FILE` repeats that evaluation.
    """
    return Experiment(
        name="catch-8x8",
        description="Catch 8 x 8 with the network of DiscoRL's public evaluation: A2C, or a rule by --rule FILE",
        env=CatchFamily(min_size=8, max_size=8),
        network=HaikuMlp(),
        optimizer=BoundedAdam(learning_rate=1e-3),
        meta=MetaGradientConfig(n=0, optimizer=Adam(learning_rate=1e-3)),
        outer=OuterObjective(gamma=0.99, lambda_=0.95, critic="inner"),
        meta_parameters=A2cLoss(
            gamma=MetaParameter(initial=0.99),
            lambda_=MetaParameter(initial=0.95),
            value_coefficient=MetaParameter(initial=0.5, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=0.01),
        ),
        environments=32,
        rollout_length=14,
        updates=1_000,
        actors=1,
        topology="colocated",
    )
