"""Compares learnt rules with tuned A2C on held-out worlds.

    python -m metagrad.experiments.lifetimes.compare rule.npz another.npz

Each agent is new, in a world that no rule was trained on; its score is the part of what there was to gain that it gains
in its life. The interquartile mean over worlds and seeds stands with its 95 % interval.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from metagrad.actors.agents import AgentConfig
from metagrad.errors import ConfigurationError
from metagrad.experiments.lifetimes.held_out import BUDGETS, Budget, scores, uncorrected, worlds_with_something_to_gain
from metagrad.experiments.reporting.report import markdown_table
from metagrad.experiments.reporting.statistics import interquartile_interval, interquartile_mean, number
from metagrad.rule_files import load_rule


def compared(
    files: Sequence[Path], agent: AgentConfig, budget: Budget, worlds: int, seeds: int
) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, interquartile mean, its interval and mean of A2C and of the rules in these files."""
    tasks = worlds_with_something_to_gain(budget.family, worlds)
    rules = {"A2C, tuned": (uncorrected(budget.a2c), budget.agent)}
    rules |= {str(path): (load_rule(path), agent) for path in files}
    for name, (stored, its_agent) in rules.items():
        own = scores(stored, its_agent, budget, tasks, range(seeds))
        low, high = interquartile_interval(own)
        interval = f"{number(low)} to {number(high)}"
        yield name, number(interquartile_mean(own.flatten())), interval, number(np.asarray(own.mean()))


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare learnt rules with tuned A2C on held-out small grid worlds.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of a rule (metagrad export)")
    about = "long: 250 updates on 64 environments; short: 5 on 8"
    parser.add_argument("--budget", choices=BUDGETS, default="long", help=about)
    about = "step size of the policies of the files' agents, as in meta-training"
    parser.add_argument("--policy-learning-rate", type=float, default=40.0, help=about)
    parser.add_argument("--learning-rate", type=float, default=4.0, help="the same of their other tables")
    parser.add_argument("--seeds", type=int, default=3, help="agents in each world")
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--updates", type=int, help="of an agent's life; by default the budget's")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    budget = BUDGETS[given.budget]
    budget = replace(budget, updates=budget.updates if given.updates is None else given.updates)
    try:
        rates = {
            "tabular_policy_learning_rate": given.policy_learning_rate,
            "tabular_learning_rate": given.learning_rate,
        }
        rows = list(compared(given.files, AgentConfig(**rates), budget, given.worlds, given.seeds))
    except ConfigurationError as error:
        parser.error(str(error))
    print(markdown_table(("rule", "IQM of scores", "95 % interval", "mean"), rows))


if __name__ == "__main__":
    main()
