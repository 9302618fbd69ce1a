"""Defines what the study `self-tuning` compares: tasks, good and bad starts, and the ways to come to better values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from metagrad.actor_critic import A2cLoss
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.sweeps.population import MOST_MEMBERS, Population, without_meta_gradient
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.tasks.any_task import envpool
from metagrad.learner.config import BootstrapConfig, MetaGradientConfig
from metagrad.losses import Critic
from metagrad.meta_gradient import Estimator
from metagrad.meta_parameters import MetaParameter
from metagrad.optimizers import Adam

MEMBERS = 8
"""Runs of a random search, and members of a population."""
BAD = 10.0
"""The factor by which the bad start is off in learning rate (too small) and entropy coefficient (too large)."""
BAD_GAMMA = 0.8
REACH = 10.0
"""How far η can go with n = 0 in the place of n: Adam's step for η is this over the batches of the task, which is
the 3e-3 of `envpool` at about its length. With n = 3 η can go a quarter as far, which is the decade of a bad start."""
GENERATIONS = 10
ROWS = 20  # of a run's curve


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaGradientArm:
    """Represents one kind of meta-gradient."""

    n: int
    critic: Critic
    estimator: Estimator = "n-step"
    target: int = 0
    """Updates to a bootstrapped target; 0: none."""

    @property
    def batches(self) -> int:
        """Count the batches of rollouts that an update takes, look-ahead included."""
        return 1 + self.n + self.target

    def of(self, base: Experiment, rate: float) -> Experiment:
        """Return the experiment that learns by this meta-gradient, with Adam's step `rate` for η."""
        return replace(
            base,
            meta=MetaGradientConfig(
                n=self.n,
                estimator=self.estimator,
                optimizer=Adam(learning_rate=rate, max_gradient_norm=0.1),
                bootstrap=BootstrapConfig(updates=self.target),
            ),
            outer=replace(base.outer, critic=self.critic),
        )


META_GRADIENTS: Mapping[str, MetaGradientArm] = {
    "mg-n1": MetaGradientArm(n=1, critic="inner"),
    "mg-n3": MetaGradientArm(n=3, critic="inner"),
    "mg-mix3": MetaGradientArm(n=3, critic="inner", estimator="mix"),
    "mg-outer-n1": MetaGradientArm(n=1, critic="outer"),
    "mg-outer-n3": MetaGradientArm(n=3, critic="outer"),
    "mg-outer-mix3": MetaGradientArm(n=3, critic="outer", estimator="mix"),
    "bmg-outer-n1": MetaGradientArm(n=1, critic="outer", target=1),
    "bmg-outer-n3": MetaGradientArm(n=3, critic="outer", target=1),
}
ARMS = ("fixed", "search", "population", *META_GRADIENTS)
STARTS = ("good", "bad")


def _on(task: str, environments: int, rollout_length: int, learning_rate: float = 2e-3) -> Experiment:
    base = envpool()
    return replace(
        base,
        env=EnvPoolConfig(task=task, reward_scale=0.1 if task != "Catch-v0" else 1.0),
        environments=environments,
        rollout_length=rollout_length,
        optimizer=replace(base.optimizer, learning_rate=learning_rate, annealing_updates=None),
    )


TASKS = {
    "catch": lambda: _on("Catch-v0", 128, 10, 5e-3),
    "cartpole": lambda: _on("CartPole-v1", 16, 32),
    "snake-6x6": snake_6x6,
    "acrobot": lambda: _on("Acrobot-v1", 16, 32),
}
"""Experiments whose step size does not fall: the first part of a long run is then a short one."""
BATCHES = {"catch": 320, "cartpole": 1_600, "snake-6x6": 3_000, "acrobot": 1_600}
"""Batches of rollouts that each way may take, look-ahead and all runs of a search or population included."""


def base_experiment(task: str, start: str) -> Experiment:
    """Return a task's experiment with γ, λ, entropy coefficient and learning rate learnt, from good or bad values."""
    base = TASKS[task]()
    losses, rate = base.meta_parameters, base.optimizer.learning_rate
    assert isinstance(rate, float)
    assert isinstance(losses, A2cLoss)
    entropy = losses.entropy_coefficient.initial
    is_bad = start == "bad"
    gamma = BAD_GAMMA if is_bad else 0.99
    return replace(
        base,
        meta_parameters=replace(
            losses,
            gamma=MetaParameter(initial=gamma),
            lambda_=MetaParameter(initial=0.95),
            entropy_coefficient=MetaParameter(initial=entropy * BAD if is_bad else entropy),
        ),
        optimizer=replace(
            base.optimizer, learning_rate=MetaParameter(initial=rate / BAD if is_bad else rate, high=0.1)
        ),
        actors=1,
        topology="colocated",
        learner_threads=1,
    )


def population_of(task: str, start: str, seed: int, batches: int) -> Population:
    """Return the population of a seed, whose members as they start are also the runs of the random search."""
    updates = batches // MEMBERS
    base = replace(without_meta_gradient(base_experiment(task, start)), seed=seed, updates=updates)
    return Population(experiment=_kept(base), size=MEMBERS, every=-(-updates // GENERATIONS))


def run_of(task: str, start: str, arm: str, seed: int, batches: int, member: int = 0) -> Experiment:
    """Return one training run of a way: a member of the search, or the only run of another way."""
    if arm == "search":
        return population_of(task, start, seed, batches).member(member)
    base = base_experiment(task, start)
    experiment = (
        META_GRADIENTS[arm].of(base, REACH / BATCHES[task]) if arm in META_GRADIENTS else without_meta_gradient(base)
    )
    seed *= MOST_MEMBERS  # that of the first member of the search
    return _kept(replace(experiment, seed=seed, updates=batches // batches_of(arm)))


def batches_of(arm: str) -> int:
    """Count the batches for an update of a way, or for one of each of its members."""
    if arm in META_GRADIENTS:
        return META_GRADIENTS[arm].batches
    return MEMBERS if arm in ("search", "population") else 1


def _kept(experiment: Experiment) -> Experiment:
    """Return the experiment with what is logged and kept of a part."""
    log_every = max(1, experiment.updates // ROWS)
    return replace(experiment, log_every=log_every, checkpoint=CheckpointConfig(every=5 * log_every, keep=2))
