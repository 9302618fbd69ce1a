"""Defines distributions of actions: log-probabilities, entropies, KL divergences and samples, all differentiable.

A network's policy head returns numbers, and an action space says what distribution they are parameters of. Losses,
V-trace, surrogates, matching losses and actors see the distribution alone.

| actions | numbers of the head | distribution | one action |
|---|---|---|---|
| `DiscreteActions(A)` | A logits | `Categorical` | int64 [] |
| `MultiDiscreteActions((A₁, …))` | ΣAₖ logits | `MultiCategorical`, independent | int64 [K] |
| `ContinuousActions(K)` | K means, K log-deviations before a bound | `DiagonalGaussian` | float [K] |

Rows are of any shape. A row whose parameters are not finite gives NaN, and stays by itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metagrad.errors import require
from metagrad.network_modules import Head

D = TypeVar("D", bound="Distribution")


class Decision(NamedTuple):
    """Holds actions and their log-probability under the policy that chose them, in nats."""

    action: Shaped[Tensor, "*rows_and_action"]
    log_prob: Float[Tensor, "*rows"]
    state: Float[Tensor, "*rows H"] | None = None  # what a recurrent network remembers after it


class Distribution(ABC):
    """Represents one distribution of actions for each row."""

    @abstractmethod
    def log_prob(self, action: Shaped[Tensor, "*rows_and_action"]) -> Float[Tensor, "*rows"]:
        """Return log π(a) in nats, differentiable in the parameters.

        Raises:
            ConfigurationError: there is not one action for each row.
        """

    @abstractmethod
    def entropy(self) -> Float[Tensor, "*rows"]:
        """Return the entropy in nats; the differential one of a density, which may be negative."""

    @abstractmethod
    def kl_divergence(self: D, other: D) -> Float[Tensor, "*rows"]:
        """Return KL(self || other) in nats, differentiable in both.

        Raises:
            ConfigurationError: they are not of the same shape.
        """

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Decision:
        """Draw one action for each row; nothing is read back from the device, and nothing is differentiable."""

    @abstractmethod
    def mode(self) -> Shaped[Tensor, "*rows_and_action"]:
        """Return the most likely action of each row."""


class Categorical(Distribution):
    """Represents a choice among A actions by logits; a logit of -∞ is an action of probability 0."""

    def __init__(self, logits: Float[Tensor, "*rows A"]):
        self.log_probs = torch.log_softmax(logits, -1)
        """log π of every action, [*rows, A]."""

    def log_prob(self, action: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        _require_rows(action.shape, self.log_probs.shape[:-1])
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*rows"]:
        """Return -Σₐ π(a) log π(a); an action of probability 0 adds 0 and has derivative 0.

        >>> Categorical(torch.tensor([0.0, 0.0, -torch.inf])).entropy()
        tensor(0.6931)
        """
        probs = self.log_probs.exp()
        # Chosen before the product: 0 · -∞ is no number, in the value and in the derivative alike.
        return -(probs * torch.where(probs > 0.0, self.log_probs, 0.0)).sum(-1)

    def kl_divergence(self, other: "Categorical") -> Float[Tensor, "*rows"]:
        """Return Σₐ p(a) (log p(a) - log q(a)).

        An action of p(a) = 0 (a logit of -∞, or one that underflows) adds 0 and has derivative 0, whatever q(a) is.

        >>> Categorical(torch.tensor([[0.0, -torch.inf]])).kl_divergence(Categorical(torch.zeros(1, 2)))
        tensor([0.6931])
        """
        log_p, log_q = self.log_probs, other.log_probs
        _require_alike(log_p.shape, log_q.shape)
        p = log_p.exp()
        # Chosen before the product: 0 · (-∞ + ∞) is no number, in the value and in the derivative alike.
        return (p * torch.where(p > 0.0, log_p - log_q, 0.0)).sum(-1)

    def sample(self, generator: torch.Generator) -> Decision:
        """Draw by an exponential race: argmax_a π(a) / E_a with E_a ~ Exp(1)."""
        race = torch.empty_like(self.log_probs).exponential_(generator=generator)
        action = (self.log_probs.exp() / race).argmax(-1)
        return Decision(action, self.log_prob(action))

    def mode(self) -> Int[Tensor, "*rows"]:
        return self.log_probs.argmax(-1)


_FEW = 16
"""Numbers of categories below which torch's kernel for the last axis takes five times as long as the others'."""


def log_probabilities(logits: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows A"]:
    """Return log π of every category: `Categorical.log_probs` to rounding, and quicker where these are few."""
    if logits.shape[-1] >= _FEW:
        return torch.log_softmax(logits, -1)
    return torch.log_softmax(logits.movedim(-1, 0), 0).movedim(0, -1)


def entropies(log_probs: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """Return -Σ π log π of finite log-probabilities, in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


class MultiCategorical(Distribution):
    """Represents K independent choices; an action is one number for each."""

    def __init__(self, logits: Float[Tensor, "*rows A"], sizes: tuple[int, ...]):
        rows = logits.shape[:-1]
        self._parts = [Categorical(part) for part in logits.split(sizes, -1)]
        self._shape = (*rows, len(sizes))

    def log_prob(self, action: Int[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
        _require_rows(action.shape, self._shape)
        return _sum(part.log_prob(chosen) for part, chosen in zip(self._parts, action.unbind(-1), strict=True))

    def entropy(self) -> Float[Tensor, "*rows"]:
        return _sum(part.entropy() for part in self._parts)

    def kl_divergence(self, other: "MultiCategorical") -> Float[Tensor, "*rows"]:
        _require_alike(self._shape, other._shape)
        return _sum(p.kl_divergence(q) for p, q in zip(self._parts, other._parts, strict=True))

    def sample(self, generator: torch.Generator) -> Decision:
        samples = [part.sample(generator) for part in self._parts]
        action = torch.stack([sample.action for sample in samples], -1)
        return Decision(action, _sum(sample.log_prob for sample in samples))

    def mode(self) -> Int[Tensor, "*rows K"]:
        return torch.stack([part.mode() for part in self._parts], -1)


LOG_DEVIATION_BOUND = 5.0
"""Deviations lie in (e⁻⁵, e⁵): below, a density would overflow float32 in a ratio; above, nothing is learnt."""


class DiagonalGaussian(Distribution):
    """Represents a density of K independent normal numbers, N(μ, σ²) with log σ = 5 tanh(ρ / 5).

    The bound is smooth, so that every derivative exists, and the identity to third order at ρ = 0, σ = 1.
    """

    def __init__(self, parameters: Float[Tensor, "*rows two_K"]):
        """Take μ and ρ, side by side."""
        self._mean, unbounded = parameters.chunk(2, -1)
        self._log_deviation = LOG_DEVIATION_BOUND * torch.tanh(unbounded / LOG_DEVIATION_BOUND)

    def log_prob(self, action: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
        _require_rows(action.shape, self._mean.shape)
        standard = (action - self._mean) * torch.exp(-self._log_deviation)
        return -(0.5 * standard.square() + self._log_deviation + 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "*rows"]:
        """Return Σ (log σ + ½ log 2πe)."""
        return (self._log_deviation + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)

    def kl_divergence(self, other: "DiagonalGaussian") -> Float[Tensor, "*rows"]:
        """Return Σ (log σ'/σ + (σ² + (μ - μ')²) / 2σ'² - ½)."""
        _require_alike(self._mean.shape, other._mean.shape)
        log_ratio = self._log_deviation - other._log_deviation
        distance = (self._mean - other._mean) * torch.exp(-other._log_deviation)
        return (0.5 * ((2.0 * log_ratio).exp() + distance.square() - 1.0) - log_ratio).sum(-1)

    def sample(self, generator: torch.Generator) -> Decision:
        noise = torch.empty_like(self._mean).normal_(generator=generator)
        action = self._mean + self._log_deviation.exp() * noise
        return Decision(action, self.log_prob(action))

    def mode(self) -> Float[Tensor, "*rows K"]:
        return self._mean


@dataclass(frozen=True)
class ActionSpace(ABC):
    """Says what actions are: how many numbers the policy head has, and the distribution that they describe."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Count the numbers of the policy head."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one action."""

    @abstractmethod
    def policy(self, parameters: Float[Tensor, "*rows outputs"]) -> Distribution:
        """Return the distribution of each row."""


@dataclass(frozen=True)
class DiscreteActions(ActionSpace):
    """Represents one of A actions."""

    size: int

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def policy(self, parameters: Float[Tensor, "*rows A"]) -> Categorical:
        return Categorical(parameters)


@dataclass(frozen=True)
class MultiDiscreteActions(ActionSpace):
    """Represents K choices at once, the k-th one of `sizes[k]` actions."""

    sizes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    def policy(self, parameters: Float[Tensor, "*rows A"]) -> MultiCategorical:
        return MultiCategorical(parameters, self.sizes)


@dataclass(frozen=True)
class ContinuousActions(ActionSpace):
    """Represents K real numbers."""

    size: int

    @property
    def outputs(self) -> int:
        return 2 * self.size

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def policy(self, parameters: Float[Tensor, "*rows two_K"]) -> DiagonalGaussian:
        return DiagonalGaussian(parameters)


DistributionOf = Callable[[Float[Tensor, "*rows outputs"]], Distribution]
"""Makes a distribution of the numbers of a policy head: `ActionSpace.policy`."""


class Outputs(dict[Head, Tensor]):
    """Holds a network's heads by name, and what distribution the numbers of its policy head, "logits", describe."""

    def __init__(self, heads: Mapping[Head, Tensor], distribution: DistributionOf):
        super().__init__(heads)
        self.distribution = distribution

    @property
    def policy(self) -> Distribution:
        """Return the distribution of actions in each row."""
        return self.distribution(self["logits"])


def policy_of(outputs: Mapping[Head, Tensor]) -> Distribution:
    """Return the policy that a network's outputs are of; a plain mapping has logits of discrete actions."""
    return outputs.policy if isinstance(outputs, Outputs) else Categorical(outputs["logits"])


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _require_rows(shape: torch.Size, rows: tuple[int, ...] | torch.Size) -> None:
    """Refuse an action less or more, which would pair steps with others."""
    rule = f"there is one for each row of the policy, {tuple(rows)}"
    require(shape == tuple(rows), "action.shape", tuple(shape), rule, "make them agree")


def _require_alike(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    rule = f"both distributions have as many rows and actions, {tuple(second)}"
    require(tuple(first) == tuple(second), "policy.shape", tuple(first), rule, "make them agree")
