import jaxtyping
import pytest
import torch
from torch import nn

from metagrad.errors import ConfigurationError
from metagrad.flat_module import FlatModule, ParameterLayout
from metagrad.meta_gradient import meta_gradient
from metagrad.network_modules import PolicyAlone
from metagrad.networks import Mlp, Network, build_network
from metagrad.optimizers import Sgd, constant
from metagrad.unroll import InnerProblem, inner_update


class Tied(nn.Module):
    """One submodule under two names, and one Parameter in two modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.table = nn.Linear(3, 3, bias=False)
        self.table.weight = self.first.weight
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.table(torch.tanh(self.again(torch.tanh(self.first(x)))))).squeeze(-1)


def test_it_is_the_module_itself():
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    flat = FlatModule(network)
    assert flat.layout.names == tuple(name for name, _ in network.named_parameters())
    x = torch.randn(5, 3)
    assert torch.equal(flat(flat.theta(), x), network(x))


def test_frozen_parameters_are_no_part_of_theta_and_are_not_trained():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    flat = FlatModule(network)
    assert flat.layout.names == ("2.weight", "2.bias")
    x, before = torch.randn(5, 3), network[0].weight.clone()
    problem = InnerProblem(
        lambda theta, eta, x: (flat(theta, x).sub(eta).square().mean(), None), Sgd(learning_rate=constant(0.1))
    )
    theta = flat.theta()
    update = inner_update(problem, theta, problem.optimizer.init(theta), torch.ones(1), x, keep_graph=True)
    assert not torch.equal(update.theta, theta)
    assert torch.equal(network[0].weight, before)
    meta_gradient(problem, [update.step], [torch.ones_like(theta)], "retain")
    expected = nn.functional.linear(torch.tanh(network[0](x)), update.theta[:4].view(1, 4), update.theta[4:])
    torch.testing.assert_close(flat(update.theta, x), expected)


def test_a_network_keeps_its_frozen_parameters_when_it_is_drawn_anew():
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers[0].requires_grad_(False)
    before = layers[0].weight.clone()
    network = Network(PolicyAlone(layers))
    theta = network.init(torch.Generator().manual_seed(3))
    assert theta.shape == (10,)
    assert torch.equal(layers[0].weight, before)


def test_tied_parameters_are_in_theta_once_and_the_module_keeps_them():
    network = Tied()
    own = {name: (parameter, parameter.detach().clone()) for name, parameter in network.named_parameters()}
    flat = FlatModule(network)
    assert flat.layout.names == ("first.weight", "first.bias", "last.weight", "last.bias")
    x, theta = torch.randn(5, 3), torch.randn(flat.layout.size, requires_grad=True)
    for _ in range(2):
        value = flat(theta, x)
        (gradient,) = torch.autograd.grad(value.sum(), theta)
    left = dict(network.named_parameters())
    assert list(left) == list(own)
    assert all(left[name] is parameter and torch.equal(parameter, x) for name, (parameter, x) in own.items())
    with torch.no_grad():  # the same numbers in the module itself
        for name, part in flat.layout.unflatten(theta).items():
            left[name].copy_(part)
    torch.testing.assert_close(network(x), value)
    network(x).sum().backward()
    torch.testing.assert_close(flat.layout.flatten({name: p.grad for name, p in left.items()}), gradient)


def test_parameters_of_several_dtypes_and_wrong_shapes_are_refused_by_name():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1).double())
    with pytest.raises(ConfigurationError, match=r"1\.weight\.dtype = torch\.float64.*0\.weight is torch\.float32"):
        FlatModule(network)
    layout = ParameterLayout(("a", "b"), ((2, 3), (2,)))
    with pytest.raises(ConfigurationError, match=r"b\.dtype"):
        layout.flatten({"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ConfigurationError, match=r"a\.shape = \(3, 2\)"):
        layout.flatten({"a": torch.zeros(3, 2), "b": torch.zeros(2)})
    flat = FlatModule(nn.Linear(3, 2))
    with pytest.raises(ConfigurationError, match=r"theta\.shape = \(7,\)"):
        flat(torch.zeros(7), torch.ones(1, 3))
    network.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no parameter to train"):
        FlatModule(network)


def test_a_module_that_changes_a_buffer_in_its_forward_pass_is_refused():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    flat = FlatModule(network)
    with pytest.raises(ConfigurationError, match=r"num_batches_tracked.*writes to it in its forward pass"):
        flat(flat.theta(), torch.randn(4, 3))
    network.eval()
    assert flat(flat.theta(), torch.randn(4, 3)).shape == (4, 2)


@pytest.mark.parametrize("heads", [("logit",), ("logits", "values"), "value", "outer_value"])
def test_heads_that_no_network_has_are_refused(heads, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    network = build_network(Mlp(hidden=4), (3,), 2, has_outer_critic=True)
    with pytest.raises(ConfigurationError, match=r"^heads = "):
        network.at(torch.zeros(network.layout.size))(torch.zeros(1, 3), heads)


def test_an_outer_critic_that_is_not_there_and_unknown_parameters_are_refused():
    network = build_network(Mlp(hidden=4), (3,), 2, has_outer_critic=False)
    with pytest.raises(ConfigurationError, match="no outer critic"):
        network.at(torch.zeros(network.layout.size))(torch.zeros(1, 3), ("outer_value",))
    with pytest.raises(ConfigurationError, match="first_order"):
        network.with_first_order(("value.nothing",))
