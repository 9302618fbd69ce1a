"""Trains update rules on small grid worlds and compares them with tuned A2C in held-out ones (study `lpg`).

Lives are short, five updates, so that the speed of learning counts, and K is all of a life: a meta-gradient is then
that of what an agent can do at its end. Given longer, tuned A2C leaves little to gain (docs/lifetimes.md).

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG); the settings are ours, for two cores.
"""

from dataclasses import replace
from pathlib import Path

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.trained import trained_rule
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.lifetimes.held_out import BUDGETS, scores, uncorrected, worlds_with_something_to_gain
from metagrad.experiments.lifetimes.lifetimes import lifetimes
from metagrad.experiments.lifetimes.lpg_report import report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.runs import part_run, trained, training_study
from metagrad.learner.checkpoint import paths, update_of
from metagrad.lpg import Lpg
from metagrad.optimizers import Adam
from metagrad.rule_files import AnyRule, StoredRule

SEEDS, UPDATES = 1, 1_000  # of meta-training
AGENTS = 3  # of each seed, in each held-out world
POINTS = 10  # of a run, at which its rule is tested
BUDGET = BUDGETS["short"]
RULES: dict[str, AnyRule] = {
    "lpg": Lpg(units=16, policy_entropy_coefficient=0.01),
    "correction": replace(BUDGET.a2c, policy_entropy_coefficient=0.003),
}
"""The correction begins at tuned A2C."""
AGENT_OF = {
    "lpg": AgentConfig(tabular_policy_learning_rate=160.0, tabular_learning_rate=40.0, value_learning_rate=0.1),
    "correction": replace(BUDGET.agent, value_learning_rate=0.1),
}


def _parts(seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    tested = sizes(is_quick, worlds=(20, 2), agents_tested=(AGENTS, 1))
    length = sizes(is_quick, updates=(updates, 2), agents=(256, 2), points=(POINTS, 2))
    parts: dict[str, Settings] = {}
    for seed in range(seeds):
        parts[f"a2c-seed{seed}"] = {"rule": "a2c", "seed": seed, **tested}
        parts |= {f"{rule}-seed{seed}": {"rule": rule, "seed": seed, **tested, **length} for rule in RULES}
    return parts


def meta_training(rule: str, agents: int) -> LifetimesExperiment:
    """Return the experiment in which a rule of the study is trained."""
    return replace(
        lifetimes(),
        env=GridWorldFamily(distribution=BUDGET.distribution),
        rule=RULES[rule],
        agent=AGENT_OF[rule],
        agents=agents,
        environments=agents * BUDGET.environments,
        inner_updates=BUDGET.updates,
        lifetime=BUDGET.updates,
        product="retain",
        is_normalised_per_agent=rule == "correction",  # a few agents' meta-gradients would outweigh all others
        meta_optimizer=Adam(learning_rate=3e-3, max_gradient_norm=0.5),
    )


def run_part(settings: Settings, folder: Path) -> Result:
    """Train a rule, and let new agents live under it in held-out worlds; for A2C there is nothing to train.

    Returns:
        "scores", lists [agents][worlds] for each tested point of training; "updates" and "lifetimes" up to there; of a
        training run "wall_seconds" and "frames_real" too.
    """
    if settings["rule"] == "a2c":
        tested = _scores(uncorrected(BUDGET.a2c), BUDGET.agent, settings)
        return {"scores": [tested], "updates": [0], "lifetimes": [0]}
    every = max(1, settings["updates"] // settings["points"])
    experiment = part_run(meta_training(settings["rule"], settings["agents"]), settings, 10, every)
    summary = trained(experiment, folder)
    result: Result = {"scores": [], "updates": [], "lifetimes": []}
    for path in paths(folder / "checkpoints"):
        rule = trained_rule(RunFolder(folder), experiment, update_of(path), print)
        result["scores"].append(_scores(StoredRule(experiment.rule, rule.weights, {}), experiment.agent, settings))
        result["updates"].append(rule.update)
        result["lifetimes"].append(rule.lifetimes)
    return result | {name: summary[name] for name in ("wall_seconds", "frames_real")}


def _scores(rule: StoredRule, agent: AgentConfig, settings: Settings) -> list[list[float]]:
    tasks = worlds_with_something_to_gain(BUDGET.family, settings["worlds"])
    first = settings["seed"] * settings["agents_tested"]
    own = scores(rule, agent, BUDGET, tasks, range(first, first + settings["agents_tested"]))
    return [[float(f"{score:.6g}") for score in of_agent] for of_agent in own.tolist()]


ABOUT = "Learnt rules (LPG, a correction of A2C) beside tuned A2C: short lives in held-out grid worlds"
STUDY = training_study("lpg", ABOUT, _parts, run_part, report, seeds=SEEDS, updates=UPDATES)
