"""Atari environments on the real backends; the rules at the edges on scripted games."""

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from metagrad.actors.envs.atari import AtariConfig, AtariEnvironment, RawStep, make_atari
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.envs.envpool import distinct_seeds
from metagrad.errors import ConfigurationError

BACKENDS = ("envpool", "ale")
NOOP, FIRE = 0, 1


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def make():
    """make_atari with few threads and a clean end."""
    opened = []

    def make_one(config, batch_size=1, seed=0, *, is_training=True, threads=1, **view):
        sizes = {"batch_size": batch_size, "seed": seed, "threads": threads}
        opened.append(make_atari(config, **sizes, is_training=is_training, **view))
        return opened[-1]

    yield make_one
    for environment in opened:
        environment.close()


def play(environment, actions):
    """First observation, and the steps of one action after another."""
    return environment.reset(), [environment.step(action) for action in actions]


def random_actions(environment, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, environment.spec.batch_size)
    return torch.randint(environment.spec.num_actions, shape, generator=generator)


def stacked(steps, field):
    return torch.stack([getattr(step, field) for step in steps])


def assert_same_steps(steps, others, fields):
    for field in fields:
        assert torch.equal(stacked(steps, field), stacked(others, field)), field


ALL_BUT_OBSERVATION = ("reward", "is_terminal", "is_truncated", "valid", "raw_reward", "is_episode_end")


def test_spec_and_types(backend, make):
    config = AtariConfig(game="Breakout", backend=backend, frame_size=42, stack_size=2)
    environment = make(config, batch_size=3)
    assert environment.spec == EnvironmentSpec(
        3,
        (2, 42, 42),
        torch.uint8,
        ("NOOP", "FIRE", "RIGHT", "LEFT"),
        torch.device("cpu"),
        "Breakout",
        is_frame_stack=True,
    )
    observation, steps = play(environment, random_actions(environment, 3))
    for seen in (observation, steps[-1].observation):
        assert seen.shape == (3, 2, 42, 42)
        assert seen.dtype == torch.uint8
    for field in ("reward", "raw_reward"):
        assert getattr(steps[-1], field).dtype == torch.float32
    for field in ("is_terminal", "is_truncated", "valid", "is_episode_end"):
        assert getattr(steps[-1], field).dtype == torch.bool
    assert {getattr(steps[-1], field).shape for field in ALL_BUT_OBSERVATION} == {(3,)}


def test_the_full_action_space_has_18_actions(backend, make):
    environment = make(AtariConfig(backend=backend, full_action_space=True))
    assert environment.spec.num_actions == 18
    play(environment, torch.full((1, 1), 17))


def test_same_seed_same_games_whatever_the_threads(backend, make):
    config = AtariConfig(backend=backend, sticky_action_probability=0.25)
    runs = []
    for threads in (1, 2):
        environment = make(config, batch_size=2, seed=5, threads=threads)
        first, steps = play(environment, random_actions(environment, 60))
        runs.append((first, steps))
    assert torch.equal(runs[0][0], runs[1][0])
    assert_same_steps(runs[0][1], runs[1][1], ("observation", *ALL_BUT_OBSERVATION))


def test_games_of_one_batch_and_of_two_seeds_differ(backend, make):
    config = AtariConfig(backend=backend)
    batches = []
    for seed in (0, 1):
        environment = make(config, batch_size=3, seed=seed)
        _, steps = play(environment, torch.full((10, 3), 2))
        batches.append({game.numpy().tobytes() for game in stacked(steps, "observation").unbind(1)})
    assert min(map(len, batches)) >= 2  # of 3: two games may open with the same number of no-ops
    assert batches[0] != batches[1]


def test_game_seeds_are_distinct_and_reproducible():
    seeds = distinct_seeds(0, 1000)
    assert len(set(seeds.tolist())) == 1000
    assert seeds.min() >= 1
    assert seeds.max() < 2**31 - 1
    assert (seeds == distinct_seeds(0, 1000)).all()
    assert not set(seeds.tolist()) & set(distinct_seeds(1, 1000).tolist())


def test_sticky_actions_change_the_game(backend, make):
    plays = []
    for probability in (0.0, 0.5):
        environment = make(AtariConfig(backend=backend, sticky_action_probability=probability))
        plays.append(stacked(play(environment, random_actions(environment, 40))[1], "observation"))
    assert not torch.equal(*plays)


def test_lost_lives_are_terminal_in_training_and_the_game_goes_on(backend, make):
    environment = make(AtariConfig(game="Breakout", backend=backend))
    _, steps = play(environment, torch.full((140, 1), NOOP))  # 5 balls missed; only FIRE serves the next
    is_terminal, is_end = stacked(steps, "is_terminal"), stacked(steps, "is_episode_end")
    end = int(is_end[:, 0].nonzero()[0])
    assert is_terminal[: end + 1].sum() == 5
    assert is_terminal[end]
    invalid = (~stacked(steps, "valid"))[: end + 2, 0].nonzero().flatten()
    assert torch.equal(invalid, is_terminal[: end + 1, 0].nonzero().flatten() + 1)  # 4 serves and the reset


def test_lost_lives_are_not_terminal_in_evaluation_or_without_episodic_life(backend, make):
    config = AtariConfig(game="Breakout", backend=backend)
    for one, is_training in ((config, False), (replace(config, episodic_life=False), True)):
        environment = make(one, is_training=is_training)
        _, steps = play(environment, torch.full((140, 1), NOOP))
        assert stacked(steps, "is_episode_end").any()
        assert torch.equal(stacked(steps, "is_terminal"), stacked(steps, "is_episode_end"))


def test_without_fire_on_reset_breakout_waits_for_the_player(backend, make):
    environment = make(AtariConfig(game="Breakout", backend=backend, fire_on_reset=False))
    _, steps = play(environment, torch.full((140, 1), NOOP))
    assert stacked(steps, "valid").all()
    assert not stacked(steps, "is_terminal").any()


def test_the_step_after_an_end_only_resets_and_ignores_its_action(backend, make):
    config = AtariConfig(game="Breakout", backend=backend)
    observations = []
    for action in (NOOP, 3):
        environment = make(config)
        environment.reset()
        step = environment.step(torch.tensor([NOOP]))
        while not step.is_episode_end:
            step = environment.step(torch.tensor([NOOP]))
        assert step.valid.all()
        step = environment.step(torch.tensor([action]))
        assert not step.valid.any()
        assert not (step.is_terminal | step.is_truncated | step.is_episode_end).any()
        assert step.raw_reward == 0
        observations.append(step.observation)
        assert environment.step(torch.tensor([NOOP])).valid.all()
    assert torch.equal(*observations)


def test_the_learner_gets_the_sign_of_the_score(backend, make):
    config = AtariConfig(game="DemonAttack", backend=backend)
    environment = make(config, seed=2)
    actions = random_actions(environment, 60)
    _, steps = play(environment, actions)
    raw = stacked(steps, "raw_reward")
    assert raw.max() == 10
    assert torch.equal(stacked(steps, "reward"), raw.sign())
    _, steps = play(make(replace(config, sign_reward=False), seed=2), actions)
    assert torch.equal(stacked(steps, "reward"), raw)


def test_negative_scores_keep_their_sign(backend, make):
    environment = make(AtariConfig(backend=backend))
    _, steps = play(environment, torch.full((150, 1), NOOP))
    assert stacked(steps, "reward").min() == -1


def test_a_game_is_the_same_in_training_and_in_evaluation(backend, make):
    config = AtariConfig(game="Breakout", backend=backend)
    training, evaluation = make(config), make(config, is_training=False)
    actions = torch.full((60, 1), NOOP)
    _, steps = play(training, actions)
    assert stacked(steps, "is_terminal").any()
    fields = ("observation", "reward", "is_truncated", "valid", "raw_reward", "is_episode_end")
    assert_same_steps(steps, play(evaluation, actions)[1], fields)


def whole_game_returns(rewards, ends):
    """Sums of `rewards` [T, B] up to each end, game by game."""
    returns = []
    for game in range(rewards.shape[1]):
        bounds = [0, *(np.flatnonzero(ends[:, game]) + 1)]
        returns += [rewards[a:b, game].sum().item() for a, b in itertools.pairwise(bounds)]
    return returns


def unmodified_pool(config, batch_size, seed):
    """The backend's own pool, with its own defaults but for the raw score and the time limit."""
    seeds = distinct_seeds(seed, batch_size)
    if config.backend == "envpool":
        import envpool

        limit = {"max_episode_steps": config.max_episode_steps}
        pool = envpool.make_gymnasium(
            f"{config.game}-v5", num_envs=batch_size, num_threads=1, seed=seeds.tolist(), **limit
        )
        pool.reset()
    else:
        from ale_py import AtariVectorEnv

        limit = {"max_num_frames_per_episode": 4 * config.max_episode_steps}
        pool = AtariVectorEnv(config.rom_name, batch_size, num_threads=1, reward_clipping=False, **limit)
        pool.reset(seed=seeds)
    return pool


@pytest.mark.parametrize(
    ("game", "limit", "seeds"),
    [
        ("Breakout", 27_000, {"envpool": 7, "ale": 7}),
        ("Atlantis2", 210, {"envpool": 1, "ale": 9}),  # seeds that score while FIRE follows a lost life
    ],
)
def test_training_returns_are_those_of_an_unmodified_pool(backend, make, game, limit, seeds):
    config = AtariConfig(game=game, backend=backend, max_episode_steps=limit)
    environment = make(config, seed=seeds[backend])
    played = []
    pool_step = environment._games.step
    environment._games.step = lambda action: played.append(action) or pool_step(action)
    _, steps = play(environment, random_actions(environment, 250, seed=1))
    raw = stacked(steps, "raw_reward")
    training = whole_game_returns(raw.numpy(), stacked(steps, "is_episode_end").numpy())

    pool = unmodified_pool(config, 1, seeds[backend])
    rewards, ends = [], []
    for action in played:
        _, reward, terminated, truncated, _ = pool.step(action)
        rewards.append(reward)
        ends.append(terminated | truncated)
    assert training == whole_game_returns(np.stack(rewards), np.stack(ends))
    assert sum(training) > 0
    if game == "Atlantis2":
        assert raw[~stacked(steps, "valid")].any()


def test_the_time_limit_truncates(backend, make):
    environment = make(AtariConfig(backend=backend, max_episode_steps=20))
    _, steps = play(environment, random_actions(environment, 45))
    ends = [19, 40]  # 20 steps; one that resets; 20 steps
    expected = torch.zeros(45, 1, dtype=torch.bool)
    expected[ends] = True
    assert torch.equal(stacked(steps, "is_truncated"), expected)
    assert torch.equal(stacked(steps, "is_episode_end"), expected)
    assert not stacked(steps, "is_terminal").any()
    assert torch.equal(~stacked(steps, "valid"), expected.roll(1, 0))


def test_a_game_that_is_over_at_the_time_limit_is_terminal(backend, make):
    config = AtariConfig(game="Breakout", backend=backend)
    _, steps = play(make(config), torch.full((140, 1), NOOP))
    end = int(stacked(steps, "is_episode_end").nonzero()[0, 0])
    _, steps = play(make(replace(config, max_episode_steps=end + 1)), torch.full((end + 1, 1), NOOP))
    assert steps[-1].is_episode_end.all()
    assert steps[-1].is_terminal.all()
    assert not steps[-1].is_truncated.any()


def test_the_view_is_a_coloured_twin(backend, make):
    config = AtariConfig(game="Breakout", backend=backend, sticky_action_probability=0.1)
    environment = make(config, seed=3)
    view = make(config, seed=3, is_colour_view=True)
    actions = random_actions(environment, 500)
    _, steps = play(environment, actions)
    first, views = play(view, actions)
    assert_same_steps(steps, views, ALL_BUT_OBSERVATION)
    assert stacked(steps, "is_episode_end").any()
    assert view.spec.observation_shape == (210, 160, 3)
    assert first.shape == views[-1].observation.shape == (1, 210, 160, 3)
    assert first.dtype == torch.uint8
    assert first[0, 60, 80].tolist() == [200, 72, 72]  # the wall's uppermost row is red
    # both see the same screen: luminance of the view, brought to 84 x 84
    luminance = views[-1].observation.float() @ torch.tensor([0.299, 0.587, 0.114])
    small = torch.nn.functional.interpolate(luminance[:, None], (84, 84), mode="area")[:, 0]
    assert (small - steps[-1].observation[:, -1].float()).abs().mean() < 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_close_ends_the_threads(backend):
    def open_and_close():
        environment = make_atari(AtariConfig(backend=backend), batch_size=2, seed=0, threads=2, is_training=True)
        held = environment.reset()
        running = len(os.listdir("/proc/self/task"))
        environment.close()
        with pytest.raises(RuntimeError, match="closed"):
            environment.step(torch.zeros(2, dtype=torch.int64))
        return running - len(os.listdir("/proc/self/task")), held

    ended, _ = open_and_close()
    assert ended >= 2


@pytest.mark.parametrize(("field", "values"), [("batch_size", (0, 0, 1)), ("seed", (1, -1, 1)), ("threads", (1, 0, 0))])
def test_arguments_out_of_range_are_refused(field, values):
    batch_size, seed, threads = values
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        make_atari(AtariConfig(), batch_size=batch_size, seed=seed, threads=threads, is_training=True)


class ScriptedGames:
    """One game that reports what it is told; keeps the actions it is given."""

    def __init__(self, *script):
        self.script = list(script)
        self.actions = []

    def reset(self):
        return np.zeros((1, 1), np.uint8), np.array([3], np.int32)

    def step(self, action):
        self.actions.append(int(action[0]))
        report = {"reward": 0, "lives": 3, "over": False, "limit": False} | self.script.pop(0)
        return RawStep(
            observation=np.zeros((1, 1), np.uint8),
            raw_reward=np.array([report["reward"]], np.float32),
            lives=np.array([report["lives"]], np.int32),
            is_game_over=np.array([report["over"]]),
            is_time_limit=np.array([report["limit"]]),
        )


def scripted(*script, names=("NOOP", "FIRE", "UP")):
    spec = EnvironmentSpec(1, (1,), torch.uint8, names, torch.device("cpu"), "Scripted")
    games = ScriptedGames(*script)
    environment = AtariEnvironment(games, spec, AtariConfig(), is_training=True)
    _, steps = play(environment, torch.full((len(script), 1), 2))
    flags = [
        "".join(
            letter
            for letter, field in (("T", "is_terminal"), ("L", "is_truncated"), ("E", "is_episode_end"))
            if getattr(step, field)
        )
        + ("" if step.valid else "-")
        for step in steps
    ]
    return flags, games.actions, steps


def test_a_lost_life_is_terminal_and_followed_by_fire():
    flags, actions, _ = scripted({}, {"lives": 2}, {"lives": 2}, {"lives": 2})
    assert flags == ["", "T", "-", ""]
    assert actions == [2, 2, FIRE, 2]


def test_a_game_without_fire_goes_on_at_once():
    flags, actions, _ = scripted({"lives": 2}, {"lives": 2}, names=("NOOP", "LEFT", "RIGHT"))
    assert flags == ["T", ""]
    assert actions == [2, 2]


def test_the_score_of_the_fire_step_is_the_games():
    _, _, steps = scripted({"lives": 2}, {"lives": 2, "reward": 30})
    assert steps[1].raw_reward == 30
    assert not steps[1].valid


def test_a_game_can_end_on_the_fire_step():
    flags, actions, _ = scripted({"lives": 2}, {"lives": 0, "over": True}, {}, {})
    assert flags == ["T", "TE-", "-", ""]
    assert actions == [2, FIRE, 2, 2]


def test_game_over_needs_no_fire_and_new_lives_are_no_loss():
    flags, actions, _ = scripted({"lives": 4}, {"lives": 0, "over": True}, {"lives": 3}, {"lives": 3})
    assert flags == ["", "TE", "-", ""]
    assert actions == [2, 2, 2, 2]


def test_no_lives_left_is_no_end_before_the_game_is_over():
    flags, _, _ = scripted({"lives": 1}, {"lives": 1}, {"lives": 0}, {"lives": 0, "over": True}, {})
    assert flags == ["T", "-", "", "TE", "-"]


def test_what_is_terminal_is_not_truncated():
    assert scripted({"limit": True}, {})[0] == ["LE", "-"]
    assert scripted({"lives": 0, "over": True, "limit": True}, {})[0] == ["TE", "-"]
    flags, actions, _ = scripted({"lives": 2, "limit": True}, {"lives": 3}, {})
    assert flags == ["TE", "-", ""]
    assert actions == [2, 2, 2]


def test_a_reset_that_comes_back_with_fewer_lives_is_no_loss():
    assert scripted({"limit": True}, {"lives": 2}, {"lives": 2})[0] == ["LE", "-", ""]
