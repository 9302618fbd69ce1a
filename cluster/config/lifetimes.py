"""Configures the training of an update rule over a population of agents; the fields are command-line options."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import tyro

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.envs.families import TaskFamily
from metagrad.actors.population import Population, PopulationSetup
from metagrad.actors.rollout import ActorSetup, AnyActor
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.errors import require, require_one_of
from metagrad.learner.rule_learner import RuleLearner
from metagrad.networks import LinearPolicy, NetworkSpec
from metagrad.optimizers import Adam
from metagrad.rule_files import AnyRule
from metagrad.unroll import Product

_MOST_INNER_UPDATES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class LifetimesExperiment(BaseExperiment):
    """Trains an update rule on the lifetimes of many agents, each with a task, weights and random numbers of its own.

    What is trained are the weights of the rule; actors are populations that share the agents out.
    """

    env: TaskFamily
    network: tyro.conf.Suppress[NetworkSpec] = LinearPolicy()
    """Unused: agents have the networks that `agent` says."""
    environments: int
    """Number of environments of all agents together, shared out evenly among them."""
    rollout_length: int
    """Steps T of every environment per update of an agent."""
    updates: int
    """Meta-updates of the rule to train for."""
    other_families: tyro.conf.Suppress[tuple[TaskFamily, ...]] = ()
    """Families of tasks beside env; agent number n has tasks of family n mod F."""
    rule: AnyRule
    agents: int
    """Number of agents, shared out evenly among the actors; an actor is a population."""
    agent: AgentConfig = AgentConfig()
    inner_updates: int = 5
    """Updates K of every agent for one meta-update, which the meta-gradient goes through; one more rollout scores the
    agent."""
    lifetime: int | None = None
    """Updates after which an agent is replaced by a fresh one in a new task, rounded up to a multiple of inner_updates;
    None: as its family has it. First lifetimes are cut short at random, so that not all end together."""
    meta_optimizer: Adam
    is_normalised_per_agent: bool = False
    """True: each agent's meta-gradient is replaced by the step of an Adam of its own before the mean (DiscoRL); False:
    the plain mean."""
    product: Product = "recompute"
    """recompute: build each update's graph again, for memory that hardly grows with inner_updates; retain: keep all
    graphs."""

    def __post_init__(self) -> None:
        self._check_agents()
        BaseExperiment.__post_init__(self)
        updates, rule = self.inner_updates, f"must lie in [1, {_MOST_INNER_UPDATES:,}]"
        require(1 <= updates <= _MOST_INNER_UPDATES, "inner_updates", updates, rule, "GROOVE uses 5")
        lifetime = self.lifetime
        rule = f"an agent makes at least the inner_updates = {updates} of one meta-update"
        require(
            lifetime is None or lifetime >= updates, "lifetime", lifetime, rule, f"use --lifetime {updates} or more"
        )
        require_one_of(self.product, Product, "product")
        rate = self.meta_optimizer.learning_rate
        is_number = isinstance(rate, int | float)
        require(is_number, "meta_optimizer.learning_rate", rate, "is a number, and learnt by nobody", "give a number")
        self._check_unused()

    def _check_agents(self) -> None:
        """Refuse agents that cannot be shared out among actors, and environments among agents."""
        for name, of in (("agents", "actors"), ("environments", "agents")):
            count, parts = getattr(self, name), max(1, getattr(self, of))
            is_multiple = count >= 1 and count % parts == 0
            remedy = f"use --{name} {max(1, round(count / parts)) * parts}"
            require(is_multiple, name, count, f"must be a positive multiple of {of} = {parts}", remedy)

    def _check_unused(self) -> None:
        """Refuse options that mean nothing where a rule is trained; their defaults are no choice and pass."""
        rule_of = {
            "lookahead": "is of virtual updates, and agents make real ones",
            "precision": "agents and rule compute in float32",
            "actor_processes": "an actor steps its agents side by side in one process",
        }
        defaults = {field.name: field.default for field in fields(BaseExperiment)}
        for name, rule in rule_of.items():
            value = getattr(self, name)
            remedy = "use more --actors" if name == "actor_processes" else "leave it out"
            require(value == defaults[name], name, value, rule, remedy)
        every, rule = self.evaluation.every, "plays a policy, and a rule is none"
        remedy = "leave it out; metagrad export writes the rule, and --rule FILE trains an agent with it"
        require(not every, "evaluation.every", every, rule, remedy)
        constant = self.meta_optimizer.is_clip_coefficient_constant
        rule = "is about meta-gradients, and nothing is differentiated through this optimizer"
        require(not constant, "meta_optimizer.is_clip_coefficient_constant", constant, rule, "leave it out")

    @property
    def population(self) -> PopulationSetup:
        """Return what every population is told."""
        return PopulationSetup(
            rule=self.rule,
            agent=self.agent,
            families=self.families,
            environments=self.least_environments,
            updates=self.inner_updates,
            lifetime=self.lifetime,
            normaliser=Adam(learning_rate=1.0) if self.is_normalised_per_agent else None,
            product=self.product,
        )

    @property
    def families(self) -> tuple[TaskFamily, ...]:
        """Return all families."""
        return (self.env, *self.other_families)

    def algorithm(self, spec: EnvironmentSpec) -> RuleLearner:
        return RuleLearner(self.rule, self.meta_optimizer)

    def parameters(self, spec: EnvironmentSpec) -> int:
        return self.rule.layout.size

    @property
    def actor_type(self) -> Callable[[ActorSetup], AnyActor]:
        """Return populations."""
        return partial(Population, population=self.population)

    @property
    def kinds_of_actors(self) -> int:
        """Return after how many actors their agents are of the same families again."""
        return len(self.families) // math.gcd(len(self.families), self.agents // self.actors)

    @property
    def takes_processes(self) -> bool:
        """Return False: a population is one process."""
        return False

    @property
    def rollouts_per_order(self) -> int:
        """Count those of K updates, and the one that scores."""
        return self.inner_updates + 1

    @property
    def least_environments(self) -> int:
        """Return the environments of one agent."""
        return self.environments // self.agents

    @property
    def bytes_sent(self) -> int:
        """Count the bytes of one meta-gradient for each actor."""
        return self.actors * 4 * self.rule.layout.size

    @property
    def has_policy(self) -> bool:
        """Return False: what is trained is a rule."""
        return False
