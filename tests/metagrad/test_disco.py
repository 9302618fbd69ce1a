"""DiscoRL's rule against the same rule written slowly, one step, environment and action at a time, in numpy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metagrad.disco import DiscoRule, DiscoState, loss_terms
from metagrad.disco_network import META, TRAJECTORY
from metagrad.disco_values import MovingAverage, squash, two_hot, unsquash
from metagrad.errors import ConfigurationError
from metagrad.update_rules import LifetimeRollout, UpdateRule

RULE = DiscoRule(prediction=5, largest_value=3, hidden=4, meta_hidden=3)
T, B, A = 5, 2, 3
Arrays = dict[str, np.ndarray]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def slog(x: float) -> float:
    return math.copysign(math.log(1.0 + abs(x)), x)


def h_inverse(x: float) -> float:
    e = 1e-3
    u = (math.sqrt(1.0 + 4.0 * e * (e + 1.0 + abs(x))) - 1.0) / (2.0 * e)
    return math.copysign(u * u - 1.0, x)


def h(x: float) -> float:
    return math.copysign(math.sqrt(abs(x) + 1.0) - 1.0, x) + 1e-3 * x


class Slow:
    """The rule as its description has it."""

    def __init__(self, weights: Arrays, rule: DiscoRule):
        self.w = weights
        self.rule = rule

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.w[f"{name}/w"] + self.w[f"{name}/b"])

    def score(self, name: str, logits: np.ndarray) -> float:
        hidden = np.maximum(self.linear(f"{name}/~/linear_0", softmax(logits)), 0.0)
        return float(self.linear(f"{name}/~/linear_1", hidden)[0])

    def block(self, name: str, x: np.ndarray) -> np.ndarray:
        """x [A, in]."""
        doubled = np.concatenate([x, np.repeat(x.mean(0, keepdims=True), len(x), 0)], -1)
        return np.asarray(np.maximum(doubled @ self.w[f"{name}/w"][0] + self.w[f"{name}/b"], 0.0))

    def lstm(self, name: str, x: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        i, g, f, o = np.split(self.linear(name, np.concatenate([x, hidden])), 4)
        cell = sigmoid(f + 1.0) * cell + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(cell), cell

    def values(self, r: Arrays, out: Arrays, target: Arrays) -> None:
        bins = np.arange(-self.rule.largest_value, self.rule.largest_value + 1)
        of = {name: np.zeros((T + 1, B, A)) for name in ("q", "q'")}
        for name, x in (("q", out["q"]), ("q'", target["q"])):
            for index in np.ndindex(T + 1, B, A):
                of[name][index] = h_inverse(float((softmax(x[index]) * bins).sum()))
        self.q, self.q_ = of["q"], of["q'"]
        self.pi, self.mu, self.pi_ = softmax(out["logits"]), softmax(r["behaviour"]), softmax(target["logits"])
        self.v, self.v_ = (self.pi * self.q).sum(-1), (self.pi * self.q_).sum(-1)
        self.g = np.zeros((T, B))
        for b in range(B):
            for t in reversed(range(T)):
                discount = self.rule.gamma * (not r["terminal"][t, b])
                self.g[t, b] = r["reward"][t, b] + discount * self.v_[t + 1, b]
                if t < T - 1:
                    a = r["action"][t + 1, b]
                    ratio = self.pi[t + 1, b, a] / self.mu[t + 1, b, a]
                    correction = self.g[t + 1, b] - self.q_[t + 1, b, a]
                    self.g[t, b] += discount * self.rule.lambda_ * min(1.0, ratio) * correction
        self.adv, self.qv_adv = self.g - self.v_[:T], self.q_ - self.v_[..., None]
        taken = np.array([[self.q[t, b, r["action"][t, b]] for b in range(B)] for t in range(T)])
        self.q_td = self.g - taken

    def average(self, state: list[float], x: np.ndarray) -> list[float]:
        d = self.rule.average_decay
        return [d * state[0] + (1 - d) * x.mean(), d * state[1] + (1 - d) * (x**2).mean(), d * state[2]]

    def norm(self, x: float) -> float:
        m1, m2, product = self.averages[:3]
        mean = m1 / (1 - product)
        return (x - mean) / (math.sqrt(max(0.0, m2 / (1 - product) - mean**2) + 1e-12) + 1e-6)

    def features(self, prefix: str, r: Arrays, out: Arrays, target: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """x0 [T, B, 27] and E [T, B, A, 2]."""

        def scores(name: str, x: np.ndarray) -> np.ndarray:
            found = np.zeros(x.shape[:-1])
            for index in np.ndindex(found.shape):
                found[index] = self.score(f"{prefix}{name}", x[index])
            return found

        y, y_, z, z_ = (scores(n, x[k]) for n, k in (("mlp", "y"), ("mlp_1", "z")) for x in (out, target))
        base, embedding = np.zeros((T, B, 27)), np.zeros((T, B, A, 2))
        for t, b in np.ndindex(T, B):
            actions = np.zeros((A, 9))
            for a in range(A):
                actions[a] = [
                    *(self.pi[t, b, a], self.mu[t, b, a], self.pi_[t, b, a], z[t, b, a], z_[t, b, a]),
                    *(slog(self.q_[t, b, a]), slog(self.qv_adv[t, b, a]), self.norm(self.qv_adv[t, b, a])),
                    float(a == r["action"][t, b]),
                ]
            inner = self.block(f"{prefix}sequential/conv1_d", actions)
            e = embedding[t, b] = self.block(f"{prefix}sequential/conv1_d_1", inner)
            a = r["action"][t, b]
            base[t, b] = [
                *(self.pi[t, b, a], self.mu[t, b, a], slog(r["reward"][t, b]), 1.0 - r["terminal"][t, b]),
                *(slog(self.v[t, b]), slog(self.v[t + 1, b]), slog(self.adv[t, b]), self.norm(self.adv[t, b])),
                *(self.pi_[t, b, a], y[t, b], y[t + 1, b], y_[t, b], y_[t + 1, b], z[t, b, a]),
                *(self.pi[t, b] @ z[t, b], self.pi[t + 1, b] @ z[t + 1, b], z[t, b].max(), z[t + 1, b].max()),
                *(z_[t, b, a], self.pi[t, b] @ z_[t, b], self.pi[t + 1, b] @ z_[t + 1, b]),
                *(z_[t, b].max(), z_[t + 1, b].max(), *e.mean(0), *e[a]),
            ]
        return base, embedding

    def targets(self, state: Arrays, r: Arrays, out: Arrays, target: Arrays) -> tuple[Arrays, Arrays]:
        self.values(r, out, target)
        self.averages = [
            *self.average(state["averages"][:3], self.adv),
            *self.average(state["averages"][3:], self.q_td),
        ]
        base, embedding = self.features(TRAJECTORY, r, out, target)
        of_update, _ = self.features(META, r, out, target)
        units, y = self.rule.hidden, self.rule.prediction
        found = {
            "logits": np.zeros((T, B, A)),
            "y": np.zeros((T, B, y)),
            "z": np.zeros((T, B, y)),
            "q_error": self.q_td,
        }
        summary = np.zeros((T, B, 16))
        modulation = self.linear(f"{TRAJECTORY}linear", state["hidden"])
        for b in range(B):
            hidden, cell = np.zeros(units), np.zeros(units)
            for t in reversed(range(T)):
                if r["terminal"][t, b]:
                    hidden, cell = np.zeros(units), np.zeros(units)
                hidden, cell = self.lstm(f"{TRAJECTORY}lstm/linear", base[t, b], hidden, cell)
                s = hidden * modulation
                found["y"][t, b], found["z"][t, b] = (self.linear(f"{TRAJECTORY}linear_{i}", s) for i in (2, 3))
                joint = np.concatenate([np.repeat(s[None], A, 0), embedding[t, b]], -1)
                block = self.block(f"{TRAJECTORY}sequential_1/conv1_d", joint)
                found["logits"][t, b] = self.linear(f"{TRAJECTORY}linear_4", block)[:, 0]
                e, y_hat = self.linear(f"{TRAJECTORY}linear_1", s), self.score(f"{META}mlp", found["y"][t, b])
                x = np.concatenate([of_update[t, b], e, [y_hat]])
                summary[t, b] = self.linear(f"{META}mlp_2/~/linear_0", x)
        hidden, cell = self.lstm(f"{META}lstm/linear", summary.mean((0, 1)), state["hidden"], state["cell"])
        return found, {"averages": np.array(self.averages), "hidden": hidden, "cell": cell}

    def loss(self, found: Arrays, r: Arrays, out: Arrays) -> float:
        def divergence(p: np.ndarray, q: np.ndarray) -> float:
            return float((softmax(p) * (np.log(softmax(p)) - np.log(softmax(q)))).sum())

        total, count, largest = 0.0, 0.0, self.rule.largest_value
        for t, b in np.ndindex(T, B):
            a = r["action"][t, b]
            loss = divergence(found["logits"][t, b], out["logits"][t, b]) + divergence(found["y"][t, b], out["y"][t, b])
            loss += divergence(found["z"][t, b], out["z"][t, b, a])
            if not r["terminal"][t, b]:
                loss += divergence(out["logits"][t + 1, b], out["aux_pi"][t, b, a])
            x = min(max(h(self.q[t, b, a] + self.q_td[t, b]), -largest), largest)
            lower, upper = math.floor(x), math.ceil(x)
            log_q, weight = np.log(softmax(out["q"][t, b, a])), (upper - x) / (upper - lower + 1e-5)
            loss -= 0.2 * (weight * log_q[lower + largest] + (1.0 - weight) * log_q[upper + largest])
            total += loss * r["valid"][t, b]
            count += r["valid"][t, b]
        return total / (count + 1e-8)


def random_outputs(rule: DiscoRule, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = rule.heads(A).items()
    return {h: torch.randn(T + 1, B, *s, generator=generator, dtype=torch.float64) for h, s in shapes}


def random_rollout(generator: torch.Generator) -> LifetimeRollout:
    return LifetimeRollout(
        observation=torch.zeros(T + 1, B, 1, dtype=torch.float64),
        action=torch.randint(A, (T + 1, B), generator=generator),
        reward=torch.randn(T, B, generator=generator, dtype=torch.float64),
        is_terminal=torch.rand(T, B, generator=generator) < 0.3,
        valid=torch.rand(T, B, generator=generator) < 0.8,
        behaviour_logits=torch.randn(T + 1, B, A, generator=generator, dtype=torch.float64),
    )


def random_eta(rule: DiscoRule, generator: torch.Generator) -> Tensor:
    """Larger than fresh weights, biases too: nothing is lost in zeros."""
    return 0.5 * torch.randn(rule.layout.size, generator=generator, dtype=torch.float64)


def as_arrays(rollout: LifetimeRollout) -> Arrays:
    names = {"action": "action", "reward": "reward", "is_terminal": "terminal", "valid": "valid"}
    arrays = {own: getattr(rollout, name).numpy() for name, own in names.items()}
    return arrays | {"behaviour": rollout.behaviour_logits.numpy()}


def fresh_state(rule: DiscoRule) -> DiscoState:
    return DiscoState(*(x.double() for x in rule.initial_state()))


def test_the_rule_is_the_slow_one_over_three_updates_of_an_agent() -> None:
    generator = torch.Generator().manual_seed(7)
    eta, state = random_eta(RULE, generator), fresh_state(RULE)
    slow = Slow({name: x.numpy() for name, x in RULE.layout.unflatten(eta).items()}, RULE)
    slow_state = {"averages": np.array([0.0, 0.0, 1.0] * 2), "hidden": np.zeros(3), "cell": np.zeros(3)}
    for _ in range(3):
        rollout, arrays = (r := random_rollout(generator)), as_arrays(r)
        out, target = random_outputs(RULE, generator), random_outputs(RULE, generator)
        targets, state = RULE.targets(eta, state, rollout, out, target)
        out_, target_ = ({head: x.numpy() for head, x in each.items()} for each in (out, target))
        expected, slow_state = slow.targets(slow_state, arrays, out_, target_)
        for name, x in expected.items():
            np.testing.assert_allclose(targets[name].numpy(), x, rtol=0, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(torch.stack(state[:6]).numpy(), slow_state["averages"], rtol=0, atol=1e-12)
        for name, x in (("hidden", state.hidden), ("cell", state.cell)):
            np.testing.assert_allclose(x.numpy(), slow_state[name], rtol=0, atol=1e-12)
        loss = RULE.loss(targets, out, rollout)
        assert loss.item() == pytest.approx(slow.loss(expected, arrays, out_), abs=1e-10)


def test_agents_side_by_side_are_agents_one_by_one() -> None:
    generator = torch.Generator().manual_seed(8)
    agents = [
        (
            random_eta(RULE, generator),
            tuple(
                DiscoState(*(torch.rand(x.shape, generator=generator, dtype=torch.float64) for x in fresh_state(RULE)))
            ),
            random_rollout(generator),
            random_outputs(RULE, generator),
            random_outputs(RULE, generator),
        )
        for _ in range(3)
    ]

    def update(*agent: Any) -> tuple[Any, Any, Tensor]:
        targets, state = RULE.targets(*agent)
        return targets, tuple(state), RULE.loss(targets, agent[3], agent[2])

    stacked = torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *agents)
    together = torch.func.vmap(update)(*stacked)
    for i, agent in enumerate(agents):
        alone = torch.utils._pytree.tree_leaves(update(*agent))
        for x, y in zip(torch.utils._pytree.tree_leaves(together), alone, strict=True):
            torch.testing.assert_close(x[i], y, rtol=1e-12, atol=1e-12)


def test_the_loss_has_no_gradient_but_in_what_the_agent_says() -> None:
    generator = torch.Generator().manual_seed(9)
    rollout = random_rollout(generator)
    out = {head: x.requires_grad_() for head, x in random_outputs(RULE, generator).items()}
    targets, _ = RULE.targets(
        random_eta(RULE, generator), fresh_state(RULE), rollout, out, random_outputs(RULE, generator)
    )
    terms = loss_terms({name: x.detach() for name, x in targets.items()}, out, rollout)
    sees = {"policy": "logits", "y": "y", "z": "z", "next_policy": "aux_pi", "value": "q"}
    for term, head in sees.items():
        gradients = torch.autograd.grad(terms[term].sum(), list(out.values()), retain_graph=True, allow_unused=True)
        assert [name for name, x in zip(out, gradients, strict=True) if x is not None and x.any()] == [head]


def test_regularisers_are_entropies_squared_means_and_a_divergence() -> None:
    generator = torch.Generator().manual_seed(10)
    rollout, out, target = random_rollout(generator), random_outputs(RULE, generator), random_outputs(RULE, generator)
    targets, _ = RULE.targets(random_eta(RULE, generator), fresh_state(RULE), rollout, out, target)
    found = RULE.regularisers(targets, out, rollout)
    assert found.keys() == RULE.coefficients.keys()
    assert found["y_mean"].item() == pytest.approx(targets["y"].mean().item() ** 2)
    entropy = torch.distributions.Categorical(logits=out["y"]).entropy().mean()
    assert found["y_entropy"].item() == pytest.approx(-entropy.item())
    p, q = (torch.distributions.Categorical(logits=x) for x in (target["logits"][:-1], targets["logits"]))
    assert found["target_policy"].item() == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item())
    at_a = torch.stack([out["z"][t, b, rollout.action[t, b]] for t in range(T) for b in range(B)])
    entropy = torch.distributions.Categorical(logits=at_a).entropy().mean()
    assert found["z_entropy"].item() == pytest.approx(-entropy.item())


def test_squash_and_its_inverse_lose_no_digits() -> None:
    x = torch.tensor([-1e5, -30.0, -1.0, -1e-6, 0.0, 1e-6, 0.5, 2.0, 1e4])
    wide = x.double()
    torch.testing.assert_close(unsquash(squash(wide)), wide, rtol=1e-12, atol=0)
    torch.testing.assert_close(unsquash(squash(x)), x, rtol=1e-6, atol=0)
    expected = torch.tensor([h_inverse(v) for v in wide.tolist()], dtype=torch.float64)
    torch.testing.assert_close(unsquash(wide), expected, rtol=1e-8, atol=1e-9)


def test_two_hot_splits_a_value_among_the_bins_beside_it() -> None:
    like = torch.zeros(7)
    found = two_hot(torch.tensor([0.25, -1.0, 9.0, -3.5]), like.expand(4, 7))
    assert found[0].tolist() == pytest.approx([0, 0, 0, 0.75, 0.25, 0, 0], abs=1e-5)
    assert found[1:].tolist() == [[0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0]]


def test_a_moving_average_is_that_of_its_batches_at_first() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, -1.0]], dtype=torch.float64)
    average = MovingAverage.initial().updated(x, 0.99)
    normalised = average.normalised(x)
    assert normalised.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert normalised.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(average.normalised(x, is_centred=False).std(), normalised.std())


def test_it_is_an_update_rule_with_the_sizes_of_the_published_one() -> None:
    rule = DiscoRule()
    assert isinstance(rule, UpdateRule)
    assert (len(rule.layout.names), rule.layout.size) == (42, 754_778)
    eta = RULE.init(torch.Generator().manual_seed(1))
    assert torch.equal(eta, RULE.init(torch.Generator().manual_seed(1)))
    weights = RULE.layout.unflatten(eta)
    assert not any(x.any() for name, x in weights.items() if name.endswith("/b"))
    assert 0.0 < weights["lstm/lstm/linear/w"].abs().max() <= 2.0 / math.sqrt(31.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 1.5),
        ("prediction", 0),
        ("target_network_decay", None),
        ("value_coefficient", -1.0),
        ("average_decay", 1.0),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"rule.{name}"):
        replace(RULE, **{name: value})
