import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from metagrad.actors.envs import snake
from metagrad.actors.envs.base import SnapshotEnvironment
from metagrad.actors.envs.snake import Snake, SnakeConfig
from metagrad.errors import ConfigurationError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("snake_6x6", "snake_12x12", "snake_5x7", "snake_4x3", "snake_2x2", "snake_1x5")
UP, RIGHT, DOWN, LEFT = range(4)


@pytest.fixture(scope="module")
def recorder():
    spec = importlib.util.spec_from_file_location("record_snake", GOLDEN / "record_snake.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(recorder, name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return recorder.decode(dict(stored))


def assert_same_observation(ours, theirs):
    """Equal, but for the last bit of `order`: compiled, Jumanji divides by multiplying with the rounded reciprocal."""
    np.testing.assert_array_equal(ours[..., :4], theirs[..., :4])
    np.testing.assert_array_max_ulp(ours[..., 4].numpy(), theirs[..., 4], maxulp=1)


def one_board(rows, columns, body, fruit, step_count=0, time_limit=100):
    """A board with one snake on the cells `body` (tail first), and its tables."""
    board = snake.make_board(SnakeConfig(rows=rows, columns=columns, time_limit=time_limit), torch.device("cpu"))
    state = snake.empty_state(board, 1)
    state.body_state[0, body] = torch.arange(1, len(body) + 1, dtype=torch.int16)
    cell = torch.tensor
    return board, snake.SnakeState(
        body_state=state.body_state,
        head=cell([body[-1]]),
        tail=cell([body[0]]),
        fruit=cell([fruit]),
        length=cell([len(body)], dtype=torch.int16),
        step_count=cell([step_count], dtype=torch.int32),
    )


# Against the reference


@pytest.mark.parametrize("name", NAMES)
def test_replays_recorded_jumanji_episodes_exactly(recorder, name):
    trace = load(recorder, name)
    rows, columns, time_limit = map(int, trace["rules"])
    config = SnakeConfig(rows=rows, columns=columns, time_limit=time_limit)
    board = snake.make_board(config, torch.device("cpu"))
    action, head, fruit = (torch.from_numpy(trace[key].astype(np.int64)) for key in ("action", "head", "fruit"))
    num_steps, batch_size = action.shape
    everywhere = torch.ones(batch_size, dtype=torch.bool)

    state = snake.restart(snake.empty_state(board, batch_size), everywhere, head[0])
    state = snake.place_fruit(state, everywhere, fruit[0])
    assert_same_observation(snake.observe_state(state, rows), trace["observation"][0])
    for t in range(num_steps):
        state, outcome = snake.advance(state, action[t], board)
        np.testing.assert_array_equal(outcome.is_fruit_eaten.float(), trace["reward"][t])
        np.testing.assert_array_equal(outcome.is_terminal, trace["is_terminal"][t])
        state = snake.restart(state, outcome.is_terminal, head[t + 1])
        state = snake.place_fruit(state, outcome.is_fruit_eaten | outcome.is_terminal, fruit[t + 1])
        assert_same_observation(snake.observe_state(state, rows), trace["observation"][t + 1])


def test_recordings_hold_every_kind_of_ending(recorder):
    endings = {name: set(np.unique(load(recorder, name)["ending"])) for name in NAMES}
    assert set().union(*endings.values()) == set(range(4))
    assert recorder.BOARD_FULL in endings["snake_6x6"]
    assert recorder.TIME_LIMIT in endings["snake_12x12"]


# Rules, case by case


def test_actions_are_up_right_down_left():
    board, state = one_board(3, 3, body=[4], fruit=0)
    for action, target in ((UP, 1), (RIGHT, 5), (DOWN, 7), (LEFT, 3)):
        moved, _ = snake.advance(state, torch.tensor([action]), board)
        assert moved.head.item() == target


@pytest.mark.parametrize(
    ("cell", "action"), [(0, UP), (0, LEFT), (2, RIGHT), (3, LEFT), (5, RIGHT), (6, DOWN), (8, RIGHT)]
)
def test_wall_kills_also_a_snake_of_length_one(cell, action):
    board, state = one_board(3, 3, body=[cell], fruit=4)
    assert snake.advance(state, torch.tensor([action]), board)[1].is_terminal.item()


def test_head_may_enter_the_cell_that_the_tail_leaves():
    board, state = one_board(2, 3, body=[0, 1, 4, 3], fruit=2)  # a ring of 4: up leads from 3 to the tail at 0
    moved, outcome = snake.advance(state, torch.tensor([UP]), board)
    assert not outcome.is_terminal.item()
    assert (moved.head.item(), moved.tail.item(), moved.length.item()) == (0, 1, 4)


def test_body_that_stays_kills():
    board, state = one_board(2, 4, body=[0, 1, 2, 6, 5], fruit=7)  # up leads from 5 to 1, which is left a step later
    assert snake.advance(state, torch.tensor([UP]), board)[1].is_terminal.item()


def test_fruit_grows_the_snake_and_its_tail_stays():
    board, state = one_board(1, 5, body=[0, 1], fruit=2)
    moved, outcome = snake.advance(state, torch.tensor([RIGHT]), board)
    assert outcome.is_fruit_eaten.item()
    assert not outcome.is_terminal.item()
    assert moved.body_state.tolist() == [[1, 2, 3, 0, 0]]
    assert moved.tail.item() == 0


def test_last_fruit_ends_the_episode_with_its_reward():
    board, state = one_board(1, 3, body=[0, 1], fruit=2)
    _, outcome = snake.advance(state, torch.tensor([RIGHT]), board)
    assert outcome.is_fruit_eaten.item()
    assert outcome.is_terminal.item()


@pytest.mark.parametrize(("step_count", "is_terminal"), [(8, False), (9, True)])
def test_time_limit_is_a_termination(step_count, is_terminal):
    board, state = one_board(3, 3, body=[4], fruit=0, step_count=step_count, time_limit=10)
    assert snake.advance(state, torch.tensor([UP]), board)[1].is_terminal.item() == is_terminal


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("length", range(1, 36))
def test_extreme_draws_stay_on_free_cells(uniform, length):
    _, state = one_board(6, 6, body=list(range(length)), fruit=35)
    cell = snake.uniform_free_cell(state.body_state, state.length, torch.tensor([uniform])).item()
    assert cell == (length if uniform == 0 else 35)
    assert 0 <= snake.uniform_cell(torch.tensor([uniform]), 36).item() < 36


# Protocol, device, configuration


def test_spec_describes_the_observations():
    environment = Snake(SnakeConfig(rows=3, columns=5), 7, 0)
    assert isinstance(environment, SnapshotEnvironment)
    observation = environment.reset()
    spec = environment.spec
    assert observation.shape == (spec.batch_size, *spec.observation_shape) == (7, 3, 5, 5)
    assert observation.dtype == spec.observation_dtype
    assert observation.is_contiguous()
    assert spec.action_names == ("up", "right", "down", "left")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)])
def test_everything_lives_on_the_device(device):
    environment = Snake(SnakeConfig(), 3, 0, device)
    observation = environment.reset()
    step = environment.step(torch.zeros(3, dtype=torch.int64, device=device))
    assert environment.spec.device.type == torch.device(device).type
    assert {observation.device, *(field.device for field in step)} == {environment.spec.device}
    snapshot = environment.snapshot()
    environment.restore({name: value.cpu() for name, value in snapshot.items()})
    assert all(torch.equal(environment.snapshot()[name], value) for name, value in snapshot.items())


def test_step_needs_nothing_from_the_device():
    # Fake tensors have no values: whatever reads one on the host, or has a shape that depends on one, raises.
    with FakeTensorMode():
        board = snake.make_board(SnakeConfig(), torch.device("cpu"))
        state = snake.empty_state(board, 8)
        action, uniform = torch.zeros(8, dtype=torch.int64), torch.zeros(2, 8)
        state, _ = snake.step_state(state, action, uniform, board)
        assert snake.observe_state(state, 6).shape == (8, 6, 6, 5)


@pytest.mark.parametrize(("rows", "columns", "batch_size"), [(2, 2, 64), (6, 6, 40), (12, 12, 9), (1, 5, 1)])
def test_step_on_the_host_has_the_same_bits(rows, columns, batch_size):
    # Snakes on small boards also fill them; rewards and ends of all kinds occur.
    config = SnakeConfig(rows=rows, columns=columns, time_limit=30)
    board, generator = snake.make_board(config, torch.device("cpu")), torch.Generator().manual_seed(0)
    environment = Snake(config, batch_size, 0)
    environment.reset()
    state = snake.SnakeState(**{name: x for name, x in environment.snapshot().items() if name != "generator"})
    eaten = ended = 0
    for _ in range(200):
        action = torch.randint(4, (batch_size,), generator=generator)
        uniform = torch.rand(2, batch_size, generator=generator)
        before = [field.clone() for field in state]
        expected, expected_outcome = snake.step_state(state, action, uniform, board)
        found, outcome = snake.step_state_on_host(state, action, uniform, board)
        assert all(map(torch.equal, before, state))  # neither writes into what it was given
        assert all(map(torch.equal, expected, found))
        assert [field.dtype for field in expected] == [field.dtype for field in found]
        assert all(map(torch.equal, expected_outcome, outcome))
        state, eaten, ended = found, eaten + outcome.is_fruit_eaten.sum(), ended + outcome.is_terminal.sum()
    assert eaten > 0
    assert ended > 0


def test_observations_written_in_parts_are_those_written_at_once(monkeypatch):
    environment = Snake(SnakeConfig(), 10, 0)
    environment.reset()
    for action in torch.randint(4, (20, 10), generator=torch.Generator().manual_seed(0)):
        environment.step(action)
    at_once = environment.observe()
    for boards in (1, 3, 5, 9):  # also parts of which the last is smaller
        monkeypatch.setattr(snake, "CACHED_BYTES", boards * 36 * 5 * 4)
        torch.full_like(at_once, torch.nan)  # what is not written is not by chance what was there before
        assert torch.equal(environment.observe(), at_once)


@pytest.mark.parametrize("action", [4, 99])
def test_action_that_does_not_exist_is_an_error(action):
    environment = Snake(SnakeConfig(), 1, 0, "cpu")
    environment.reset()
    with pytest.raises(IndexError):
        environment.step(torch.tensor([action]))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"rows": 0}, "env.rows"),
        ({"columns": -3}, "env.columns"),
        ({"time_limit": 0}, "env.time_limit"),
        ({"time_limit": 2**31}, "env.time_limit"),
        ({"rows": True}, "env.rows"),
        ({"rows": 1, "columns": 1}, "env.rows x env.columns"),
        ({"rows": 200, "columns": 200}, "env.rows x env.columns"),
    ],
)
def test_wrong_configuration_is_refused(wrong, field):
    with pytest.raises(ConfigurationError, match=field):
        SnakeConfig(**wrong)


def test_empty_batch_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size"):
        Snake(SnakeConfig(), 0, 0, "cpu")
