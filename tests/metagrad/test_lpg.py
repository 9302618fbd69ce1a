"""LPG against torch's own GRU cell, step by step from its text."""

import pytest
import torch
from torch import Tensor, nn

from metagrad.errors import ConfigurationError
from metagrad.lpg import Lpg
from metagrad.update_rules import LifetimeRollout

STEPS, BATCH, ACTIONS = 5, 3, 4


def rollout_of(generator: torch.Generator) -> LifetimeRollout:
    return LifetimeRollout(
        observation=torch.zeros(STEPS + 1, BATCH, 1),
        action=torch.randint(ACTIONS, (STEPS + 1, BATCH), generator=generator),
        reward=torch.randn(STEPS, BATCH, generator=generator, dtype=torch.float64),
        is_terminal=torch.rand(STEPS, BATCH, generator=generator) < 0.4,
        valid=torch.rand(STEPS, BATCH, generator=generator) < 0.8,
        behaviour_logits=torch.zeros(STEPS + 1, BATCH, ACTIONS),
    )


def phi(own: dict[str, Tensor], y: Tensor) -> Tensor:
    hidden = (y @ own["embedding.hidden.weight"] + own["embedding.hidden.bias"]).clamp(min=0)
    return (hidden @ own["embedding.last.weight"] + own["embedding.last.bias"]).squeeze(-1)


def test_targets_loss_and_regularisers_are_those_of_the_text() -> None:
    rule = Lpg(predictions=6, units=7, embedding=5)
    generator = torch.Generator().manual_seed(0)
    eta = torch.randn(rule.layout.size, generator=generator, dtype=torch.float64)
    rollout = rollout_of(generator)
    logits = torch.randn(STEPS + 1, BATCH, ACTIONS, generator=generator, dtype=torch.float64)
    prediction = torch.randn(STEPS + 1, BATCH, 6, generator=generator, dtype=torch.float64)
    outputs = {"logits": logits, "prediction": prediction}
    targets, _ = rule.targets(eta, (), rollout, outputs, None)
    own = rule.layout.unflatten(eta)
    cell = nn.GRUCell(5, 7, dtype=torch.float64)
    for name, part in (("ih", "input"), ("hh", "state")):
        getattr(cell, f"weight_{name}").data = own[f"gru.{part}.weight"].T
        getattr(cell, f"bias_{name}").data = own[f"gru.{part}.bias"]
    pi, y = torch.softmax(logits, -1), torch.softmax(prediction, -1)
    inner, count = 0.0, 0
    squares = {"policy_entropy": 0.0, "prediction_entropy": 0.0, "policy_target": 0.0, "prediction_target": 0.0}
    for b in range(BATCH):
        state = torch.zeros(7, dtype=torch.float64)
        for t in reversed(range(STEPS)):
            is_end, action = bool(rollout.is_terminal[t, b]), rollout.action[t, b]
            state = torch.zeros_like(state) if is_end else state
            following = torch.zeros((), dtype=torch.float64) if is_end else phi(own, y[t + 1, b])
            numbers = [
                rollout.reward[t, b],
                torch.tensor(float(is_end)),
                pi[t, b, action],
                phi(own, y[t, b]),
                following,
            ]
            state = cell(torch.stack([x.double() for x in numbers]), state).detach()
            seen = state.clamp(min=0)
            pi_hat = (seen @ own["policy.weight"] + own["policy.bias"]).squeeze()
            y_hat = torch.softmax(seen @ own["prediction.weight"] + own["prediction.bias"], -1)
            torch.testing.assert_close(targets["policy"][t, b], pi_hat)
            torch.testing.assert_close(targets["prediction"][t, b].exp(), y_hat)
            if rollout.valid[t, b]:
                count += 1
                divergence = (y[t, b] * (y[t, b] / y_hat).log()).sum()
                inner += float(pi_hat * pi[t, b, action].log() + 0.5 * divergence)
                squares["policy_entropy"] += float((pi[t, b] * pi[t, b].log()).sum())
                squares["prediction_entropy"] += float((y[t, b] * y[t, b].log()).sum())
                squares["policy_target"] += float(pi_hat**2)
                squares["prediction_target"] += float((y_hat**2).sum())
    assert float(rule.loss(targets, outputs, rollout)) == pytest.approx(inner / count, rel=1e-12)
    found = {name: float(x) for name, x in rule.regularisers(targets, outputs, rollout).items()}
    assert found == pytest.approx({name: x / count for name, x in squares.items()}, rel=1e-12)
    assert rule.coefficients == {
        "policy_entropy": 0.05,
        "prediction_entropy": 0.001,
        "policy_target": 0.005,
        "prediction_target": 0.001,
    }


def test_sizes_are_those_of_the_paper() -> None:
    rule = Lpg()
    assert rule.heads(5) == {"logits": (5,), "prediction": (8,)}
    gru = 3 * 256 * (5 + 256 + 2)
    assert rule.layout.size == (8 * 16 + 16) + (16 + 1) + gru + (256 + 1) + (256 * 8 + 8)
    eta = rule.init(torch.Generator().manual_seed(0))
    gate = rule.layout.unflatten(eta)["gru.state.weight"][:, 256:512]
    torch.testing.assert_close(gate.T @ gate, torch.eye(256), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"predictions": 1}, {"units": 0}, {"policy_target_coefficient": -1.0}])
def test_sizes_and_weights_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=rf"rule\.{next(iter(wrong))}"):
        Lpg(**wrong)
