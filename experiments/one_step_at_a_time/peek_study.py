"""Studies `peek` and `peek-pong` compare look-ahead in the stream of real rollouts with rollouts of its own.

Schedule `lockstep` rolls every looked-ahead policy out; `peek` takes the rollouts of the next real updates in their
place, corrected by importance ratios (`metagrad.learner.schedule`). What that does to returns at equal real frames, to
time, and to the meta-gradient itself, with whole ratios and with IMPALA's clips. No paper has it: "One Step at a Time",
§4.2, asks for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
SEEDS, UPDATES, EPOCH, EPISODES = 3, 2_920, 73, 512
NS, SAMPLES = (1, 3, 5), 48
POINTS, PROBED_SEEDS = (50, 300, 584, 1_460, 2_920), (1, 2)  # of meta-gradients, as far as `--updates`
IMPALA_CLIP = 1.0
SCHEDULES: tuple[ScheduleName, ...] = ("lockstep", "peek")
PONG_N, PONG_UPDATES, PONG_EPOCH, PONG_EPISODES = 3, 10_000, 2_500, 32
LEARNT = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
LOGGED = ("eta/gamma", "advantage/outer_mean", "policy/effective_sample_size", "transport/lag_versions")


def peek_experiment(schedule: ScheduleName, n: int, settings: Settings) -> Experiment:
    """Return `snake-6x6`, with outer critic and AD unless the settings say otherwise, or `atari`; on one thread."""
    base = atari() if settings.get("game") == "Pong" else snake_6x6()
    losses = base.meta_parameters
    learnt = {name: replace(getattr(losses, name), is_learnt=True) for name in settings.get("learnt", ())}
    experiment = replace(
        base,
        schedule=schedule,
        meta=replace(base.meta, n=n, surrogate=settings.get("surrogate", base.meta.surrogate)),
        meta_parameters=replace(losses, **learnt),
        ratio_clip=settings.get("ratio_clip"),
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
            arm = {"schedule": "peek", "n": n, "seed": seed, "ratio_clip": IMPALA_CLIP}
            parts[f"peek-impala-n{n}-seed{seed}"] = arm | length | evaluated
    points = [8, 16] if is_quick else [point for point in POINTS if point <= updates]
    samples = 4 if is_quick else SAMPLES
    probed = length | {"updates": points[-1], "points": points, "samples": samples} if points else {}
    for n in NS if probed else ():
        for seed in PROBED_SEEDS[: len(trials)]:
            parts[f"meta-gradients-n{n}-seed{seed}"] = {"seed": seed, "n": n} | probed
        four = {"seed": 1, "n": n, "learnt": list(LEARNT), "surrogate": "lvc"} | probed
        parts[f"lvc-meta-gradients-n{n}"] = four
    return parts


def _pong_parts(seeds: int, is_quick: bool, updates: int = PONG_UPDATES) -> dict[str, Settings]:
    """Run `atari` on Pong; the step size falls as if every run went on to the paper's 125,000 updates."""
    epoch, episodes = (PONG_EPOCH, 2), (PONG_EPISODES, 1)
    length = sizes(is_quick, updates=(updates, 2), epoch=epoch, environments=(64, 4), episodes=episodes)
    return {
        f"{schedule}-seed{seed}": {"game": "Pong", "schedule": schedule, "n": PONG_N, "seed": seed, **length}
        for seed in range(1, 1 + (1 if is_quick else seeds))
        for schedule in SCHEDULES
    }


def run_part(settings: Settings, folder: Path) -> Result:
    """Make one training run with its evaluations, or sample both meta-gradients along one.

    Returns:
        of a run: those of `LOGGED` that it logs, means of each epoch; "sampled": mean returns of full episodes after
        each epoch; "wall_seconds" of training, "frames_real", "frames_lookahead".
        Of the samples: "updates" [K], and "lockstep", "peek" and "impala": samples [K][samples][M].
    """
    if "points" in settings:
        return _meta_gradients(settings, folder)
    experiment = peek_experiment(settings["schedule"], settings["n"], settings)
    return trained(experiment, folder) | curves(folder, LOGGED) | evaluations(experiment, folder, settings["episodes"])


def _meta_gradients(settings: Settings, folder: Path) -> Result:
    """Sample all estimators from the same θ, η and optimizer states, at several updates of one lockstep run, n = 1.

    That run is the same for every n, and knows of none of the estimators that are compared.
    """
    n, seed, count = settings["n"], settings["seed"], settings["samples"]
    found: dict[str, list[Any]] = {name: [] for name in ("lockstep", "peek", "impala")}
    for update in settings["points"]:
        run = peek_experiment("lockstep", 1, settings | {"updates": update})
        train(replace(run, checkpoint=CheckpointConfig(every=1, keep=max(NS) + 1)), folder)
        trees = [load(checkpoint_path(folder / "checkpoints", update - n + j)) for j in range(n + 1)]
        lockstep = peek_experiment("lockstep", n, settings)
        streamed = [peek_experiment("peek", n, settings | more) for more in ({}, {"ratio_clip": IMPALA_CLIP})]
        found["lockstep"].append([x.tolist() for x in meta_gradient_samples(lockstep, trees[-1], count, seed)])
        both = list(peek_samples(streamed, trees, count, seed))
        for name, samples in zip(("peek", "impala"), zip(*both, strict=True), strict=True):
            found[name].append([x.tolist() for x in samples])
    return {"updates": list(settings["points"]), **found}


def peek_samples(
    experiments: Sequence[Experiment], trees: list[dict[str, Any]], count: int, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yield independent samples of ∂J/∂η [M] as peek has it at the last of n+1 successive checkpoints, by estimator.

    Batch j of a window is sampled under θ of checkpoint j, the games going on from where the first checkpoint has them:
    what a colocated run does. Random streams of games and policies are fresh for each sample, and estimators, which
    `experiments` differ in alone, are given the same window.
    """
    experiment, spec = experiments[0], probe(experiments[0].env)
    algorithms = [each.algorithm(spec) for each in experiments]
    states = [algorithms[0].from_tree(tree["learner"], CPU) for tree in trees]
    for index in range(count):
        (setup,) = actor_setups(experiment, CPU, states[-1].update)
        fresh = replace(setup, seed=(seed, states[-1].update, 1 + index))
        with closing(restarted(fresh, trees[0]["actors"][0])) as actor, torch.no_grad():
            snapshots = [WeightSnapshot(j, state.theta, state.eta) for j, state in enumerate(states)]
            window = [merge([actor.rollout(each, 0)], each.version, CPU).trajectory for each in snapshots]
        yield tuple(each.estimate_meta_gradient(states[-1], partial(_held, window)) for each in algorithms)


def _held(window: list[Trajectory], _: WeightSnapshot, step: int) -> Trajectory:
    return window[step]


ABOUT = "Snake 6x6: look-ahead in the stream of real rollouts against rollouts of its own, n = 1, 3, 5"
STUDY = training_study("peek", ABOUT, _parts, run_part, partial(report, about=SNAKE), seeds=SEEDS, updates=UPDATES)
ABOUT_PONG = "Pong: look-ahead in the stream of real rollouts against rollouts of its own, n = 3"
PONG_STUDY = training_study(
    "peek-pong", ABOUT_PONG, _pong_parts, run_part, partial(report, about=PONG), seeds=SEEDS, updates=PONG_UPDATES
)
