"""Plays Jumanji's Snake at random: jit of vmap and lax.scan, the boards split over the XLA devices that there are.

Every argument is SIDE,BATCH,STEPS,LIMIT and one case of that name. Actions are drawn beforehand, episodes restart at
once (`AutoResetWrapper`), and the loop carries the observations, so that each step writes them.

Tuned on two cores, Jumanji 1.1.2 on JAX 0.10.2: XLA keeps hardly more than one core busy with one device, so as many
devices as cores (`XLA_FLAGS=--xla_force_host_platform_device_count=2`), each with its share of the boards, are up to
twice as fast; the benchmark measures both. Four devices, the generators `rbg` and `unsafe_rbg`, and a sum of each
observation in place of the observation were slower.
"""

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jumanji.environments import Snake
from jumanji.wrappers import AutoResetWrapper, VmapWrapper

from benchmarks.alternatives.serve import serve

PACKAGES = ("jax", "jumanji")


def play(side: int, batch_size: int, steps: int, time_limit: int) -> Callable[[], dict[str, Any]]:
    """Play one run, which continues with the games of the last; every run plays the same actions.

    Raises:
        ValueError: boards that cannot be shared out evenly.
    """
    devices = jax.devices()
    if batch_size % len(devices):
        raise ValueError(f"batch = {batch_size}: must be a multiple of the {len(devices)} XLA devices; change either")
    environment = VmapWrapper(AutoResetWrapper(Snake(side, side, time_limit)))

    def step(carry: tuple[Any, Any], action: jax.Array) -> tuple[tuple[Any, Any], tuple[jax.Array, jax.Array]]:
        state, timestep = environment.step(carry[0], action)
        return (state, timestep.observation), (timestep.last().sum(), timestep.reward.sum())

    def scan(carry: tuple[Any, Any], actions: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        carry, counts = jax.lax.scan(step, carry, actions)
        return carry, jnp.stack([count.sum() for count in counts])[None]  # one row per device

    mesh = jax.make_mesh((len(devices),), ("boards",))
    by_board, by_step = PartitionSpec("boards"), PartitionSpec(None, "boards")
    run = jax.jit(
        jax.shard_map(scan, mesh=mesh, in_specs=(by_board, by_step), out_specs=(by_board, by_board), check_vma=False),
        donate_argnums=0,
    )
    action_key, game_key = jax.random.split(jax.random.PRNGKey(0))
    actions = jax.random.randint(action_key, (steps, batch_size), 0, 4)
    actions = jax.device_put(actions, NamedSharding(mesh, by_step))
    state, timestep = jax.jit(environment.reset)(jax.random.split(game_key, batch_size))
    games = [jax.device_put((state, timestep.observation), NamedSharding(mesh, by_board))]

    def once() -> dict[str, Any]:
        games[0], counts = jax.block_until_ready(run(games[0], actions))
        ends, fruits = (float(count) for count in counts.sum(0))
        return {"episode_ends": ends, "fruits": fruits, "devices": len(devices)}

    once()  # compiles
    return once


if __name__ == "__main__":
    serve(
        {case: play(*map(int, case.split(","))) for case in sys.argv[1:]},
        {package: metadata.version(package) for package in PACKAGES},
    )
