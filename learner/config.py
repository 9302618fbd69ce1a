"""What the learner is told: inner optimizer, meta-gradient, outer objective, meta-parameters."""

import math
from dataclasses import dataclass
from typing import Literal

from metagrad.errors import require
from metagrad.meta_gradient import Estimator
from metagrad.meta_parameters import MetaParameter
from metagrad.optimizers import (
    Adam,
    ClipByGlobalNorm,
    LearningRate,
    Optimizer,
    RmsProp,
    Sgd,
    constant,
    linear_annealing,
)
from metagrad.surrogates import SurrogateName
from metagrad.unroll import Product


@dataclass(frozen=True, kw_only=True, slots=True)
class _OptimizerConfig:
    learning_rate: float
    annealing_updates: int | None = None
    """Linear decay of the step size to 0 over this many updates; None: constant."""
    max_gradient_norm: float | None = None
    """Global-norm clip of the gradient; None: no clip."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "must be positive and finite", "change it")
        updates, norm = self.annealing_updates, self.max_gradient_norm
        require(updates is None or updates > 0, "optimizer.annealing_updates", updates, "must be > 0", "use None")
        require(norm is None or norm > 0, "optimizer.max_gradient_norm", norm, "must be > 0", "use None for no clip")

    def _schedule(self) -> LearningRate:
        if self.annealing_updates is None:
            return constant(self.learning_rate)
        return linear_annealing(self.learning_rate, self.annealing_updates)

    def _clipped(self, optimizer: Optimizer) -> Optimizer:
        if self.max_gradient_norm is None:
            return optimizer
        return ClipByGlobalNorm(max_norm=self.max_gradient_norm, optimizer=optimizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class SgdConfig(_OptimizerConfig):
    """Gradient descent with optional heavy-ball momentum."""

    momentum: float = 0.0

    def __post_init__(self) -> None:
        _OptimizerConfig.__post_init__(self)
        _check_rates(self, ("momentum",), ())

    def build(self) -> Optimizer:
        """The differentiable optimizer."""
        return self._clipped(Sgd(learning_rate=self._schedule(), momentum=self.momentum))


@dataclass(frozen=True, kw_only=True, slots=True)
class RmsPropConfig(_OptimizerConfig):
    """RMSProp; `eps` outside and `eps_root` inside the square root."""

    decay: float = 0.9
    eps: float = 0.0
    eps_root: float = 1e-8

    def __post_init__(self) -> None:
        _OptimizerConfig.__post_init__(self)
        _check_rates(self, ("decay",), ("eps", "eps_root"))
        _check_floor(self)

    def build(self) -> Optimizer:
        """The differentiable optimizer."""
        rms_prop = RmsProp(learning_rate=self._schedule(), decay=self.decay, eps=self.eps, eps_root=self.eps_root)
        return self._clipped(rms_prop)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamConfig(_OptimizerConfig):
    """Adam; `eps` outside and `eps_root` (optax) inside the square root."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0

    def __post_init__(self) -> None:
        _OptimizerConfig.__post_init__(self)
        _check_rates(self, ("beta1", "beta2"), ("eps", "eps_root"))
        _check_floor(self)

    def build(self) -> Optimizer:
        """The differentiable optimizer."""
        adam = Adam(
            learning_rate=self._schedule(), beta1=self.beta1, beta2=self.beta2, eps=self.eps, eps_root=self.eps_root
        )
        return self._clipped(adam)


def _check_rates(
    config: RmsPropConfig | AdamConfig | SgdConfig, decays: tuple[str, ...], floors: tuple[str, ...]
) -> None:
    for name in decays:
        value = getattr(config, name)
        require(0 <= value < 1, f"optimizer.{name}", value, "must lie in [0, 1)", "choose a value inside")
    for name in floors:
        value = getattr(config, name)
        require(0 <= value < math.inf, f"optimizer.{name}", value, "must be 0 or more", "choose a small number or 0")


def _check_floor(config: RmsPropConfig | AdamConfig) -> None:
    """Without any floor a parameter that has had no gradient yet (a dead unit) is divided 0 by 0."""
    floors = (config.eps, config.eps_root)
    require(any(floors), "optimizer.eps, eps_root", floors, "must not both be 0", "give one of them a small number")


OptimizerConfig = SgdConfig | RmsPropConfig | AdamConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaGradientConfig:
    """How the meta-gradient is taken."""

    n: int
    """Inner updates looked through; 0 is plain A2C with the meta-parameters fixed at their initial values."""
    estimator: Estimator = "n-step"
    kappa: float | None = None
    """Decay of the mix weights; None: 1 - 1/n ("One Step at a Time", §3.5)."""
    mu: float | None = None
    """Decay of the accumulative trace, which takes no second-order product ("One Step at a Time", D.1)."""
    surrogate: SurrogateName = "lvc"
    product: Product = "retain"
    strategy: Literal["discard", "sequential"] = "discard"
    """discard: the first of n updates is real; sequential: all n are, with one meta-update for them."""
    optimizer: AdamConfig

    def __post_init__(self) -> None:
        require(self.n >= 0, "meta.n", self.n, "must be 0 (plain A2C) or more", "count the updates to look through")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterConfig:
    """What the meta-parameters are tuned for."""

    gamma: float
    lambda_: float
    critic: Literal["outer", "inner"]
    """Who estimates the outer advantage: a head trained for γ' (debiased), or the inner critic (biased baseline)."""
    critic_coefficient: float = 0.5
    """Weight of the outer critic's regression inside the inner update."""

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("lambda", self.lambda_)):
            require(0 <= value <= 1, f"outer.{name}", value, "must lie in [0, 1]", "choose a value inside")
        weight = self.critic_coefficient
        require(0 <= weight < math.inf, "outer.critic_coefficient", weight, "must be 0 or more", "raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaParametersConfig:
    """Hyper-parameters of the inner loss that can be learnt, each with its bounds."""

    gamma: MetaParameter
    lambda_: MetaParameter
    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter

    def __post_init__(self) -> None:
        for name, rate in (("gamma", self.gamma), ("lambda", self.lambda_)):
            bounds = (rate.low, rate.high)
            rule = "its low and high must lie in [0, 1], outside of which returns grow without bound"
            require(rate.low >= 0 and rate.high <= 1, f"meta_parameters.{name}", bounds, rule, "move them inside")

    def declaration(self) -> dict[str, MetaParameter]:
        """Name to declaration, in the order of η."""
        return {
            "gamma": self.gamma,
            "lambda": self.lambda_,
            "value_coefficient": self.value_coefficient,
            "entropy_coefficient": self.entropy_coefficient,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """The learner's whole part of an experiment."""

    optimizer: OptimizerConfig
    meta: MetaGradientConfig
    outer: OuterConfig
    meta_parameters: MetaParametersConfig
