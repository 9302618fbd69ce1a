"""Defines Atari with three-step meta-gradients.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.3, Table 4.
"""

from dataclasses import replace

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.atari import AtariConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import NatureCnn
from metagrad.optimizers import Adam


def atari() -> Experiment:
    """Return A2C with γ, λ, value and entropy coefficients learnt, n = 3, LVC; the paper has no outer critic."""
    return Experiment(
        name="atari",
        description="Atari, A2C with four learnt hyper-parameters, n = 3 look-ahead, LVC (the gradient-bias paper)",
        env=AtariConfig(game="Pong"),
        network=NatureCnn(hidden=512),
        optimizer=Adam(learning_rate=7e-4, annealing_updates=125_000, max_gradient_norm=0.5, eps=1e-8),
        meta=MetaGradientConfig(n=3, surrogate="lvc", optimizer=Adam(learning_rate=1e-3)),
        outer=OuterObjective(gamma=0.99, lambda_=0.95, critic="inner"),
        meta_parameters=A2cLoss(
            # Sigmoids of 4.6, 2.944, 0 and -4.6 (released code).
            gamma=MetaParameter(initial=0.99),
            lambda_=MetaParameter(initial=0.95),
            value_coefficient=MetaParameter(initial=0.5),
            entropy_coefficient=MetaParameter(initial=0.01),
        ),
        environments=64,
        rollout_length=5,
        updates=125_000,
        checkpoint=CheckpointConfig(every=1_000),
    )


def atari_released() -> Experiment:
    """Return `atari` as the paper's released code does it, where that differs from the paper.

    All three updates of a window are real, and its outer batch is the next window's first one (`sequential`); the
    critic is told the discount that its values are of, γ in the inner loss and γ' in the outer one, by 16 units and one
    layer more; the clip's coefficient is a constant of the meta-gradient. Step sizes end as there, at 0 after 125,000
    updates, of which the last two make no window of three.

    Source: github.com/Benjamin-eecs/Theoretical-GMRL, `mgrl/`, run as its README says. Deviations: that of the
    environments' time limits, which end episodes there, and here only cut them; NaN in a gradient, which becomes 0
    there, and ends the run here.
    """
    base = atari()
    return replace(
        base,
        name="atari-released",
        description="Atari, atari as in the released code: sequential, critic told the discount, constant clip",
        network=NatureCnn(hidden=512, gamma_embedding=16),
        optimizer=replace(base.optimizer, is_clip_coefficient_constant=True),
        meta=replace(base.meta, strategy="sequential"),
        updates=124_998,
    )
