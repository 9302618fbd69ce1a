import numpy as np
import pytest
import torch

from metagrad.actors.envs.snake_render import FRAME, FRUIT, HEAD, NECK, TAIL, render
from metagrad.errors import ConfigurationError

SCALE = 32
MARGIN = 8


def board(rows, columns, body, fruit):
    """Observation of a snake on `body` (tail first)."""
    observation = np.zeros((rows, columns, 5), dtype=np.float32)
    for i, cell in enumerate(body):
        observation[(*cell, 0)] = 1
        observation[(*cell, 4)] = (i + 1) / len(body)
    observation[(*body[-1], 1)] = 1
    observation[(*body[0], 2)] = 1
    observation[(*fruit, 3)] = 1
    return observation


def pixel(picture, row, column):
    """Colour at a point in cells."""
    return picture[int(MARGIN + row * SCALE), int(MARGIN + column * SCALE)].astype(float)


def test_picture_shows_head_body_fruit_and_frame_where_they_are():
    picture = render(board(3, 4, body=[(0, 0), (1, 0), (1, 1), (1, 2)], fruit=(2, 3)), scale=SCALE)
    assert picture.dtype == np.uint8
    assert picture.shape == (3 * SCALE + 2 * MARGIN, 4 * SCALE + 2 * MARGIN, 3)
    np.testing.assert_array_equal(picture[0, 0], FRAME)
    np.testing.assert_array_equal(pixel(picture, 1.5, 2.5), HEAD)
    np.testing.assert_array_equal(pixel(picture, 2.6, 3.55), FRUIT)
    tail, neck = pixel(picture, 0.5, 0.5), pixel(picture, 1.5, 1.5)
    assert np.abs(tail - TAIL).sum() < np.abs(tail - NECK).sum()
    assert np.abs(neck - NECK).sum() < np.abs(neck - TAIL).sum()


def test_only_cells_that_follow_one_another_are_joined():
    # The ring of a 2x2 board is closed but for the gap between head and tail.
    picture = render(board(2, 3, body=[(0, 0), (1, 0), (1, 1), (0, 1)], fruit=(0, 2)), scale=SCALE)
    empty = render(board(2, 3, body=[(1, 2)], fruit=(0, 2)), scale=SCALE)
    joined, gap = pixel(picture, 1.0, 0.5), pixel(picture, 0.5, 0.95)
    assert np.abs(joined - pixel(empty, 1.0, 0.5)).sum() > 50
    np.testing.assert_array_equal(gap, pixel(empty, 0.5, 0.95))


def test_eyes_look_away_from_the_neck():
    right = render(board(3, 3, body=[(1, 0), (1, 1)], fruit=(0, 0)), scale=SCALE)
    left = render(board(3, 3, body=[(1, 2), (1, 1)], fruit=(0, 0)), scale=SCALE)
    head = slice(MARGIN + SCALE, MARGIN + 2 * SCALE)
    eyes = [np.argwhere(picture[head, head].sum(-1) < 100)[:, 1].mean() for picture in (right, left)]
    assert eyes[0] > SCALE / 2 > eyes[1]


def test_takes_tensors_and_does_not_change_them():
    observation = torch.from_numpy(board(2, 2, body=[(0, 0)], fruit=(1, 1)))
    before = observation.clone()
    np.testing.assert_array_equal(render(observation), render(observation.numpy()))
    assert torch.equal(observation, before)


def test_full_board_and_smallest_scale_are_drawn():
    body = [(0, 0), (0, 1), (1, 1), (1, 0)]
    assert render(board(2, 2, body=body, fruit=(0, 0)), scale=4).shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("shape", "scale", "field"),
    [((1, 6, 6, 5), 32, "observation"), ((6, 6, 4), 32, "observation"), ((6, 6, 5), 3, "scale")],
)
def test_wrong_input_is_refused(shape, scale, field):
    with pytest.raises(ConfigurationError, match=field):
        render(np.zeros(shape), scale=scale)
