"""Samples of a meta-gradient at a checkpoint: independent, repeatable, and of the right expectation."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.actors import policy
from metagrad.actors.envs.snake import Snake, SnakeConfig, SnakeState, make_board, observe_state, step_state
from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError
from metagrad.experiments.one_step_at_a_time.snake_12x12 import snake_12x12
from metagrad.experiments.training import meta_gradient_probe as page
from metagrad.learner.checkpoint import save
from metagrad.learner.config import MetaGradientConfig
from metagrad.learner.schedule import Batch
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import reference_meta_gradient
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp
from metagrad.optimizers import Adam, Sgd
from metagrad.types import Trajectory

CPU = torch.device("cpu")


def line_experiment(**changes: Any) -> Experiment:
    """One snake on a board of three cells, one step: every trajectory can be listed."""
    return Experiment(
        name="line",
        description="",
        env=SnakeConfig(rows=1, columns=3),
        network=Mlp(hidden=6),
        optimizer=Sgd(learning_rate=0.5),
        meta=MetaGradientConfig(n=1, surrogate="ad", optimizer=Adam(learning_rate=1e-3)),
        outer=OuterObjective(gamma=0.9, lambda_=0.9, critic="inner"),
        meta_parameters=A2cLoss(
            gamma=MetaParameter(initial=0.7),
            lambda_=MetaParameter(initial=0.5),
            value_coefficient=MetaParameter(initial=0.5),
            entropy_coefficient=MetaParameter(initial=0.3),
        ),
        **{"environments": 1, "rollout_length": 1, "updates": 10, "actors": 1, "topology": "colocated"} | changes,
    )


def checkpoint_of(experiment: Experiment, scale: float = 1.0) -> dict[str, Any]:
    """As `Training.save` writes it, before any update; θ times `scale`."""
    algorithm = experiment.algorithm(probe(experiment.env))
    state = algorithm.init(3, CPU)
    state = state._replace(theta=scale * state.theta)
    games = [Actor(setup).state() for setup in actor_setups(experiment, CPU, 0)]
    return {"learner": algorithm.to_tree(state), "actors": games}


def samples(experiment: Experiment, checkpoint: dict[str, Any], count: int, seed: int = 0) -> Tensor:
    return torch.stack(list(page.meta_gradient_samples(experiment, checkpoint, count, seed)))


def tiny(**changes: Any) -> Experiment:
    base = snake_12x12()
    small = {"environments": 4, "rollout_length": 3, "actors": 2, "topology": "colocated", "updates": 4}
    return replace(base, env=SnakeConfig(rows=4, columns=4), **small | changes)


def leaves(tree: Any) -> Iterator[Any]:
    match tree:
        case dict():
            for each in tree.values():
                yield from leaves(each)
        case list() | tuple():
            for each in tree:
                yield from leaves(each)
        case _:
            yield tree


def same(first: Any, second: Any) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(leaves(first), leaves(second), strict=True)
    )


@pytest.mark.parametrize("lookahead", ["continue", "fork", "separate"])
@pytest.mark.thinned(3)
def test_samples_are_distinct_repeatable_and_leave_the_checkpoint_alone(lookahead: str) -> None:
    experiment = tiny(lookahead=lookahead)
    checkpoint = checkpoint_of(experiment)
    before = copy.deepcopy(checkpoint)
    found = samples(experiment, checkpoint, 4, seed=5)
    assert same(checkpoint, before)
    assert found.shape == (4, 4)
    assert len({tuple(row) for row in found.tolist()}) == 4
    assert torch.equal(samples(experiment, checkpoint, 4, seed=5), found)
    assert torch.equal(samples(experiment, checkpoint, 2, seed=5), found[:2])  # one does not depend on how many follow
    other = samples(experiment, checkpoint, 4, seed=6)
    assert not set(found[:, 0].tolist()) & set(other[:, 0].tolist())


def test_every_pool_of_every_actor_and_sample_has_streams_of_its_own() -> None:
    experiment = tiny(lookahead="fork")
    [setup, _] = actor_setups(experiment, CPU, 0)
    common = replace(experiment, lookahead="continue")  # its checkpoint holds no look-ahead pool
    games = checkpoint_of(common)["actors"][0]
    streams, boards = [], []
    for index in (1, 2):
        for actor in (0, 1):
            own = page.restarted(replace(setup, index=actor, seed=(0, 0, index)), games).state()
            streams += [tuple(x.tolist()) for name, x in own.items() if name.endswith("generator")]
            boards.append([x for name, x in own.items() if name.startswith("real/") and not name.endswith("generator")])
    assert len(set(streams)) == len(streams) == 2 * 2 * 4
    stored = [x for name, x in games.items() if not name.endswith("generator")]
    assert all(same(board, stored) for board in boards)


def test_estimators_of_one_seed_start_from_the_same_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(actors=1)
    checkpoint = checkpoint_of(experiment)
    rollouts: list[Trajectory] = []
    merge = page.merge

    def recorded(*arguments: Any) -> Batch:
        batch = merge(*arguments)
        rollouts.append(batch.trajectory)
        return batch

    monkeypatch.setattr(page, "merge", recorded)
    for n in (1, 3):
        samples(replace(experiment, meta=replace(experiment.meta, n=n)), checkpoint, 1)
    assert [each.policy_version for each in rollouts] == [0, 1, 0, 1, 2, 3]
    assert same(rollouts[0], rollouts[2])
    assert same(rollouts[1], rollouts[3])
    assert not torch.equal(rollouts[0].action, rollouts[1].action)


def one_step(game: SnakeState, theta: Tensor, network: Any) -> list[tuple[float, Trajectory, SnakeState]]:
    """Every outcome of one step under π_θ with its probability: 4 actions, a new head in 3 cells, a fruit in 2."""
    board = make_board(SnakeConfig(rows=1, columns=3), CPU)
    before = observe_state(game, 1)
    log_probs = torch.log_softmax(network.apply(theta, before, policy.POLICY)["logits"], -1)[0]
    found: dict[bytes, tuple[float, Trajectory, SnakeState]] = {}
    for action in range(4):
        for head in (1 / 6, 3 / 6, 5 / 6):
            for fruit in (1 / 4, 3 / 4):
                chosen = torch.tensor([action])
                after, outcome = step_state(game, chosen, torch.tensor([[head], [fruit]]), board)
                observation = torch.stack([before, observe_state(after, 1)])
                trajectory = Trajectory(
                    observation=observation,
                    action=chosen[None],
                    reward=outcome.is_fruit_eaten.float()[None],
                    is_terminal=outcome.is_terminal[None],
                    is_truncated=torch.zeros(1, 1, dtype=torch.bool),
                    valid=torch.ones(1, 1, dtype=torch.bool),
                    behaviour_log_prob=log_probs[action].reshape(1, 1),
                    policy_version=0,
                )
                key = bytes([action]) + observation.numpy().tobytes()
                share = float(log_probs[action].exp()) / 6
                found[key] = (found.get(key, (0.0,))[0] + share, trajectory, after)
    return list(found.values())


def expected_meta_gradient(experiment: Experiment, checkpoint: dict[str, Any]) -> Tensor:
    """E ∂J/∂η for n = 1 by listing τ₀ and τ₁, each pair differentiated through the whole graph at once."""
    algorithm = experiment.algorithm(probe(experiment.env))
    state = algorithm.from_tree(checkpoint["learner"], CPU)
    environment = Snake(SnakeConfig(rows=1, columns=3), 1, 0)
    prefix = "real/environment/"
    [games] = checkpoint["actors"]
    environment.restore({name.removeprefix(prefix): x for name, x in games.items() if name.startswith(prefix)})
    total = torch.zeros(4, dtype=torch.float64)
    for share, first, game in one_step(environment._running(), state.theta, algorithm.network):
        theta = state.theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(algorithm.problem.loss(theta, state.eta, first)[0], theta)
        moved = theta.detach() - 0.5 * gradient
        for further, second, _ in one_step(game, moved, algorithm.network):
            found = reference_meta_gradient(
                algorithm.problem,
                lambda x, batch: algorithm.outer_loss(x, state.eta, batch),
                state.theta,
                state.optimizer,
                state.eta,
                [first],
                [(1.0, second)],
            )
            total += share * further * found.eta.double()
    return total


@pytest.mark.slow
def test_the_mean_is_the_expectation_over_all_trajectories() -> None:
    experiment = line_experiment()
    checkpoint = checkpoint_of(experiment, scale=2.0)
    exact = expected_meta_gradient(experiment, checkpoint)
    moments = page.meta_gradient_moments(experiment, checkpoint, 400, 0)
    error = (moments.m2 / (400 * 399)).sqrt()
    deviation = moments.mean - exact
    assert exact[1] == moments.mean[1] == 0.0  # λ is without effect in a single step
    learnt = torch.tensor([0, 2, 3])
    assert (deviation.abs()[learnt] < 3.5 * error[learnt]).all(), (exact, moments.mean, error)
    assert (exact.abs() > 4.0 * error)[learnt].any()  # and the test can tell it from 0


def test_moments_are_those_of_the_samples() -> None:
    experiment = tiny()
    checkpoint = checkpoint_of(experiment)
    found = samples(experiment, checkpoint, 5).double()
    moments = page.meta_gradient_moments(experiment, checkpoint, 5, 0)
    assert moments.samples == 5
    assert torch.allclose(moments.mean, found.mean(0))
    assert torch.allclose((moments.m2 / 4).sqrt(), found.std(0))


def test_what_cannot_be_probed_is_refused() -> None:
    experiment = tiny()
    checkpoint = checkpoint_of(experiment)

    def refused(changed: Experiment, tree: dict[str, Any]) -> str:
        with pytest.raises(ConfigurationError) as error:
            samples(changed, tree, 1)
        return str(error.value)

    assert "meta.n" in refused(replace(experiment, meta=replace(experiment.meta, n=0)), checkpoint)
    other = replace(experiment, network=replace(experiment.network, features=3))  # type: ignore[call-arg]
    assert "theta" in refused(other, checkpoint)
    assert "games of 2 actors" in refused(experiment, checkpoint | {"actors": checkpoint["actors"][:1]})
    assert "games of 2 actors" in refused(experiment, checkpoint | {"actors": [{}, {}]})
    assert "lookahead/" in refused(replace(experiment, lookahead="separate"), checkpoint)


def test_probes_of_a_run_are_kept_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny()
    checkpoint = checkpoint_of(experiment)
    for update in (2, 4):
        save(tmp_path / "checkpoints", update, checkpoint, keep=5)
    mixed = replace(experiment, meta=replace(experiment.meta, estimator="mix"))
    found = page.probe_run({"3": experiment, "3-mix": mixed}, tmp_path, (2, 4), 3, 1)
    assert list(found) == ["3", "3-mix"]
    assert found["3"]["updates"] == [2, 4]
    moments = page.meta_gradient_moments(mixed, checkpoint, 3, 1)
    assert found["3-mix"]["mean"][0] == pytest.approx(moments.mean.tolist(), rel=1e-5)
    assert found["3-mix"]["std"][1] == pytest.approx((moments.m2 / 2).sqrt().tolist(), rel=1e-5)
    calls: list[int] = []
    taken = page.meta_gradient_moments

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[2])
        return taken(*arguments)

    monkeypatch.setattr(page, "meta_gradient_moments", counted)
    (tmp_path / "probes" / "3-update4-samples3.json").unlink()
    assert page.probe_run({"3": experiment, "3-mix": mixed}, tmp_path, (2, 4), 3, 1) == found
    assert calls == [3]
    page.probe_run({"3": experiment}, tmp_path, (2,), 2, 1)  # of other counts nothing is taken
    assert calls == [3, 2]


def test_normalised_spread_by_hand() -> None:
    """Two points, two components: 1-step (1, 2) and (3, 2); another one (2, 8) and (3, 4)."""
    found = page.normalised_std([[2.0, 8.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 2.0]])
    assert found.ratio_of_means == pytest.approx((5 / 4 + 12 / 4) / 2)
    assert found.mean_of_ratios == pytest.approx((2 + 4 + 1 + 2) / 4)
