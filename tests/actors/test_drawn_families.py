"""Plays the families whose rules another environment has, beside that environment's rules."""

import numpy as np
import pytest
import torch

from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.actors.envs.snake import (
    Boards,
    SnakeConfig,
    advance,
    empty_state,
    make_board,
    observe_state,
    place_fruit,
    restart,
    uniform_cell,
    uniform_free_cell,
)
from metagrad.actors.envs.snake_family import SnakeFamily
from metagrad.actors.envs.task_streams import draw, make_streams
from metagrad.errors import ConfigurationError

CPU = torch.device("cpu")
SEEDS, BATCH, STEPS = (1, 4, 11, 9), 3, 40


def started(family):
    environment = family.make_tasks(seeds=SEEDS, batch_size=BATCH, device=CPU)
    return environment, environment.reset().unflatten(0, (len(SEEDS), BATCH))


def steps(environment):
    """Action, observation, reward and end [N, B] of each step of agents that act at random."""
    draw_action = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        action = torch.randint(environment.spec.num_actions, (len(SEEDS), BATCH), generator=draw_action)
        step = environment.step(action.flatten())
        shape = (len(SEEDS), BATCH)
        yield action, step.observation.unflatten(0, shape), step.reward.view(shape), step.is_terminal.view(shape)


def numbers_of(n, draws, is_first):
    """Return what a task draws at its reset (`is_first`), and then for each step: rows [B, draws] of the own stream."""
    _, streams = draw(make_streams([SEEDS[n]], CPU), BATCH * draws[0])
    if is_first:
        yield draw(make_streams([SEEDS[n]], CPU), BATCH * draws[0])[0].view(BATCH, draws[0])
    for _ in range(STEPS):
        numbers, streams = draw(streams, BATCH * sum(draws))
        yield numbers.view(BATCH, sum(draws))


def test_delayed_chains_pay_once_what_the_first_action_chose():
    family = DelayedChainFamily(chains=4, min_horizon=3, max_horizon=12)
    environment, seen = started(family)
    delay, reward, horizon = environment.tasks
    assert (delay >= 1).all()
    assert (delay <= horizon[:, None]).all()
    assert (reward.max(1).values >= 0).all()
    for n in range(len(SEEDS)):
        assert seen[n].tolist() == [[-1, 0]] * BATCH
    time, chosen = np.zeros((len(SEEDS), BATCH), int), np.full((len(SEEDS), BATCH), -1)
    paid = 0
    for action, observation, got, is_end in steps(environment):
        for n, b in np.ndindex(*chosen.shape):
            chosen[n, b] = action[n, b] if time[n, b] == 0 else chosen[n, b]
            time[n, b] += 1
            is_due = time[n, b] == delay[n, chosen[n, b]]
            assert got[n, b] == (reward[n, chosen[n, b]] if is_due else 0)
            assert is_end[n, b] == (time[n, b] == horizon[n])
            if is_end[n, b]:
                time[n, b], chosen[n, b] = 0, -1
            expected = np.float32([chosen[n, b], np.float32(time[n, b]) / np.float32(horizon[n])])
            np.testing.assert_array_equal(observation[n, b].numpy(), expected)
            paid += is_due
    assert paid > 10


def test_random_mdps_follow_their_tables():
    family = RandomMdpFamily(states=5, actions=3, min_horizon=3, max_horizon=12)
    environment, seen = started(family)
    cumulative, reward, horizon = environment.tasks
    assert (seen[..., 0] == 1).all()
    streams = [numbers_of(n, (0, 1), False) for n in range(len(SEEDS))]
    state, time = np.zeros((len(SEEDS), BATCH), int), 0
    for action, observation, got, is_end in steps(environment):
        time += 1
        uniform = [next(stream)[:, 0] for stream in streams]
        for n, b in np.ndindex(*state.shape):
            assert got[n, b] == reward[n, state[n, b], action[n, b]]
            row = cumulative[n, state[n, b], action[n, b]]
            state[n, b] = next(s for s in range(5) if row[s] > uniform[n][b])
            assert is_end[n, b] == (time % int(horizon[n]) == 0)
            state[n, b] *= not is_end[n, b]
            assert observation[n, b].tolist() == [float(s == state[n, b]) for s in range(5)]


def test_catch_boards_of_every_size():
    family = CatchFamily(min_size=3, max_size=6)
    environment, seen = started(family)
    rows, columns = (x.tolist() for x in environment.tasks)
    assert len({*zip(rows, columns, strict=True)}) > 2
    assert rows != columns
    streams = [numbers_of(n, (1, 0), True) for n in range(len(SEEDS))]
    first = [next(stream)[:, 0] for stream in streams]
    ball = np.array([[int(u * columns[n]) for u in first[n]] for n in range(len(SEEDS))])
    paddle, row = np.array([[c // 2] * BATCH for c in columns]), np.zeros_like(ball)

    def board(n, b):
        expected = torch.zeros(6, 6)
        expected[row[n, b], ball[n, b]] = expected[rows[n] - 1, paddle[n, b]] = 1
        return expected

    assert all(torch.equal(seen[n, b], board(n, b)) for n, b in np.ndindex(*ball.shape))
    caught = set()
    for action, observation, got, is_end in steps(environment):
        uniform = [next(stream)[:, 0] for stream in streams]
        for n, b in np.ndindex(*ball.shape):
            paddle[n, b] = min(max(paddle[n, b] + int(action[n, b]) - 1, 0), columns[n] - 1)
            row[n, b] += 1
            assert is_end[n, b] == (row[n, b] == rows[n] - 1)
            expected = 0 if not is_end[n, b] else 1 if paddle[n, b] == ball[n, b] else -1
            assert got[n, b] == expected
            caught.add(expected)
            if is_end[n, b]:
                row[n, b], ball[n, b], paddle[n, b] = 0, int(uniform[n][b] * columns[n]), columns[n] // 2
            assert torch.equal(observation[n, b], board(n, b))
    assert caught == {-1, 0, 1}


def test_snake_boards_are_snakes_of_their_size():
    family = SnakeFamily(min_size=2, max_size=4, time_limit=15)
    environment, seen = started(family)
    sizes = (environment.tasks.size + family.min_size).tolist()
    assert len(set(sizes)) == 3
    expected = [list(one_snake(family, n, size)) for n, size in enumerate(sizes)]
    fruits = 0
    for t, (action, observation, got, is_end) in enumerate([(None, seen, None, None), *steps(environment)]):
        for n, size in enumerate(sizes):
            own = expected[n][t]
            assert torch.equal(observation[n, :, :size, :size], own[0])
            assert observation[n].sum() == own[0].sum()
            if action is not None:
                assert torch.equal(got[n], own[1])
                assert torch.equal(is_end[n], own[2])
                fruits += own[1].sum()
    assert fruits > 10


def one_snake(family, n, size):
    """Observation, reward and end of the games of one task, by the rules for boards of one size."""
    board = make_board(SnakeConfig(rows=size, columns=size, time_limit=family.time_limit), CPU)

    def begun(state, is_over, numbers):
        state = restart(state, is_over, uniform_cell(numbers[:, 0], size * size))
        return place_fruit(state, is_over, uniform_free_cell(state.body_state, state.length, numbers[:, 1]))

    streams = numbers_of(n, (2, 1), True)
    state = begun(empty_state(board, BATCH), torch.ones(BATCH, dtype=torch.bool), next(streams))
    yield (observe_state(state, size),)
    draw_action = torch.Generator().manual_seed(1)
    for numbers in streams:
        action = torch.randint(4, (len(SEEDS), BATCH), generator=draw_action)[n]
        state, outcome = advance(state, action, board)
        fruit = uniform_free_cell(state.body_state, state.length, numbers[:, 2])
        state = place_fruit(state, outcome.is_fruit_eaten, fruit)
        state = begun(state, outcome.is_terminal, numbers)
        yield observe_state(state, size), outcome.is_fruit_eaten.float(), outcome.is_terminal


def test_a_board_is_full_by_its_own_size():
    table = torch.zeros(2, 9, 5, dtype=torch.int64)
    boards = Boards(table[..., :4], table, torch.tensor([4, 9], dtype=torch.int16), torch.tensor([0, 1, 1]), 9)
    assert boards.is_full(torch.tensor([4, 4, 9], dtype=torch.int16)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "wrong", "field"),
    [
        (DelayedChainFamily, {"chains": 1}, "chains"),
        (DelayedChainFamily, {"min_horizon": 20, "max_horizon": 10}, "min_horizon"),
        (DelayedChainFamily, {"max_horizon": 2**25}, "max_horizon"),
        (RandomMdpFamily, {"states": 0}, "states"),
        (RandomMdpFamily, {"actions": 0}, "actions"),
        (RandomMdpFamily, {"min_horizon": 0}, "min_horizon"),
        (CatchFamily, {"min_size": 1}, "min_size"),
        (CatchFamily, {"min_size": 5, "max_size": 4}, "min_size"),
        (SnakeFamily, {"max_size": 182}, "max_size"),
        (SnakeFamily, {"time_limit": 0}, "time_limit"),
    ],
)
def test_wrong_configuration_is_refused(kind, wrong, field):
    with pytest.raises(ConfigurationError, match=f"^env.{field} = "):
        kind(**wrong)
