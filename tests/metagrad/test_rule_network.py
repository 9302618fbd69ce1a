"""What a rule's agents say: heads on shared layers, one LSTM step for each action."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.disco import DiscoRule
from metagrad.errors import ConfigurationError
from metagrad.lpg import Lpg
from metagrad.networks import (
    AutoNetwork,
    HaikuMlp,
    ImpalaCnn,
    LinearPolicy,
    MemoryOnePair,
    Mlp,
    NatureCnn,
    NetworkSpec,
    SnakeCnn,
    SnakeTorsoCnn,
    build_network,
)
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.rule_network import RuleAgent, RuleNetwork
from metagrad.update_rules import AgentNetwork

RULE = DiscoRule(prediction=5, largest_value=2)
SPEC = RuleNetwork(torso=HaikuMlp(hidden=7, layers=2), rule=RULE, lstm=6, head_hidden=4)
A, N = 3, 4


def drawn(spec: RuleNetwork, shape: tuple[int, ...]) -> tuple[RuleAgent, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    agent = RuleAgent(spec.module(shape, A, False))
    theta = agent.init(generator).double()
    theta += 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    return agent, theta, torch.rand(N, *shape, generator=generator, dtype=torch.float64)


def test_heads_are_those_of_the_rule_computed_action_by_action() -> None:
    agent, theta, observation = drawn(SPEC, (2, 3))
    assert isinstance(agent, AgentNetwork)
    outputs = agent.apply(theta, observation)
    assert {head: tuple(x.shape) for head, x in outputs.items()} == {h: (N, *s) for h, s in RULE.heads(A).items()}
    own = agent.layout.unflatten(theta)

    def layer(name: str, x: Tensor) -> Tensor:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    features = layer("torso.3", torch.relu(layer("torso.1", observation.flatten(1))))
    torch.testing.assert_close(outputs["logits"], layer("of_state.logits", features))
    torch.testing.assert_close(outputs["y"], layer("of_state.y", features))
    cell = layer("cell", features)
    for a in range(A):
        seen = torch.cat([torch.eye(A, dtype=torch.float64)[a].expand(N, A), torch.tanh(cell)], -1)
        write, candidate, forget, read = layer("gates", seen).chunk(4, -1)
        after = torch.sigmoid(forget + 1.0) * cell + torch.sigmoid(write) * torch.tanh(candidate)
        hidden = torch.sigmoid(read) * torch.tanh(after)
        for head in ("z", "aux_pi", "q"):
            expected = layer(f"of_action.{head}.2", torch.relu(layer(f"of_action.{head}.0", hidden)))
            torch.testing.assert_close(outputs[head][:, a], expected)


@pytest.mark.parametrize(
    ("torso", "shape"),
    [
        (Mlp(hidden=5), (3,)),
        (AutoNetwork(hidden=5), (3,)),
        (SnakeCnn(channels=2, policy_hidden=4), (4, 4, 5)),
        (SnakeTorsoCnn(channels=2, features=4, head_hidden=3), (4, 4, 5)),
        (NatureCnn(hidden=3), (1, 36, 36)),
        (ImpalaCnn(hidden=5), (1, 7, 6)),
        (LinearPolicy(), (3,)),
    ],
)
@pytest.mark.parametrize("rule", [RULE, Lpg(predictions=4), ObjectiveCorrection()])
def test_any_hidden_layers_do_and_those_who_act_see_the_same_policy(torso: NetworkSpec, shape: Any, rule: Any) -> None:
    spec = RuleNetwork(torso=torso, rule=rule, lstm=6, head_hidden=4)
    agent, theta, observation = drawn(spec, shape)
    if len(shape) == 3 and shape[0] == 1:
        observation = (255 * observation).byte()
    network = build_network(spec, shape, A, False)
    assert network.layout == agent.layout
    outputs = agent.apply(theta, observation)
    torch.testing.assert_close(network.apply(theta, observation, ("logits",))["logits"], outputs["logits"])
    assert {head: tuple(x.shape) for head, x in outputs.items()} == {h: (N, *s) for h, s in rule.heads(A).items()}
    assert torch.equal(network.init(torch.Generator().manual_seed(3)), agent.init(torch.Generator().manual_seed(3)))


def test_the_policy_begins_near_uniform() -> None:
    agent, _, observation = drawn(SPEC, (2, 3))
    own = agent.layout.unflatten(agent.init(torch.Generator().manual_seed(5)))
    assert own["of_state.logits.weight"].abs().max() <= 0.02
    assert own["of_state.y.weight"].abs().max() <= 0.02
    assert 0.02 < own["of_action.q.0.weight"].abs().max() <= 2.0 / math.sqrt(6.0)
    policy = agent.apply(agent.layout.flatten(own), observation.float())["logits"].softmax(-1)
    assert (policy - 1.0 / A).abs().max() < 0.02


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (RuleNetwork(torso=Mlp(gru=4), rule=RULE), "network.torso.gru"),
        (RuleNetwork(torso=Mlp(gamma_embedding=4), rule=RULE), "network.torso.gamma_embedding"),
        (RuleNetwork(torso=Mlp(hidden=0), rule=RULE), "network.torso.hidden"),
        (RuleNetwork(torso=Mlp(), rule=RULE, lstm=0), "network.lstm"),
    ],
)
def test_what_a_rules_agents_cannot_have_is_refused_by_name(spec: RuleNetwork, field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        build_network(spec, (3,), A, False)


def test_a_network_without_hidden_layers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no hidden layers"):
        build_network(RuleNetwork(torso=MemoryOnePair(), rule=RULE), (5,), 4, False)
