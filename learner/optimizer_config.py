"""Inner and meta-optimizers as values."""

import math
from dataclasses import dataclass

from metagrad.errors import require
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _OptimizerConfig:
    learning_rate: float
    annealing_updates: int | None = None
    """Linear decay of the step size to 0 over this many updates; None: constant."""
    max_gradient_norm: float | None = None
    """Global-norm clip of the gradient; None: no clip."""
    is_clip_coefficient_constant: bool = False
    """True: meta-gradients take the clip's coefficient for a constant (released Atari code of the gradient-bias paper);
    False: they go through it."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "must be positive and finite", "change it")
        updates, norm = self.annealing_updates, self.max_gradient_norm
        require(updates is None or updates > 0, "optimizer.annealing_updates", updates, "must be > 0", "use None")
        require(norm is None or norm > 0, "optimizer.max_gradient_norm", norm, "must be > 0", "use None for no clip")
        is_constant, rule = self.is_clip_coefficient_constant, "is about a clip, and there is none"
        remedy = "leave it out or set optimizer.max_gradient_norm"
        require(
            not is_constant or norm is not None, "optimizer.is_clip_coefficient_constant", is_constant, rule, remedy
        )

    def _schedule(self) -> LearningRate:
        if self.annealing_updates is None:
            return constant(self.learning_rate)
        return linear_annealing(self.learning_rate, self.annealing_updates)

    def _clipped(self, optimizer: Optimizer) -> Optimizer:
        if self.max_gradient_norm is None:
            return optimizer
        return ClipByGlobalNorm(
            max_norm=self.max_gradient_norm,
            optimizer=optimizer,
            is_coefficient_constant=self.is_clip_coefficient_constant,
        )


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
