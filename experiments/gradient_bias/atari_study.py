"""Study `atari` compares A2C with three-step meta-gradients, with the low-variance curvature and without.

Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", §5.3, G.3, Table 4 and Figures 3,
9 and 10.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from metagrad.actors.envs.atari import AtariBackend, AtariConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.gradient_bias.atari_report import ETA, RETURN, report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.runs import curves, evaluate_newest, part_run, trained, training_study

SEEDS = 5  # Figure 3
UPDATES = 125_000  # Table 4
GAMES = ("Asteroids", "Qbert", "Tennis", "BeamRider", "Alien", "Assault", "DoubleDunk", "Seaquest")  # G.3.3
EVALUATED_EPISODES = 100
QUICK_GAMES, QUICK_SEEDS = ("Qbert", "Assault"), 2  # of the games those whose first episodes are short


ARMS: dict[str, dict[str, Any]] = {
    "a2c": {"n": 0, "surrogate": "ad"},
    "mgrl": {"n": 3, "surrogate": "ad"},
    "mgrl-lvc": {"n": 3, "surrogate": "lvc"},
}
"""Maps each agent of the paper to what it changes in the meta-gradient of the experiment `atari`."""


def _parts(backend: AtariBackend, seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    """Return the parts; of fewer `updates` a run is the paper's beginning, as its step size falls at the same pace."""
    length = sizes(
        is_quick, updates=(updates, 6), environments=(64, 8), log_every=(100, 2), episodes=(EVALUATED_EPISODES, 2)
    )
    length |= {"backend": backend}
    return {
        f"{game}-{arm}-seed{seed}": {"game": game, "arm": arm, "seed": seed, **length}
        for seed in range(min(seeds, QUICK_SEEDS) if is_quick else seeds)
        for game in (QUICK_GAMES if is_quick else GAMES)
        for arm in ARMS
    }


def part_experiment(settings: Settings) -> Experiment:
    """Return the training run of one part; colocated, so that a GPU in this process is used where there is one."""
    base = atari()
    assert isinstance(base.env, AtariConfig)
    env = replace(base.env, game=settings["game"], backend=settings["backend"])
    arm = replace(base, env=env, meta=replace(base.meta, **ARMS[settings["arm"]]))
    return part_run(arm, settings, settings["log_every"], checkpoint_every=1_000, keep=2)


def run_part(settings: Settings, folder: Path) -> Result:
    """Train one agent on one game with one seed, then play full games with the last parameters.

    Returns:
        "returns": raw returns of full-life games under the sampled policy; "wall_seconds", "frames_real" and
        "frames_lookahead" of training; curves by name: mean return of the last games, the four meta-parameters.
    """
    experiment = part_experiment(settings)
    found = trained(experiment, folder)
    found["returns"] = evaluate_newest(experiment, folder, settings["episodes"]).returns
    return found | curves(folder, (RETURN, *ETA))


def _study(name: str, backend: AtariBackend, where: str) -> Study:
    about = f"Atari, eight games{where}: A2C, 3-step meta-gradients, AD and LVC (gradient bias, Fig. 9)"
    return training_study(name, about, partial(_parts, backend), run_part, report, seeds=SEEDS, updates=UPDATES)


STUDY = _study("atari", "envpool", "")
ALE_STUDY = _study("atari-ale", "ale", " on ale-py")  # where EnvPool is not installed
