"""Translates Gymnasium's spaces into what metagrad's networks and policies take.

Observations become one of three things:

* pictures, uint8 [channels, height, width]: a `Box` of uint8 with three axes, of which the shorter one of the first and
  the last is the channels (the last where they are alike), or with two axes, which is one channel;
* vectors, float32 [size]: everything else, flattened. `Discrete` and `MultiDiscrete` are one-hot, `MultiBinary` is 0
  and 1, a `Box` its numbers. `Dict` and `Tuple` are their parts one after the other: a `Dict` in the order of its space
  (Gymnasium sorts the keys of a plain dictionary), a `Tuple` in its own, nested ones depth first. A small picture among
  the parts (below `PICTURE_SIDE` pixels on a side, like MiniGrid's 7 x 7 numbers of objects) is its numbers; bytes with
  one axis, which is how EnvPool hands out text, count as 0 to 1;
* pictures beside other parts, float32 [size]: the larger pictures, channels first and flattened, then the numbers of
  the other parts, both in the order above. The shape is a `MixedShape`, by which networks tell them apart. Where there
  is one larger picture and nothing else, it is a picture as above.

Refused in one line that names the space: `Text`, `Graph`, `Sequence` and `OneOf`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.distributions import ActionSpace, ContinuousActions, MultiDiscreteActions
from metagrad.errors import require
from metagrad.observations import MixedShape, Picture

PICTURE_SIDE = 16
"""Pixels from which on the bytes of a part are a picture rather than numbers."""


class Observations(NamedTuple):
    """Says what B observations of a space become."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    encode: Callable[[Any], Shaped[Tensor, "B ..."]]
    """Takes B observations as Gymnasium's vector environments and EnvPool return them."""


def observations(space: Any, name: str, field: str) -> Observations:
    """Return what observations of a `gymnasium.Space` become.

    Args:
        space: of one observation.
        name: of the task, for the message.
        field: the option that chose the task.

    Raises:
        ConfigurationError: the space is of a kind that is not taken; names the space.
    """
    remedy = "wrap the environment so that it returns numbers"
    require(_kind(space) in _TAKEN, field, name, f"observes {space}, which is not taken", remedy)
    if _is_picture(space, side=1):
        return _picture(space.shape, ())
    parts = list(_parts(space, ()))
    for path, part in parts:
        where = f"observes {part}" + (f" as {'.'.join(map(str, path))}" if path else "")
        require(_kind(part) in _LEAVES, field, name, f"{where}, which is not taken", remedy)
    pictures = [(path, part) for path, part in parts if _is_picture(part, PICTURE_SIDE)]
    numbers = [(path, part) for path, part in parts if not _is_picture(part, PICTURE_SIDE)]
    size = sum(_width(part) for _, part in numbers)
    require(size > 0 or bool(pictures), field, name, f"observes {space}, which holds no number", remedy)
    if len(pictures) == 1 and size == 0:
        ((path, part),) = pictures
        return _picture(part.shape, path)

    def encode(batch: Any) -> Tensor:
        seen = [_pixels(part.shape, _at(batch, path)).flatten(1).numpy() for path, part in pictures]
        flat = [*seen, *(_flat(part, _at(batch, path)) for path, part in numbers)]
        return torch.from_numpy(flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1, dtype=np.float32))

    shapes = tuple(_channels_first(part.shape) for _, part in pictures)
    return Observations(MixedShape(shapes, size) if shapes else (size,), torch.float32, encode)


_LEAVES = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
_TAKEN = (*_LEAVES, "Dict", "Tuple")


def _kind(space: Any) -> str:
    """Return the name of Gymnasium's class of a space, of which it may be a subclass."""
    from gymnasium import spaces

    kinds = (*_TAKEN, "Text", "Graph", "Sequence", "OneOf")
    return next((kind for kind in kinds if isinstance(space, getattr(spaces, kind))), type(space).__name__)


def _is_picture(space: Any, side: int) -> bool:
    """Return True for bytes with two or three axes, height and width of at least `side`."""
    if _kind(space) != "Box" or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    _, *sides = _channels_first(space.shape)
    return min(sides) >= side


def _channels_first(shape: tuple[int, ...]) -> Picture:
    if len(shape) == 2:
        return (1, *shape)
    first, middle, last = shape
    return (first, middle, last) if first < last else (last, first, middle)


_Path = tuple[str | int, ...]


def _picture(shape: tuple[int, ...], path: _Path) -> Observations:
    return Observations(_channels_first(shape), torch.uint8, lambda batch: _pixels(shape, _at(batch, path)))


def _pixels(shape: tuple[int, ...], batch: Any) -> Tensor:
    """Return uint8 [B, channels, height, width]."""
    pictures = torch.from_numpy(np.asarray(batch))
    is_moved = len(shape) == 3 and shape[0] >= shape[2]
    return pictures.permute(0, 3, 1, 2) if is_moved else pictures.reshape(-1, *_channels_first(shape))


def _parts(space: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    """Yield the leaves of a space with the keys that lead to them, depth first."""
    match _kind(space):
        case "Dict":
            for key, part in space.spaces.items():
                yield from _parts(part, (*path, key))
        case "Tuple":
            for index, part in enumerate(space.spaces):
                yield from _parts(part, (*path, index))
        case _:
            yield path, space


def _at(batch: Any, path: _Path) -> Any:
    for key in path:
        batch = batch[key]
    return batch


def with_batch_axis(observation: Any) -> Any:
    """Return one observation of a space as a batch of one."""
    match observation:
        case dict():
            return {key: with_batch_axis(part) for key, part in observation.items()}
        case tuple():
            return tuple(with_batch_axis(part) for part in observation)
        case _:
            return np.asarray(observation)[None]


def _width(space: Any) -> int:
    match _kind(space):
        case "Discrete":
            return int(space.n)
        case "MultiDiscrete":
            return int(space.nvec.sum())
        case _:
            return math.prod(space.shape)


def _flat(space: Any, batch: Any) -> np.ndarray:
    """Return float32 [B, width]."""
    values = np.asarray(batch)
    match _kind(space):
        case "Discrete":
            return _one_hot(values.reshape(-1) - space.start, int(space.n))
        case "MultiDiscrete":
            columns = (values - space.start).reshape(len(values), -1).T
            sizes = space.nvec.reshape(-1).tolist()
            return np.concatenate([_one_hot(x, n) for x, n in zip(columns, sizes, strict=True)], axis=1)
        case _:
            numbers = values.reshape(len(values), -1).astype(np.float32, copy=False)
            is_text = space.dtype == np.uint8 and len(space.shape) == 1
            return numbers / 255.0 if is_text else numbers


def _one_hot(index: np.ndarray, size: int) -> np.ndarray:
    # Compared rather than indexed: a number outside of its space is a row of zeros, as an unused observation may be.
    return (index[:, None] == np.arange(size)).astype(np.float32)


class Actions(NamedTuple):
    """Says what B actions of a policy become in a space."""

    names: tuple[str, ...]
    """Names the actions, or the components of one."""
    space: ActionSpace | None
    """Says what the policy chooses among; None: it chooses one of `names`."""
    decode: Callable[[Tensor], np.ndarray]
    """Returns B actions as Gymnasium's vector environments and EnvPool take them."""


def actions(space: Any, name: str, field: str) -> Actions:
    """Return how a policy acts in a `gymnasium.Space`.

    * `Discrete`: one of n.
    * `MultiDiscrete`, `MultiBinary`: a choice for each number.
    * `Box`: a normal number x for each of its numbers. Where it has finite bounds, -1 is the lower and 1 the upper one,
      and what lies beyond is clipped there; else x is taken as it is, clipped at the one bound that there may be.
      Log-probabilities are of x.

    Raises:
        ConfigurationError: the space is of a kind that is not taken; names the space.
    """
    rule, remedy = f"acts in {space}, which is not taken", "wrap the environment so that it takes another action"
    kind = _kind(space)
    require(kind in _LEAVES, field, name, rule, remedy)
    shape, size = space.shape, math.prod(space.shape)
    components = tuple(f"component {i}" for i in range(size))
    match kind:
        case "Discrete":
            start, dtype = int(space.start), space.dtype
            names = tuple(f"action {start + i}" for i in range(int(space.n)))
            return Actions(names, None, lambda action: (action.cpu().numpy() + start).astype(dtype))
        case "Box":
            is_real = np.issubdtype(space.dtype, np.floating)
            require(is_real and size > 0, field, name, rule, remedy)
            return Actions(components, ContinuousActions(size), _clipped(space))
        case _:
            sizes = space.nvec.reshape(-1) if kind == "MultiDiscrete" else np.full(size, 2)
            starts = np.asarray(getattr(space, "start", 0))
            require(size > 0, field, name, rule, remedy)

            def decode(action: Tensor) -> np.ndarray:
                return (action.cpu().numpy().reshape(-1, *shape) + starts).astype(space.dtype)

            return Actions(components, MultiDiscreteActions(tuple(sizes.tolist())), decode)


def specification(batch_size: int, observations: Observations, actions: Actions, name: str) -> EnvironmentSpec:
    """Return the facts of B environments on the host whose spaces were translated."""
    return EnvironmentSpec(
        batch_size=batch_size,
        observation_shape=observations.shape,
        observation_dtype=observations.dtype,
        action_names=actions.names,
        device=torch.device("cpu"),
        name=name,
        action_space=actions.space,
    )


_UNBOUNDED = 1e30
"""Bounds from here on are none: EnvPool gives the largest float for those that are not known, and C++'s smallest normal
number, which is positive, for the lower ones."""


def _clipped(space: Any) -> Callable[[Tensor], np.ndarray]:
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    low = np.where((0 < low) & (low < 1 / _UNBOUNDED), -np.inf, low)
    is_box = (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)
    least, most = np.where(is_box, low, -1.0), np.where(is_box, high, 1.0)
    middle, scale = (least + most) / 2, (most - least) / 2

    def decode(action: Tensor) -> np.ndarray:
        x = action.cpu().numpy().reshape(-1, *space.shape)
        return np.clip(middle + scale * x, low, high).astype(space.dtype)

    return decode
