"""Describes observations as networks need them: the kind of numbers, and names and least lengths of the axes."""

from typing import NamedTuple


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
