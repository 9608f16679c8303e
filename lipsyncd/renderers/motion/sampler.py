"""Read the pixels of a frame at other places.

Between pixels, linear interpolation is soft and cubic interpolation too slow. So the frame is kept doubled, with a
sharp filter for the pixels between, and is read linearly there. Only what a frame changes is doubled again: the mouth,
or the eyes.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.finer import finer, finer_rows
from lipsyncd.renderers.framing import Box, RgbImage

MOST_DOUBLED = 2**19  # pixels of a box, about 720x720; a larger picture is softer by itself, and doubling it costs more
MARGIN = 3  # pixels around a change that the filter reaches
APART = 8  # rows between two changes that are doubled by themselves


class Sampler:
    """The box of a canvas that moves, read from frame after frame.

    scale  what coordinates of sources have to be multiplied by
    """

    def __init__(self, canvas: RgbImage, box: Box, changes: Sequence[Box]) -> None:
        """`changes` are the boxes in which a frame may differ from the canvas."""
        self._box = box.place
        self._moved = canvas.copy()
        self._outside = [change.place for change in changes if change.within(box) != change]
        # What changes inside the box, in pixels from its upper left corner.
        inside = [change.within(box) for change in changes]
        self._inside = [Box(part.x - box.x, part.y - box.y, part.width, part.height) for part in inside if part.width]
        self._part = self._moved[self._box]  # no new memory for each frame
        self._seen = self._part.copy()
        self.scale = 2 if box.width * box.height <= MOST_DOUBLED else 1
        self._doubled = finer(self._seen, self.scale)

    def sampled(self, frame: RgbImage, x: NDArray[np.float32], y: NDArray[np.float32]) -> RgbImage:
        """The frame, with each pixel of the box taken from its source.

        x, y     (h, w) float32: `scale` times the source's place in pixels from the upper left corner of the box
        returns  (H, W, 3) uint8, changed by the next call
        """
        source = frame[self._box]
        if self.scale == 2:
            self._double_changes(source)
            source = self._doubled
        for place in self._outside:
            self._moved[place] = frame[place]
        cv2.remap(source, x, y, cv2.INTER_LINEAR, dst=self._part, borderMode=cv2.BORDER_REPLICATE)
        return self._moved

    def _double_changes(self, source: RgbImage) -> None:
        for part in self._inside:
            self._double_changes_in(source, part)

    def _double_changes_in(self, source: RgbImage, part: Box) -> None:
        height, width = source.shape[:2]
        changed = (source[part.place] != self._seen[part.place]).reshape(part.height, -1)
        rows = np.flatnonzero(changed.any(axis=1))
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > APART) + 1) if len(rows) else ():
            top, bottom = int(run[0]), int(run[-1]) + 1
            columns = np.flatnonzero(changed[top:bottom].any(axis=0)) // 3 + part.x
            left, right, top, bottom = int(columns[0]), int(columns[-1]) + 1, top + part.y, bottom + part.y
            self._seen[top:bottom, left:right] = source[top:bottom, left:right]
            # What is written also holds what the filter changes around; what is read is once more that wide.
            top, bottom = max(top - MARGIN, 0), min(bottom + MARGIN, height)
            left, right = max(left - MARGIN, 0), min(right + MARGIN, width)
            above, aside = min(MARGIN, top), min(MARGIN, left)
            wide = source[top - above : bottom + MARGIN, left - aside : right + MARGIN]
            doubled = self._doubled[2 * top : 2 * bottom, 2 * left : 2 * right]
            for step, fine in enumerate(finer_rows(wide, 2)):
                doubled[step::2] = fine[above : above + bottom - top, 2 * aside : 2 * (aside + right - left)]
