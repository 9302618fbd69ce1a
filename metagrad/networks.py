"""Actor-critic networks as pure functions of one flat parameter vector θ.

Every network has a policy head, the inner critic (value under the meta-learnt discount) and, if asked for, the outer
critic (value under the outer discount γ'). Where the critics share a torso with the policy, the outer critic sits
behind a stop-gradient: it is trained alongside and changes nothing else. Those of `PolicyOnly` have no critics: they
are for losses that have their values from elsewhere, and asking them for one is an error.
"""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from metagrad import autodiff
from metagrad import network_modules as modules
from metagrad.errors import require
from metagrad.flat_module import FlatModule
from metagrad.flat_module import ParameterLayout as ParameterLayout
from metagrad.network_layers import reset
from metagrad.network_modules import Head as Head


@dataclass(frozen=True, kw_only=True, slots=True)
class NatureCnn:
    """Three convolutions and one hidden layer shared by linear heads; observations [4, 84, 84] in 0..255.

    Source: Mnih et al. (2015), Methods; hidden 512 as in "A Theoretical Understanding of Gradient Bias in Meta-RL"
    (G.3). Orthogonal init with gain √2, .01 for the policy, 1 for the critics (the paper names no gains; these are
    OpenAI Baselines').
    """

    hidden: int = 512
    gamma_embedding: int | None = None
    """Units that tell the inner critic which discount its values are of, before one more layer (the gradient-bias
    paper's release: 16, for the inner loss γ and for the outer one γ'); None: it is not told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpalaCnn:
    """IMPALA's large residual network; observations [4, 84, 84] in 0..255.

    Three sections of 16, 32 and 32 channels, times `width`: convolution 3x3, max pooling 3x3 of stride 2, two residual
    blocks [ReLU, convolution 3x3, ReLU, convolution 3x3, plus the block's input]; ReLU, a linear layer of `hidden`,
    ReLU; linear heads. Pictures of any size.

    Source: Espeholt et al. (2018), "IMPALA", Figure 3 right. Deviations: no LSTM, no last reward and action among its
    inputs; four stacked frames; orthogonal init as in `NatureCnn`; the pooling pads both sides by one, where
    TensorFlow's SAME pads an even size at the end alone.
    """

    hidden: int = 256
    width: int = 1
    gamma_embedding: int | None = None
    """As that of `NatureCnn`."""

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three sections."""
        return 16 * self.width, 32 * self.width, 32 * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeCnn:
    """Three separate networks, each two 2x2 convolutions and an MLP; observations [rows, columns, 5].

    Source: released code of "Debiasing Meta-Gradient RL by Learning the Outer Value Function" (Snake), Haiku's default
    init: normal truncated at 2 standard deviations of 1/√fan_in, zero bias. Deviation from the paper's Figure 4 (shared
    torso), as in the release.
    """

    channels: int = 32
    policy_hidden: int = 64
    value_hidden: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeTorsoCnn:
    """Convolutions and pooling shared by MLP heads; observations [rows, columns, planes], at least 4 x 4.

    Two blocks of [convolution 3x3 of stride 1, ReLU, max pooling 2x2 of stride 2], a linear layer of `features`, ReLU,
    and heads of one hidden ReLU layer of `head_hidden`. The outer critic sees the features behind a stop-gradient.

    Source: "One Step at a Time", C.3. What it leaves open: SAME padding of the convolutions, the ReLU after each of
    them (before or after the pooling is the same function) and after the linear layer, and the init, which is Haiku's
    default as in `SnakeCnn`. A last odd row or column is left out of a pooling (VALID). The third head, the outer
    critic, is the debiasing paper's (Figure 4).
    """

    channels: int = 32
    features: int = 40
    head_hidden: int = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """One hidden tanh layer shared by linear heads; flat observations."""

    hidden: int = 64
    gamma_embedding: int | None = None
    """As that of `NatureCnn`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPolicy:
    """One linear layer from flat observations to the policy, and no critics.

    Source: released code of "Debiasing Meta-Gradient RL by Learning the Outer Value Function" (Discounting Chain, whose
    values are known): weights by Haiku's VarianceScaling, zero bias.
    """

    init_scale: float = 1e-4
    """Variance of a weight times the number of inputs, when drawn."""

    def __post_init__(self) -> None:
        scale = self.init_scale
        rule, remedy = "must be positive and finite", "the release has 1e-4"
        require(0.0 < scale < math.inf, "network.init_scale", scale, rule, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryOnePair:
    """Two players of a repeated game with two actions each, who know what both did last; no critics.

    A table of five parameters for each player, θ = [2, 5] row after row, 0 at first: sigmoid(θ_s) = P(action 0 | s),
    s = 0 at the start of a game, then 1 + 2 a + a', the own action a first. Observations are player 0's state, one-hot
    [5]; what player 1 sees of it has a and a' swapped. The action is 2 a + a' of player 0.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.2.
    """


PolicyOnly = LinearPolicy | MemoryOnePair
NetworkSpec = NatureCnn | ImpalaCnn | SnakeCnn | SnakeTorsoCnn | Mlp | LinearPolicy | MemoryOnePair
_MEMORY_ONE_SWAPPED = (0, 1, 3, 2, 4)  # 1 + 2 a + a' -> 1 + 2 a' + a


NetworkAtTheta = Callable[[Shaped[Tensor, "..."], Collection[Head]], dict[Head, Tensor]]
"""(observation [N, …], names of heads) to the heads."""


class Network:
    """A module seen as pure functions of θ; the module's own parameters are only a shape."""

    def __init__(self, module: nn.Module, first_order: Collection[str] = ()):
        """Wrap `module`, whose forward is (observation [N, …], heads) -> {head: tensor [N, …]}.

        Args:
            module: shapes, init and forward.
            first_order: names of parameters whose gradients carry no derivative (`metagrad.autodiff.first_order`).
        """
        self._module = module
        self._flat = FlatModule(module)
        self.layout = self._flat.layout
        self._first_order = frozenset(first_order)
        self._discount: Tensor | float | None = None

    @property
    def own_parameters_of_critics(self) -> tuple[str, ...]:
        """Names of those that the policy does not have; none of a shared torso, whose critics' layers are few."""
        names = self.layout.names if isinstance(self._module, modules.SeparateNetworks) else ()
        return tuple(name for name in names if not name.startswith("logits."))

    def with_first_order(self, names: Collection[str]) -> "Network":
        """The same network where gradients of these parameters carry no derivative."""
        unknown = sorted(set(names) - set(self.layout.names))
        rule, remedy = "are no trained parameters of the network", "give names of its layout"
        require(not unknown, "first_order", unknown, rule, remedy)
        other = copy.copy(self)
        other._first_order = frozenset(names)
        return other

    @property
    def is_conditioned(self) -> bool:
        """True: the inner critic is told the discount that its values are of, by `under`."""
        return isinstance(getattr(self._module, "value", None), modules.ConditionedCritic)

    def under(self, discount: Float[Tensor, "1"] | float) -> "Network":
        """The same network with inner values of this discount, a constant; itself where the critic is not told any."""
        if not self.is_conditioned:
            return self
        told = copy.copy(self)
        told._discount = autodiff.stop_gradient(discount) if isinstance(discount, Tensor) else discount
        return told

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Fresh θ, drawn on the CPU from `generator`."""
        frozen = [(p, p.detach().clone()) for p in self._module.parameters() if not p.requires_grad]
        self._module.apply(lambda child: reset(child, generator))
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)
        return self._flat.theta()

    def apply(
        self, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "..."], heads: Collection[Head]
    ) -> dict[Head, Tensor]:
        """The named heads on observations [N, …]: logits [N, A], value [N], outer_value [N]."""
        return self.at(theta)(observation, heads)

    def at(self, theta: Float[Tensor, "P"]) -> NetworkAtTheta:
        """`apply` under one θ, which is taken apart once for all that it is called on."""
        parameters = self._flat.parameters(theta)
        for name in self._first_order:
            parameters[name] = autodiff.first_order(parameters[name])
        extra = (self._discount,) if self.is_conditioned else ()

        def apply(observation: Tensor, heads: Collection[Head]) -> dict[Head, Tensor]:
            unknown = [head for head in heads if head not in get_args(Head)]
            rule, remedy = f"the heads are {', '.join(get_args(Head))}", "name some of them, in a tuple"
            require(not unknown and not isinstance(heads, str), "heads", heads, rule, remedy)
            outputs: dict[Head, Tensor] = self._flat.with_parameters(parameters, observation, heads, *extra)
            return outputs

        return apply


def _hidden_torso(spec: NatureCnn | ImpalaCnn | Mlp, observation_shape: tuple[int, ...]) -> nn.Sequential:
    match spec:
        case NatureCnn():
            return modules.nature_torso(observation_shape, spec.hidden)
        case ImpalaCnn():
            return modules.impala_torso(observation_shape, spec.channels, spec.hidden)
        case Mlp():
            return modules.mlp_torso(observation_shape, spec.hidden)


def build_network(
    spec: NetworkSpec, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool
) -> Network:
    """The network that `spec` describes for one environment.

    Raises:
        ConfigurationError: observations or actions that it cannot have; critics of a network that has none.
    """
    for field in fields(spec):
        size = getattr(spec, field.name)
        is_size = isinstance(size, int) and not isinstance(size, bool)
        require(not is_size or size >= 1, f"network.{field.name}", size, "must be at least 1", "raise it")
    if isinstance(spec, PolicyOnly):
        rule, remedy = "has no critics, an outer one neither", "use a network with critics, such as Mlp"
        require(not has_outer_critic, "network", type(spec).__name__, rule, remedy)
    match spec:
        case NatureCnn() | ImpalaCnn() | Mlp():
            torso = _hidden_torso(spec, observation_shape)
            heads = (num_actions, has_outer_critic, spec.gamma_embedding)
            return Network(modules.with_linear_heads(torso, spec.hidden, *heads))
        case SnakeCnn():

            def network(hidden: int, outputs: int) -> nn.Module:
                return modules.snake_network(observation_shape, spec.channels, hidden, outputs)

            logits, value = network(spec.policy_hidden, num_actions), network(spec.value_hidden, 1)
            outer_value = network(spec.value_hidden, 1) if has_outer_critic else None
            return Network(modules.SeparateNetworks(logits, value, outer_value))
        case SnakeTorsoCnn():
            torso = modules.pooled_snake_torso(observation_shape, spec.channels, spec.features)
            return Network(
                modules.with_mlp_heads(torso, spec.features, spec.head_hidden, num_actions, has_outer_critic)
            )
        case LinearPolicy():
            layer = modules.VarianceScalingLinear(math.prod(observation_shape), num_actions, spec.init_scale)
            return Network(modules.PolicyAlone(nn.Sequential(nn.Flatten(), layer)))
        case MemoryOnePair():
            states = len(_MEMORY_ONE_SWAPPED)
            given = f"observations {observation_shape}, {num_actions} actions"
            rule = f"sees one-hot states ({states},) and moves two players of two actions each, 4 together"
            is_pair = (observation_shape, num_actions) == ((states,), 4)
            require(is_pair, "network", given, rule, "use an IteratedPrisonersDilemma environment or another network")
            return Network(modules.PolicyAlone(modules.TwoTables(_MEMORY_ONE_SWAPPED)))
