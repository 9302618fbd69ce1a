import math
from dataclasses import fields, replace

import pytest
import torch

from metagrad.actor_critic import A2cLoss
from metagrad.intrinsic_reward import IntrinsicRewardLoss, intrinsic_reward, reward_network, reward_weights
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import ImpalaCnn, Mlp, NatureCnn, SnakeCnn, SnakeTorsoCnn, build_network
from metagrad.surrogates import SURROGATES

STEPS, BATCH, ACTIONS = 5, 4, 3
A2C = {"gamma": 0.8, "lambda": 0.7, "value_coefficient": 0.5, "entropy_coefficient": 0.01}
REWARD = Mlp(hidden=2)
HALF = MetaParameter(initial=0.5)
A2C_LOSS = A2cLoss(gamma=HALF, lambda_=HALF, value_coefficient=HALF, entropy_coefficient=HALF)
inner_loss = A2C_LOSS.inner_loss
OUTER = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
NETWORKS = {
    "mlp": (REWARD, (3,)),
    "snake": (SnakeCnn(channels=4, policy_hidden=8, value_hidden=5), (4, 4, 5)),
    "snake-torso": (SnakeTorsoCnn(channels=4, features=8, head_hidden=8), (4, 4, 5)),
    "nature": (NatureCnn(hidden=16), (1, 36, 36)),
    "impala": (ImpalaCnn(hidden=16), (1, 12, 12)),
}


def intrinsic_loss(*arguments):
    """(those of `inner_loss`, spec)"""
    scalars = {f.name: HALF for f in fields(IntrinsicRewardLoss) if f.type is MetaParameter}
    return IntrinsicRewardLoss(**scalars, reward_network=arguments[-1]).inner_loss(*arguments[:-1])


def tensors(values):
    return {name: torch.tensor([x], dtype=torch.float64) for name, x in values.items()}


@pytest.fixture(scope="module")
def problem(make_trajectory):
    """(network, θ, φ, trajectory)."""
    generator = torch.Generator().manual_seed(0)
    network = build_network(Mlp(hidden=5), (3,), ACTIONS, True)
    theta = network.init(generator).double()
    theta += 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(reward_network(REWARD, (3,), ACTIONS).size, generator=generator, dtype=torch.float64)
    return network, theta, weights, make_trajectory(generator, STEPS, BATCH, (3,), ACTIONS)


def mixture(extrinsic, intrinsic, weights):
    coefficients = {"extrinsic_coefficient": extrinsic, "intrinsic_coefficient": intrinsic}
    return tensors(A2C | coefficients) | {"reward_weights": weights}


def test_an_mlp_by_hand(problem):
    _, _, weights, trajectory = problem
    hidden, bias, out, out_bias = weights.split([6, 2, 6, 3])
    activation = torch.tanh(trajectory.observation[:-1] @ hidden.view(2, 3).T + bias)
    outputs = torch.tanh(activation @ out.view(3, 2).T + out_bias)
    expected = outputs.gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)
    expected[~trajectory.valid] = 0.0
    torch.testing.assert_close(intrinsic_reward(REWARD, weights, trajectory, ACTIONS), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_its_weights_are_those_that_it_reads(name):
    spec, shape = NETWORKS[name]
    reward = reward_network(spec, shape, ACTIONS)
    generator = torch.Generator().manual_seed(1)
    weights = reward.init(generator)
    observation = torch.rand(64, *shape, generator=generator) * (255.0 if name in ("nature", "impala") else 1.0)
    action = torch.arange(64) % ACTIONS
    policy = build_network(spec, shape, ACTIONS, has_outer_critic=False)
    shapes = zip(policy.layout.names, policy.layout.shapes, strict=True)
    read = {n: math.prod(s) for n, s in shapes if not n.startswith("value")}
    assert reward.size == sum(read.values())

    def total(x):
        return (reward.apply(x, observation, action) * torch.linspace(-1.0, 1.0, 64)).sum()

    gradient = torch.func.grad(total)(weights)
    for block, size in zip(gradient.split(list(read.values())), read.items(), strict=True):
        assert block.abs().max() > 0.0, size


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_drawn_from_the_generator_and_begins_near_zero(name):
    spec, shape = NETWORKS[name]
    vector = reward_weights(spec, shape, ACTIONS)
    draws = [vector.init(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (vector.size,)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(init_eta({"x": vector}, generator=torch.Generator().manual_seed(0)), draws[0])
    if name in ("mlp", "nature", "impala"):  # heads of a small gain
        reward = reward_network(spec, shape, ACTIONS)
        values = reward.apply(draws[0], torch.rand(8, *shape), torch.arange(8) % ACTIONS)
        assert 0.0 < values.abs().max() < 0.1


def test_it_is_bounded(problem):
    _, _, weights, trajectory = problem
    reward = intrinsic_reward(REWARD, 50.0 * weights, trajectory, ACTIONS)
    assert reward.abs().max() <= 1.0
    assert (reward[trajectory.valid].abs() > 0.9).any()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_without_intrinsic_reward_it_is_the_a2c_loss(problem, surrogate):
    network, theta, weights, trajectory = problem
    expected = inner_loss(network, theta, tensors(A2C), trajectory, SURROGATES[surrogate], OUTER)
    hyper = mixture(1.0, 0.0, weights)
    ours = intrinsic_loss(network, theta, hyper, trajectory, SURROGATES[surrogate], OUTER, REWARD)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_policy_and_inner_critic_see_the_mixture_and_the_outer_critic_the_environments_reward(problem):
    network, theta, weights, trajectory = problem
    hyper = mixture(0.8, 0.4, weights)
    mixed = 0.8 * trajectory.reward + 0.4 * intrinsic_reward(REWARD, weights, trajectory, ACTIONS)

    def gradient(loss):
        return network.layout.unflatten(torch.func.grad(lambda x: loss(x)[0])(theta))

    lvc = SURROGATES["lvc"]
    ours = gradient(lambda x: intrinsic_loss(network, x, hyper, trajectory, lvc, OUTER, REWARD))
    on_mixture = gradient(lambda x: inner_loss(network, x, tensors(A2C), trajectory._replace(reward=mixed), lvc, OUTER))
    on_reward = gradient(lambda x: inner_loss(network, x, tensors(A2C), trajectory, lvc, OUTER))
    for name, x in ours.items():
        same, other = (on_reward, on_mixture) if name.startswith("outer_value") else (on_mixture, on_reward)
        torch.testing.assert_close(x, same[name], rtol=1e-10, atol=1e-12)
        assert (x - other[name]).abs().max() > 1e-3, name


def test_without_an_outer_critic_the_loss_is_that_of_the_mixture(problem):
    network, theta, weights, trajectory = problem
    outer = replace(OUTER, critic="inner")
    mixed = 0.8 * trajectory.reward + 0.4 * intrinsic_reward(REWARD, weights, trajectory, ACTIONS)
    torch.testing.assert_close(
        intrinsic_loss(network, theta, mixture(0.8, 0.4, weights), trajectory, SURROGATES["ad"], outer, REWARD),
        inner_loss(network, theta, tensors(A2C), trajectory._replace(reward=mixed), SURROGATES["ad"], outer),
        rtol=1e-12,
        atol=1e-14,
    )


def test_pixels_of_bytes_and_rewards_of_single_precision(make_trajectory):
    """As Atari gives them."""
    spec, shape = NETWORKS["nature"]
    generator = torch.Generator().manual_seed(0)
    trajectory = make_trajectory(generator, STEPS, BATCH, shape, ACTIONS)
    trajectory = trajectory._replace(
        observation=torch.randint(256, (STEPS + 1, BATCH, *shape), generator=generator, dtype=torch.uint8),
        reward=trajectory.reward.float(),
        behaviour_log_prob=trajectory.behaviour_log_prob.float(),
    )
    network = build_network(spec, shape, ACTIONS, True)
    declaration = {"reward_weights": reward_weights(spec, shape, ACTIONS)}
    hyper = {name: x.float() for name, x in mixture(1.0, 0.1, torch.zeros(0)).items()}
    hyper |= hyperparameters(declaration, init_eta(declaration, generator=generator))
    theta = network.init(generator)
    loss, _ = intrinsic_loss(network, theta, hyper, trajectory, SURROGATES["lvc"], OUTER, spec)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
