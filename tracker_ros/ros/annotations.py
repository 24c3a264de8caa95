"""The targets as annotations that Foxglove draws over the raw image, which then need not be sent twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from std_msgs.msg import Header

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros.overlay import COLOURS, PALETTE, Colour
from tracker_ros.ros.session import TargetReport

try:
    from foxglove_msgs.msg import Color, ImageAnnotations, Point2, PointsAnnotation, TextAnnotation
except ImportError:  # A ROS without them: there is no topic then, and nothing else is missing.
    ImageAnnotations = None

#: Width of lines and height of text, image pixels; gap of a dashed line as a part of a side.
_LINE, _TEXT, _DASHES = 2.0, 14.0, 5


def annotate(header: Header, targets: Sequence[TargetReport], several: bool) -> Any:
    """Box, name, state and score of each target; the last known box of one that is not seen is dashed.

    Args:
        header: of the image.
        targets: what is said of them.
        several: whether there may be several, which have their own colours then rather than that of their state.

    Returns:
        foxglove_msgs/ImageAnnotations: a polygon and a text for each target.
    """
    message = ImageAnnotations(timestamp=header.stamp)
    for target in targets:
        box, state = target.estimate.box, target.estimate.state
        colour = _colour(PALETTE[target.slot % len(PALETTE)] if several else COLOURS[state])
        kind = PointsAnnotation.LINE_LOOP if target.seen else PointsAnnotation.LINE_LIST
        points = _corners(box) if target.seen else _dashes(box)
        line = PointsAnnotation(timestamp=header.stamp, type=kind, outline_color=colour, thickness=_LINE)
        line.points = [Point2(x=float(x), y=float(y)) for x, y in points]
        message.points.append(line)
        said = "TRACKER FAILED" if target.failed else f"{state.name} {target.estimate.score:.2f}"
        text = TextAnnotation(timestamp=header.stamp, font_size=_TEXT, text=f"{target.target_id} {said}".strip())
        text.position = Point2(x=float(box.x), y=float(max(box.y - _LINE, _TEXT)))
        text.text_color, text.background_color = colour, _colour((24, 20, 18), 0.7)
        message.texts.append(text)
    return message


def _corners(box: Box) -> list[tuple[float, float]]:
    right, bottom = box.x + box.w, box.y + box.h
    return [(box.x, box.y), (right, box.y), (right, bottom), (box.x, bottom)]


def _dashes(box: Box) -> list[tuple[float, float]]:
    """Ends of dashes along the sides, two after two."""
    corners = _corners(box)
    ends = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        steps = [k / (2 * _DASHES - 1) for k in range(2 * _DASHES)]
        ends += [(x0 + (x1 - x0) * step, y0 + (y1 - y0) * step) for step in steps]
    return ends


def _colour(bgr: Colour, opacity: float = 1.0) -> Any:
    blue, green, red = (value / 255 for value in bgr)
    return Color(r=red, g=green, b=blue, a=opacity)
