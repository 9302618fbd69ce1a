"""The algorithm of an experiment as functions of θ, η and a trajectory."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from learner.config import LearnerConfig, MetaGradientConfig
from learner.meta_parameters import MetaParametersConfig
from metagrad.losses import LossMetrics, OuterObjective
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
    losses: MetaParametersConfig
    outer: OuterObjective
    weights: tuple[float, ...]  # w₁…wₙ
    meta: MetaGradientConfig
    meta_optimizer: Optimizer

    def outer_loss(
        self, theta: Float[Tensor, "P"], eta: Float[Tensor, "M"], trajectory: Trajectory
    ) -> tuple[Tensor, Tensor]:
        """L'(θ; τ') and the mean outer advantage; η is a constant here, which a biased baseline may look at."""
        hyper = hyperparameters(self.declaration, eta.detach())
        return self.losses.outer_loss(self.network, theta, hyper, trajectory, self.outer)


def build_agent(config: LearnerConfig, network: Network, observation_shape: tuple[int, ...], num_actions: int) -> Agent:
    """The functions that `config` describes, for one network in one kind of environment."""
    outer = config.outer.objective
    losses = config.meta_parameters
    declaration = losses.declaration(observation_shape, num_actions)
    surrogate = SURROGATES[config.meta.surrogate]

    def loss(theta: Tensor, eta: Tensor, batch: Any) -> tuple[Tensor, LossMetrics]:
        return losses.inner_loss(network, theta, hyperparameters(declaration, eta), batch, surrogate, outer)

    return Agent(
        network=network,
        declaration=declaration,
        problem=InnerProblem(loss, config.optimizer.build()),
        losses=losses,
        outer=outer,
        weights=outer_weights(config.meta.estimator, config.meta.n, config.meta.kappa),
        meta=config.meta,
        meta_optimizer=config.meta.optimizer.build(),
    )
