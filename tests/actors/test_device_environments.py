"""What every environment on a torch device owes to actors, one row of `ROWS` each."""

import importlib
import pkgutil

import pytest
import torch

from metagrad.actors import envs
from metagrad.actors.envs import DeviceEnvironmentConfig
from metagrad.actors.envs.base import SnapshotEnvironment
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.errors import ConfigurationError

ROWS = {
    SnakeConfig: SnakeConfig(rows=3, columns=4, time_limit=9),
    TabularMdpConfig: TabularMdpConfig(states=6, actions=3, concentration=0.5, horizon=7),
    MarkovRewardProcessConfig: MarkovRewardProcessConfig(states=5),
    DiscountingChainConfig: DiscountingChainConfig(horizon=7),
    IteratedPrisonersDilemmaConfig: IteratedPrisonersDilemmaConfig(steps=7),
}
# These keep no generator, and no seed changes anything.
DETERMINISTIC = {DiscountingChainConfig, IteratedPrisonersDilemmaConfig}
every_environment = pytest.mark.parametrize("config", ROWS.values(), ids=lambda config: type(config).__name__)
DEVICES = ["cpu", torch.device("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


def make(config, batch_size=8, seed=1, device="cpu"):
    return config.make(batch_size=batch_size, seed=seed, device=torch.device(device), threads=1, is_training=True)


def started(config, **arguments):
    environment = make(config, **arguments)
    environment.reset()
    return environment


def play(environment, steps, seed=0):
    """Steps of a policy that acts at random, the same whatever the environment's own stream."""
    draw, spec = torch.Generator().manual_seed(seed), environment.spec
    return [
        environment.step(torch.randint(spec.num_actions, (spec.batch_size,), generator=draw).to(spec.device))
        for _ in range(steps)
    ]


def is_same(first, second):
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def without_generator(snapshot):
    return {name: value for name, value in snapshot.items() if name != "generator"}


def test_every_device_environment_has_its_row():
    for module in pkgutil.iter_modules(envs.__path__, "metagrad.actors.envs."):
        importlib.import_module(module.name)
    kinds, waiting = set(), [DeviceEnvironmentConfig]
    while waiting:
        waiting += waiting.pop().__subclasses__()
        kinds |= {kind.__name__ for kind in waiting if kind.__module__.startswith("metagrad.actors.")}
    assert {kind.__name__ for kind in ROWS} == kinds


@every_environment
@pytest.mark.parametrize("device", DEVICES)
def test_spec_describes_what_comes_out(config, device):
    environment = make(config, batch_size=7, device=device)
    spec = environment.spec
    assert isinstance(environment, SnapshotEnvironment)
    assert spec.device.type == torch.device(device).type
    assert len(set(spec.action_names)) == spec.num_actions >= 1
    for observation in (environment.reset(), *(step.observation for step in play(environment, 12))):
        assert observation.shape == (7, *spec.observation_shape)
        assert observation.dtype == spec.observation_dtype
        assert torch.isfinite(observation).all()
    for step in play(environment, 12):
        assert {field.device for field in step} == {spec.device}
        assert {field.shape for field in step[1:]} == {(7,)}
        assert {step.reward.dtype, step.raw_reward.dtype} == {torch.float32}
        assert step.is_terminal.dtype == step.is_truncated.dtype == step.valid.dtype == torch.bool


@every_environment
def test_episodes_only_ever_terminate_and_the_next_begins_in_the_same_step(config):
    environment = started(config)
    steps = play(environment, 60)
    ends = torch.stack([step.is_terminal for step in steps])
    assert ends.any(0).all()
    for step in steps:
        assert step.valid.all()
        assert not step.is_truncated.any()
        assert torch.equal(step.is_terminal, step.is_episode_end)
        assert torch.equal(step.reward, step.raw_reward)
    assert torch.equal(environment.observe(), steps[-1].observation)


@every_environment
def test_what_was_returned_belongs_to_the_caller(config):
    environment, untouched = started(config), started(config)
    for step in play(environment, 5):
        for field in step:
            field.zero_()
    play(untouched, 5)
    assert is_same(play(environment, 20), play(untouched, 20))


@every_environment
def test_same_seed_same_stream(config):
    first, again, other = (play(started(config, seed=seed), 40) for seed in (5, 5, 6))
    assert is_same(first, again)
    assert is_same(first, other) == (type(config) in DETERMINISTIC)
    assert ("generator" in started(config).snapshot()) == (type(config) not in DETERMINISTIC)


@every_environment
def test_restored_snapshot_continues_bitwise(config):
    environment = started(config)
    play(environment, 20)
    observation, snapshot = environment.observe(), environment.snapshot()
    expected = play(environment, 40, seed=9)
    for target in (environment, make(config, seed=2)):  # twice from one snapshot: stepping must not write into it
        target.restore(snapshot)
        assert torch.equal(target.observe(), observation)
        assert is_same(play(target, 40, seed=9), expected)


@every_environment
def test_snapshot_shares_no_memory_with_the_environment(config):
    environment, untouched = started(config), started(config)
    play(environment, 3)
    play(untouched, 3)
    for value in environment.snapshot().values():
        value.zero_()
    snapshot = environment.snapshot()
    environment.restore(snapshot)
    for value in snapshot.values():
        value.zero_()
    assert is_same(play(environment, 20), play(untouched, 20))


@every_environment
def test_fork_starts_from_the_same_state_and_draws_its_own_numbers(config):
    environment, fork = started(config, batch_size=64), make(config, batch_size=64, seed=2)
    play(environment, 4)
    own = torch.Generator().manual_seed(2).get_state()
    fork.restore(without_generator(environment.snapshot()))
    assert torch.equal(fork.observe(), environment.observe())
    if type(config) not in DETERMINISTIC:
        assert torch.equal(fork.snapshot()["generator"], own)
    real = environment.snapshot()
    forked, continued = play(fork, 40), play(environment, 40)
    assert is_same(forked, continued) == (type(config) in DETERMINISTIC)
    environment.restore(real)
    assert is_same(play(environment, 40), continued)


@every_environment
def test_snapshot_of_another_size_is_refused(config):
    snapshot = started(config).snapshot()
    with pytest.raises(ConfigurationError, match=r"^snapshot\[\w+\] = "):
        make(config, batch_size=5).restore(snapshot)
    with pytest.raises(ConfigurationError, match=r"^snapshot = "):
        make(config).restore({name: x for name, x in snapshot.items() if name == "generator"})


@every_environment
def test_nothing_to_step_before_reset_and_after_close(config):
    environment, action = make(config), torch.zeros(8, dtype=torch.int64)
    for call in (environment.observe, environment.snapshot, lambda: environment.step(action)):
        with pytest.raises(RuntimeError, match="call reset"):
            call()
    environment.reset()
    environment.close()
    with pytest.raises(RuntimeError, match="call reset"):
        environment.observe()


@every_environment
def test_empty_batch_is_refused(config):
    with pytest.raises(ConfigurationError, match=r"^batch_size = 0"):
        make(config, batch_size=0)


@every_environment
@pytest.mark.gpu
def test_snapshots_cross_devices(config):
    environment = started(config, device="cuda")
    play(environment, 5)
    elsewhere = make(config)
    elsewhere.restore(environment.snapshot())
    assert torch.equal(elsewhere.observe(), environment.observe().cpu())
