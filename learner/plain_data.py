"""Check that what a checkpoint holds has the form that a run writes: same keys, types and shapes, finite numbers."""

import math
from typing import Any

import torch
from torch import Tensor

from metagrad.types import OF_COLUMNS, PackedTrajectory, Trajectory

_KINDS = (Trajectory, PackedTrajectory)
_FLAGS = ("is_terminal", "is_truncated", "valid")
_OF_OTHER_SHAPE = ("observation", "frames", "frame_index", "action", *OF_COLUMNS)


def is_like(found: Any, like: Any) -> bool:
    """True for a tree of the form of `like`: its keys, the lengths of its lists, the shapes and types of its tensors.

    Whole numbers are counts, and so not negative; others are finite.
    """
    if isinstance(like, dict):
        return isinstance(found, dict) and found.keys() == like.keys() and all(is_like(found[k], like[k]) for k in like)
    if isinstance(like, list):
        return isinstance(found, list) and len(found) == len(like) and all(map(is_like, found, like))
    if isinstance(like, Tensor):
        return is_tensor(found) and (found.shape, found.dtype) == (like.shape, like.dtype)
    if isinstance(like, float):
        return is_number(found)
    return is_count(found) if type(like) is int else type(found) is type(like)


def is_tensor(found: Any) -> bool:
    """True if it is an ordinary tensor with memory behind it."""
    is_plain = type(found) is Tensor and found.layout is torch.strided and not found.is_quantized
    return is_plain and found.device.type != "meta" and not found.requires_grad


def is_count(found: Any) -> bool:
    """True if it is a whole number from 0 on."""
    return type(found) is int and 0 <= found < 2**63


def is_number(found: Any) -> bool:
    """True if it is a finite number."""
    return (type(found) is float and math.isfinite(found)) or (type(found) is int and abs(found) < 2**63)


def is_finite(found: Tensor) -> bool:
    """True where no component is NaN or infinite."""
    return bool(torch.isfinite(found).all())


def is_trajectory(found: Any) -> bool:
    """True for a trajectory of whatever length and environment, packed or not, as `_asdict` gives it."""
    if not isinstance(found, dict):
        return False
    names = found.keys() | set(OF_COLUMNS)  # which are optional
    kind = next((kind for kind in _KINDS if names == set(kind._fields)), None)
    if kind is None:
        return False
    tensors = {name: x for name, x in found.items() if name != "policy_version"}
    if not all(map(is_tensor, tensors.values())) or type(found["policy_version"]) is not int:
        return False
    shape = found["reward"].shape
    seen = found["observation" if kind is Trajectory else "frame_index"]
    return (
        len(shape) == 2
        and all(x.shape == shape for name, x in tensors.items() if name not in _OF_OTHER_SHAPE)
        and seen.shape[:2] == (shape[0] + 1, shape[1])
        and (kind is Trajectory or _is_frame_index(seen, found["frames"]))
        and all(found[name].dtype is torch.bool for name in _FLAGS)
        and found["action"].shape[:2] == shape
        and (found["action"].dim() == 3 or (not found["action"].is_floating_point() and found["action"].dim() == 2))
        and found["reward"].is_floating_point()
        and found["behaviour_log_prob"].is_floating_point()
        and ("first_state" not in found or _is_carried(found["first_state"], 2, shape[1]))
        and ("first_return" not in found or _is_carried(found["first_return"], 1, shape[1]))
    )


def _is_carried(found: Tensor, dim: int, batch: int) -> bool:
    return found.dim() == dim and len(found) == batch and found.is_floating_point()


def _is_frame_index(found: Tensor, frames: Tensor) -> bool:
    is_index = found.dim() == 3 and found.dtype is torch.int32 and frames.dim() > 0
    return is_index and bool(((0 <= found) & (found < len(frames))).all())
