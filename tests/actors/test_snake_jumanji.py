"""Move for move against an installed Jumanji, hidden state included; skipped where there is none."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from metagrad.actors.envs import snake
from metagrad.actors.envs.snake import SnakeConfig

pytest.importorskip("jumanji")
import jax


@pytest.fixture(scope="module")
def recorder():
    path = Path(__file__).parents[1] / "golden" / "record_snake.py"
    spec = importlib.util.spec_from_file_location("record_snake", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_observation(ours, theirs):
    """Equal, but for the last bit of `order`: compiled, Jumanji divides by multiplying with the rounded reciprocal."""
    theirs = np.asarray(theirs)
    np.testing.assert_array_equal(ours[..., :4], theirs[..., :4])
    np.testing.assert_array_max_ulp(ours[..., 4].numpy(), theirs[..., 4], maxulp=1)


def as_state(theirs, batch_size):
    """Jumanji's state in our form; its tail is a board."""

    def tensor(values, dtype):
        return torch.from_numpy(np.array(values)).to(dtype).view(batch_size, -1).squeeze(1)

    columns = theirs.body_state.shape[-1]
    return snake.SnakeState(
        body_state=tensor(theirs.body_state, torch.int16),
        head=tensor(theirs.head_position.row * columns + theirs.head_position.col, torch.int64),
        tail=tensor(theirs.tail, torch.int64).argmax(dim=1),
        fruit=tensor(theirs.fruit_position.row * columns + theirs.fruit_position.col, torch.int64),
        length=tensor(theirs.length, torch.int16),
        step_count=tensor(theirs.step_count, torch.int32),
    )


@pytest.mark.parametrize(
    ("rows", "columns", "time_limit"), [(6, 6, 500), (12, 12, 5000), (5, 7, 60), (3, 4, 45), (2, 2, 20), (1, 2, 5)]
)
def test_states_and_outcomes_are_equal(recorder, rows, columns, time_limit):
    batch_size, num_steps = 32, 400
    recording = recorder.Recording(rows, columns, time_limit, batch_size, num_steps, seed=11)
    reset, step = recorder.compiled(recording)
    board = snake.make_board(SnakeConfig(rows=rows, columns=columns, time_limit=time_limit), torch.device("cpu"))
    rng = np.random.default_rng(recording.seed)
    theirs, timestep = reset(jax.random.split(jax.random.PRNGKey(recording.seed), batch_size))
    ours = as_state(theirs, batch_size)
    assert_same_observation(snake.observe_state(ours, rows), timestep.observation.grid)
    for _ in range(num_steps):
        boards = zip(np.asarray(theirs.body_state), ours.head.tolist(), ours.fruit.tolist(), strict=True)
        action = np.array(
            [
                recorder.choose_action(i % 4, body_state, divmod(head, columns), divmod(fruit, columns), rng)
                for i, (body_state, head, fruit) in enumerate(boards)
            ]
        )
        is_alive = torch.from_numpy(np.array(theirs.action_mask)[np.arange(batch_size), action])
        theirs, timestep, grid, moved = step(theirs, action)
        ours, outcome = snake.advance(ours, torch.from_numpy(action), board)
        np.testing.assert_array_equal(outcome.is_fruit_eaten.float(), timestep.reward)
        np.testing.assert_array_equal(outcome.is_terminal, np.asarray(timestep.discount) == 0)

        # Where the snake lives, full boards and time limits included, the move left the same state (but for the fruit,
        # which Jumanji has placed by then).
        assert outcome.is_terminal[~is_alive].all()
        expected = as_state(moved, batch_size)
        for name in ("body_state", "head", "tail", "length", "step_count"):
            assert torch.equal(getattr(ours, name)[is_alive], getattr(expected, name)[is_alive]), name

        expected = as_state(theirs, batch_size)
        ours = snake.restart(ours, outcome.is_terminal, expected.head)
        ours = snake.place_fruit(ours, outcome.is_fruit_eaten | outcome.is_terminal, expected.fruit)
        for name, value in expected._asdict().items():
            assert torch.equal(getattr(ours, name), value), name
        assert_same_observation(snake.observe_state(ours, rows), grid)
