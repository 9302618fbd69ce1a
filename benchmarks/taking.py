"""Defines a learner that only takes batches: it publishes its parameters, takes the next batch and forgets it."""

import os
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.end_to_end_group import cpu_seconds
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.learner.algorithm import Sample, UpdateMetrics
from metagrad.networks import Network, build_network
from metagrad.types import WeightSnapshot


class TakingState(NamedTuple):
    """Holds parameters that never change."""

    update: int
    theta: Float[Tensor, "P"]
    eta: Float[Tensor, "M"]
    held_batches: int = 0


class Mark(NamedTuple):
    """Holds the clocks between two updates."""

    wall_s: float
    cpu_s: float  # of this process, all its threads
    everybody: dict[int, tuple[str, float]]  # name and CPU seconds of this process and its descendants


@dataclass(frozen=True, slots=True)
class Taking:
    """Samples one batch per update, and reads the clocks before the updates `first` and `last`."""

    network: Network
    first: int
    last: int
    marks: list[Mark] = field(default_factory=list)
    bytes_of_batches: list[int] = field(default_factory=list)

    def init(self, seed: int, device: torch.device) -> TakingState:
        theta = self.network.init(torch.Generator().manual_seed(seed)).to(device)
        return TakingState(0, theta, torch.zeros(0, device=device))

    def update(self, state: TakingState, sample: Sample) -> tuple[TakingState, UpdateMetrics]:
        """Take the next batch."""
        if state.update in (self.first, self.last):
            self.marks.append(Mark(time.perf_counter(), time.process_time(), cpu_seconds(os.getpid())))
        batch = sample(WeightSnapshot(state.update, state.theta, state.eta), 0)
        if state.update == self.first:
            tensors = [x for x in batch if isinstance(x, Tensor)]
            self.bytes_of_batches.append(sum(x.numel() * x.element_size() for x in tensors))
        return state._replace(update=state.update + 1), UpdateMetrics({}, ())

    def shown(self, state: TakingState) -> dict[str, float]:
        return {}

    def learnt(self, state: TakingState) -> dict[str, float]:
        return {}

    def to_tree(self, state: TakingState) -> dict[str, Any]:
        return state._asdict()

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> TakingState:
        del device
        return TakingState(**tree)

    def misfit(self, tree: Any) -> str | None:
        del tree
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class TakingExperiment(BaseExperiment):
    """Configures a run whose learner only takes batches."""

    warm_up: int
    """Updates before the first that counts."""

    def algorithm(self, spec: EnvironmentSpec) -> Taking:
        network = build_network(self.network, spec.observation_shape, spec.num_actions, False)
        return Taking(network, self.warm_up, self.updates - 1)

    @property
    def takes_streamed_rollouts(self) -> bool:
        return True
