from typing import Any

import torch

from benchmarks.taking import Mark, Taking
from metagrad.networks import Mlp, build_network
from metagrad.types import Trajectory, WeightSnapshot


def test_it_takes_one_batch_per_update_and_reads_the_clocks_around_those_that_count() -> None:
    asked: list[tuple[int, int]] = []
    fields: Any = [torch.zeros(2, 3)] * 7

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        asked.append((snapshot.version, step))
        return Trajectory(*fields, policy_version=0)

    taking = Taking(build_network(Mlp(hidden=1), (4,), 2, False), first=2, last=4)
    state = taking.init(0, torch.device("cpu"))
    marks_after = []
    for _ in range(5):
        state, metrics = taking.update(state, sample)
        marks_after.append(len(taking.marks))
        assert not metrics.scalars
    assert asked == [(update, 0) for update in range(5)]
    assert marks_after == [0, 0, 1, 1, 2]
    assert taking.bytes_of_batches == [7 * 2 * 3 * 4]
    begin, end = taking.marks
    assert isinstance(begin, Mark)
    assert end.wall_s >= begin.wall_s
    assert end.cpu_s >= begin.cpu_s
    assert taking.from_tree(taking.to_tree(state), torch.device("cpu")) == state
