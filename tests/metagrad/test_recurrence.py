"""Recurrent networks: the cell, the rules of forgetting in actors and learner, and what the unroll does to losses."""

from functools import partial

import pytest
import torch
from torch import nn

from metagrad.actor_critic import A2cLoss, VtraceLoss
from metagrad.bootstrap import Matching, matching_loss
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective, forward, without_unused_rows
from metagrad.meta_parameters import MetaParameter
from metagrad.network_functions import Network
from metagrad.networks import (
    AutoNetwork,
    ImpalaCnn,
    Mlp,
    NatureCnn,
    SnakeCnn,
    SnakeTorsoCnn,
    build_network,
)
from metagrad.precision import layers_dtype
from metagrad.recurrence import Gru, Memory, is_before_choice, memory_of, next_state
from metagrad.surrogates import SURROGATES

ACTIONS = 3
HEADS = ("logits", "value", "outer_value")
NETWORKS = {
    "mlp": (Mlp(hidden=4, gru=3), (3,)),
    "mlp-told": (Mlp(hidden=4, gru=3, gamma_embedding=2), (3,)),
    "auto-vector": (AutoNetwork(hidden=4, gru=3), (3,)),
    "auto-picture": (AutoNetwork(picture_hidden=4, gru=3), (2, 5, 4)),
    "snake": (SnakeCnn(channels=2, policy_hidden=4, value_hidden=5, gru=3), (3, 5, 5)),
    "snake-torso": (SnakeTorsoCnn(channels=2, features=6, head_hidden=5, gru=3), (5, 4, 3)),
    "nature": (NatureCnn(hidden=3, gru=3), (1, 36, 36)),
    "impala": (ImpalaCnn(hidden=5, gru=3), (1, 7, 6)),
}
HALF = MetaParameter(initial=0.5)
A2C = A2cLoss(**dict.fromkeys(("gamma", "lambda_", "value_coefficient", "entropy_coefficient"), HALF))
RATES = ("gamma", "lambda_", "policy_coefficient", "value_coefficient", "entropy_coefficient", "rho_clip", "c_clip")
VTRACE = VtraceLoss(**dict.fromkeys(RATES, HALF))
OUTER = OuterObjective(gamma=0.9, lambda_=0.8, critic="outer")
HYPER = {name.rstrip("_"): torch.tensor([0.5], dtype=torch.float64) for name in RATES}


def built(name) -> tuple[Network, torch.Tensor]:
    """(network under γ = .9, wide θ in float64)."""
    spec, shape = NETWORKS[name]
    network = build_network(spec, shape, ACTIONS, True)
    generator = torch.Generator().manual_seed(3)
    theta = network.init(generator).double()
    return network.under(0.9), theta + 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)


def rollout(make_trajectory, name, steps=7):
    """Every kind of row; a game of columns 0 and 3 has been going on, column 3 has a forced step in the middle."""
    network, theta = built(name)
    generator = torch.Generator().manual_seed(8)
    trajectory = make_trajectory(generator, steps, 4, NETWORKS[name][1], ACTIONS)
    state = torch.randn(4, network.state_size, generator=generator, dtype=torch.float64).tanh()
    state[1:3] = 0.0
    valid = trajectory.valid.clone()
    valid[0, 2] = valid[0, 3] = valid[3, 3] = False  # an episode that has not begun; two forced steps of one that has
    return network, theta, trajectory._replace(valid=valid, first_state=state)


def test_the_cell_is_the_one_of_cudnn():
    torch.manual_seed(0)
    other, core = nn.GRU(5, 3).double(), Gru(5, 3).double()
    for ours, theirs in ((core.of_features, "ih"), (core.of_state, "hh")):
        ours.weight.data, ours.bias.data = (getattr(other, f"{kind}_{theirs}_l0").data for kind in ("weight", "bias"))
    features, state = torch.randn(6, 4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = other(features, state.unsqueeze(0))[0]
    memory = Memory(state, torch.zeros(6, 4, dtype=torch.bool))
    torch.testing.assert_close(core(features.flatten(0, 1), memory).view(6, 4, 3), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(core(features[0], Memory(state)), expected[0], rtol=1e-13, atol=1e-14)


def test_each_gate_begins_orthogonal():
    network = build_network(Mlp(hidden=4, gru=4), (3,), ACTIONS, False)
    parts = network.layout.unflatten(network.init(torch.Generator().manual_seed(0)))
    for gate in parts["core.of_state.weight"].chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4))
    assert (parts["core.of_state.bias"] == 0.0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_learner_sees_what_the_actor_saw(make_trajectory, name):
    """The unroll of T rows against one environment at a time, step by step, forgetting by hand."""
    network, theta, trajectory = rollout(make_trajectory, name)
    outputs = forward(network, theta, trajectory, HEADS)
    ends = trajectory.is_terminal | trajectory.is_truncated
    seen = 0
    for b in range(4):
        state = before = trajectory.first_state[b : b + 1]
        has_begun = b in (0, 3)
        for t in range(8):
            is_cut = t > 0 and bool(trajectory.is_truncated[t - 1, b])  # what is seen now is the end of that episode
            memory = Memory(before if is_cut else state)
            row = network.apply(theta, trajectory.observation[t, b : b + 1], (*HEADS, "state"), memory)
            if t == 7 and trajectory.is_terminal[6, b]:
                continue
            if (t == 7 or trajectory.valid[t, b]) or is_cut:
                for head in HEADS[1:]:
                    torch.testing.assert_close(outputs[head][t, b], row[head][0], rtol=1e-12, atol=1e-13)
                    seen += 1
            if t == 7:
                continue
            if trajectory.valid[t, b]:
                torch.testing.assert_close(outputs["logits"][t, b], row["logits"][0], rtol=1e-12, atol=1e-13)
            has_begun = has_begun or bool(trajectory.valid[t, b])
            before = row["state"]
            if ends[t, b]:
                has_begun = False
            state = row["state"] if has_begun else torch.zeros_like(state)
    assert seen > 40


def test_a_loss_sees_the_forced_rows_of_an_episode_that_goes_on(make_trajectory):
    """Column 3 begins with one: what the actor remembers of it, the learner does too."""
    network, theta, trajectory = rollout(make_trajectory, "mlp")
    whole, cleaned = (forward(network, theta, x, HEADS) for x in (trajectory, without_unused_rows(trajectory)))
    valid = trajectory.valid
    assert torch.equal(whole["logits"][valid], cleaned["logits"][valid])
    assert torch.equal(whole["value"][:-1][valid], cleaned["value"][:-1][valid])


@pytest.mark.parametrize("name", ["mlp", "auto-vector"])
def test_episode_ends_isolate(make_trajectory, name):
    """An end isolates: what was seen and remembered before it changes nothing after; without an end it does."""
    network, theta, trajectory = rollout(make_trajectory, name)
    for end in ("is_terminal", "is_truncated", None):
        flags = torch.zeros(3, 7, 4, dtype=torch.bool)
        if end == "is_truncated":
            flags[2, 3] = True  # the row that only resets
        if end is not None:
            flags[("is_terminal", "is_truncated").index(end), 2] = True
        whole = trajectory._replace(is_terminal=flags[0], is_truncated=flags[1], valid=~flags[2])
        observation = whole.observation.clone()
        observation[: 4 if end == "is_truncated" else 3] += 1.0
        changed = whole._replace(observation=observation, first_state=-whole.first_state)
        first, second = (forward(network, theta, x, HEADS) for x in (whole, changed))
        after = 4 if end == "is_truncated" else 3
        for head in HEADS:
            assert torch.equal(first[head][after:], second[head][after:]) == (end is not None), (head, end)
            assert not torch.equal(first[head][:after], second[head][:after])


def test_rules_of_forgetting():
    begun, zero = torch.ones(1, 2), torch.zeros(1, 2)
    yes, no = torch.tensor([True]), torch.tensor([False])
    updated = torch.full((1, 2), 3.0)
    for state, is_end, valid, is_kept in (
        (begun, no, yes, True),
        (begun, yes, yes, False),
        (begun, no, no, True),  # a forced step in the middle of an episode is remembered
        (zero, no, yes, True),
        (zero, no, no, False),  # what only resets is not
    ):
        assert torch.equal(next_state(state, updated, is_end, valid), updated if is_kept else zero)


def test_rows_before_an_episodes_first_choice():
    valid = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    is_last = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 1], [0, 0]], dtype=torch.bool)
    expected = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 0], [1, 1]], dtype=torch.bool)
    assert torch.equal(is_before_choice(valid, is_last, torch.tensor([True, False])), expected)


def losses(network, theta, trajectory):
    log_prob = trajectory.behaviour_log_prob
    yield A2C.inner_loss(network, theta, HYPER, trajectory, SURROGATES["lvc"], OUTER)[0]
    yield VTRACE.inner_loss(
        network, theta, HYPER, trajectory._replace(behaviour_log_prob=log_prob - 1.0), SURROGATES["ad"], OUTER
    )[0]
    yield A2C.outer_loss(network, theta, {}, trajectory, OUTER)[0]
    for states in ("all", "first"):
        yield matching_loss(
            network, theta, 0.9 * theta.detach(), trajectory, Matching(states=states, value_coefficient=0.5)
        )[0]


@pytest.mark.parametrize("name", ["mlp", "auto-vector"])
def test_what_a_row_that_only_resets_holds_changes_nothing(make_trajectory, name):
    network, theta, trajectory = rollout(make_trajectory, name)
    unseen = torch.cat([~trajectory.valid, torch.zeros(1, 4, dtype=torch.bool)])
    unseen[1:] &= trajectory.is_terminal
    unseen[0] &= (trajectory.first_state == 0.0).all(-1)
    assert unseen.sum() >= 2
    spoilt = trajectory._replace(
        observation=torch.where(unseen.unsqueeze(-1), torch.nan, trajectory.observation),
        behaviour_log_prob=torch.where(trajectory.valid, trajectory.behaviour_log_prob, torch.nan),
    )
    found = []
    for data in (trajectory, spoilt):
        x = theta.clone().requires_grad_()
        found.append([torch.autograd.grad(loss, x)[0] for loss in losses(network, x, data)])
    for expected, actual in zip(*found, strict=True):
        assert expected.norm() > 0.0
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["mlp", "auto-vector"])
def test_the_first_state_is_a_constant(make_trajectory, name):
    network, theta, trajectory = rollout(make_trajectory, name)
    state = trajectory.first_state.clone().requires_grad_()
    x = theta.clone().requires_grad_()
    for loss in losses(network, x, trajectory._replace(first_state=state)):
        slopes = torch.autograd.grad(loss, (x, state), allow_unused=True, retain_graph=True)
        assert slopes[0].norm() > 0.0
        assert slopes[1] is None


def test_matching_is_on_the_states_of_the_rollout(make_trajectory):
    """KL of the policies of `forward`, by hand."""
    network, theta, trajectory = rollout(make_trajectory, "mlp")
    target = theta + 0.1
    p, q = (torch.log_softmax(forward(network, x, trajectory, HEADS)["logits"], -1) for x in (target, theta))
    kl = (p.exp() * (p - q)).sum(-1)
    for states, rows in (("all", trajectory.valid), ("first", trajectory.valid[:1])):
        found, _ = matching_loss(network, theta, target, trajectory, Matching(states=states))
        torch.testing.assert_close(found, kl[: len(rows)][rows].mean(), rtol=1e-12, atol=1e-14)


def test_parameters_of_critics_are_apart_where_nothing_is_shared():
    network, _ = built("auto-vector")
    assert network.state_size == 9
    assert {name.split(".")[0] for name in network.own_parameters_of_critics} == {"value", "outer_value"}


def test_many_parameters_at_once(make_trajectory):
    network, theta, trajectory = rollout(make_trajectory, "mlp")
    many = torch.stack([theta, theta + 0.1])
    one = partial(forward, network, trajectory=trajectory, heads=HEADS)
    for i, value in enumerate(torch.func.vmap(lambda x: one(x)["value"])(many)):
        torch.testing.assert_close(value, one(many[i])["value"])


def test_the_state_stays_in_single_precision_where_layers_do_not():
    network = build_network(Mlp(hidden=4, gru=3), (3,), ACTIONS, False, "bf16-mixed")
    theta = network.init(torch.Generator().manual_seed(0))
    state = network.apply(theta, torch.ones(2, 3), ("state",), Memory(network.fresh_state(2)))["state"]
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.to(layers_dtype("bf16-mixed")).float())


def test_a_memory_is_given_where_there_is_one():
    plain = build_network(Mlp(hidden=4), (3,), ACTIONS, False)
    recurrent = build_network(Mlp(hidden=4, gru=3), (3,), ACTIONS, False)
    assert (plain.fresh_state(2), recurrent.fresh_state(2).shape) == (None, (2, 3))
    theta, x = torch.zeros(recurrent.layout.size), torch.zeros(2, 3)
    for network, memory, rule in (
        (plain, Memory(torch.zeros(2, 3)), "memory = 3: the network remembers nothing"),
        (recurrent, None, "memory = 0: the network remembers 3 numbers of each environment"),
        (recurrent, Memory(torch.zeros(2, 4)), "memory = 4: the network remembers 3"),
    ):
        with pytest.raises(ConfigurationError, match=rule):
            network.apply(theta[: network.layout.size], x, ("logits",), memory)
    with pytest.raises(ConfigurationError, match="the heads are logits, value, outer_value;"):
        plain.apply(theta[: plain.layout.size], x, ("state",))


def test_the_state_of_the_last_row_is_forgotten_after_a_terminal_step(make_trajectory):
    trajectory = make_trajectory(torch.Generator().manual_seed(0))
    assert memory_of(trajectory) is None
    ends, never = torch.zeros(2, 5, 4, dtype=torch.bool)
    ends[4, :2] = True
    for name, other in (("is_terminal", "is_truncated"), ("is_truncated", "is_terminal")):
        ended = trajectory._replace(**{name: ends, other: never}, valid=~never, first_state=torch.ones(4, 2))
        last = memory_of(ended).after(torch.arange(40.0).view(20, 2))
        assert (last.state[:2] == 0.0).all() == (name == "is_terminal")
        assert torch.equal(last.state[2:], torch.tensor([[36.0, 37.0], [38.0, 39.0]]))
