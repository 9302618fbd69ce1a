"""Checks what every environment owes to actors; a new one, of the examples too, is one row of `ROWS`."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from metagrad.actors import envs
from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentConfig, SnapshotEnvironment
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.gym import GymConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.snake_family import SnakeFamily
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.errors import ConfigurationError

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


class Row(NamedTuple):
    """One kind of environment, with values that make its episodes short."""

    kind: type[EnvironmentConfig] | tuple[str, str]
    """The configuration's class, or the example and the name of the class in it."""
    values: dict[str, Any]
    is_on_device: bool = True
    is_random: bool = True
    """False: no generator is kept, and no seed changes anything."""
    is_copyable_on_host: bool = False

    @property
    def has_snapshots(self) -> bool:
        return self.is_on_device or self.is_copyable_on_host


ROWS = [
    Row(SnakeConfig, {"rows": 3, "columns": 4, "time_limit": 9}),
    Row(TabularMdpConfig, {"states": 6, "actions": 3, "concentration": 0.5, "horizon": 7}),
    Row(MarkovRewardProcessConfig, {"states": 5}),
    Row(DiscountingChainConfig, {"horizon": 7}, is_random=False),
    Row(IteratedPrisonersDilemmaConfig, {"steps": 7}, is_random=False),
    Row(GridWorldFamily, {"distribution": "small", "task_seed": 9}),
    Row(GridWorldFamily, {"distribution": "rand_sparse"}),
    Row(DelayedChainFamily, {"min_horizon": 3, "max_horizon": 9}, is_random=False),
    Row(RandomMdpFamily, {"min_horizon": 3, "max_horizon": 9, "task_seed": 1}),
    Row(CatchFamily, {"min_size": 4, "max_size": 6}),
    Row(SnakeFamily, {"min_size": 3, "max_size": 4, "time_limit": 9}),
    Row(("catch", "CatchConfig"), {"rows": 4}),
    Row(("pixels", "WallsConfig"), {"walls": 2}),
    Row(("t_maze", "TMazeConfig"), {"length": 2, "time_limit": 5}),
    Row(AtariConfig, {"backend": "envpool", "max_episode_steps": 9}, is_on_device=False),
    Row(AtariConfig, {"backend": "ale", "max_episode_steps": 9}, is_on_device=False),
    Row(
        AtariConfig,
        {"backend": "ale-snapshots", "max_episode_steps": 9, "sticky_action_probability": 0.25, "frame_size": 8},
        is_on_device=False,
        is_copyable_on_host=True,
    ),
    Row(EnvPoolConfig, {"task": "CartPole-v1", "max_episode_steps": 9}, is_on_device=False),
    Row(GymConfig, {"id": "CartPole-v1", "max_episode_steps": 9}, is_on_device=False),
]
CPU = torch.device("cpu")
DEVICES = ["cpu", torch.device("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


def name_of(row):
    kind = row.kind[1] if isinstance(row.kind, tuple) else row.kind.__name__
    return "-".join((kind, *(value for value in row.values.values() if isinstance(value, str))))


def parameters(rows):
    """The rows; AtariVectorEnv boots slowly, and what it plays is what ale-snapshots plays (test_atari_consoles.py)."""
    slow = {"backend": "ale", "max_episode_steps": 9}
    return [pytest.param(row, marks=[pytest.mark.slow] * (row.values == slow), id=name_of(row)) for row in rows]


every_environment = pytest.mark.parametrize("row", parameters(ROWS))
with_snapshots = pytest.mark.parametrize("row", parameters(row for row in ROWS if row.has_snapshots))
on_device = pytest.mark.parametrize("row", parameters(row for row in ROWS if row.is_on_device))


@pytest.fixture
def config(row, load_example):
    kind = getattr(load_example(row.kind[0]), row.kind[1]) if isinstance(row.kind, tuple) else row.kind
    return kind(**row.values)


def make(config, batch_size=8, seed=1, device=CPU):
    return config.make(batch_size=batch_size, seed=seed, device=torch.device(device), threads=1, is_training=True)


def started(config, **arguments):
    environment = make(config, **arguments)
    environment.reset()
    return environment


def play(environment, steps, seed=0, is_alike=False):
    """Steps of a policy that acts at random (`is_alike`: the same in all), whatever the environment's own stream."""
    draw, spec = torch.Generator().manual_seed(seed), environment.spec
    shape = (1,) if is_alike else (spec.batch_size,)
    actions = torch.randint(spec.num_actions, (steps, *shape), generator=draw).expand(steps, spec.batch_size)
    return [environment.step(action.to(spec.device)) for action in actions]


def is_same(first, second):
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def without_generator(snapshot):
    return {name: value for name, value in snapshot.items() if name != "generator"}


def test_every_environment_has_its_row(load_example):
    examples = {path.stem: load_example(path.stem) for path in EXAMPLES.glob("*.py")}
    for module in pkgutil.iter_modules(envs.__path__, "metagrad.actors.envs."):
        importlib.import_module(module.name)
    below = (kind for kind in kinds_below(EnvironmentConfig) if not inspect.isabstract(kind))
    ours = {kind.__name__ for kind in below if kind.__module__.startswith("metagrad.actors.")}
    assert {row.kind.__name__ for row in ROWS if not isinstance(row.kind, tuple)} == ours
    of_examples = {
        (name, kind.__name__)
        for name, module in examples.items()
        for kind in kinds_below(EnvironmentConfig)
        if getattr(module, kind.__name__, None) is kind and kind.__module__ == module.__name__
    }
    assert {row.kind for row in ROWS if isinstance(row.kind, tuple)} == of_examples


def kinds_below(kind):
    found = set()
    waiting = [kind]
    while waiting:
        waiting += waiting.pop().__subclasses__()
        found |= set(waiting)
    return found


@every_environment
@pytest.mark.parametrize("device", DEVICES)
def test_spec_describes_what_comes_out(row, config, device):
    environment = make(config, batch_size=7, device=device)
    spec = environment.spec
    assert isinstance(config, DeviceEnvironmentConfig) == row.is_on_device
    assert isinstance(environment, SnapshotEnvironment) == config.has_snapshots == row.has_snapshots
    assert spec.device.type == (torch.device(device).type if row.is_on_device else "cpu")
    assert spec.batch_size == 7
    assert len(set(spec.action_names)) == spec.num_actions >= 1
    for observation in (environment.reset(), *(step.observation for step in play(environment, 12))):
        assert observation.shape == (7, *spec.observation_shape)
        assert observation.dtype == spec.observation_dtype
        assert torch.isfinite(observation).all()
    for step in play(environment, 12):
        assert {field.device for field in step} == {spec.device}
        assert {field.shape for field in step[1:]} == {(7,)}
        assert {step.reward.dtype, step.raw_reward.dtype} == {torch.float32}
        flags = (step.is_terminal, step.is_truncated, step.valid, step.is_episode_end)
        assert {flag.dtype for flag in flags} == {torch.bool}


@every_environment
def test_an_episode_ends_once_and_the_flags_say_how(row, config):
    environment = started(config)
    steps = play(environment, 60)
    ended = torch.zeros(8, dtype=torch.bool)
    assert torch.stack([step.is_episode_end for step in steps]).any(0).all()
    for step in steps:
        assert not (step.is_terminal & step.is_truncated).any()
        assert not (step.is_truncated & ~step.is_episode_end).any(), "only an episode's end cuts it"
        assert not (step.is_episode_end & ~(step.is_terminal | step.is_truncated)).any()
        if row.is_on_device:  # SAME_STEP: episodes only ever terminate, and the next begins in the same step
            assert step.valid.all()
            assert not step.is_truncated.any()
            assert torch.equal(step.is_terminal, step.is_episode_end)
            assert torch.equal(step.reward, step.raw_reward)
        else:  # NEXT_STEP: the step after an end only resets
            assert not (step.valid & ended).any()
            assert not (step.is_episode_end & ended).any()
        ended = step.is_episode_end
    if row.has_snapshots:
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
def test_same_seed_same_stream(row, config):
    first, again, other = (play(started(config, seed=seed), 40) for seed in (5, 5, 6))
    assert is_same(first, again)
    assert is_same(first, other) != row.is_random
    if row.has_snapshots:
        assert ("generator" in started(config).snapshot()) == row.is_random


@every_environment
def test_environments_of_a_batch_differ_where_anything_is_random(row, config):
    steps = play(started(config), 40, is_alike=True)
    seen = torch.stack([torch.cat([step.observation.flatten(1).float(), step.reward[:, None]], 1) for step in steps])
    assert (len(seen.unique(dim=1)[0]) > 1) == row.is_random


@with_snapshots
def test_restored_snapshot_continues_bitwise(config):
    environment = started(config)
    play(environment, 20)
    observation, snapshot = environment.observe(), environment.snapshot()
    expected = play(environment, 40, seed=9)
    for target in (environment, make(config, seed=2)):  # twice from one snapshot: stepping must not write into it
        target.restore(snapshot)
        assert torch.equal(target.observe(), observation)
        assert is_same(play(target, 40, seed=9), expected)


@with_snapshots
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


@with_snapshots
def test_fork_starts_from_the_same_state_and_draws_its_own_numbers(row, config):
    batch_size = 64 if row.is_on_device else 4
    environment, fork = (started(config, batch_size=batch_size, seed=seed) for seed in (1, 2))
    play(environment, 4)
    own = fork.snapshot()["generator"] if row.is_random else None
    fork.restore(without_generator(environment.snapshot()))
    assert torch.equal(fork.observe(), environment.observe())
    if row.is_random:
        assert torch.equal(fork.snapshot()["generator"], own)
    real = environment.snapshot()
    forked, continued = play(fork, 40), play(environment, 40)
    assert is_same(forked, continued) != row.is_random
    environment.restore(real)
    assert is_same(play(environment, 40), continued)


@with_snapshots
def test_snapshot_of_another_size_is_refused(config):
    snapshot = started(config).snapshot()
    with pytest.raises(ConfigurationError, match=r"^snapshot\[\w+\] = "):
        make(config, batch_size=5).restore(snapshot)
    with pytest.raises(ConfigurationError, match=r"^snapshot = "):
        make(config).restore({name: x for name, x in snapshot.items() if name == "generator"})


@with_snapshots
def test_nothing_to_step_before_reset_and_after_close(config):
    environment, action = make(config), torch.zeros(8, dtype=torch.int64)
    for call in (environment.observe, environment.snapshot, lambda: environment.step(action)):
        with pytest.raises(RuntimeError, match="call reset"):
            call()
    environment.reset()
    environment.close()
    with pytest.raises(RuntimeError, match=r"closed|call reset"):
        environment.observe()


@every_environment
def test_closing_twice_is_closing_once(config):
    environment = started(config)
    environment.close()
    environment.close()
    with pytest.raises(RuntimeError, match=r"closed|call reset"):
        environment.step(torch.zeros(8, dtype=torch.int64))


@every_environment
def test_empty_batch_is_refused(config):
    with pytest.raises(ConfigurationError, match=r"^batch_size = 0"):
        make(config, batch_size=0)


@on_device
@pytest.mark.gpu
def test_snapshots_cross_devices(config):
    environment = started(config, device="cuda")
    play(environment, 5)
    elsewhere = make(config)
    elsewhere.restore(environment.snapshot())
    assert torch.equal(elsewhere.observe(), environment.observe().cpu())
