"""Checks what every family of tasks owes to a population; a new one is one entry of `FAMILIES`."""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch

from metagrad.actors import envs
from metagrad.actors.envs.base import SnapshotEnvironment
from metagrad.actors.envs.catch_family import CatchFamily
from metagrad.actors.envs.chain_family import DelayedChainFamily
from metagrad.actors.envs.families import TaskEnvironment, TaskFamily
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.mdp_family import RandomMdpFamily
from metagrad.actors.envs.snake_family import SnakeFamily
from metagrad.errors import ConfigurationError

FAMILIES = {
    "small": GridWorldFamily(distribution="small"),
    "rand_sparse": GridWorldFamily(distribution="rand_sparse"),
    "chains": DelayedChainFamily(chains=3, min_horizon=4, max_horizon=20),
    "mdps": RandomMdpFamily(states=4, actions=3, min_horizon=4, max_horizon=20),
    "snake": SnakeFamily(min_size=2, max_size=4, time_limit=9),
    "catch": CatchFamily(min_size=3, max_size=6),
}
CPU = torch.device("cpu")
BATCH = 3
SEEDS = (4, 11, 5)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def started(family, seeds=SEEDS, **arguments):
    environment = family.make_tasks(seeds=seeds, batch_size=BATCH, device=CPU, **arguments)
    environment.reset()
    return environment


def actions(environment, steps, seed=0):
    """Actions [steps, N, B], each task's its own whatever is beside it."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(environment.spec.num_actions, (steps, environment.num_tasks, BATCH), generator=draw)


def play(environment, chosen):
    """Observation, reward and end of every step of every task, first observation included."""
    observations, outcomes = [environment.observe()], []
    for action in chosen:
        step = environment.step(action.reshape(-1))
        observations.append(step.observation)
        outcomes.append(torch.stack((step.reward, step.is_terminal.float())))
    tasks = environment.num_tasks
    seen = torch.stack(observations).unflatten(1, (tasks, BATCH))
    return seen, torch.stack(outcomes).unflatten(2, (tasks, BATCH))


def test_every_family_is_here():
    for module in pkgutil.iter_modules(envs.__path__, "metagrad.actors.envs."):
        importlib.import_module(module.name)
    kinds = {kind.__name__ for kind in TaskFamily.__subclasses__()}
    assert {type(family).__name__ for family in FAMILIES.values()} == kinds


@every_family
def test_tasks_together_are_each_alone(family):
    together = started(family)
    assert isinstance(together, SnapshotEnvironment)
    assert together.spec.batch_size == len(SEEDS) * BATCH
    chosen = actions(together, 40)
    seen, outcomes = play(together, chosen)
    assert (outcomes[:, 1] == 1).any()
    for n, seed in enumerate(SEEDS):
        alone = started(family, seeds=[seed])
        own_seen, own_outcomes = play(alone, chosen[:, n : n + 1])
        assert torch.equal(own_seen[:, 0], seen[:, n])
        assert torch.equal(own_outcomes[:, :, 0], outcomes[:, :, n])


@every_family
def test_same_seed_same_task_and_other_streams_other_episodes(family):
    one, other = started(family, seeds=[7], streams=[1]), started(family, seeds=[7], streams=[2])
    for first, second in zip(one.tasks, other.tasks, strict=True):
        assert torch.equal(first, second)
    many = started(family, seeds=range(20))
    assert any(len(field.unique(dim=0)) > 1 for field in many.tasks), "seeds draw different tasks"
    moved = replace(family, task_seed=1)
    moved_tasks = started(moved, seeds=range(20)).tasks
    assert any(not torch.equal(a, b) for a, b in zip(many.tasks, moved_tasks, strict=True))


@every_family
def test_an_ordinary_batch_is_the_task_of_seed_0(family):
    ordinary = family.make(batch_size=BATCH, seed=5, device=CPU, threads=1, is_training=True)
    ordinary.reset()
    task = started(family, seeds=[0], streams=[5])
    chosen = actions(task, 40)
    for got, expected in zip(play(ordinary, chosen), play(task, chosen), strict=True):
        assert torch.equal(got, expected)


@every_family
def test_a_redrawn_task_is_a_new_one_and_the_others_are_untouched(family):
    environment, untouched = started(family), started(family)
    before, after = actions(environment, 7, 1), actions(environment, 40, 2)
    play(environment, before)
    play(untouched, before)
    environment.redraw([2, 0], [21, 22])
    new = started(family, seeds=[22, 21])
    seen, outcomes = play(environment, after)
    others_seen, others_outcomes = play(untouched, after)
    new_seen, new_outcomes = play(new, after[:, [0, 2]])
    assert torch.equal(seen[:, 1], others_seen[:, 1])
    assert torch.equal(outcomes[:, :, 1], others_outcomes[:, :, 1])
    assert torch.equal(seen[:, [0, 2]], new_seen)
    assert torch.equal(outcomes[:, :, [0, 2]], new_outcomes)
    assert not torch.equal(seen[:, 0], others_seen[:, 0])


@every_family
def test_a_snapshot_carries_the_tasks(family):
    environment = started(family)
    environment.redraw([1], [30])
    play(environment, actions(environment, 9))
    snapshot = environment.snapshot()
    chosen = actions(environment, 40, 3)
    expected = play(environment, chosen)
    for target in (environment, family.make_tasks(seeds=(1, 2, 3), batch_size=BATCH, device=CPU)):
        target.restore(snapshot)
        for got, wanted in zip(play(target, chosen), expected, strict=True):
            assert torch.equal(got, wanted)


@every_family
@pytest.mark.parametrize(
    ("indices", "seeds", "field"),
    [([0, 0], [1, 2], "indices"), ([3], [1], "indices"), ([-1], [1], "indices"), ([0], [1, 2], "seeds")],
)
def test_wrong_redraws_are_refused(family, indices, seeds, field):
    environment = started(family)
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        environment.redraw(indices, seeds)


@every_family
def test_no_task_is_refused(family):
    with pytest.raises(ConfigurationError, match=r"^seeds = \[\]"):
        family.make_tasks(seeds=[], batch_size=BATCH, device=CPU)


@every_family
def test_lifetimes_are_numbers_of_updates(family):
    lifetimes = [family.lifetime(seed) for seed in range(20)]
    assert all(isinstance(x, int) and x >= 1 for x in lifetimes)
    assert lifetimes == [family.lifetime(seed) for seed in range(20)]


@pytest.mark.parametrize("name", ["small", "mdps"])
def test_states_are_numbered_as_they_are_seen(name):
    stepped, advanced = started(FAMILIES[name]), started(FAMILIES[name])
    for action in actions(stepped, 20):
        step = stepped.step(action.flatten())
        reward, is_terminal = advanced.advance(action.flatten())
        assert torch.equal(reward, step.reward)
        assert torch.equal(is_terminal, step.is_terminal)
        assert torch.equal(advanced.state_numbers(), step.observation.argmax(-1))
        assert torch.equal(TaskEnvironment.state_numbers(advanced), advanced.state_numbers())


@every_family
@pytest.mark.gpu
def test_devices_agree(family):
    here = started(family)
    there = family.make_tasks(seeds=SEEDS, batch_size=BATCH, device=torch.device("cuda"))
    there.reset()
    chosen = actions(here, 40)
    for got, expected in zip(play(there, chosen.cuda()), play(here, chosen), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("wrong", [-1, 2**63, True])
def test_wrong_task_seed_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"^env.task_seed = "):
        GridWorldFamily(task_seed=wrong)
