import math

import pytest
import torch

from metagrad.actors import policy
from metagrad.networks import Mlp, SnakeCnn, build_network
from metagrad.recurrence import Memory

ACTIONS = 5


def fixed_policy(logits):
    """A network whose policy is softmax(logits) whatever it sees."""
    network = build_network(Mlp(hidden=2), (3,), len(logits), has_outer_critic=False)
    tensors = {name: torch.zeros(shape) for name, shape in zip(*network.layout, strict=True)}
    tensors["logits.bias"] = torch.tensor(logits)
    return network, network.layout.flatten(tensors)


def snake_policy():
    network = build_network(SnakeCnn(channels=4, policy_hidden=8, value_hidden=8), (4, 4, 5), ACTIONS, True)
    generator = torch.Generator().manual_seed(0)
    return network, network.init(generator), torch.rand(64, 4, 4, 5, generator=generator)


@pytest.mark.parametrize(
    "probabilities", [[0.2] * 5, [0.5, 0.25, 0.125, 0.0625, 0.0625], [0.9, 0.05, 0.03, 0.01, 0.01]]
)
def test_actions_are_drawn_from_the_policy(probabilities):
    network, theta = fixed_policy([math.log(p) for p in probabilities])
    draws = 50_000
    decision = policy.sample(network.at(theta), torch.zeros(draws, 3), torch.Generator().manual_seed(1))
    counts = decision.action.bincount(minlength=5).double()
    expected = draws * torch.tensor(probabilities, dtype=torch.float64)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 0.09 < chi_square < 18.47  # each tail of the distribution with 4 degrees of freedom holds one in a thousand
    torch.testing.assert_close(decision.log_prob, torch.tensor(probabilities)[decision.action].log())


def test_successive_and_neighbouring_draws_are_independent():
    network, theta = fixed_policy([0.0, 0.0])
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack([policy.sample(network.at(theta), torch.zeros(100, 3), generator).action for _ in range(400)])
    centred = draws.double() - 0.5
    in_time = (centred[1:] * centred[:-1]).mean() / 0.25
    in_batch = (centred[:, 1:] * centred[:, :-1]).mean() / 0.25
    # Correlations of 40,000 independent draws have a standard deviation of 0.005.
    assert abs(in_time) < 0.02
    assert abs(in_batch) < 0.02


def test_an_action_that_is_all_but_impossible_is_never_drawn():
    network, theta = fixed_policy([0.0, -200.0, 0.0])
    decision = policy.sample(network.at(theta), torch.zeros(20_000, 3), torch.Generator().manual_seed(3))
    assert not (decision.action == 1).any()


def test_log_probability_is_of_the_action_that_was_drawn():
    network, theta, observation = snake_policy()
    decision = policy.sample(network.at(theta), observation, torch.Generator().manual_seed(4))
    logits = network.apply(theta, observation, ("logits",))["logits"].double()
    expected = logits[torch.arange(64), decision.action] - logits.exp().sum(-1).log()
    torch.testing.assert_close(decision.log_prob.double(), expected, rtol=1e-6, atol=1e-6)
    assert (decision.action.bincount(minlength=ACTIONS) > 0).all()
    assert not decision.log_prob.requires_grad


def test_one_generator_state_gives_one_decision():
    network, theta, observation = snake_policy()
    first, again, other = (
        policy.sample(network.at(theta), observation, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.action, again.action)
    assert not torch.equal(first.action, other.action)


def test_greedy_takes_the_likeliest_action():
    network, theta, observation = snake_policy()
    action = policy.greedy(network.at(theta), observation).action
    assert torch.equal(action, network.apply(theta, observation, ("logits",))["logits"].argmax(-1))
    assert action.dtype == torch.int64


def test_nan_observation_does_not_stop_acting():
    network, theta, observation = snake_policy()
    observation[3] = float("nan")
    decision = policy.sample(network.at(theta), observation, torch.Generator().manual_seed(7))
    assert 0 <= decision.action[3] < ACTIONS
    assert decision.log_prob[3].isnan()
    assert decision.log_prob[torch.arange(64) != 3].isfinite().all()


def test_the_host_is_told_every_head_of_a_network_elsewhere():
    network = build_network(SnakeCnn(channels=4, policy_hidden=8, value_hidden=8, gru=3), (4, 4, 5), ACTIONS, True)
    generator = torch.Generator().manual_seed(0)
    theta, seen = network.init(generator), torch.rand(6, 4, 4, 5, generator=generator)
    there, memory = network.at(theta), Memory(torch.rand(6, network.state_size, generator=generator))
    here = policy.for_the_host(there, torch.device("cpu"))(seen, policy.RECURRENT_POLICY, memory)
    expected = there(seen, policy.RECURRENT_POLICY, memory)
    assert here.keys() == {"logits", "state"}
    assert all(torch.equal(here[head], expected[head]) for head in here)
    assert torch.equal(here.policy.mode(), expected.policy.mode())
