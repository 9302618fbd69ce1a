from dataclasses import replace

import pytest
import torch

from metagrad.actor_critic import WHOLE, A2cLoss, VtraceLoss, effective_sample_share
from metagrad.distributions import Categorical
from metagrad.errors import ConfigurationError
from metagrad.losses import OuterObjective, forward
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, build_network
from metagrad.surrogates import SURROGATES

A2C = {"gamma": 0.8, "lambda": 0.7, "value_coefficient": 0.5, "entropy_coefficient": 0.01}
OFF_POLICY = A2C | {"policy_coefficient": 0.9, "rho_clip": 1.2, "c_clip": 0.9}
STEPS, BATCH, ACTIONS = 5, 4, 3
HALF = MetaParameter(initial=0.5)
A2C_LOSS = A2cLoss(gamma=HALF, lambda_=HALF, value_coefficient=HALF, entropy_coefficient=HALF)
VTRACE_LOSS = VtraceLoss(
    **dict.fromkeys(("gamma", "lambda_", "policy_coefficient", "value_coefficient"), HALF),
    **dict.fromkeys(("entropy_coefficient", "rho_clip", "c_clip"), HALF),
)
inner_loss, vtrace_inner_loss = A2C_LOSS.inner_loss, VTRACE_LOSS.inner_loss


def outer_loss(network, theta, trajectory, outer):
    return A2C_LOSS.outer_loss(network, theta, {}, trajectory, outer)


def vtrace_outer_loss(network, theta, trajectory, outer):
    return VTRACE_LOSS.outer_loss(network, theta, {}, trajectory, outer)


def tensors(values):
    return {name: torch.tensor([x], dtype=torch.float64) for name, x in values.items()}


@pytest.fixture(scope="module")
def make_problem(make_trajectory):
    """(seed, is_on_policy) -> (network, θ, trajectory); ratios from about .2 to 5 where the policy is another one."""

    def make(seed=0, is_on_policy=False):
        generator = torch.Generator().manual_seed(seed)
        network = build_network(Mlp(hidden=5), (3,), ACTIONS, True)
        theta = network.init(generator).double()
        theta += 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        trajectory = make_trajectory(generator, STEPS, BATCH, (3,), ACTIONS)
        log_prob = forward(network, theta, trajectory, ("logits",)).policy.log_prob(trajectory.action)
        noise = 0.8 * torch.randn(log_prob.shape, generator=generator, dtype=torch.float64)
        return network, theta, trajectory._replace(behaviour_log_prob=log_prob - (0.0 if is_on_policy else noise))

    return make


def derivatives(loss, theta, values):
    """∇θ, and all that a meta-gradient takes of it: ∂(∇θ · probe) in θ and in every hyper-parameter, by name."""
    probe = torch.randn(theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = theta.clone().requires_grad_()
    hyper = {name: value.requires_grad_() for name, value in tensors(values).items()}
    (gradient,) = torch.autograd.grad(loss(x, hyper), x, create_graph=True)
    inputs = {"theta": x} | hyper
    products = torch.autograd.grad(gradient @ probe, tuple(inputs.values()), allow_unused=True)
    return {"gradient": gradient.detach()} | dict(zip(inputs, products, strict=True))


class Slow:
    """The losses row by row: one observation at a time, V-trace by recursion to the episode's or the rollout's end."""

    def __init__(self, network, theta, trajectory):
        self.network, self.theta, self.trajectory = network, theta, trajectory

    def head(self, name, t, b):
        return self.network.apply(self.theta, self.trajectory.observation[t, b].unsqueeze(0), (name,))[name][0]

    def log_pi(self, t, b):
        return torch.log_softmax(self.head("logits", t, b), -1)[self.trajectory.action[t, b]]

    def ratio(self, t, b):
        log_ratio = self.log_pi(t, b).detach() - self.trajectory.behaviour_log_prob[t, b]
        return log_ratio.exp().reshape(1) if self.trajectory.valid[t, b] else torch.ones(1, dtype=torch.float64)

    def delta(self, critic, t, b, gamma):
        successor = 0.0 if self.trajectory.is_terminal[t, b] else gamma * self.head(critic, t + 1, b).detach()
        return self.trajectory.reward[t, b] + successor - self.head(critic, t, b).detach()

    def goes_on(self, t, b):
        return t + 1 < STEPS and not (self.trajectory.is_terminal | self.trajectory.is_truncated)[t, b]

    def correction(self, critic, t, b, rates):
        """v_t - V(s_t)."""
        gamma, lambda_, rho_clip, c_clip = rates
        result = torch.minimum(rho_clip, self.ratio(t, b)) * self.delta(critic, t, b, gamma)
        if self.goes_on(t, b):
            trace = gamma * lambda_ * torch.minimum(c_clip, self.ratio(t, b))
            result = result + trace * self.correction(critic, t + 1, b, rates)
        return result

    def advantage(self, critic, t, b, rates):
        gamma, lambda_, rho_clip, _ = rates
        result = self.delta(critic, t, b, gamma)
        if self.goes_on(t, b):
            result = result + gamma * lambda_ * self.correction(critic, t + 1, b, rates)
        return torch.minimum(rho_clip, self.ratio(t, b)) * result

    def squared_error(self, critic, t, b, rates):
        target = self.head(critic, t, b).detach() + self.correction(critic, t, b, rates)
        return (target - self.head(critic, t, b)) ** 2

    def rows(self):
        return [(t, b) for t in range(STEPS) for b in range(BATCH) if self.trajectory.valid[t, b]]

    def weights(self, hyper, is_advantage_centred=False, is_advantage_normalised=False, policy_clip=None):
        """Return the weights of the policy's gradient, row by row."""
        rates = [hyper[name] for name in ("gamma", "lambda", "rho_clip", "c_clip")]
        ratio = {row: torch.minimum(hyper["rho_clip"], self.ratio(*row)) for row in self.rows()}
        found = {row: self.advantage("value", *row, rates) for row in self.rows()}
        if is_advantage_centred or is_advantage_normalised:
            mean = sum(found.values()) / sum(ratio.values())
            found = {row: x - ratio[row] * mean for row, x in found.items()}
        if is_advantage_normalised:
            square = sum(x.detach() ** 2 for x in found.values()) / len(found)
            found = {row: x / (square + 1e-5) ** 0.5 for row, x in found.items()}
        if policy_clip is not None:
            for row, x in found.items():
                pushed = self.ratio(*row) - 1.0  # where PPO's clip(π/μ, 1 - ε, 1 + ε) A is the smaller one
                if (x > 0 and pushed > policy_clip) or (x < 0 and -pushed > policy_clip):
                    found[row] = 0.0 * x
        return found

    def inner_loss(self, hyper, surrogate, outer, **options):
        rates = [hyper[name] for name in ("gamma", "lambda", "rho_clip", "c_clip")]
        total, weights = 0.0, self.weights(hyper, **options)
        for t, b in self.rows():
            log_pi = self.log_pi(t, b)
            score = log_pi if surrogate == "ad" else log_pi.exp() / log_pi.exp().detach()
            total = total - hyper["policy_coefficient"] * weights[t, b] * score
            total = total + hyper["value_coefficient"] * self.squared_error("value", t, b, rates)
            log_probs = torch.log_softmax(self.head("logits", t, b), -1)
            total = total + hyper["entropy_coefficient"] * (log_probs.exp() * log_probs).sum()
            if outer.uses_outer_critic:
                squared = self.squared_error("outer_value", t, b, outer_rates(outer))
                total = total + outer.critic_coefficient * squared
        return total.sum() / len(self.rows())

    def outer_loss(self, outer):
        critic = "outer_value" if outer.uses_outer_critic else "value"
        advantages = [self.advantage(critic, t, b, outer_rates(outer)) for t, b in self.rows()]
        scores = [self.log_pi(t, b) for t, b in self.rows()]
        loss = -sum(a * s for a, s in zip(advantages, scores, strict=True)) / len(scores)
        return loss.squeeze(), (sum(advantages) / len(scores)).squeeze()


def outer_rates(outer):
    return tuple(tensors({"gamma": outer.gamma, "lambda": outer.lambda_, "rho": 1.0, "c": 1.0}).values())


@pytest.mark.parametrize("surrogate", ["ad", "lvc"])
@pytest.mark.parametrize("uses_outer_critic", [True, False])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"is_advantage_centred": True}),
        (2, {"is_advantage_normalised": True, "policy_clip": 0.3}),
        (3, {"policy_clip": 0.1}),
    ],
    ids=str,
)
@pytest.mark.thinned(4)
def test_inner_loss_row_by_row(make_problem, surrogate, uses_outer_critic, seed, options):
    network, theta, trajectory = make_problem(seed)
    loss = replace(VTRACE_LOSS, **options)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer" if uses_outer_critic else "inner")

    def ours(x, hyper):
        return loss.inner_loss(network, x, hyper, trajectory, SURROGATES[surrogate], outer)[0]

    def slow(x, hyper):
        return Slow(network, x, trajectory).inner_loss(hyper, surrogate, outer, **options)

    torch.testing.assert_close(ours(theta, tensors(OFF_POLICY)), slow(theta, tensors(OFF_POLICY)))
    found = derivatives(ours, theta, OFF_POLICY)
    torch.testing.assert_close(found, derivatives(slow, theta, OFF_POLICY), rtol=1e-9, atol=1e-11)
    assert set(found) == {"gradient", "theta", *OFF_POLICY}
    assert all(x.abs().max() > 1e-6 for x in found.values())
    if "policy_clip" in options:
        weights = Slow(network, theta, trajectory).weights(tensors(OFF_POLICY), **options).values()
        assert 0 < sum(bool(x == 0) for x in weights) < len(weights), "some steps drive no further, others do"


def test_the_clipped_policys_gradient_is_that_of_ppos_objective(make_problem):
    """∇ mean min(x A, clip(x, 1 - ε, 1 + ε) A) with A as it was when the update began."""
    network, theta, trajectory = make_problem(4)
    epsilon, clip = 0.2, 1e6
    loss = replace(VTRACE_LOSS, policy_clip=epsilon)
    hyper = tensors(OFF_POLICY | {"policy_coefficient": 1.0, "rho_clip": clip, "value_coefficient": 0.0})
    hyper["entropy_coefficient"] = hyper["value_coefficient"]
    slow = Slow(network, theta, trajectory)
    rates = [hyper[name] for name in ("gamma", "lambda", "rho_clip", "c_clip")]
    advantage = {row: (slow.advantage("value", *row, rates) / slow.ratio(*row)).detach() for row in slow.rows()}

    def ppo(x):
        moved, total = Slow(network, x, trajectory), 0.0
        for (t, b), a in advantage.items():
            ratio = (moved.log_pi(t, b) - trajectory.behaviour_log_prob[t, b]).exp()
            total = total - torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        return total.sum() / len(advantage)

    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")
    x = theta.clone().requires_grad_()
    found = torch.autograd.grad(loss.inner_loss(network, x, hyper, trajectory, SURROGATES["lvc"], outer)[0], x)
    torch.testing.assert_close(found, torch.autograd.grad(ppo(x), x), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, float("nan")])
def test_a_clip_that_leaves_no_ratio_is_refused(epsilon):
    with pytest.raises(ConfigurationError, match=r"^meta_parameters.policy_clip = .*: must lie in \(0, 1\); "):
        replace(VTRACE_LOSS, policy_clip=epsilon)


def test_on_policy_normalised_advantages_are_a2cs(make_problem):
    network, theta, trajectory = make_problem(5, is_on_policy=True)
    a2c = replace(A2C_LOSS, is_advantage_normalised=True)
    outer, hyper = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer"), tensors(OFF_POLICY | A2C)
    hyper |= tensors({"policy_coefficient": 1.0, "rho_clip": WHOLE, "c_clip": WHOLE})
    found = [
        torch.func.grad(
            lambda x, loss=loss: loss.inner_loss(network, x, hyper, trajectory, SURROGATES["ad"], outer)[0]
        )(theta)
        for loss in (a2c, a2c.streamed())
    ]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("uses_outer_critic", [True, False])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_outer_loss_row_by_row(make_problem, uses_outer_critic, is_normalised):
    network, theta, trajectory = make_problem(2)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer" if uses_outer_critic else "inner")
    results = []
    for function in (
        lambda x: vtrace_outer_loss(network, x, trajectory, outer),
        lambda x: Slow(network, x, trajectory).outer_loss(outer),
    ):
        x = theta.clone().requires_grad_()
        loss, advantage = function(x)
        results.append((loss.detach(), advantage.detach(), torch.autograd.grad(loss, x)[0]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    if is_normalised:
        whitened = vtrace_outer_loss(network, theta, trajectory, replace(outer, is_advantage_normalised=True))
        assert whitened[0] != results[0][0]
        assert whitened[1] == results[0][1], "the mean that is shown is before"


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [1.0, 2.5])
def test_on_policy_it_is_the_a2c_loss_at_any_lambda(make_problem, surrogate, lambda_, clip):
    network, theta, trajectory = make_problem(3, is_on_policy=True)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    values = A2C | {"lambda": lambda_}
    rest = tensors({"policy_coefficient": 1.0, "rho_clip": clip, "c_clip": clip})

    def a2c(x, hyper):
        return inner_loss(network, x, hyper, trajectory, SURROGATES[surrogate], outer)

    def ours(x, hyper):
        return vtrace_inner_loss(network, x, hyper | rest, trajectory, SURROGATES[surrogate], outer)

    (loss, metrics), plain = ours(theta, tensors(values)), a2c(theta, tensors(values))
    assert metrics.effective_sample_size.item() == pytest.approx(1.0, abs=1e-12)
    found = loss, metrics._replace(effective_sample_size=None)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)
    expected = derivatives(lambda x, h: a2c(x, h)[0], theta, values)
    torch.testing.assert_close(derivatives(lambda x, h: ours(x, h)[0], theta, values), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "outer",
    [
        OuterObjective(gamma=0.95, lambda_=0.9, critic="outer"),
        OuterObjective(gamma=0.95, lambda_=0.9, critic="inner", is_advantage_normalised=True),
    ],
)
def test_on_policy_the_outer_loss_is_the_plain_one(make_problem, outer):
    network, theta, trajectory = make_problem(3, is_on_policy=True)
    torch.testing.assert_close(
        vtrace_outer_loss(network, theta, trajectory, outer),
        outer_loss(network, theta, trajectory, outer),
        rtol=1e-12,
        atol=1e-14,
    )


def test_another_policys_rollouts_give_the_own_policys_gradient(make_problem):
    """One state, one step, each action as often as μ takes it: the mean over μ is the expectation under π."""
    network, theta, trajectory = make_problem(1)
    counts = torch.tensor([4, 3, 1])  # of 8: μ
    action = torch.arange(ACTIONS).repeat_interleave(counts).unsqueeze(0)
    reward_of = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    no = torch.zeros(1, 8, dtype=torch.bool)
    stale = trajectory._replace(
        observation=trajectory.observation[:2, :1].expand(2, 8, 3),
        action=action,
        reward=reward_of[action],
        is_terminal=~no,
        is_truncated=no,
        valid=~no,
        behaviour_log_prob=(counts / 8).double()[action].log(),
    )
    values = OFF_POLICY | {"policy_coefficient": 1.0, "rho_clip": 100.0, "value_coefficient": 0.0}
    hyper = tensors(values | {"entropy_coefficient": 0.0})
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")

    def loss(x):
        return vtrace_inner_loss(network, x, hyper, stale, SURROGATES["lvc"], outer)[0]

    def objective(x):
        outputs = network.apply(x, trajectory.observation[0, :1], ("logits",))
        return -(torch.softmax(outputs["logits"][0], -1) * reward_of).sum()

    torch.testing.assert_close(torch.func.grad(loss)(theta), torch.func.grad(objective)(theta))
    # The curvature of π/μ is that of the expectation too, but for the baseline's, which is 0 in expectation.
    torch.testing.assert_close(torch.func.hessian(loss)(theta), torch.func.hessian(objective)(theta))


def test_metrics(make_problem):
    network, theta, trajectory = make_problem()
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    loss, metrics = vtrace_inner_loss(network, theta, tensors(OFF_POLICY), trajectory, SURROGATES["lvc"], outer)
    parts = metrics.policy_loss + metrics.value_loss - 0.01 * metrics.entropy + 0.5 * metrics.outer_value_loss
    torch.testing.assert_close(parts, loss, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(metrics.policy_loss, -0.9 * metrics.advantage)
    assert metrics.outer_value_loss > 0.0
    assert not any(metric.requires_grad for metric in metrics)


@pytest.mark.parametrize("ratio_clip", [None, WHOLE, 1.0, 1.1])
def test_what_all_advantages_share_moves_the_policy_only_through_clips(make_problem, ratio_clip):
    """E_μ[min(ρ̄, π/μ) ∇log π] = -Σₐ (π - ρ̄ μ)₊ ∇log π: 0 where ratios are whole, else a pull towards μ.

    Centred advantages (None) share nothing.
    """
    network, theta, trajectory = make_problem(1)
    counts = torch.tensor([4, 3, 1])  # of 8: μ
    action, no = torch.arange(ACTIONS).repeat_interleave(counts).unsqueeze(0), torch.zeros(1, 8, dtype=torch.bool)
    mu = (counts / 8).double()
    observation = trajectory.observation[:2, :1].expand(2, 8, 3)
    value = network.apply(theta, observation[0, :1], ("value",))["value"].item()
    stale = trajectory._replace(
        observation=observation,
        action=action,
        reward=torch.full((1, 8), value + 2.0, dtype=torch.float64),  # every advantage is 2
        is_terminal=~no,
        is_truncated=no,
        valid=~no,
        behaviour_log_prob=mu[action].log(),
    )
    loss = A2C_LOSS.streamed(ratio_clip)
    clip = WHOLE if ratio_clip is None else ratio_clip
    values = A2C | {"value_coefficient": 0.0, "entropy_coefficient": 0.0}
    hyper = tensors(values | {"policy_coefficient": 1.0, "rho_clip": clip, "c_clip": clip})
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")

    def log_pi(x):
        return torch.log_softmax(network.apply(x, observation[0, :1], ("logits",))["logits"][0], -1)

    cut = (log_pi(theta).exp() - clip * mu).clamp(min=0.0)
    assert (cut.max() > 0) == (clip < WHOLE)
    expected = torch.func.grad(lambda x: 2.0 * (cut.detach() * log_pi(x)).sum())(theta)
    found = torch.func.grad(lambda x: loss.inner_loss(network, x, hyper, stale, SURROGATES["ad"], outer)[0])(theta)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


def test_effective_sample_size_is_a_share_of_the_valid_steps(make_problem):
    network, theta, trajectory = make_problem(2)
    logits = forward(network, theta, trajectory, ("logits",))["logits"]
    log_ratio = Categorical(logits).log_prob(trajectory.action) - trajectory.behaviour_log_prob
    weights = log_ratio.exp()[trajectory.valid].tolist()
    assert len(weights) < STEPS * BATCH
    expected = sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))
    assert 0.1 < expected < 0.9
    unseen = torch.where(trajectory.valid, log_ratio, torch.nan)
    found = effective_sample_share(unseen, trajectory.valid)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    none = torch.zeros_like(trajectory.valid)
    assert effective_sample_share(log_ratio, none).item() == 1.0


def test_clips_of_streamed_a2c_are_those_asked_for():
    whole, impala = A2C_LOSS.streamed(), A2C_LOSS.streamed(1.0)
    assert {whole.rho_clip.initial, whole.c_clip.initial} == {WHOLE}
    assert {impala.rho_clip.initial, impala.c_clip.initial} == {1.0}
    assert (whole.is_advantage_centred, impala.is_advantage_centred) == (True, False)
    for clip in (0.5, float("nan"), 1e9):
        with pytest.raises(ConfigurationError, match=r"^ratio_clip = .*: must lie in \[1, 1,000,000\]"):
            A2C_LOSS.streamed(clip)
    with pytest.raises(ConfigurationError, match=r"^ratio_clip = 1.0: .* VtraceLoss has its own; set those of"):
        VTRACE_LOSS.streamed(1.0)


@pytest.mark.parametrize(("clip", "is_exact"), [(WHOLE, True), (1.0, False)])
def test_in_expectation_whole_ratios_give_what_gamma_does_to_the_policys_own_gradient(make_problem, clip, is_exact):
    """∂/∂γ of the policy gradient, exactly: summed over all 27 ways to act in three steps, weighted by π or by μ.

    What is seen depends on the action before. μ is another policy in the last step alone, so that states are as often
    seen under both: V-trace corrects actions and returns, not the distribution of states.
    """
    network, theta, trajectory = make_problem(1)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")
    no, steps = torch.zeros(3, 1, dtype=torch.bool), torch.arange(3)
    noise = torch.randn(ACTIONS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def effect_of_gamma(loss, own_values, is_own):
        total = torch.zeros_like(theta)
        for actions in torch.cartesian_prod(*[torch.arange(ACTIONS)] * 3):
            before = torch.cat([torch.tensor([0]), actions])
            observation = trajectory.observation[torch.arange(4), before]
            logits = network.apply(theta, observation[:3], ("logits",))["logits"]
            logits[2] += 0.0 if is_own else noise
            chance = torch.softmax(logits, -1)[steps, actions]
            one = trajectory._replace(
                observation=observation[:, None],
                action=actions[:, None],
                reward=1.0 + actions[:, None].double(),  # all positive: a larger γ raises every advantage
                is_terminal=no,
                is_truncated=no,
                valid=~no,
                behaviour_log_prob=chance.log()[:, None],
            )
            values = A2C | {"value_coefficient": 0.0} | own_values
            hyper = {name: x.requires_grad_() for name, x in tensors(values).items()}
            x = theta.clone().requires_grad_()
            value, _ = loss.inner_loss(network, x, hyper, one, SURROGATES["lvc"], outer)
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            direction = torch.zeros_like(theta, requires_grad=True)
            (along,) = torch.autograd.grad(gradient @ direction, hyper["gamma"], create_graph=True)
            total += chance.prod() * torch.autograd.grad(along, direction)[0]
        return total

    clips = {"policy_coefficient": 1.0, "rho_clip": clip, "c_clip": clip}
    expected = effect_of_gamma(A2C_LOSS, {}, True)
    assert expected.norm() > 1e-3
    error = (effect_of_gamma(A2C_LOSS.streamed(clip), clips, False) - expected).norm() / expected.norm()
    assert error < 1e-12 if is_exact else error > 0.1, error


def test_centred_advantages_are_finite_where_every_ratio_is_clipped_to_nothing(make_problem):
    network, theta, trajectory = make_problem(1)
    outputs = forward(network, theta, trajectory, ("logits", "value"))
    loss = replace(VTRACE_LOSS, is_advantage_centred=True)
    for valid in (trajectory.valid, torch.zeros_like(trajectory.valid)):
        terms = loss.terms(outputs, trajectory._replace(valid=valid), tensors(OFF_POLICY | {"rho_clip": 0.0}))
        assert torch.equal(terms.weight, torch.zeros_like(terms.weight))
