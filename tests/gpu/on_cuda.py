"""Holds what the tests on a GPU compute, for any device, so that they can be tried where there is none.

As a script it prints how long a meta-update of Pong takes on this machine's GPU, in each precision.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import actor_setups, set_tf32
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.learner.algorithm import Sample
from metagrad.learner.schedule import Lockstep
from metagrad.optimizers import Sgd
from metagrad.precision import Precision
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16-mixed")
Moved = Callable[[Tensor], Tensor]


def recorded(experiment: Experiment) -> tuple[list[Trajectory], Sample]:
    """Return the rollouts of the first update on the CPU, once the function with them has been called for each."""
    actors = ColocatedActors(actor_setups(experiment, CPU, 0), None, experiment.rollouts_per_batch, Actor)
    schedule, rollouts = Lockstep(actors, CPU), []

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        rollouts.append(schedule.sample(snapshot, step))
        return rollouts[-1]

    return rollouts, sample


def replayed(rollouts: list[Trajectory], moved: Moved) -> Sample:
    """Return a function that hands out recorded rollouts, whatever the parameters have become."""
    rest = iter(rollouts)

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        return map_tensors(moved, next(rest))._replace(policy_version=snapshot.version)

    return sample


def first_update(experiment: Experiment, sample: Sample, moved: Moved) -> dict[str, Tensor]:
    """Return the step of θ and the meta-gradient of the first update, on the CPU in float64."""
    algorithm = experiment.algorithm(probe(experiment.env))
    state = map_tensors(moved, algorithm.init(experiment.seed, CPU))
    new, metrics = algorithm.update(state, sample)
    found = {"step": new.theta - state.theta, "meta_gradient": metrics.eta_gradient}
    return {name: x.detach().double().cpu() for name, x in found.items() if x is not None}


def errors(experiment: Experiment, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return relative errors of the first update in float32, (on the device, on the CPU), against float64.

    All three see the same rollouts, since one action that falls out differently would change all later ones. Steps are
    plain gradients: the first ones of RMSProp and Adam are gradients' signs, which rounding may turn.
    """
    experiment = replace(experiment, optimizer=Sgd(learning_rate=0.1))
    rollouts, sample = recorded(experiment)
    on_cpu = first_update(experiment, sample, lambda x: x)
    on_device = first_update(experiment, replayed(rollouts, lambda x: x.to(device)), lambda x: x.to(device))
    exact = first_update(experiment, replayed(rollouts, _wide), _wide)

    def error(found: Tensor, name: str) -> float:
        return float((found - exact[name]).norm() / exact[name].norm())

    return {name: (error(on_device[name], name), error(on_cpu[name], name)) for name in exact}


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@contextmanager
def counted_waits(waits: list[str]) -> Iterator[None]:
    """Append what CUDA says of each operation that the host waits for."""

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            waits.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def meta_update_seconds(
    experiment: Experiment, precision: Precision, device: torch.device, repeats: int, wait: Callable[[], None]
) -> float:
    """Return the median seconds of an update on random rollouts that are on the device already."""
    spec = probe(experiment.env)
    algorithm = replace(experiment, precision=precision).algorithm(spec)
    state = algorithm.init(experiment.seed, device)
    shape, generator = (experiment.rollout_length, experiment.environments), torch.Generator().manual_seed(0)
    length, batch = shape
    pictures = torch.randint(256, (length + 1, batch, *spec.observation_shape), generator=generator, dtype=torch.uint8)
    batch_of = Trajectory(
        observation=pictures,
        action=torch.randint(spec.num_actions, shape, generator=generator),
        reward=torch.randn(shape, generator=generator),
        is_terminal=torch.rand(shape, generator=generator) < 0.01,
        is_truncated=torch.zeros(shape, dtype=torch.bool),
        valid=torch.ones(shape, dtype=torch.bool),
        behaviour_log_prob=torch.zeros(shape),
        policy_version=0,
    )
    trajectory = map_tensors(lambda x: x.to(device), batch_of)
    seconds = []
    for _ in range(repeats + 2):
        wait()
        start = time.perf_counter()
        algorithm.update(state, lambda snapshot, _: trajectory._replace(policy_version=snapshot.version))
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])  # the first ones choose kernels


def times(pong: Experiment, device: torch.device, repeats: int, wait: Callable[[], None]) -> Iterator[str]:
    """Yield the milliseconds of a meta-update, a line for each size of a batch and each precision."""
    for environments, length in ((64, 5), (64, 20), (512, 20)):
        experiment = replace(pong, environments=environments, rollout_length=length)
        for precision in PRECISIONS:
            set_tf32(precision)
            seconds = meta_update_seconds(experiment, precision, device, repeats, wait)
            yield f"{environments} x {length} in {precision}: {1e3 * seconds:.2f} ms"
    set_tf32("float32")


if __name__ == "__main__":
    pong = replace(atari(), env=AtariConfig(game="Pong"))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: meta-update of Pong, n = {pong.meta.n}")
    for line in times(pong, torch.device("cuda"), 20, torch.cuda.synchronize):
        print(line, flush=True)
