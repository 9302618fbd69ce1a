"""Names the tasks on which learnt rules are tested, none of which one was trained on, and scores agents in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.actors.agent_tasks import AgentTasks
from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.families import TaskEnvironment, TaskFamily
from metagrad.actors.envs.grid_world_distributions import DistributionName
from metagrad.actors.envs.grid_worlds import GridWorldFamily, GridWorlds
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.actors.envs.snake_family import SnakeFamily
from metagrad.experiments.reporting.statistics import Array
from metagrad.lifetimes import Agents, Learning, agent_logits, fresh_agents, lifetime_update
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.rule_files import StoredRule

TEST, TUNING = 1, 2  # `task_seed` of the tasks for testing, and for choosing settings; rules are trained on those of 0
ROLLOUT_LENGTH = 20  # of an agent, as in meta-training
EVALUATED = 256  # episodes of each agent

HELD_OUT: dict[str, TaskFamily] = {
    "small": GridWorldFamily(distribution="small", task_seed=TEST),
    "medium": GridWorldFamily(distribution="medium", task_seed=TEST),
    "dense": GridWorldFamily(distribution="dense", task_seed=TEST),
    "sparse": GridWorldFamily(distribution="sparse", task_seed=TEST),
    "rand_sparse": GridWorldFamily(distribution="rand_sparse", task_seed=TEST),
    "chains": DelayedChainFamily(task_seed=TEST),
    "mdps": RandomMdpFamily(task_seed=TEST),
    "catch": CatchFamily(task_seed=TEST),
    "snake": SnakeFamily(task_seed=TEST),
}
"""Families for testing; task number n of one has the seed n."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Says in which worlds rules are compared, how much their agents see there, and A2C's best settings for that."""

    distribution: DistributionName
    """Names the worlds; HELD_OUT has the family by the same name."""
    environments: int
    """Counts each agent's environments."""
    updates: int
    """Counts the updates of a life, each on ROLLOUT_LENGTH steps of every environment."""
    a2c: ObjectiveCorrection
    """Is A2C as long as its correction is 0, as it is when drawn."""
    agent: AgentConfig
    """A2C's agents."""

    @property
    def family(self) -> GridWorldFamily:
        """Return the family for testing."""
        family = HELD_OUT[self.distribution]
        assert isinstance(family, GridWorldFamily)
        return family


BUDGETS = {
    "long": Budget(
        distribution="small",
        environments=64,
        updates=250,
        a2c=ObjectiveCorrection(is_advantage_normalised=True, entropy_coefficient=0.05),
        agent=AgentConfig(tabular_policy_learning_rate=160.0),
    ),
    "short": Budget(
        distribution="small",
        environments=8,
        updates=5,
        a2c=ObjectiveCorrection(is_advantage_normalised=True, entropy_coefficient=0.05, lambda_=0.9),
        agent=AgentConfig(tabular_policy_learning_rate=160.0),
    ),
}
"""A2C's settings are the best of a grid, in worlds of their own (docs/lifetimes.md)."""


class Lived(NamedTuple):
    """Holds mean returns of N agents: new ones, which in tables act at random, at the end of life, and the best."""

    at_birth: Float[Tensor, "N"]
    at_end: Float[Tensor, "N"]
    best: Float[Tensor, "N"] | None  # None: nobody knows

    @property
    def score(self) -> Float[Tensor, "N"]:
        """Return which part of what there was to gain each agent gained: 1 less the regret, 0 at birth.

        Where the best return is not known, or nothing is to be gained, it is the gain itself.
        """
        gain = self.at_end - self.at_birth
        if self.best is None:
            return gain
        possible = self.best - self.at_birth
        return torch.where(possible > 0, gain / possible, gain)


def worlds_with_something_to_gain(family: GridWorldFamily, count: int, least: float = 0.1) -> list[int]:
    """Return the first seeds whose worlds have a best return of at least `least`: in others every rule is alike."""
    found: list[int] = []
    seeds = range(3 * count)
    best = _best(family.make_tasks(seeds=seeds, batch_size=1, device=torch.device("cpu")))
    assert best is not None, "places are fixed"
    found = [seed for seed in seeds if best[seed] >= least][:count]
    assert len(found) == count, "few worlds have less"
    return found


def live(
    stored: StoredRule,
    agent: AgentConfig,
    family: TaskFamily,
    tasks: Sequence[int],
    *,
    environments: int,
    updates: int,
    seed: int,
) -> Lived:
    """Let one new agent in each of these tasks make all updates of its life under a rule, and play before and after.

    Args:
        stored: the rule, with its weights.
        agent: networks and optimizers.
        family: what the tasks are of.
        tasks: their seeds.
        environments: of each agent.
        updates: of a life.
        seed: of all that is random in the agents and their episodes.
    """
    where = torch.device("cpu")
    seeds = [_seed(seed, task, 0) for task in tasks]
    environment = family.make_tasks(seeds=tasks, batch_size=environments, device=where, streams=seeds)
    own = AgentTasks(environment, [_seed(seed, task, 1) for task in tasks], family.is_tabular)
    learning = agent.learning(stored.rule, environment.spec, family.is_tabular)
    agents = fresh_agents(learning, [torch.Generator().manual_seed(_seed(seed, task, 2)) for task in tasks])
    play = partial(mean_returns, learning, family=family, tasks=tasks, seed=seed)
    at_birth = play(agents)
    for _ in range(updates):
        rollout = own.collect(partial(agent_logits, learning, agents.theta), ROLLOUT_LENGTH).rollout
        agents = lifetime_update(learning, stored.eta, agents, rollout, None).agents
    return Lived(at_birth, play(agents), _best(environment))


def scores(
    stored: StoredRule, agent: AgentConfig, budget: Budget, worlds: Sequence[int], seeds: Sequence[int]
) -> Array:
    """Return the scores [seeds, worlds] of agents under a rule."""
    sizes = {"environments": budget.environments, "updates": budget.updates}
    lives = (live(stored, agent, budget.family, worlds, seed=seed, **sizes) for seed in seeds)
    return np.stack([lived.score.double().numpy() for lived in lives])


def _best(environment: TaskEnvironment[Any, Any]) -> Float[Tensor, "N"] | None:
    """Return the best return of each task, None where nobody knows."""
    if isinstance(environment, GridWorlds) and environment.family.is_tabular:
        return environment.optimal_returns().to(torch.float32)
    return None


def uncorrected(rule: ObjectiveCorrection) -> StoredRule:
    """Return A2C as a rule: a correction as it is drawn, which is 0."""
    return StoredRule(rule, rule.init(torch.Generator().manual_seed(0)), {})


def mean_returns(
    learning: Learning, agents: Agents, family: TaskFamily, tasks: Sequence[int], seed: int
) -> Float[Tensor, "N"]:
    """Return the mean of the first episodes of each agent, each to its end, in environments of their own."""
    seeds = [_seed(seed, task, 3) for task in tasks]
    environment = family.make_tasks(seeds=tasks, batch_size=EVALUATED, device=torch.device("cpu"), streams=seeds)
    own = AgentTasks(environment, [_seed(seed, task, 4) for task in tasks], family.is_tabular)
    total = torch.zeros(len(tasks), EVALUATED)
    is_first = torch.ones_like(total, dtype=torch.bool)
    while is_first.any():
        rollout = own.collect(partial(agent_logits, learning, agents.theta), ROLLOUT_LENGTH).rollout
        for reward, is_end in zip(rollout.reward.unbind(1), rollout.is_terminal.unbind(1), strict=True):
            total += torch.where(is_first, reward, 0.0)
            is_first &= ~is_end
    return total.mean(1)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
