"""Makes the table and the figure of the study `lpg`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metagrad.cluster.studies.study import Result
from metagrad.experiments.lifetimes.held_out import BUDGETS, ROLLOUT_LENGTH
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, by_setting, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, interquartile_interval, interquartile_mean, number

_INTRODUCTION = """\
New agents live in {worlds} held-out small grid worlds, {life} updates of {steps} steps in {environments} environments
each, {agents} in each world for every seed of meta-training. A score is the part of what there was to gain that an
agent gained, 1 less its regret: 0 for the policy at birth, 1 for the best one, which is known exactly. A2C has the
settings that were best in other worlds for lives of this length. Learnt rules were trained on worlds of the same
distribution with other seeds.

Scores of all worlds and agents: interquartile mean with the 95 % interval of the stratified bootstrap.
"""
NAMES = {"a2c": "A2C, tuned", "lpg": "LPG", "correction": "A2C with a learnt correction"}


def scores_at_end(results: list[Result]) -> Array:
    """Return the scores [seeds * agents, worlds] of the rules at the end of their training."""
    return np.concatenate([result["scores"][-1] for result in results])


def _rows(of_rules: dict[str, list[Result]]) -> Iterator[Row]:
    baseline = interquartile_interval(scores_at_end(of_rules["a2c"])) if "a2c" in of_rules else None
    for rule, results in of_rules.items():
        own = scores_at_end(results)
        low, high = interquartile_interval(own)
        verdict = []
        if rule != "a2c" and baseline is not None:
            is_above, is_below = low > baseline[1], high < baseline[0]
            place = "above" if is_above else "below" if is_below else "not apart from"
            lives = " and ".join(sorted({str(result["lifetimes"][-1]) for result in results}))
            verdict = [f"{NAMES[rule]} is {place} A2C by the 95 % intervals, after {lives} lifetimes."]
        ours = number(interquartile_mean(own.flatten()))
        spread = f"{number(low)} to {number(high)}"
        yield Row(f"{NAMES[rule]}: score, IQM", "no number", ours, len(own), spread, verdict)


def _figure(of_rules: dict[str, list[Result]]) -> Figure:
    """Return scores against updates of training; A2C, which does not train, lies flat."""
    learnt = {rule: results for rule, results in of_rules.items() if rule != "a2c"}
    ends = [results[0]["updates"][-1] for results in learnt.values()]
    curves = []
    for rule, results in of_rules.items():
        means = np.array([[interquartile_mean(np.ravel(scores)) for scores in result["scores"]] for result in results])
        updates = results[0]["updates"] if rule in learnt else [0, max(ends, default=1)]
        values = means if rule in learnt else np.repeat(means, 2, axis=1)
        curves.append(mean_curve(NAMES[rule], np.array(updates, dtype=np.float64), values))
    panel = Panel("held-out small grid worlds", "meta-updates", "score, IQM over worlds", curves)
    return Figure("scores.png", "Scores in held-out worlds against the length of meta-training.", [panel])


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write report.md and its figure."""
    of_rules = by_setting(parts, "rule")
    settings = first_settings(parts)
    budget, agents = BUDGETS["short"], settings["agents_tested"]
    sizes = {"life": budget.updates, "environments": budget.environments, "steps": ROLLOUT_LENGTH}
    introduction = _INTRODUCTION.format(worlds=settings["worlds"], agents=agents, **sizes)
    if is_quick:
        introduction += "\nA quick run: its numbers mean nothing.\n"
    write_report(folder, "Learnt update rules", introduction, list(_rows(of_rules)), [_figure(of_rules)])
