"""Tunes an actor-critic's hyper-parameters by meta-gradients: its state, and one update of θ and η.

θ₀ ─ inner update ─► θ₁ ─► … ─► θₙ      n batches, the next one always sampled under the newest θⱼ
                                │
η ◄──── adjoint pass ◄──── outer losses at θ₁ … θₙ, or the distance of θₙ to a bootstrapped target
"""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.actor_critic import InnerLoss
from metagrad.bootstrap import LastUpdate, Matching, bootstrap_target, matching_loss
from metagrad.errors import require
from metagrad.frame_stacks import packed, unpacked
from metagrad.learner.algorithm import Clock, Sample, UpdateMetrics, fetched, finite_scalars
from metagrad.learner.batch import minibatches, trajectory_of, tree_of
from metagrad.learner.config import LearnerConfig, MetaGradientConfig
from metagrad.learner.normalised import Feed, RunStatistics
from metagrad.learner.normalised import from_tree as statistics_from_tree
from metagrad.learner.plain_data import is_finite, is_like, is_trajectory
from metagrad.losses import LossMetrics, OuterObjective
from metagrad.meta_gradient import meta_gradient, outer_gradient, outer_weights
from metagrad.meta_parameters import (
    Declaration,
    Hyperparameters,
    MetaParameter,
    MetaVector,
    hyperparameters,
    init_eta,
    learnt_names,
    learnt_slices,
    shown,
)
from metagrad.networks import Network
from metagrad.normalisation import no_statistics
from metagrad.optimizers import Optimizer, OptimizerState, learnt_rate
from metagrad.shares import Ranks, Shares
from metagrad.surrogates import SURROGATES
from metagrad.tape import recorded
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import InnerProblem, InnerUpdate, inner_update

_PARTS = (
    *("loss/inner", "loss/policy", "loss/value", "loss/outer_value", "loss/outer", "loss/matching"),
    *("policy/entropy_nats", "policy/log_prob_gap_nats", "advantage/inner_mean", "advantage/outer_mean"),
)
"""Scalars of which each learner that has a share of the batch has its part of the mean."""


class LearnerState(NamedTuple):
    """Holds all that changes during a run; state in, state out: nothing here is changed in place."""

    update: int  # real inner updates done
    version: int  # version of the next published snapshot
    theta: Float[Tensor, "P"]
    optimizer: OptimizerState
    eta: Float[Tensor, "M"]
    meta_optimizer: OptimizerState
    target_optimizer: OptimizerState  # of the last update of a bootstrapped target: it continues from target to target
    carry: Trajectory | None  # sequential: the outer batch, which is the next window's first inner batch
    statistics: RunStatistics = RunStatistics()  # of all real batches, where something is normalised by them

    @property
    def held_batches(self) -> int:
        """Count the real batches here that no update has used yet."""
        return 0 if self.carry is None else 1

    def snapshot(self) -> WeightSnapshot:
        """Return what the actors are told."""
        return WeightSnapshot(self.version, self.theta, self.eta)


class _Outer(NamedTuple):
    """Collects the outer terms along a look-ahead."""

    gradients: tuple[Float[Tensor, "P"] | None, ...]  # wᵢ ∇L'(θᵢ), or of the matching loss
    metrics: dict[str, Tensor]  # scalars by name
    last_batch: Trajectory  # sampled at θₙ
    target_optimizer: OptimizerState


@dataclass(frozen=True, slots=True)
class ActorCritic:
    """Actor-critic whose hyper-parameters are tuned by meta-gradients; everything that an update needs, and no state.

    Under the strategy `discard` θ₁ is kept, and the other n-1 updates existed only to look ahead ("One Step at a Time",
    Figure 1). Under `sequential` θₙ is kept, and the batch sampled at θₙ is the next window's first inner batch
    (released Atari code of the gradient-bias paper, §G.3.2); all frames up to it are real.
    """

    network: Network
    declaration: Declaration
    problem: InnerProblem
    losses: InnerLoss
    outer: OuterObjective
    weights: tuple[float, ...]  # w₁…wₙ
    meta: MetaGradientConfig
    meta_optimizer: Optimizer
    reuse: int = 1
    minibatches: int = 1
    is_reward_normalised: bool = False

    def outer_loss(
        self,
        theta: Float[Tensor, "P"],
        eta: Float[Tensor, "M"],
        trajectory: Trajectory,
        start: Float[Tensor, "P"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return L'(θ; τ') and the mean outer advantage; η, which a biased baseline may look at, is a constant here.

        `start` is θ₀, from which the look-ahead came; an outer loss with a KL term needs it.
        """
        hyper = hyperparameters(self.declaration, eta.detach())
        network = self.network.under(self.outer.gamma)
        loss, advantage = self.losses.outer_loss(network, theta, hyper, trajectory, self.outer)
        if self.outer.kl_coefficient:
            assert start is not None, "a KL term needs the parameters before the look-ahead"
            kl, _ = matching_loss(network, theta, start, trajectory, Matching(direction="online||target"))
            loss = loss + self.outer.kl_coefficient * kl
        return loss, advantage

    def sharing(self, shares: Shares) -> "ActorCritic":
        """Return the algorithm for one of several learners, which is given its share of each batch."""
        return replace(self, problem=self.problem._replace(shares=shares))

    def inner_network(self, eta: Float[Tensor, "M"]) -> Network:
        """Return the network as the inner loss sees it, under γ(η) where its critic is told the discount."""
        return told_gamma(self.network, hyperparameters(self.declaration, eta))

    def init(self, seed: int, device: torch.device) -> LearnerState:
        """Return a fresh state; θ and η are drawn on the CPU, so they do not depend on the device."""
        generator = torch.Generator().manual_seed(seed)
        theta = self.network.init(generator).to(device)
        eta = init_eta(self.declaration, generator=generator).to(device)
        optimizer = self.problem.optimizer
        return LearnerState(
            update=0,
            version=0,
            theta=theta,
            optimizer=optimizer.init(theta),
            eta=eta,
            meta_optimizer=self.meta_optimizer.init(eta),
            target_optimizer=optimizer.init(theta[: theta.numel() if self.meta.bootstrap.updates else 0]),
            carry=None,
            statistics=RunStatistics(
                self.network.no_statistics(device), no_statistics(1, device) if self.is_reward_normalised else None
            ),
        )

    def update(self, state: LearnerState, sample: Sample) -> tuple[LearnerState, UpdateMetrics]:
        """Make n inner updates, of which the strategy keeps the first or all, and one update of η.

        With n = 0 there is one inner update and nothing to look ahead for. A batch of which K updates are made, by
        several uses or minibatches, makes K - 1 plain ones first, and the look-ahead begins with the last one. Updates
        of the look-ahead see one minibatch of a batch of their own, the outer loss a whole batch.

        Raises:
            NonFinite: names the quantity and the update.
        """
        clock = Clock()
        n, is_sequential = len(self.weights), self.meta.strategy == "sequential"
        keep_graph = self.meta.product == "retain" and n > 0 and state.eta.numel() > 0
        feed = Feed(sample, state.statistics.returns)
        batch = feed(state.snapshot(), 0) if state.carry is None else feed.scaled(state.carry)
        clock.lap("sample")
        theta, optimizer = state.theta, state.optimizer
        parts = minibatches(batch, self.reuse, self.minibatches, state.update)
        for part in islice(parts, self.reuse * self.minibatches - 1):
            theta, optimizer, *_ = inner_update(self.problem, theta, optimizer, state.eta, part, keep_graph=False)
        first = last = inner_update(self.problem, theta, optimizer, state.eta, next(parts), keep_graph)
        self._check_shared()
        clock.lap("inner")
        tape = recorded((), first.step)
        outer = _Outer((), {}, batch, state.target_optimizer)
        for j, weight in enumerate(self.weights, start=1):
            if j > 1:
                part = next(minibatches(batch, 1, self.minibatches, state.update + j))
                last = inner_update(self.problem, last.theta, last.state, state.eta, part, keep_graph)
                clock.lap("inner")
                tape = recorded(tape, last.step)
            batch = feed(WeightSnapshot(state.version + j, last.theta, state.eta), 0 if is_sequential else j)
            clock.lap("sample")
            outer = self._with_outer_loss(outer, weight, last.theta, state, batch, clock)
        if self.meta.bootstrap.updates:
            outer = self._with_target(outer, last, state, feed, clock)
        kept = last if is_sequential else first
        new = state._replace(
            update=int(kept.state.updates),
            # Under `sequential` θₙ has been published and its batch sampled: it goes by the last version that is out.
            version=state.version + n + self.meta.bootstrap.updates + (0 if is_sequential else 1),
            theta=kept.theta,
            optimizer=kept.state,
            carry=feed.real[-1] if is_sequential else None,
            target_optimizer=outer.target_optimizer,
        )
        new = new._replace(statistics=state.statistics.with_batches(feed.real, self.outer.gamma, self.problem.shares))
        if new.statistics.observations is not None:
            new = new._replace(theta=self.network.with_statistics(new.theta, new.statistics.observations))
        gradient = None
        if n and state.eta.numel():
            gradient = meta_gradient(
                self.problem,
                tape,
                outer.gradients,
                self.meta.product,
                trace=self.meta.mu,
                constant_state=1 if self.meta.is_kept_state_constant else None,
            ).eta
            with torch.no_grad():
                eta, meta_optimizer = self.meta_optimizer.update(gradient, state.meta_optimizer, state.eta, state.eta)
            new = new._replace(eta=eta, meta_optimizer=meta_optimizer)
        if n:
            clock.lap("meta")
        return new, self._metrics(new, first, outer.metrics, gradient, clock)

    def _check_shared(self) -> None:
        """Refuse a loss that takes its share of a batch for the whole one; learners would descend N times as steeply.

        Raises:
            ConfigurationError: it never asked for a count or sum of the whole batch.
        """
        shares, loss = self.problem.shares, type(self.losses).__name__
        rule = f"{loss} divides by no count of the whole batch (metagrad.losses.masked_mean), of which each has a share"
        is_shared = not isinstance(shares, Ranks) or shares.is_asked
        size = shares.size if isinstance(shares, Ranks) else 1
        require(is_shared, "learners", size, rule, "use masked_mean in the loss, or one learner")

    def _with_outer_loss(
        self, before: _Outer, weight: float, theta: Tensor, state: LearnerState, batch: Trajectory, clock: Clock
    ) -> _Outer:
        """Add the outer loss at θⱼ; where it has no weight, or a target stands in its place, there is no gradient."""
        if not weight or self.meta.bootstrap.updates:
            return before._replace(gradients=(*before.gradients, None), last_batch=batch)
        outer = outer_gradient(
            lambda x, trajectory: self.outer_loss(x, state.eta, trajectory, state.theta),
            theta,
            batch,
            self.problem.shares,
        )
        gradient = weight * outer.gradient
        terms = {"loss/outer": weight * outer.loss, "advantage/outer_mean": weight * outer.metrics}
        metrics = {name: before.metrics.get(name, 0.0) + term for name, term in terms.items()}
        clock.lap("outer")
        return before._replace(gradients=(*before.gradients, gradient), metrics=metrics, last_batch=batch)

    def _with_target(
        self, before: _Outer, last: InnerUpdate, state: LearnerState, sample: Sample, clock: Clock
    ) -> _Outer:
        """Put the matching loss last: a target from θₙ on, and a batch sampled by its policy."""
        bootstrap, n = self.meta.bootstrap, len(self.weights)

        def sampled(x: Tensor, j: int) -> Trajectory:
            if j == 0:
                return before.last_batch
            clock.lap("outer")
            batch = sample(WeightSnapshot(state.version + n + j, x, state.eta), n + j)
            clock.lap("sample")
            return batch

        target = bootstrap_target(
            self.problem,
            lambda x, trajectory: self.outer_loss(x, state.eta, trajectory, state.theta),
            last.theta,
            last.state,
            state.eta,
            bootstrap.updates,
            sampled,
            LastUpdate(self.problem.optimizer, before.target_optimizer),
        )
        batch = sampled(target.theta, bootstrap.updates)
        network = self.inner_network(state.eta)
        matched = outer_gradient(
            lambda x, trajectory: matching_loss(network, x, target.theta, trajectory, bootstrap),
            last.theta,
            batch,
            self.problem.shares,
        )
        clock.lap("outer")
        metrics = {
            "loss/outer": target.outer_loss,
            "advantage/outer_mean": target.metrics,
            "loss/matching": matched.loss,
        }
        gradients = (*before.gradients[:-1], matched.gradient)
        return before._replace(gradients=gradients, metrics=metrics, target_optimizer=target.state)

    def _metrics(
        self,
        state: LearnerState,
        first: InnerUpdate,
        outer: dict[str, Tensor],
        gradient: Tensor | None,
        clock: Clock,
    ) -> UpdateMetrics:
        """Fetch all scalars of the update, checked for NaN and infinity."""
        inner: LossMetrics = first.metrics
        tensors: dict[str, Tensor] = {
            "loss/inner": first.loss,
            "loss/policy": inner.policy_loss,
            "loss/value": inner.value_loss,
            "loss/outer_value": inner.outer_value_loss,
            "policy/entropy_nats": inner.entropy,
            "policy/log_prob_gap_nats": inner.log_prob_gap,
            "advantage/inner_mean": inner.advantage,
            "norm/gradient": first.step.gradient.detach().norm(),
            "norm/theta": state.theta.norm(),
        }
        if inner.effective_sample_size is not None:
            tensors["policy/effective_sample_size"] = inner.effective_sample_size
        tensors |= outer
        parts = {name: x for name, x in tensors.items() if name in _PARTS}
        tensors |= zip(parts, self.problem.shares.total(*parts.values()), strict=True)
        components: tuple[str, ...] = ()
        if gradient is not None:
            # Of each learnt scalar; a vector counts in the norm alone.
            slices = learnt_slices(self.declaration)
            components = tuple(name for name in slices if not isinstance(self.declaration[name], MetaVector))
            tensors |= {f"meta_gradient/{name}": gradient[slices[name]] for name in components}
            tensors["norm/meta_gradient"] = gradient.norm()
        # Last, so that a NaN is named where it began and not where it ended up.
        tensors |= {f"eta/{name}": x for name, x in shown(self.declaration, state.eta).items()}
        scalars = finite_scalars(tensors, state.update)
        clock.lap("metrics")
        of_scalars = tuple(scalars[f"meta_gradient/{name}"] for name in components)
        return UpdateMetrics(scalars | clock.scalars() | self._sent(), of_scalars, gradient)

    def _sent(self) -> dict[str, float]:
        """Return what the sums over other processes' shares have cost, where there are others."""
        if not isinstance(self.problem.shares, Ranks):
            return {}
        sent = self.problem.shares.take_sent()
        return {"time/collectives_seconds": sent.seconds, "transport/collectives_bytes": sent.bytes}

    def estimate_meta_gradient(self, state: LearnerState, sample: Sample) -> Float[Tensor, "M"]:
        """Return one sample of ∂J/∂η at a state, before clipping: that of an update which is thrown away."""
        _, metrics = self.update(state, sample)
        assert metrics.eta_gradient is not None, "nothing is learnt"
        return metrics.eta_gradient

    def shown(self, state: LearnerState) -> dict[str, float]:
        """Return all hyper-parameters."""
        return fetched(shown(self.declaration, state.eta))

    def learnt(self, state: LearnerState) -> dict[str, float]:
        """Return those hyper-parameters that are learnt."""
        values, learnt = self.shown(state), learnt_names(self.declaration)
        return {name: value for name, value in values.items() if name in learnt}

    def to_tree(self, state: LearnerState) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and tensors, which a checkpoint may hold."""
        tree: dict[str, Any] = state._asdict()
        for name in ("optimizer", "meta_optimizer", "target_optimizer"):
            tree[name] = {"count": tree[name].updates, "moments": list(tree[name].moments)}
        tree["carry"] = None if state.carry is None else tree_of(packed(state.carry))
        statistics = tree.pop("statistics").to_tree()
        return tree | {"statistics": statistics} if statistics else tree

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> LearnerState:
        """Invert `to_tree`, on `device`."""
        tree = map_tensors(lambda x: x.to(device), tree)

        def optimizer(x: dict[str, Any]) -> OptimizerState:
            return OptimizerState(x["count"], tuple(x["moments"]))

        carry = tree["carry"]
        return LearnerState(
            update=tree["update"],
            version=tree["version"],
            theta=tree["theta"],
            optimizer=optimizer(tree["optimizer"]),
            eta=tree["eta"],
            meta_optimizer=optimizer(tree["meta_optimizer"]),
            target_optimizer=optimizer(tree["target_optimizer"]),
            carry=None if carry is None else unpacked(trajectory_of(carry)),
            statistics=statistics_from_tree(tree.get("statistics", {})),
        )

    def misfit(self, tree: Any) -> str | None:
        """Return the name of the first entry of a tree that is not as `to_tree` gives it here; None: the tree fits."""
        expected = self.to_tree(self.init(0, torch.device("cpu")))
        for name, entry in expected.items():
            if not isinstance(tree, dict) or name not in tree:
                return name
            found = tree[name]
            fits = (found is None or is_trajectory(found)) if name == "carry" else is_like(found, entry)
            if not fits or (name in ("theta", "eta") and not is_finite(found)):
                return name
        return None


def build_actor_critic(
    config: LearnerConfig, network: Network, observation_shape: tuple[int, ...], num_actions: int
) -> ActorCritic:
    """Build the algorithm that `config` describes, for one network in one kind of environment.

    `num_actions` is the size of the policy head.
    """
    outer = config.outer
    losses = config.meta_parameters
    declaration = losses.declaration(observation_shape, num_actions)
    optimizer = config.optimizer
    if isinstance(optimizer.learning_rate, MetaParameter):
        declaration = {**declaration, "learning_rate": optimizer.learning_rate}
        optimizer = replace(optimizer, learning_rate=learnt_rate("learning_rate", declaration))
    surrogate = SURROGATES[config.meta.surrogate]

    trained = network.with_first_order(_beyond_adjoints(config, network))

    def loss(theta: Tensor, eta: Tensor, batch: Any) -> tuple[Tensor, LossMetrics]:
        hyper = hyperparameters(declaration, eta)
        return losses.inner_loss(told_gamma(trained, hyper), theta, hyper, batch, surrogate, outer)

    return ActorCritic(
        network=network,
        declaration=declaration,
        problem=InnerProblem(loss, optimizer),
        losses=losses,
        outer=outer,
        weights=outer_weights(config.meta.estimator, config.meta.n, config.meta.kappa),
        meta=config.meta,
        meta_optimizer=config.meta.optimizer,
        reuse=config.reuse,
        minibatches=config.minibatches,
        is_reward_normalised=config.is_reward_normalised,
    )


def told_gamma(network: Network, hyper: Hyperparameters) -> Network:
    """Return the network with inner values under γ, a constant there, where its critic is told the discount."""
    return network.under(hyper["gamma"]) if network.is_conditioned else network


def _beyond_adjoints(config: LearnerConfig, network: Network) -> tuple[str, ...]:
    """Name the parameters whose gradients no adjoint is multiplied with: those of critics on their own.

    The outer loss's gradient is 0 there, and stays so through an optimizer that treats each parameter by itself. A clip
    by the norm of all gradients, an outer loss with a value term or a bootstrapped target that matches values would
    reach them.
    """
    is_apart = config.meta_parameters.is_policy_apart and not config.outer.reaches_critics
    is_coupled = config.optimizer.couples_parameters or config.meta.bootstrap.value_coefficient > 0
    return network.own_parameters_of_critics if is_apart and not is_coupled else ()
