"""Defines Snake 12x12 of "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning"."""

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import SnakeTorsoCnn
from metagrad.optimizers import Adam

UPDATES = 50_000  # our guess: the paper gives no length, and anneals its learning rate over it
EPS_ROOT = 1e-8  # the first author's next release has it in every Adam and RMSProp; not in this paper


def snake_12x12() -> Experiment:
    """Return the paper's 3-step agent (§3, B.2, C.2, C.3, Table 2): γ, λ and both coefficients are learnt.

    What the paper leaves open is a value here, chosen in docs/snake-12x12.md: `rollout_length`, `updates` with
    `optimizer.annealing_updates`, `lookahead`, both `eps_root`, `meta.surrogate`, and the critic's coefficient, which
    with the ½ of a squared error that eq. 3 suggests is MetaParameter(initial=.25, high=.5).
    """
    return Experiment(
        name="snake-12x12",
        description="Snake 12x12, A2C with four learnt hyper-parameters, n = 3 (One Step at a Time)",
        env=SnakeConfig(rows=12, columns=12, time_limit=5_000),  # B.2, §3.1
        network=SnakeTorsoCnn(),  # C.3
        optimizer=Adam(
            learning_rate=6e-4, annealing_updates=UPDATES, max_gradient_norm=10.0, eps_root=EPS_ROOT
        ),  # Table 2
        meta=MetaGradientConfig(
            n=3,  # the best one of Table 1
            surrogate="ad",
            optimizer=Adam(learning_rate=1e-3, max_gradient_norm=0.1, eps_root=EPS_ROOT),  # Table 2
        ),
        # Table 2. The inner critic makes the outer advantage biased, as this paper's is: the outer critic came later.
        outer=OuterObjective(gamma=0.99, lambda_=0.99, critic="inner"),
        meta_parameters=A2cLoss(  # Table 2
            gamma=MetaParameter(initial=0.99),
            lambda_=MetaParameter(initial=0.99),
            value_coefficient=MetaParameter(initial=0.5),
            entropy_coefficient=MetaParameter(initial=0.01),
        ),
        environments=32,  # Table 2: "batch size"
        rollout_length=20,
        updates=UPDATES,
    )
