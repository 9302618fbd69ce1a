"""Compares Snake with Jumanji's and EnvPool's Snake-v1: random actions drawn beforehand, autoreset, steps per second.

All cores for everybody, however each uses them best: ours and EnvPool's with one thread and with as many as cores, ours
also shared out among as many actors, which are processes of one thread as in training; Jumanji's (jit, vmap, scan:
`benchmarks/alternatives/jumanji_snake.py`) as one XLA device and shared out among as many as cores. A new float32
observation [B, side, side, 5] of the same planes at every step of each. How often episodes end and fruits are eaten
must agree. What differs: the other two also say which actions are possible; Jumanji's loop is compiled with its steps,
ours goes through Python; EnvPool spends a step on a restart, and is credited with it.

`in the loop` is ours on one thread in `metagrad.actors.rollout.collect`, rollouts of 5 steps with the policy network.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.alternative import Alternative, alternative
from benchmarks.environments_actors import Actors, snake_actors
from benchmarks.harness import interleave, torch_threads
from benchmarks.rates import Program, compare
from metagrad.actors.envs.base import Environment
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.policy import sample
from metagrad.actors.rollout import Pool, collect
from metagrad.cluster.run.memory import keep_freed_memory
from metagrad.cores import usable_cores
from metagrad.networks import SnakeCnn, build_network

ROLLOUT_LENGTH = 5  # of the papers' Snake and Atari experiments
CPU = torch.device("cpu")


class SnakeCase(NamedTuple):
    """Describes one board at one batch size."""

    side: int
    batch_size: int
    steps: int  # of the whole batch in a run of ours and of Jumanji's
    envpool_steps: int  # in a run of EnvPool's; 0 where its board, which is 12 x 12, is another
    loop_steps: int  # in the loop; a multiple of ROLLOUT_LENGTH
    time_limit: int = 4000  # of EnvPool's and Jumanji's own

    @property
    def label(self) -> str:
        return f"Snake {self.side}x{self.side}, {self.batch_size}"

    @property
    def argument(self) -> str:
        """Return the argument for `benchmarks/alternatives/jumanji_snake.py`."""
        return f"{self.side},{self.batch_size},{self.steps},{self.time_limit}"

    @property
    def config(self) -> SnakeConfig:
        return SnakeConfig(rows=self.side, columns=self.side, time_limit=self.time_limit)


CASES = (
    SnakeCase(6, 512, steps=600, envpool_steps=0, loop_steps=50),
    SnakeCase(12, 512, steps=400, envpool_steps=40, loop_steps=25),
    SnakeCase(12, 4096, steps=60, envpool_steps=0, loop_steps=5),
)


def quick(case: SnakeCase) -> SnakeCase:
    """Return a case 64 times smaller with few steps."""
    return case._replace(
        batch_size=case.batch_size // 64, steps=20, envpool_steps=min(case.envpool_steps, 5), loop_steps=ROLLOUT_LENGTH
    )


class Counts(NamedTuple):
    """Counts what happened in steps of one environment."""

    steps: int
    ends: int
    fruits: int

    def per_step(self) -> dict[str, float]:
        """Return the rates."""
        return {"episode_ends_per_step": self.ends / self.steps, "fruits_per_step": self.fruits / self.steps}


def check_same_game(counts: Mapping[str, Counts]) -> None:
    """Ends and fruits per step agree up to chance (5 standard deviations) and a tenth (few sequences of actions).

    Raises:
        RuntimeError: they differ, so that what was compared is not the same game.
    """
    reference, *others = counts
    for name in others:
        sizes = 1 / counts[reference].steps + 1 / counts[name].steps
        expected, found = counts[reference].per_step(), counts[name].per_step()
        for rate in expected:
            mean = (expected[rate] + found[rate]) / 2
            if abs(expected[rate] - found[rate]) > mean / 10 + 5 * math.sqrt(mean * sizes):
                raise RuntimeError(f"{rate}: {expected[rate]:.4f} of {reference}, {found[rate]:.4f} of {name}")


class EnvPoolSnake:
    """Steps EnvPool's Snake-v1 and counts what happened in it so far."""

    def __init__(self, actions: Tensor, steps: int, threads: int):
        from envpool import make_gymnasium  # a second, for those who measure it

        self._pool: Any = make_gymnasium("Snake-v1", num_envs=actions.shape[1], num_threads=threads, seed=0)
        self._pool.reset()
        self._actions, self._steps = cycle(actions.to(torch.int32).numpy()), steps
        self._all = self._ends = self._fruits = 0

    def run(self) -> None:
        """Go on through the actions, round and round."""
        for _ in range(self._steps):
            _, reward, is_terminal, _, _ = self._pool.step(next(self._actions))
            self._all += len(reward)
            self._ends += int(is_terminal.sum())
            self._fruits += int(reward.sum())

    def counts(self) -> Counts:
        """Count without the steps that restarted, of which there is one for every end."""
        return Counts(self._all - self._ends, self._ends, self._fruits)


def step_through(environment: Environment, actions: Tensor, threads: int) -> None:
    """Step and keep nothing."""
    with torch_threads(threads):
        for action in actions:
            environment.step(action)


def counted(environment: Environment, actions: Tensor) -> Counts:
    """Step and count."""
    ends = fruits = 0
    for action in actions:
        step = environment.step(action)
        ends, fruits = ends + int(step.is_terminal.sum()), fruits + int(step.reward.sum())
    return Counts(actions.numel(), ends, fruits)


def in_the_loop(case: SnakeCase) -> Program:
    """Make rollouts on one thread, as an actor does."""
    environment = case.config.make(batch_size=case.batch_size, seed=1, device=CPU, threads=1, is_training=True)
    spec = environment.spec
    network = build_network(SnakeCnn(), spec.observation_shape, spec.num_actions, has_outer_critic=True)
    theta = network.init(torch.Generator().manual_seed(0))
    pool = Pool(environment, seed=0)

    def run() -> None:
        with torch_threads(1):
            for _ in range(case.loop_steps // ROLLOUT_LENGTH):
                collect(pool, partial(sample, network.at(theta)), 0, ROLLOUT_LENGTH)

    return Program(run, case.loop_steps * case.batch_size)


def measure_case(
    case: SnakeCase, rounds: int, threads: list[int], actors: Actors, jumanji: Mapping[int, Alternative]
) -> dict[str, Any]:
    """Return ours with these threads and actors, Jumanji's with these devices, and EnvPool's if it has the board.

    Args:
        case: what is measured.
        rounds: timed rounds.
        threads: numbers of threads, each a program of its own.
        actors: processes that share the boards.
        jumanji: programs by number of devices; empty: ours alone.

    Raises:
        RuntimeError: the programs do not play the same game.
    """
    actions = torch.randint(4, (case.steps, case.batch_size), generator=torch.Generator().manual_seed(0))
    programs = {"in the loop": in_the_loop(case)}
    for count in threads:
        environment = case.config.make(batch_size=case.batch_size, seed=0, device=CPU, threads=1, is_training=True)
        environment.reset()
        programs[f"ours, threads: {count}"] = Program(
            partial(step_through, environment, actions, count), actions.numel()
        )
    actors.prepare(case.config, actions)
    programs[f"ours, actors: {len(actors.processes)}"] = Program(actors.run, actions.numel())
    pairs = {"in the loop over alone": ("in the loop", "ours, threads: 1")}
    for devices, program in jumanji.items():
        programs[f"Jumanji, devices: {devices}"] = Program(program.case(case.argument), actions.numel())
        pairs["ours over Jumanji"] = ("ours", "Jumanji")
        pairs[f"ours over Jumanji, devices: {devices}"] = ("ours", f"Jumanji, devices: {devices}")
    pools: dict[str, EnvPoolSnake] = {}
    if jumanji and case.envpool_steps:
        pools = {f"EnvPool, threads: {count}": EnvPoolSnake(actions, case.envpool_steps, count) for count in threads}
        programs |= {name: Program(pool.run, case.envpool_steps * case.batch_size) for name, pool in pools.items()}
        pairs["ours over EnvPool"] = ("ours", "EnvPool")
    timings = interleave({name: program.run for name, program in programs.items()}, rounds)
    # Counted apart from what is timed. EnvPool's own numbers are numpy's, which cost nothing beside its steps.
    counts = {"ours": counted(environment, actions)}
    for devices, program in jumanji.items():
        answer = program.run(case.argument).answer
        counts[f"Jumanji, devices: {devices}"] = Counts(actions.numel(), answer["episode_ends"], answer["fruits"])
    counts |= {name: pool.counts() for name, pool in pools.items()}
    check_same_game(counts)
    rates = {name: count.per_step() for name, count in counts.items()}
    return compare(programs, timings, pairs) | {"same_game": rates}


@contextmanager
def jumanji_programs(cases: list[SnakeCase], device_counts: list[int]) -> Iterator[dict[int, Alternative]]:
    """Run Jumanji's Snake in one process for every number of XLA devices."""
    flag = "--xla_force_host_platform_device_count"
    with ExitStack() as stack:
        arguments = [case.argument for case in cases]
        yield {
            count: stack.enter_context(
                alternative("jax", "jumanji_snake", *arguments, variables={"XLA_FLAGS": f"{flag}={count}"})
            )
            for count in device_counts
        }


def measure_snake(cases: list[SnakeCase], rounds: int, alone: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all cases; return results by label and versions of the alternatives.

    This process keeps freed memory, as an actor's does.
    """
    keep_freed_memory()
    threads = sorted({1, usable_cores()})
    with snake_actors(max(threads)) as actors, jumanji_programs(cases, [] if alone else threads) as jumanji:
        results = {case.label: measure_case(case, rounds, threads, actors, jumanji) for case in cases}
        versions = next((program.versions for program in jumanji.values()), {})
    return results, versions
