"""Networks against forward passes that are written out element by element."""

import math

import pytest
import torch
from torch import nn

from metagrad import network_modules as modules
from metagrad.networks import ImpalaCnn, SnakeCnn, SnakeTorsoCnn, build_network

HEADS = ("logits", "value", "outer_value")


def slow_convolution(board, weight, bias, stride=1):
    """SAME convolution by XLA's rule on one board [C, H, W], element by element."""
    kernel = weight.shape[-1]
    out = [math.ceil(size / stride) for size in board.shape[1:]]
    low = [max((o - 1) * stride + kernel - size, 0) // 2 for o, size in zip(out, board.shape[1:], strict=True)]
    result = torch.zeros(len(weight), *out, dtype=board.dtype)
    for i in range(out[0]):
        for j in range(out[1]):
            result[:, i, j] = bias
            for di in range(kernel):
                for dj in range(kernel):
                    row, column = i * stride - low[0] + di, j * stride - low[1] + dj
                    if 0 <= row < board.shape[1] and 0 <= column < board.shape[2]:
                        result[:, i, j] += weight[:, :, di, dj] @ board[:, row, column]
    return result


def slow_max_pooling(board, kernel, stride, low, out):
    """Maxima of windows that begin `low` cells before the board, [C, H, W] -> [C, *out]; cells outside do not count."""
    result = torch.zeros(len(board), *out, dtype=board.dtype)
    for channel in range(len(board)):
        for i in range(out[0]):
            for j in range(out[1]):
                rows = [row for row in range(i * stride - low, i * stride - low + kernel) if 0 <= row < board.shape[1]]
                columns = [c for c in range(j * stride - low, j * stride - low + kernel) if 0 <= c < board.shape[2]]
                result[channel, i, j] = max(board[channel, row, c].item() for row in rows for c in columns)
    return result


def problem(spec, shape):
    """(network, θ, its tensors by name, two observations), float64, every parameter of some size."""
    network = build_network(spec, shape, 3, True)
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator).double()
    theta += 0.1 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    observation = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return network, theta, network.layout.unflatten(theta), observation


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


@pytest.mark.parametrize("shape", [(5, 3, 5), (6, 6, 5), (4, 7, 5)])
def test_snake_network(shape):
    network, theta, p, observation = problem(SnakeCnn(channels=3, policy_hidden=4, value_hidden=5), shape)
    outputs = network.apply(theta, observation, HEADS)
    for head in HEADS:
        for board, output in zip(observation, outputs[head], strict=True):
            x = slow_convolution(board.permute(2, 0, 1), p[f"{head}.1.weight"], p[f"{head}.1.bias"], 2).relu()
            x = slow_convolution(x, p[f"{head}.3.weight"], p[f"{head}.3.bias"]).relu().flatten()
            x = linear(p, f"{head}.8", linear(p, f"{head}.6", x).relu()).relu()
            torch.testing.assert_close(output.reshape(-1), linear(p, f"{head}.10", x))


@pytest.mark.parametrize("shape", [(4, 4, 2), (8, 8, 5), (5, 7, 5), (6, 11, 3)])
def test_snake_torso_network(shape):
    """In the paper's order: convolution, ReLU, pooling; an odd row or column at the end is left out."""
    network, theta, p, observation = problem(SnakeTorsoCnn(channels=3, features=6, head_hidden=5), shape)
    outputs = network.apply(theta, observation, HEADS)
    for i, board in enumerate(observation):
        x = board.permute(2, 0, 1)
        for layer in ("torso.1", "torso.4"):
            x = slow_convolution(x, p[f"{layer}.weight"], p[f"{layer}.bias"]).relu()
            x = slow_max_pooling(x, 2, 2, 0, (x.shape[1] // 2, x.shape[2] // 2))
        features = linear(p, "torso.8", x.flatten()).relu()
        assert features.shape == (6,)
        for head in HEADS:
            expected = linear(p, f"{head}.2", linear(p, f"{head}.0", features).relu())
            torch.testing.assert_close(outputs[head][i].reshape(-1), expected)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 5, 6), (1, 1, 3)])
def test_impala_network(shape):
    network, theta, p, observation = problem(ImpalaCnn(hidden=5), shape)
    outputs = network.apply(theta, 255.0 * observation, HEADS)
    names = [name.removesuffix(".weight") for name in p if name.startswith("torso") and name.endswith("weight")]
    for i, x in enumerate(observation):
        layers = iter(names)

        def convolve(x, layers=layers):
            name = next(layers)
            return slow_convolution(x, p[f"{name}.weight"], p[f"{name}.bias"])

        for _ in range(3):
            x = convolve(x)
            x = slow_max_pooling(x, 3, 2, 1, tuple(math.ceil(size / 2) for size in x.shape[1:]))
            for _ in range(2):
                x = x + convolve(convolve(x.relu()).relu())
        features = linear(p, next(layers), x.relu().flatten()).relu()
        assert next(layers, None) is None
        for head in HEADS:
            torch.testing.assert_close(outputs[head][i].reshape(-1), linear(p, head, features))


def test_impala_takes_bytes():
    network = build_network(ImpalaCnn(hidden=4), (4, 12, 12), 3, False)
    theta = network.init(torch.Generator().manual_seed(0))
    pixels = torch.randint(256, (2, 4, 12, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for head in ("logits", "value"):
        outputs = [network.apply(theta, x, (head,))[head] for x in (pixels, pixels.float())]
        assert outputs[0].dtype == torch.float32
        assert torch.equal(*outputs)


@pytest.mark.parametrize("spec", [SnakeTorsoCnn(channels=2, features=6, head_hidden=5), ImpalaCnn(hidden=5)])
def test_the_outer_critic_does_not_shape_the_torso(spec):
    network, theta, _, observation = problem(spec, (5, 4, 3))
    gradient = torch.func.grad(lambda theta: network.apply(theta, observation, HEADS)["outer_value"].sum())(theta)
    sizes = {name: g.abs().sum() for name, g in network.layout.unflatten(gradient).items()}
    assert all((size == 0.0) != name.startswith("outer_value") for name, size in sizes.items())
    # It reads them all the same.
    shifted = theta + 0.1 * torch.ones_like(theta) * network.layout.flatten(
        {name: torch.full_like(x, name.startswith("torso")) for name, x in network.layout.unflatten(theta).items()}
    )
    before, after = (network.apply(x, observation, HEADS)["outer_value"] for x in (theta, shifted))
    assert (before != after).all()


def test_pooling_before_relu_has_the_derivatives_of_the_papers_order():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    x[:, :, :2] = x[:, :, :2].round()  # ties, some of them at 0
    weight = torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64)
    orders = (nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    gradients = [torch.func.grad(lambda x, order=order: (weight * order(x)).sum())(x) for order in orders]
    assert torch.equal(*(order(x) for order in orders))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("has_outer_critic", [True, False])
def test_heads_are_computed_only_when_asked_for(has_outer_critic):
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    for together in (True, False):
        heads = {head: Counted(3, 1) for head in HEADS[: 2 + has_outer_critic]}
        arguments = (heads["logits"], heads["value"], heads.get("outer_value"))
        if together:
            module = modules.SharedTorso(nn.Sequential(nn.Tanh()), *arguments)
        else:
            module = modules.SeparateNetworks(*arguments)
        assert list(module(torch.ones(2, 3), ("value",))) == ["value"]
        assert {head: layer.calls for head, layer in heads.items()} == {head: int(head == "value") for head in heads}


def test_two_tables_multiply_their_policies():
    """Written out: every state, every pair of actions, with the state that the other player sees."""
    tables = modules.TwoTables((0, 1, 3, 2, 4)).double()
    theta = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.func.functional_call(tables, {"table": theta}, (torch.eye(5, dtype=torch.float64),))
    names = ("start", "DD", "DC", "CD", "CC")
    seen = {"start": "start", "DD": "DD", "DC": "CD", "CD": "DC", "CC": "CC"}  # by the other player
    for s, name in enumerate(names):
        first, second = (
            1 / (1 + math.exp(-theta[player, names.index(state)].item()))
            for player, state in ((0, name), (1, seen[name]))
        )
        expected = [first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)]
        assert logits[s].exp().tolist() == pytest.approx(expected, rel=1e-12)


def test_joint_log_probabilities_of_many_pairs_and_of_certain_players():
    own, other = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = modules.joint_log_prob(own, other, (0, 1, 3, 2, 4))
    assert found.shape == (3, 4, 5, 4)
    assert torch.equal(found[2, 1], modules.joint_log_prob(own[2, 1], other[2, 1], (0, 1, 3, 2, 4)))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 4, 5, dtype=torch.float64))
    certain = torch.tensor([800.0, -800.0])
    assert modules.joint_log_prob(certain, certain, (0, 1)).tolist() == [[0, -800, -800, -1600], [-1600, -800, -800, 0]]
