"""Environment steps per second: each environment alone, and inside the actor's loop with its policy.

Alone: random actions that were drawn beforehand, nothing kept. In the loop: `actors.rollout.collect` in rollouts of 5
steps, as training runs it: policy, sampling, trajectory, episode statistics, fault checks. Both step the same number of
environments the same number of times, in turn and in one process. One actor on one core: one thread for torch and one
for a C++ pool; Snake lives on the GPU where there is one. A step is one decision for one environment (Atari: 4 frames).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from actors.envs import EnvironmentConfig, make_environment
from actors.envs.atari_config import AtariConfig
from actors.envs.snake import SnakeConfig
from actors.rollout import Pool, collect
from benchmarks.harness import interleave, ratio_summary, summary, torch_threads
from metagrad.networks import NatureCnn, NetworkSpec, SnakeCnn, build_network
from metagrad.types import WeightSnapshot

ROLLOUT_LENGTH = 5  # both Snake and Atari experiments of the papers


class Case(NamedTuple):
    """One environment at one batch size."""

    name: str
    environment: EnvironmentConfig
    network: NetworkSpec
    batch_size: int
    steps: int  # of the whole batch in one timed run; a multiple of ROLLOUT_LENGTH

    @property
    def label(self) -> str:
        return f"{self.name}, {self.batch_size}"


SNAKE_12 = SnakeConfig(rows=12, columns=12, time_limit=5000)
CASES = (
    Case("Snake-6x6", SnakeConfig(), SnakeCnn(), 512, 200),
    Case("Snake-12x12", SNAKE_12, SnakeCnn(), 512, 100),
    Case("Snake-12x12", SNAKE_12, SnakeCnn(), 4096, 20),
    Case("Pong on EnvPool", AtariConfig(), NatureCnn(), 32, 50),
    Case("Pong on ale-py", AtariConfig(backend="ale"), NatureCnn(), 32, 50),
)


def _quick(case: Case) -> Case:
    return case._replace(batch_size=case.batch_size // 16, steps=ROLLOUT_LENGTH)


def _runs(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """One timed run alone and one in the loop, in environments of their own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone, looped = (make_environment(case.environment, case.batch_size, seed, device, 1, True) for seed in (0, 1))
    spec = alone.spec
    alone.reset()
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(spec.num_actions, (case.steps, case.batch_size), generator=generator).to(spec.device)
    network = build_network(case.network, spec.observation_shape, spec.num_actions, has_outer_critic=True)
    snapshot = WeightSnapshot(0, network.init(generator).to(spec.device), torch.zeros(0))
    pool = Pool(looped, seed=0)

    def step_alone() -> None:
        for action in actions:
            alone.step(action)

    def step_in_loop() -> None:
        for _ in range(case.steps // ROLLOUT_LENGTH):
            collect(pool, network, snapshot, ROLLOUT_LENGTH)

    return step_alone, step_in_loop


def run(rounds: int, quick: bool) -> dict[str, Any]:
    """Steps per second and the share of the speed alone that is left in the loop; quick: 16 times smaller, 5 steps."""
    chosen = [_quick(case) for case in CASES] if quick else CASES
    with torch_threads(1):
        runs: dict[str, Callable[[], object]] = {}
        for case in chosen:
            runs[f"{case.label} alone"], runs[f"{case.label} in the loop"] = _runs(case)
        timings = interleave(runs, rounds)
    result = {}
    for case in chosen:
        alone, looped = timings[f"{case.label} alone"], timings[f"{case.label} in the loop"]
        steps = case.batch_size * case.steps
        result[case.label] = {
            "steps": steps,
            "alone_steps_per_s": summary([steps / timing.wall_s for timing in alone]),
            "loop_steps_per_s": summary([steps / timing.wall_s for timing in looped]),
            "loop_over_alone": ratio_summary(alone, looped),  # of speeds: the inverse of the ratio of times
        }
    return {"environments": result}
