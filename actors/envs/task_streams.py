"""Draws the random numbers of many tasks at once, each task from a stream of its own.

A stream is SplitMix64 from a start of its own, and its numbers are computed from their places in it. So what one task
draws depends neither on the tasks beside it nor on the device, and a task that is replaced leaves the others alone.

Source: Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators", Figure 16.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

STREAM = 0x5441534B  # keeps the streams of tasks apart from all others that are seeded with the same numbers


def _signed(value: int) -> int:
    """Return the number from -2^63 to 2^63 - 1 that has these 64 bits."""
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


class Streams(NamedTuple):
    """Holds N streams."""

    start: Int64[Tensor, "N"]
    position: Int64[Tensor, "N"]  # numbers drawn so far


def make_streams(seeds: list[int], device: torch.device) -> Streams:
    """Begin a stream for each seed; the same seed begins the same one."""
    words = [int(np.random.SeedSequence((seed, STREAM)).generate_state(1, np.uint64)[0]) for seed in seeds]
    start = torch.tensor([_signed(word) for word in words], dtype=torch.int64, device=device)
    return Streams(start, torch.zeros_like(start))


def draw(streams: Streams, count: int) -> tuple[Float[Tensor, "N count"], Streams]:
    """Return the next `count` numbers of every stream, float32 in [0, 1) of 24 bits each, and the streams after them.

    >>> numbers, after = draw(make_streams([0, 1], torch.device("cpu")), 3)
    >>> numbers.shape, after.position
    (torch.Size([2, 3]), tensor([3, 3]))
    """
    place = streams.position[:, None] + torch.arange(1, count + 1, device=streams.position.device)
    numbers = _shifted(splitmix64(streams.start[:, None], place), 40).to(torch.float32).mul_(2**-24)
    return numbers, streams._replace(position=streams.position + count)


def splitmix64(start: Int64[Tensor, "*batch"], place: Int64[Tensor, "*places"]) -> Int64[Tensor, "*both"]:
    """Return the outputs number `place`, from 1, of the generators whose state is `start`, as the bits of int64."""
    z = place * _GAMMA + start  # products and sums of int64 tensors wrap around
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        z = z.bitwise_xor_(_shifted(z, shift)).mul_(factor)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(bits: Int64[Tensor, "*shape"], places: int) -> Int64[Tensor, "*shape"]:
    """Shift to the right and fill with zeros; int64 tensors alone would repeat their sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)
