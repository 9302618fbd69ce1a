"""Stepping many agents' tasks: what each one does is what it would do alone, and goes on from a copy of the state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metagrad.actors.agent_tasks import AgentTasks, Collected, chosen
from metagrad.actors.envs.grid_worlds import GridWorldFamily

FAMILY = GridWorldFamily(distribution="small")
CPU = torch.device("cpu")
COLUMNS, LENGTH = 3, 7


def tasks_of(seeds: Sequence[int], is_tabular: bool = True) -> AgentTasks:
    environment = FAMILY.make_tasks(seeds=seeds, batch_size=COLUMNS, device=CPU)
    return AgentTasks(environment, [seed + 100 for seed in seeds], is_tabular)


def leaning(observation: Tensor) -> Tensor:
    """Each state prefers other actions."""
    return torch.sin(observation[..., None] * torch.tensor([0.3, 1.1, 2.3, 4.1, 7.3]))


def parts(collected: Collected, agent: int) -> list[Tensor]:
    return [x[agent] for x in collected.rollout]


def test_actions_follow_the_policy() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(1, 20_000, 3)
    uniform = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    share = chosen(logits, uniform)[0].bincount(minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)
    sure = torch.tensor([[[0.0, -200.0]]])
    assert chosen(sure, torch.tensor([[1.0 - 2.0**-24]])).item() == 0
    assert chosen(-sure, torch.tensor([[0.0]])).item() == 1


def test_agents_side_by_side_do_what_each_does_alone() -> None:
    together, alone = tasks_of([3, 4, 5]), [tasks_of([seed]) for seed in (3, 4, 5)]
    for _ in range(8):
        all_of_them, single = together.collect(leaning, LENGTH), [each.collect(leaning, LENGTH) for each in alone]
        for n, own in enumerate(single):
            for found, expected in zip(parts(all_of_them, n), parts(own, 0), strict=True):
                torch.testing.assert_close(found, expected, atol=0, rtol=0)
        returns = torch.cat([own.episodes.returns for own in single])
        assert sorted(all_of_them.episodes.returns.tolist()) == sorted(returns.tolist())
    assert len(together.collect(leaning, 100).episodes.returns) > 0


def test_a_rollout_begins_where_the_last_one_ended_and_knows_what_was_seen() -> None:
    tasks, flat = tasks_of([0, 1]), tasks_of([0, 1], is_tabular=False)
    first, second, vectors = tasks.collect(leaning, 4), tasks.collect(leaning, 4), flat.collect(lambda x: x[..., :5], 4)
    assert first.rollout.observation.shape == (2, 5, COLUMNS)
    torch.testing.assert_close(first.rollout.observation[:, -1], second.rollout.observation[:, 0])
    torch.testing.assert_close(first.rollout.behaviour_logits, leaning(first.rollout.observation))
    assert vectors.rollout.observation.shape == (
        2,
        5,
        COLUMNS,
        *FAMILY.make_tasks(seeds=[0], batch_size=1, device=CPU).spec.observation_shape,
    )
    torch.testing.assert_close(first.reward, first.rollout.reward.mean((1, 2)))


def test_a_redrawn_task_leaves_the_others_alone() -> None:
    tasks, undisturbed = tasks_of([0, 1, 2]), tasks_of([0, 1, 2])
    for each in (tasks, undisturbed):
        each.collect(leaning, LENGTH)
    tasks.redraw([1], [9], [109])
    fresh = tasks_of([9])
    found, expected, new = (each.collect(leaning, 60) for each in (tasks, undisturbed, fresh))
    for n in (0, 2):
        assert all(torch.equal(a, b) for a, b in zip(parts(found, n), parts(expected, n), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(parts(found, 1), parts(new, 0), strict=True))
    assert max(found.episodes.lengths.tolist()) <= 100  # of small worlds: nothing is left of the episodes before


def test_a_copy_of_the_state_goes_on_bit_for_bit() -> None:
    tasks, other = tasks_of([0, 1]), tasks_of([5, 6])
    tasks.collect(leaning, LENGTH)
    other.load_state(tasks.state())
    found, expected = other.collect(leaning, 50), tasks.collect(leaning, 50)
    assert all(torch.equal(a, b) for a, b in zip(found.rollout, expected.rollout, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found.episodes, expected.episodes, strict=True))
    assert len(found.episodes.returns) > 0
