"""Tests by experiment what "One Step at a Time" leaves open about Snake (study `snake-12x12-choices`).

One value of `snake-12x12` is changed at a time, in runs that are short beside the paper's. docs/snake-12x12.md draws
the conclusions.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metagrad.actor_critic import A2cLoss
from metagrad.actors.rollout import LookaheadEnvironments
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time.snake_12x12 import EPS_ROOT, snake_12x12
from metagrad.experiments.one_step_at_a_time.snake_12x12_choices_report import report
from metagrad.experiments.one_step_at_a_time.snake_12x12_study import ARMS, arm_experiment
from metagrad.experiments.training.meta_gradient_probe import probe_run
from metagrad.experiments.training.runs import evaluate_newest, part_run, trained, training_study
from metagrad.meta_parameters import MetaParameter
from metagrad.optimizers import Adam

SEEDS = 2
SAMPLES, EVALUATED_EPISODES = 32, 256
POINTS = 100  # of a curve
NAMES = ("gamma", "lambda", "value_coefficient", "entropy_coefficient")
MEANS = ("episode/return_mean", "policy/entropy_nats", *(f"eta/{name}" for name in NAMES))
NORMS = {"norm/gradient": 10.0, "norm/meta_gradient": 0.1}  # and where they are clipped (Table 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Describes one training run: what it changes in `snake-12x12`, and how long it is."""

    n: int
    updates: int
    rollout_length: int = 20
    lookahead: LookaheadEnvironments = "continue"
    inner_eps_root: float = EPS_ROOT
    meta_eps_root: float = EPS_ROOT
    is_critic_halved: bool = False
    is_probed: bool = False
    """Meta-gradients are sampled half-way and at the end."""
    has_one_seed: bool = False


VARIANTS: dict[str, Variant] = {
    "t20": Variant(n=0, updates=8_000, is_probed=True, has_one_seed=True),
    "t5": Variant(n=0, updates=8_000, rollout_length=5, is_probed=True, has_one_seed=True),
    "n1": Variant(n=1, updates=800),
    "n1-fork": Variant(n=1, updates=800, lookahead="fork"),
    "n1-halved-critic": Variant(n=1, updates=800, is_critic_halved=True),
    "n1-meta-eps-root-0": Variant(n=1, updates=300, meta_eps_root=0.0, has_one_seed=True),
    "n1-eps-roots-0": Variant(n=1, updates=300, meta_eps_root=0.0, inner_eps_root=0.0, has_one_seed=True),
}


def variant_experiment(variant: Variant) -> Experiment:
    """Return the experiment of one variant; ½ (G - V)² is a coefficient in (0, ½) that starts at ¼."""
    base = snake_12x12()
    assert isinstance(base.optimizer, Adam)
    assert isinstance(base.meta_parameters, A2cLoss)
    coefficient = MetaParameter(initial=0.25, high=0.5)
    halved = replace(base.meta_parameters, value_coefficient=coefficient)
    return replace(
        base,
        rollout_length=variant.rollout_length,
        lookahead=variant.lookahead,
        optimizer=replace(base.optimizer, eps_root=variant.inner_eps_root),
        meta=replace(base.meta, n=variant.n, optimizer=replace(base.meta.optimizer, eps_root=variant.meta_eps_root)),
        meta_parameters=halved if variant.is_critic_halved else base.meta_parameters,
    )


def probed_estimators(run: Experiment) -> dict[str, Experiment]:
    """Return Table 1's estimators, and some of them with another choice."""
    every = {name: arm_experiment(run, name) for name, arm in ARMS.items() if arm["n"]}
    assert isinstance(run.optimizer, Adam)
    rootless = replace(run.optimizer, eps_root=0.0)
    return every | {
        "3-fork": replace(every["3"], lookahead="fork"),
        "1-inner-eps-root-0": replace(every["1"], optimizer=rootless),
        "3-inner-eps-root-0": replace(every["3"], optimizer=rootless),
    }


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    parts: dict[str, Settings] = {}
    for seed in range(1 if is_quick else seeds):
        for name, variant in VARIANTS.items():
            if seed and variant.has_one_seed:
                continue
            parts[f"{name}-seed{seed}"] = {
                "variant": name,
                "seed": seed,
                "updates": 6 if is_quick else variant.updates,
                "environments": 4 if is_quick else 32,
                "rollout_length": variant.rollout_length,
                "samples": 2 if is_quick else SAMPLES,
                "episodes": 16 if is_quick else EVALUATED_EPISODES,
            }
    return parts


def run_part(settings: Settings, folder: Path) -> Result:
    """Train one variant, evaluate its end, sample meta-gradients where the variant says so.

    Returns:
        "frames_real", "wall_seconds"; "return": mean and std of full episodes at the end; "curves": by name "updates"
        and "values", means of at most 100 bins; "norms": by name "mean", "max" and "clipped", the share of updates
        beyond the clip; "meta_gradient_rms" of each component, by bin as in "curves"; "probes" as of `probe_run`.
    """
    variant = VARIANTS[settings["variant"]]
    half = settings["updates"] // 2
    experiment = part_run(variant_experiment(variant), settings, 1, checkpoint_every=half, keep=10, device="cpu")
    summary = trained(experiment, folder)
    played = evaluate_newest(experiment, folder, settings["episodes"])
    logged = logged_scalars(folder)
    points = (settings["updates"] // 2, settings["updates"]) if variant.is_probed else ()
    estimators = probed_estimators(experiment) if points else {}
    return {
        "frames_real": summary["frames_real"],
        "wall_seconds": summary["wall_seconds"],
        "return": {"mean": played.mean, "std": played.std},
        "curves": {name: binned(*logged[name]) for name in MEANS if name in logged},
        "norms": {name: _norm(logged[name][1], clip) for name, clip in NORMS.items() if name in logged},
        "meta_gradient_rms": [_rms(*logged[f"meta_gradient/{name}"]) for name in NAMES] if variant.n else [],
        "probes": probe_run(estimators, folder, points, settings["samples"], settings["seed"]) if points else {},
    }


def binned(updates: np.ndarray, values: np.ndarray) -> dict[str, list[float]]:
    """Take means over at most 100 runs of neighbours, each at its last update."""
    parts = [part for part in np.array_split(np.arange(len(values)), POINTS) if len(part)]
    return {
        "updates": [int(updates[part[-1]]) for part in parts],
        "values": [float(f"{values[part].mean():.6g}") for part in parts],
    }


def _norm(values: np.ndarray, clip: float) -> dict[str, float]:
    return {"mean": float(values.mean()), "max": float(values.max()), "clipped": float((values > clip).mean())}


def _rms(updates: np.ndarray, values: np.ndarray) -> dict[str, list[float]]:
    squares = binned(updates, values**2)
    return squares | {"values": [float(f"{x**0.5:.6g}") for x in squares["values"]]}


ABOUT = "Snake 12x12: what One Step at a Time leaves open, one value at a time"
STUDY = training_study("snake-12x12-choices", ABOUT, _parts, run_part, report, seeds=SEEDS)
