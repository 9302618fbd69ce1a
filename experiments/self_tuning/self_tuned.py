"""Defines self-tuned agents of published systems, beyond the papers of this project, as values of other experiments."""

from dataclasses import replace

from metagrad.actor_critic import VtraceLoss
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.meta_parameters import MetaParameter, fixed
from metagrad.networks import ImpalaCnn, Mlp, NatureCnn
from metagrad.optimizers import Adam, RmsProp

_START = 0.99  # sigmoid(4.6), where Zahavy et al. (2020) start every meta-parameter


def _up_to(high: float) -> MetaParameter:
    """Declare a meta-parameter that is learnt between 0 and its usual value, from close below the latter."""
    return MetaParameter(initial=_START * high, high=high)


def stacx() -> Experiment:
    """Return `atari` with IMPALA's V-trace loss, of which seven hyper-parameters are learnt; n = 1, outer critic.

    Source: Zahavy et al. (2020), "A Self-Tuning Actor-Critic Algorithm" (STACX): which hyper-parameters are learnt,
    each coefficient between 0 and its usual value, all started at .99 of it, one look-ahead update, Adam. Deviations:
    the clips are learnt themselves instead of leaky V-trace's mixture; the outer loss is the policy gradient alone:
    their value loss, entropy bonus and KL divergence between the policies after and before the update are the options
    `--outer.value-coefficient`, `--outer.entropy-coefficient` and `--outer.kl-coefficient`; no auxiliary heads; the
    outer advantage is the outer critic's (the debiasing paper's remedy, which they lack); all
    other values, step sizes included, are those of `atari`. Rollouts are lockstep's: every ratio is 1, so that ρ̄ < 1
    scales the TD errors and the policy's gradient, and c̄ < 1 the traces.
    """
    base = atari()
    return replace(
        base,
        name="stacx",
        description="Atari, V-trace actor-critic with seven learnt hyper-parameters, n = 1, outer critic (STACX)",
        meta=replace(base.meta, n=1),
        outer=replace(base.outer, critic="outer"),
        meta_parameters=VtraceLoss(
            gamma=_up_to(1.0),
            lambda_=_up_to(1.0),
            policy_coefficient=_up_to(1.0),
            value_coefficient=_up_to(0.5),
            entropy_coefficient=_up_to(0.01),
            rho_clip=_up_to(1.0),
            c_clip=_up_to(1.0),
        ),
    )


def stacx_impala() -> Experiment:
    """Return `stacx` with IMPALA's residual network."""
    return replace(
        stacx(),
        name="stacx-impala",
        description="Atari, stacx with IMPALA's residual network",
        network=ImpalaCnn(),
    )


def lirpg_atari() -> Experiment:
    """Return `atari` with a learnt intrinsic reward (LIRPG) and nothing else learnt; n = 1, outer critic.

    Source: Zheng, Oh & Singh (2018), "On Learning Intrinsic Rewards for Policy Gradient Methods": values of the
    released code, 50 million agent steps. Deviations: the reward network is moved by Adam instead of RMSProp, begins
    near 0 (gain .01, theirs 1) and shares nothing with the critic of the environment's reward, which is the outer
    critic; the outer gradient comes from fresh rollouts at the looked-ahead parameters, where theirs weighs the same
    rollout by π_θ'/π_θ; RMSProp's second moment starts at 0, where TensorFlow's starts at 1.
    """
    base, updates = atari(), 625_000  # of 16 x 5 steps
    return replace(
        base,
        name="lirpg-atari",
        description="Atari, A2C with a learnt intrinsic reward, n = 1, outer critic (LIRPG)",
        optimizer=RmsProp(
            learning_rate=7e-4, decay=0.99, eps_root=1e-5, annealing_updates=updates, max_gradient_norm=0.5
        ),
        meta=replace(
            base.meta,
            n=1,
            optimizer=Adam(learning_rate=7e-4, annealing_updates=updates, max_gradient_norm=0.5),
        ),
        outer=replace(base.outer, gamma=0.99, lambda_=1.0, critic="outer"),
        meta_parameters=IntrinsicRewardLoss(
            gamma=fixed(0.99),
            lambda_=fixed(1.0),
            value_coefficient=fixed(0.25),  # theirs is 0.5, of half the squared error
            entropy_coefficient=fixed(0.01),
            extrinsic_coefficient=fixed(1.0),
            intrinsic_coefficient=fixed(0.01),
            reward_network=NatureCnn(hidden=512),
        ),
        environments=16,
        updates=updates,
    )


def lirpg_snake() -> Experiment:
    """Return `snake-6x6` with a learnt intrinsic reward (LIRPG) beside the learnt discount.

    Source: Zheng, Oh & Singh (2018), "On Learning Intrinsic Rewards for Policy Gradient Methods", whose Snake this is
    not: a small MLP for the reward, and c_in = .1 (theirs .01, of rewards that come more often). The meta-optimizer is
    Adam with the step size of `lirpg-atari`, as the floor of `snake-6x6`'s, 1e-4, is far above the 1e-7 that a weight's
    gradient has, and would leave it where it is; the discount moves faster for it.
    """
    base = snake_6x6()
    return replace(
        base,
        name="lirpg-snake",
        description="Snake 6x6, snake-6x6 with a learnt intrinsic reward as well (LIRPG)",
        meta=replace(base.meta, optimizer=Adam(learning_rate=7e-4, max_gradient_norm=0.1)),
        meta_parameters=IntrinsicRewardLoss(
            gamma=MetaParameter(initial=0.8),
            lambda_=fixed(0.95),
            value_coefficient=fixed(0.5),
            entropy_coefficient=fixed(0.01),
            extrinsic_coefficient=fixed(1.0),
            intrinsic_coefficient=fixed(0.1),
            reward_network=Mlp(hidden=64),
        ),
    )
