"""Configures the learner: inner optimizer, meta-gradient, outer objective, meta-parameters."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from metagrad.actor_critic import InnerLoss
from metagrad.bootstrap import Matching
from metagrad.errors import require, require_one_of
from metagrad.losses import OuterObjective
from metagrad.meta_gradient import Estimator
from metagrad.meta_parameters import MetaParameter
from metagrad.optimizers import Adam, FirstOrderOptimizer
from metagrad.surrogates import SurrogateName
from metagrad.unroll import Product

MOST_UPDATES = 10_000
"""Limits the look-ahead: each of its updates needs a batch of rollouts of its own, for one meta-update."""
Strategy = Literal["discard", "sequential"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapConfig(Matching):
    """Replaces the outer loss by the distance from a bootstrapped target (BMG), some updates further on."""

    updates: int = 0
    """Number of updates from θₙ to the target; 0: no target, use the outer loss itself. The last update descends the
    outer loss, with its own persistent optimizer state; those before it use the inner optimizer's."""

    field: ClassVar[str] = "bootstrap"

    def __post_init__(self) -> None:
        Matching.__post_init__(self)
        rule, remedy = "must be 0 (no target) or more", "the debiasing paper uses 1"
        require(self.updates >= 0, "bootstrap.updates", self.updates, rule, remedy)
        rule = f"must be at most {MOST_UPDATES:,}"
        require(self.updates <= MOST_UPDATES, "bootstrap.updates", self.updates, rule, "lower it")
        rule, remedy = (
            "has no effect without a bootstrapped target",
            "leave it out or set bootstrap.updates to 1",
        )
        for each in fields(Matching):
            value = getattr(self, each.name)
            require(value == each.default or self.updates > 0, f"bootstrap.{each.name}", value, rule, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaGradientConfig:
    """Says how the meta-gradient is computed."""

    n: int
    """Number of inner updates to differentiate through; 0: plain A2C, with meta-parameters at their initial values."""
    estimator: Estimator = "n-step"
    """n-step: the outer loss after n updates; mix: a weighted mean over 1 to n updates; trace: the accumulative trace,
    which ignores curvature."""
    kappa: float | None = None
    """With estimator mix, the decay of its weights; None: 1 - 1/n ("One Step at a Time", §3.5)."""
    mu: float | None = None
    """With estimator trace, its decay in [0, 1]; no second-order product is computed ("One Step at a Time", D.1)."""
    surrogate: SurrogateName = "lvc"
    """Form of the inner policy gradient, which decides its curvature: ad: plain differentiation; lvc: low-variance
    curvature; loaded-dice: unbiased for whole episodes, with more variance."""
    product: Product = "retain"
    """retain: keep the graph of each update; recompute: build it again, for memory that hardly grows with n."""
    strategy: Strategy = "discard"
    """discard: keep only the first of n updates; sequential: keep all n, with one meta-update for them."""
    is_kept_state_constant: bool = False
    """True: the meta-gradient treats the optimizer's moments at θ₁, which discard keeps, as constants, as an option of
    the gradient-bias paper's released Atari code does; False: it differentiates them."""
    optimizer: Adam
    bootstrap: BootstrapConfig = BootstrapConfig()

    def __post_init__(self) -> None:
        for name, names in (
            ("estimator", Estimator),
            ("surrogate", SurrogateName),
            ("product", Product),
            ("strategy", Strategy),
        ):
            require_one_of(getattr(self, name), names, f"meta.{name}")
        require(self.n >= 0, "meta.n", self.n, "must be 0 (plain A2C) or more", "count the updates to look through")
        require(self.n <= MOST_UPDATES, "meta.n", self.n, f"must be at most {MOST_UPDATES:,}", "lower it")
        is_mix = self.estimator == "mix"
        require(
            self.kappa is None or is_mix, "meta.kappa", self.kappa, "belongs to --meta.estimator mix", "leave it out"
        )
        # At 0 only the first outer loss has a weight, and the look-ahead beyond θ₁ would be thrown away.
        require(self.kappa is None or 0 < self.kappa <= 1, "meta.kappa", self.kappa, "must lie in (0, 1]", "use None")
        is_trace = self.estimator == "trace"
        require(self.mu is None or is_trace, "meta.mu", self.mu, "belongs to --meta.estimator trace", "leave it out")
        rule = "--meta.estimator trace needs a decay in [0, 1]"
        require(not is_trace or (self.mu is not None and 0 <= self.mu <= 1), "meta.mu", self.mu, rule, "use 0.9, say")
        require(
            self.n > 0 or self.strategy == "discard",
            "meta.strategy",
            self.strategy,
            "makes meta.n updates per meta-update and needs meta.n >= 1",
            "raise meta.n or use discard",
        )
        rule = "needs a look-ahead beyond θ₁ that is discarded (meta.n >= 2, --meta.strategy discard)"
        is_looked_beyond = self.n >= 2 and self.strategy == "discard"
        is_constant = self.is_kept_state_constant
        require(is_looked_beyond or not is_constant, "meta.is_kept_state_constant", is_constant, rule, "leave it out")
        rate, rule = self.optimizer.learning_rate, "is the step size of what is learnt, and is not learnt itself"
        require(not isinstance(rate, MetaParameter), "meta.optimizer.learning_rate", rate, rule, "give a number")
        is_constant = self.optimizer.is_clip_coefficient_constant
        rule = "belongs to the inner optimizer: nothing is differentiated through this one"
        remedy = "leave it out, or set optimizer.is_clip_coefficient_constant"
        require(not is_constant, "meta.optimizer.is_clip_coefficient_constant", is_constant, rule, remedy)
        updates = self.bootstrap.updates
        rule = "needs meta.n >= 1 updates that the target is beyond"
        require(self.n > 0 or not updates, "meta.bootstrap.updates", updates, rule, "raise meta.n")
        rule = "has one target, beyond the last look-ahead, and no mixture of outer losses"
        require(not (is_mix and updates), "meta.bootstrap.updates", updates, rule, "use --meta.estimator n-step")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """Holds the learner's whole part of an experiment."""

    optimizer: FirstOrderOptimizer
    meta: MetaGradientConfig
    outer: OuterObjective
    meta_parameters: InnerLoss
    reuse: int = 1
    """How often each real batch is used."""
    minibatches: int = 1
    """Parts of a batch, each of other environments, that every use makes an inner update of."""
    is_reward_normalised: bool = False
