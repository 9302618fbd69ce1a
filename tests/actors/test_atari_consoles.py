"""Games on ale-py's scalar emulators: what AtariVectorEnv plays, bit for bit, in copies that go on exactly."""

import threading

import numpy as np
import pytest
import torch

from metagrad.actors.envs import atari_consoles
from metagrad.actors.envs.atari import AtariConfig, make_atari
from metagrad.actors.envs.atari_consoles import mersenne_twister, uniform_int
from metagrad.actors.envs.atari_games import GAMES, GAMES_WITHOUT_EXACT_COPIES
from metagrad.actors.envs.base import EnvironmentStep
from metagrad.errors import ConfigurationError


def make(backend, batch_size=3, seed=4, *, threads=1, is_colour_view=False, **values):
    config = AtariConfig(backend=backend, **values)
    sizes = {"batch_size": batch_size, "seed": seed, "threads": threads}
    return make_atari(config, **sizes, is_training=True, is_colour_view=is_colour_view)


def play(environment, steps, seed=0):
    draw, spec = torch.Generator().manual_seed(seed), environment.spec
    actions = torch.randint(spec.num_actions, (steps, spec.batch_size), generator=draw)
    return [environment.step(action) for action in actions]


def assert_same(steps, others):
    for t, pair in enumerate(zip(steps, others, strict=True)):
        for field in EnvironmentStep._fields:
            assert torch.equal(*(getattr(step, field) for step in pair)), (t, field)


@pytest.mark.parametrize(
    "values",
    [
        {"game": "Breakout", "sticky_action_probability": 0.1},
        {"game": "Breakout", "max_episode_steps": 20, "stack_size": 2, "frame_size": 42},
        {"game": "Klax", "sticky_action_probability": 0.25, "full_action_space": True},  # its screen has 250 lines
        {"game": "Klax", "is_colour_view": True},
        {"game": "MsPacman", "frame_skip": 3, "no_op_max": 5, "fire_on_reset": False, "is_colour_view": True},
    ],
    ids=["whole", "cut", "tall", "tall-colour", "colour"],
)
def test_games_are_those_of_the_vector_environment(values):
    vector, ours = (make(backend, **values) for backend in ("ale", "ale-snapshots"))
    assert vector.spec == ours.spec
    assert torch.equal(vector.reset(), ours.reset())
    length = 200 if values["game"] == "Breakout" else 50
    steps = play(vector, length)
    assert_same(play(ours, length), steps)
    if values["game"] == "Breakout":  # cut after 20 steps, nothing has been hit yet
        assert any(step.is_episode_end.any() for step in steps)
        assert any(step.raw_reward.any() for step in steps) == ("max_episode_steps" not in values)


def test_games_do_not_depend_on_the_threads(monkeypatch):
    threads, step = set(), atari_consoles.Console.step
    monkeypatch.setattr(
        atari_consoles.Console, "step", lambda *arguments: threads.add(threading.get_ident()) or step(*arguments)
    )
    alone, shared = (make("ale-snapshots", game="Breakout", threads=threads) for threads in (1, 2))
    assert torch.equal(alone.reset(), shared.reset())
    steps = play(alone, 30)
    assert threads == {threading.get_ident()}
    threads.clear()
    assert_same(play(shared, 30), steps)
    assert len(threads) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("game", sorted(GAMES.keys() - GAMES_WITHOUT_EXACT_COPIES))
def test_copies_of_every_game_go_on_exactly(game):
    """Each time in emulators that have played something else before."""
    values = {"game": game, "sticky_action_probability": 0.25, "frame_size": 84}
    environment, other = (make("ale-snapshots", batch_size=2, seed=seed, **values) for seed in (4, 5))
    environment.reset()
    other.reset()
    for piece in range(6):
        play(other, 3, seed=100 + piece)
        other.restore(environment.snapshot())
        assert_same(play(other, 50, seed=piece), play(environment, 50, seed=piece))


@pytest.mark.parametrize("game", sorted(GAMES_WITHOUT_EXACT_COPIES))
def test_games_whose_copies_go_on_differently_are_refused(game):
    with pytest.raises(
        ConfigurationError, match=rf"^env.backend = 'ale-snapshots': ale-py's copies of {game} do not go"
    ):
        AtariConfig(game=game, backend="ale-snapshots")
    AtariConfig(game=game, backend="ale")


class Words(np.random.MT19937):
    """Gives these numbers, one after another."""

    def __init__(self, *words):
        super().__init__()
        self.words = iter(words)

    def random_raw(self):
        return next(self.words)


def test_uniform_int_leaves_out_what_would_come_up_too_often():
    assert uniform_int(Words(2**31 + 1), 30) == 15
    assert uniform_int(Words(2**32 - 1), 30) == 29
    assert 2**32 % 30 == 16  # words whose 30-fold is below 16 beyond a multiple of 2^32 would be one too many
    assert [30 * word % 2**32 for word in (0, 143165577, 286331154)] == [0, 14, 28]
    assert uniform_int(Words(0, 143165577, 2**32 - 1), 30) == 29
    assert uniform_int(Words(286331154), 30) == 2


def test_the_stream_is_that_of_the_standard():
    """Its 10,000th number by default is part of the C++ standard ([rand.predef])."""
    stream = mersenne_twister(5489)
    assert stream.random_raw(10_000)[-1] == 4123659995


def test_a_state_of_another_game_is_refused():
    pong, other = make("ale-snapshots", batch_size=1, game="Pong"), make("ale-snapshots", batch_size=1, game="Boxing")
    pong.reset()
    with pytest.raises(ConfigurationError, match=r"^snapshot\[emulator\] = '\d+ bytes': is no state of boxing"):
        other.restore(pong.snapshot())


def test_without_opencv_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(atari_consoles, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs OpenCV.*pip install 'metagrad\[ale-snapshots\]'$"):
        make("ale-snapshots")


def test_a_thread_that_raises_raises_here():
    environment = make("ale-snapshots", batch_size=2, threads=2)
    environment.reset()
    with pytest.raises(IndexError):
        environment.step(torch.tensor([0, 99]))


@pytest.mark.parametrize(("limit", "length"), [(6, 5), (27_000, 20)], ids=["cut", "whole"])
def test_a_copy_made_in_the_middle_of_everything_goes_on_exactly(limit, length):
    """Copies fall on lives lost, ends of games and of time, resets that are due, and sticky actions."""
    values = {"game": "Breakout", "sticky_action_probability": 0.25, "max_episode_steps": limit, "frame_size": 16}
    environment, other = (make("ale-snapshots", seed=seed, **values) for seed in (4, 5))
    environment.reset()
    other.reset()
    ends = 0
    for piece in range(12):
        play(other, 3, seed=100 + piece)
        other.restore(environment.snapshot())
        steps = play(environment, length, seed=piece)
        assert_same(play(other, length, seed=piece), steps)
        ends += sum(int(step.is_episode_end.sum()) for step in steps)
    assert ends >= 1
