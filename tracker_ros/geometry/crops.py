"""Square windows of an image, cut before anything is uploaded or converted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box

#: A crop whose window is at least this many times larger than its output is decimated by an integer factor first.
_DECIMATION_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Window:
    """A square window of an image and how it maps to a crop of `output` pixels a side.

    The window covers the continuous area ``[x, x + side) x [y, y + side)`` of the image; the crop's pixel coordinate
    of an image point ``p`` is ``(p - x) / scale``. It may reach beyond the image, where the border is replicated.

    Attributes:
        x, y, side: the covered area, in pixels of the image.
        left, top, size: the slice, in pixels of the image decimated by `step`: ``image[::step][top : top + size]``.
        step: decimation factor; `offset_x`, `offset_y` are the first pixels of the decimated grid.
        output: side of the crop in pixels.
    """

    x: float
    y: float
    side: float
    left: int
    top: int
    size: int
    step: int
    offset_x: int
    offset_y: int
    output: int

    @property
    def scale(self) -> float:
        """Pixels of the image a pixel of the crop."""
        return self.side / self.output

    @property
    def center(self) -> tuple[float, float]:
        """Centre in pixels of the image."""
        return self.x + self.side / 2, self.y + self.side / 2

    @property
    def box(self) -> Box:
        """The covered area as a box."""
        return Box(self.x, self.y, self.side, self.side)


def window(cx: float, cy: float, side: float, output: int) -> Window:
    """The window of `side` pixels around ``(cx, cy)`` that whole pixels allow, for a crop of `output` pixels.

    Centre and side are rounded to what can be cut without resampling; the `Window` says what they became, so nothing
    is lost by it.

    >>> window(100.2, 50.0, 81.4, 81).box
    Box(x=60.0, y=10.0, w=81.0, h=81.0)
    >>> window(100, 50, 400, 160).step
    2
    """
    step = max(int(side / output - _DECIMATION_MARGIN), 1)
    size = max(round(side / step), 2)
    covered = float(size * step)
    first_x, first_y = math.floor(cx - covered / 2 + 0.5), math.floor(cy - covered / 2 + 0.5)
    # A decimated pixel stands for the step x step pixels around its centre.
    x, y = first_x + (1 - step) / 2, first_y + (1 - step) / 2
    offset_x, offset_y = first_x % step, first_y % step
    left, top = (first_x - offset_x) // step, (first_y - offset_y) // step
    return Window(x, y, covered, left, top, size, step, offset_x, offset_y, output)


def cut(image: NDArray[np.uint8], w: Window, fill: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """The pixels of a window: `size` x `size` x channels.

    A view of `image` where the window lies inside and is not decimated.

    Args:
        image: HxWxC.
        w: the window.
        fill: colour where the window reaches beyond the image, a value a channel; None replicates the image's border
            (a window entirely outside then shows the nearest border pixels).
    """
    grid = image[w.offset_y :: w.step, w.offset_x :: w.step]
    height, width = grid.shape[:2]
    top, bottom, left, right = w.top, w.top + w.size, w.left, w.left + w.size
    y0, y1 = min(max(top, 0), height - 1), max(min(bottom, height), 1)
    x0, x1 = min(max(left, 0), width - 1), max(min(right, width), 1)
    inside = grid[y0:y1, x0:x1]
    pad = (max(y0 - top, 0), max(bottom - y1, 0), max(x0 - left, 0), max(right - x1, 0))
    if not any(pad):
        return inside
    if fill is None:
        padded = cv2.copyMakeBorder(np.ascontiguousarray(inside), *pad, cv2.BORDER_REPLICATE)
    else:
        padded = np.empty((w.size, w.size, image.shape[2]), np.uint8)
        padded[:] = np.asarray(fill, np.uint8)
        (y0, y1), (x0, x1) = np.clip([top, bottom], 0, height), np.clip([left, right], 0, width)
        padded[y0 - top : y1 - top, x0 - left : x1 - left] = grid[y0:y1, x0:x1]
    return np.asarray(padded[: w.size, : w.size], np.uint8)


def template_side(size: NDArray[np.float64], context: float) -> float:
    """Side of the template region of a target of `size` (w, h): ``sqrt((w + p)(h + p))`` (SiamRPN, eq. 15), pixels."""
    return float(math.sqrt(np.prod(size + context * size.sum())))
