import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn

from metagrad.errors import ConfigurationError
from metagrad.networks import (
    AutoNetwork,
    HaikuMlp,
    ImpalaCnn,
    LinearPolicy,
    MemoryOnePair,
    Mlp,
    NatureCnn,
    Network,
    ParameterLayout,
    SnakeCnn,
    SnakeTorsoCnn,
    build_network,
)
from metagrad.observations import MixedShape, Observations

HEADS = ("logits", "value", "outer_value")
NETWORKS = {
    "mlp": (Mlp(hidden=6), (3,)),
    "mlp-normalised": (Mlp(hidden=5, layers=2, activation="elu", has_layer_norm=True), (3,)),
    "haiku-mlp": (HaikuMlp(hidden=5), (3,)),
    "auto-vector": (AutoNetwork(hidden=4), (3,)),
    "auto-picture": (AutoNetwork(picture_hidden=4), (2, 5, 4)),
    "auto-mixed": (AutoNetwork(hidden=4, layers=1, picture_hidden=4), MixedShape(((2, 5, 4),), 3)),
    "snake": (SnakeCnn(channels=2, policy_hidden=4, value_hidden=5), (3, 5, 5)),
    "snake-torso": (SnakeTorsoCnn(channels=2, features=6, head_hidden=5), (5, 4, 3)),
    "nature": (NatureCnn(hidden=3), (1, 36, 36)),
    "impala": (ImpalaCnn(hidden=5), (1, 7, 6)),
}


def sizes(network):
    """Number of parameters by the first part of their names."""
    counts = {}
    for name, shape in zip(network.layout.names, network.layout.shapes, strict=True):
        head = name.split(".")[0]
        counts[head] = counts.get(head, 0) + math.prod(shape)
    return counts


@pytest.fixture(params=NETWORKS)
def built(request):
    """(network, θ in float64, observations [4, ...])."""
    spec, shape = NETWORKS[request.param]
    network = build_network(spec, shape, 3, True)
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator).double()
    theta += 0.1 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    return network, theta, torch.randn(4, *shape, generator=generator, dtype=torch.float64)


def test_snake_has_the_sizes_of_the_release():
    network = build_network(SnakeCnn(), (6, 6, 5), 4, True)
    assert sizes(network) == {"logits": 27_716, "value": 58_433, "outer_value": 58_433}
    assert sizes(build_network(SnakeCnn(), (6, 6, 5), 4, False)) == {"logits": 27_716, "value": 58_433}


def test_nature_has_the_shapes_of_the_paper():
    network = build_network(NatureCnn(), (4, 84, 84), 18, True)
    shapes = dict(zip(network.layout.names, network.layout.shapes, strict=True))
    weights = [shape for name, shape in shapes.items() if name.startswith("torso") and name.endswith("weight")]
    assert weights == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]
    assert shapes["logits.weight"] == (18, 512)
    assert shapes["value.weight"] == shapes["outer_value.weight"] == (1, 512)
    assert network.layout.size == 8_224 + 32_832 + 36_928 + 1_606_144 + 18 * 513 + 2 * 513


def test_nature_sees_pixels_as_fractions():
    network = build_network(NatureCnn(hidden=8), (4, 84, 84), 3, False)
    theta = network.init(torch.Generator().manual_seed(0))
    pixels = torch.randint(256, (2, 4, 84, 84), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.testing.assert_close(
        network.apply(theta, pixels, ("value",))["value"], network.apply(theta, pixels.float(), ("value",))["value"]
    )
    parameters = network.layout.unflatten(theta)
    first = nn.functional.conv2d(pixels / 255.0, parameters["torso.0.weight"], parameters["torso.0.bias"], stride=4)
    second = nn.functional.conv2d(first.relu(), parameters["torso.2.weight"], parameters["torso.2.bias"], stride=2)
    third = nn.functional.conv2d(second.relu(), parameters["torso.4.weight"], parameters["torso.4.bias"]).relu()
    hidden = (third.flatten(1) @ parameters["torso.7.weight"].T + parameters["torso.7.bias"]).relu()
    expected = hidden @ parameters["logits.weight"].T + parameters["logits.bias"]
    torch.testing.assert_close(network.apply(theta, pixels, ("logits",))["logits"], expected)


def test_snake_torso_has_the_sizes_of_the_paper():
    network = build_network(SnakeTorsoCnn(), (12, 12, 5), 4, True)
    convolutions = (3 * 3 * 5 * 32 + 32) + (3 * 3 * 32 * 32 + 32)
    linear = 3 * 3 * 32 * 40 + 40  # 12 x 12, halved twice
    assert sizes(network) == {
        "torso": convolutions + linear,  # 22_280
        "logits": (40 * 30 + 30) + (30 * 4 + 4),
        "value": (40 * 30 + 30) + (30 + 1),
        "outer_value": (40 * 30 + 30) + (30 + 1),
    }
    assert sum(sizes(build_network(SnakeTorsoCnn(), (12, 12, 5), 4, False)).values()) == 22_280 + 1_354 + 1_261


def test_impala_has_the_sizes_of_the_paper():
    network = build_network(ImpalaCnn(), (4, 84, 84), 18, True)
    first = (9 * 4 * 16 + 16) + 4 * (9 * 16 * 16 + 16)
    second = (9 * 16 * 32 + 32) + 4 * (9 * 32 * 32 + 32)
    third = 5 * (9 * 32 * 32 + 32)
    linear = 11 * 11 * 32 * 256 + 256  # 84, 42, 21, 11
    assert first + second + third + linear == 1_089_232
    assert sizes(network) == {"torso": 1_089_232, "logits": 18 * 257, "value": 257, "outer_value": 257}
    assert sizes(build_network(ImpalaCnn(), (4, 84, 84), 18, False)) == {
        "torso": 1_089_232,
        "logits": 18 * 257,
        "value": 257,
    }


def test_impala_of_double_width():
    network = build_network(ImpalaCnn(width=2, hidden=7), (1, 8, 8), 3, False)
    shapes = dict(zip(network.layout.names, network.layout.shapes, strict=True))
    plain = [name for name in shapes if name.startswith("torso") and name.endswith("weight") and name.count(".") == 2]
    assert [shapes[name][:2] for name in plain] == [(32, 1), (64, 32), (64, 64), (7, 64)]
    assert shapes["logits.weight"] == (3, 7)


@pytest.mark.parametrize("shape", [(3, 12, 5), (12, 3, 5), (1, 1, 1)])
def test_a_board_too_small_to_pool_twice_is_refused(shape):
    given = re.escape(str([*shape]))
    with pytest.raises(
        ConfigurationError, match=rf"needs .*rows ≥ 4, columns ≥ 4.* the environment gives {given}; use"
    ):
        build_network(SnakeTorsoCnn(), shape, 4, True)
    build_network(SnakeTorsoCnn(), (4, 4, 1), 4, True)


def test_the_network_is_chosen_by_the_shape():
    def names(network):
        return {name.split(".")[0] for name in network.layout.names}

    auto = AutoNetwork(hidden=4, picture_hidden=4)
    vectors = build_network(auto, (3,), 2, True)
    assert sizes(vectors) == {"logits": 16 + 20 + 10, "value": 16 + 20 + 5, "outer_value": 16 + 20 + 5}
    nature, large = (build_network(spec, (3, 36, 40), 2, True) for spec in (NatureCnn(hidden=4), auto))
    assert (large.layout.names, large.layout.shapes) == (nature.layout.names, nature.layout.shapes)
    small = build_network(auto, (3, 35, 40), 2, True)
    assert sizes(small)["torso"] == (27 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 18 * 20 + 1) * 4
    for shape, dtype in (((6, 6, 5), torch.float32), ((2, 3), torch.uint8)):
        with pytest.raises(ConfigurationError, match=r"^network = 'AutoNetwork': knows vectors and pictures"):
            auto.check_observations(shape, dtype)


def test_pictures_and_numbers_meet_in_one_trunk():
    """Against every observation by itself, layer by layer in torch's own convolutions."""
    shape = MixedShape(((3, 36, 40), (1, 5, 6)), 2)
    spec = AutoNetwork(hidden=5, layers=2, picture_hidden=4, activation="elu")
    network = build_network(spec, shape, 3, True)
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator).double()
    theta += 0.1 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    large = torch.randint(0, 256, (4, 3, 36, 40), generator=generator).double()
    small = torch.randint(0, 256, (4, 1, 5, 6), generator=generator).double()
    numbers = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    parts = network.layout.unflatten(theta)

    def layer(name, x, apply=torch.nn.functional.linear, **options):
        return apply(x, parts[f"{name}.weight"], parts[f"{name}.bias"], **options)

    convolve, relu = torch.nn.functional.conv2d, torch.relu
    for b in range(4):
        of_large, of_small = "torso.0.of_pictures.0", "torso.0.of_pictures.1"
        x = relu(layer(f"{of_large}.0", large[b : b + 1] / 255, convolve, stride=4))
        x = relu(layer(f"{of_large}.2", x, convolve, stride=2))
        x = relu(layer(f"{of_large}.7", relu(layer(f"{of_large}.4", x, convolve)).flatten(1)))
        y = relu(layer(f"{of_small}.0", small[b : b + 1] / 255, convolve, padding=1))
        y = relu(layer(f"{of_small}.5", relu(layer(f"{of_small}.2", y, convolve, stride=2, padding=1)).flatten(1)))
        features = torch.cat([x, y, numbers[b : b + 1]], 1)
        for name in ("torso.2", "torso.4"):
            features = torch.nn.functional.elu(layer(name, features))
        seen = torch.cat([large[b].flatten(), small[b].flatten(), numbers[b]])[None]
        outputs = network.apply(theta, seen, HEADS)
        torch.testing.assert_close(outputs["logits"], layer("logits", features))
        for head in ("value", "outer_value"):
            torch.testing.assert_close(outputs[head], layer(head, features).squeeze(-1))


def test_a_mixed_shape_stays_one_in_other_processes():
    shape = MixedShape(((3, 4, 5),), 2)
    for other in (pickle.loads(pickle.dumps(shape)), copy.deepcopy(shape)):
        assert (other, other.pictures, other.numbers) == ((62,), ((3, 4, 5),), 2)


def test_observations_fit_by_the_number_and_length_of_their_axes():
    boards = Observations.boards(4)
    assert [boards.fit(shape) for shape in ((4, 4, 1), (3, 4, 1), (4, 4, 0))] == [True, False, False]
    assert str(Observations.pixels()) == "pixels (uint8) [channels, height, width]"


def test_layers_of_an_mlp():
    spec = Mlp(hidden=4, layers=3, has_layer_norm=True)
    assert sizes(build_network(spec, (3,), 2, False))["torso"] == 16 + 20 + 20 + 3 * 8
    observation = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    outputs = []
    for activation, function in (("tanh", torch.tanh), ("relu", torch.relu), ("elu", torch.nn.functional.elu)):
        network = build_network(Mlp(hidden=4, activation=activation), (3,), 2, False)
        theta = network.init(torch.Generator().manual_seed(0))
        parts = network.layout.unflatten(theta)
        features = function(observation @ parts["torso.1.weight"].T + parts["torso.1.bias"])
        outputs.append(features @ parts["logits.weight"].T + parts["logits.bias"])
        torch.testing.assert_close(network.apply(theta, observation, ("logits",))["logits"], outputs[-1])
    assert not torch.equal(outputs[0], outputs[1])


def test_output_shapes_and_selection(built):
    network, theta, observation = built
    outputs = network.apply(theta, observation, HEADS)
    assert {head: tuple(x.shape) for head, x in outputs.items()} == {
        "logits": (4, 3),
        "value": (4,),
        "outer_value": (4,),
    }
    for head in HEADS:
        alone = network.apply(theta, observation, (head,))
        assert list(alone) == [head]
        assert torch.equal(alone[head], outputs[head])


def test_asking_for_a_head_that_was_not_built():
    network = build_network(Mlp(), (3,), 2, False)
    with pytest.raises(ConfigurationError, match="no outer critic"):
        network.apply(network.init(torch.Generator()), torch.zeros(1, 3), ("outer_value",))


@pytest.mark.parametrize("head", HEADS)
def test_which_parameters_a_head_trains(built, head):
    network, theta, observation = built
    gradient = torch.func.grad(lambda theta: network.apply(theta, observation, HEADS)[head].square().sum())(theta)
    trained = {name for name, g in network.layout.unflatten(gradient).items() if g.abs().max() > 0}
    is_shared = any(name.startswith("torso") for name in network.layout.names)
    # The outer critic looks at the torso's features and must not shape them.
    expected = {head, "torso"} if is_shared and head != "outer_value" else {head}
    assert {name.split(".")[0] for name in trained} == expected


def test_layout_round_trip(built):
    network, theta, _ = built
    tensors = network.layout.unflatten(theta)
    assert tuple(tensors) == network.layout.names
    assert tuple(tuple(x.shape) for x in tensors.values()) == network.layout.shapes
    assert torch.equal(network.layout.flatten(dict(reversed(tensors.items()))), theta)
    assert theta.shape == (network.layout.size,)
    assert all(x.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr() for x in tensors.values())


def test_layout_of_scalars_and_missing_names():
    layout = ParameterLayout(("a", "b"), ((), (2, 3)))
    assert layout.size == 7
    assert layout.unflatten(torch.arange(7.0))["a"].shape == ()
    with pytest.raises(KeyError):
        layout.flatten({"a": torch.zeros(())})


@pytest.mark.parametrize("name", NETWORKS)
def test_init_depends_on_the_generator_alone(name):
    spec, shape = NETWORKS[name]
    first = build_network(spec, shape, 3, True)
    theta = first.init(torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    assert torch.equal(theta, first.init(torch.Generator().manual_seed(3)))
    assert torch.equal(theta, build_network(spec, shape, 3, True).init(torch.Generator().manual_seed(3)))
    assert not torch.equal(theta, first.init(torch.Generator().manual_seed(4)))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(theta, first.init(generator))
    assert not torch.equal(theta, first.init(generator)), "the generator moves on"


def test_init_returns_a_tensor_of_its_own():
    network = build_network(Mlp(), (3,), 2, False)
    theta = network.init(torch.Generator().manual_seed(0))
    assert not theta.requires_grad
    kept = theta.clone()
    network.init(torch.Generator().manual_seed(1))
    assert torch.equal(theta, kept)


@pytest.mark.parametrize("spec", [SnakeCnn(), SnakeTorsoCnn()])
def test_haiku_init(spec):
    network = build_network(spec, (6, 6, 5), 4, True)
    for name, x in network.layout.unflatten(network.init(torch.Generator().manual_seed(0))).items():
        if name.endswith("bias"):
            assert (x == 0.0).all()
            continue
        scale = 1.0 / math.sqrt(x[0].numel())
        assert x.abs().max() <= 2.0 * scale
        if x.numel() > 1_000:
            # A normal truncated at two standard deviations has .8796 of the standard deviation, and reaches its ends.
            tolerance = 3.0 / math.sqrt(x.numel())
            assert x.std().item() == pytest.approx(0.8796 * scale, rel=tolerance)
            assert x.abs().max() > 1.9 * scale
            assert x.mean().item() == pytest.approx(0.0, abs=tolerance * scale)


@pytest.mark.parametrize("name", ["mlp", "nature", "impala"])
def test_orthogonal_init(name):
    spec, shape = NETWORKS[name]
    network = build_network(spec, shape, 3, True)
    for name, x in network.layout.unflatten(network.init(torch.Generator().manual_seed(0)).double()).items():
        if name.endswith("bias"):
            assert (x == 0.0).all()
            continue
        gain = {"logits": 0.01, "value": 1.0, "outer_value": 1.0}.get(name.split(".")[0], math.sqrt(2.0))
        matrix = x.flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(
            gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), rtol=1e-5, atol=1e-5 * gain**2
        )


def test_apply_under_function_transforms(built):
    network, theta, observation = built

    def total(theta, observation):
        outputs = network.apply(theta, observation, HEADS)
        return sum(x.square().sum() for x in outputs.values())

    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(total(theta, observation), theta)
    theta = theta.detach()
    torch.testing.assert_close(torch.func.grad(total)(theta, observation), gradient)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, slope = torch.func.jvp(lambda theta: total(theta, observation), (theta,), (direction,))
    torch.testing.assert_close(slope, gradient @ direction)
    population = torch.stack([theta, theta + 0.1 * direction])
    outputs = torch.func.vmap(lambda theta: network.apply(theta, observation, HEADS)["logits"])(population)
    for i in range(2):
        torch.testing.assert_close(outputs[i], network.apply(population[i], observation, HEADS)["logits"])
    per_sample = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))(theta, observation.unsqueeze(1))
    torch.testing.assert_close(per_sample.sum(0), gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_products(name, finite_differences, freeze):
    """Products of ∂²/∂θ² of all heads together, by every way of taking them; what is stopped stays where it was."""
    spec, shape = NETWORKS[name]
    network = build_network(spec, shape, 3, True)
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator).double()
    observation = 0.5 + torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    direction, other = torch.randn(2, len(theta), generator=generator, dtype=torch.float64)
    theta, direction = theta + 0.02 * other, direction / direction.norm()

    def loss(theta):
        outputs = network.apply(theta, observation, HEADS)
        return sum(x.tanh().square().sum() + x.sum() for x in outputs.values())

    def slope(theta):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(theta), theta)[0] @ other

    expected = finite_differences(freeze(slope, theta), theta, direction.unsqueeze(0), step=1e-3)
    assert expected.abs() > 1e-4
    gradient = torch.func.grad(loss)
    _, forward = torch.func.jvp(gradient, (theta,), (direction,))
    torch.testing.assert_close((forward @ other).unsqueeze(0), expected, rtol=1e-6, atol=0.0)
    theta.requires_grad_()
    (first,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    (second,) = torch.autograd.grad(first, theta, other)
    torch.testing.assert_close((second @ direction).unsqueeze(0), expected, rtol=1e-6, atol=0.0)
    _, pullback = torch.func.vjp(gradient, theta.detach())
    torch.testing.assert_close(pullback(other)[0], second)


class TwoLayers(nn.Module):
    """A user's own network: torch layers, and a parameter of its own with an init rule of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.uniform_(self.scale)

    def forward(self, observation, heads):
        x = self.head(torch.tanh(self.body(observation)) * self.scale)
        outputs = {"logits": x[:, :2], "value": x[:, 2]}
        return {head: outputs[head] for head in heads}


def test_a_module_of_your_own():
    network = Network(TwoLayers())
    assert network.layout.size == 4 * 3 + 4 + 3 * 4 + 3 + 4
    theta = network.init(torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(theta, network.init(torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    assert not torch.equal(theta, network.init(torch.Generator().manual_seed(1)))
    p, observation = network.layout.unflatten(theta), torch.ones(2, 3)
    hidden = torch.tanh(observation @ p["body.weight"].T + p["body.bias"]) * p["scale"]
    expected = hidden @ p["head.weight"].T + p["head.bias"]
    outputs = network.apply(theta, observation, ("logits", "value"))
    torch.testing.assert_close(outputs["logits"], expected[:, :2])
    torch.testing.assert_close(outputs["value"], expected[:, 2])


def test_a_module_that_cannot_be_drawn_anew_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(
        ConfigurationError, match=r"network = 'Bare': has parameters of its own and no reset_parameters"
    ):
        Network(Bare()).init(torch.Generator())


POLICIES = [(LinearPolicy(), (2,), 5), (MemoryOnePair(), (5,), 4)]
every_policy = pytest.mark.parametrize(("spec", "shape", "actions"), POLICIES, ids=lambda x: type(x).__name__)


@every_policy
def test_a_policy_alone_has_no_critics(spec, shape, actions):
    network = build_network(spec, shape, actions, False)
    theta = network.init(torch.Generator().manual_seed(0))
    assert network.apply(theta, torch.zeros(3, *shape), ("logits",))["logits"].shape == (3, actions)
    assert network.apply(theta, torch.zeros(3, *shape), ()) == {}
    for heads in (("value",), ("logits", "outer_value")):
        with pytest.raises(ConfigurationError, match=rf"^network = .*has no critics, and .*{heads[-1]} was asked for;"):
            network.apply(theta, torch.zeros(3, *shape), heads)
    with pytest.raises(ConfigurationError, match=rf"^network = '{type(spec).__name__}': has no critics"):
        build_network(spec, shape, actions, True)


def test_linear_policy_is_drawn_by_variance_scaling():
    network = build_network(LinearPolicy(init_scale=3e-2), (300,), 100, False)
    theta = network.init(torch.Generator().manual_seed(0))
    assert torch.equal(theta, network.init(torch.Generator().manual_seed(0)))
    assert not torch.equal(theta, network.init(torch.Generator().manual_seed(1)))
    weight, bias = network.layout.unflatten(theta).values()
    assert (weight.shape, bias.tolist()) == ((100, 300), [0.0] * 100)
    # 30,000 numbers: their standard deviation is known to about half a percent.
    assert weight.std().item() == pytest.approx(math.sqrt(3e-2 / 300), rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=4 * 0.01 / math.sqrt(30_000))
    cut = 2 * 0.01 / 0.8796
    assert 0.98 * cut < weight.abs().max() <= cut
    for scale in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigurationError, match=r"^network\.init_scale = "):
            LinearPolicy(init_scale=scale)


def test_linear_policy_is_a_matrix_and_a_bias():
    network = build_network(LinearPolicy(), (2,), 5, False)
    theta = torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observation = torch.tensor([[-1.0, 0.0], [3.0, 0.25]])
    expected = observation.double() @ theta[:10].view(5, 2).T + theta[10:]
    torch.testing.assert_close(network.apply(theta, observation, ("logits",))["logits"], expected)


def test_a_pair_starts_with_a_fair_coin_for_both():
    network = build_network(MemoryOnePair(), (5,), 4, False)
    assert network.init(torch.Generator().manual_seed(0)).tolist() == [0.0] * 10
    logits = network.apply(torch.zeros(10), torch.eye(5), ("logits",))["logits"]
    torch.testing.assert_close(logits.exp(), torch.full((5, 4), 0.25))


@pytest.mark.parametrize(("shape", "actions"), [((4,), 4), ((5,), 2), ((5, 1), 4), ((), 4)])
def test_a_pair_is_of_two_players_with_two_actions(shape, actions):
    with pytest.raises(ConfigurationError, match=r"^network = .*: sees one-hot states \(5,\) and moves two players"):
        build_network(MemoryOnePair(), shape, actions, False)


def test_parameters_of_first_order_keep_their_gradient_and_lose_its_derivative():
    network = build_network(SnakeCnn(channels=4, policy_hidden=8, value_hidden=8), (4, 4, 5), 4, True)
    theta = network.init(torch.Generator().manual_seed(0)).requires_grad_()
    observation = torch.rand(3, 4, 4, 5, generator=torch.Generator().manual_seed(1))
    critics = network.own_parameters_of_critics

    def derivatives(network):
        heads = network.apply(theta, observation, ("logits", "value"))
        loss = heads["logits"].square().sum() + heads["value"].square().sum()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), theta)
        return gradient, network.layout.unflatten(second)

    gradient, whole = derivatives(network)
    same_gradient, cut = derivatives(network.with_first_order(critics))
    assert torch.equal(same_gradient, gradient)
    used = [name for name in critics if not name.startswith("outer_value.")]
    assert used
    assert all(whole[name].abs().sum() > 0 and cut[name].abs().sum() == 0 for name in used)
    rest = set(network.layout.names) - set(critics)
    assert rest
    assert all(torch.equal(cut[name], whole[name]) for name in rest)


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize(("kind", "field"), [(Mlp, "hidden"), (SnakeCnn, "channels"), (SnakeTorsoCnn, "features")])
def test_layers_without_units_are_refused(kind, field, size):
    with pytest.raises(ConfigurationError, match=rf"^network\.{field} = {size}: must be at least 1"):
        build_network(kind(**{field: size}), (6, 6, 5), 4, False)
