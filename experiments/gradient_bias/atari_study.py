"""Study `atari`: A2C and three-step meta-gradients, with and without the low-variance curvature, on eight games.

Source: "A Theoretical Understanding of Gradient Bias in Meta-Reinforcement Learning", §5.3, G.3, Table 4 and Figures 3,
9 and 10.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from metagrad.actors.envs.atari import AtariBackend, AtariConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.studies.study import Result, Settings, Study
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.gradient_bias.atari_report import ETA, RETURN, report
from metagrad.experiments.training.runs import curves, evaluate_newest, train
from metagrad.surrogates import SurrogateName

SEEDS = 5  # Figure 3
UPDATES = 125_000  # Table 4
GAMES = ("Asteroids", "Qbert", "Tennis", "BeamRider", "Alien", "Assault", "DoubleDunk", "Seaquest")  # G.3.3
EVALUATED_EPISODES = 100
QUICK_GAMES, QUICK_SEEDS = ("Qbert", "Assault"), 2  # of the games those whose first episodes are short


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What an agent of the paper changes in the experiment `atari`."""

    n: int
    surrogate: SurrogateName = "ad"


ARMS: dict[str, Arm] = {"a2c": Arm(n=0), "mgrl": Arm(n=3), "mgrl-lvc": Arm(n=3, surrogate="lvc")}


def _parts(backend: AtariBackend, seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    """A run of fewer `updates` is the beginning of the paper's: its step size falls as if it went on to the end."""
    length = {
        "updates": 6 if is_quick else updates,
        "environments": 8 if is_quick else 64,
        "log_every": 2 if is_quick else 100,
        "episodes": 2 if is_quick else EVALUATED_EPISODES,
        "backend": backend,
    }
    return {
        f"{game}-{arm}-seed{seed}": {"game": game, "arm": arm, "seed": seed, **length}
        for seed in range(min(seeds, QUICK_SEEDS) if is_quick else seeds)
        for game in (QUICK_GAMES if is_quick else GAMES)
        for arm in ARMS
    }


def part_experiment(settings: Settings) -> Experiment:
    """The training run of one part; colocated, so that a GPU in this process is used where there is one."""
    base, arm = atari(), ARMS[settings["arm"]]
    assert isinstance(base.env, AtariConfig)
    return replace(
        base,
        env=replace(base.env, game=settings["game"], backend=settings["backend"]),
        meta=replace(base.meta, n=arm.n, surrogate=arm.surrogate),
        seed=settings["seed"],
        updates=settings["updates"],
        environments=settings["environments"],
        actors=1,
        topology="colocated",
        learner_threads=1,
        log_every=settings["log_every"],
        checkpoint=CheckpointConfig(every=1_000, keep=2),
    )


def run_part(settings: Settings, folder: Path) -> Result:
    """Train one agent on one game with one seed, then play full games with the last parameters.

    Returns:
        "returns": raw returns of full-life games under the sampled policy; "wall_seconds", "frames_real" and
        "frames_lookahead" of training; curves by name: mean return of the last games, the four meta-parameters.
    """
    experiment = part_experiment(settings)
    summary = train(experiment, folder)
    found: Result = {name: summary[name] for name in ("wall_seconds", "frames_real", "frames_lookahead")}
    found["returns"] = evaluate_newest(experiment, folder, settings["episodes"]).returns
    return found | curves(folder, (RETURN, *ETA))


def _study(name: str, backend: AtariBackend, where: str) -> Study:
    return Study(
        name=name,
        description=f"Atari, eight games{where}: A2C, 3-step meta-gradients, AD and LVC (gradient bias, Fig. 9)",
        seeds=SEEDS,
        updates=UPDATES,
        parts=partial(_parts, backend),
        run_part=run_part,
        keeps_work=True,
        report=report,
    )


STUDY = _study("atari", "envpool", "")
ALE_STUDY = _study("atari-ale", "ale", " on ale-py")  # where EnvPool is not installed
