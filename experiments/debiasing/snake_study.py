"""Study `snake-6x6` compares A2C, meta-gradients and bootstrapped ones, with and without the outer critic.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.2, C.2, D and Figures
3, 5b and 6.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from metagrad.actor_critic import A2cLoss
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.debiasing.snake_report import EPOCH, report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.runs import curves, evaluations, part_run, trained, training_study
from metagrad.learner.config import BootstrapConfig

SEEDS = 10  # Figure 3
UPDATES = 29_346  # release: 201 epochs of 146 updates
QUICK_SEEDS = 2
LOGGED = ("eta/gamma", "advantage/outer_mean")


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeAgent:
    """Says what an agent of the paper changes in the experiment `snake-6x6`."""

    n: int = 1
    is_bootstrapped: bool = False
    has_outer_critic: bool = False
    is_advantage_normalised: bool = False


ARMS: dict[str, SnakeAgent] = {
    "a2c": SnakeAgent(n=0),
    "mg": SnakeAgent(),
    "mg-outer": SnakeAgent(has_outer_critic=True),
    "bmg": SnakeAgent(is_bootstrapped=True),
    "bmg-outer": SnakeAgent(is_bootstrapped=True, has_outer_critic=True),
    "mg-normalised": SnakeAgent(is_advantage_normalised=True),
    "mg-outer-normalised": SnakeAgent(is_advantage_normalised=True, has_outer_critic=True),
}
ONE_SEED = ("mg-normalised", "mg-outer-normalised")  # Figure 6


def arm_experiment(arm: SnakeAgent) -> Experiment:
    """Return the experiment of one agent (Table 1 and the released code)."""
    base = snake_6x6()
    assert isinstance(base.meta_parameters, A2cLoss)
    is_normalised = arm.is_advantage_normalised
    rate = 6e-3 if arm.is_bootstrapped else 3e-3  # Table 1
    return replace(
        base,
        meta=replace(
            base.meta,
            n=arm.n,
            bootstrap=BootstrapConfig(updates=1 if arm.is_bootstrapped else 0),
            optimizer=replace(base.meta.optimizer, learning_rate=rate),
        ),
        outer=replace(
            base.outer, critic="outer" if arm.has_outer_critic else "inner", is_advantage_normalised=is_normalised
        ),
        meta_parameters=replace(base.meta_parameters, is_advantage_normalised=is_normalised),
    )


def _parts(seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    # 512 evaluated episodes: release
    length = sizes(is_quick, updates=(updates, 60), epoch=(EPOCH, 20), environments=(512, 64), episodes=(512, 64))
    parts: dict[str, Settings] = {}
    for seed in range(1, 1 + (min(seeds, QUICK_SEEDS) if is_quick else seeds)):  # release: seeds 1 to 10
        parts |= {f"{arm}-seed{seed}": {"arm": arm, "seed": seed, **length} for arm in ARMS if arm not in ONE_SEED}
    return parts | {f"{arm}-seed1": {"arm": arm, "seed": 1, **length} for arm in ONE_SEED}


def run_part(settings: Settings, folder: Path) -> Result:
    """Train one agent with one seed and evaluate it after every epoch.

    Returns:
        "eta/gamma" and "advantage/outer_mean": means of each epoch; "sampled" and "greedy": mean returns of full
        episodes, before training and after each epoch; of training "wall_seconds", "frames_real", "frames_lookahead".
    """
    epoch = settings["epoch"]
    experiment = part_run(arm_experiment(ARMS[settings["arm"]]), settings, epoch, epoch)
    found = trained(experiment, folder) | curves(folder, LOGGED)
    return found | evaluations(experiment, folder, settings["episodes"], ("sampled", "greedy"))


ABOUT = "Snake 6x6: A2C, MG and BMG, each with inner and outer critic (debiasing, Fig. 3, 5b, 6)"
STUDY = training_study("snake-6x6", ABOUT, _parts, run_part, report, seeds=SEEDS, updates=UPDATES)
