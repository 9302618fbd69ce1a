import re
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import pytest
import torch

from metagrad.actors import policy
from metagrad.actors.envs import AtariConfig, SnakeConfig
from metagrad.actors.envs.base import EnvironmentSpec, EnvironmentStep
from metagrad.actors.rollout import Actor, ActorSetup, EnvironmentFault, Pool, collect, probe
from metagrad.frame_stacks import unpacked
from metagrad.networks import Mlp, NatureCnn, SnakeCnn, build_network
from metagrad.types import WeightSnapshot

SNAKE = SnakeConfig(rows=3, columns=4, time_limit=25)
SMALL_SNAKE_CNN = SnakeCnn(channels=4, policy_hidden=8, value_hidden=8)
SMALL_NATURE_CNN = NatureCnn(hidden=16)
SETUP = ActorSetup(
    index=0,
    environment=SNAKE,
    network=SMALL_SNAKE_CNN,
    has_outer_critic=True,
    batch_size=8,
    rollout_length=5,
    lookahead="fork",
    seed=(7, 0, 0),
)


class Recorded:
    """An environment and the log of everything it took and gave."""

    def __init__(self, environment):
        self.environment = environment
        self.spec = environment.spec
        self.observations, self.actions, self.steps = [], [], []

    def reset(self):
        self.observations.append(self.environment.reset().clone())
        return self.observations[-1]

    def step(self, action):
        step = self.environment.step(action)
        self.actions.append(action.clone())
        self.observations.append(step.observation.clone())
        self.steps.append(EnvironmentStep(*(field.clone() for field in step)))
        return step

    def close(self):
        self.environment.close()


class Scripted:
    """NEXT_STEP environment that replays rows of (raw reward, learner's terminal, truncated, valid, end)."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.time = 0
        batch_size = len(scripts)
        self.spec = EnvironmentSpec(batch_size, (2,), torch.float32, ("left", "right"), torch.device("cpu"), "Scripted")

    def reset(self):
        return self._observation()

    def step(self, action):
        rows = [script[self.time % len(script)] for script in self.scripts]
        self.time += 1
        reward, is_terminal, is_truncated, valid, is_end = (torch.tensor(column) for column in zip(*rows, strict=True))
        return EnvironmentStep(self._observation(), reward.sign(), is_terminal, is_truncated, valid, reward, is_end)

    def close(self):
        pass

    def _observation(self):
        return torch.full((self.spec.batch_size, 2), float(self.time))


def parameters(spec, network_spec, seed=0, has_outer_critic=True):
    network = build_network(network_spec, spec.observation_shape, spec.num_actions, has_outer_critic)
    return network, network.init(torch.Generator().manual_seed(seed))


@cache
def spec_of(config):
    return probe(config)


def snapshot_of(setup, version=3, seed=0):
    _, theta = parameters(spec_of(setup.environment), setup.network, seed, setup.has_outer_critic)
    return WeightSnapshot(version, theta, torch.zeros(1))


def acting(network, theta):
    return partial(policy.sample, network.at(theta))


def recorded_pool(config, batch_size, network_spec, seed=1):
    environment = Recorded(
        config.make(batch_size=batch_size, seed=seed, device=torch.device("cpu"), threads=1, is_training=True)
    )
    network, theta = parameters(environment.spec, network_spec)
    return environment, Pool(environment, seed), network, WeightSnapshot(3, theta, torch.zeros(1))


def slow_episodes(steps):
    """Returns and lengths of finished episodes, in the order of their ends, one environment and step at a time."""
    batch_size = len(steps[0].valid)
    returns, lengths, finished = [0.0] * batch_size, [0] * batch_size, []
    for step in steps:
        for i in range(batch_size):
            returns[i] += step.raw_reward[i].item()
            lengths[i] += 1 if step.valid[i] else 0
            if step.is_episode_end[i]:
                finished.append((returns[i], lengths[i]))
                returns[i], lengths[i] = 0.0, 0
    return finished


def pairs(episodes):
    return list(zip(episodes.returns.tolist(), episodes.lengths.tolist(), strict=True))


def assert_equal(first, second):
    assert type(first) is type(second)
    assert first.policy_version == second.policy_version
    for name, a, b in zip(first._fields, first, second, strict=True):
        assert name in ("policy_version", "first_state", "first_return") or torch.equal(a, b), name
    assert first.first_state is second.first_state is None


def is_same(first, second):
    seen = [unpacked(trajectory).observation for trajectory in (first, second)]
    return torch.equal(*seen) and torch.equal(first.action, second.action)


# A rollout

PONG = AtariConfig(max_episode_steps=12)
BREAKOUT = AtariConfig(game="Breakout", no_op_max=1)


@pytest.mark.parametrize(
    ("config", "network_spec"),
    [(SNAKE, SMALL_SNAKE_CNN), (PONG, SMALL_NATURE_CNN), (replace(PONG, backend="ale"), SMALL_NATURE_CNN)],
    ids=["snake", "envpool", "ale"],
)
def test_trajectory_is_what_was_seen_done_and_returned(config, network_spec):
    environment, pool, network, snapshot = recorded_pool(config, 4, network_spec)
    for rollout_index in range(5):
        trajectory = unpacked(collect(pool, acting(network, snapshot.theta), snapshot.version, length=5)[0])
        first = 5 * rollout_index
        assert trajectory.observation.dtype == environment.spec.observation_dtype
        assert trajectory.observation.shape == (6, 4, *environment.spec.observation_shape)
        assert torch.equal(trajectory.observation, torch.stack(environment.observations[first : first + 6]))
        assert torch.equal(trajectory.action, torch.stack(environment.actions[first:]))
        for name in ("reward", "is_terminal", "is_truncated", "valid"):
            expected = torch.stack([getattr(step, name) for step in environment.steps[first:]])
            assert torch.equal(getattr(trajectory, name), expected), name
        assert trajectory.action.dtype == torch.int64
        assert trajectory.reward.dtype == trajectory.behaviour_log_prob.dtype == torch.float32
        assert {trajectory.is_terminal.dtype, trajectory.is_truncated.dtype, trajectory.valid.dtype} == {torch.bool}
        assert trajectory.policy_version == 3
    is_pong = isinstance(config, AtariConfig)
    steps = environment.steps
    assert any(not step.valid.all() for step in steps) == is_pong  # the rollouts crossed ends of episodes
    assert any(step.is_truncated.any() for step in steps) == is_pong
    assert any(step.is_terminal.any() for step in steps) != is_pong
    pool.environment.close()


@pytest.mark.parametrize(("config", "network_spec"), [(SNAKE, SMALL_SNAKE_CNN), (PONG, SMALL_NATURE_CNN)])
def test_behaviour_log_probability_is_of_the_published_policy(config, network_spec):
    _, pool, network, snapshot = recorded_pool(config, 4, network_spec)
    for _ in range(2):
        trajectory = unpacked(collect(pool, acting(network, snapshot.theta), snapshot.version, length=6)[0])
        logits = network.apply(snapshot.theta, trajectory.observation[:-1].flatten(0, 1), ("logits",))["logits"]
        log_probs = torch.log_softmax(logits.double(), -1).gather(-1, trajectory.action.view(-1, 1))
        torch.testing.assert_close(trajectory.behaviour_log_prob.double().view(-1, 1), log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lookahead_step", [0, 1])
def test_an_actor_acts_under_the_snapshot_that_it_is_given(lookahead_step):
    actor = Actor(SETUP)
    network, _ = parameters(spec_of(SNAKE), SMALL_SNAKE_CNN)
    for version in (3, 4):
        fresh = snapshot_of(SETUP, version, seed=version)
        snapshot = fresh._replace(theta=4 * fresh.theta)  # whose policies are far from one another
        trajectory = actor.rollout(snapshot, lookahead_step).trajectory
        logits = network.apply(snapshot.theta, trajectory.observation[:-1].flatten(0, 1), ("logits",))["logits"]
        log_probs = torch.log_softmax(logits, -1).gather(-1, trajectory.action.view(-1, 1)).view(5, 8)
        torch.testing.assert_close(trajectory.behaviour_log_prob, log_probs, rtol=1e-4, atol=1e-4)
        assert trajectory.policy_version == version


@pytest.mark.parametrize(
    ("config", "network_spec", "length", "rollouts"),
    [(SNAKE, SMALL_SNAKE_CNN, 7, 20), (PONG, SMALL_NATURE_CNN, 5, 12), (BREAKOUT, SMALL_NATURE_CNN, 40, 10)],
    ids=["snake", "pong", "breakout"],
)
@pytest.mark.thinned(3)
def test_episode_statistics_equal_a_slow_replay(config, network_spec, length, rollouts):
    environment, pool, network, snapshot = recorded_pool(config, 4, network_spec)
    finished = []
    for _ in range(rollouts):
        _, episodes = collect(pool, acting(network, snapshot.theta), snapshot.version, length)
        finished += pairs(episodes)
    assert len(finished) >= 4
    assert finished == slow_episodes(environment.steps)
    assert len({length for _, length in finished}) > 1 or config is PONG
    if config is BREAKOUT:
        is_life_lost = torch.stack([step.is_terminal & ~step.is_episode_end for step in environment.steps])
        assert is_life_lost.sum() >= 4 * len(finished)
        assert any(episode_return > 0 for episode_return, _ in finished)
    environment.close()


def test_statistics_are_raw_returns_of_full_lives_over_valid_steps():
    # reward, is_terminal (a lost life too), is_truncated, valid, is_episode_end
    lives = [
        (2.0, False, False, True, False),
        (0.0, True, False, True, False),  # a life is lost, the episode goes on
        (5.0, False, False, False, False),  # a forced FIRE: no decision of the policy, but its score counts
        (-1.0, True, False, True, True),
        (0.0, False, False, False, False),  # the step that resets
    ]
    cut = [
        (10.0, False, False, True, False),
        (1.0, False, True, True, True),
        (0.0, False, False, False, False),
    ]
    environment = Scripted([lives, cut])
    network, theta = parameters(environment.spec, Mlp(hidden=4))
    pool = Pool(environment, 0)
    rollouts = [collect(pool, acting(network, theta), 0, length=3) for _ in range(5)]
    by_rollout = [pairs(episodes) for _, episodes in rollouts]
    assert by_rollout == [
        [(11.0, 2)],  # steps 0-2
        [(6.0, 3), (11.0, 2)],  # 3-5
        [(11.0, 2), (6.0, 3)],  # 6-8
        [(11.0, 2)],  # 9-11
        [(6.0, 3), (11.0, 2)],  # 12-14
    ]
    rewards = torch.cat([trajectory.reward for trajectory, _ in rollouts])
    assert rewards.abs().max() == 1  # what the learner is fed are signs


# Faults


class Faulty:
    """Snake of which one environment returns a wrong number at one step."""

    def __init__(self, field, value, step, index):
        self._snake = SNAKE.make(batch_size=4, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
        self.spec = self._snake.spec
        self._field, self._value, self._fault_step, self._index = field, value, step, index
        self._time = 0

    def reset(self):
        observation = self._snake.reset()
        if self._fault_step == -1:
            observation[self._index, 0, 0, 0] = self._value
        return observation

    def step(self, action):
        step = self._snake.step(action)
        if self._time == self._fault_step:
            fields = {name: value.clone() for name, value in step._asdict().items()}
            fields[self._field].view(4, -1)[self._index, 0] = self._value
            step = EnvironmentStep(**fields)
        self._time += 1
        return step

    def close(self):
        self._snake.close()


@pytest.mark.parametrize("field", ["reward", "raw_reward", "observation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [0, 4, 5, 13])
def test_non_finite_numbers_name_environment_and_step(field, value, step):
    environment = Faulty(field, value, step, index=2)
    network, theta = parameters(environment.spec, SMALL_SNAKE_CNN)
    pool = Pool(environment, 0)
    snapshot = WeightSnapshot(0, theta, torch.zeros(0))
    for _ in range(step // 5):
        collect(pool, acting(network, snapshot.theta), snapshot.version, length=5)
    what = field.removeprefix("raw_")
    message = f"Snake-3x4: environment 2 of 4 returned a non-finite {what} at step {step};"
    with pytest.raises(EnvironmentFault, match=re.escape(message)):
        collect(pool, acting(network, snapshot.theta), snapshot.version, length=5)


def test_non_finite_first_observation_names_the_reset():
    pool = Pool(Faulty("observation", float("nan"), -1, index=1), 0)
    network, theta = parameters(pool.environment.spec, SMALL_SNAKE_CNN)
    with pytest.raises(EnvironmentFault, match=r"environment 1 of 4 .* observation at its reset"):
        collect(pool, acting(network, theta), 0, length=5)


def test_numbers_that_only_their_sum_takes_beyond_the_largest_are_no_fault():
    """A sum that is finite is proof; one that is not has the exact check decide."""

    class Enormous(Faulty):
        def step(self, action):
            step = super().step(action)
            return step._replace(observation=torch.full_like(step.observation, 3e38))

    pool = Pool(Enormous("reward", 0.0, 0, index=0), 0)
    network, theta = parameters(pool.environment.spec, SMALL_SNAKE_CNN)
    trajectory, _ = collect(pool, acting(network, theta), 0, length=5)
    assert torch.isinf(trajectory.observation.sum())


def test_fault_reaches_the_caller_of_an_actor(monkeypatch):
    faulty = Faulty("reward", float("nan"), 7, index=3)
    monkeypatch.setattr(SnakeConfig, "make", lambda *_, **__: faulty)
    actor = Actor(replace(SETUP, lookahead="continue", batch_size=4))
    snapshot = snapshot_of(SETUP)
    actor.rollout(snapshot, 0)
    with pytest.raises(EnvironmentFault, match=r"environment 3 of 4 .* at step 7"):
        actor.rollout(snapshot, 0)


# Look-ahead


def real_stream(lookahead, lookahead_steps, setup=SETUP):
    """Four real rollouts with `lookahead_steps[i]` look-ahead rollouts after the i-th; all in order."""
    actor = Actor(replace(setup, lookahead=lookahead))
    real, ahead = [], []
    for i, num_steps in enumerate(lookahead_steps):
        real.append(actor.rollout(snapshot_of(setup, version=i), 0))
        ahead.append([actor.rollout(snapshot_of(setup, 100 + j, seed=9 + j), j) for j in range(1, num_steps + 1)])
    actor.close()
    return real, ahead


@pytest.mark.parametrize("lookahead", ["fork", "separate"])
def test_lookahead_leaves_the_real_stream_unchanged(lookahead):
    undisturbed, _ = real_stream("continue", [0, 0, 0, 0])
    for lookahead_steps in ([0, 0, 0, 0], [1, 1, 1, 1], [3, 0, 5, 2]):
        real, _ = real_stream(lookahead, lookahead_steps)
        for expected, actual in zip(undisturbed, real, strict=True):
            assert_equal(expected.trajectory, actual.trajectory)
            assert pairs(expected.episodes) == pairs(actual.episodes)


def test_separate_lookahead_leaves_real_atari_games_unchanged():
    setup = replace(SETUP, environment=PONG, network=SMALL_NATURE_CNN, batch_size=2)
    undisturbed, _ = real_stream("continue", [0, 0, 0], setup)
    real, ahead = real_stream("separate", [2, 0, 1], setup)
    for expected, actual in zip(undisturbed, real, strict=True):
        assert_equal(expected.trajectory, actual.trajectory)
    assert not is_same(real[0].trajectory, ahead[0][0].trajectory)


def test_fork_starts_where_the_real_rollout_ended_and_goes_on_from_there():
    real, ahead = real_stream("fork", [2, 1, 3, 2])
    for i, branch in enumerate(ahead):
        last = real[i].trajectory.observation[-1]
        for step in branch:
            assert torch.equal(step.trajectory.observation[0], last)
            last = step.trajectory.observation[-1]
        if i + 1 < len(real):
            assert torch.equal(real[i + 1].trajectory.observation[0], real[i].trajectory.observation[-1])
            assert not is_same(branch[0].trajectory, real[i + 1].trajectory)


def test_forks_of_one_state_are_independent_samples():
    actor = Actor(SETUP)
    snapshot = snapshot_of(SETUP)
    actor.rollout(snapshot, 0)
    first, second = (actor.rollout(snapshot, 1).trajectory for _ in range(2))
    assert torch.equal(first.observation[0], second.observation[0])
    assert not torch.equal(first.action, second.action)


def test_fork_keeps_its_own_random_streams():
    real, fork = (recorded_pool(SNAKE, 8, SMALL_SNAKE_CNN, seed)[1] for seed in (1, 2))
    real.environment, fork.environment = real.environment.environment, fork.environment.environment
    before = fork.state()
    fork.fork_from(real)
    after = fork.state()
    for name, value in real.state().items():
        if name.endswith("generator"):
            assert torch.equal(after[name], before[name])
            assert not torch.equal(after[name], value)
        elif name != "steps_done":
            assert torch.equal(after[name], value)


def test_separate_lookahead_has_games_of_its_own():
    real, ahead = real_stream("separate", [2, 2, 2, 2])
    assert not torch.equal(real[0].trajectory.observation[0], ahead[0][0].trajectory.observation[0])
    stream = [step.trajectory.observation for branch in ahead for step in branch]
    for before, after in pairwise(stream):
        assert torch.equal(before[-1], after[0])


def test_continued_lookahead_shares_the_environments():
    real, ahead = real_stream("continue", [2, 0, 3, 1])
    stream = [step.trajectory.observation for i in range(4) for step in (real[i], *ahead[i])]
    for before, after in pairwise(stream):
        assert torch.equal(before[-1], after[0])


@pytest.mark.parametrize("lookahead", ["continue", "fork", "separate"])
@pytest.mark.thinned(3)
def test_rollouts_are_labelled_and_statistics_are_of_the_real_environments(lookahead):
    setup = replace(SETUP, index=5, rollout_length=40)
    real, ahead = real_stream(lookahead, [2, 2, 2, 2], setup)
    assert all(step.actor == 5 for step in (*real, *(step for branch in ahead for step in branch)))
    assert not any(step.is_lookahead for step in real)
    assert all(step.is_lookahead for branch in ahead for step in branch)
    assert [step.trajectory.policy_version for step in real] == [0, 1, 2, 3]
    assert [step.trajectory.policy_version for step in ahead[0]] == [101, 102]
    assert all(len(step.episodes.returns) > 0 for step in real)
    for branch in ahead:
        for step in branch:
            assert (len(step.episodes.returns) > 0) == (lookahead == "continue")


# Seeds


def test_actors_purposes_and_incarnations_play_different_games():
    setups = [
        replace(SETUP, lookahead="separate", index=index, seed=seed)
        for index in (0, 1)
        for seed in ((7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0))
    ]
    snapshot = snapshot_of(SETUP)
    streams = []
    for setup in setups:
        actor = Actor(setup)
        streams += [actor.rollout(snapshot, step).trajectory for step in (0, 1)]
    for i, first in enumerate(streams):
        for second in streams[:i]:
            assert not torch.equal(first.observation[0], second.observation[0])
            assert not torch.equal(first.action, second.action)


def test_actors_train_on_lives():
    setup = replace(SETUP, environment=BREAKOUT, network=SMALL_NATURE_CNN, batch_size=4, lookahead="continue")
    actor = Actor(replace(setup, rollout_length=80))
    trajectory, episodes = actor.rollout(snapshot_of(setup), 0)[:2]
    assert len(episodes.returns) == 0
    assert trajectory.is_terminal.any(), "a lost life is terminal for the learner, the game continues"
    actor.close()


def test_games_and_policies_draw_from_streams_of_their_own(monkeypatch):
    seeds = []
    make = SnakeConfig.make

    def recorded(config, *, seed, **others):
        seeds.append(seed)
        return make(config, seed=seed, **others)

    monkeypatch.setattr(SnakeConfig, "make", recorded)
    for index in range(3):
        actor = Actor(replace(SETUP, index=index, lookahead="separate"))
        seeds += [pool.generator.initial_seed() for pool in (actor._real, actor._lookahead)]
    assert len(set(seeds)) == len(seeds) == 12


def test_environments_of_one_actor_play_different_games():
    trajectory = Actor(replace(SETUP, rollout_length=20)).rollout(snapshot_of(SETUP), 0).trajectory
    games = trajectory.observation.transpose(0, 1).flatten(1)
    assert len(games.unique(dim=0)) == SETUP.batch_size


def test_one_seed_gives_one_stream():
    first, _ = real_stream("fork", [1, 2, 0, 1])
    second, _ = real_stream("fork", [1, 2, 0, 1])
    for a, b in zip(first, second, strict=True):
        assert_equal(a.trajectory, b.trajectory)


# Checkpoints


@pytest.mark.parametrize("lookahead", ["continue", "fork", "separate"])
@pytest.mark.thinned(3)
def test_loaded_state_continues_bitwise(lookahead):
    setup = replace(SETUP, lookahead=lookahead, rollout_length=9)
    snapshot = snapshot_of(setup)

    def play(actor):
        return [actor.rollout(snapshot, step) for _ in range(4) for step in (0, 1, 2)]

    actor = Actor(setup)
    play(actor)
    state = {name: value.clone() for name, value in actor.state().items()}
    assert state
    kept = actor.state()
    expected = play(actor)
    assert all(torch.equal(kept[name], value) for name, value in state.items())  # playing on does not write into it
    for other in (actor, Actor(replace(setup, seed=(99, 0, 0)))):
        other.load_state(state)
        for a, b in zip(expected, play(other), strict=True):
            assert_equal(a.trajectory, b.trajectory)
            assert pairs(a.episodes) == pairs(b.episodes)
    assert sum(len(step.episodes.returns) for step in expected) > 0


def test_state_from_another_kind_of_device_continues_the_games_with_own_random_streams():
    setup = replace(SETUP, lookahead="separate")
    snapshot = snapshot_of(setup)
    actor = Actor(setup)
    before = actor.rollout(snapshot, 0)
    cuda = torch.zeros(16, dtype=torch.uint8)  # seed and offset: all that a CUDA generator's state is
    state = {name: cuda if name.endswith("generator") else x for name, x in actor.state().items()}
    assert sum(x is cuda for x in state.values()) == 4
    other, fresh = Actor(replace(setup, seed=(99, 0, 0))), Actor(replace(setup, seed=(99, 0, 0)))
    other.load_state(state)
    assert torch.equal(other.rollout(snapshot, 0).trajectory.observation[0], before.trajectory.observation[-1])
    other.load_state(state)
    fresh.rollout(snapshot, 0)
    for name, x in fresh.state().items():
        if name.endswith("generator"):
            assert torch.equal(x, other.state()[name]), name


def test_atari_has_no_state_to_load():
    setup = replace(SETUP, environment=PONG, network=SMALL_NATURE_CNN, batch_size=2, lookahead="separate")
    actor = Actor(setup)
    assert actor.state() == {}
    actor.load_state({})
    assert actor.rollout(snapshot_of(setup), 0).trajectory.action.shape == (5, 2)
    actor.close()


def test_fault_steps_count_on_from_a_checkpoint():
    actor = Actor(SETUP)
    snapshot = snapshot_of(SETUP)
    actor.rollout(snapshot, 0)
    other = Actor(SETUP)
    other.load_state(actor.state())
    assert other.state()["real/steps_done"] == 5


def test_probe_tells_shapes_and_actions():
    assert probe(SNAKE).observation_shape == (3, 4, 5)
    assert probe(SNAKE).num_actions == 4
    assert probe(PONG).observation_shape == (4, 84, 84)
    assert probe(PONG).action_names[0] == "NOOP"
