"""Holds a population: agents that live under a published update rule, each in a task of its own, and are replaced.

To a run a population is an actor, and what the learner publishes as θ are the weights of the rule. For one order each
agent makes K updates under them and is measured on one more rollout; what goes back are meta-gradients, added up over
the agents, in place of a trajectory.

Shapes: N agents of one family in this population. Random numbers belong to agents: those that two populations share do
what they would do in one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from metagrad.actors.agent_tasks import AgentTasks, Collected
from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.families import TaskFamily
from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.diagnostics import added_up
from metagrad.lifetimes import (
    Agents,
    LifetimeStep,
    agent_logits,
    fresh_agents,
    lifetime_gradient,
    lifetime_update,
    replaced,
)
from metagrad.optimizers import Adam, OptimizerState
from metagrad.trees import map_tensors, tensors
from metagrad.types import Episodes, MetaGradients, Rollout, WeightSnapshot
from metagrad.unroll import Product
from metagrad.update_rules import UpdateRule

_PURPOSES = ("task", "actions", "weights", "first lifetime")
Facts = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PopulationSetup:
    """Says how the agents of a run learn, whichever population they are in."""

    rule: UpdateRule
    agent: AgentConfig
    families: tuple[TaskFamily, ...]
    """Agent number n has tasks of family n mod F."""
    environments: int
    """Environments of one agent."""
    updates: int
    """K: updates that a meta-gradient goes through."""
    lifetime: int | None
    """Updates after which an agent is replaced; None: what its family says."""
    normaliser: Adam | None
    """Its step is what each agent's meta-gradient is replaced by, with moments of the agent's own; None: it stays."""
    product: Product


class Moments(NamedTuple):
    """Holds what the normalisers of N agents remember."""

    updates: Int64[Tensor, "N"]
    vectors: tuple[Float[Tensor, "N M"], ...]


class Brought(NamedTuple):
    """Holds what the agents of a family bring for one order."""

    gradient: Float[Tensor, "M"]  # added up over the agents
    agents: int  # over which it is
    frames: int
    lifetimes: int  # that ended
    facts: Facts
    episodes: Episodes


class Population:
    """Holds the agents of one actor, a group for each family."""

    def __init__(self, setup: ActorSetup, population: PopulationSetup):
        self.setup = setup
        share = setup.batch_size // population.environments
        numbers, count = range(setup.index * share, (setup.index + 1) * share), len(population.families)
        of_families = [[n for n in numbers if n % count == f] for f in range(count)]
        self._groups = {f: AgentGroup(setup, population, f, own) for f, own in enumerate(of_families) if own}

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        """Make K updates of all agents under the rule's weights `snapshot.theta`, and return their meta-gradients."""
        brought = [group.bring(snapshot.theta, self.setup.rollout_length) for group in self._groups.values()]
        gradients, agents, frames, lifetimes, facts, episodes = zip(*brought, strict=True)
        sent = MetaGradients(
            gradient=torch.stack(gradients).sum(0, keepdim=True),
            agents=torch.tensor([sum(agents)]),
            frames=torch.tensor([sum(frames)]),
            lifetimes=torch.tensor([sum(lifetimes)]),
            facts=added_up(facts),
            policy_version=snapshot.version,
        )
        columns = (torch.cat(column) for column in zip(*episodes, strict=True))
        return Rollout(sent, Episodes(*columns), self.setup.index, lookahead_step > 0)

    def state(self) -> ActorState:
        """Return all that a bitwise continuation needs."""
        return {f"family {f}/{name}": x for f, group in self._groups.items() for name, x in group.state().items()}

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`; an empty one leaves the fresh agents as they are."""
        for f, group in self._groups.items():
            prefix = f"family {f}/"
            own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
            if own:
                group.load_state(own)

    def close(self) -> None:
        """Close the environments."""
        for group in self._groups.values():
            group.tasks.environment.close()


class AgentGroup:
    """Holds N agents whose tasks are of one family."""

    def __init__(self, setup: ActorSetup, population: PopulationSetup, family: int, numbers: Sequence[int]):
        """Begin their first lives, which are cut short at different times so that later ones do not end together."""
        self._population, self._family, self._numbers = population, population.families[family], list(numbers)
        self._device = torch.device(setup.device)
        self._seed, self._lives = list(setup.seed), [0 for _ in numbers]
        everybody = range(len(self._numbers))
        seeds = self._seeds(everybody, "task")
        environment = self._family.make_tasks(seeds=seeds, batch_size=population.environments, device=self._device)
        self.tasks = AgentTasks(environment, self._seeds(everybody, "actions"), self._family.is_tabular)
        self._learning = population.agent.learning(population.rule, environment.spec, self._family.is_tabular)
        self._agents = self._fresh(everybody)
        # Of the first lifetime a share is left that is uniform in (0, 1].
        shares = [1.0 - np.random.default_rng(seed).random() for seed in self._seeds(everybody, "first lifetime")]
        self._left = [max(1, round(s * n)) for s, n in zip(shares, self._lifetimes(everybody), strict=True)]
        self._moments = self._fresh_moments(len(self._numbers))

    def _seeds(self, agents: Sequence[int], purpose: str) -> list[int]:
        """Return the seeds of something random in the lives that these agents are in."""
        entropy = ((*self._seed, self._numbers[i], self._lives[i], _PURPOSES.index(purpose)) for i in agents)
        return [int(np.random.SeedSequence(each).generate_state(1, np.uint64)[0]) >> 1 for each in entropy]

    def _lifetimes(self, agents: Sequence[int]) -> list[int]:
        own = self._population.lifetime
        return [self._family.lifetime(seed) if own is None else own for seed in self._seeds(agents, "task")]

    def _fresh(self, agents: Sequence[int]) -> Agents:
        generators = [torch.Generator().manual_seed(seed) for seed in self._seeds(agents, "weights")]
        fresh: Agents = map_tensors(lambda x: x.to(self._device), fresh_agents(self._learning, generators))
        return fresh

    def _fresh_moments(self, count: int) -> Moments:
        """Return the state of the normalisers of so many agents; nothing where there is none."""
        normaliser = self._population.normaliser
        if normaliser is None:
            return Moments(torch.zeros(0, dtype=torch.int64), ())
        zeros = torch.zeros(count, self._population.rule.layout.size, device=self._device)
        updates = torch.zeros(count, dtype=torch.int64, device=self._device)
        return Moments(updates, tuple(zeros.clone() for _ in normaliser.init(zeros[0]).moments))

    def bring(self, eta: Float[Tensor, "M"], length: int) -> Brought:
        """Make K updates of all agents on T steps each, measure them on T more, and replace those whose life is over.

        An agent that has become NaN is left out of the sums and replaced, and counted in `lifetimes/diverged`.

        Raises:
            EnvironmentFault: a reward was NaN or infinite.
        """
        population, learning, agents = self._population, self._learning, self._agents
        steps: list[LifetimeStep] = []
        collected: list[Collected] = []
        inner_loss = torch.zeros(len(self._numbers), device=self._device)
        for _ in range(population.updates):
            collected.append(self.tasks.collect(partial(agent_logits, learning, agents.theta), length))
            update = lifetime_update(learning, eta, agents, collected[-1].rollout, population.product)
            assert update.step is not None
            steps.append(update.step)
            agents, inner_loss = update.agents, inner_loss + update.loss / population.updates
        collected.append(self.tasks.collect(partial(agent_logits, learning, agents.theta), length))
        found = lifetime_gradient(learning, steps, agents, collected[-1].rollout)
        self._agents = found.agents
        is_finite = torch.isfinite(found.eta).all(1)
        gradient = self._normalised(found.eta).masked_fill(~is_finite[:, None], 0.0).sum(0)
        numbers = {
            "loss/inner": inner_loss,
            "loss/outer": found.outer_loss,
            "norm/agent_meta_gradient": found.eta.norm(dim=1),
        }
        numbers |= {f"regulariser/{name}": x for name, x in found.regularisers.items()}
        counted = int(is_finite.sum())
        facts = {name: (float(x[is_finite].sum()), float(counted)) for name, x in numbers.items()}
        ended = self._ended(is_finite.tolist())
        facts |= self._of_family(collected, ended) | {"lifetimes/diverged": (float(len(self._numbers) - counted), 1.0)}
        self._replace(ended)
        frames = int(torch.stack([each.rollout.valid.sum() for each in collected]).sum())
        columns = (torch.cat(column) for column in zip(*(each.episodes for each in collected), strict=True))
        return Brought(gradient, counted, frames, len(ended), facts, Episodes(*columns))

    def _normalised(self, gradient: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        """Return each agent's meta-gradient as a step of its own normaliser."""
        normaliser = self._population.normaliser
        if normaliser is None:
            return gradient

        def step(gradient: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
            nothing = torch.zeros_like(gradient)
            state = OptimizerState(moments.updates, moments.vectors)
            moved, after = normaliser.update(gradient, state, nothing, nothing)
            return -moved, Moments(torch.as_tensor(after.updates), after.moments)

        normalised: Tensor
        normalised, self._moments = vmap(step)(gradient, self._moments)
        return normalised

    def _ended(self, is_finite: Sequence[bool]) -> list[int]:
        """Count an order's updates, and return the agents whose life is over."""
        self._left = [left - self._population.updates for left in self._left]
        return [
            i for i, (left, is_well) in enumerate(zip(self._left, is_finite, strict=True)) if left <= 0 or not is_well
        ]

    def _of_family(self, collected: Sequence[Collected], ended: Sequence[int]) -> Facts:
        """Return what is logged of each family: returns of episodes, rewards per step, and rewards at a life's end."""
        place = f"families/{self.tasks.environment.spec.name}"
        returns = torch.cat([each.episodes.returns for each in collected])
        rewards = torch.stack([each.reward for each in collected])
        return {
            f"{place}/return_mean": (float(returns.sum()), float(len(returns))),
            f"{place}/reward_mean": (float(rewards.sum()), float(rewards.numel())),
            f"{place}/reward_at_end": (float(rewards[-1, list(ended)].sum()), float(len(ended))),
        }

    def _replace(self, ended: Sequence[int]) -> None:
        """Begin new lives: new tasks, random numbers and weights, and no memory of what was before."""
        if not ended:
            return
        for i in ended:
            self._lives[i] += 1
        self.tasks.redraw(ended, self._seeds(ended, "task"), self._seeds(ended, "actions"))
        self._agents = replaced(self._agents, ended, self._fresh(ended))
        if self._population.normaliser is not None:
            self._moments = replaced(self._moments, ended, self._fresh_moments(len(ended)))
        for i, lifetime in zip(ended, self._lifetimes(ended), strict=True):
            self._left[i] = lifetime

    def state(self) -> ActorState:
        """Return all that a bitwise continuation needs."""
        whole = {"seed": self._seed, "lives": self._lives, "left": self._left}
        own = {name: torch.tensor(numbers) for name, numbers in whole.items()}
        trees = {"agent": self._agents, "normaliser": self._moments}
        own |= {f"{name}/{i}": x for name, tree in trees.items() for i, x in enumerate(tensors(tree))}
        return own | {f"tasks/{name}": x for name, x in self.tasks.state().items()}

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`."""
        self._seed, self._lives, self._left = (state[name].tolist() for name in ("seed", "lives", "left"))
        self._agents = self._loaded("agent", self._agents, state)
        self._moments = self._loaded("normaliser", self._moments, state)
        prefix = "tasks/"
        self.tasks.load_state({k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)})

    def _loaded(self, name: str, like: Any, state: ActorState) -> Any:
        numbers = itertools.count()
        return map_tensors(lambda _: state[f"{name}/{next(numbers)}"].to(self._device), like)
