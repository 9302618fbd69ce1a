"""Shares Snake's boards out among processes of one thread each, as training shares them out among actors."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Timing
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.run.memory import keep_freed_memory


def step_shares(orders: "Connection[Any, Any]", seed: int) -> None:
    """Step one process's share: an order is new boards with their actions, or None for a run through these."""
    torch.set_num_threads(1)
    keep_freed_memory()
    while True:
        try:
            order = orders.recv()
        except EOFError:  # the benchmark is over
            return
        if order is not None:
            config, numbers = order
            actions = torch.from_numpy(numbers)
            environment = config.make(
                batch_size=actions.shape[1], seed=seed, device=torch.device("cpu"), threads=1, is_training=True
            )
            environment.reset()
        cpu = time.process_time()
        for action in actions:
            environment.step(action)
        orders.send(time.process_time() - cpu)


class Actors:
    """Processes that step their shares at the same time."""

    def __init__(self, processes: list[SpawnProcess], orders: "list[Connection[Any, Any]]"):
        self.processes = processes
        self._orders = orders

    def prepare(self, config: SnakeConfig, actions: Tensor) -> None:
        """Start new boards, as many as columns of actions, and run through the actions once without timing."""
        for orders, share in zip(self._orders, actions.tensor_split(len(self._orders), dim=1), strict=True):
            orders.send((config, share.contiguous().numpy()))
        self._wait()

    def run(self) -> Timing:
        """One run through the actions, until the last process is done; CPU time is that of all of them."""
        began = time.perf_counter()
        for orders in self._orders:
            orders.send(None)
        cpu_s = self._wait()
        return Timing(time.perf_counter() - began, cpu_s)

    def _wait(self) -> float:
        return float(sum(orders.recv() for orders in self._orders))


@contextmanager
def snake_actors(count: int) -> Iterator[Actors]:
    """`count` processes, ended with the block."""
    context = get_context("spawn")
    processes: list[SpawnProcess] = []
    ends: list[Connection[Any, Any]] = []
    for seed in range(count):
        here, there = context.Pipe()
        process = context.Process(target=step_shares, args=(there, seed), daemon=True)
        process.start()
        there.close()  # so that an actor that dies is an EOFError here, not a wait for ever
        processes.append(process)
        ends.append(here)
    try:
        yield Actors(processes, ends)
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join()
