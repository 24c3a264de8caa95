"""Where to look for a target that may be anywhere: windows that cover a whole image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def scan_axis(extent: int, side: float, stride: float) -> list[float]:
    """Centres of windows of `side` pixels that cover `extent` pixels, at most `stride` apart.

    >>> scan_axis(640, 240, 150)
    [120.0, 253.33333333333334, 386.6666666666667, 520.0]
    """
    if side >= extent:
        return [extent / 2]
    count = math.ceil((extent - side) / stride) + 1
    return [side / 2 + i * (extent - side) / (count - 1) for i in range(count)]


def scan_places(
    width: int, height: int, side: float, target: float, near: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Centres (x, y) of square windows of `side` pixels that cover an image, those closest to `near` first.

    They overlap by one and a half times the size of the `target` where they are larger than that, so that one of them
    sees it with its surroundings.
    """
    stride = max(side - 1.5 * target, side / 2)
    places = [np.array([x, y]) for y in scan_axis(height, side, stride) for x in scan_axis(width, side, stride)]
    return sorted(places, key=lambda p: float(np.abs(p - near).max()))
