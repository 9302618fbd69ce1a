"""Defines Pong for few cores: small standardised pictures, and sixteen updates of each batch."""

from metagrad.actor_critic import VtraceLoss
from metagrad.actors.envs.atari import AtariConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter, fixed
from metagrad.networks import NatureCnn
from metagrad.optimizers import Adam

_REUSE, _MINIBATCHES = 4, 4
_EACH = _REUSE * _MINIBATCHES
_UPDATES = 2_440 * _EACH  # 2,498,560 decisions


def pong() -> Experiment:
    """Return an actor-critic with V-trace and PPO's clip, which tunes nothing (n = 0) unless it is told to.

    With `--meta.n 1` it tunes γ, λ, value and entropy coefficients as `atari` does.

    Batches, step size and clip are those that public implementations of PPO have for Atari (Schulman et al. (2017),
    "Proximal Policy Optimization Algorithms", Table 5, has twice the rollout length and half the environments). Unlike
    PPO, a minibatch has whole rollouts; V-trace looks at the newest critic in each update, in place of advantages that
    are computed once; nothing clips the critic. Pictures have 44 x 44 pixels and are standardised: divided by 255, as
    is usual, they are all but the same, and the first updates, which learn the mean return from what they share, leave
    most units dead (docs/results.md).
    """
    return Experiment(
        name="pong",
        description="Pong for few cores: V-trace, PPO's clip, small standardised pictures, 16 updates a batch",
        env=AtariConfig(game="Pong", frame_size=44),
        network=NatureCnn(hidden=256, is_standardised=True),
        optimizer=Adam(learning_rate=2.5e-4, annealing_updates=_UPDATES, max_gradient_norm=0.5, eps=1e-5),
        meta=MetaGradientConfig(n=0, optimizer=Adam(learning_rate=1e-3)),
        outer=OuterObjective(gamma=0.99, lambda_=0.95, critic="inner"),
        meta_parameters=VtraceLoss(
            gamma=MetaParameter(initial=0.99),
            lambda_=MetaParameter(initial=0.95),
            policy_coefficient=fixed(1.0),
            value_coefficient=MetaParameter(initial=0.25),
            entropy_coefficient=MetaParameter(initial=0.01),
            rho_clip=fixed(1.0),
            c_clip=fixed(1.0),
            is_advantage_normalised=True,
            policy_clip=0.1,
        ),
        environments=16,
        rollout_length=64,
        reuse=_REUSE,
        minibatches=_MINIBATCHES,
        updates=_UPDATES,
        actors=1,
        actor_threads=2,
        topology="colocated",
        log_every=10 * _EACH,
        checkpoint=CheckpointConfig(every=100 * _EACH),
    )
