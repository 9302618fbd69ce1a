"""Compares meta-gradients that look 0 to 10 updates ahead, and mixtures of them (study `snake-12x12`).

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", 3.1 to 3.5, Table 1 and
Figure 3.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time.snake_12x12 import UPDATES, snake_12x12
from metagrad.experiments.one_step_at_a_time.snake_12x12_report import report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.meta_gradient_probe import probe_run
from metagrad.experiments.training.runs import curves, evaluate_newest, part_run, trained, training_study
from metagrad.optimizers import Adam

SEEDS = 3  # Table 1
SAMPLES, POINTS = 96, 300  # Table 1: meta-gradients at each point of training, points
EVALUATED_EPISODES = 512  # of the first author's next release
ETA = ("eta/gamma", "eta/lambda", "eta/value_coefficient", "eta/entropy_coefficient")
LOGGED = ("episode/return_mean", *ETA, "norm/gradient", "norm/meta_gradient")


ARMS: dict[str, dict[str, Any]] = {
    **{f"{n}": {"n": n, "estimator": "n-step"} for n in (0, 1, 3, 5, 10)},
    **{f"{n}-mix": {"n": n, "estimator": "mix"} for n in (3, 5)},
}
"""Maps each column of Table 1 to its changes to the meta-gradient of `snake-12x12`; κ of mix is 1 - 1/n (§3.5)."""
ONE_STEP = "1"  # all others' spread is in units of its


def arm_experiment(base: Experiment, arm: str) -> Experiment:
    """Return the experiment of one column."""
    return replace(base, meta=replace(base.meta, **ARMS[arm]))


def probed_arms(arm: str) -> list[str]:
    """Return the arms whose meta-gradients are sampled along a run of this arm.

    The paper does not say along whose training a spread was measured: its own run's, as the table's layout suggests, or
    one that is common to all, as in Figure 5. Both are: the run of the 1-step arm is the common one.
    """
    every = [name for name, each in ARMS.items() if each["n"]]
    return every if arm == ONE_STEP else [arm] if arm in every else []


def _parts(seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    """Return the parts; of fewer `updates` a run is the paper's beginning, as its step size falls at the same pace."""
    length = sizes(
        is_quick,
        updates=(updates, 6),
        annealing_updates=(UPDATES, UPDATES),
        environments=(32, 4),
        rollout_length=(snake_12x12().rollout_length, 5),
        log_every=(50, 2),
        probe_every=(min(UPDATES // POINTS, updates), 3),
        samples=(SAMPLES, 3),
        episodes=(EVALUATED_EPISODES, 16),
    )
    return {
        f"n{arm}-seed{seed}": {"arm": arm, "seed": seed, "probed": probed_arms(arm), **length}
        for seed in range(1 if is_quick else seeds)
        for arm in ARMS
    }


def part_experiment(settings: Settings) -> Experiment:
    """Return the training run of one part."""
    base = snake_12x12()
    assert isinstance(base.optimizer, Adam)
    optimizer = replace(base.optimizer, annealing_updates=settings["annealing_updates"])
    arm, periods = arm_experiment(base, settings["arm"]), (settings["log_every"], settings["probe_every"])
    return part_run(arm, settings, *periods, optimizer=optimizer, device="cpu")


def run_part(settings: Settings, folder: Path) -> Result:
    """Train one arm with one seed, evaluate the end, and sample meta-gradients at points along the run.

    Returns:
        "wall_seconds", "frames_real", "frames_lookahead" of training; "return": mean, std and number of full episodes
        under the sampled policy at the end; curves by name, means of each interval; "probes": by arm "updates" [P],
        "mean" and "std" [P, 4] of the meta-gradient in the order γ, λ, c_crit, c_entr.
    """
    experiment = part_experiment(settings)
    found = trained(experiment, folder)
    played = evaluate_newest(experiment, folder, settings["episodes"])
    found["return"] = {"mean": played.mean, "std": played.std, "episodes": len(played.returns)}
    # After the last update the step size is 0, and so is every meta-gradient.
    last = min(settings["updates"], settings["annealing_updates"] - 1)
    points = range(settings["probe_every"], last + 1, settings["probe_every"])
    estimators = {name: arm_experiment(experiment, name) for name in settings["probed"]}
    found["probes"] = probe_run(estimators, folder, points, settings["samples"], settings["seed"])
    return found | curves(folder, LOGGED)


ABOUT = "Snake 12x12: n-step meta-gradients and mixtures (One Step at a Time, Table 1, Fig. 3)"
STUDY = training_study("snake-12x12", ABOUT, _parts, run_part, report, seeds=SEEDS, updates=UPDATES)
