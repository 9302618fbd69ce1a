"""Compares Atari's actor loop with bare pools: 32 games of Pong, one actor on one core, steps per second in turn.

The process is bound to one core, has one thread of torch and one of the pool, and keeps freed memory, as an actor's:

* `bare`: the pool's own `step` with random actions, nothing kept; the settings are those of our environment.
* `environment`: ours with the same actions.
* `loop without policy`: `metagrad.actors.rollout.collect` in rollouts of 5 steps, with actions drawn at random.
* `bare and forward`: the bare pool alternating with a bare forward pass of the Nature network (policy head alone,
  float32, pixels scaled in the weights) on what it showed; plain and channels_last. The faster is the loop's floor.
* `loop`: `collect` with the Nature network.

A step is one decision for one game: four frames.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environments_snake import CPU, ROLLOUT_LENGTH, step_through
from benchmarks.harness import interleave, one_core
from benchmarks.rates import Program, compare
from metagrad.actors.envs import AtariConfig
from metagrad.actors.envs.atari import BACKENDS
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.envs.envpool import distinct_seeds
from metagrad.actors.policy import Decision, Policy, sample
from metagrad.actors.rollout import Pool, collect
from metagrad.cluster.run.memory import keep_freed_memory
from metagrad.networks import NatureCnn, build_network

GAMES = 32
STEPS = 50  # of all games in a run; a multiple of ROLLOUT_LENGTH
CASES = {"Pong on EnvPool": AtariConfig(), "Pong on ale-py": AtariConfig(backend="ale")}
FLOOR = "bare and forward"
PAIRS = {
    "environment over bare": ("environment", "bare"),
    "loop without policy over bare": ("loop without policy", "bare"),
    "loop over bare and forward": ("loop", FLOOR),
    "loop over bare": ("loop", "bare"),
}
FORMATS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last}


def bare_network(num_actions: int) -> nn.Sequential:
    """Build the Nature network's policy from torch's own modules."""
    return nn.Sequential(
        *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, num_actions)),
    )


@torch.no_grad()
def bare_forward(network: nn.Sequential, memory_format: torch.memory_format) -> Callable[[Tensor], Tensor]:
    """Run its forward pass on uint8 pixels, which are only converted: the first layer's weights carry the 1/255."""
    network = deepcopy(network)
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    convolutions[0].weight /= 255
    for layer in convolutions:
        layer.weight.data = layer.weight.contiguous(memory_format=memory_format)

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        logits: Tensor = network(pixels.to(torch.float32, memory_format=memory_format))
        return logits

    return forward


class BarePool:
    """Steps an Atari pool with our settings, without our code around its `step`."""

    def __init__(self, config: AtariConfig, actions: Tensor):
        seeds = distinct_seeds(0, actions.shape[1])
        games: Any = BACKENDS[config.backend](config, seeds, threads=1, is_colour_view=False)
        self.observation = games.reset()[0]
        self._pool, self._actions = games._pool, actions.to(torch.int32).numpy()

    def run(self) -> None:
        """Step through the actions."""
        for action in self._actions:
            self.observation = self._pool.step(action)[0]

    def run_with(self, forward: Callable[[Tensor], Tensor]) -> None:
        """Step with a forward pass before each step."""
        for action in self._actions:
            forward(torch.from_numpy(self.observation))
            self.observation = self._pool.step(action)[0]


def loop(
    config: AtariConfig, games: int, steps: int, policy_of: Callable[[EnvironmentSpec], Callable[[], Policy]]
) -> Callable[[], None]:
    """Make rollouts as an actor does, each under a policy of its own."""
    pool = Pool(config.make(batch_size=games, seed=0, device=CPU, threads=1, is_training=True), seed=0)
    publish = policy_of(pool.environment.spec)

    def run() -> None:
        for version in range(steps // ROLLOUT_LENGTH):
            collect(pool, publish(), version, ROLLOUT_LENGTH)

    return run


def random_actions(spec: EnvironmentSpec) -> Callable[[], Policy]:
    """Every action is as likely."""

    def act(observation: Tensor, generator: torch.Generator) -> Decision:
        rows = (len(observation),)
        return Decision(torch.randint(spec.num_actions, rows, generator=generator), torch.zeros(rows))

    return lambda: act


def nature(spec: EnvironmentSpec) -> Callable[[], Policy]:
    """Return the network of training."""
    network = build_network(NatureCnn(), spec.observation_shape, spec.num_actions, has_outer_critic=True)
    theta = network.init(torch.Generator().manual_seed(0))
    return lambda: partial(sample, network.at(theta))


def measure_case(config: AtariConfig, rounds: int, games: int, steps: int) -> dict[str, Any]:
    """Measure all programs on one backend.

    Raises:
        RuntimeError: the same actions led the bare pool and ours to different screens.
    """
    keep_freed_memory()
    with one_core():
        ours = config.make(batch_size=games, seed=0, device=CPU, threads=1, is_training=True)
        ours.reset()
        num_actions = ours.spec.num_actions
        actions = torch.randint(num_actions, (steps, games), generator=torch.Generator().manual_seed(0))
        bare = BarePool(config, actions)
        runs: dict[str, Callable[[], object]] = {
            "bare": bare.run,
            "environment": partial(step_through, ours, actions, 1),
            "loop without policy": loop(config, games, steps, random_actions),
            "loop": loop(config, games, steps, nature),
        }
        network = bare_network(num_actions)
        for name, memory_format in FORMATS.items():
            forward = bare_forward(network, memory_format)
            runs[f"{FLOOR}, {name}"] = partial(BarePool(config, actions).run_with, forward)
        timings = interleave(runs, rounds)
        last = ours.step(actions[0]).observation
        bare.run()
        for action in actions[1:]:
            last = ours.step(action).observation
        if not torch.equal(last, torch.from_numpy(bare.observation)):
            raise RuntimeError("the bare pool and ours show different screens after the same actions")
    return compare({name: Program(run, games * steps) for name, run in runs.items()}, timings, PAIRS)


def measure_atari(rounds: int, quick: bool) -> dict[str, Any]:
    """Measure all cases and return results by label; quick: 2 games, one rollout."""
    games, steps = (2, ROLLOUT_LENGTH) if quick else (GAMES, STEPS)
    return {f"{name}, {games}": measure_case(config, rounds, games, steps) for name, config in CASES.items()}
