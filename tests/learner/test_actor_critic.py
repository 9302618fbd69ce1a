from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.actor_critic import A2cLoss
from metagrad.learner import actor_critic
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.config import BootstrapConfig, LearnerConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import hyperparameters
from metagrad.networks import Mlp, SnakeCnn, build_network
from metagrad.surrogates import SURROGATES
from metagrad.types import Trajectory, WeightSnapshot

MakeAlgorithm = Callable[..., ActorCritic]


def test_the_inner_loss_is_the_configured_one(make_algorithm: MakeAlgorithm, trajectory: Any) -> None:
    values = {}
    for surrogate in ("ad", "lvc"):
        algorithm = make_algorithm(n=1, surrogate=surrogate)
        state = algorithm.init(0, torch.device("cpu"))
        hyper = hyperparameters(algorithm.declaration, state.eta)
        outer = OuterObjective(gamma=0.99, lambda_=0.95, critic="outer")
        given = (algorithm.network, state.theta, hyper, trajectory(0), SURROGATES[surrogate], outer)
        expected, _ = algorithm.losses.inner_loss(*given)
        loss, _ = algorithm.problem.loss(state.theta, state.eta, trajectory(0))
        assert torch.equal(loss, expected)
        values[surrogate] = loss.item()
    assert values["ad"] != values["lvc"], "the two surrogates have other values, only equal gradients"


def test_weights_and_optimizers_follow_the_configuration(make_algorithm: MakeAlgorithm) -> None:
    assert make_algorithm(n=0).weights == ()
    assert make_algorithm(n=3).weights == (0.0, 0.0, 1.0)
    assert make_algorithm(n=2, estimator="mix", kappa=1.0).weights == (0.5, 0.5)
    algorithm = make_algorithm(n=1)
    one = torch.ones(1)
    theta, _ = algorithm.meta_optimizer.update(one, algorithm.meta_optimizer.init(one), one, one)
    torch.testing.assert_close(theta, torch.tensor([0.9]))  # Adam's first step is its learning rate


def test_the_outer_loss_is_on_the_outer_objective(make_algorithm: MakeAlgorithm, trajectory: Any) -> None:
    algorithm = make_algorithm(n=1)
    state = algorithm.init(0, torch.device("cpu"))
    biased = replace(algorithm, outer=replace(algorithm.outer, critic="inner"))
    assert algorithm.outer.uses_outer_critic
    for chosen in (algorithm, biased):
        expected, _ = algorithm.losses.outer_loss(algorithm.network, state.theta, {}, trajectory(0), chosen.outer)
        assert torch.equal(chosen.outer_loss(state.theta, state.eta, trajectory(0))[0], expected)
    losses = [chosen.outer_loss(state.theta, state.eta, trajectory(0))[0] for chosen in (algorithm, biased)]
    assert not torch.equal(*losses)


def test_an_outer_loss_with_a_kl_term_keeps_the_look_ahead_near_its_start(
    config: Any, sampler: Any, trajectory: Any
) -> None:
    """KL(π_θ₁ || π_θ₀), state by state, at the outer batch's states."""
    network = build_network(Mlp(hidden=8), (5,), 3, True)
    base = config(n=1)
    near = replace(base, outer=replace(base.outer, kl_coefficient=1e3))
    results = {}
    for name, learner in (("plain", base), ("near", near)):
        algorithm = build_actor_critic(learner, network, (5,), 3)
        state = algorithm.init(0, torch.device("cpu"))
        new, metrics = algorithm.update(state, sampler)
        results[name] = metrics
    batch = trajectory(1)

    def kl(theta: Tensor, start: Tensor) -> float:
        p, q = (network.apply(x, batch.observation[:-1].flatten(0, 1), ("logits",))["logits"] for x in (theta, start))
        p, q = torch.softmax(p, -1), torch.softmax(q, -1)
        rows = [sum(p[i, a] * (p[i, a].log() - q[i, a].log()) for a in range(3)) for i in range(len(p))]
        return float(sum(x for x, valid in zip(rows, batch.valid.flatten(), strict=True) if valid) / batch.valid.sum())

    difference = results["near"].scalars["loss/outer"] - results["plain"].scalars["loss/outer"]
    assert difference == pytest.approx(1e3 * kl(new.theta, state.theta), rel=1e-3)
    assert results["near"].meta_gradient != results["plain"].meta_gradient
    far = state.theta + torch.randn(state.theta.shape, generator=torch.Generator().manual_seed(0))
    there, here = (algorithm.outer_loss(state.theta, state.eta, batch, x)[0] for x in (far, state.theta))
    assert (there - here).item() == pytest.approx(1e3 * kl(state.theta, far), rel=1e-4)
    with pytest.raises(AssertionError, match="before the look-ahead"):
        algorithm.outer_loss(state.theta, state.eta, batch)


class Boards:
    """Snake boards, actions and rewards, a function of the version alone."""

    def __call__(self, snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        generator = torch.Generator().manual_seed(snapshot.version)

        def uniform() -> Tensor:
            return torch.rand(4, 6, generator=generator, dtype=torch.float64)

        return Trajectory(
            observation=(torch.rand(5, 6, 3, 3, 5, generator=generator) < 0.3).double(),
            action=torch.randint(4, (4, 6), generator=generator),
            reward=uniform(),
            is_terminal=uniform() < 0.2,
            is_truncated=torch.zeros(4, 6, dtype=torch.bool),
            valid=uniform() < 0.9,
            behaviour_log_prob=-uniform(),
            policy_version=snapshot.version,
        )


def boards_agent(config: LearnerConfig) -> ActorCritic:
    """Configure separate networks for the policy and both critics."""
    spec = SnakeCnn(channels=3, policy_hidden=4, value_hidden=4)
    return build_actor_critic(config, build_network(spec, (3, 3, 5), 4, config.outer.critic == "outer"), (3, 3, 5), 4)


def meta_gradient_of(algorithm: ActorCritic) -> Tensor:
    state = algorithm.init(0, torch.device("cpu"))
    state = state._replace(theta=state.theta.double(), eta=state.eta.double())
    state = state._replace(optimizer=algorithm.problem.optimizer.init(state.theta))
    if algorithm.meta.bootstrap.updates:
        state = state._replace(target_optimizer=algorithm.problem.optimizer.init(state.theta))
    return algorithm.estimate_meta_gradient(state, Boards())


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize(
    "meta",
    [
        {"n": 1},
        {"n": 3},
        {"n": 3, "surrogate": "ad"},
        {"n": 3, "estimator": "mix"},
        {"n": 3, "estimator": "trace", "mu": 0.9},
        {"n": 2, "bootstrap": BootstrapConfig(updates=1)},
        {"n": 2, "critic": "inner"},
        {"n": 2, "losses": "vtrace"},
        {"n": 2, "terms": {"entropy_coefficient": 0.1, "kl_coefficient": 1.0}},
    ],
    ids=str,
)
@pytest.mark.thinned(3)
def test_products_that_leave_out_critics_give_the_same_meta_gradient(
    monkeypatch: pytest.MonkeyPatch, config: Any, product: Any, meta: dict[str, Any]
) -> None:
    meta = dict(meta)
    config = config(**{"product": product} | {k: v for k, v in meta.items() if k not in ("critic", "losses", "terms")})
    config = replace(config, optimizer=replace(config.optimizer, max_gradient_norm=None))
    terms = meta.get("terms", {})
    config = replace(config, outer=replace(config.outer, critic=meta.get("critic", "outer"), **terms))
    if meta.get("losses"):
        config = replace(config, meta_parameters=config.meta_parameters.streamed())
    left_out = actor_critic._beyond_adjoints(config, boards_agent(config).network)
    assert left_out
    assert not any(name.startswith("logits.") for name in left_out)
    found = meta_gradient_of(boards_agent(config))
    monkeypatch.setattr(actor_critic, "_beyond_adjoints", lambda *_: ())
    expected = meta_gradient_of(boards_agent(config))
    assert expected.abs().min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_critics_that_an_adjoint_reaches_are_left_in(config: Any) -> None:
    config = config(n=1)
    network = boards_agent(config).network
    assert config.optimizer.max_gradient_norm is not None
    assert actor_critic._beyond_adjoints(config, network) == ()
    free = replace(config, optimizer=replace(config.optimizer, max_gradient_norm=None))
    assert actor_critic._beyond_adjoints(free, network)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Other(A2cLoss):
        """Somebody's own, which may be anything."""

    other = Other(**{f.name: getattr(free.meta_parameters, f.name) for f in fields(free.meta_parameters)})
    assert actor_critic._beyond_adjoints(replace(free, meta_parameters=other), network) == ()
    valued = replace(free, outer=replace(free.outer, value_coefficient=0.5))
    assert actor_critic._beyond_adjoints(valued, network) == ()
    matched = replace(free.meta, bootstrap=BootstrapConfig(updates=1, value_coefficient=0.5))
    assert actor_critic._beyond_adjoints(replace(free, meta=matched), network) == ()
    shared = build_network(Mlp(hidden=3), (5,), 3, has_outer_critic=True)
    assert actor_critic._beyond_adjoints(free, shared) == ()
