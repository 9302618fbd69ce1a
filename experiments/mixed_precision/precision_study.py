"""Study `precision` measures what bf16-mixed costs in accuracy: in gradients against float64, and in what is learnt.

No paper has it. Gradients are of Snake 6x6 and Pong (`rounding`); curves are of whole runs in both precisions, each the
run that `metagrad train NAME --seed S --precision P --topology colocated --learner-threads 1` makes.
"""

from dataclasses import replace
from pathlib import Path

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing.snake import demo, snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.mixed_precision.precision_report import LOGGED, report
from metagrad.experiments.mixed_precision.rounding import LEARNT, PRECISIONS, rounding_errors
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.runs import Curve, curves, trained, training_study

SEEDS, TENTHS = 5, 10
NS = (1, 3, 5)
EXPERIMENTS = {"snake-6x6": snake_6x6, "demo": demo, "pong": atari}
LENGTHS = {"snake-6x6": 1_460, "demo": 1_000}  # updates of the curves


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    parts: dict[str, Settings] = {}
    for name, points, windows, environments in (("snake-6x6", (20, 292, 584), 3, 512), ("pong", (10, 30, 60), 2, 16)):
        own = sizes(is_quick, windows=(windows, 1), environments=(environments, 4), ns=(list(NS), [1, 3]))
        for update in (2,) if is_quick else points:
            probed = {"experiment": name, "seed": 1, "updates": update}
            parts[f"gradients-{name}-update{update}"] = probed | own
    for seed in range(1, 1 + (min(seeds, 2) if is_quick else seeds)):  # a study in progress has whole comparisons
        for name, updates in LENGTHS.items():
            for precision in PRECISIONS:
                arm = {"experiment": name, "precision": precision, "seed": seed, "updates": 20 if is_quick else updates}
                parts[f"{name}-{precision}-seed{seed}"] = arm | ({"environments": 32} if is_quick else {})
    return parts


def experiment_of(settings: Settings) -> Experiment:
    """Return what a part runs: the experiment of that name, colocated, on one thread."""
    names = ("seed", "precision", "updates", "environments")
    own = {name: settings[name] for name in names if name in settings}
    return replace(EXPERIMENTS[settings["experiment"]](), topology="colocated", learner_threads=1, **own)


def run_part(settings: Settings, folder: Path) -> Result:
    """Compare gradients along one run, or make one run.

    Returns:
        of gradients: "names" of the meta-parameters and "windows", which `rounding_errors` returns. Of a run:
        `learning_curves`, and of training "wall_seconds", "frames_real", "frames_lookahead".
    """
    experiment = experiment_of(settings)
    if "windows" in settings:
        return {"names": list(LEARNT), "windows": rounding_errors(experiment, settings["windows"], settings["ns"])}
    log_every = min(10, max(1, settings["updates"] // TENTHS))
    return trained(replace(experiment, log_every=log_every), folder) | learning_curves(folder, settings["updates"])


def learning_curves(folder: Path, updates: int) -> dict[str, Curve]:
    """Return return and γ of the run in `folder`: means of what it logged in each tenth, at the tenth's last update.

    A tenth in which nothing was logged, as long as no episode has ended, is left out.
    """
    found: dict[str, Curve] = {}
    for name, curve in curves(folder, LOGGED).items():
        rows: dict[int, list[float]] = {}
        for update, value in zip(curve["updates"], curve["values"], strict=True):
            rows.setdefault(-int(-update * TENTHS // updates), []).append(value)
        means = [float(f"{sum(values) / len(values):.7g}") for values in rows.values()]
        found[name] = {"updates": [round(tenth * updates / TENTHS) for tenth in rows], "values": means}
    return found


ABOUT = "bf16-mixed: gradients against float64 on Snake and Pong, learning curves beside float32"
STUDY = training_study("precision", ABOUT, _parts, run_part, report, seeds=SEEDS)
