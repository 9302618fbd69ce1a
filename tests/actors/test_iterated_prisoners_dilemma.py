"""The iterated prisoner's dilemma against its table of payoffs, written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.actors.envs.iterated_prisoners_dilemma import (
    ACTION_NAMES,
    COOPERATE,
    DEFECT,
    JOINT_ACTION_NAMES,
    STATE_NAMES,
    IteratedPrisonersDilemma,
    IteratedPrisonersDilemmaConfig,
    other_state,
    reward_of,
    state_after,
)
from metagrad.errors import ConfigurationError

ROUNDS = [  # own action, other's action, own reward, other's reward, own state, other's state
    ("defect", "defect", -2.0, -2.0, "DD", "DD"),
    ("defect", "cooperate", 0.0, -3.0, "DC", "CD"),
    ("cooperate", "defect", -3.0, 0.0, "CD", "DC"),
    ("cooperate", "cooperate", -1.0, -1.0, "CC", "CC"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def started(steps=5, batch_size=4, device="cpu"):
    environment = IteratedPrisonersDilemma(IteratedPrisonersDilemmaConfig(steps=steps), batch_size, device)
    environment.reset()
    return environment


def test_actions_are_named():
    assert (ACTION_NAMES[DEFECT], ACTION_NAMES[COOPERATE]) == ("defect", "cooperate")


@pytest.mark.parametrize("row", ROUNDS, ids=lambda row: row[4])
def test_rules(row):
    own, other = (torch.tensor(ACTION_NAMES.index(name)) for name in row[:2])
    assert (reward_of(own, other).item(), reward_of(other, own).item()) == row[2:4]
    states = state_after(own, other), state_after(other, own)
    assert tuple(STATE_NAMES[state] for state in states) == row[4:]
    assert other_state(states[0]) == states[1]
    assert other_state(torch.tensor(0)) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_all_rounds_in_one_batch(device):
    environment = started(device=device)
    assert environment.reset().tolist() == [[0] * 4] * 2
    actions = [[ACTION_NAMES.index(row[player]) for row in ROUNDS] for player in (0, 1)]
    step = environment.step(torch.tensor(actions, device=device))
    assert step.reward.tolist() == [[row[2] for row in ROUNDS], [row[3] for row in ROUNDS]]
    assert [[STATE_NAMES[state] for state in seen] for seen in step.observation.tolist()] == [
        [row[4] for row in ROUNDS],
        [row[5] for row in ROUNDS],
    ]
    assert {field.device for field in step} == {environment.spec.device}


@given(st.integers(1, 6), st.integers(1, 20))
def test_games_end_after_their_rounds_and_the_next_begins_in_the_same_step(steps, played):
    environment = started(steps=steps, batch_size=2)
    for done in range(1, played + 1):
        step = environment.step(torch.ones(2, 2, dtype=torch.int64))
        is_end = done % steps == 0
        assert step.is_terminal.tolist() == [is_end] * 2
        assert step.observation.tolist() == [[0 if is_end else 4] * 2] * 2


def test_a_snapshot_continues_the_games():
    environment, other = started(), started()
    draw = torch.Generator().manual_seed(0)
    actions = torch.randint(2, (12, 2, 4), generator=draw)
    environment.step(actions[0])
    other.restore(environment.snapshot())
    for action in actions[1:]:
        for ours, theirs in zip(environment.step(action), other.step(action), strict=True):
            assert torch.equal(ours, theirs)
    kept = environment.snapshot()
    before = {name: value.clone() for name, value in kept.items()}
    environment.step(actions[0])
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_wrong_values_are_refused():
    for steps in (0, -1, 2**31, True):
        with pytest.raises(ConfigurationError, match=r"env\.steps"):
            IteratedPrisonersDilemmaConfig(steps=steps)
    with pytest.raises(ConfigurationError, match="batch_size"):
        started(batch_size=0)
    with pytest.raises(ConfigurationError, match="snapshot"):
        started().restore(started(batch_size=3).snapshot())
    with pytest.raises(IndexError):
        started().step(torch.full((2, 4), 2))


def test_nothing_is_played_before_a_reset_or_after_the_end():
    environment = IteratedPrisonersDilemma(IteratedPrisonersDilemmaConfig(), 1)
    for call in (environment.observe, environment.snapshot):
        with pytest.raises(RuntimeError, match="reset"):
            call()
    environment.reset()
    environment.close()
    with pytest.raises(RuntimeError, match="reset"):
        environment.observe()


def played_together(steps=5, batch_size=4, device="cpu"):
    config = IteratedPrisonersDilemmaConfig(steps=steps)
    environment = config.make(batch_size=batch_size, seed=0, device=torch.device(device), threads=1, is_training=True)
    environment.reset()
    return environment


@pytest.mark.parametrize("device", DEVICES)
def test_one_action_for_both_players(device):
    environment = played_together(device=device)
    assert environment.reset().tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]] * 4
    assert environment.spec.action_names == JOINT_ACTION_NAMES
    actions = [JOINT_ACTION_NAMES.index(f"{row[0]}, {row[1]}") for row in ROUNDS]
    step = environment.step(torch.tensor(actions, device=device))
    assert step.reward.tolist() == [(row[2] + row[3]) / 2 for row in ROUNDS] == [-2.0, -1.5, -1.5, -1.0]
    assert [STATE_NAMES[state] for state in step.observation.argmax(-1).tolist()] == [row[4] for row in ROUNDS]
    assert torch.equal(step.observation.sum(-1), torch.ones_like(step.reward))


def test_players_together_are_the_players_apart():
    together, apart = played_together(steps=3), started(steps=3)
    for joint in torch.randint(4, (11, 4), generator=torch.Generator().manual_seed(0)):
        ours, theirs = together.step(joint), apart.step(torch.stack([joint // 2, joint % 2]))
        assert torch.equal(ours.observation.argmax(-1), theirs.observation[0])
        assert torch.equal(ours.reward, theirs.reward.mean(0))
        assert torch.equal(ours.is_terminal, theirs.is_terminal)
        assert torch.equal(ours.raw_reward, ours.reward)
    with pytest.raises(IndexError):
        together.step(torch.full((4,), 4))
