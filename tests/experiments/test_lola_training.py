"""One update of LOLA in games of the actors, against gradients of a whole graph over the same games."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actors import policy
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.rollout import Pool, collect
from metagrad.experiments.gradient_bias.ipd_games import (
    STATES,
    Games,
    exact_value,
    joint_log_prob,
    other_code,
    rewards,
    value_gradient,
)
from metagrad.experiments.gradient_bias.lola import Estimation, dice_objective
from metagrad.experiments.gradient_bias.lola_training import Lola, LolaState, codes
from metagrad.learner.algorithm import NonFinite
from metagrad.networks import MemoryOnePair, build_network
from metagrad.optimizers import Adam, Sgd, constant
from metagrad.types import Trajectory, WeightSnapshot

STEPS, GAMES, GAMMA = 6, 5, 0.9
NETWORK = build_network(MemoryOnePair(), (STATES,), 4, False)
CPU = torch.device("cpu")


class Actors:
    """Whole games in one pool, and what was asked for."""

    def __init__(self, games: int = GAMES, steps: int = STEPS) -> None:
        config = IteratedPrisonersDilemmaConfig(steps=steps)
        self.pool, self.steps = (
            Pool(config.make(batch_size=games, seed=0, device=CPU, threads=1, is_training=True), 0),
            steps,
        )
        self.asked: list[tuple[int, int]] = []  # version, look-ahead step
        self.pairs: list[Tensor] = []
        self.codes: list[Tensor] = []

    def __call__(self, snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        trajectory, _ = collect(
            self.pool, partial(policy.sample, NETWORK.at(snapshot.theta)), snapshot.version, self.steps
        )
        self.asked.append((snapshot.version, lookahead_step))
        self.pairs.append(snapshot.theta.view(2, STATES))
        self.codes.append(codes(trajectory))
        return trajectory


def lola(look_ahead: int = 1, rollouts: int = 2, target: Any = "return-to-go", **estimation: Any) -> Lola:
    """Configure plain gradient steps of size 1, which show the gradients."""
    step = Sgd(learning_rate=constant(1.0))
    places = {"value": rollouts * GAMES, "outer": GAMES, "gamma": GAMMA, "steps": STEPS} | estimation
    return Lola(NETWORK, Estimation(**places), look_ahead, rollouts, target, step, step)


def somewhere(algorithm: Lola, seed: int = 0) -> LolaState:
    generator = torch.Generator().manual_seed(seed)
    theta, values = torch.randn(2, 2 * STATES, generator=generator, dtype=torch.float64)
    return algorithm.init(0, CPU)._replace(version=7, theta=theta, values=values)


def test_the_network_plays_the_policies_that_the_gradients_are_of() -> None:
    theta = torch.randn(2, STATES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = NETWORK.apply(theta.flatten(), torch.eye(STATES), ("logits",))["logits"]
    assert torch.equal(logits.flatten(), joint_log_prob(theta[0], theta[1]))


def test_codes_are_the_games_that_were_played() -> None:
    actors = Actors(games=40)
    snapshot = WeightSnapshot(0, torch.zeros(10, dtype=torch.float64), torch.zeros(0))
    trajectory = actors(snapshot, 0)
    code = codes(trajectory)
    both = rewards(code, torch.float32) + rewards(other_code(code), torch.float32)
    assert torch.equal(both / 2, trajectory.reward)
    state, joint = code // 4, code % 4
    assert (state[0] == 0).all()
    assert torch.equal(state[1:], 1 + joint[:-1])
    assert set(joint.flatten().tolist()) == {0, 1, 2, 3}


def looked_ahead(algorithm: Lola, state: LolaState, actors: Actors, player: int) -> Tensor:
    """Gradient of one player's loss through the whole graph, with the games that were played."""
    pair, values = state.theta.view(2, STATES), state.values.view(2, STATES)
    estimation, k, rollouts = algorithm.estimation, algorithm.look_ahead, algorithm.inner_rollouts
    seen = [code if player == 0 else other_code(code) for code in actors.codes]
    # In the order that the module's description gives: real games, then for each j both players' games.
    real = seen[: rollouts if k and estimation.value != "exact" else 1]
    ahead = seen[len(real) :]
    own, other = pair[player].clone().requires_grad_(), pair[1 - player].clone().requires_grad_()
    for j in range(k):
        if estimation.value == "exact":
            objective = exact_value(other, own, GAMMA)
        else:
            if j:
                mine, ahead = ahead[player * rollouts :][:rollouts], ahead[2 * rollouts :]
            games = Games(torch.cat(real if j == 0 else mine, dim=1))
            objective = dice_objective(own, other, games, values[1 - player], GAMMA, of_other=True)
        (slope,) = torch.autograd.grad(objective, other, create_graph=True)
        other = other + estimation.learning_rate * slope
    if estimation.outer == "exact":
        loss = -exact_value(own, other, GAMMA)
    else:
        games = Games(ahead[player] if k else real[0])
        loss = -dice_objective(own, other, games, values[player], GAMMA, of_other=False)
    return torch.autograd.grad(loss, own)[0]


@pytest.mark.parametrize("look_ahead", [0, 1, 2])
@pytest.mark.parametrize("places", [{}, {"value": "exact"}, {"outer": "exact"}, {"value": "exact", "outer": "exact"}])
def test_the_gradient_is_that_of_the_whole_graph(look_ahead: int, places: dict[str, Any]) -> None:
    algorithm, actors = lola(look_ahead, **places), Actors()
    before = somewhere(algorithm)
    after, metrics = algorithm.update(before, actors)
    expected = torch.stack([looked_ahead(algorithm, before, actors, player) for player in (0, 1)])
    assert expected.abs().min() > 1e-6
    torch.testing.assert_close((before.theta - after.theta).view(2, STATES), expected, rtol=1e-10, atol=1e-12)
    assert (metrics.scalars["norm/shaping_gradient"] > 0) == (look_ahead > 0)
    assert (after.update, before.update) == (1, 0)


def test_what_is_asked_of_the_actors() -> None:
    """Real games first; then, under a version each, player 1 against what player 2 would be, and the reverse."""
    algorithm, actors = lola(2, rollouts=3), Actors()
    before = somewhere(algorithm)
    after, _ = algorithm.update(before, actors)
    assert actors.asked == [(7, 0)] * 3 + [(8, 1)] * 3 + [(9, 2)] * 3 + [(10, 3), (11, 4)]
    assert after.version == 12
    pair = before.theta.view(2, STATES)
    assert all(torch.equal(x, pair) for x in actors.pairs[:3])
    for i in (3, 9):  # player 0 stays itself, then player 1 does
        assert torch.equal(actors.pairs[i][0], pair[0])
        assert not torch.equal(actors.pairs[i][1], pair[1])
    for i in (6, 10):
        assert torch.equal(actors.pairs[i][1], pair[1])
        assert not torch.equal(actors.pairs[i][0], pair[0])
    assert not torch.equal(actors.pairs[3], actors.pairs[9]), "the second virtual update moves on"


@pytest.mark.parametrize(
    ("look_ahead", "places", "rollouts"),
    [
        (0, {}, 1),
        (0, {"outer": "exact"}, 1),
        (1, {}, 4),
        (1, {"value": "exact"}, 3),
        (1, {"outer": "exact"}, 2),
        (1, {"value": "exact", "outer": "exact"}, 1),
        (3, {"value": "exact"}, 3),
        (3, {"outer": "exact"}, 10),
    ],
)
def test_no_game_is_played_that_nobody_looks_at(look_ahead: int, places: dict[str, Any], rollouts: int) -> None:
    algorithm, actors = lola(look_ahead, **places), Actors()
    algorithm.update(somewhere(algorithm), actors)
    assert len(actors.asked) == rollouts
    assert actors.asked[0][1] == 0


@pytest.mark.parametrize("target", ["return-to-go", "reward"])
@pytest.mark.parametrize(("look_ahead", "places"), [(0, {}), (1, {}), (1, {"value": "exact"}), (1, {"outer": "exact"})])
def test_tables_of_values_learn_from_outer_games_or_real_ones(
    target: Any, look_ahead: int, places: dict[str, Any]
) -> None:
    algorithm, actors = lola(look_ahead, target=target, **places), Actors()
    before = somewhere(algorithm)
    after, _ = algorithm.update(before, actors)
    if look_ahead and "outer" not in places:
        first, second = actors.codes[-2:]
    else:
        first = second = torch.cat(actors.codes, dim=1)
    values = before.values.view(2, STATES)
    expected = values - value_gradient(values, torch.stack([first, other_code(second)]), GAMMA, target)
    torch.testing.assert_close(after.values.view(2, STATES), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("look_ahead", [0, 1])
def test_where_all_is_exact_no_table_is_learnt(look_ahead: int) -> None:
    algorithm = lola(look_ahead, value="exact", outer="exact")
    before = somewhere(algorithm)
    after, _ = algorithm.update(before, Actors())
    assert torch.equal(after.values, before.values)
    assert after.value_optimizer.updates == 0


def test_metrics_are_of_the_real_games_and_the_new_policies() -> None:
    algorithm, actors = lola(), Actors()
    after, metrics = algorithm.update(somewhere(algorithm), actors)
    scalars, meta_gradient = metrics.scalars, metrics.meta_gradient
    real = torch.cat(actors.codes[:2], dim=1)
    first, second = (rewards(code, torch.float64).mean().item() for code in (real, other_code(real)))
    assert (scalars["reward/player_1_per_step"], scalars["reward/player_2_per_step"]) == (first, second)
    assert scalars["reward/mean_per_step"] == (first + second) / 2
    outer = rewards(actors.codes[2], torch.float64)
    discounted = (GAMMA ** torch.arange(STEPS, dtype=torch.float64) @ outer).mean().item()
    assert scalars["loss/player_1"] == pytest.approx(-discounted, rel=1e-12)
    cooperation = torch.sigmoid(-after.theta).view(2, STATES)
    assert scalars["cooperation/player_1_at_start"] == cooperation[0, 0].item()
    assert scalars["cooperation/player_2_after_CC"] == cooperation[1, 4].item()
    assert len([name for name in scalars if name.startswith("cooperation/")]) == 10
    assert {"time/sample_seconds", "time/shaping_seconds", "time/metrics_seconds"} < set(scalars)
    assert meta_gradient == ()
    shown = algorithm.shown(after)
    assert (len(shown), shown["cooperation_2_DC"]) == (10, cooperation[1, 2].item())
    assert list(algorithm.learnt(after)) == [f"cooperation_{p}_{s}" for p in (1, 2) for s in ("start", "CC")]


def test_a_number_that_is_none_ends_the_run() -> None:
    algorithm = lola(value="exact", outer="exact")
    lost = somewhere(algorithm)
    lost = lost._replace(update=4, theta=lost.theta.index_fill(0, torch.tensor([3]), float("nan")))
    with pytest.raises(NonFinite, match=r"^loss/player_1 became nan at update 5$"):
        algorithm.update(lost, Actors())


def test_a_state_comes_back_from_plain_data() -> None:
    adam = Adam(learning_rate=constant(0.1))
    algorithm = lola()
    algorithm = Lola(NETWORK, algorithm.estimation, 1, 2, "return-to-go", adam, adam)
    state = algorithm.init(0, CPU)
    assert state.theta.tolist() == [0.0] * 10
    for _ in range(2):
        state, _ = algorithm.update(state, Actors())
    tree = algorithm.to_tree(state)
    assert algorithm.misfit(tree) is None
    back = algorithm.from_tree(tree, CPU)
    assert algorithm.update(back, Actors())[0].theta.tolist() == algorithm.update(state, Actors())[0].theta.tolist()
    assert (back.optimizer.updates, back.value_optimizer.updates, back.update, back.held_batches) == (2, 2, 2, 0)
    for name in tree:
        assert algorithm.misfit({k: x for k, x in tree.items() if k != name}) == name
    assert algorithm.misfit(tree | {"moments": torch.zeros(2, 9)}) == "moments"
    assert algorithm.misfit(tree | {"version": None}) == "version"
    assert algorithm.misfit(None) == "update"
