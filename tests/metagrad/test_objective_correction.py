"""What the correction adds; that it starts at A2C is in test_lifetimes.py."""

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.update_rules import LifetimeRollout

STEPS, BATCH, ACTIONS = 5, 3, 4


def rollout_of(scale: float) -> LifetimeRollout:
    generator = torch.Generator().manual_seed(0)
    return LifetimeRollout(
        observation=torch.zeros(STEPS + 1, BATCH, 1),
        action=torch.randint(ACTIONS, (STEPS + 1, BATCH), generator=generator),
        reward=scale * torch.randn(STEPS, BATCH, generator=generator),
        is_terminal=torch.rand(STEPS, BATCH, generator=generator) < 0.4,
        valid=torch.rand(STEPS, BATCH, generator=generator) < 0.8,
        behaviour_logits=torch.randn(STEPS + 1, BATCH, ACTIONS, generator=generator),
    )


def outputs_of(scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(STEPS + 1, BATCH, ACTIONS, generator=generator)
    return {"logits": logits, "value": scale * torch.randn(STEPS + 1, BATCH, generator=generator)}


@pytest.mark.parametrize("is_normalised", [False, True])
def test_the_last_bias_moves_weight_and_target_by_deviations_of_the_advantage(is_normalised: bool) -> None:
    rule = ObjectiveCorrection(is_advantage_normalised=is_normalised)
    eta = rule.init(torch.Generator().manual_seed(2))
    moved = rule.layout.unflatten(eta.clone())
    moved["last.bias"].copy_(torch.tensor([0.5, -2.0]))
    rollout, outputs = rollout_of(3.0), outputs_of(3.0)
    plain, _ = rule.targets(eta, (), rollout, outputs, None)
    found, _ = rule.targets(rule.layout.flatten(moved), (), rollout, outputs, None)
    advantage = (plain["value"] - outputs["value"][:-1])[rollout.valid]
    sigma = float((advantage.var(correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(found["weight"], plain["weight"] + 0.5 * (1.0 if is_normalised else sigma))
    torch.testing.assert_close(found["value"], plain["value"] - 2.0 * sigma)
    size = rule.regularisers(found, outputs, rollout)["correction"]
    assert float(size) == pytest.approx(0.5**2 + 2.0**2)
    assert float(rule.regularisers(plain, outputs, rollout)["correction"]) == 0.0


def test_features_are_constants_of_the_agent_and_the_rule_is_small() -> None:
    rule = ObjectiveCorrection()
    assert rule.layout.size == 226
    outputs = {head: x.requires_grad_() for head, x in outputs_of(1.0).items()}
    eta = torch.randn(226, generator=torch.Generator().manual_seed(3)).requires_grad_()
    targets, _ = rule.targets(eta, (), rollout_of(1.0), outputs, None)
    total = targets["weight"].square().sum() + targets["value"].square().sum()
    *of_outputs, of_eta = torch.autograd.grad(total, [*outputs.values(), eta], allow_unused=True)
    assert of_outputs == [None, None]
    assert (of_eta.abs() > 0).float().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"gamma": 1.5}, {"entropy_coefficient": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=rf"rule\.{next(iter(wrong))}"):
        ObjectiveCorrection(**wrong)
