"""Boxes and the conversions between their forms.

A box is ``x, y, w, h``: the top-left corner and the size, in pixels, 0-based and sub-pixel. Pixel ``(i, j)`` covers
the area ``[j, j + 1) x [i, i + 1)``, so the centre of a box is ``x + w / 2, y + h / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Smallest side, in pixels, of a box that a track can start on.
MIN_SIDE = 4.0
#: A box may be larger than the image by this share of the image's side; what lies outside is cut off.
LARGER = 0.1
#: Share of a box that must lie in the image for a track to start on it.
MIN_VISIBLE = 1 / 3
#: Side of the box that a single point stands for, as a part of the image's shorter side.
POINT_SHARE = 0.1


class Box(NamedTuple):
    """An axis-aligned box: top-left corner ``x, y`` and size ``w, h`` in pixels (0-based, sub-pixel)."""

    x: float
    y: float
    w: float
    h: float

    @property
    def center(self) -> tuple[float, float]:
        """Centre ``(cx, cy)`` in pixels."""
        return self.x + self.w / 2, self.y + self.h / 2

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return self.w * self.h

    @classmethod
    def from_center(cls, cx: float, cy: float, w: float, h: float) -> Box:
        """Build a box from its centre ``cx, cy`` and size ``w, h`` (pixels).

        >>> Box.from_center(30, 20, 20, 10)
        Box(x=20.0, y=15.0, w=20, h=10)
        """
        return cls(cx - w / 2, cy - h / 2, w, h)

    def clip(self, width: float, height: float) -> Box:
        """The part of the box inside an image of ``width`` x ``height`` pixels (sides may become zero).

        >>> Box(-5, 10, 20, 20).clip(640, 25)
        Box(x=0.0, y=10, w=15.0, h=15)
        """
        x1, y1 = min(max(self.x, 0.0), width), min(max(self.y, 0.0), height)
        x2, y2 = min(max(self.x + self.w, 0.0), width), min(max(self.y + self.h, 0.0), height)
        return Box(x1, y1, x2 - x1, y2 - y1)


class InvalidBox(ValueError):
    """A box that no track can start on; the message says what is wrong with it and what was expected."""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in ``[0, 1]``; 0 where either has no area.

    >>> iou(Box(0, 0, 10, 10), Box(5, 0, 10, 10))
    0.3333333333333333
    """
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / (a.area + b.area - w * h)


def pairwise_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of matching rows: ``a`` and ``b`` are Nx4 (x, y, w, h); returns N values, NaN where a row holds a NaN."""
    size = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter = np.where((size > 0).all(1) | np.isnan(size).any(1), size[:, 0] * size[:, 1], 0.0)
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - inter
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union == 0, 0.0, inter / union)


def around_point(x: float, y: float, width: int, height: int, share: float = POINT_SHARE) -> Box:
    """The square that a point stands for, where a person taps an object instead of drawing a box around it.

    Args:
        x, y: the point, pixels; it becomes the centre.
        width, height: size of the image, pixels.
        share: side of the square as a part of the image's shorter side; it becomes at least `MIN_SIDE`.
    """
    side = max(MIN_SIDE, share * min(width, height))
    return Box.from_center(x, y, side, side)


def validate_init_box(box: Sequence[float], width: int, height: int) -> Box:
    """Check a box that a track is to start on.

    Args:
        box: ``x, y, w, h`` in pixels.
        width, height: size of the image in pixels.

    Returns:
        The box; clipped to the image along a side on which it is a little larger than the image, else unchanged.

    Raises:
        InvalidBox: not four finite numbers; a side that is zero, negative, below `MIN_SIDE` or larger than the image's
            by more than `LARGER`; less than `MIN_VISIBLE` of the box lies in the image.

    >>> validate_init_box((10, 10, 2, 8), 640, 480)
    Traceback (most recent call last):
    tracker_ros.geometry.boxes.InvalidBox: the box is too small: x=10 y=10 w=2 h=8; each side must be at least 4 px
    """
    values = tuple(float(v) for v in box)
    if len(values) != 4:
        raise InvalidBox(f"a box has four numbers x, y, w, h; got {len(values)}")
    if not all(math.isfinite(v) for v in values):
        raise InvalidBox(f"the box has a NaN or infinite value: {_text(values)}")
    checked = Box(*values)
    if checked.w <= 0 or checked.h <= 0:
        raise InvalidBox(f"the box has zero or negative size: {_text(values)}; w and h must be positive")
    if checked.w < MIN_SIDE or checked.h < MIN_SIDE:
        raise InvalidBox(f"the box is too small: {_text(values)}; each side must be at least {MIN_SIDE:g} px")
    image = f"{_text(values)} in an image of {width}x{height}"
    if checked.w > (1 + LARGER) * width or checked.h > (1 + LARGER) * height:
        raise InvalidBox(f"the box is larger than the image: {image}")
    inside = checked.clip(width, height)
    if inside.area <= 0:
        raise InvalidBox(f"the box lies outside the image: {image}")
    if inside.area < MIN_VISIBLE * checked.area:
        raise InvalidBox(f"the box lies mostly outside the image ({inside.area / checked.area:.0%} is inside): {image}")
    # A track can't be larger than its image; where it only sticks out, all of it is the target.
    x, w = (inside.x, inside.w) if checked.w > width else (checked.x, checked.w)
    y, h = (inside.y, inside.h) if checked.h > height else (checked.y, checked.h)
    if w < MIN_SIDE or h < MIN_SIDE:
        raise InvalidBox(f"the box is too small: {image}; each side must be at least {MIN_SIDE:g} px")
    return Box(x, y, w, h)


def _text(values: Sequence[float]) -> str:
    x, y, w, h = values
    return f"x={x:g} y={y:g} w={w:g} h={h:g}"
