"""The algorithm of an experiment as functions of θ, η and a trajectory."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from metagrad.learner.config import LearnerConfig, MetaGradientConfig
from metagrad.learner.intrinsic_reward import IntrinsicRewardParameters
from metagrad.learner.meta_parameters import A2cParameters, MetaParametersConfig
from metagrad.learner.vtrace_parameters import VtraceParameters
from metagrad.losses import LossMetrics, OuterObjective
from metagrad.meta_gradient import outer_weights
from metagrad.meta_parameters import Declaration, Hyperparameters, hyperparameters
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
        return self.losses.outer_loss(self.network.under(self.outer.gamma), theta, hyper, trajectory, self.outer)

    def inner_network(self, eta: Float[Tensor, "M"]) -> Network:
        """The network as the inner loss sees it, with values under γ(η) where its critic is told the discount."""
        return told_gamma(self.network, hyperparameters(self.declaration, eta))


def build_agent(config: LearnerConfig, network: Network, observation_shape: tuple[int, ...], num_actions: int) -> Agent:
    """The functions that `config` describes, for one network in one kind of environment."""
    outer = config.outer.objective
    losses = config.meta_parameters
    declaration = losses.declaration(observation_shape, num_actions)
    surrogate = SURROGATES[config.meta.surrogate]

    trained = network.with_first_order(_beyond_adjoints(config, network))

    def loss(theta: Tensor, eta: Tensor, batch: Any) -> tuple[Tensor, LossMetrics]:
        hyper = hyperparameters(declaration, eta)
        return losses.inner_loss(told_gamma(trained, hyper), theta, hyper, batch, surrogate, outer)

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


def told_gamma(network: Network, hyper: Hyperparameters) -> Network:
    """The network with inner values under γ, a constant there, where its critic is told the discount."""
    return network.under(hyper["gamma"]) if network.is_conditioned else network


# Their policy terms, and their outer losses, see critics as constants.
_POLICY_APART = (A2cParameters, VtraceParameters, IntrinsicRewardParameters)


def _beyond_adjoints(config: LearnerConfig, network: Network) -> tuple[str, ...]:
    """Parameters whose gradients no adjoint of a meta-gradient is multiplied with: those of critics on their own.

    The outer loss's gradient is 0 there, and stays so through an optimizer that treats each parameter by itself. A clip
    by the norm of all gradients, or a bootstrapped target that matches values, would reach them.
    """
    is_apart = type(config.meta_parameters) in _POLICY_APART
    is_coupled = config.optimizer.max_gradient_norm is not None or config.meta.bootstrap.value_coefficient > 0
    return network.own_parameters_of_critics if is_apart and not is_coupled else ()
