"""A rule sees one agent; many of them are `vmap`'s."""

import torch

from metagrad.update_rules import LifetimeRollout


def rollouts(agents: int, steps: int = 3, batch: int = 2, actions: int = 4) -> LifetimeRollout:
    generator = torch.Generator().manual_seed(0)
    return LifetimeRollout(
        observation=torch.randn(agents, steps + 1, batch, 5, generator=generator),
        action=torch.randint(actions, (agents, steps + 1, batch), generator=generator),
        reward=torch.randn(agents, steps, batch, generator=generator),
        is_terminal=torch.rand(agents, steps, batch, generator=generator) < 0.3,
        valid=torch.ones(agents, steps, batch, dtype=torch.bool),
        behaviour_logits=torch.randn(agents, steps + 1, batch, actions, generator=generator),
    )


def test_rollouts_of_many_agents_are_those_of_one_with_an_axis_before() -> None:
    many = rollouts(agents=3)

    def total(rollout: LifetimeRollout) -> torch.Tensor:
        return torch.where(rollout.valid & ~rollout.is_terminal, rollout.reward, 0.0).sum()

    expected = torch.stack([total(LifetimeRollout(*(x[i] for x in many))) for i in range(3)])
    torch.testing.assert_close(torch.func.vmap(total)(many), expected)
