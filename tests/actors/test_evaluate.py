import math
import re

import pytest
import torch

from metagrad.actors.envs import AtariConfig, SnakeConfig
from metagrad.actors.envs.base import EnvironmentSpec, EnvironmentStep
from metagrad.actors.evaluate import (
    MAX_ENVIRONMENTS,
    MAX_EPISODE_STEPS,
    EvaluationResult,
    EvaluationStopped,
    evaluate,
)
from metagrad.actors.rollout import EnvironmentFault, probe
from metagrad.errors import ConfigurationError
from metagrad.networks import Mlp, NatureCnn, SnakeCnn, build_network

CPU = torch.device("cpu")
SNAKE = SnakeConfig(rows=3, columns=4, time_limit=40)
BREAKOUT = AtariConfig(game="Breakout", no_op_max=1)


def policy_for(config, network_spec, seed=0):
    spec = probe(config)
    network = build_network(network_spec, spec.observation_shape, spec.num_actions, has_outer_critic=False)
    return network, network.init(torch.Generator().manual_seed(seed))


def snake_policy(seed=0):
    return policy_for(SNAKE, SnakeCnn(channels=4, policy_hidden=8, value_hidden=8), seed)


class Scripted:
    """NEXT_STEP environment whose episode k of environment i takes `lengths[i][k]` steps and returns 100 i + k.

    Half-way through each episode an invalid step carries one point of the return.
    """

    def __init__(self, lengths, fault=None):
        self.lengths, self.fault, self.was_closed, self.steps = lengths, fault, False, 0
        self.clock = [(0, 0)] * len(lengths)  # episode, step; step -1 resets
        self.spec = EnvironmentSpec(len(lengths), (2,), torch.float32, ("left", "right"), CPU, "Scripted")

    def reset(self):
        return torch.zeros(len(self.lengths), 2)

    def step(self, action):
        rows = [self._advance(i) for i in range(len(self.lengths))]
        raw_reward, valid, is_end = (torch.tensor(column) for column in zip(*rows, strict=True))
        observation = torch.zeros(len(rows), 2)
        if self.fault is not None and self.fault[1:] == (self.steps,):
            (observation[1] if self.fault[0] == "observation" else raw_reward[1:2]).fill_(math.nan)
        self.steps += 1
        no = torch.zeros_like(is_end)
        return EnvironmentStep(observation, raw_reward.sign(), is_end, no, valid, raw_reward, is_end)

    def _advance(self, i):
        episode, time = self.clock[i]
        length = self.lengths[i][episode % len(self.lengths[i])]
        is_end = time == length - 1
        self.clock[i] = (episode + 1, -1) if is_end else (episode, time + 1)
        is_forced = time == length // 2 and length > 2
        reward = 1.0 if is_forced else (100.0 * i + episode - (length > 2) if is_end else 0.0)
        return reward, time >= 0 and not is_forced, is_end

    def close(self):
        self.was_closed = True


def evaluate_scripted(monkeypatch, lengths, episodes, environments=None, fault=None, **limits):
    made = []

    def make(config, *, batch_size, is_training, **_):
        assert not is_training
        made.append(Scripted(lengths[:batch_size], fault))
        return made[0]

    monkeypatch.setattr(SnakeConfig, "make", make)
    network = build_network(Mlp(hidden=2), (2,), 2, has_outer_critic=False)
    theta = network.init(torch.Generator().manual_seed(0))
    try:
        return evaluate(network, theta, SNAKE, episodes, 0, False, CPU, 1, environments, **limits)
    finally:
        assert made[0].was_closed


def test_every_environment_contributes_its_first_episodes(monkeypatch):
    lengths = [[50, 3, 40], [1], [1, 2], [7]]  # environment 1 ends a hundred episodes before 0 ends two
    result = evaluate_scripted(monkeypatch, lengths, episodes=8, environments=4)
    assert result.returns == [0.0, 100.0, 200.0, 300.0, 1.0, 101.0, 201.0, 301.0]
    assert result.lengths == [49, 1, 1, 6, 2, 1, 2, 6]  # the forced step is none of the policy's


def test_surplus_is_the_last_episode_of_the_last_environments(monkeypatch):
    lengths = [[9], [8], [1]]
    result = evaluate_scripted(monkeypatch, lengths, episodes=7, environments=3)
    assert result.returns == [0.0, 100.0, 200.0, 1.0, 101.0, 201.0, 2.0]


@pytest.mark.parametrize(
    ("episodes", "environments", "batch_size"),
    [
        (1, None, 1),
        (100, None, 100),
        (MAX_ENVIRONMENTS, None, MAX_ENVIRONMENTS),
        (MAX_ENVIRONMENTS + 1, None, MAX_ENVIRONMENTS // 2 + 1),
        (10, 4, 4),
    ],
)
def test_number_of_environments(monkeypatch, episodes, environments, batch_size):
    sizes = []

    def make(config, *, batch_size, **_):
        sizes.append(batch_size)
        return Scripted([[1]] * batch_size)

    monkeypatch.setattr(SnakeConfig, "make", make)
    network = build_network(Mlp(hidden=2), (2,), 2, has_outer_critic=False)
    theta = network.init(torch.Generator().manual_seed(0))
    result = evaluate(network, theta, SNAKE, episodes, 0, True, CPU, 1, environments)
    assert sizes == [batch_size]
    assert len(result.returns) == len(result.lengths) == episodes


def test_an_episode_that_does_not_end_is_cut_and_counted(monkeypatch):
    lengths = [[10**9], [5], [20, 10**9], [30, 7]]  # 20 steps are allowed
    result = evaluate_scripted(monkeypatch, lengths, episodes=8, environments=4, max_steps=20)
    assert result.cut == 4, "twice the endless game, the second game of environment 2, the first one of 3"
    assert result.lengths == [20, 4, 19, 20, 20, 4, 20, 9]
    assert result.returns == [0.0, 100.0, 200.0, 1.0, 0.0, 101.0, 0.0, 299.0]
    assert evaluate_scripted(monkeypatch, lengths[1:2], episodes=2, environments=1, max_steps=5).cut == 0
    assert AtariConfig().max_episode_steps < MAX_EPISODE_STEPS


def test_an_evaluation_can_be_stopped(monkeypatch):
    asked = []
    with pytest.raises(EvaluationStopped):
        evaluate_scripted(monkeypatch, [[10**9]], episodes=1, is_stopped=lambda: asked.append(1) or len(asked) == 3)


@pytest.mark.parametrize("fault", [("raw_reward", 3), ("observation", 3), ("raw_reward", 20), ("observation", 20)])
def test_non_finite_numbers_name_environment_and_step(monkeypatch, fault):
    message = f"environment 1 of 3 returned a non-finite {fault[0].removeprefix('raw_')} at step {fault[1]};"
    with pytest.raises(EnvironmentFault, match=re.escape(message)):
        evaluate_scripted(monkeypatch, [[40]] * 3, episodes=3, fault=fault)


@pytest.mark.parametrize(
    ("config", "network_spec", "episodes", "environments"),
    [(SNAKE, SnakeCnn(channels=4), 21, 8), (BREAKOUT, NatureCnn(hidden=16), 4, 3)],
    ids=["snake", "breakout"],
)
def test_equals_a_slow_count_of_what_was_played(monkeypatch, config, network_spec, episodes, environments):
    network, theta = policy_for(config, network_spec)
    log, make = [], type(config).make

    class Recorded:
        def __init__(self, **arguments):
            self._environment = make(config, **arguments)
            self.spec, self.reset, self.close = self._environment.spec, self._environment.reset, lambda: None

        def step(self, action):
            step = self._environment.step(action)
            log.append(EnvironmentStep(*(field.clone() for field in step)))
            return step

    monkeypatch.setattr(type(config), "make", lambda _, **arguments: Recorded(**arguments))
    result = evaluate(network, theta, config, episodes, 5, False, CPU, 1, environments)
    by_environment = [[] for _ in range(environments)]
    for i in range(environments):
        total, length = 0.0, 0
        for step in log:
            total += step.raw_reward[i].item()
            length += step.valid[i].item()
            if step.is_episode_end[i]:
                by_environment[i].append((total, length))
                total, length = 0.0, 0
    expected = [by_environment[k % environments][k // environments] for k in range(episodes)]
    assert list(zip(result.returns, result.lengths, strict=True)) == expected
    assert max(result.returns) > 0


@pytest.mark.parametrize("is_greedy", [True, False])
def test_one_seed_gives_one_result_and_another_seed_another(is_greedy):
    network, theta = snake_policy()
    first, again, other = (
        evaluate(network, theta, SNAKE, 40, seed, is_greedy, CPU, 1, environments=16) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_atari_result_depends_on_the_seed_alone():
    config = AtariConfig(max_episode_steps=60, game="Boxing", no_op_max=1)
    network, theta = policy_for(config, NatureCnn(hidden=16))
    one, two = (evaluate(network, theta, config, 4, 3, False, CPU, threads) for threads in (1, 2))
    assert one == two
    assert one.lengths == [60] * 4
    assert len(set(one.returns)) > 1


def test_greedy_and_sampled_policies_differ():
    # A policy that all but ignores the board: greedily it walks one way into the wall or the time limit.
    network, theta = snake_policy()
    greedy, sampled = (evaluate(network, 0.0 * theta, SNAKE, 64, 1, is_greedy, CPU, 1) for is_greedy in (True, False))
    assert greedy.lengths != sampled.lengths
    assert max(greedy.lengths) <= SNAKE.rows  # action 0, up, until the wall
    assert max(sampled.lengths) > SNAKE.rows


def test_full_lives_are_played_whatever_training_does():
    network, theta = policy_for(BREAKOUT, NatureCnn(hidden=16))
    result = evaluate(network, theta, BREAKOUT, 2, 0, False, CPU, 1)
    assert min(result.lengths) > 60  # 5 lives: a life of a random policy takes some 30 steps


def test_evaluation_neither_uses_nor_moves_the_global_random_state():
    network, theta = snake_policy()
    torch.manual_seed(1)
    first = evaluate(network, theta, SNAKE, 8, 0, False, CPU, 1)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert evaluate(network, theta, SNAKE, 8, 0, False, CPU, 1) == first


def test_statistics():
    result = EvaluationResult([1.0, 2.0, 6.0], [1, 1, 1])
    assert result.mean == 3.0
    assert result.std == pytest.approx(math.sqrt(7.0))
    assert result.standard_error == pytest.approx(math.sqrt(7.0 / 3.0))
    assert math.isnan(EvaluationResult([1.0], [1]).std)
    assert math.isnan(EvaluationResult([1.0], [1]).standard_error)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"episodes": 0}, "episodes"),
        ({"seed": -1}, "seed"),
        ({"environments": 0}, "environments"),
        ({"environments": 6}, "environments"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_wrong_values_are_refused(wrong, field):
    network, theta = snake_policy()
    arguments = {"episodes": 5, "seed": 0, "is_greedy": True, "device": CPU, "threads": 1} | wrong
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        evaluate(network, theta, SNAKE, **arguments)


@pytest.mark.gpu
def test_policy_acts_on_the_gpu_for_environments_of_either_place():
    network, theta = snake_policy()
    result = evaluate(network, theta, SNAKE, 16, 0, False, torch.device("cuda"), 1)
    assert len(result.returns) == 16
    config = AtariConfig(max_episode_steps=20)
    network, theta = policy_for(config, NatureCnn(hidden=16))
    assert evaluate(network, theta, config, 2, 0, True, torch.device("cuda"), 1).lengths == [20, 20]
