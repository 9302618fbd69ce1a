"""An agent under a rule: one update written out, replay, and what a checkpoint holds."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metagrad.disco import DiscoRule
from metagrad.errors import ConfigurationError
from metagrad.learner.algorithm import Algorithm, AlgorithmState, NonFinite
from metagrad.learner.ruled import ReplayConfig, Ruled, RuledState, _drawn
from metagrad.lpg import Lpg
from metagrad.networks import HaikuMlp, build_network
from metagrad.objective_correction import ObjectiveCorrection
from metagrad.optimizers import Adam
from metagrad.rule_network import RuleAgent, RuleNetwork
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.update_rules import LifetimeRollout

T, B, A = 4, 3, 3
CPU = torch.device("cpu")
RULES: dict[str, Any] = {
    "disco": DiscoRule(prediction=4, largest_value=2, hidden=5, meta_hidden=3),
    "lpg": Lpg(predictions=3, units=4, embedding=2),
    "correction": ObjectiveCorrection(hidden=3),
}


def ruled(name: str = "disco", replay: ReplayConfig = ReplayConfig()) -> Ruled:  # noqa: B008 (it is frozen)
    rule = RULES[name]
    spec = RuleNetwork(torso=HaikuMlp(hidden=6, layers=1), rule=rule, lstm=4, head_hidden=3)
    generator = torch.Generator().manual_seed(4)
    eta = rule.init(generator)
    eta = eta + 0.3 * torch.randn(eta.shape, generator=generator)
    return Ruled(
        network=build_network(spec, (2,), A, False),
        agent=RuleAgent(spec.module((2,), A, False)),
        rule=rule,
        load_eta=lambda: eta,
        optimizer=Adam(learning_rate=1e-2),
        replay=replay,
        seed=5,
        example=example(),
    )


def example() -> LifetimeRollout:
    flags = torch.zeros(T, B, dtype=torch.bool)
    whole = torch.zeros(T + 1, B, dtype=torch.int64)
    return LifetimeRollout(torch.zeros(T + 1, B, 2), whole, torch.zeros(T, B), flags, flags, torch.zeros(T + 1, B, A))


class Source:
    """Rollouts with random observations; remembers which snapshots it was asked for."""

    def __init__(self, algorithm: Ruled, seed: int = 0) -> None:
        self.algorithm = algorithm
        self.generator = torch.Generator().manual_seed(seed)
        self.asked: list[WeightSnapshot] = []
        self.given: list[Trajectory] = []

    def __call__(self, snapshot: WeightSnapshot, step: int) -> Trajectory:
        assert step == 0
        self.asked.append(snapshot)
        observation = torch.randn(T + 1, B, 2, generator=self.generator)
        action = torch.randint(A, (T, B), generator=self.generator)
        outputs = self.algorithm.network.apply(snapshot.theta, observation[:-1].flatten(0, 1), ("logits",))
        log_prob = outputs["logits"].log_softmax(-1).unflatten(0, (T, B)).gather(-1, action[..., None]).squeeze(-1)
        ends, kind = (torch.rand(T, B, generator=self.generator) for _ in range(2))
        reward, valid = torch.randn(T, B, generator=self.generator), torch.rand(T, B, generator=self.generator) < 0.9
        is_terminal, is_truncated = (ends < 0.3) & (kind < 0.5), (ends < 0.3) & (kind >= 0.5)
        flags = (is_terminal, is_truncated, valid)
        self.given.append(Trajectory(observation, action, reward, *flags, log_prob.detach(), snapshot.version))
        return self.given[-1]


def lived(algorithm: Ruled, updates: int, seed: int = 0) -> tuple[RuledState, Source]:
    source, state = Source(algorithm, seed), algorithm.init(1, CPU)
    for _ in range(updates):
        state, _ = algorithm.update(state, source)
    return state, source


def heads(algorithm: Ruled, theta: Tensor, observation: Tensor) -> dict[str, Tensor]:
    outputs = algorithm.agent.apply(theta, observation.flatten(0, 1))
    return {name: x.unflatten(0, (T + 1, B)) for name, x in outputs.items()}


@pytest.mark.parametrize("name", RULES)
def test_two_updates_are_those_that_the_rule_is_defined_by(name: str) -> None:
    algorithm = ruled(name)
    state, source = lived(algorithm, 2)
    rule, theta = algorithm.rule, algorithm.init(1, CPU).theta
    target, rule_state, moments = theta, rule.initial_state(), algorithm.optimizer.init(theta)
    for version, trajectory in enumerate(source.given):
        assert trajectory.policy_version == version
        assert torch.equal(source.asked[version].theta, theta)
        own = theta.clone().requires_grad_()
        outputs = heads(algorithm, own, trajectory.observation)
        target_outputs = None
        if rule.target_network_decay is not None:
            target_outputs = heads(algorithm, target, trajectory.observation)
        rollout = LifetimeRollout(
            observation=trajectory.observation,
            action=torch.cat([trajectory.action, torch.zeros(1, B, dtype=torch.int64)]),
            reward=trajectory.reward,
            is_terminal=trajectory.is_terminal | trajectory.is_truncated,
            valid=trajectory.valid,
            behaviour_logits=outputs["logits"].detach(),
        )
        with torch.no_grad():
            targets, rule_state = rule.targets(state.eta, rule_state, rollout, outputs, target_outputs)
        (gradient,) = torch.autograd.grad(rule.loss(targets, outputs, rollout), own)
        before, (theta, moments) = theta, algorithm.optimizer.update(gradient, moments, theta, state.eta)
        target = 0.9 * target + 0.1 * before
    torch.testing.assert_close(state.theta, theta, rtol=1e-5, atol=1e-7)
    if rule.target_network_decay is not None:
        torch.testing.assert_close(state.target_theta, target)
    assert torch.equal(state.eta, algorithm.load_eta()), "a rule stays as it is"
    assert (state.update, state.version, state.held_batches) == (2, 2, 0)


def test_an_update_changes_no_state_and_repeats_itself() -> None:
    algorithm = ruled(replay=ReplayConfig(capacity=9, batch=5))
    state, _ = lived(algorithm, 2)
    copy = map_tensors(Tensor.clone, state)
    results = [algorithm.update(state, Source(algorithm, 7)) for _ in range(2)]
    for x, y in zip(map_list(state), map_list(copy), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(map_list(results[0][0]), map_list(results[1][0]), strict=True):
        assert torch.equal(x, y)
    assert isinstance(algorithm, Algorithm)
    assert isinstance(state, AlgorithmState)
    assert results[0][1].scalars["policy/log_prob_gap_nats"] < 1e-6, "the actors' policy is the learner's"


def map_list(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def test_replay_waits_until_there_is_a_batch_and_keeps_the_newest() -> None:
    algorithm = ruled(replay=ReplayConfig(capacity=9, batch=7))
    source, state = Source(algorithm), algorithm.init(1, CPU)
    counts = []
    for _ in range(3):
        state, _ = algorithm.update(state, source)
        counts.append((len(source.given), len(state.replay)))
    assert counts == [(3, 3), (4, 3), (5, 3)]
    for kept, given in zip(state.replay, source.given[-3:], strict=True):
        assert torch.equal(kept.observation, given.observation)
    assert [snapshot.version for snapshot in source.asked] == [0, 0, 0, 1, 2]


def test_replay_draws_every_rollout_alike_with_replacement() -> None:
    """Rewards tell the columns apart, and the loss sees the batch."""
    algorithm = ruled("correction", ReplayConfig(capacity=6, batch=4))
    counts = torch.zeros(6)
    for update in range(150):
        drawn = algorithm._random(0x5265706C, update).integers(6, size=4)
        counts += torch.bincount(torch.from_numpy(drawn), minlength=6)
    assert (counts - 100).abs().max() < 40
    state, _ = lived(algorithm, 2)
    batch = _drawn(state.replay, np.array([5, 0, 0, 4]))
    assert torch.equal(batch.reward[:, 0], state.replay[1].reward[:, 2])
    assert torch.equal(batch.observation[:, 1], state.replay[0].observation[:, 0])
    assert torch.equal(batch.behaviour_logits[:, 3], state.replay[1].behaviour_logits[:, 1])
    assert torch.equal(batch.action[:, 1], batch.action[:, 2])


def test_the_state_survives_a_checkpoint_and_others_are_refused() -> None:
    algorithm = ruled(replay=ReplayConfig(capacity=6, batch=4))
    state, _ = lived(algorithm, 2)
    tree = algorithm.to_tree(state)
    assert algorithm.misfit(tree) is None
    back = algorithm.from_tree(tree, CPU)
    for x, y in zip(map_list(state), map_list(back), strict=True):
        assert torch.equal(x, y)
    first, second = (algorithm.update(each, Source(algorithm, 3))[0] for each in (state, back))
    assert torch.equal(first.theta, second.theta)
    for name, wrong in (
        ("theta", tree["theta"][:-1]),
        ("eta", tree["eta"] * torch.nan),
        ("rule_state", tree["rule_state"][:-1]),
        ("replay", [{**tree["replay"][0], "reward": torch.zeros(T, B + 1)}]),
        ("replay", [tree["replay"][0]] * 3),
        ("optimizer", {"count": 2, "moments": []}),
    ):
        assert algorithm.misfit(tree | {name: wrong}) == name
    assert algorithm.misfit({name: x for name, x in tree.items() if name != "version"}) == "version"


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    algorithm = ruled()
    state = algorithm.init(1, CPU)
    with pytest.raises(NonFinite, match="loss/inner"):
        algorithm.update(state._replace(theta=state.theta * torch.nan), Source(algorithm))


@pytest.mark.parametrize(
    ("capacity", "batch", "field"), [(-1, 0, "capacity"), (0, 3, "batch"), (4, 0, "batch"), (4, 5, "batch")]
)
def test_a_replay_that_makes_no_sense_is_refused(capacity: int, batch: int, field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"replay.{field}"):
        ReplayConfig(capacity=capacity, batch=batch)


def test_a_rule_without_a_target_network_keeps_none() -> None:
    state, _ = lived(ruled("lpg"), 1)
    assert state.target_theta.numel() == 0
