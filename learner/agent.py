"""The algorithm of an experiment as functions of θ, η and a trajectory."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from learner.config import LearnerConfig, MetaGradientConfig
from metagrad.losses import LossMetrics, OuterObjective, inner_loss, outer_loss
from metagrad.meta_gradient import outer_weights
from metagrad.meta_parameters import Declaration, hyperparameters
from metagrad.networks import Network
from metagrad.optimizers import Optimizer
from metagrad.surrogates import SURROGATES
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem


class Agent(NamedTuple):
    """Everything an update needs that does not change while a run goes on."""

    network: Network
    declaration: Declaration
    problem: InnerProblem
    outer: OuterObjective
    weights: tuple[float, ...]  # w₁…wₙ
    meta: MetaGradientConfig
    meta_optimizer: Optimizer

    def outer_loss(self, theta: Float[Tensor, "P"], trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """L'(θ; τ') and the mean outer advantage."""
        return outer_loss(self.network, theta, trajectory, self.outer)


def build_agent(config: LearnerConfig, network: Network) -> Agent:
    """The functions that `config` describes, for one network."""
    outer = OuterObjective(
        gamma=config.outer.gamma,
        lambda_=config.outer.lambda_,
        uses_outer_critic=config.outer.critic == "outer",
        outer_critic_coefficient=config.outer.critic_coefficient,
    )
    declaration = config.meta_parameters.declaration()
    surrogate = SURROGATES[config.meta.surrogate]

    def loss(theta: Tensor, eta: Tensor, batch: Any) -> tuple[Tensor, LossMetrics]:
        return inner_loss(network, theta, hyperparameters(declaration, eta), batch, surrogate, outer)

    return Agent(
        network=network,
        declaration=declaration,
        problem=InnerProblem(loss, config.optimizer.build()),
        outer=outer,
        weights=outer_weights(config.meta.estimator, config.meta.n, config.meta.kappa),
        meta=config.meta,
        meta_optimizer=config.meta.optimizer.build(),
    )
