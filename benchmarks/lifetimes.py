"""Measures updates of tabular agents under a learnt rule per second, side by side and one by one, and peak memory.

Each agent makes 5 updates on rollouts of 20 steps, and its meta-gradient is taken: the whole of a meta-step but the
environments. Agents see 100 states and 5 actions, in random rollouts. Three ways to the same gradients, on one thread:

    batched        all agents at once (`metagrad.lifetimes`), `retain`, since the loops keep their graphs too
    loop           the same code, one agent at a time
    written loop   what one would write by hand for one agent (`benchmarks.lifetimes_alone`)

The loops run for a few of the agents, and their time is counted per agent; that they compute the same is asserted
beforehand. CPU time of the process is what is compared. Memory: peak growth of a process that runs nothing else, of
`recompute` and `retain` over K = 20 updates, beside one reverse pass through all of them.

Targets. Batched: at least 20 times as many agents' updates per second as the faster loop, with 256 agents of 4
environments. `recompute` at K = 20: at most a fifth of the memory of the whole graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Timing, at_most, in_fresh_process, interleave, peak_growth_bytes, summary, torch_threads
from benchmarks.lifetimes_alone import Alone
from metagrad.agent_networks import TabularAgent, per_head
from metagrad.lifetimes import (
    Agents,
    Learning,
    fresh_agents,
    lifetime_gradient,
    lifetime_update,
    reference_lifetime_gradient,
    taken,
)
from metagrad.lpg import Lpg
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.optimizers import Adam, Sgd
from metagrad.unroll import Product
from metagrad.update_rules import LifetimeRollout, UpdateRule

STATES, ACTIONS, STEPS, UPDATES = 100, 5, 20, 5
LONG = 20  # updates whose memory is measured
IN_LOOPS = 4  # agents of the loops
SPEEDUP, MEMORY_LIMIT = 20.0, 1 / 5
RULES: dict[str, UpdateRule] = {"correction": ObjectiveCorrection(), "lpg, 32 units": Lpg(units=32)}
FORMS = ("retain", "recompute", "whole graph")


class Size(NamedTuple):
    """Says how many agents there are, and environments of each."""

    agents: int
    environments: int

    def __str__(self) -> str:
        return f"{self.agents} agents x {self.environments} environments"


SIZES = (Size(64, 4), Size(256, 4), Size(256, 16))
PROMISED = Size(256, 4)
IN_MEMORY = Size(32, 16)


class Population:
    """Holds agents in the middle of nowhere, and rollouts for them."""

    def __init__(self, rule: UpdateRule, size: Size, updates: int):
        generator = torch.Generator().manual_seed(0)
        network = TabularAgent(states=STATES, heads=rule.heads(ACTIONS))
        sgd = {head: Sgd(learning_rate=1.0, max_gradient_norm=0.5) for head in network.heads}
        self.learning = Learning(
            rule=rule,
            network=network,
            optimizer=per_head(network, sgd),
            value_network=TabularAgent(states=STATES, heads={"value": ()}),
            value_optimizer=Adam(learning_rate=0.01),
        )
        self.eta = rule.init(generator)
        self.eta = self.eta + 0.01 * torch.randn(self.eta.shape, generator=generator)  # a correction of 0 is constant
        self.agents = fresh_agents(self.learning, [generator] * size.agents)
        self.rollouts = [self._rollout(size, generator) for _ in range(updates + 1)]

    @staticmethod
    def _rollout(size: Size, generator: torch.Generator) -> LifetimeRollout:
        lead, batch = size.agents, size.environments
        return LifetimeRollout(
            observation=torch.randint(STATES, (lead, STEPS + 1, batch), generator=generator),
            action=torch.randint(ACTIONS, (lead, STEPS + 1, batch), generator=generator),
            reward=torch.randn(lead, STEPS, batch, generator=generator),
            is_terminal=torch.rand(lead, STEPS, batch, generator=generator) < 0.05,
            valid=torch.ones(lead, STEPS, batch, dtype=torch.bool),
            behaviour_logits=torch.zeros(lead, STEPS + 1, batch, ACTIONS),
        )

    def batched(self, rows: slice = slice(None), product: Product = "retain") -> Tensor:
        """Return ∂J/∂η of these agents, all at once."""
        agents: Agents = taken(self.agents, rows)
        steps = []
        for rollout in self.rollouts[:-1]:
            update = lifetime_update(self.learning, self.eta, agents, taken(rollout, rows), product)
            agents = update.agents
            assert update.step is not None
            steps.append(update.step)
        return lifetime_gradient(self.learning, steps, agents, taken(self.rollouts[-1], rows)).eta

    def loop(self, count: int) -> Tensor:
        """Return it of the first agents, one at a time."""
        return torch.cat([self.batched(slice(i, i + 1)) for i in range(count)])

    def written_loop(self, count: int) -> Tensor:
        """Return it of the first agents as one would write it for one."""
        alone = [Alone(self.learning, self.agents, self.rollouts, i) for i in range(count)]
        return torch.stack([agent.gradient(self.eta) for agent in alone])

    def whole_graph(self) -> Tensor:
        """Return it of all agents by one reverse pass."""
        return reference_lifetime_gradient(self.learning, self.eta, self.agents, self.rollouts[:-1], self.rollouts[-1])


def _speeds(rule: UpdateRule, size: Size, rounds: int, looped: int) -> dict[str, Any]:
    """Return agents' updates per second of CPU time, three ways.

    Raises:
        RuntimeError: they do not compute the same.
    """
    population = Population(rule, size, UPDATES)
    expected = population.batched()[:looped]
    for found in (population.loop(looped), population.written_loop(looped)):
        difference = float((found - expected).norm() / expected.norm())
        if not difference < 1e-3:
            raise RuntimeError(f"the batch and a loop differ by {difference:.1e}")
    cases: dict[str, Callable[[], object]] = {
        "batched": population.batched,
        "loop": lambda: population.loop(looped),
        "written loop": lambda: population.written_loop(looped),
    }
    timings = interleave(cases, rounds)
    counts = {"batched": size.agents, "loop": looped, "written loop": looped}

    def rates(name: str) -> list[float]:
        each: Sequence[Timing] = timings[name]
        return [counts[name] * UPDATES / timing.cpu_s for timing in each]

    ratios = {
        name: summary([a / b for a, b in zip(rates("batched"), rates(name), strict=True)])
        for name in ("loop", "written loop")
    }
    return {
        "updates_per_cpu_s": {name: summary(rates(name)) for name in cases},
        "over": ratios,
        "over_faster_loop": min(x["median"] for x in ratios.values()),
    }


def _peak(name: str, size: Size, form: str, updates: int) -> int:
    """Return the peak growth in bytes; runs in a fresh process."""
    with torch_threads(1):
        population = Population(RULES[name], size, updates)
        small = Population(RULES[name], Size(1, 1), 1)
        cases: dict[str, Callable[[Population], object]] = {
            "retain": Population.batched,
            "recompute": lambda given: given.batched(product="recompute"),
            "whole graph": Population.whole_graph,
        }
        cases[form](small)  # what is loaded at the first use is not counted
        return peak_growth_bytes(lambda: cases[form](population))


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure speeds and memory; quick: few agents, three updates in memory."""
    sizes, looped = ((Size(4, 2),), 2) if quick else (SIZES, IN_LOOPS)
    in_memory, updates = (Size(4, 2), 3) if quick else (IN_MEMORY, LONG)
    with torch_threads(1):
        speeds = {
            name: {str(size): _speeds(rule, size, rounds, looped) for size in sizes} for name, rule in RULES.items()
        }
    memory = {
        name: {form: in_fresh_process(_peak, name, in_memory, form, updates) / 2**20 for form in FORMS}
        for name in RULES
    }
    promised = str(sizes[0] if quick else PROMISED)
    targets = []
    for name in RULES:
        ratio = 1.0 / speeds[name][promised]["over_faster_loop"]
        targets.append(at_most(f"{name}, {promised}: CPU time over a loop's", ratio, 1.0 / SPEEDUP))
        share = memory[name]["recompute"] / memory[name]["whole graph"]
        targets.append(at_most(f"{name}, K = {updates}: recompute's peak over the whole graph's", share, MEMORY_LIMIT))
    ratios = {
        f"{name}, {size}: updates/s over the faster loop": found["over_faster_loop"]
        for name, by_size in speeds.items()
        for size, found in by_size.items()
    }
    setting = {"states": STATES, "actions": ACTIONS, "steps": STEPS, "updates": UPDATES, "updates_in_memory": updates}
    setting["agents_in_loops"] = looped
    return {
        "setting": setting | {"in_memory": str(in_memory)},
        "speed": speeds,
        "memory_mib": memory,
        "ratios": ratios,
        "targets": targets,
    }
