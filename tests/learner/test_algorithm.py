from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.learner.agent import Agent
from metagrad.learner.algorithm import Algorithm, MetaGradientActorCritic, State
from metagrad.learner.checkpoint import load, save
from metagrad.learner.config import BootstrapConfig
from metagrad.learner.state import init_state
from metagrad.learner.step import meta_update

CPU = torch.device("cpu")
MakeAgent = Callable[..., Agent]


@pytest.fixture
def algorithm(make_agent: MakeAgent) -> MetaGradientActorCritic:
    return MetaGradientActorCritic(make_agent(n=2))


def test_it_is_an_algorithm_with_the_network_of_its_agent(algorithm: MetaGradientActorCritic) -> None:
    assert isinstance(algorithm, Algorithm)
    assert isinstance(algorithm.init(0, CPU), State)
    assert algorithm.network is algorithm.agent.network


def test_its_update_is_the_learners(algorithm: MetaGradientActorCritic, sampler: Any) -> None:
    state = algorithm.init(3, CPU)
    assert torch.equal(state.theta, init_state(algorithm.agent, 3, CPU).theta)
    new, metrics = algorithm.update(state, sampler)
    expected, others = meta_update(algorithm.agent, state, sampler)
    assert torch.equal(new.theta, expected.theta)
    assert torch.equal(new.eta, expected.eta)
    assert metrics.meta_gradient == others.meta_gradient


def test_what_is_shown_are_all_hyper_parameters_and_what_is_learnt_are_those_that_move(
    algorithm: MetaGradientActorCritic, sampler: Any
) -> None:
    state = algorithm.init(0, CPU)
    shown = algorithm.shown(state)
    assert shown == pytest.approx({"gamma": 0.8, "lambda": 0.9, "value_coefficient": 0.5, "entropy_coefficient": 0.01})
    new, _ = algorithm.update(state, sampler)
    moved = {name: value for name, value in algorithm.shown(new).items() if value != shown[name]}
    assert algorithm.learnt(new) == moved
    assert set(moved) == {"gamma", "entropy_coefficient"}


@pytest.mark.parametrize(
    "meta", [{"n": 0}, {"n": 2}, {"n": 2, "strategy": "sequential"}, {"n": 1, "bootstrap": BootstrapConfig(updates=1)}]
)
def test_a_checkpoint_gives_the_state_back(
    make_agent: MakeAgent, sampler: Any, tmp_path: Path, meta: dict[str, Any]
) -> None:
    algorithm = MetaGradientActorCritic(make_agent(**meta))
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    tree = load(save(tmp_path, 1, algorithm.to_tree(state), keep=1))
    assert algorithm.misfit(tree) is None
    restored = algorithm.from_tree(tree, CPU)
    flat = [torch.utils._pytree.tree_leaves(each) for each in (state, restored)]
    assert len(flat[0]) == len(flat[1])
    for left, right in zip(*flat, strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"theta": torch.zeros(1)}, "theta"),
        ({"eta": torch.zeros(3)}, "eta"),
        ({"optimizer": {"count": 1, "moments": []}}, "optimizer"),
        ({"target_optimizer": {"count": 1, "moments": [torch.zeros(3)] * 2}}, "target_optimizer"),
        ({"meta_optimizer": None}, "meta_optimizer"),
    ],
    ids=str,
)
def test_a_tree_of_another_algorithm_does_not_fit(
    algorithm: MetaGradientActorCritic, changes: dict[str, Any], name: str
) -> None:
    tree = algorithm.to_tree(algorithm.init(0, CPU))
    assert algorithm.misfit(tree | changes) == name
    assert algorithm.misfit({key: value for key, value in tree.items() if key != name}) == name
    assert algorithm.misfit(None) == "update"


def test_a_state_without_a_target_does_not_fit_one_with_it(make_agent: MakeAgent) -> None:
    plain, target = (
        MetaGradientActorCritic(make_agent(n=1, bootstrap=BootstrapConfig(updates=updates))) for updates in (0, 1)
    )
    assert target.misfit(plain.to_tree(plain.init(0, CPU))) == "target_optimizer"
    assert plain.misfit(target.to_tree(target.init(0, CPU))) == "target_optimizer"
