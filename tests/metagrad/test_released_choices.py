"""Checks what released code holds constant, as choices of a learner, against differences of exactly that map."""

from dataclasses import replace

import pytest
import torch

from metagrad import autodiff
from metagrad.actor_critic import A2cLoss
from metagrad.bootstrap import LastUpdate, bootstrap_target, matching_loss
from metagrad.errors import ConfigurationError
from metagrad.learner.actor_critic import build_actor_critic
from metagrad.learner.config import BootstrapConfig, LearnerConfig, MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter, hyperparameters
from metagrad.networks import Mlp, NatureCnn, build_network
from metagrad.optimizers import Adam, RmsProp
from metagrad.unroll import inner_update

STEPS, BATCH, SHAPE, ACTIONS = 5, 4, (3,), 3
LOSSES = A2cLoss(
    gamma=MetaParameter(initial=0.8),
    lambda_=MetaParameter(initial=0.7),
    value_coefficient=MetaParameter(initial=0.5),
    entropy_coefficient=MetaParameter(initial=0.05),
)
CLIP = {"max_gradient_norm": 0.3}
OPTIMIZERS = {
    "rmsprop": RmsProp(learning_rate=0.02, **CLIP),
    "adam": Adam(learning_rate=0.02, **CLIP),
}
OUTER_GAMMA = 0.95


class Setting:
    """A learner in float64 with moments away from 0, and J(η) of its next update as a plain map."""

    def __init__(
        self,
        make_trajectory,
        network=None,
        shape=SHAPE,
        losses="a2c",
        optimizer="adam",
        critic="inner",
        is_clip_constant=False,
        **meta,
    ):
        generator = torch.Generator().manual_seed(5)
        config = LearnerConfig(
            optimizer=replace(OPTIMIZERS[optimizer], is_clip_coefficient_constant=is_clip_constant),
            meta=MetaGradientConfig(optimizer=Adam(learning_rate=1e-3), **meta),
            outer=OuterObjective(gamma=OUTER_GAMMA, lambda_=0.9, critic=critic),
            meta_parameters=LOSSES.streamed() if losses == "vtrace" else LOSSES,
        )
        built = build_network(network or Mlp(hidden=6), shape, ACTIONS, critic == "outer")
        self.agent = build_actor_critic(config, built, shape, ACTIONS)
        self.batches = [make_trajectory(generator, STEPS, BATCH, shape, ACTIONS) for _ in range(8)]
        if isinstance(network, NatureCnn):
            self.batches = [batch._replace(observation=batch.observation * 255.0) for batch in self.batches]
        state = self.agent.init(0, torch.device("cpu"))
        theta, eta = state.theta.double(), state.eta.double()
        theta += 0.1 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        optimizer = self.agent.problem.optimizer.init(theta)
        state = state._replace(
            theta=theta, eta=eta, optimizer=optimizer, meta_optimizer=self.agent.meta_optimizer.init(eta)
        )
        if self.agent.meta.bootstrap.updates:
            state = state._replace(target_optimizer=optimizer)
        for _ in range(2):
            self.state = state
            state, _ = self.agent.update(state, self.sample)
        self.state = state._replace(carry=None)

    def sample(self, snapshot, _step):
        return self.batches[snapshot.version - self.state.version]

    def estimate(self):
        return self.agent.estimate_meta_gradient(self.state, self.sample)

    def objective(self, eta):
        """J by plain updates; what the learner is told to hold constant is declared so here, too."""
        agent, theta, optimizer, total = self.agent, self.state.theta, self.state.optimizer, 0.0
        for i, weight in enumerate(agent.weights):
            if i == 1 and agent.meta.is_kept_state_constant:
                optimizer = optimizer._replace(moments=tuple(map(autodiff.stop_gradient, optimizer.moments)))
            update = inner_update(agent.problem, theta, optimizer, eta, self.batches[i], keep_graph=False)
            theta, optimizer = update.theta, update.state
            with torch.no_grad():
                if weight and not agent.meta.bootstrap.updates:
                    total = total + weight * agent.outer_loss(theta, eta, self.batches[i + 1])[0]
        return self.distance(eta, theta, optimizer) if agent.meta.bootstrap.updates else total

    def distance(self, eta, theta, optimizer):
        agent, n, bootstrap = self.agent, self.agent.meta.n, self.agent.meta.bootstrap
        target = bootstrap_target(
            agent.problem,
            lambda x, batch: agent.outer_loss(x, eta, batch),
            theta,
            optimizer,
            eta,
            bootstrap.updates,
            lambda _theta, j: self.batches[n + j],
            LastUpdate(agent.problem.optimizer, self.state.target_optimizer),
        )
        with torch.no_grad():
            network = agent.inner_network(eta)
            return matching_loss(network, theta, target.theta, self.batches[n + bootstrap.updates], bootstrap)[0]


@pytest.mark.pairs(
    n=(2, 3),
    optimizer=tuple(OPTIMIZERS),
    kind=("n-step", "mix", "bootstrap"),
    strategy=("discard", "sequential"),
    losses=("a2c", "vtrace"),
    critic=("inner", "outer"),
    embedding=(None, 4),
    is_clip_constant=(False, True),
    is_kept_state_constant=(False, True),
)
@pytest.mark.thinned(3)
def test_meta_gradient_is_the_derivative_with_the_same_quantities_frozen(
    setting,
    freeze,
    finite_differences,
    n,
    optimizer,
    kind,
    strategy,
    losses,
    critic,
    embedding,
    is_clip_constant,
    is_kept_state_constant,
    assert_relative,
):
    if strategy == "sequential":
        is_kept_state_constant = False  # refused there
    options = {
        "network": Mlp(hidden=6, gamma_embedding=embedding),
        "n": n,
        "optimizer": optimizer,
        "strategy": strategy,
        "losses": losses,
        "critic": critic,
        "is_clip_constant": is_clip_constant,
        "is_kept_state_constant": is_kept_state_constant,
    }
    if kind == "bootstrap":
        options |= {"bootstrap": BootstrapConfig(updates=2, value_coefficient=0.4)}
    else:
        options |= {"estimator": kind}
    retained, recomputed = (setting(product=product, **options) for product in ("retain", "recompute"))
    actual = retained.estimate()
    assert_relative(recomputed.estimate(), actual, 1e-10)
    expected = finite_differences(freeze(retained.objective, retained.state.eta), retained.state.eta)
    assert_relative(actual, expected, 1e-6)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_each_choice_makes_a_difference(setting, product):
    plain = setting(n=3, product=product).estimate()
    for choice in (
        {"is_clip_constant": True},
        {"is_kept_state_constant": True},
        {"network": Mlp(hidden=6, gamma_embedding=4)},
    ):
        other = setting(n=3, product=product, **choice).estimate()
        assert (other - plain).norm() > 1e-2 * plain.norm(), choice


def test_a_trace_sees_the_kept_state_too(setting, assert_relative):
    trace = {"n": 3, "estimator": "trace", "mu": 0.8}
    plain, retained, recomputed = (
        setting(**trace, is_kept_state_constant=is_constant, product=product).estimate()
        for is_constant, product in ((False, "retain"), (True, "retain"), (True, "recompute"))
    )
    assert_relative(recomputed, retained, 1e-10)
    assert (plain - retained).norm() > 1e-2 * plain.norm()


def test_through_the_networks_of_the_release(setting, freeze, finite_differences, assert_relative):
    network = NatureCnn(hidden=8, gamma_embedding=4)
    look_ahead = setting(network=network, shape=(4, 36, 36), n=2, strategy="sequential", is_clip_constant=True)
    expected = finite_differences(freeze(look_ahead.objective, look_ahead.state.eta), look_ahead.state.eta)
    assert_relative(look_ahead.estimate(), expected, 1e-6)


def values_under(discount, theta, observation):
    """Inner values of the two-layer critic, written out: w ReLU(M [x; E γ + e] + m) + b on the torso's features x."""
    features = torch.tanh(observation @ theta["torso.1.weight"].T + theta["torso.1.bias"])
    embedded = (theta["value.embedding.weight"][:, 0] * discount + theta["value.embedding.bias"]).expand(
        len(features), -1
    )
    mixed = torch.cat([features, embedded], 1) @ theta["value.mixture.weight"].T + theta["value.mixture.bias"]
    return (mixed.clamp(min=0.0) @ theta["value.value.weight"].T + theta["value.value.bias"])[:, 0]


@pytest.mark.parametrize("critic", ["inner", "outer"])
def test_the_inner_loss_has_values_under_gamma_and_the_outer_one_under_its_own(setting, critic, monkeypatch):
    look_ahead = setting(network=Mlp(hidden=6, gamma_embedding=4), n=1, critic=critic)
    agent, state, batch = look_ahead.agent, look_ahead.state, look_ahead.batches[0]
    seen = {}
    for name in ("inner_loss", "outer_loss"):

        def spy(self, network, *rest, name=name):
            seen[name] = network
            raise StopIteration

        monkeypatch.setattr(A2cLoss, name, spy)
    with pytest.raises(StopIteration):
        agent.problem.loss(state.theta, state.eta, batch)
    with pytest.raises(StopIteration):
        agent.outer_loss(state.theta, state.eta, batch)
    seen["matching"] = agent.inner_network(state.eta)
    gamma = hyperparameters(agent.declaration, state.eta)["gamma"].item()
    theta, observation = agent.network.layout.unflatten(state.theta), batch.observation[0]
    for name, discount in (("inner_loss", gamma), ("outer_loss", OUTER_GAMMA), ("matching", gamma)):
        actual = seen[name].apply(state.theta, observation, ("value",))["value"]
        torch.testing.assert_close(actual, values_under(discount, theta, observation), rtol=1e-12, atol=1e-14)


def test_acting_needs_no_discount_and_values_without_one_are_refused():
    network = build_network(Mlp(hidden=6, gamma_embedding=4), SHAPE, ACTIONS, True)
    theta, observation = network.init(torch.Generator().manual_seed(0)), torch.ones(2, *SHAPE)
    told = network.under(0.9)
    for head in ("logits", "outer_value"):
        there, here = (x.apply(theta, observation, (head,))[head] for x in (told, network))
        assert torch.equal(there, here)
    discount = torch.tensor([0.9], requires_grad=True)
    value = network.under(discount).apply(theta, observation, ("value",))["value"]
    assert not value.requires_grad, "the discount is a constant there, as in the release"
    assert torch.equal(value, told.apply(theta, observation, ("value",))["value"])
    with pytest.raises(ConfigurationError, match=r"^network = .*: has a critic .*; apply network\.under"):
        network.apply(theta, observation, ("value",))
    assert told.with_first_order(()).apply(theta, observation, ("value",))["value"].shape == (2,)


def test_a_network_that_is_not_told_stays_itself():
    network = build_network(Mlp(hidden=6), SHAPE, ACTIONS, True)
    assert network.under(0.9) is network
