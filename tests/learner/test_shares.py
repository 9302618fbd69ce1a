"""Several learners with a share of the batch each make the update of one learner with all of it (`metagrad.shares`)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from metagrad.actor_critic import VtraceLoss
from metagrad.distributions import DiscreteActions
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.learner.actor_critic import ActorCritic, LearnerState, build_actor_critic
from metagrad.learner.algorithm import UpdateMetrics
from metagrad.learner.config import BootstrapConfig, LearnerConfig
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, build_network
from metagrad.optimizers import Adam, RmsProp, Sgd
from metagrad.shares import WHOLE, Ranks, evaluating, group_shares, present
from metagrad.trees import map_tensors
from metagrad.types import OF_COLUMNS, Trajectory, WeightSnapshot

T, COLUMNS, FEATURES, ACTIONS, UNITS = 4, 7, 5, 3, 4
CPU = torch.device("cpu")


InGroup = Callable[[int, Callable[[], Any]], list[Any]]
Updates = tuple[LearnerState, list[UpdateMetrics]]


def trajectory_at(version: int, width: int) -> Trajectory:
    """Random steps in float64, a function of the version; columns differ in how many of their steps are valid."""
    generator = torch.Generator().manual_seed(version)

    def uniform() -> Tensor:
        return torch.rand(T, width, generator=generator, dtype=torch.float64)

    return Trajectory(
        observation=torch.randn(T + 1, width, FEATURES, generator=generator, dtype=torch.float64),
        action=torch.randint(ACTIONS, (T, width), generator=generator),
        reward=uniform(),
        is_terminal=uniform() < 0.2,
        is_truncated=torch.zeros(T, width, dtype=torch.bool),
        valid=uniform() < torch.linspace(0.2, 1.0, width),
        behaviour_log_prob=-0.5 - uniform(),
        policy_version=version,
        first_state=uniform()[:1, :].T.expand(-1, UNITS).contiguous(),
        first_return=uniform()[0],
    )


def columns(trajectory: Trajectory, first: int, end: int) -> Trajectory:
    """Cut a share out of a batch."""
    whole = trajectory._asdict().items()
    fields = {name: x[:, first:end] if isinstance(x, Tensor) and x.dim() > 1 else x for name, x in whole}
    fields |= {name: x[first:end] for name, x in whole if name in OF_COLUMNS and x is not None}
    return Trajectory(**fields)


def updates(
    algorithm: ActorCritic,
    count: int,
    width: int = COLUMNS,
    share: Callable[[Trajectory], Trajectory] = lambda batch: batch,
) -> Updates:
    """Make so many updates in float64 on a share of batches that are functions of their version."""

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        batch = trajectory_at(100 * snapshot.version + step, width)
        return share(batch if algorithm.reuse > 1 else batch._replace(first_state=None))

    state: Any = algorithm.init(0, CPU)
    state = LearnerState(*map_tensors(lambda x: x.double(), tuple(state)))
    metrics = []
    for _ in range(count):
        state, scalars = algorithm.update(state, sample)
        metrics.append(scalars)
    return state, metrics


def shared_updates(
    in_group: InGroup, config: LearnerConfig, sizes: Sequence[int], count: int, left_out: int | None = None
) -> tuple[list[Updates], int]:
    """Make the same updates in one process a share; also the number of sums, of which one can be left out."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

    def work() -> tuple[Updates, int]:
        group, sums = group_shares(), 0

        def all_reduce(x: Tensor) -> None:
            nonlocal sums
            if sums != left_out:
                dist.all_reduce(x)
            sums += 1

        end = ends[group.rank]
        algorithm = algorithm_of(config).sharing(Ranks(group.rank, group.size, all_reduce))
        own = end - sizes[group.rank], end
        return updates(algorithm, count, ends[-1], lambda batch: columns(batch, *own)), sums

    found = in_group(len(sizes), work)
    return [each for each, _ in found], found[0][1]


def tensors_of(state: LearnerState) -> list[Tensor]:
    states = (state.optimizer, state.meta_optimizer, state.target_optimizer)
    return [state.theta, state.eta, *(moment for each in states for moment in each.moments)]


def distance(whole: Updates, part: Updates) -> float:
    """Return the largest difference between the numbers of one learner and of one that has a share."""
    pairs = list(zip(tensors_of(whole[0]), tensors_of(part[0]), strict=True))
    far = [float((x - y).abs().max()) for x, y in pairs if x.numel()]
    for one, other in zip(whole[1], part[1], strict=True):
        names = [name for name in one.scalars if not name.startswith("time/")]
        far += [abs(one.scalars[name] - other.scalars[name]) for name in names]
    return max(far)


def _learnt(initial: float, high: float = 1.0) -> MetaParameter:
    return MetaParameter(initial=initial, high=high)


def _vtrace(is_centred: bool) -> VtraceLoss:
    return VtraceLoss(
        gamma=_learnt(0.8),
        lambda_=_learnt(0.9),
        policy_coefficient=_learnt(0.9),
        value_coefficient=_learnt(0.5),
        entropy_coefficient=_learnt(0.01),
        rho_clip=_learnt(1.3, 2.0),
        c_clip=_learnt(0.9, 2.0),
        is_advantage_centred=is_centred,
    )


def _intrinsic(config: LearnerConfig) -> LearnerConfig:
    rates = {name: getattr(config.meta_parameters, name) for name in ("gamma", "lambda_")}
    coefficients = {name: _learnt(0.5) for name in ("value_coefficient", "entropy_coefficient")}
    mixed = {name: _learnt(0.5) for name in ("extrinsic_coefficient", "intrinsic_coefficient")}
    loss = IntrinsicRewardLoss(**rates, **coefficients, **mixed, reward_network=Mlp(hidden=4))
    return replace(config, meta_parameters=loss)


def _with_outer(config: LearnerConfig, **fields: Any) -> LearnerConfig:
    return replace(config, outer=replace(config.outer, **fields))


def _with_meta(config: LearnerConfig, **fields: Any) -> LearnerConfig:
    return replace(config, meta=replace(config.meta, **fields))


def _with_loss(config: LearnerConfig, **fields: Any) -> LearnerConfig:
    return replace(config, meta_parameters=replace(config.meta_parameters, **fields))


def _target(updates: int, **fields: Any) -> Callable[[LearnerConfig], LearnerConfig]:
    return lambda config: _with_meta(config, bootstrap=BootstrapConfig(updates=updates, **fields))


LOSSES: dict[str, Callable[[LearnerConfig], LearnerConfig]] = {  # those of lockstep, and of peek
    "a2c": lambda config: config,
    "vtrace": lambda config: replace(config, meta_parameters=_vtrace(is_centred=True)),
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "steps": {},
    "mix": {"estimator": "mix"},
    "trace": {"estimator": "trace", "mu": 0.7},
}
PRODUCTS = ("retain", "recompute")


def _differentiated(loss: str, estimator: str, kind: str) -> Callable[[LearnerConfig], LearnerConfig]:
    return lambda config: _with_meta(LOSSES[loss](config), product=kind, **ESTIMATORS[estimator])


CASES: dict[str, Callable[[LearnerConfig], LearnerConfig]] = {
    "no-look-ahead": lambda config: _with_meta(config, n=0),
    **{"-".join(each): _differentiated(*each) for each in product(LOSSES, ESTIMATORS, PRODUCTS)},
    "sequential": lambda config: _with_meta(config, strategy="sequential"),
    "constant-state": lambda config: _with_meta(config, is_kept_state_constant=True),
    "ad": lambda config: _with_meta(config, surrogate="ad"),
    "loaded-dice": lambda config: _with_meta(config, surrogate="loaded-dice"),
    "inner-normalised": lambda config: _with_loss(config, is_advantage_normalised=True),
    "outer-normalised": lambda config: _with_outer(config, is_advantage_normalised=True),
    "outer-terms": lambda config: _with_outer(
        config, value_coefficient=0.5, entropy_coefficient=0.01, kl_coefficient=0.3
    ),
    "inner-critic": lambda config: _with_outer(config, critic="inner"),
    "target": _target(1),
    "target-of-two": _target(2, value_coefficient=0.5, direction="online||target"),
    "target-at-the-start": _target(1, states="first"),
    "vtrace": lambda config: replace(config, meta_parameters=_vtrace(is_centred=False)),
    "recompute-of-five": lambda config: _with_meta(config, product="recompute", n=5),
    "reused": lambda config: replace(
        _with_loss(
            replace(config, meta_parameters=_vtrace(is_centred=False)), is_advantage_normalised=True, policy_clip=0.1
        ),
        reuse=3,
    ),
    "intrinsic-reward": _intrinsic,
    "rmsprop": lambda config: replace(config, optimizer=RmsProp(learning_rate=0.01, max_gradient_norm=0.5)),
    "learnt-rate": lambda config: replace(config, optimizer=Sgd(learning_rate=_learnt(0.1))),
    "reused-recurrent": lambda config: replace(config, meta_parameters=_vtrace(is_centred=True), reuse=2),
    "normalised-by-the-run": lambda config: replace(config, is_reward_normalised=True),
    "unclipped": lambda config: replace(config, optimizer=Adam(learning_rate=0.01, eps=1e-3)),
}


def algorithm_of(config: LearnerConfig) -> ActorCritic:
    """A recurrent network where each batch is used twice, and one that normalises where rewards are scaled."""
    spec = Mlp(hidden=6, gru=UNITS if config.reuse > 1 else None)
    sizes = ((FEATURES,), DiscreteActions(ACTIONS), config.outer.uses_outer_critic)
    network = build_network(spec, *sizes, is_observation_normalised=config.is_reward_normalised)
    return build_actor_critic(config, network, (FEATURES,), ACTIONS)


FAST = ("outer-normalised", "vtrace-mix-recompute")


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_two_unequal_shares_make_the_update_of_the_whole_batch(in_group: InGroup, config: Any, case: str) -> None:
    learner = CASES[case](config())
    whole = updates(algorithm_of(learner), 2)
    (one, other), _ = shared_updates(in_group, learner, (4, 3), 2)
    assert distance(whole, one) < 1e-12
    assert all(map(torch.equal, tensors_of(one[0]), tensors_of(other[0])))  # to the bit, on every rank


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 3), (1, 6), (3, 2, 2), (0, 7), (33, 32)])
@pytest.mark.parametrize("case", CASES)
def test_any_shares_make_twelve_updates_of_the_whole_batch(
    in_group: InGroup, config: Any, case: str, sizes: tuple[int, ...]
) -> None:
    learner = CASES[case](config())
    whole = updates(algorithm_of(learner), 12, sum(sizes))
    parts, _ = shared_updates(in_group, learner, sizes, 12)
    assert max(distance(whole, part) for part in parts) < 1e-12


def _without_one(in_group: InGroup, learner: LearnerConfig) -> Iterator[float]:
    """Leave out one of the sums of an update after another, and yield how far off the numbers are."""
    whole = updates(algorithm_of(learner), 1)
    _, sums = shared_updates(in_group, learner, (4, 3), 1)
    for number in range(sums):
        parts, _ = shared_updates(in_group, learner, (4, 3), 1, left_out=number)
        yield max(distance(whole, part) for part in parts)


def test_no_sum_can_be_left_out(in_group: InGroup, config: Any) -> None:
    found = list(_without_one(in_group, config(n=1)))
    assert len(found) >= 6
    assert min(found) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["a2c-steps-retain", "inner-normalised", "outer-normalised", "target", "a2c-mix-recompute"]
)
def test_no_sum_of_these_losses_can_be_left_out(in_group: InGroup, config: Any, case: str) -> None:
    """By plain descent: a clip and Adam's quotient undo a gradient's scale, which is all that some counts change."""
    learner = replace(CASES[case](config()), optimizer=Sgd(learning_rate=0.1))
    assert min(_without_one(in_group, learner)) > 1e-9


def test_one_learner_sends_nothing(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective in the update of one learner")

    for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object", "gather_object", "barrier"):
        monkeypatch.setattr(dist, name, refuse)
    monkeypatch.setattr(Ranks, "added", refuse)
    for case in ("vtrace-mix-recompute", "target-of-two"):
        updates(algorithm_of(CASES[case](config())), 1)


def test_bytes_are_those_counted_on_paper(in_group: InGroup, config: Any) -> None:
    """2 (N-1)/N vectors of P numbers for each inner and outer gradient and each Hessian product, and little more."""
    n = 3
    state, metrics = shared_updates(in_group, config(n=n), (4, 3), 1)[0][0]
    vectors = n + 1 + (n - 1)  # inner gradients; the outer one; a product for each step but the first
    on_paper = 8 * state.theta.numel() * vectors  # 2 (N-1)/N = 1 for two
    sent = metrics[0].scalars["transport/collectives_bytes"]
    assert on_paper <= sent <= on_paper + 8 * 60
    assert metrics[0].scalars["time/collectives_seconds"] > 0


def test_a_sum_has_derivatives_of_both_modes_and_orders(in_group: InGroup) -> None:
    """Σᵣ xᵣ of x₀ = a², x₁ = 2a²: f = (Σᵣ xᵣ)² on each rank, F = Σᵣ f = 2 (3a²)² = 18 a⁴."""

    def work() -> list[Tensor]:
        ranks = group_shares()
        a = torch.tensor([1.5], dtype=torch.float64)

        def part(x: Tensor) -> Tensor:
            return ranks.sum((1.0 + ranks.rank) * x.square()).square().sum()

        slope = torch.func.grad(part)(a)
        tangent = torch.func.jvp(part, (a,), (torch.ones_like(a),))[1]
        curvature = torch.func.grad(lambda x: torch.func.jvp(part, (x,), (torch.ones_like(x),))[1])(a)
        x = a.clone().requires_grad_()
        (first,) = torch.autograd.grad(part(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return [slope, tangent, curvature, first.detach(), second]

    found = [sum(each) for each in zip(*in_group(2, work), strict=True)]
    first, second = 72.0 * 1.5**3, 216.0 * 1.5**2
    assert [float(x) for x in found] == pytest.approx([first, first, second, first, second], rel=1e-12)


def test_losses_see_the_shares_of_the_update_that_evaluates_them() -> None:
    shares = Ranks(0, 1, lambda _: None)
    assert present() is WHOLE
    with evaluating(shares):
        assert present() is shares
    assert present() is WHOLE
