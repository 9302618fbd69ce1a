"""Estimate what a run holds in memory at least, before any of it is made."""

import math
import os

import torch

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.errors import require

MOST_BYTES = 2**40
"""More than a learner's machine has anywhere; an experiment that needs more is refused everywhere."""


def _step_bytes(spec: EnvironmentSpec) -> int:
    """Count those of action (8 for each number at most), reward, flags and log μ."""
    return 8 * math.prod(spec.actions.shape) + 4 + 3 + 4


def batch_bytes(spec: EnvironmentSpec, environments: int, length: int) -> int:
    """Count the bytes of a trajectory [T, B] as an update uses it, with T+1 whole observations."""
    return environments * ((length + 1) * _observation_bytes(spec) + length * _step_bytes(spec))


def rollout_bytes(spec: EnvironmentSpec, environments: int, length: int) -> int:
    """Count the bytes of a trajectory [T, B] as it travels: of stacks of K frames T+K frames and their places."""
    if not spec.is_frame_stack:
        return batch_bytes(spec, environments, length)
    depth = spec.observation_shape[0]
    frames = (length + depth) * _observation_bytes(spec) // depth
    return environments * (frames + (length + 1) * depth * 4 + length * _step_bytes(spec))


def _observation_bytes(spec: EnvironmentSpec) -> int:
    return math.prod(spec.observation_shape) * torch.empty(0, dtype=spec.observation_dtype).element_size()


def require_possible(experiment: BaseExperiment, spec: EnvironmentSpec, parameters: int) -> None:
    """Refuse a learner that no machine could hold.

    The estimate is from below: θ, its gradient and two moments; a batch and a gradient for each update that is looked
    through. Graphs and activations come on top.

    Args:
        experiment: the run.
        spec: of its environment.
        parameters: numbers in θ.

    Raises:
        ConfigurationError: names the field that most of it comes from.
    """
    _require(experiment, spec, parameters, MOST_BYTES, "a run may hold at most 1 TiB")


def require_room_here(experiment: BaseExperiment, spec: EnvironmentSpec, parameters: int) -> None:
    """Refuse a learner that this machine cannot hold, whatever else runs on it.

    Raises:
        ConfigurationError: as above.
    """
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _require(experiment, spec, parameters, here, f"this machine has {_gib(here)}")


def _require(experiment: BaseExperiment, spec: EnvironmentSpec, parameters: int, most: int, limit: str) -> None:
    network, batch = 16 * parameters, batch_bytes(spec, experiment.environments, experiment.rollout_length)
    looked_through = experiment.look_ahead_batches * (4 * parameters + batch)
    rule = f"its {parameters:,} parameters are {_gib(network)} with gradient and moments, and {limit}"
    kind = type(getattr(experiment, "network", None)).__name__
    require(network <= most, "network", kind, rule, "make it smaller")
    steps = f"{experiment.environments} x {experiment.rollout_length}"
    rule = f"a batch of rollouts is {_gib(batch)}, and {limit}"
    require(batch <= most, "environments x rollout_length", steps, rule, "lower one of them")
    rule = f"looking through so many updates takes {_gib(network + batch + looked_through)}, and {limit}"
    updates = experiment.look_ahead_batches
    require(network + batch + looked_through <= most, "meta.n", updates, rule, "lower meta.n")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
