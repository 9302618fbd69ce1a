"""Defines what a training loop reports.

The values go to whatever function it is given, a list's `append` for instance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Message(NamedTuple):
    """Tells people something in one line."""

    text: str


class Standing(NamedTuple):
    """Says how the run stands, for the progress line."""

    update: int
    frames_per_second: float
    return_mean: float | None  # None: no episode has ended yet
    learnt: dict[str, float]
    mean_lag: float


class Row(NamedTuple):
    """Holds the scalars of an interval, for TensorBoard and the cluster's metrics."""

    scalars: dict[str, float]
    update: int


class Lags(NamedTuple):
    """Holds the published versions between each rollout's policy and the updated one, since the last row."""

    versions: list[int]
    update: int


class Candidate(NamedTuple):
    """Holds parameters that are to be evaluated."""

    theta: Float[Tensor, "P"]
    update: int


class Checkpoint(NamedTuple):
    """Holds all that a continuation needs."""

    update: int
    tree: dict[str, Any]


class Summary(NamedTuple):
    """Holds the content of summary.json as of now."""

    content: dict[str, Any]


Report = Message | Standing | Row | Lags | Candidate | Checkpoint | Summary
Reporter = Callable[[Report], None]
