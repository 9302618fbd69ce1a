from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.actor_critic import A2cLoss
from metagrad.errors import ConfigurationError
from metagrad.intrinsic_reward import IntrinsicRewardLoss, reward_network
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.config import LearnerConfig
from metagrad.meta_parameters import MetaParameter, MetaVector, hyperparameters, learnt_names, learnt_slices, shown
from metagrad.networks import Mlp, build_network
from metagrad.surrogates import SURROGATES

CPU = torch.device("cpu")
REWARD = Mlp(hidden=4)
A2C_LOSS = A2cLoss(
    **dict.fromkeys(("gamma", "lambda_", "value_coefficient", "entropy_coefficient"), MetaParameter(initial=0.5))
)


def parameters(**changes: Any) -> IntrinsicRewardLoss:
    values: dict[str, Any] = {
        "gamma": MetaParameter(initial=0.9),
        "lambda_": MetaParameter(initial=0.8),
        "value_coefficient": MetaParameter(initial=0.5),
        "entropy_coefficient": MetaParameter(initial=0.01),
        "extrinsic_coefficient": MetaParameter(initial=0.9),
        "intrinsic_coefficient": MetaParameter(initial=0.5),
        "reward_network": REWARD,
    }
    return IntrinsicRewardLoss(**values | changes)


MakeAlgorithm = Callable[..., ActorCritic]


@pytest.fixture
def make_lirpg_agent(config: Callable[..., LearnerConfig]) -> MakeAlgorithm:
    def make(losses: IntrinsicRewardLoss | None = None, has_outer_critic: bool = True, **meta: Any) -> ActorCritic:
        learner = replace(config(**meta), meta_parameters=losses or parameters())
        if not has_outer_critic:
            learner = replace(learner, outer=replace(learner.outer, critic="inner"))
        return build_actor_critic(learner, build_network(Mlp(hidden=8), (5,), 3, has_outer_critic), (5,), 3)

    return make


def test_the_networks_weights_are_declared_after_the_scalars() -> None:
    declaration = parameters().declaration((5,), 3)
    scalars = ["gamma", "lambda", "value_coefficient", "entropy_coefficient"]
    scalars += ["extrinsic_coefficient", "intrinsic_coefficient"]
    assert list(declaration) == [*scalars, "reward_weights"]
    assert list(learnt_names(declaration)) == scalars
    vector = declaration["reward_weights"]
    assert isinstance(vector, MetaVector)
    assert vector.size == reward_network(REWARD, (5,), 3).size == 5 * 4 + 4 + 4 * 3 + 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma", MetaParameter(initial=0.9, high=1.5)), ("lambda_", MetaParameter(initial=0.9, low=-0.5))],
)
def test_bounds_without_a_meaning_are_refused(field: str, value: MetaParameter) -> None:
    with pytest.raises(ConfigurationError, match=rf"^meta_parameters.{field.rstrip('_')} = .*: .*; .*$"):
        parameters(**{field: value})


def test_the_losses_are_the_librarys_and_the_outer_one_knows_no_intrinsic_reward(
    make_lirpg_agent: MakeAlgorithm, trajectory: Any
) -> None:
    algorithm = make_lirpg_agent(n=1)
    state = algorithm.init(0, CPU)
    hyper = hyperparameters(algorithm.declaration, state.eta)
    lvc = SURROGATES["lvc"]
    expected = parameters().inner_loss(algorithm.network, state.theta, hyper, trajectory(0), lvc, algorithm.outer)
    assert torch.equal(algorithm.problem.loss(state.theta, state.eta, trajectory(0))[0], expected[0])
    ours = algorithm.outer_loss(state.theta, state.eta, trajectory(0))
    expected = A2C_LOSS.outer_loss(algorithm.network, state.theta, {}, trajectory(0), algorithm.outer)
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("has_outer_critic", [True, False])
def test_two_updates_move_all_that_is_learnt(
    make_lirpg_agent: MakeAlgorithm, sampler: Any, n: int, product: str, has_outer_critic: bool
) -> None:
    algorithm = make_lirpg_agent(n=n, product=product, has_outer_critic=has_outer_critic)
    state = algorithm.init(0, CPU)
    before = state.eta
    for _ in range(2):
        state, metrics = algorithm.update(state, sampler)
        assert all(metrics.meta_gradient)
        norm = shown(algorithm.declaration, state.eta)["reward_weights_norm"].item()
        assert metrics.scalars["eta/reward_weights_norm"] == pytest.approx(norm)
    at = learnt_slices(algorithm.declaration)["reward_weights"]
    assert at.stop - at.start == reward_network(REWARD, (5,), 3).size
    assert (state.eta != before).all()


def test_a_checkpoint_holds_the_network(make_lirpg_agent: MakeAlgorithm, sampler: Any, tmp_path: Path) -> None:
    algorithm = make_lirpg_agent(n=1)
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    torch.save(algorithm.to_tree(state), tmp_path / "state")
    tree = torch.load(tmp_path / "state", weights_only=True)
    assert algorithm.misfit(tree) is None
    assert torch.equal(algorithm.from_tree(tree, CPU).eta, state.eta)
    assert make_lirpg_agent(parameters(reward_network=Mlp(hidden=5)), n=1).misfit(tree) == "eta"
