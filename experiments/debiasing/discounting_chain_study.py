"""Learns discounts with and without the outer value function on the Discounting Chain (study `discounting-chain`).

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1, C.1, D and Figures
2, 5a and 6.
"""

from functools import partial
from typing import Any

import torch

from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.debiasing.discounting_chain_agents import ChainAgent, advance, start
from metagrad.experiments.debiasing.discounting_chain_problem import (
    Objective,
    discounts,
    mean_return,
    sample_counts,
    tables,
)
from metagrad.experiments.debiasing.discounting_chain_report import ARMS, UPDATES, report

RECORD_EVERY = 50  # release: the last update of each 50
SEEDS = 10  # Figure 2
AT_ONCE = 5  # seeds side by side in one part: an update of five costs less than two of one
QUICK_UPDATES = 1_000

VARIANTS: dict[str, dict[str, bool]] = {
    "": {"is_normalised": False, "is_first_value_exact": False},
    "-normalised": {"is_normalised": True, "is_first_value_exact": False},
    "-exact-start": {"is_normalised": False, "is_first_value_exact": True},
}
"""Beside the agents of Figure 2: those of Figure 6, and a control of ours with the exact value of the start."""


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    """Group five seeds into a part, "mg-seeds0-4"; the rest get parts of their own, so that more seeds change none."""
    whole = seeds // AT_ONCE * AT_ONCE
    groups = [list(range(first, first + AT_ONCE)) for first in range(0, whole, AT_ONCE)]
    groups += [[seed] for seed in range(whole, seeds)]
    length = {
        "updates": QUICK_UPDATES if is_quick else UPDATES,
        "record_every": 10 if is_quick else RECORD_EVERY,
    }
    parts: dict[str, Settings] = {}
    for variant, objective in VARIANTS.items():
        for arm, agent in ARMS.items():
            if variant and agent.meta == "none":
                continue
            # Figure 6 has one seed; the control of ours as many as one part holds.
            for group in {"": groups, "-normalised": [[0]], "-exact-start": groups[:1]}[variant]:
                name = f"{arm}{variant}-seed" + (str(group[0]) if len(group) == 1 else f"s{group[0]}-{group[-1]}")
                own = {"arm": arm, "meta": agent.meta, "uses_outer_value": agent.uses_outer_value}
                parts[name] = {**own, **objective, "seeds": group, **length}
    return parts


def run_part(settings: Settings) -> Result:
    """Train one agent with several seeds, from one random stream each: initial weights first, then episodes.

    Returns:
        "updates" (done), and for each seed a list over the same times: "discount" (after the update), "return" (mean
        over the update's inner batch), "first_advantage" and "advantage" (of the outer loss: means at t = 0 and over
        all steps; not for A2C).
    """
    table = tables(torch.float64)
    objective = Objective(settings["is_normalised"], settings["is_first_value_exact"])
    agent = ChainAgent(settings["meta"], settings["uses_outer_value"], objective)
    generators = [torch.Generator().manual_seed(seed) for seed in settings["seeds"]]
    rows = len(table.chain) - len(table.paying_step) if objective.is_normalised else table.waiting
    sample = partial(sample_counts, table, rows=rows, generators=generators)
    state = start(agent, table, generators)
    updates: list[int] = []
    logs: dict[str, list[torch.Tensor]] = {}
    for done in range(1, settings["updates"] + 1):
        state, logged = advance(agent, table, state, sample)
        if done % settings["record_every"] == 0:
            updates.append(done)
            values = {"discount": discounts(state.eta), "return": mean_return(table, logged.counts)}
            values |= {} if logged.outer is None else logged.outer._asdict()
            for name, value in values.items():
                logs.setdefault(name, []).append(value)
    return {"updates": updates} | {name: _lists(torch.stack(values, dim=1)) for name, values in logs.items()}


def _lists(values: torch.Tensor) -> list[Any]:
    """Keep seven significant digits: more than any figure shows."""
    return [[float(f"{x:.7g}") for x in row] for row in values.tolist()]


ABOUT = "Discounting Chain: discount learnt with and without an outer critic (debiasing, Fig. 2)"
STUDY = Study(name="discounting-chain", description=ABOUT, seeds=SEEDS, parts=_parts, run_part=run_part, report=report)
