from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.learner import algorithm as algorithm_module
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.algorithm import Algorithm, AlgorithmState, Clock
from metagrad.learner.checkpoint import load, save
from metagrad.learner.config import BootstrapConfig

CPU = torch.device("cpu")
MakeAlgorithm = Callable[..., ActorCritic]


@pytest.fixture
def algorithm(make_algorithm: MakeAlgorithm) -> ActorCritic:
    return make_algorithm(n=2)


def test_the_actor_critic_is_an_algorithm(algorithm: ActorCritic) -> None:
    assert isinstance(algorithm, Algorithm)
    assert isinstance(algorithm.init(0, CPU), AlgorithmState)


def test_what_is_shown_are_all_hyper_parameters_and_what_is_learnt_are_those_that_move(
    algorithm: ActorCritic, sampler: Any
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
    make_algorithm: MakeAlgorithm, sampler: Any, tmp_path: Path, meta: dict[str, Any]
) -> None:
    algorithm = make_algorithm(**meta)
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
def test_a_tree_of_another_algorithm_does_not_fit(algorithm: ActorCritic, changes: dict[str, Any], name: str) -> None:
    tree = algorithm.to_tree(algorithm.init(0, CPU))
    assert algorithm.misfit(tree | changes) == name
    assert algorithm.misfit({key: value for key, value in tree.items() if key != name}) == name
    assert algorithm.misfit(None) == "update"


def test_a_state_without_a_target_does_not_fit_one_with_it(make_algorithm: MakeAlgorithm) -> None:
    plain, target = (make_algorithm(n=1, bootstrap=BootstrapConfig(updates=updates)) for updates in (0, 1))
    assert target.misfit(plain.to_tree(plain.init(0, CPU))) == "target_optimizer"
    assert plain.misfit(target.to_tree(target.init(0, CPU))) == "target_optimizer"


def test_a_clock_adds_up_the_laps_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 17.0])
    monkeypatch.setattr(algorithm_module.time, "perf_counter", lambda: next(times))
    clock = Clock()
    for phase in ("sample", "inner", "sample"):
        clock.lap(phase)
    assert clock.phases == {"sample": 1.0 + 4.0, "inner": 2.0}
