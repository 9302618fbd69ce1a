"""Study `ipd`: where exact players end, and the run of sampled ones against the loop written out."""

import numpy as np
import pytest
import torch

from metagrad.cluster.studies.folder import as_json
from metagrad.errors import ConfigurationError
from metagrad.experiments.gradient_bias import ipd_study as ipd
from metagrad.experiments.gradient_bias.ipd_games import fresh_games, joint_log_prob, other_code, rewards
from metagrad.experiments.gradient_bias.lola import Estimation, streams


def settings(name, seed=0, updates=3, **changes):
    return {"arm": name} | ipd.arm_settings(name, seed, updates) | changes


def test_parts_are_the_arms_of_every_seed():
    parts = ipd.STUDY.parts(ipd.STUDY.seeds, False)
    assert len(parts) == 10 * (len(ipd.ARMS) + 1)
    assert {part["updates"] for part in parts.values()} == {500}
    assert parts["inner128-outer128-seed3"] == {
        "arm": "inner128-outer128",
        "seed": 3,
        "updates": 500,
        "estimation": {},
        "value_target": "reward",
        "look_ahead": [1, 1],
        "probes": [],
    }
    for is_quick in (True, False):
        assert ipd.STUDY.parts(2, is_quick).items() <= ipd.STUDY.parts(5, is_quick).items()
        assert as_json(ipd.STUDY.parts(2, is_quick)) == ipd.STUDY.parts(2, is_quick)


def test_every_arm_and_probe_can_be_estimated():
    for arm in ipd.ARMS:
        Estimation(**settings(arm)["estimation"])
    for options, table in ipd.PROBES.values():
        assert not Estimation(**options).uses_ring
        assert table in ("none", "reward", "return-to-go")
    with pytest.raises(ConfigurationError):
        ipd.run_part(settings("inner128-outer128") | {"estimation": {"value": -1}})


long_run = pytest.mark.parametrize("updates", [150, pytest.param(500, marks=pytest.mark.slow)])


@long_run
def test_exact_players_who_look_ahead_end_in_mutual_cooperation(updates):
    result = ipd.run_part(settings("inner-exact-outer-exact", updates=updates))
    assert np.mean(result["reward"][-updates // 20 :]) == pytest.approx(-1.0, abs=0.02)
    assert result["cosine"] == [1.0] * (updates // 5)
    start, both_cooperated = np.array(result["cooperation"])[:, [0, 4]].T
    assert (start > 0.95).all()
    assert (both_cooperated > 0.95).all()


@long_run
def test_exact_players_who_do_not_look_ahead_end_in_mutual_defection(updates):
    result = ipd.run_part(settings("independent-exact", updates=updates))
    assert np.mean(result["reward"][-updates // 20 :]) == pytest.approx(-2.0, abs=0.02)


def test_exact_gradients_are_the_same_whatever_the_seed():
    first, second = (ipd.run_part(settings("inner-exact-outer-exact", seed=seed)) for seed in (0, 1))
    assert first["cooperation"] == second["cooperation"]
    assert first["own_reward"] != second["own_reward"]


def dice_written_out(own, other, code, values, is_own, gamma=0.96):
    """-DiCE with its baseline, term by term."""
    table, total = joint_log_prob(own, other), 0.0
    seen = code if is_own else other_code(code)
    reward = rewards(seen, torch.float64)
    for b in range(code.shape[1]):
        past = 0.0
        for t in range(code.shape[0]):
            step = table[code[t, b]]
            past = past + step
            total = total + gamma**t * torch.exp(past - past.detach()) * reward[t, b]
            total = total + gamma**t * (1 - torch.exp(step - step.detach())) * values[seen[t, b] // 4]
    return -total / code.shape[1]


def test_a_sampled_run_is_the_loop_written_out(monkeypatch):
    monkeypatch.setattr(ipd, "BATCH_SIZE", 6)
    small = {"value": 4, "outer": 3, "steps": 5}
    result = ipd.run_part(settings("inner128-outer128", seed=2) | {"estimation": small})
    draw = streams(2)
    theta = [torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    values = [torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.Adam([x], lr=0.1) for x in (*theta, *values)]
    scores = []
    for _ in range(3):
        now = torch.stack(theta).detach()
        inner = fresh_games(now, now.flip(0), 5, 4, draw["value"])
        ahead = []
        for player in (0, 1):
            other = theta[1 - player].detach().requires_grad_()
            loss = dice_written_out(theta[player], other, inner[player], values[1 - player].detach(), is_own=False)
            (gradient,) = torch.autograd.grad(loss, other, create_graph=True)
            ahead.append(other - 0.3 * gradient)
        outer = fresh_games(now, torch.stack(ahead).detach(), 5, 3, draw["outer"])
        for player in (0, 1):
            loss = dice_written_out(theta[player], ahead[player], outer[player], values[player].detach(), is_own=True)
            (theta[player].grad,) = torch.autograd.grad(loss, theta[player])
            predicted = values[player][outer[player] // 4]
            loss = (predicted - rewards(outer[player], torch.float64)).square().mean()
            (values[player].grad,) = torch.autograd.grad(loss, values[player])
        for optimizer in optimizers:
            optimizer.step()
        now = torch.stack(theta).detach()
        code = fresh_games(now[:1], now[1:], 5, 6, draw["score"])[0]
        scores.append([rewards(seen, torch.float64).mean().item() for seen in (code, other_code(code))])
    expected = torch.sigmoid(-torch.stack(theta)).detach().numpy()
    np.testing.assert_allclose(result["cooperation"], expected, rtol=1e-9)
    np.testing.assert_allclose(result["own_reward"], scores, atol=1e-5)
    np.testing.assert_allclose(result["reward"], np.mean(scores, 1), atol=1e-5)


def test_one_who_does_not_look_ahead_against_one_who_does():
    result = ipd.run_part(settings("exact-against-naive", updates=1))
    both = ipd.run_part(settings("inner-exact-outer-exact", updates=1))
    neither = ipd.run_part(settings("independent-exact", updates=1))
    assert result["cooperation"] == [both["cooperation"][0], neither["cooperation"][1]]


@pytest.mark.parametrize("name", ["value-off-hessian-off", "value-off-hessian-on", "value-on-hessian-off"])
def test_arms_with_a_ring_report_its_worth(name):
    result = ipd.run_part(settings(name, updates=2))
    sizes = result["effective_sample_size"]
    assert len(sizes) == 2
    assert sizes[0] == pytest.approx(1024.0)  # before the first update all games are of the same policies
    assert 1.0 <= sizes[1] < 1024.0


def test_a_probe_leaves_the_run_alone(monkeypatch):
    monkeypatch.setattr(ipd, "PROBE_SAMPLES", 1)
    plain = settings(ipd.PROBED_ARM, updates=2, estimation={"value": 8, "outer": 8, "steps": 10})
    probed = ipd.run_part(plain | {"probes": list(ipd.PROBES)[:3]})
    assert probed["probed"] == [0]
    assert all(len(cosines) == 1 and -1 <= cosines[0] <= 1 for cosines in probed["probe"].values())
    assert probed["own_reward"] == ipd.run_part(plain)["own_reward"]
