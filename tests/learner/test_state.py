from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.batch import tree_of
from metagrad.learner.checkpoint import load, save
from metagrad.types import PackedTrajectory

MakeAlgorithm = Callable[..., ActorCritic]
CPU = torch.device("cpu")


def test_a_seed_determines_theta(make_algorithm: MakeAlgorithm) -> None:
    algorithm = make_algorithm()
    assert torch.equal(algorithm.init(3, CPU).theta, algorithm.init(3, CPU).theta)
    assert not torch.equal(algorithm.init(3, CPU).theta, algorithm.init(4, CPU).theta)


def test_the_snapshot_is_what_actors_are_told(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    algorithm = make_algorithm()
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    snapshot = state.snapshot()
    assert snapshot.version == state.version
    assert snapshot.theta is state.theta
    assert snapshot.eta is state.eta


@pytest.mark.parametrize("meta", [{"n": 0}, {"n": 2}, {"n": 2, "strategy": "sequential"}])
def test_a_state_from_a_checkpoint_continues_bitwise(
    make_algorithm: MakeAlgorithm, sampler: Any, tmp_path: Path, meta: dict[str, Any]
) -> None:
    algorithm = make_algorithm(**meta)
    state = algorithm.init(0, CPU)
    for _ in range(2):
        state, _ = algorithm.update(state, sampler)
    restored = algorithm.from_tree(load(save(tmp_path, 1, algorithm.to_tree(state), keep=1)), CPU)
    for _ in range(2):
        state, _ = algorithm.update(state, sampler)
        restored, _ = algorithm.update(restored, sampler)
    assert (restored.update, restored.version) == (state.update, state.version)
    for left, right in (
        (restored.theta, state.theta),
        (restored.eta, state.eta),
        *zip(restored.optimizer.moments, state.optimizer.moments, strict=True),
        *zip(restored.meta_optimizer.moments, state.meta_optimizer.moments, strict=True),
    ):
        assert torch.equal(left, right)
    assert restored.optimizer.updates == state.optimizer.updates
    assert restored.meta_optimizer.updates == state.meta_optimizer.updates


def test_a_carried_batch_of_stacks_is_stored_as_frames(make_algorithm: MakeAlgorithm, pictures: Any) -> None:
    algorithm = make_algorithm(n=2, strategy="sequential")
    state = algorithm.init(0, CPU)._replace(carry=pictures(5))
    tree = algorithm.to_tree(state)
    assert algorithm.misfit(tree) is None
    assert set(tree["carry"]) == set(PackedTrajectory._fields) - {"first_state", "first_return"}
    whole = {**tree, "carry": tree_of(pictures(5))}  # as checkpoints used to be
    for stored in (tree, whole):
        carry = algorithm.from_tree(stored, CPU).carry
        assert carry is not None
        for found, expected in zip(carry, pictures(5), strict=True):
            assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected
