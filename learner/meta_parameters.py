"""Inner losses as values: each names its hyper-parameters, learnt or fixed, and says what they do to the loss.

A new one is a frozen dataclass in a file of its own (docs/extending.md); nothing else has to know it.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require
from metagrad.losses import LossMetrics, OuterObjective, inner_loss, outer_loss
from metagrad.meta_parameters import Declaration, Hyperparameters, MetaParameter
from metagrad.networks import Network
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaParametersConfig(ABC):
    """The hyper-parameters of one inner loss, each learnt or fixed, with the losses they enter."""

    corrects_off_policy: ClassVar[bool] = False
    """True: the losses take rollouts of other policies than the one that is trained (`behaviour_log_prob`)."""

    def declaration(self, observation_shape: tuple[int, ...], num_actions: int) -> Declaration:
        """Name to declaration, in the order of η; here all fields that are one, `lambda_` as "lambda"."""
        del observation_shape, num_actions  # only networks among the meta-parameters need them
        values = {f.name.rstrip("_"): getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, MetaParameter)}

    @abstractmethod
    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """L(θ, η; τ), differentiable in θ and in `hyper`, twice where both meet."""

    def outer_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L'(θ; τ') and the mean outer advantage; `hyper` are constants here."""
        del hyper
        return outer_loss(network, theta, trajectory, outer)


@dataclass(frozen=True, kw_only=True, slots=True)
class A2cParameters(MetaParametersConfig):
    """Hyper-parameters of the advantage actor-critic loss that can be learnt, each with its bounds."""

    gamma: MetaParameter
    lambda_: MetaParameter
    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter
    is_advantage_normalised: bool = False
    """True: inner advantages have mean 0 and variance 1 over the batch (debiasing paper, Appendix D)."""

    def __post_init__(self) -> None:
        check_rates(gamma=self.gamma, lambda_=self.lambda_)

    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """`metagrad.losses.inner_loss`."""
        return inner_loss(network, theta, hyper, trajectory, surrogate, outer, self.is_advantage_normalised)


def check_rates(**rates: MetaParameter) -> None:
    """Refuse discounts and decays of returns outside [0, 1].

    Raises:
        ConfigurationError: names the meta-parameter.
    """
    for name, rate in rates.items():
        bounds = (rate.low, rate.high)
        rule = "its low and high must lie in [0, 1], outside of which returns grow without bound"
        field = f"meta_parameters.{name.rstrip('_')}"
        require(rate.low >= 0 and rate.high <= 1, field, bounds, rule, "move them inside")
