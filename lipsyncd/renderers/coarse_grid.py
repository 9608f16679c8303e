"""A coarse grid over a box of pixels: what changes slowly over a picture is computed on its cells and enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """Square cells over a box; one more cell on each side holds the slope up to the border.

    left, top      the first pixel of the box
    width, height  of the box in pixels
    cell_px        the side of a cell in pixels
    """

    left: int
    top: int
    width: int
    height: int
    cell_px: int

    @property
    def columns(self) -> int:
        """How many cells cover the width."""
        return ceil(self.width / self.cell_px)

    @property
    def rows(self) -> int:
        return ceil(self.height / self.cell_px)

    @property
    def x(self) -> NDArray[np.float64]:
        """The middles of the cells, in pixels: (columns + 2,)."""
        return np.arange(-1.0, self.columns + 1) * self.cell_px + (self.left + 0.5 * self.cell_px - 0.5)

    @property
    def y(self) -> NDArray[np.float64]:
        return np.arange(-1.0, self.rows + 1) * self.cell_px + (self.top + 0.5 * self.cell_px - 0.5)

    def enlarged(self, cells: NDArray[np.float32], part: tuple[slice, slice] | None = None) -> NDArray[np.float32]:
        """The values at the pixels, by linear interpolation.

        cells    (rows + 2, columns + 2) float32
        part     rows and columns of pixels within the box; None: all of it
        returns  (height, width) float32 of the part
        """
        down, across = part or (slice(0, self.height), slice(0, self.width))
        (first, last), (before, after) = (
            (side.start // self.cell_px, (side.stop - 1) // self.cell_px + 3) for side in (down, across)
        )
        inner, cell = cells[first:last, before:after], self.cell_px
        whole = cv2.resize(inner, None, fx=cell, fy=cell, interpolation=cv2.INTER_LINEAR)
        top, left = down.start - (first - 1) * cell, across.start - (before - 1) * cell
        height, width = down.stop - down.start, across.stop - across.start
        return cast(NDArray[np.float32], whole[top : top + height, left : left + width])
