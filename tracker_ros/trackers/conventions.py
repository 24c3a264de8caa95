"""Where pixels lie: our exact geometry of crops, and the published trackers' own.

Inside a tracker positions are continuous image coordinates (a pixel's centre lies at .5), and every rounding of a crop
to whole pixels is known to what is computed from it, so boxes come out as they went in. The published trackers round
without taking note of it, and count from pixels' centres here and there; imported weights were measured that way.
``compat`` chooses one of these classes, once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import MIN_SIDE, Box
from tracker_ros.geometry.crops import Window, cut, window
from tracker_ros.trackers.base import Frame

Vector = NDArray[np.float64]


class SiameseCrops:
    """Exact crops of the Siamese trackers. Positions are (x, y), sizes (w, h), both in pixels of the image."""

    #: Smallest side of a target, pixels.
    least_side = MIN_SIDE
    #: Whether numbers are those of the paper's code, in float32 and without a choice of proposals.
    published = False
    #: Axis of AxSxS anchor labels over which CLNet gathers the cells of its sets.
    anchor_axis = 0

    def position(self, box: Box) -> Vector:
        """The position of the target in `box`."""
        return np.array(box.center)

    def window(self, center: Vector, side: float, output: int) -> Window:
        """The window of a crop around `center`."""
        return window(center[0], center[1], side, output)

    def origin(self, w: Window, place: Vector) -> Vector:
        """The point of the image that boxes of a crop cut around `place` are relative to."""
        return np.array(w.center)

    def pixel(self, w: Window, exact: float) -> float:
        """Image pixels a crop pixel; `exact` before the side was rounded."""
        return w.scale

    def inside(self, w: Window, position: Vector, size: Vector) -> Vector:
        """A target's box in its template crop (x, y, w, h in crop pixels)."""
        extent = size / w.scale
        return np.concatenate([(position - np.array([w.x, w.y])) / w.scale - extent / 2, extent])

    def middle(self, size: int) -> float:
        """Where a crop's centre lies, in crop pixels."""
        return size / 2


class PublishedSiameseCrops(SiameseCrops):
    """Centres by ``(w - 1) / 2``, crops rounded without taking note of it, sides of at least ten pixels."""

    least_side = 10.0
    published = True
    anchor_axis = 1  # it looks for them among the rows where it means the anchors

    def position(self, box: Box) -> Vector:
        """See `SiameseCrops.position`."""
        return np.array(box.center) - 0.5

    def window(self, center: Vector, side: float, output: int) -> Window:
        """See `SiameseCrops.window`."""
        size = max(round(side), 2)
        left, top = (math.floor(c - (size + 1) / 2 + 0.5) for c in center)
        return Window(left, top, size, left, top, size, 1, 0, 0, output)

    def origin(self, w: Window, place: Vector) -> Vector:
        """See `SiameseCrops.origin`."""
        return place

    def pixel(self, w: Window, exact: float) -> float:
        """See `SiameseCrops.pixel`."""
        return exact

    def inside(self, w: Window, position: Vector, size: Vector) -> Vector:
        """See `SiameseCrops.inside`."""
        extent = size / w.scale
        return np.concatenate([np.full(2, w.output / 2) - extent / 2, extent])

    def middle(self, size: int) -> float:
        """See `SiameseCrops.middle`; it counts from the centre of a pixel, but clips at the crop's border."""
        return size // 2


def siamese_crops(compat: str) -> SiameseCrops:
    """The crops that the option ``compat`` names."""
    return SiameseCrops() if compat == "off" else PublishedSiameseCrops()


class DiMPCrops:
    """Exact crops of DiMP. Positions are (x, y), pixels of the image."""

    #: What is added to a box in crop pixels to make it continuous.
    half_pixel = 0.0
    published = False

    def first(
        self, frame: Frame, position: Vector, scale: float, output: int
    ) -> tuple[NDArray[np.uint8], float, Vector]:
        """The first frame's patch around `position`: its pixels, image pixels a crop pixel, and its centre."""
        w = window(position[0], position[1], scale * output, output)
        return cut(frame, w), w.scale, np.array(w.center)

    def search(self, frame: Frame, place: Vector, scale: float, output: int) -> tuple[NDArray[np.uint8], Window]:
        """The patch of a later frame around `place`, not resampled yet, and its window."""
        w = window(place[0], place[1], scale * output, output)
        return cut(frame, w), w


class PublishedDiMPCrops(DiMPCrops):
    """Corners by ``(s - 1) / 2``, cut at fractions of pixels that padding truncates, around whole positions.

    Args:
        first_release: corners as the release of 2019 rounds them.
    """

    half_pixel = 0.5
    published = True

    def __init__(self, first_release: bool = False) -> None:
        self._first_release = first_release

    def first(
        self, frame: Frame, position: Vector, scale: float, output: int
    ) -> tuple[NDArray[np.uint8], float, Vector]:
        """See `DiMPCrops.first`."""
        origin = np.round(position - 0.5) + 0.5
        return self._patch(frame, origin - 0.5, scale * output, output)[0], scale, origin

    def search(self, frame: Frame, place: Vector, scale: float, output: int) -> tuple[NDArray[np.uint8], Window]:
        """See `DiMPCrops.search`."""
        return self._patch(frame, np.trunc(place - 0.5), scale * output, output)

    def _patch(self, frame: Frame, index: Vector, side: float, output: int) -> tuple[NDArray[np.uint8], Window]:
        step = max(int(side / output - 0.1), 1)
        offset = (index % step).astype(int)
        middle = (index - offset) / step
        size = max(round(side / step), 2)
        before = (size - 1) // 2 if self._first_release else (size - 1) / 2
        after = size // 2 if self._first_release else size / 2
        low, high = middle - before, middle + after + 1
        grid = frame[offset[1] :: step, offset[0] :: step]
        # Padding by -low and by high - extent truncates both towards zero.
        left, top = (math.trunc(v) for v in low)
        right, bottom = (n + math.trunc(v - n) for v, n in zip(high, grid.shape[1::-1], strict=True))
        columns = np.clip(np.arange(left, right), 0, grid.shape[1] - 1)
        rows = np.clip(np.arange(top, bottom), 0, grid.shape[0] - 1)
        # Its centre in index coordinates is (low + high - 1) / 2; ours lie half a pixel further.
        extent = float(high[0] - low[0]) * step
        cx, cy = (step * (low + high) - 1) / 2 + 0.5
        corner = (cx - extent / 2, cy - extent / 2)
        w = Window(*corner, extent, left, top, size, step, int(offset[0]), int(offset[1]), output)
        return grid[rows[:, None], columns], w


def dimp_crops(compat: str) -> DiMPCrops:
    """The crops that the option ``compat`` names."""
    return DiMPCrops() if compat == "off" else PublishedDiMPCrops(compat == "published-2019")
