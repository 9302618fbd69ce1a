"""A learnt intrinsic reward as a value: an actor-critic on its mixture with the environment's reward (LIRPG)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from metagrad.intrinsic_reward import intrinsic_loss, reward_weights
from metagrad.learner.meta_parameters import MetaParametersConfig, check_rates
from metagrad.losses import LossMetrics, OuterObjective
from metagrad.meta_parameters import Declaration, Hyperparameters, MetaParameter
from metagrad.networks import Network, NetworkSpec
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class IntrinsicRewardParameters(MetaParametersConfig):
    """Hyper-parameters of the A2C loss on c_ext r + c_in r_φ(s, a); φ is learnt, the others where they say so.

    The outer loss is on r alone. Without an outer critic its advantages are over the inner critic's values, which are
    those of the mixture: biased by the intrinsic reward as well as by the discount.
    """

    gamma: MetaParameter
    lambda_: MetaParameter
    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter
    extrinsic_coefficient: MetaParameter
    """c_ext: weight of the environment's reward in the inner loss; the outer loss has it alone."""
    intrinsic_coefficient: MetaParameter
    """c_in: weight of the learnt reward, which lies in (-1, 1)."""
    reward_network: NetworkSpec
    """What kind of network r_φ is; it has the actions for its outputs."""

    def __post_init__(self) -> None:
        check_rates(gamma=self.gamma, lambda_=self.lambda_)

    def declaration(self, observation_shape: tuple[int, ...], num_actions: int) -> Declaration:
        """The scalars, and φ as "reward_weights"."""
        scalars = MetaParametersConfig.declaration(self, observation_shape, num_actions)
        return {**scalars, "reward_weights": reward_weights(self.reward_network, observation_shape, num_actions)}

    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """`metagrad.intrinsic_reward.intrinsic_loss`."""
        return intrinsic_loss(network, theta, hyper, trajectory, surrogate, outer, self.reward_network)
