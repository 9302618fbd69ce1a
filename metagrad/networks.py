"""Makes actor-critic networks pure functions of one flat parameter vector θ.

Every network has a policy head, the inner critic (value under the meta-learnt discount) and, if asked for, the outer
critic (value under the outer discount γ'). Where the critics share a torso with the policy, the outer critic sits
behind a stop-gradient: it is trained alongside and changes nothing else. Some specifications have no critics
(`has_critics` is False): they are for losses that take their values from elsewhere; asking them for one is an error.

A kind of network is a subclass of `NetworkSpec`. It says which observations it takes and makes the module.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import nn

from metagrad import network_modules as modules
from metagrad.distributions import ActionSpace, DiscreteActions
from metagrad.errors import require, require_one_of
from metagrad.flat_module import ParameterLayout as ParameterLayout
from metagrad.network_functions import Network as Network
from metagrad.network_functions import NetworkAtTheta as NetworkAtTheta
from metagrad.network_layers import OrthogonalLinear, PicturesAndNumbers
from metagrad.network_modules import Head as Head
from metagrad.observations import MixedShape
from metagrad.observations import Observations as Observations
from metagrad.precision import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec(ABC):
    """Describes a kind of network; your own is a subclass, whose whole-numbered fields are sizes of layers."""

    takes: ClassVar[Observations | None] = None
    """Observations that the network accepts; None: any, it flattens them."""
    has_critics: ClassVar[bool] = True
    """False: it is a policy alone, for losses that take their values from elsewhere."""
    has_hidden_layers: ClassVar[bool] = True
    """False: what it computes is its heads, which bf16-mixed leaves in float32."""

    @abstractmethod
    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        """Make a module whose forward is (observation [N, …], heads) -> {head: tensor [N, …]}.

        `num_actions` is the size of the policy head: one number for each of discrete actions, else what
        `metagrad.distributions` says.
        """

    def check_sizes(self, field: str = "network") -> None:
        """Refuse sizes that no layer has; `field` is the name under which the network is configured."""
        rule = "must be at least 1 and at most 2^16"
        for each in fields(self):
            size = getattr(self, each.name)
            is_size = isinstance(size, int) and not isinstance(size, bool)  # other numbers check themselves
            require(not is_size or 1 <= size <= 2**16, f"{field}.{each.name}", size, rule, "change it")

    def check_observations(
        self, observation_shape: tuple[int, ...], observation_dtype: torch.dtype | None = None, field: str = "network"
    ) -> None:
        """Refuse an environment whose observations the network cannot have.

        Args:
            observation_shape: shape of one observation.
            observation_dtype: type of its numbers; None where it is not known.
            field: the name under which the network is configured.

        Raises:
            ConfigurationError: names what the network needs and what the environment gives.
        """
        if self.takes is None:
            return
        is_kind = observation_dtype is None or (observation_dtype == torch.uint8) == self.takes.are_bytes
        given = f"{str(observation_dtype or '').removeprefix('torch.')} {list(observation_shape)}".strip()
        rule = f"needs {self.takes}, and the environment gives {given}"
        remedy = "use another network or environment"
        require(is_kind and self.takes.fit(observation_shape), field, type(self).__name__, rule, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class NatureCnn(NetworkSpec):
    """Shares three convolutions and one hidden layer between linear heads; observations [4, 84, 84] in 0..255.

    Source: Mnih et al. (2015), Methods; hidden 512 as in "A Theoretical Understanding of Gradient Bias in Meta-RL"
    (G.3). Orthogonal init with gain √2, .01 for the policy, 1 for the critics (the paper names no gains; these are
    OpenAI Baselines').
    """

    takes: ClassVar[Observations | None] = Observations.pixels(36)

    hidden: int = 512
    """Units of the hidden layer."""
    gamma_embedding: int | None = None
    """Number of units that tell the inner critic its discount (γ in the inner loss, γ' in the outer one), before one
    more layer; the gradient-bias paper's release uses 16. None: it is not told."""
    gru: int | None = None
    """Units of a gated recurrent unit behind the hidden layers, which remembers the episode; None: nothing is
    remembered."""

    is_standardised: bool = False
    """True: the pixels of each observation are brought to mean 0 and variance 1; False: divided by 255."""

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        torso = modules.nature_torso(observation_shape, self.hidden, self.is_standardised)
        told = self.gamma_embedding
        return modules.with_linear_heads(torso, self.hidden, num_actions, has_outer_critic, told, self.gru)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpalaCnn(NetworkSpec):
    """Describes IMPALA's large residual network; observations [4, 84, 84] in 0..255.

    Three sections of 16, 32 and 32 channels, times `width`: convolution 3x3, max pooling 3x3 of stride 2, two residual
    blocks [ReLU, convolution 3x3, ReLU, convolution 3x3, plus the block's input]; ReLU, a linear layer of `hidden`,
    ReLU; linear heads. Pictures of any size.

    Source: Espeholt et al. (2018), "IMPALA", Figure 3 right. Deviations: no LSTM, no last reward and action among its
    inputs; four stacked frames; orthogonal init as in `NatureCnn`; the pooling pads both sides by one, where
    TensorFlow's SAME pads an even size at the end alone.
    """

    takes: ClassVar[Observations | None] = Observations.pixels()

    hidden: int = 256
    """Units of the hidden layer."""
    width: int = 1
    """Factor of all channels."""
    gamma_embedding: int | None = None
    """See `NatureCnn`."""
    gru: int | None = None
    """See `NatureCnn`."""

    @property
    def channels(self) -> tuple[int, int, int]:
        """Return the channels of the three sections."""
        return 16 * self.width, 32 * self.width, 32 * self.width

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        torso = modules.impala_torso(observation_shape, self.channels, self.hidden)
        told = self.gamma_embedding
        return modules.with_linear_heads(torso, self.hidden, num_actions, has_outer_critic, told, self.gru)


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeCnn(NetworkSpec):
    """Has three separate networks, each two 2x2 convolutions and an MLP; observations [rows, columns, 5].

    Source: released code of "Debiasing Meta-Gradient RL by Learning the Outer Value Function" (Snake), Haiku's default
    init: normal truncated at 2 standard deviations of 1/√fan_in, zero bias. Deviation from the paper's Figure 4 (shared
    torso), as in the release.
    """

    takes: ClassVar[Observations | None] = Observations.boards()

    channels: int = 32
    """Channels of each convolution."""
    policy_hidden: int = 64
    """Units of each hidden layer of the policy."""
    value_hidden: int = 128
    """Units of each hidden layer of a critic."""
    gru: int | None = None
    """See `NatureCnn`; each of the networks has one of its own."""

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        def network(hidden: int, outputs: int) -> nn.Module:
            return modules.snake_network(observation_shape, self.channels, hidden, outputs, self.gru)

        logits, value = network(self.policy_hidden, num_actions), network(self.value_hidden, 1)
        outer_value = network(self.value_hidden, 1) if has_outer_critic else None
        return modules.SeparateNetworks(logits, value, outer_value)


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeTorsoCnn(NetworkSpec):
    """Shares convolutions and pooling between MLP heads; observations [rows, columns, planes], at least 4 x 4.

    Two blocks of [convolution 3x3 of stride 1, ReLU, max pooling 2x2 of stride 2], a linear layer of `features`, ReLU,
    and heads of one hidden ReLU layer of `head_hidden`. The outer critic sees the features behind a stop-gradient.

    Source: "One Step at a Time", C.3. What it leaves open: SAME padding of the convolutions, the ReLU after each of
    them (before or after the pooling is the same function) and after the linear layer, and the init, which is Haiku's
    default as in `SnakeCnn`. A last odd row or column is left out of a pooling (VALID). The third head, the outer
    critic, is the debiasing paper's (Figure 4).
    """

    takes: ClassVar[Observations | None] = Observations.boards(4)

    channels: int = 32
    """Channels of each convolution."""
    features: int = 40
    """Units of the linear layer behind the convolutions."""
    head_hidden: int = 30
    """Units of the hidden layer of each head."""
    gru: int | None = None
    """See `NatureCnn`."""

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        torso = modules.pooled_snake_torso(observation_shape, self.channels, self.features)
        return modules.with_mlp_heads(torso, self.features, self.head_hidden, num_actions, has_outer_critic, self.gru)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp(NetworkSpec):
    """Shares hidden layers between linear heads; it flattens observations of any shape."""

    hidden: int = 64
    """Units of each hidden layer."""
    gamma_embedding: int | None = None
    """The same as for `NatureCnn`."""
    layers: int = 1
    """Number of hidden layers."""
    activation: modules.Activation = "tanh"
    """Function after each hidden layer: tanh, relu or elu."""
    has_layer_norm: bool = False
    """True: each hidden layer is normalised before its activation (Ba et al. 2016)."""
    gru: int | None = None
    """See `NatureCnn`."""

    def __post_init__(self) -> None:
        require_one_of(self.activation, modules.Activation, "network.activation")

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        torso = modules.mlp_torso(observation_shape, self.hidden, self.layers, self.activation, self.has_layer_norm)
        told = self.gamma_embedding
        return modules.with_linear_heads(torso, self.hidden, num_actions, has_outer_critic, told, self.gru)


@dataclass(frozen=True, kw_only=True, slots=True)
class HaikuMlp(NetworkSpec):
    """Shares layers with a ReLU between them, and none after the last, between linear heads; observations of any shape.

    All are drawn as Haiku does by default: normal truncated at 2 standard deviations of 1/√fan_in, zero bias.

    Source: the agents of the public evaluation of Oh et al. (2025), "Discovering state-of-the-art reinforcement
    learning algorithms" (DiscoRL), on Catch.
    """

    hidden: int = 512
    """Units of each layer."""
    layers: int = 2
    """Number of layers before the heads."""

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        torso = modules.haiku_torso(observation_shape, self.hidden, self.layers)
        return modules.with_haiku_heads(torso, self.hidden, num_actions, has_outer_critic)


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoNetwork(NetworkSpec):
    """Chooses by the shape of the observations.

    * Vectors [size]: an MLP each for policy and critics, which share nothing, of two layers unless told otherwise.
    * Pictures (uint8) [channels, height, width] of at least 36 pixels on a side: a `NatureCnn`.
    * Smaller ones: two convolutions 3x3 of 32 and 64 channels, the second of stride 2, and one hidden layer.
    * Pictures beside other numbers (`MixedShape`): for each picture what stands above, without heads; its features and
      the numbers go through an MLP that policy and critics share.
    """

    hidden: int = 64
    """Units of each hidden layer of an MLP."""
    layers: int = 2
    """Number of hidden layers of an MLP."""
    activation: modules.Activation = "tanh"
    """Function after each hidden layer of an MLP: tanh, relu or elu."""
    has_layer_norm: bool = False
    """True: each hidden layer of an MLP is normalised before its activation (Ba et al. 2016)."""
    picture_hidden: int = 512
    """Units of the hidden layer behind convolutions."""
    gru: int | None = None
    """See `NatureCnn`; an MLP each for policy and critics means one for each of them."""

    def __post_init__(self) -> None:
        require_one_of(self.activation, modules.Activation, "network.activation")

    def check_observations(
        self, observation_shape: tuple[int, ...], observation_dtype: torch.dtype | None = None, field: str = "network"
    ) -> None:
        rule = f"knows vectors and pictures (uint8), and the environment gives {list(observation_shape)}"
        is_picture = len(observation_shape) == 3 and observation_dtype in (torch.uint8, None)
        is_known = len(observation_shape) == 1 or is_picture
        require(is_known, field, type(self).__name__, rule, "use Mlp, which flattens anything")

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        def mlp(outputs: int, gain: float) -> nn.Module:
            torso = modules.mlp_torso(observation_shape, self.hidden, self.layers, self.activation, self.has_layer_norm)
            return modules.with_last_layer(
                torso, self.hidden, self.gru, lambda inputs: OrthogonalLinear(inputs, outputs, gain)
            )

        if isinstance(observation_shape, MixedShape):
            parts = PicturesAndNumbers(observation_shape, map(self._picture_torso, observation_shape.pictures))
            features = self.picture_hidden * len(observation_shape.pictures) + observation_shape.numbers
            trunk = modules.mlp_torso((features,), self.hidden, self.layers, self.activation, self.has_layer_norm)
            torso = nn.Sequential(parts, *trunk)
            return modules.with_linear_heads(torso, self.hidden, num_actions, has_outer_critic, None, self.gru)
        if len(observation_shape) == 1:
            outer_value = mlp(1, 1.0) if has_outer_critic else None
            return modules.SeparateNetworks(mlp(num_actions, 0.01), mlp(1, 1.0), outer_value)
        torso = self._picture_torso(observation_shape)
        return modules.with_linear_heads(torso, self.picture_hidden, num_actions, has_outer_critic, None, self.gru)

    def _picture_torso(self, shape: tuple[int, ...]) -> nn.Sequential:
        is_large = NatureCnn.takes is not None and NatureCnn.takes.fit(shape)
        return (modules.nature_torso if is_large else modules.small_picture_torso)(shape, self.picture_hidden)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPolicy(NetworkSpec):
    """Has one linear layer from flattened observations to the policy, and no critics.

    Source: released code of "Debiasing Meta-Gradient RL by Learning the Outer Value Function" (Discounting Chain, whose
    values are known): weights by Haiku's VarianceScaling, zero bias.
    """

    has_critics: ClassVar[bool] = False
    has_hidden_layers: ClassVar[bool] = False

    init_scale: float = 1e-4
    """Variance of a weight times the number of inputs, when drawn."""

    def __post_init__(self) -> None:
        scale = self.init_scale
        rule, remedy = "must be positive and finite", "the release has 1e-4"
        require(0.0 < scale < math.inf, "network.init_scale", scale, rule, remedy)

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        layer = modules.VarianceScalingLinear(math.prod(observation_shape), num_actions, self.init_scale)
        return modules.PolicyAlone(nn.Sequential(nn.Flatten(), layer))


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryOnePair(NetworkSpec):
    """Holds two players of a repeated game with two actions each, who know what both did last; it has no critics.

    A table of five parameters for each player, θ = [2, 5] row after row, 0 at first: sigmoid(θ_s) = P(action 0 | s),
    s = 0 at the start of a game, then 1 + 2 a + a', the own action a first. Observations are player 0's state, one-hot
    [5]; what player 1 sees of it has a and a' swapped. The action is 2 a + a' of player 0.

    Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", G.2.
    """

    has_critics: ClassVar[bool] = False
    has_hidden_layers: ClassVar[bool] = False

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        states = len(_MEMORY_ONE_SWAPPED)
        given = f"observations {observation_shape}, {num_actions} actions"
        rule = f"sees one-hot states ({states},) and moves two players of two actions each, 4 together"
        is_pair = (observation_shape, num_actions) == ((states,), 4)
        require(is_pair, "network", given, rule, "use an IteratedPrisonersDilemma environment or another network")
        return modules.PolicyAlone(modules.TwoTables(_MEMORY_ONE_SWAPPED))


_MEMORY_ONE_SWAPPED = (0, 1, 3, 2, 4)  # 1 + 2 a + a' -> 1 + 2 a' + a


def build_network(
    spec: NetworkSpec,
    observation_shape: tuple[int, ...],
    actions: ActionSpace | int,
    has_outer_critic: bool,
    precision: Precision = "float32",
    is_observation_normalised: bool = False,
) -> Network:
    """Build the network that `spec` describes for one environment; a number means so many discrete actions.

    Raises:
        ConfigurationError: observations or actions that it cannot have; critics of a network that has none; bfloat16
            for layers of one that has none.
    """
    spec.check_sizes()
    spec.check_observations(observation_shape)
    rule, remedy = "has no critics, an outer one neither", "use a network with critics, such as Mlp"
    require(spec.has_critics or not has_outer_critic, "network", type(spec).__name__, rule, remedy)
    rule, remedy = f"is for hidden layers, and {type(spec).__name__} has none", "use --precision float32"
    require(spec.has_hidden_layers or precision != "bf16-mixed", "precision", precision, rule, remedy)
    space = DiscreteActions(actions) if isinstance(actions, int) else actions
    module = spec.module(observation_shape, space.outputs, has_outer_critic)
    numbers = (observation_shape.numbers,) if isinstance(observation_shape, MixedShape) else observation_shape
    normalised_shape = numbers if is_observation_normalised else None
    return Network(module, precision=precision, distribution=space.policy, normalised_shape=normalised_shape)
