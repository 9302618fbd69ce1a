"""Studies `peek` and `peek-pong` compare look-ahead in the stream of real rollouts with rollouts of its own.

Schedule `lockstep` rolls every looked-ahead policy out; `peek` takes the rollouts of the next real updates in their
place, with V-trace corrections (`metagrad.learner.schedule`). What that does to returns at equal real frames, to time,
and to the meta-gradient itself. No paper has it: "One Step at a Time", §4.2, asks for it.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metagrad.actor_critic import VtraceLoss
from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, ScheduleName
from metagrad.cluster.run.learning import actor_setups
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.one_step_at_a_time.peek_report import PONG, SNAKE, report
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.training.meta_gradient_probe import meta_gradient_samples, restarted
from metagrad.experiments.training.runs import curves, evaluations, part_run, train, trained, training_study
from metagrad.learner.batch import merge
from metagrad.learner.checkpoint import checkpoint_path, load
from metagrad.meta_parameters import MetaParameter
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
SEEDS, UPDATES, EPOCH, EPISODES = 3, 584, 73, 512
NS, PROBED_N, SAMPLES = (1, 3, 5), 3, 48
RHO_CLIP = 4.0  # in the place of V-trace's 1, whose clipping is what meta-gradients of peek differ by
SCHEDULES: tuple[ScheduleName, ...] = ("lockstep", "peek")
PONG_UPDATES, PONG_EPOCH, PONG_EPISODES = 10_000, 2_500, 32
LEARNT = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
LOGGED = ("eta/gamma", "advantage/outer_mean", "transport/lag_versions")


def peek_experiment(schedule: ScheduleName, n: int, settings: Settings) -> Experiment:
    """Return `snake-6x6`, with outer critic and AD unless the settings say otherwise, or `atari`; on one thread."""
    base = atari() if settings.get("game") == "Pong" else snake_6x6()
    losses = base.meta_parameters
    if "rho_clip" in settings:
        rho_clip = MetaParameter(initial=settings["rho_clip"], high=settings["rho_clip"], is_learnt=False)
        corrected = losses.streamed()
        assert isinstance(corrected, VtraceLoss)
        losses = replace(corrected, rho_clip=rho_clip)
    learnt = {name: replace(getattr(losses, name), is_learnt=True) for name in settings.get("learnt", ())}
    experiment = replace(
        base,
        schedule=schedule,
        meta=replace(base.meta, n=n, surrogate=settings.get("surrogate", base.meta.surrogate)),
        meta_parameters=replace(losses, **learnt),
    )
    return part_run(experiment, settings, settings["epoch"], settings["epoch"])


def _parts(seeds: int, is_quick: bool, updates: int = UPDATES) -> dict[str, Settings]:
    length = sizes(is_quick, updates=(updates, 20), epoch=(EPOCH, 10), environments=(512, 32))
    evaluated = {"episodes": 32 if is_quick else EPISODES}
    trials = range(1, 1 + (min(seeds, 2) if is_quick else seeds))
    parts: dict[str, Settings] = {}
    for n in NS:  # cheap ones first: a study in progress soon has whole comparisons
        for seed in trials:
            for schedule in SCHEDULES:
                arm: Settings = {"schedule": schedule, "n": n, "seed": seed}
                parts[f"{schedule}-n{n}-seed{seed}"] = arm | length | evaluated
    for seed in trials:
        for schedule, more in (("lockstep", {}), ("peek", {}), ("peek", {"rho_clip": RHO_CLIP})):
            arm = {"schedule": schedule, "n": PROBED_N, "seed": seed, "surrogate": "lvc", **more}
            parts[f"lvc-{schedule}{'-rho' if more else ''}-n{PROBED_N}-seed{seed}"] = arm | length | evaluated
    parts = dict(sorted(parts.items(), key=lambda part: part[1]["n"]))
    points = [8, 16] if is_quick else [50, 300, 584]
    probe_length = length | {"updates": points[-1], "points": points, "samples": 4 if is_quick else SAMPLES}
    probed = {"seed": 1, "n": PROBED_N} | probe_length
    four = probed | {"learnt": list(LEARNT), "surrogate": "lvc"}
    parts |= {"lvc-meta-gradients-rho": four | {"rho_clip": RHO_CLIP}, "lvc-meta-gradients": four}
    return parts | {"meta-gradients": probed}


def _pong_parts(seeds: int, is_quick: bool, updates: int = PONG_UPDATES) -> dict[str, Settings]:
    """Run `atari` on Pong; the step size falls as if every run went on to the paper's 125,000 updates."""
    epoch, episodes = (PONG_EPOCH, 2), (PONG_EPISODES, 1)
    length = sizes(is_quick, updates=(updates, 2), epoch=epoch, environments=(64, 4), episodes=episodes)
    return {
        f"{schedule}-seed{seed}": {"game": "Pong", "schedule": schedule, "n": PROBED_N, "seed": seed, **length}
        for seed in range(1, 1 + (1 if is_quick else seeds))
        for schedule in SCHEDULES
    }


def run_part(settings: Settings, folder: Path) -> Result:
    """Make one training run with its evaluations, or sample both meta-gradients along one.

    Returns:
        of a run: "eta/gamma", "advantage/outer_mean", "transport/lag_versions": means of each epoch; "sampled": mean
        returns of full episodes after each epoch; "wall_seconds" of training, "frames_real", "frames_lookahead".
        Of the samples: "updates" [K], and "lockstep" and "peek": samples [K][samples][M].
    """
    if "points" in settings:
        return _meta_gradients(settings, folder)
    experiment = peek_experiment(settings["schedule"], settings["n"], settings)
    return trained(experiment, folder) | curves(folder, LOGGED) | evaluations(experiment, folder, settings["episodes"])


def _meta_gradients(settings: Settings, folder: Path) -> Result:
    """Sample both estimators from the same θ, η and optimizer states, at several updates of one run under peek."""
    n, seed = settings["n"], settings["seed"]
    found: dict[str, list[Any]] = {schedule: [] for schedule in SCHEDULES}
    for update in settings["points"]:
        experiment = peek_experiment("peek", n, settings | {"updates": update})
        experiment = replace(experiment, log_every=1, checkpoint=CheckpointConfig(every=1, keep=n + 1))
        train(experiment, folder)
        trees = [load(checkpoint_path(folder / "checkpoints", update - n + j)) for j in range(n + 1)]
        lockstep = replace(experiment, schedule="lockstep")
        samples = meta_gradient_samples(lockstep, trees[-1], settings["samples"], seed)
        found["lockstep"].append([x.tolist() for x in samples])
        found["peek"].append([x.tolist() for x in peek_samples(experiment, trees, settings["samples"], seed)])
    return {"updates": list(settings["points"]), **found}


def peek_samples(experiment: Experiment, trees: list[dict[str, Any]], count: int, seed: int) -> Iterator[Tensor]:
    """Yield independent samples of ∂J/∂η [M] as peek has it at the last of n+1 successive checkpoints.

    Batch j of a window is sampled under θ of checkpoint j, the games going on from where the first checkpoint has them:
    what a colocated run does. Random streams of games and policies are fresh for each sample.
    """
    algorithm = experiment.algorithm(probe(experiment.env))
    states = [algorithm.from_tree(tree["learner"], CPU) for tree in trees]
    for index in range(count):
        (setup,) = actor_setups(experiment, CPU, states[-1].update)
        fresh = replace(setup, seed=(seed, states[-1].update, 1 + index))
        with closing(restarted(fresh, trees[0]["actors"][0])) as actor, torch.no_grad():
            snapshots = [WeightSnapshot(j, state.theta, state.eta) for j, state in enumerate(states)]
            window = [merge([actor.rollout(each, 0)], each.version, CPU).trajectory for each in snapshots]
        yield algorithm.estimate_meta_gradient(states[-1], partial(_held, window))


def _held(window: list[Trajectory], _: WeightSnapshot, step: int) -> Trajectory:
    return window[step]


ABOUT = "Snake 6x6: look-ahead in the stream of real rollouts against rollouts of its own, n = 1, 3, 5"
STUDY = training_study("peek", ABOUT, _parts, run_part, partial(report, about=SNAKE), seeds=SEEDS, updates=UPDATES)
ABOUT_PONG = "Pong: look-ahead in the stream of real rollouts against rollouts of its own, n = 3"
PONG_STUDY = training_study(
    "peek-pong", ABOUT_PONG, _pong_parts, run_part, partial(report, about=PONG), seeds=SEEDS, updates=PONG_UPDATES
)
