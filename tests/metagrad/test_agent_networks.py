"""Networks of small agents: what they compute, and an optimizer for each head."""

import pytest
import torch

from metagrad.agent_networks import HiddenAgent, TabularAgent, per_head
from metagrad.errors import ConfigurationError
from metagrad.optimizers import Adam, OptimizerState, Sgd

HEADS = {"logits": (3,), "value": (), "z": (3, 2)}


def test_a_table_is_a_linear_layer_on_one_hot_states() -> None:
    agent = TabularAgent(states=5, heads=HEADS)
    theta = torch.randn(agent.layout.size, generator=torch.Generator().manual_seed(0))
    states = torch.tensor([4, 0, 0, 2])
    outputs = agent.apply(theta, states)
    one_hot = torch.nn.functional.one_hot(states, 5).float()
    for head, shape in HEADS.items():
        expected = (one_hot @ agent.layout.unflatten(theta)[f"{head}.table"]).view(4, *shape)
        assert torch.equal(outputs[head], expected)
    assert not agent.init(torch.Generator()).any()
    with pytest.raises(ConfigurationError, match="numbers of states"):
        agent.apply(theta, one_hot)


def test_heads_behind_a_hidden_layer_share_nothing() -> None:
    agent = HiddenAgent(observation_shape=(2, 2), heads=HEADS, hidden=32)
    theta = agent.init(torch.Generator().manual_seed(0)).requires_grad_()
    own = agent.layout.unflatten(theta)
    observation = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(1))
    outputs = agent.apply(theta, observation)
    for head, shape in HEADS.items():
        hidden = (observation.view(6, 4) @ own[f"{head}.hidden.weight"] + own[f"{head}.hidden.bias"]).clamp(min=0)
        expected = (hidden @ own[f"{head}.last.weight"] + own[f"{head}.last.bias"]).view(6, *shape)
        torch.testing.assert_close(outputs[head], expected)
        (gradient,) = torch.autograd.grad(outputs[head].sum(), theta, retain_graph=True)
        moved = {name for name, part in agent.layout.unflatten(gradient).items() if part.any()}
        assert {name.split(".")[0] for name in moved} == {head}
    weights = own["logits.last.weight"]
    assert float(weights.detach().std()) == pytest.approx(0.88 * 32**-0.5, rel=0.3)  # a normal cut at two deviations
    assert not own["logits.last.bias"].any()


def test_each_head_has_its_own_rate_and_clip() -> None:
    agent = TabularAgent(states=2, heads={"logits": (2,), "value": ()})
    optimizer = per_head(
        agent, {"value": Adam(learning_rate=0.1), "logits": Sgd(learning_rate=40.0, max_gradient_norm=0.5)}
    )
    theta = torch.zeros(6)
    gradient = torch.tensor([3.0, 0.0, 0.0, 4.0, -1.0, 2.0])
    new, state = optimizer.update(gradient, optimizer.init(theta), theta, theta)
    torch.testing.assert_close(new[:4], -40.0 * 0.5 * torch.tensor([0.6, 0.0, 0.0, 0.8]))
    torch.testing.assert_close(new[4:], torch.tensor([0.1, -0.1]))
    assert (state.updates, [len(moment) for moment in state.moments]) == (1, [2, 2])
    with pytest.raises(ConfigurationError, match="the heads are logits, value"):
        per_head(agent, {"logits": Sgd(learning_rate=1.0)})


@pytest.mark.parametrize("eps_root", [0.0, 1e-6])
def test_counts_of_updates_may_be_each_agents_own(eps_root: float) -> None:
    adam = Adam(learning_rate=0.1, annealing_updates=6, eps_root=eps_root)
    generator = torch.Generator().manual_seed(0)
    theta, gradient, first = torch.randn(3, 3, 4, generator=generator)
    second, counts = first.square(), torch.tensor([0, 3, 9])

    def one(count: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        theta, gradient, *moments = own
        return adam.update(gradient, OptimizerState(count, tuple(moments)), theta, theta)[0]

    found = torch.func.vmap(one)(counts, theta, gradient, first, second)
    for i, count in enumerate(counts.tolist()):
        state = OptimizerState(count, (first[i], second[i]))
        assert torch.equal(found[i], adam.update(gradient[i], state, theta[i], theta[i])[0])
