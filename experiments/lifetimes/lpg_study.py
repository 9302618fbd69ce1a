"""Trains update rules on small grid worlds and compares them with tuned A2C in held-out ones (study `lpg`).

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG), with the settings of Jackson et al.
(2023), GROOVE; rules, agents and training are those of experiment `lifetimes`, with fewer agents than the papers'.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.trained import trained_rule
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.lifetimes.held_out import A2C_AGENT, HELD_OUT, a2c, live, worlds_with_something_to_gain
from metagrad.experiments.lifetimes.lifetimes import lifetimes
from metagrad.experiments.lifetimes.lpg_report import report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.runs import part_run, trained, training_study
from metagrad.learner.checkpoint import paths, update_of
from metagrad.lpg import Lpg
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.rule_files import AnyRule
from metagrad.update_rules import UpdateRule

SEEDS, UPDATES = 3, 5_000
POINTS = 5  # of a run, at which its rule is tested
RULES: dict[str, AnyRule] = {"lpg": Lpg(), "correction": ObjectiveCorrection(is_advantage_normalised=True)}


def _parts(seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    tested = sizes(is_quick, worlds=(20, 2), life=(250, 3))
    length = sizes(is_quick, updates=(updates, 2), agents=(64, 2), environments=(64 * 64, 4), points=(POINTS, 2))
    parts: dict[str, Settings] = {}
    for seed in range(seeds):
        parts[f"a2c-seed{seed}"] = {"rule": "a2c", "seed": seed, **tested}
        parts |= {f"{rule}-seed{seed}": {"rule": rule, "seed": seed, **tested, **length} for rule in RULES}
    return parts


def run_part(settings: Settings, folder: Path) -> Result:
    """Train a rule, and let new agents live under it in held-out worlds; for A2C there is nothing to train.

    Returns:
        "scores" of the agents, a list for each tested point of training; "updates" and "lifetimes" up to there; of a
        training run "wall_seconds" and "frames_real" too.
    """
    if settings["rule"] == "a2c":
        own = a2c()
        return {"scores": [_scores(own.rule, own.eta, A2C_AGENT, settings)], "updates": [0], "lifetimes": [0]}
    base = lifetimes()
    every = max(1, settings["updates"] // settings["points"])
    whole = replace(base, rule=RULES[settings["rule"]], agents=settings["agents"], actors=1)
    experiment = part_run(replace(whole, environments=settings["environments"]), settings, 10, every)
    summary = trained(experiment, folder)
    result: Result = {"scores": [], "updates": [], "lifetimes": []}
    for path in paths(folder / "checkpoints"):
        rule = trained_rule(RunFolder(folder), experiment, update_of(path), print)
        result["scores"].append(_scores(rule.rule, rule.weights, experiment.agent, settings))
        result["updates"].append(rule.update)
        result["lifetimes"].append(rule.lifetimes)
    return result | {name: summary[name] for name in ("wall_seconds", "frames_real")}


def _scores(rule: UpdateRule, eta: Any, agent: AgentConfig, settings: Settings) -> list[float]:
    family = HELD_OUT["small"]
    assert isinstance(family, GridWorldFamily)
    tasks = worlds_with_something_to_gain(family, settings["worlds"])
    lived = live(rule, eta, agent, family, tasks, updates=settings["life"], seed=settings["seed"])
    return [float(f"{score:.6g}") for score in lived.score.tolist()]


ABOUT = "Learnt update rules (LPG, a correction of A2C) beside tuned A2C in held-out small grid worlds"
STUDY = training_study("lpg", ABOUT, _parts, run_part, report, seeds=SEEDS, updates=UPDATES)
