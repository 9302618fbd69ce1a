"""The learner of update rules: one step along the mean of all agents' meta-gradients, kept and restored whole."""

from typing import Any

import pytest
import torch

from metagrad.learner.algorithm import Algorithm, AlgorithmState, NonFinite
from metagrad.learner.batch import merge
from metagrad.learner.rule_learner import RuleLearner
from metagrad.lpg import Lpg
from metagrad.optimizers import Adam
from metagrad.types import Episodes, MetaGradients, Rollout, WeightSnapshot

CPU = torch.device("cpu")
RULE = Lpg(units=2, predictions=2, embedding=1)
LEARNER = RuleLearner(RULE, Adam(learning_rate=0.1, max_gradient_norm=0.5))
SIZE = RULE.layout.size


def rollout(actor: int, agents: int, gradient: torch.Tensor, version: int, **facts: tuple[float, float]) -> Rollout:
    counts = (torch.tensor([agents]), torch.tensor([10 * agents]), torch.tensor([actor]))
    brought = MetaGradients(gradient[None], *counts, facts, version)
    return Rollout(brought, Episodes(torch.zeros(0), torch.zeros(0, dtype=torch.int64)), actor, False)


def supply(*gradients: tuple[int, torch.Tensor], **facts: tuple[float, float]) -> Any:
    """Bring the gradients of populations of so many agents, as transports do: as arrays."""

    def sample(snapshot: WeightSnapshot, step: int) -> MetaGradients:
        assert step == 0
        sent = [rollout(i, agents, g, snapshot.version, **facts) for i, (agents, g) in enumerate(gradients)]
        arrays = [
            each._replace(
                trajectory=MetaGradients(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in each.trajectory))
            )
            for each in sent
        ]
        merged: MetaGradients = merge(arrays, snapshot.version, CPU).trajectory
        return merged

    return sample


def test_it_moves_along_the_mean_over_all_agents() -> None:
    assert isinstance(LEARNER, Algorithm)
    state = LEARNER.init(3, CPU)
    assert isinstance(state, AlgorithmState)
    assert torch.equal(state.theta, RULE.init(torch.Generator().manual_seed(3)))
    assert torch.equal(RuleLearner(RULE, LEARNER.optimizer, torch.ones(SIZE)).init(3, CPU).theta, torch.ones(SIZE))
    expected, moments = state.theta, LEARNER.optimizer.init(state.theta)
    generator = torch.Generator().manual_seed(0)
    for update in range(1, 3):
        one, two = torch.randn(2, SIZE, generator=generator)
        sample = supply((1, one), (3, two), **{"loss/outer": (2.0, 4.0), "nothing": (0.0, 0.0)})
        state, metrics = LEARNER.update(state, sample)
        expected, moments = LEARNER.optimizer.update((one + two) / 4, moments, expected, expected[:0])
        torch.testing.assert_close(state.theta, expected)
        assert (state.update, state.held_batches, state.lifetimes) == (update, 0, update)
        assert metrics.scalars["norm/meta_gradient"] == pytest.approx(float(((one + two) / 4).norm()))
        assert metrics.scalars["loss/outer"] == 4.0 / 8.0
        assert "nothing" not in metrics.scalars
        assert metrics.scalars["lifetimes/agents"] == 4
    assert LEARNER.shown(state) == {"weights_norm": pytest.approx(float(state.theta.norm())), "lifetimes_ended": 2.0}


@pytest.mark.parametrize(("agents", "value"), [(1, torch.nan), (0, 0.0)])
def test_what_is_not_finite_ends_the_run(agents: int, value: float) -> None:
    """An update divides by no agents once all of them have become NaN."""
    with pytest.raises(NonFinite, match=r"^norm/meta_gradient became nan at update 1$"):
        LEARNER.update(LEARNER.init(0, CPU), supply((agents, torch.full((SIZE,), value))))


def test_a_checkpoint_holds_the_whole_state_and_nothing_else_is_taken_for_one() -> None:
    state, _ = LEARNER.update(LEARNER.init(0, CPU), supply((1, torch.ones(SIZE))))
    tree = LEARNER.to_tree(state)
    assert LEARNER.misfit(tree) is None
    again, expected = (
        LEARNER.update(each, supply((1, torch.ones(SIZE))))[0] for each in (LEARNER.from_tree(tree, CPU), state)
    )
    assert torch.equal(again.theta, expected.theta)
    assert again.update == expected.update == 2
    for name, wrong in (("theta", tree["theta"][1:]), ("moments", []), ("lifetimes", -1), ("update", 1.5)):
        assert LEARNER.misfit(tree | {name: wrong}) == name
    assert LEARNER.misfit(tree | {"theta": tree["theta"] * torch.nan}) == "theta"
    assert LEARNER.misfit([]) == "update"
