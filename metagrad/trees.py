"""Treats batches as trees of tensors: takes them apart, and notices that one was written to.

`map_tensors` is strict, for batches of which each copy of a problem gets its own part: what it cannot take apart is
refused by name, since tensors inside would be shared by all. `fingerprint` takes whatever a loss may be given.
"""

import ctypes
import dataclasses
import numbers
import sys
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metagrad.errors import require

_SHARED = (type(None), str, bytes, numbers.Number, Enum, torch.dtype, torch.device, torch.Size)
"""What has no tensors in it, and is the same for all copies."""

_OPENED = 2
"""How many nested objects other than containers are searched for a tensor."""


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return the same tree with function(x) in the place of every tensor x.

    Trees are lists, tuples, named tuples, dicts and dataclasses, however nested; numbers, strings, enumerations and
    None stay as they are.

    >>> map_tensors(len, [torch.zeros(2), {"x": (torch.zeros(3), 1.5)}])
    [2, {'x': (3, 1.5)}]

    Raises:
        ConfigurationError: another container or object, a numpy array among them.
    """
    kind = type(tree)
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, _SHARED):
        return tree
    if kind in (dict, OrderedDict, defaultdict):
        mapped = copy(tree)
        for key, value in tree.items():
            mapped[key] = map_tensors(function, value)
        return mapped
    if kind in (list, tuple):
        return kind(map_tensors(function, value) for value in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind._make(map_tensors(function, value) for value in tree)
    is_known = dataclasses.is_dataclass(tree) and not isinstance(tree, type) and _holds_fields_alone(tree)
    rule = "cannot be taken apart into the tensors of each copy"
    remedy = "use torch tensors in lists, tuples, dicts or dataclasses"
    require(is_known, "batch", f"{kind.__module__}.{kind.__qualname__}", rule, remedy)
    mapped = copy(tree)
    for field in dataclasses.fields(tree):
        object.__setattr__(mapped, field.name, map_tensors(function, getattr(tree, field.name)))
    return mapped


def _holds_fields_alone(tree: Any) -> bool:
    return set(getattr(tree, "__dict__", ())) <= {field.name for field in dataclasses.fields(tree)}


def tensors(tree: Any) -> list[Tensor]:
    """List all tensors of a tree, in the order in which `map_tensors` meets them."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


class Fingerprint:
    """Remembers what a batch held when it was first used: its leaves, and how often each was written to.

    Torch counts what it writes to a tensor. Memory that others write to as well (numpy arrays and tensors that share
    one's memory, tensors shared between processes) has a checksum instead, and so has a part of a larger tensor, whose
    counter is that of the whole. Looked at are containers, and attributes of objects that are none.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._leaves = [(leaf, _mark(leaf)) for leaf in _leaves(tree)]

    def is_kept(self, counts_versions: bool = True) -> bool:
        """Return True where the batch is as it was; without versions, as far as checksums say."""
        leaves = list(_leaves(self._tree))
        return len(leaves) == len(self._leaves) and all(
            _is_same(old, new) and (_mark(new) == mark or not (counts_versions or isinstance(mark, bytes)))
            for new, (old, mark) in zip(leaves, self._leaves, strict=True)
        )


def _is_same(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, str | bytes | numbers.Number) and bool(old == new))


def version(x: Tensor) -> int:
    """Return how often torch has written to a tensor; 0 where that is not counted."""
    return 0 if x.is_inference() else x._version


def _leaves(tree: Any) -> Iterator[Any]:
    seen: set[int] = set()

    def visit(x: Any, opened: int) -> Iterator[Any]:
        if isinstance(x, Tensor | torch.Generator | str | bytes | numbers.Number) or _is_array(x):
            yield x
            return
        if id(x) in seen:
            return
        seen.add(id(x))
        if isinstance(x, Mapping):
            parts = list(x.values())
        elif isinstance(x, list | tuple | set | frozenset):
            parts = list(x)
        elif opened < _OPENED and not isinstance(x, type | ModuleType):
            opened += 1
            slots = [name for kind in type(x).__mro__ for name in getattr(kind, "__slots__", ())]
            parts = [*getattr(x, "__dict__", {}).values(), *(getattr(x, name, None) for name in slots)]
        else:
            return
        for part in parts:
            yield from visit(part, opened)

    return visit(tree, 0)


def _is_array(x: Any) -> bool:
    return hasattr(x, "__array_interface__") and hasattr(x, "tobytes")


def _mark(leaf: Any) -> int | bytes:
    """Return a number of writes, or a checksum as bytes."""
    if isinstance(leaf, torch.Generator):  # a number: a retained graph needs none of it any more
        return int.from_bytes(_checksum(leaf.get_state()), "little")
    if not isinstance(leaf, Tensor):
        return _crc(leaf.tobytes()) if _is_array(leaf) else 0
    return _checksum(leaf) if _is_foreign(leaf) else version(leaf)


def _is_foreign(x: Tensor) -> bool:
    """Return True if it is written to where torch does not count it for x alone.

    Other devices' memory is not read for this.
    """
    if x.device.type != "cpu" or x.layout != torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return x.is_inference() or x._is_view() or x.is_shared() or not x.untyped_storage().resizable()


def _checksum(x: Tensor) -> bytes:
    x = x.detach().resolve_conj().resolve_neg().contiguous()
    size = x.numel() * x.element_size()
    return _crc((ctypes.c_char * size).from_address(x.data_ptr()) if size else b"")


def _crc(content: Any) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def random_state(device: torch.device) -> tuple[Any, ...]:
    """Return the global random states that a loss draws from: torch's, also on the device, and numpy's.

    Python's own is not among them: run-time type checkers such as beartype use it to choose the elements of a list that
    they look at.
    """
    states: list[Any] = [_checksum(torch.get_rng_state())]
    if device.type == "cuda":
        states.append(_checksum(torch.cuda.get_rng_state(device)))
    if numpy := sys.modules.get("numpy"):
        _, keys, position, *_ = numpy.random.get_state()
        states.append((_crc(keys.tobytes()), position))
    return tuple(states)
