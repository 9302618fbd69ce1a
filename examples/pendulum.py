"""Trains on Pendulum-v1: a swing-up with one continuous action, by updates that use each batch forty times.

    metagrad --import examples/pendulum.py train pendulum

V-trace with PPO's clip on normalised observations and rewards; γ and λ are learnt. The values are ours, near those that
public implementations of PPO have for this task (γ' = .9, no entropy bonus, ten passes over each batch).
"""

from dataclasses import replace

from metagrad.actor_critic import VtraceLoss
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.tasks.any_task import envpool
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter, fixed
from metagrad.optimizers import Adam

BATCHES, REUSE, MINIBATCHES = 90, 10, 4
UPDATES = BATCHES * REUSE * MINIBATCHES


def pendulum() -> Experiment:
    """Return the experiment: 144,000 frames, 90 batches of 32 environments and 50 steps."""
    return replace(
        envpool(),
        name="pendulum",
        description="Pendulum-v1: V-trace, PPO's clip, 40 updates a batch; γ and λ are learnt",
        env=EnvPoolConfig(task="Pendulum-v1"),
        optimizer=Adam(learning_rate=2e-3, annealing_updates=UPDATES, max_gradient_norm=0.5),
        outer=OuterObjective(gamma=0.9, lambda_=0.95, critic="outer"),
        meta_parameters=VtraceLoss(
            gamma=MetaParameter(initial=0.9),
            lambda_=MetaParameter(initial=0.95),
            policy_coefficient=fixed(1.0),
            value_coefficient=fixed(0.5),
            entropy_coefficient=fixed(0.0),
            rho_clip=fixed(1.0),
            c_clip=fixed(1.0),
            is_advantage_normalised=True,
            policy_clip=0.2,
        ),
        is_observation_normalised=True,
        is_reward_normalised=True,
        environments=32,
        rollout_length=50,
        reuse=REUSE,
        minibatches=MINIBATCHES,
        updates=UPDATES,
        actors=1,
        topology="colocated",
        log_every=5 * REUSE * MINIBATCHES,
    )


EXPERIMENTS = {"pendulum": pendulum}
