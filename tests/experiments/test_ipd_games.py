"""Games of two players: exact values, sampling, the ring, tables of values; each against plain Python."""

import math

import pytest
import torch

from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemma, IteratedPrisonersDilemmaConfig
from metagrad.experiments.gradient_bias.ipd_games import (
    Ring,
    exact_value,
    fresh_games,
    joint_log_prob,
    other_code,
    play,
    rewards,
    value_gradient,
)

PAYOFFS = {"DD": -2.0, "DC": 0.0, "CD": -3.0, "CC": -1.0}  # own action first
STATES = ("start", *PAYOFFS)


def pair(seed=0, copies=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, copies, 5, generator=generator, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_value(own, other, gamma, steps):
    """Expected discounted return of `steps` rounds, by following the distribution of states."""
    defects = [torch.sigmoid(own[s]) for s in range(5)]
    others = {state: torch.sigmoid(other[STATES.index(state[::-1] if s else state)]) for s, state in enumerate(STATES)}
    likely, total = {"start": own.new_ones(())}, own.new_zeros(())
    for t in range(steps):
        following = dict.fromkeys(PAYOFFS, own.new_zeros(()))
        for state, p in likely.items():
            mine, theirs = defects[STATES.index(state)], others[state]
            for joint, payoff in PAYOFFS.items():
                chance = p * (mine if joint[0] == "D" else 1 - mine) * (theirs if joint[1] == "D" else 1 - theirs)
                total = total + gamma**t * chance * payoff
                following[joint] = following[joint] + chance
        likely = following
    return total


@pytest.mark.parametrize("seed", range(3))
def test_exact_value_is_that_of_very_many_rounds(seed):
    own, other = pair(seed)[:, 0]
    assert exact_value(own, other, 0.8).item() == pytest.approx(slow_value(own, other, 0.8, 160).item(), rel=1e-12)


def test_uniform_players():
    zero = torch.zeros(5, dtype=torch.float64)
    assert exact_value(zero, zero, 0.96).item() == pytest.approx(-1.5 / 0.04)


def test_sampled_returns_have_the_exact_mean():
    own, other = pair(copies=3)
    gamma = 0.9
    code = fresh_games(own, other, 200, 2000, generator())
    returns = (gamma ** torch.arange(200, dtype=torch.float64)[:, None] * rewards(code, torch.float64)).sum(1)
    for n in range(3):
        error = returns[n].std() / math.sqrt(2000)
        assert abs(returns[n].mean() - exact_value(own[n], other[n], gamma)) < 4 * error
        theirs = gamma ** torch.arange(200, dtype=torch.float64)[:, None] * rewards(other_code(code[n]), torch.float64)
        error = theirs.sum(0).std() / math.sqrt(2000)
        assert abs(theirs.sum(0).mean() - exact_value(other[n], own[n], gamma)) < 4 * error


def test_games_are_those_of_the_environment():
    own, other = pair(copies=2)
    code = fresh_games(own, other, 7, 5, generator())
    for n in range(2):
        environment = IteratedPrisonersDilemma(IteratedPrisonersDilemmaConfig(steps=7), 5)
        seen = environment.reset()
        for row in code[n]:
            assert torch.equal(row // 4, seen[0])
            assert torch.equal(other_code(row) // 4, seen[1])
            step = environment.step(torch.stack([row // 2 % 2, row % 2]))
            assert torch.equal(
                step.reward.double(),
                torch.stack([rewards(row, torch.float64), rewards(other_code(row), torch.float64)]),
            )
            seen = step.observation
        assert step.is_terminal.all()


def test_actions_come_with_their_probabilities():
    own, other = pair()
    count = 40_000
    code = fresh_games(own, other, 2, count, generator())[0]
    chance = joint_log_prob(own, other)[0].exp()
    for state, of in ((0, code[0]), (1, code[1]), (2, code[1]), (3, code[1]), (4, code[1])):
        visited = of[of // 4 == state]
        for joint in range(4):
            p = chance[4 * state + joint]
            share = (visited % 4 == joint).double().mean()
            assert abs(share - p) < 4 * (p * (1 - p) / len(visited)).sqrt()
    assert torch.allclose(chance.view(5, 4).sum(-1), torch.ones(5, dtype=torch.float64))


def test_the_largest_and_smallest_number_choose_an_action_that_is_there():
    certain = torch.full((1, 5), 800.0, dtype=torch.float64)  # the sigmoid is exactly 1
    for uniform in (0.0, 1 - 2**-53):
        drawn = torch.full((3, 1, 2), uniform, dtype=torch.float64)
        assert (play(certain, certain, drawn) % 4 == 0).all()
        assert (play(-certain, -certain, drawn) % 4 == 3).all()
        assert (play(certain, -certain, drawn) % 4 == 1).all()


def test_the_other_view_is_its_own_inverse_and_joint_probabilities_do_not_depend_on_it():
    codes = torch.arange(20)
    assert torch.equal(other_code(other_code(codes)), codes)
    own, other = pair()[:, 0]
    torch.testing.assert_close(joint_log_prob(own, other), joint_log_prob(other, own)[other_code(codes)])


def games(values, steps=2):
    """Codes that tell games apart."""
    return torch.tensor([values] * steps)


def test_the_ring_keeps_the_newest_games_in_place_of_the_oldest():
    ring = Ring(4, 2, generator())
    prefilled = ring.code.clone()
    assert torch.equal(ring.log_prob, torch.full((2, 4), 2 * math.log(0.5), dtype=torch.float64))
    ring.push(games([1, 2, 3]), torch.full((2, 3), -1.0, dtype=torch.float64))
    assert torch.equal(ring.code, torch.cat([games([1, 2, 3]), prefilled[:, 3:]], 1))
    held = ring.code
    ring.push(games([4, 5]), torch.full((2, 2), -2.0, dtype=torch.float64))
    assert ring.code[0].tolist() == [5, 2, 3, 4]
    assert ring.log_prob[1].tolist() == [-2.0, -1.0, -1.0, -2.0]
    assert held[0, 0] == 1  # a graph that was made before still has its games
    ring.push(games([6, 7, 8, 9, 10, 11]), torch.zeros(2, 6, dtype=torch.float64))
    assert sorted(ring.code[0].tolist()) == [8, 9, 10, 11]
    ring.push(games([12]), torch.zeros(2, 1, dtype=torch.float64))
    assert sorted(ring.code[0].tolist()) == [9, 10, 11, 12]


def test_both_players_share_the_ring_and_each_sees_it_with_its_own_eyes():
    ring = Ring(3, 2, generator())
    log_prob = torch.zeros(2, 1, dtype=torch.float64)
    first = ring.look_ahead(0, games([9]), log_prob)  # state DC, own action defect, other's cooperate
    assert first.code[0, 0] == 9
    second = ring.look_ahead(1, games([9]), log_prob)
    assert second.code[0, 1] == 9
    assert second.code[0, 0] == other_code(torch.tensor(9)) == 14
    assert ring.code[0, :2].tolist() == [9, 14]


def test_effective_sample_size_of_the_ring():
    zero = torch.zeros(5, dtype=torch.float64)
    ring = Ring(50, 6, generator())
    assert ring.effective_sample_size(zero, zero) == pytest.approx(50.0)
    first, second = pair()[:, 0]
    weights = []
    for game in ring.code.T:
        weight = 1.0
        for code in game.tolist():
            state, mine, theirs = STATES[code // 4], code // 2 % 2, code % 2
            p = torch.sigmoid(first[STATES.index(state)]).item()
            q = torch.sigmoid(second[STATES.index(state if state == "start" else state[::-1])]).item()
            weight *= (1 - p if mine else p) * (1 - q if theirs else q) * 4
        weights.append(weight)
    expected = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    assert ring.effective_sample_size(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("target", ["reward", "return-to-go"])
def test_value_gradient_is_that_of_the_mean_squared_error(target):
    own, other = pair(copies=2)
    code, gamma = fresh_games(own, other, 6, 3, generator()), 0.9
    values = pair(5)[0].repeat(2, 1).requires_grad_()
    loss = 0.0
    for n in range(2):
        for game in code[n].T.tolist():
            for t, c in enumerate(game):
                following = [list(PAYOFFS.values())[k % 4] for k in game[t:]]
                wanted = following[0] if target == "reward" else sum(gamma**k * r for k, r in enumerate(following))
                loss = loss + (wanted - values[n, c // 4]) ** 2 / 18
    (expected,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(value_gradient(values.detach(), code, gamma, target), expected)
