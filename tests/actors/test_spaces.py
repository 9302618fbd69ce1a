"""Checks what spaces become, against Gymnasium's own samples and its flattening."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from metagrad.actors.envs.spaces import actions, observations, with_batch_axis
from metagrad.distributions import ContinuousActions, MultiDiscreteActions
from metagrad.errors import ConfigurationError

LINE = spaces.Box(-1.0, 1.0, (2,), np.float64)
NESTED = spaces.Dict(
    {
        "z": spaces.Tuple([spaces.Discrete(3, start=5), LINE]),
        "a": spaces.MultiDiscrete([2, 4]),
        "m": spaces.Box(0, 7, (2, 2), np.int32),
        "b": spaces.MultiBinary(3),
    }
)


def bytes_of(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def encoded(space, batch_size=3):
    batch = batch_space(space, batch_size)
    batch.seed(0)
    taken, sample = observations(space, "Task", "env.id"), batch.sample()
    values = taken.encode(sample)
    assert values.shape == (batch_size, *taken.shape)
    assert values.dtype == taken.dtype
    return values, sample


@pytest.mark.parametrize(
    "space",
    [
        LINE,
        spaces.Box(-1.0, 1.0, (), np.float32),
        spaces.Box(0, 9, (2, 3), np.int64),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary((2, 2)),
        NESTED,
        spaces.Tuple([spaces.Discrete(2), NESTED]),
    ],
    ids=str,
)
def test_flat_spaces_are_flattened_as_gymnasium_does(space):
    values, _ = encoded(space)
    space.seed(0)
    singles = [space.sample() for _ in range(3)]
    expected = np.stack([spaces.flatten(space, single).astype(np.float32) for single in singles])
    taken = observations(space, "Task", "env.id")
    alone = [taken.encode(with_batch_axis(single))[0] for single in singles]
    assert torch.equal(torch.stack(alone), torch.from_numpy(expected))
    assert values.shape == expected.shape
    assert values.dtype == torch.float32


def test_parts_follow_the_order_of_their_space():
    values, sample = encoded(NESTED)
    assert list(NESTED.spaces) == ["a", "b", "m", "z"], "Gymnasium sorts the keys of a dictionary"
    assert torch.equal(values[:, 6:9], torch.from_numpy(sample["b"].astype(np.float32)))
    assert torch.equal(values[:, 13:16].argmax(-1), torch.from_numpy(sample["z"][0] - 5))
    assert torch.equal(values[:, 16:], torch.from_numpy(sample["z"][1].astype(np.float32)))


@pytest.mark.parametrize(
    ("shape", "channels_first", "axes"),
    [
        ((40, 30, 3), (3, 40, 30), (2, 0, 1)),
        ((4, 30, 40), (4, 30, 40), (0, 1, 2)),
        ((5, 7, 5), (5, 5, 7), (2, 0, 1)),
        ((1, 8, 1), (1, 1, 8), (2, 0, 1)),
    ],
)
def test_pictures_of_any_size_and_order_become_channels_first(shape, channels_first, axes):
    values, sample = encoded(bytes_of(*shape))
    assert values.shape[1:] == channels_first
    assert values.dtype == torch.uint8
    assert torch.equal(values, torch.from_numpy(np.stack([x.transpose(axes) for x in sample])))


def test_a_picture_of_two_axes_is_one_channel():
    values, sample = encoded(bytes_of(20, 30))
    assert torch.equal(values, torch.from_numpy(sample)[:, None])


def test_small_pictures_among_parts_are_numbers_and_text_in_bytes_is_scaled():
    values, sample = encoded(spaces.Dict({"image": bytes_of(7, 7, 3), "mission": bytes_of(9)}))
    assert torch.equal(values[:, :147], torch.from_numpy(sample["image"].reshape(3, -1)).float())
    assert torch.equal(values[:, 147:], torch.from_numpy(sample["mission"]).float() / 255)


def test_larger_pictures_stand_before_the_numbers_of_other_parts():
    parts = {"a": LINE, "b": bytes_of(20, 30, 3), "c": spaces.Tuple([spaces.Discrete(2), bytes_of(16, 17)])}
    values, sample = encoded(spaces.Dict(parts | {"d": bytes_of(15, 20, 3)}))
    taken = observations(spaces.Dict(parts | {"d": bytes_of(15, 20, 3)}), "Task", "env.id")
    assert taken.shape == (1800 + 272 + 2 + 2 + 900,)
    assert taken.dtype == torch.float32
    assert (taken.shape.pictures, taken.shape.numbers) == (((3, 20, 30), (1, 16, 17)), 904)
    for b in range(3):
        color = [sample["b"][b, y, x, c] for c in range(3) for y in range(20) for x in range(30)]
        index, grey = (part[b] for part in sample["c"])
        numbers = [*sample["a"][b], float(index == 0), float(index == 1), *sample["d"][b].flat]
        expected = np.array([*color, *grey.flat, *numbers], np.float32)
        assert torch.equal(values[b], torch.from_numpy(expected))


def test_one_larger_picture_alone_among_parts_is_a_picture():
    values, sample = encoded(spaces.Dict({"only": spaces.Tuple([bytes_of(20, 30, 3)])}))
    assert torch.equal(values, torch.from_numpy(sample["only"][0]).permute(0, 3, 1, 2))
    assert values.dtype == torch.uint8
    two = observations(spaces.Tuple([bytes_of(20, 30)] * 2), "Task", "env.id").shape
    assert (two, two.numbers) == ((1200,), 0)


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Text(5), r"Text\("),
        (spaces.Graph(spaces.Discrete(2), None), r"Graph\("),
        (spaces.Sequence(spaces.Discrete(2)), r"Sequence\("),
        (spaces.OneOf([spaces.Discrete(2), LINE]), r"OneOf\("),
        (spaces.Dict({"x": LINE, "words": spaces.Tuple([spaces.Text(5)])}), r"Text\(.* as words\.0"),
        (spaces.Dict({"view": bytes_of(64, 64, 3), "words": spaces.Text(5)}), r"Text\(.* as words"),
        (spaces.Dict({}), "holds no number"),
    ],
    ids=str,
)
def test_what_is_not_taken_is_refused_in_one_line_that_names_the_space(space, named):
    with pytest.raises(ConfigurationError, match=rf"^env\.id = 'Task': observes .*{named}") as refusal:
        observations(space, "Task", "env.id")
    assert "\n" not in str(refusal.value)


def test_actions_are_numbers_from_0_and_land_in_the_space():
    space = spaces.Discrete(3, start=-1)
    taken = actions(space, "Task", "env.id")
    decoded = taken.decode(torch.tensor([0, 1, 2]))
    assert decoded.tolist() == [-1, 0, 1]
    assert all(space.contains(action) for action in decoded)
    assert taken.names == ("action -1", "action 0", "action 1")


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.MultiDiscrete([2, 3], start=[0, -1]), MultiDiscreteActions((2, 3))),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), MultiDiscreteActions((2, 3, 4, 5))),
        (spaces.MultiBinary((2, 1)), MultiDiscreteActions((2, 2))),
        (spaces.Box(-1.0, np.array([2.0, 3.0]), (2,), np.float64), ContinuousActions(2)),
        (spaces.Box(-np.inf, np.inf, (2, 2), np.float32), ContinuousActions(4)),
    ],
    ids=str,
)
def test_actions_of_several_numbers_land_in_the_space(space, expected):
    taken = actions(space, "Task", "env.id")
    assert taken.space == expected
    assert len(taken.names) == math.prod(space.shape)
    policy = expected.policy(torch.zeros(200, expected.outputs))
    decoded = taken.decode(policy.sample(torch.Generator().manual_seed(0)).action)
    assert decoded.shape == (200, *space.shape)
    assert all(space.contains(action) for action in decoded)
    if isinstance(expected, MultiDiscreteActions):
        assert len(np.unique(decoded, axis=0)) > 3, "all are reached"


def test_a_box_is_scaled_from_minus_one_to_one_and_clipped():
    space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)
    decode = actions(space, "Task", "env.id").decode
    x = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, -0.5], [7.0, -7.0]])
    assert decode(x).tolist() == [[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0], [1.0, 2.5], [2.0, 0.0]]
    half = actions(spaces.Box(0.0, np.inf, (1,), np.float32), "Task", "env.id").decode
    assert half(torch.tensor([[-3.0], [0.5], [3.0]])).tolist() == [[0.0], [0.5], [3.0]]
    unknown = spaces.Box(np.finfo(np.float32).tiny, np.finfo(np.float32).max, (1,), np.float32)
    assert actions(unknown, "Task", "env.id").decode(torch.tensor([[-2.0], [2.0]])).tolist() == [[-2.0], [2.0]]


@pytest.mark.parametrize(
    "space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Text(3), spaces.Box(0, 9, (2,), np.int64)], ids=str
)
def test_actions_of_another_space_are_refused(space):
    with pytest.raises(ConfigurationError, match=r"^env\.task = 'Task': acts in (Tuple|Text|Box)\("):
        actions(space, "Task", "env.task")
