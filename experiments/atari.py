"""Atari with three-step meta-gradients: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.3, Table 4."""

from metagrad.actors.envs.atari import AtariConfig
from metagrad.cluster.config import Experiment
from metagrad.cluster.run_config import CheckpointConfig
from metagrad.learner.config import MetaGradientConfig, OuterConfig
from metagrad.learner.meta_parameters import A2cParameters
from metagrad.learner.optimizer_config import AdamConfig
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import NatureCnn


def atari() -> Experiment:
    """A2C with γ, λ, value and entropy coefficients learnt, n = 3, LVC; the paper's agent has no outer critic."""
    return Experiment(
        name="atari",
        description="Atari, A2C with four learnt hyper-parameters, n = 3 look-ahead, LVC (the gradient-bias paper)",
        env=AtariConfig(game="Pong"),
        network=NatureCnn(hidden=512),
        optimizer=AdamConfig(learning_rate=7e-4, annealing_updates=125_000, max_gradient_norm=0.5, eps=1e-8),
        meta=MetaGradientConfig(n=3, surrogate="lvc", optimizer=AdamConfig(learning_rate=1e-3)),
        outer=OuterConfig(gamma=0.99, lambda_=0.95, critic="inner"),
        meta_parameters=A2cParameters(
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
