from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.learner.agent import Agent
from metagrad.learner.checkpoint import load, save
from metagrad.learner.state import from_tree, init_state, to_tree
from metagrad.learner.step import meta_update

MakeAgent = Callable[..., Agent]
CPU = torch.device("cpu")


def test_a_seed_determines_theta(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert torch.equal(init_state(agent, 3, CPU).theta, init_state(agent, 3, CPU).theta)
    assert not torch.equal(init_state(agent, 3, CPU).theta, init_state(agent, 4, CPU).theta)


def test_the_snapshot_is_what_actors_are_told(make_agent: MakeAgent, sampler: Any) -> None:
    agent = make_agent()
    state, _ = meta_update(agent, init_state(agent, 0, CPU), sampler)
    snapshot = state.snapshot()
    assert snapshot.version == state.version
    assert snapshot.theta is state.theta
    assert snapshot.eta is state.eta


@pytest.mark.parametrize("meta", [{"n": 0}, {"n": 2}, {"n": 2, "strategy": "sequential"}])
def test_a_state_from_a_checkpoint_continues_bitwise(
    make_agent: MakeAgent, sampler: Any, tmp_path: Path, meta: dict[str, Any]
) -> None:
    agent = make_agent(**meta)
    state = init_state(agent, 0, CPU)
    for _ in range(2):
        state, _ = meta_update(agent, state, sampler)
    restored = from_tree(load(save(tmp_path, 1, to_tree(state), keep=1)), CPU)
    for _ in range(2):
        state, _ = meta_update(agent, state, sampler)
        restored, _ = meta_update(agent, restored, sampler)
    assert (restored.update, restored.version) == (state.update, state.version)
    for left, right in (
        (restored.theta, state.theta),
        (restored.eta, state.eta),
        *zip(restored.optimizer.moments, state.optimizer.moments, strict=True),
        *zip(restored.meta_optimizer.moments, state.meta_optimizer.moments, strict=True),
    ):
        assert torch.equal(left, right)
    assert restored.optimizer.count == state.optimizer.count
    assert restored.meta_optimizer.count == state.meta_optimizer.count
