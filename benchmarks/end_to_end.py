"""Measures decisions trained on per second, through actors and learner.

It compares ours, RLlib's IMPALA and Sample Factory's APPO on Pong.

Whole runs in turn, round by round, each in fresh processes on all cores of the machine: start, a warm-up that is left
out, a steady window, end. The same game (ALE's Pong: 84 x 84 grey, 4 screens stacked, 4 per decision), the same network
(Nature CNN, one torso for policy and value, float32) and every decision trained on once; batches, environments and
processes are each system's own choice, and the best that was found on two cores: all of them stand in the result.

What counts is what a learner has computed gradients of. Ours: batches of the updates in the window times their steps,
resets of finished games included (one row in about a thousand). RLlib: num_env_steps_trained_lifetime of the learner,
without the row that it appends to each fragment for the bootstrap. Sample Factory: env_steps that the learner reports.

Beside them ours in bf16-mixed. Neither of the others offers reduced precision on a CPU (RLlib's mixed precision is a
gradient scaler for float16 on GPUs).

Then ours with look-ahead (n = 3) and `snake-6x6` (n = 1, outer critic). Beside the rates: the cores that each run kept
busy, and CPU milliseconds per decision, which another program on the machine does not change.

The floor is what no arrangement of the same arithmetic can beat: environment, inference and gradient of one decision,
each alone on one core, added up and shared out over the cores without a wait.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.alternative import Alternative, alternative
from benchmarks.end_to_end_ours import EXPERIMENTS, chosen, ours
from benchmarks.harness import at_least, interleave, summary, torch_threads
from metagrad.actors import policy
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.learning import actor_setups
from metagrad.cores import usable_cores
from metagrad.learner.batch import merge
from metagrad.types import WeightSnapshot

ALTERNATIVES = ("rllib", "sample_factory")
PROGRAMS = {"RLlib IMPALA": ("rllib", "rllib_impala"), "Sample Factory APPO": ("sample_factory", "sample_factory_appo")}
LEAST = {"RLlib IMPALA": 3.0, "Sample Factory APPO": 1.5}
LEAST_OF_FLOOR, LEAST_SNAKE = 0.80, 10_000.0
WARM_UP_S, WINDOW_S = 6.0, 15.0
FRAMES_PER_DECISION = 4
AT_N_0 = ("pong n=0 lockstep", "pong n=0 peek")
MIXED, LEAST_MIXED = "pong n=0 peek, bf16-mixed", 2.0  # over RLlib, which computes in float32 on a CPU
QUICK = ("pong n=0 lockstep", "snake-6x6")
CPU = torch.device("cpu")

System = Callable[[], Mapping[str, Any]]


def seconds_per_decision(experiment: Experiment, repeats: int) -> dict[str, float]:
    """Return medians of environment, inference and gradient, each alone on one thread: the terms of the floor.

    CPU seconds: alone on a core they are those of the clock, and other programs do not change them.
    """
    alone = replace(experiment, topology="colocated", actors=1, environments_per_actor=None)
    algorithm, batch = alone.algorithm(probe(alone.env)), experiment.environments_of_an_actor
    state = algorithm.init(alone.seed, CPU)
    games = alone.env.make(batch_size=batch, seed=0, device=CPU, threads=1, is_training=True)
    observation = games.reset()
    actions = torch.randint(games.spec.num_actions, (alone.rollout_length, batch))
    (setup,) = actor_setups(alone, CPU, 0)
    actor = Actor(setup)
    with torch.no_grad():
        rollout = actor.rollout(WeightSnapshot(0, state.theta, state.eta), 0)
    trajectory = merge([rollout], 0, CPU).trajectory

    def environment() -> None:
        for action in actions:
            games.step(action)

    @torch.no_grad()
    def inference() -> None:
        network = algorithm.network.at(state.theta)
        for _ in actions:
            network(observation, policy.POLICY)

    cases: dict[str, Callable[[], object]] = {
        "environment": environment,
        "inference": inference,
        "gradient": lambda: algorithm.update(state, lambda _, __: trajectory),
    }
    with torch_threads(1):
        timings = interleave(cases, repeats)
    actor.close()
    games.close()
    decisions = {"gradient": alone.steps_per_rollout}
    return {
        name: summary([each.cpu_s for each in own])["median"] / decisions.get(name, actions.numel())
        for name, own in timings.items()
    }


def floor_rate(seconds: Mapping[str, float], cores: int) -> float:
    """Return the decisions per second of `cores` that never wait.

    >>> floor_rate({"environment": 0.001, "gradient": 0.003}, cores=2)
    500.0
    """
    return cores / sum(seconds.values())


def measured(
    systems: Mapping[str, System], floors: Mapping[str, Callable[[], dict[str, float]]], rounds: int
) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, list[dict[str, float]]]]:
    """Measure all systems in turn, and the terms of the floors beside them, round by round."""
    answers: dict[str, list[Mapping[str, Any]]] = {name: [] for name in systems}
    terms: dict[str, list[dict[str, float]]] = {name: [] for name in floors}
    for _ in range(rounds):
        for name, system in systems.items():
            answers[name].append(system())
        for name, floor in floors.items():
            terms[name].append(floor())
    return answers, terms


def rates(answers: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return decisions per second of each run."""
    return [answer["decisions"] / answer["window_s"] for answer in answers]


def row(name: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Report one system; the longest of a run's processes as of the last round."""
    speeds, last = rates(answers), answers[-1]
    frames = {} if name.startswith("snake") else {"frames_per_s": summary([FRAMES_PER_DECISION * x for x in speeds])}
    optional = ("settings", "share_of_learner_time", "lag_versions_mean", "dropped_steps", "versions")
    return {
        "decisions_per_s": summary(speeds),
        **frames,
        "cores_busy": summary([answer["cores_busy"] for answer in answers]),
        "cpu_ms_per_decision": summary(
            [1000 * answer["cores_busy"] / speed for answer, speed in zip(answers, speeds, strict=True)]
        ),
        "window_s": summary([answer["window_s"] for answer in answers]),
        "processes": last["processes"],
        **{key: last[key] for key in optional if key in last},
    }


def by_round(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Summarise the ratios of each round."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def result_of(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], terms: Mapping[str, Sequence[dict[str, float]]], cores: int
) -> dict[str, Any]:
    """Rows, ratios round by round against the better schedule at n = 0, floors and targets."""
    speeds = {name: rates(each) for name, each in answers.items()}
    headline = max((name for name in AT_N_0 if name in speeds), key=lambda name: summary(speeds[name])["median"])
    against = {name: by_round(speeds[headline], speeds[name]) for name in PROGRAMS if name in speeds}
    floors = {
        name: {
            **{f"{part}_ms": summary([1000 * each[part] for each in own]) for part in own[0]},
            "floor_decisions_per_s": summary([floor_rate(each, cores) for each in own]),
            "share_of_floor": by_round(speeds[name], [floor_rate(each, cores) for each in own]),
        }
        for name, own in terms.items()
    }
    of_floor, snake = floors[headline]["share_of_floor"]["median"], summary(speeds["snake-6x6"])["median"]
    labels = {name: f"{headline.partition(' ')[0]} n=0 over {name}" for name in against}
    mixed = {f"{MIXED} over {name}": by_round(speeds[MIXED], speeds[name])["median"] for name in against}
    rllib = next(iter(PROGRAMS))
    return {
        "systems": {name: row(name, each) for name, each in answers.items()},
        "headline": headline,
        "headline_over": against,
        "floors": floors,
        "ratios": {labels[name]: ratio["median"] for name, ratio in against.items()} | mixed,
        "targets": [
            *(at_least(labels[name], ratio["median"], LEAST[name]) for name, ratio in against.items()),
            *(at_least(label, ratio, LEAST_MIXED) for label, ratio in mixed.items() if label.endswith(rllib)),
            at_least(f"{headline}: share of the floor", of_floor, LEAST_OF_FLOOR),
            at_least("snake-6x6: real steps per second", snake, LEAST_SNAKE),
        ],
    }


def _run_of(other: Alternative) -> dict[str, Any]:
    return other.run("pong").answer | {"versions": other.versions}


def run(rounds: int, quick: bool, alone: bool) -> dict[str, Any]:
    """Measure rates of all systems; quick: two small runs of ours, a second each."""
    warm_up_s, window_s = (0.2, 0.5) if quick else (WARM_UP_S, WINDOW_S)
    names = QUICK if quick else tuple(EXPERIMENTS)
    with ExitStack() as stack:
        runs: dict[str, System] = {name: partial(ours, name, warm_up_s, window_s, quick) for name in names}
        systems = {
            name: runs[name] for name in names if name in (*AT_N_0, MIXED)
        }  # neighbours in time of the alternatives
        for name, (environment, program) in {} if alone else PROGRAMS.items():
            arguments = (str(warm_up_s), str(window_s))
            other = stack.enter_context(
                alternative(environment, program, "serve", *arguments, variables={"OMP_NUM_THREADS": "1"})
            )
            systems[name] = partial(_run_of, other)
        repeats = 1 if quick else 5
        floors = {name: partial(seconds_per_decision, chosen(name, quick), repeats) for name in systems if name in runs}
        answers, terms = measured(systems | runs, floors, rounds)
    return result_of(answers, terms, usable_cores())
