"""Provides a second device, "standin", that computes on the CPU and behaves where it matters like an accelerator.

A tensor on it is a wrapper around a CPU tensor, so every value is real and equals the CPU's bit for bit. Like on CUDA

* an operation that mixes devices raises; CPU numbers without dimensions may enter elementwise operations;
* whatever makes the host wait for the device is recorded with the line that asked for it (`Recorder.waits`): reading a
  number, a copy that does not say `non_blocking`, a result whose size depends on values;
* a copy to the host that does say so holds rubbish until the host has waited for the device after it.

What it cannot express:

* Streams: all operations take effect at once and in order, so a missing `wait_stream` or `record_stream` shows nowhere.
  The copies to the host above are the one exception.
* Generators: torch lets no Python backend make them. `second_device` puts a class in the place of `torch.Generator`
  whose generators of this device are those of the CPU, where they may draw too. A CUDA generator draws other numbers
  from the same seed.
* Kernels: a custom autograd function works, but its kernels are the CPU's, and so are their rounding, layouts, which
  operations exist at all, TF32 and autocast.
* `torch.func.vmap` over some of a concatenation's tensors: the shapes inside of the wrapper are then those of one of
  the batch. DiscoRL's rule over several agents does so.
* Compilation, graphs and pinned memory, which need a backend in C++.
"""

import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("standin")

DEVICE = torch.device("standin", 0)
ROOT = Path(__file__).parents[2]
CpuGenerator = torch.Generator
aten = torch.ops.aten

# Their results have a size that only the values tell, so the host waits for it on CUDA.
SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.linalg_inv.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Recorder:
    """Records where the host waited, and finishes the copies that were under way."""

    def __init__(self) -> None:
        self.waits: list[str] = []  # "file.py:function: operation"
        self._under_way: list[tuple[Tensor, Tensor]] = []

    def wait(self, operation: Any) -> None:
        """Note a wait of the host, after which all copies have arrived."""
        ours = [x for x in traceback.extract_stack() if _is_ours(x.filename)]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
        self.waits.append(f"{place}: {operation}")
        for target, source in self._under_way:
            target.copy_(source)
        self._under_way.clear()

    def begin_copy(self, target: Tensor, source: Tensor) -> None:
        """Fill the target with rubbish until the host waits."""
        self._under_way.append((target, source.clone()))
        target.fill_(float("nan") if target.is_floating_point() else torch.iinfo(target.dtype).min)


def _is_ours(filename: str) -> bool:
    path = Path(filename).resolve()
    return path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__).resolve()


recorder = Recorder()


class StandinTensor(Tensor):
    """Wraps a CPU tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "StandinTensor":
        return Tensor._make_wrapper_subclass(  # type: ignore[no-any-return,attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:  # torch has none for subclasses; on CUDA it is such a copy
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"standin({self.inner})"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is aten.copy_.default:
        return _copy(*args, **kwargs)
    leaves = tree_leaves((args, kwargs))
    ours = [x for x in leaves if isinstance(x, StandinTensor)]
    _require_one_device(func, leaves, ours)
    _record(func, args, kwargs, ours)
    device = kwargs.get("device")
    is_here = bool(ours) if device is None else torch.device(device).type == DEVICE.type
    place = {"device": "cpu"} if device is not None and is_here else {}
    result = func(*tree_map(_opened, args), **tree_map(_opened, kwargs) | place)
    if func is aten._to_copy.default and not is_here and result.device.type == "cpu":
        return _to_host(result, kwargs)
    if func._schema.is_mutable:
        return _written(func, args, kwargs)
    return tree_map(lambda x: StandinTensor(x) if isinstance(x, Tensor) else x, result) if is_here else result


def _opened(x: Any) -> Any:
    return x.inner if isinstance(x, StandinTensor) else x


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the arguments that an operation wrote to, which are its results."""
    written = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[i] if i < len(args) else kwargs[argument.name])
    return written[0] if len(written) == 1 else tuple(written)


def _require_one_device(func: Any, leaves: list[Any], ours: list[StandinTensor]) -> None:
    others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, StandinTensor)]
    are_numbers = torch.Tag.pointwise in func.tags and all(x.ndim == 0 for x in others)
    is_written_elsewhere = func._schema.is_mutable and any(leaves[0] is x for x in others)
    generators = [x for x in leaves if isinstance(x, CpuGenerator)]
    if ours and (
        (others and (not are_numbers or is_written_elsewhere))
        or any(x._cdata not in Generator.addresses for x in generators)
    ):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got standin:0 and cpu")


def _record(func: Any, args: Any, kwargs: Any, ours: list[StandinTensor]) -> None:
    is_masked = func in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if is_masked and func is not aten.index.Tensor:
        is_masked = args[2].numel() > 1  # one number is filled in, without a wait
    is_sized = func in SIZED_BY_VALUES and kwargs.get("output_size") is None
    if ours and (func in READ or is_sized or is_masked):
        recorder.wait(func)


def _to_host(result: Tensor, kwargs: Any) -> Tensor:
    if kwargs.get("non_blocking"):
        recorder.begin_copy(result, result)
    else:
        recorder.wait("copy to the host")
    return result


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    is_up, is_down = isinstance(target, StandinTensor), isinstance(source, StandinTensor)
    if is_down and not is_up and non_blocking:
        recorder.begin_copy(target, _opened(source).to(target.dtype).expand_as(target))
        return target
    _opened(target).copy_(_opened(source))
    if is_up != is_down and not non_blocking:
        recorder.wait("copy to the host" if is_down else "copy to the device")
    return target


@torch.library.impl("aten::empty.memory_format", "PrivateUse1")
def _empty(size: Any, dtype: Any = None, *_: Any, memory_format: Any = None, **__: Any) -> Tensor:
    return StandinTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


@torch.library.impl("aten::empty_strided", "PrivateUse1")
def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return StandinTensor(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::_efficientzerotensor", "PrivateUse1")
def _zeros(size: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return StandinTensor(torch.zeros(size, dtype=dtype))  # derivatives in forward mode that are zero


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return _copy(target, source, non_blocking)  # of `torch.tensor(…, device="standin")`


class _AnyGenerator(type(CpuGenerator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, CpuGenerator)


class Generator(CpuGenerator, metaclass=_AnyGenerator):
    """A generator of any device; those of "standin" are the CPU's."""

    addresses: ClassVar[set[int]] = (
        set()
    )  # of the C++ parts of those of "standin", which is all that an operation is given

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != DEVICE.type:
            return CpuGenerator(device)
        generator = CpuGenerator.__new__(cls, "cpu")
        cls.addresses.add(generator._cdata)
        weakref.finalize(generator, cls.addresses.discard, generator._cdata)
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


@contextmanager
def second_device() -> Iterator[Recorder]:
    """Make generators of the second device, and record waits from the beginning.

    Backward passes stay in the calling thread, as on the CPU: with a thread of the device's own, as on CUDA, torch adds
    up the parts of a second-order gradient in another order, and the last bits differ.
    """
    recorder.waits.clear()
    with patch.object(torch, "Generator", Generator), torch.autograd.set_multithreading_enabled(False):
        yield recorder
