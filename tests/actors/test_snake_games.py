"""Whole games of Snake: what holds in every state, what is drawn at random, and snapshots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.actors.envs import snake
from metagrad.actors.envs.snake import Snake, SnakeConfig
from metagrad.errors import ConfigurationError


def play(environment, num_steps, seed=0):
    """Observations, rewards and ends of uniformly random actions."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(num_steps):
        action = torch.randint(4, (environment.spec.batch_size,), generator=generator)
        steps.append(environment.step(action))
    return [torch.stack([getattr(step, name) for step in steps]) for name in ("observation", "reward", "is_terminal")]


# Properties of every state

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda size: size[0] * size[1] >= 2)


@settings(max_examples=25)
@given(size=sizes, time_limit=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_every_state_of_a_game_is_sound(size, time_limit, seed):
    rows, columns = size
    environment = Snake(SnakeConfig(rows=rows, columns=columns, time_limit=time_limit), 6, seed, "cpu")
    generator = torch.Generator().manual_seed(seed)
    observation = environment.reset()
    fruits, steps = torch.zeros(6), torch.zeros(6)
    for _ in range(40):
        body, head, tail, fruit, order = observation.flatten(1, 2).unbind(-1)
        assert torch.equal(body.sum(1), 1 + fruits)  # length
        for channel in (head, tail, fruit):
            assert torch.equal(channel.sum(1), torch.ones(6))
        assert torch.equal((head * body).sum(1), torch.ones(6))
        assert torch.equal((tail * body).sum(1), torch.ones(6))
        assert not (fruit * body).any()
        length = body.sum(1, keepdim=True)
        labels = (length - torch.arange(rows * columns)).clamp(min=0)  # length, length - 1, ..., 1, 0, ...
        assert torch.equal(order.sort(dim=1, descending=True).values, labels / length)
        assert torch.equal(order.argmax(1), head.argmax(1))
        assert torch.equal(observation, environment.observe())

        step = environment.step(torch.randint(4, (6,), generator=generator))
        assert step.valid.all()
        assert not step.is_truncated.any()
        assert torch.equal(step.is_episode_end, step.is_terminal)
        assert torch.equal(step.raw_reward, step.reward)
        observation = step.observation
        fruits = torch.where(step.is_terminal, 0, fruits + step.reward)
        steps = torch.where(step.is_terminal, 0, steps + 1)
        assert (steps < time_limit).all()
        assert torch.equal(environment.snapshot()["step_count"], steps.int())


def test_step_returns_a_fresh_episode_at_an_end():
    environment = Snake(SnakeConfig(rows=4, columns=4, time_limit=5), 64, 0, "cpu")
    environment.reset()
    observation, _, is_terminal = play(environment, 5)
    assert is_terminal[4, ~is_terminal[:4].any(0)].all()
    assert (observation[is_terminal][..., 0].sum((1, 2)) == 1).all()


def test_observation_belongs_to_the_caller():
    environment = Snake(SnakeConfig(), 4, 0, "cpu")
    first = environment.reset()
    before = first.clone()
    play(environment, 3)
    assert torch.equal(first, before)
    environment.observe().zero_()
    assert environment.observe().any()


# Random draws


def chi_square_is_plausible(counts):
    """Return whether uniform counts would scatter more than these in at least one of a thousand experiments."""
    expected = counts.sum() / len(counts)
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    # Wilson and Hilferty 1931: the cube root of chi-square / freedom is nearly normal.
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return abs(normal) < 3.3


def test_fruit_is_uniform_over_the_free_cells():
    body, draws = [0, 1, 6, 11, 12, 19], 50_000
    board = snake.make_board(SnakeConfig(rows=4, columns=5), torch.device("cpu"))
    state = snake.empty_state(board, draws)
    state.body_state[:, body] = torch.arange(1, len(body) + 1, dtype=torch.int16)
    state.length.fill_(len(body))
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(3))
    counts = snake.uniform_free_cell(state.body_state, state.length, uniform).bincount(minlength=20).double()
    is_free = state.body_state[0] == 0
    assert not counts[~is_free].any()
    assert chi_square_is_plausible(counts[is_free])


@pytest.mark.parametrize("num_steps", [0, 1])
def test_first_head_and_fruit_are_uniform_and_independent(num_steps):
    environment = Snake(SnakeConfig(rows=3, columns=4, time_limit=1), 48_000, 7, "cpu")  # every step ends in a reset
    environment.reset()
    for _ in range(num_steps):
        environment.step(torch.zeros(48_000, dtype=torch.int64))
    state = environment.snapshot()
    pairs = state["head"] * 12 + state["fruit"]
    counts = pairs.bincount(minlength=144).double().view(12, 12)
    assert not counts.diagonal().any()
    assert chi_square_is_plausible(counts[~torch.eye(12, dtype=torch.bool)])


def test_one_seed_gives_one_game_and_another_seed_another():
    def game(seed):
        environment = Snake(SnakeConfig(), 32, seed, "cpu")
        return [environment.reset(), *play(environment, 100)]

    first, again, other = game(5), game(5), game(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


# Snapshots


def test_restored_snapshot_continues_bitwise():
    environment = Snake(SnakeConfig(time_limit=30), 32, 1, "cpu")
    environment.reset()
    play(environment, 20)
    snapshot = environment.snapshot()
    expected = play(environment, 60, seed=9)
    elsewhere = Snake(SnakeConfig(time_limit=30), 32, 2, "cpu")
    for target in (environment, elsewhere):  # twice from one snapshot: stepping must not write into it
        target.restore(snapshot)
        assert torch.equal(target.observe(), snake.observe_state(snake.SnakeState(**without_generator(snapshot)), 6))
        assert all(torch.equal(a, b) for a, b in zip(play(target, 60, seed=9), expected, strict=True))


def test_snapshot_shares_no_memory_with_the_games():
    environment = Snake(SnakeConfig(), 32, 1, "cpu")
    before = environment.reset()
    for value in without_generator(environment.snapshot()).values():
        value.zero_()
    assert torch.equal(environment.observe(), before)
    snapshot = environment.snapshot()
    environment.restore(snapshot)
    for value in without_generator(snapshot).values():
        value.zero_()
    assert torch.equal(environment.observe(), before)


def without_generator(snapshot):
    return {name: value for name, value in snapshot.items() if name != "generator"}


def test_fork_starts_from_the_same_games_and_draws_its_own_fruits():
    environment, fork = (Snake(SnakeConfig(), 64, seed, "cpu") for seed in (1, 2))
    environment.reset()
    play(environment, 20)
    own = torch.Generator().manual_seed(2).get_state()
    fork.restore(without_generator(environment.snapshot()))
    assert torch.equal(fork.observe(), environment.observe())
    assert torch.equal(fork.snapshot()["generator"], own)
    real = environment.snapshot()
    ours, theirs = play(fork, 100), play(environment, 100)
    assert not torch.equal(ours[0], theirs[0])
    environment.restore(real)
    assert all(torch.equal(a, b) for a, b in zip(play(environment, 100), theirs, strict=True))


def test_snapshot_of_another_board_is_refused():
    environment = Snake(SnakeConfig(), 4, 0, "cpu")
    environment.reset()
    snapshot = environment.snapshot()
    for other in (Snake(SnakeConfig(rows=7), 4, 0, "cpu"), Snake(SnakeConfig(), 5, 0, "cpu")):
        with pytest.raises(ConfigurationError, match=r"snapshot\[body_state\]"):
            other.restore(snapshot)
    with pytest.raises(ConfigurationError, match="must hold"):
        environment.restore({"head": snapshot["head"]})


def test_games_exist_only_between_reset_and_close():
    environment = Snake(SnakeConfig(), 2, 0, "cpu")
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step(torch.zeros(2, dtype=torch.int64))
    environment.reset()
    environment.close()
    with pytest.raises(RuntimeError, match="call reset"):
        environment.observe()
