"""Offers the module of an actor-critic as pure functions of one flat parameter vector θ."""

import copy
import math
from collections.abc import Callable, Collection
from typing import get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from metagrad import autodiff
from metagrad import network_modules as modules
from metagrad.distributions import Categorical, DistributionOf, Outputs
from metagrad.errors import require
from metagrad.flat_module import FlatModule
from metagrad.network_layers import reset
from metagrad.network_modules import Head
from metagrad.normalisation import Normaliser, Statistics, no_statistics, normalised_observation
from metagrad.precision import Precision, layers_dtype
from metagrad.recurrence import Memory, require_memory

_MEAN, _SCALE = "normaliser.mean", "normaliser.scale"
NetworkAtTheta = Callable[..., Outputs]
"""(observation [N, …], names of heads) to the heads; of a recurrent network a `Memory` is the third argument."""


class Network:
    """Offers a module as pure functions of θ; the module's own parameters only give shapes."""

    def __init__(
        self,
        module: nn.Module,
        first_order: Collection[str] = (),
        precision: Precision = "float32",
        distribution: DistributionOf = Categorical,
        normalised_shape: tuple[int, ...] | None = None,
    ):
        """Wrap `module`, whose forward is (observation [N, …], heads) -> {head: tensor [N, …]}.

        Args:
            module: shapes, init and forward.
            first_order: names of parameters whose gradients carry no derivative (`metagrad.autodiff.first_order`).
            precision: what the layers compute in; heads are of the type of θ in all of them.
            distribution: of actions, made of the numbers of the policy head.
            normalised_shape: shape of one observation, if they are normalised by statistics in θ; of those that begin
                with pictures (`MixedShape`), of the numbers behind these.
        """
        self._module = module
        if normalised_shape is not None:
            module.register_module("normaliser", Normaliser(normalised_shape))
        self._flat = FlatModule(module)
        self.layout = self._flat.layout
        self._first_order = frozenset(first_order)
        self._layers_dtype = layers_dtype(precision)
        self._kept = modules.float32_parameters(module) | {_MEAN, _SCALE} if self._layers_dtype else frozenset()
        self._discount: Tensor | float | None = None
        self.distribution = distribution

    @property
    def own_parameters_of_critics(self) -> tuple[str, ...]:
        """Return the names of those that the policy lacks; none of a shared torso, whose critics' layers are few."""
        names = self.layout.names if isinstance(self._module, modules.SeparateNetworks) else ()
        return tuple(name for name in names if not name.startswith("logits."))

    def with_first_order(self, names: Collection[str]) -> "Network":
        """Return the same network where gradients of these parameters carry no derivative."""
        unknown = sorted(set(names) - set(self.layout.names))
        rule, remedy = "are not trained parameters of the network", "give names of its layout"
        require(not unknown, "first_order", unknown, rule, remedy)
        other = copy.copy(self)
        other._first_order = frozenset(names)
        return other

    @property
    def normalises(self) -> bool:
        """Return True where θ holds statistics of observations, by which they are normalised."""
        return _MEAN in self.layout.names

    def no_statistics(self, device: torch.device | None = None) -> Statistics | None:
        """Return the statistics of no observations; None where they are not normalised."""
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        return no_statistics(math.prod(shapes[_MEAN]), device) if self.normalises else None

    def with_statistics(self, theta: Float[Tensor, "P"], statistics: Statistics) -> Float[Tensor, "P"]:
        """Return θ with these statistics of observations, in a new vector."""
        parts = self.layout.unflatten(theta.detach())
        mean, scale = (x.to(theta.dtype) for x in (statistics.mean, statistics.inverse_deviation()))
        parts |= {_MEAN: mean.view(parts[_MEAN].shape), _SCALE: scale.view(parts[_SCALE].shape)}
        return self.layout.flatten(parts)

    @property
    def state_size(self) -> int:
        """Count the numbers H that the network remembers of each environment; 0: it is not recurrent."""
        return int(getattr(self._module, "state_size", 0))

    def fresh_state(self, batch: int, device: torch.device | None = None) -> Float[Tensor, "B H"] | None:
        """Return the state at the beginning of episodes; None of a network that remembers nothing."""
        return torch.zeros(batch, self.state_size, device=device) if self.state_size else None

    @property
    def is_conditioned(self) -> bool:
        """Return True where the inner critic is told the discount that its values are of, by `under`."""
        return isinstance(getattr(self._module, "value", None), modules.ConditionedCritic)

    def under(self, discount: Float[Tensor, "1"] | float) -> "Network":
        """Return the same network with inner values of this discount, a constant.

        It is the network itself if the critic is not told any.
        """
        if not self.is_conditioned:
            return self
        told = copy.copy(self)
        told._discount = autodiff.stop_gradient(discount) if isinstance(discount, Tensor) else discount
        return told

    def init(self, generator: torch.Generator) -> Float[Tensor, "P"]:
        """Draw a fresh θ on the CPU from `generator`."""
        frozen = [(p, p.detach().clone()) for p in self._module.parameters() if not p.requires_grad]
        self._module.apply(lambda child: reset(child, generator))
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)
        return self._flat.theta()

    def apply(
        self,
        theta: Float[Tensor, "P"],
        observation: Shaped[Tensor, "..."],
        heads: Collection[Head],
        memory: Memory | None = None,
    ) -> Outputs:
        """Evaluate the named heads on observations [N, …]: logits [N, …], value [N], outer_value [N].

        A recurrent network needs a memory; N is then T B, step after step, and "state" the state after each, [N, H].
        """
        return self.at(theta)(observation, heads, memory)

    def at(self, theta: Float[Tensor, "P"]) -> NetworkAtTheta:
        """Return `apply` under one θ, which is taken apart once for all that it is called on."""
        parameters = self._flat.parameters(theta)
        dtype = self._layers_dtype or theta.dtype
        if dtype != theta.dtype:
            rounded = self._flat.parameters(theta.to(dtype))  # all in one pass
            parameters = {name: x if name in self._kept else rounded[name] for name, x in parameters.items()}
            parameters |= self._flat.untrained(dtype)
        for name in self._first_order:
            parameters[name] = autodiff.first_order(parameters[name])
        extra = (self._discount,) if self.is_conditioned else ()
        known = [head for head in get_args(Head) if head != "state" or self.state_size]

        def apply(observation: Tensor, heads: Collection[Head], memory: Memory | None = None) -> Outputs:
            rule, remedy = f"the heads are {', '.join(known)}", "name some of them, in a tuple"
            require(set(heads) <= set(known) and not isinstance(heads, str), "heads", heads, rule, remedy)
            require_memory(memory, self.state_size)
            remembered = {} if memory is None else {"memory": memory}
            if self.normalises:
                observation = normalised_observation(observation, parameters[_MEAN], parameters[_SCALE])
            if observation.is_floating_point():
                observation = observation.to(dtype)
            outputs: dict[Head, Tensor] = self._flat.with_parameters(
                parameters, observation, heads, *extra, **remembered
            )
            return Outputs({head: x.to(theta.dtype) for head, x in outputs.items()}, self.distribution)

        return apply
