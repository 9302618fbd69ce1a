"""Draws Snake boards for recordings: a smooth snake, light at the head and dark at the tail.

Shapes are drawn from their distance functions: a pixel's coverage is how far it lies inside a shape's edge, cut to
[0, 1], which is what makes the edges smooth. Lengths are in cells, colours are RGB in 0..255.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metagrad.errors import require

if TYPE_CHECKING:
    from torch import Tensor

SQUARES = np.array([[32, 38, 49], [41, 49, 62]], dtype=np.float32)  # the two greys of the checkerboard
FRAME = np.array([18, 22, 29], dtype=np.float32)
HEAD = np.array([190, 242, 100], dtype=np.float32)
NECK = np.array([101, 196, 84], dtype=np.float32)
TAIL = np.array([20, 98, 92], dtype=np.float32)
EYE = np.array([18, 22, 29], dtype=np.float32)
FRUIT = np.array([239, 68, 68], dtype=np.float32)
SHINE = np.array([255, 190, 180], dtype=np.float32)
LEAF = np.array([132, 204, 22], dtype=np.float32)

MARGIN = 0.25  # width of the frame
BODY_RADIUS = 0.33
HEAD_RADIUS = 0.40

Point = NDArray[np.floating]


class _Canvas:
    """An RGB picture whose points are addressed as (row, column) in cells."""

    def __init__(self, rows: int, columns: int, scale: int) -> None:
        self.scale = scale
        margin = round(MARGIN * scale)
        self._margin = margin
        self.pixels = np.empty((rows * scale + 2 * margin, columns * scale + 2 * margin, 3), dtype=np.float32)
        self.pixels[:] = FRAME
        squares = SQUARES[np.add.outer(np.arange(rows), np.arange(columns)) % 2]
        inner = squares.repeat(scale, axis=0).repeat(scale, axis=1)
        self.pixels[margin : margin + rows * scale, margin : margin + columns * scale] = inner

    def capsule(self, start: Point, end: Point, radius: float, colour: NDArray[np.float32]) -> None:
        """Paint all points within `radius` of the line from `start` to `end` (a disc where these are one point)."""
        low = np.minimum(start, end) - radius
        high = np.maximum(start, end) + radius
        first = np.maximum(np.floor(low * self.scale).astype(int) + self._margin - 1, 0)
        last = np.ceil(high * self.scale).astype(int) + self._margin + 1
        window = self.pixels[first[0] : last[0], first[1] : last[1]]

        row, column = np.indices(window.shape[:2], dtype=np.float32)
        row = (row + first[0] - self._margin + 0.5) / self.scale - start[0]
        column = (column + first[1] - self._margin + 0.5) / self.scale - start[1]
        axis = end - start
        along = np.clip((row * axis[0] + column * axis[1]) / max(float(axis @ axis), 1e-9), 0, 1)
        distance = np.hypot(row - along * axis[0], column - along * axis[1])
        coverage = np.clip((radius - distance) * self.scale + 0.5, 0, 1)[..., None]
        window += coverage * (colour - window)


def _cell_centre(plane: NDArray[np.floating]) -> Point:
    return np.argwhere(plane > 0)[0] + 0.5


def _draw_fruit(canvas: _Canvas, centre: Point) -> None:
    def at(row: float, column: float) -> Point:
        return centre + np.array([row, column])

    canvas.capsule(at(0.04, 0.0), at(0.04, 0.0), 0.30, FRUIT)
    canvas.capsule(at(-0.08, -0.10), at(-0.02, -0.14), 0.06, SHINE)
    canvas.capsule(at(-0.26, 0.02), at(-0.36, 0.12), 0.05, LEAF)


def _draw_snake(canvas: _Canvas, order: NDArray[np.floating]) -> None:
    cells = np.argwhere(order > 0)
    centres = cells[np.argsort(order[tuple(cells.T)])] + 0.5  # from the tail to the head
    length = len(centres)
    for i in range(length - 1):
        youth = (i + 1) / length
        canvas.capsule(centres[i], centres[i + 1], BODY_RADIUS * (0.7 + 0.3 * youth), TAIL + youth * (NECK - TAIL))
    head = centres[-1]
    canvas.capsule(head, head, HEAD_RADIUS, HEAD)
    # Looking away from the neck; a snake of length 1 has no direction and looks up.
    ahead = head - centres[-2] if length > 1 else np.array([-1.0, 0.0])
    aside = ahead[::-1] * [1, -1]
    for side in (-1, 1):
        eye = head + 0.14 * ahead + 0.17 * side * aside
        canvas.capsule(eye, eye, 0.075, EYE)


def render(observation: "Tensor | ArrayLike", scale: int = 32) -> NDArray[np.uint8]:
    """Draw one Snake observation [rows, columns, 5] as a framed picture [H, W, 3], `scale` pixels a cell.

    The observation is a tensor on any device, or an array. H and W are rows and columns times `scale` plus the frame;
    both are even where `scale` is a multiple of 2, as video codecs want it.
    """
    require(scale >= 4, "scale", scale, "a cell needs at least 4 pixels", "raise scale")
    if hasattr(observation, "detach"):
        observation = observation.detach().cpu().numpy()
    board = np.asarray(observation)
    is_board = board.ndim == 3 and board.shape[2] == 5
    remedy = "pass one board of the batch"
    require(is_board, "observation", f"shape {board.shape}", "must be [rows, columns, 5]", remedy)
    canvas = _Canvas(board.shape[0], board.shape[1], scale)
    _draw_fruit(canvas, _cell_centre(board[..., 3]))
    _draw_snake(canvas, board[..., 4])
    return canvas.pixels.round().astype(np.uint8)
