"""Study `self-tuning`: does a meta-gradient beat searching the same hyper-parameters, at equal frames and CPU seconds?

No paper asks it. A part is one training run, one population or one measurement of CPU seconds, and goes on from the
work that it left. Runs of the search are those of the population as its members start, without what they take over.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.run.colocated import colocated_actors
from metagrad.cluster.run.learning import actor_setups
from metagrad.cluster.studies.study import Result, Settings
from metagrad.cluster.sweeps.space import require_tune
from metagrad.experiments.reporting.parts import sizes
from metagrad.experiments.self_tuning.tuning_arms import (
    ARMS,
    BATCHES,
    MEMBERS,
    META_GRADIENTS,
    STARTS,
    TASKS,
    population_of,
    run_of,
)
from metagrad.experiments.self_tuning.tuning_report import RETURN, report
from metagrad.experiments.training.runs import curves, trained, training_study
from metagrad.learner.schedule import Lockstep

SEEDS = 10
QUICK_TASKS, QUICK_BATCHES = ("catch", "cartpole"), 48
LOGGED = (RETURN, "eta/gamma", "eta/lambda", "eta/entropy_coefficient", "eta/learning_rate")
TIMED = ("fixed", *META_GRADIENTS)


def _parts(seeds: int, is_quick: bool) -> dict[str, Settings]:
    parts: dict[str, Settings] = {}
    for task in QUICK_TASKS if is_quick else TASKS:
        length = sizes(is_quick, batches=(BATCHES[task], QUICK_BATCHES))
        timed = sizes(is_quick, rounds=(15, 3), updates=(4, 1))
        parts[f"{task}-seconds"] = {"task": task, "seed": 1, "start": "good"} | length | timed
        for seed in range(1, 1 + (1 if is_quick else seeds)):  # whole comparisons of few seeds first
            for start in STARTS:
                for arm in ARMS:
                    own = {"task": task, "start": start, "arm": arm, "seed": seed} | length
                    if arm == "search":
                        for member in range(MEMBERS):
                            parts[f"{task}-{start}-search{member}-seed{seed}"] = own | {"member": member}
                    else:
                        parts[f"{task}-{start}-{arm}-seed{seed}"] = own
    return parts


def run_part(settings: Settings, folder: Path) -> Result:
    """Make one training run or one population, or measure the CPU seconds of an update of each way.

    Returns:
        of a run: those of `LOGGED` that it logs, "wall_seconds", "frames_real", "frames_lookahead"; of a population:
        "members", the same curves of each, and "generations", the records of each; "seconds" by way.
    """
    if "rounds" in settings:
        return {"seconds": seconds_of_updates(settings)}
    task, start, arm, seed, batches = (settings[name] for name in ("task", "start", "arm", "seed", "batches"))
    if arm == "population":
        return _population(folder, task, start, seed, batches)
    experiment = run_of(task, start, arm, seed, batches, settings.get("member", 0))
    return trained(experiment, folder) | curves(folder, LOGGED)


def _population(folder: Path, task: str, start: str, seed: int, batches: int) -> Result:
    require_tune()
    from metagrad.cluster.sweeps.evolution import Members, in_turn  # imports Ray Tune, of an extra

    members = Members(population_of(task, start, seed, batches), folder)
    members.claim()
    in_turn(members)
    return {
        "members": [curves(members.place(index), LOGGED) for index in range(MEMBERS)],
        "generations": [members.records(index) for index in range(MEMBERS)],
    }


def seconds_of_updates(settings: Settings) -> dict[str, float]:
    """Return the CPU seconds of this process for one update of each way: medians over rounds in which all take turns.

    So what else the machine does has hardly any influence, and the ways share it.
    """
    task, start, seed, batches = (settings[name] for name in ("task", "start", "seed", "batches"))
    rounds, updates = settings["rounds"], settings["updates"]
    device = torch.device("cpu")
    found: dict[str, list[float]] = {arm: [] for arm in TIMED}
    with ExitStack() as stack:
        live: dict[str, Any] = {}
        for arm in TIMED:
            experiment = run_of(task, start, arm, seed, batches)
            algorithm = experiment.algorithm(probe(experiment.env))
            setups, rollouts = actor_setups(experiment, device, 0), experiment.rollouts_per_batch
            actors = stack.enter_context(colocated_actors(setups, None, rollouts, Actor))
            schedule, state = Lockstep(actors, device), algorithm.init(experiment.seed, device)
            state, _ = algorithm.update(state, schedule.sample)  # what is only done once
            live[arm] = [algorithm, schedule, state]
        for _ in range(rounds):
            for arm, (algorithm, schedule, state) in live.items():
                began = time.process_time()
                for _ in range(updates):
                    state, _ = algorithm.update(state, schedule.sample)
                found[arm].append((time.process_time() - began) / updates)
                live[arm][2] = state
    return {arm: float(f"{median(values):.4g}") for arm, values in found.items()}


ABOUT = "Meta-gradients beside fixed values, random search and a population, at equal frames and CPU"
STUDY = training_study("self-tuning", ABOUT, _parts, run_part, report, seeds=SEEDS)
