import pytest
import torch

from metagrad.actors.agents import AgentConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.experiments.lifetimes import held_out
from metagrad.experiments.lifetimes.held_out import (
    HELD_OUT,
    TEST,
    Lived,
    live,
    uncorrected,
    worlds_with_something_to_gain,
)
from metagrad.objective_correction import ObjectiveCorrection

A2C = uncorrected(ObjectiveCorrection(is_advantage_normalised=True))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(held_out, "EVALUATED", 64)


def lived(family, tasks, updates, seed=0):
    return live(A2C, AgentConfig(), family, tasks, environments=8, updates=updates, seed=seed)


def test_no_rule_was_trained_on_these_tasks():
    assert {family.task_seed for family in HELD_OUT.values()} == {TEST}
    default = GridWorldFamily()
    tested = HELD_OUT["small"].make_tasks(seeds=range(30), batch_size=1, device=torch.device("cpu")).tasks
    trained = default.make_tasks(seeds=range(30), batch_size=1, device=torch.device("cpu")).tasks
    assert not torch.isin(tested.reward, trained.reward).any()


@pytest.mark.slow
def test_agents_learn_and_are_scored_between_birth_and_best():
    worlds = worlds_with_something_to_gain(HELD_OUT["small"], 3)
    result = lived(HELD_OUT["small"], worlds, 40)
    assert result.best is not None
    assert (result.best >= 0.1).all()
    assert (result.at_birth < result.best).all()
    assert result.score.mean() > 0.4
    alone = lived(HELD_OUT["small"], worlds[1:2], 40)
    torch.testing.assert_close(alone.at_end, result.at_end[1:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.at_birth, result.at_birth[1:2], rtol=0, atol=1e-6)


def test_score_is_the_share_of_what_there_was_to_gain():
    birth, end, best = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])
    assert Lived(birth, end, best).score.tolist() == [0.25, 1.0]
    assert Lived(birth, end, None).score.tolist() == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD_OUT)
def test_agents_live_in_every_family(name):
    result = lived(HELD_OUT[name], [0, 1], 2)
    assert torch.isfinite(result.score).all()
