"""Turns any module into a function of one flat vector θ, the trained part of its parameters."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metagrad import trees
from metagrad.errors import require


class ParameterLayout(NamedTuple):
    """Holds names and shapes of the tensors that lie one after another in θ."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Return the number of parameters P."""
        return sum(math.prod(shape) for shape in self.shapes)

    def unflatten(self, theta: Float[Tensor, "P"]) -> dict[str, Tensor]:
        """Return views of θ by name; one split, whose backward is one concatenation."""
        parts = theta.split([math.prod(shape) for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "P"]:
        """Make one vector from tensors by name; a missing name raises KeyError.

        Raises:
            ConfigurationError: a tensor of another shape, or of another dtype than the first one.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            found, dtype = tensors[name], tensors[self.names[0]].dtype
            rule, remedy = f"the layout has {tuple(shape)} there", "give the tensors of this layout"
            require(tuple(found.shape) == tuple(shape), f"{name}.shape", tuple(found.shape), rule, remedy)
            rule, remedy = f"θ has one dtype, and {self.names[0]} is {dtype}", "convert the module, module.to(dtype)"
            require(found.dtype == dtype, f"{name}.dtype", found.dtype, rule, remedy)
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


class FlatModule:
    """Makes a module a pure function of θ; its own parameters give the shapes, and the values of what is not trained.

    Parameters with `requires_grad=False` are no part of θ and stay as they are in the module. A parameter or submodule
    that is reached by several names is in θ once, and every name sees it.

    Example:
        >>> flat = FlatModule(nn.Linear(3, 2))
        >>> flat(torch.zeros(flat.layout.size), torch.ones(1, 3))
        tensor([[0., 0.]])

    Raises:
        ConfigurationError: trained parameters of several dtypes, or none at all.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        places: dict[nn.Parameter, list[str]] = {}
        # Each module once, by its first name: setting a submodule's parameter twice would lose it (torch 2.13).
        for prefix, child in module.named_modules():
            for name, parameter in child.named_parameters(prefix, recurse=False, remove_duplicate=False):
                if parameter.requires_grad:
                    places.setdefault(parameter, []).append(name)
        # Of each part of θ, by its first name: all places in the module where it stands.
        self._names = {names[0]: tuple(names) for names in places.values()}
        self._has_buffers = any(True for _ in module.buffers())
        self.layout = ParameterLayout(tuple(self._names), tuple(tuple(parameter.shape) for parameter in places))
        rule, remedy = "has no parameter to train", "set requires_grad"
        require(len(places) > 0, "module", type(module).__name__, rule, remedy)
        self.layout.flatten({names[0]: parameter for parameter, names in places.items()})

    def theta(self) -> Float[Tensor, "P"]:
        """Return the module's own values of what is trained, as a new vector."""
        own = dict(self.module.named_parameters())
        return self.layout.flatten({name: own[name].detach() for name in self.layout.names})

    def __call__(self, theta: Float[Tensor, "P"], *args: Any, **kwargs: Any) -> Any:
        """Return what the module computes under θ.

        Raises:
            ConfigurationError: θ is of another size, or the module writes to a buffer of its own (batch norm in
                training mode), which every further evaluation would see.
        """
        return self.with_parameters(self.parameters(theta), *args, **kwargs)

    def parameters(self, theta: Float[Tensor, "P"]) -> dict[str, Tensor]:
        """Return the parts of θ by name."""
        rule, remedy = f"the module has {self.layout.size} trained parameters", "make θ by theta() or layout.flatten()"
        require(theta.shape == (self.layout.size,), "theta.shape", tuple(theta.shape), rule, remedy)
        return self.layout.unflatten(theta)

    def untrained(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return, by name, the floating-point numbers that are no part of θ (buffers, frozen parameters) as `dtype`."""
        frozen = ((name, x) for name, x in self.module.named_parameters() if not x.requires_grad)
        rest = (*frozen, *self.module.named_buffers())
        return {name: x.detach().to(dtype) for name, x in rest if x.is_floating_point()}

    def with_parameters(self, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Return what the module computes under `parameters(theta)`, and under `untrained(dtype)` where these have it.

        Raises:
            ConfigurationError: the module writes to a buffer.
        """
        everywhere = {place: parameters[name] for name, places in self._names.items() for place in places}
        replaced = {name: x for name, x in parameters.items() if name not in self._names}
        before = self._buffers(replaced)
        output = functional_call(self.module, everywhere | replaced, args, kwargs, tie_weights=False)
        after = self._buffers(replaced)
        written = [name for name, x, writes in after if not any(x is y and writes == n for _, y, n in before)]
        rule, remedy = "the module writes to it in its forward pass", "use module.eval(), or a layer without statistics"
        require(not written, "buffers", written, rule, remedy)
        return output

    def _buffers(self, replaced: Mapping[str, Tensor]) -> list[tuple[str, Tensor, int]]:
        """Return each buffer's name, the tensor that is used for it, and how often it was written to."""
        if not self._has_buffers:
            return []
        buffers = {**dict(self.module.named_buffers()), **replaced}
        return [(name, buffer, trees.version(buffer)) for name, buffer in buffers.items()]
