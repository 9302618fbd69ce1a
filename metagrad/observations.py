"""Describes observations as networks need them: the kind of numbers, names and least lengths of the axes, and parts."""

import math
from typing import NamedTuple

Picture = tuple[int, int, int]
"""Channels, height and width."""


class MixedShape(tuple[int, ...]):
    """Is the shape (D,) of flat observations of which the first numbers are pictures.

    They are pixels 0..255, picture after picture, each [channels, height, width]; other numbers follow. Whoever does
    not ask for `pictures` sees an ordinary shape.

    >>> shape = MixedShape(pictures=((3, 4, 5),), numbers=2)
    >>> shape, shape.sizes
    ((62,), (60, 2))
    """

    pictures: tuple[Picture, ...]
    numbers: int

    def __new__(cls, pictures: tuple[Picture, ...], numbers: int) -> "MixedShape":
        self = super().__new__(cls, (sum(map(math.prod, pictures)) + numbers,))
        self.pictures, self.numbers = pictures, numbers
        return self

    def __getnewargs__(self) -> tuple[tuple[Picture, ...], int]:
        """Return what a copy in another process is made of."""
        return self.pictures, self.numbers

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the length of each picture, and last that of the other numbers."""
        return *map(math.prod, self.pictures), self.numbers


class Observations(NamedTuple):
    """Describes the observations that a network takes: their kind, and names and least lengths of the axes."""

    kind: str
    axes: tuple[str, ...]
    least: tuple[int, ...]
    are_bytes: bool

    @classmethod
    def pixels(cls, least: int = 1) -> "Observations":
        """Describe pictures [channels, height, width] in bytes, at least `least` pixels high and wide."""
        return cls("pixels (uint8)", ("channels", "height", "width"), (1, least, least), True)

    @classmethod
    def boards(cls, least: int = 1) -> "Observations":
        """Describe boards [rows, columns, planes] of numbers other than bytes, `least` rows and columns or more."""
        return cls("boards (not uint8)", ("rows", "columns", "planes"), (least, least, 1), False)

    def fit(self, shape: tuple[int, ...]) -> bool:
        """Return whether one observation may have this shape."""
        is_long_enough = (size >= least for size, least in zip(shape, self.least, strict=True))
        return len(shape) == len(self.least) and all(is_long_enough)

    def __str__(self) -> str:
        sizes = (axis if n == 1 else f"{axis} ≥ {n}" for axis, n in zip(self.axes, self.least, strict=True))
        return f"{self.kind} [{', '.join(sizes)}]"
