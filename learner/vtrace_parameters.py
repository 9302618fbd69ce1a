"""The V-trace actor-critic as a value: every hyper-parameter of IMPALA's loss learnt or fixed (STACX)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from metagrad.errors import require
from metagrad.learner.meta_parameters import A2cParameters, MetaParametersConfig, check_rates
from metagrad.losses import LossMetrics, OuterObjective
from metagrad.meta_parameters import Hyperparameters, MetaParameter
from metagrad.networks import Network
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory
from metagrad.vtrace_loss import vtrace_inner_loss, vtrace_outer_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class VtraceParameters(MetaParametersConfig):
    """Hyper-parameters of the V-trace actor-critic loss, which also learns from rollouts of older policies.

    On rollouts of the present policy every ratio is 1: a clip above 1 changes nothing there and has no derivative, one
    below 1 scales what it clips (ρ̄ like a policy coefficient, c̄ like λ).
    """

    corrects_off_policy: ClassVar[bool] = True

    gamma: MetaParameter
    lambda_: MetaParameter
    policy_coefficient: MetaParameter
    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter
    rho_clip: MetaParameter
    """ρ̄: what the importance ratio of a TD error, and of the policy's gradient, is at most."""
    c_clip: MetaParameter
    """c̄: what the importance ratio within a trace is at most; the paper keeps it at or below ρ̄."""

    def __post_init__(self) -> None:
        check_rates(gamma=self.gamma, lambda_=self.lambda_)
        for name, clip in (("rho_clip", self.rho_clip), ("c_clip", self.c_clip)):
            rule, remedy = "must be 0 or more: it bounds a ratio of probabilities", "raise it"
            require(clip.low >= 0, f"meta_parameters.{name}.low", clip.low, rule, remedy)

    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """`metagrad.vtrace_loss.vtrace_inner_loss`."""
        return vtrace_inner_loss(network, theta, hyper, trajectory, surrogate, outer)

    def outer_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """`metagrad.vtrace_loss.vtrace_outer_loss`; nothing that is learnt enters."""
        del hyper
        return vtrace_outer_loss(network, theta, trajectory, outer)


_ONE = MetaParameter(initial=1.0, high=1.0, is_learnt=False)


def off_policy(losses: MetaParametersConfig) -> MetaParametersConfig:
    """The same hyper-parameters in losses for rollouts of other policies: of A2C's, V-trace's with clips of 1.

    On rollouts of the policy that is trained both are the same.

    Raises:
        ConfigurationError: there are no such losses.
    """
    if losses.corrects_off_policy:
        return losses
    name = type(losses).__name__
    rule = "has no losses that correct for rollouts of older policies, which --schedule peek needs"
    remedy = "use --schedule lockstep"
    require(isinstance(losses, A2cParameters), "meta_parameters", name, rule, remedy)
    assert isinstance(losses, A2cParameters)
    is_normalised = losses.is_advantage_normalised
    rule = "is not made for --schedule peek, whose advantages are V-trace's"
    require(not is_normalised, "meta_parameters.is_advantage_normalised", is_normalised, rule, remedy)
    return VtraceParameters(
        gamma=losses.gamma,
        lambda_=losses.lambda_,
        policy_coefficient=_ONE,
        value_coefficient=losses.value_coefficient,
        entropy_coefficient=losses.entropy_coefficient,
        rho_clip=_ONE,
        c_clip=_ONE,
    )
