"""Pictures for reports, drawn with OpenCV: curves, and strips of frames with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import sequences as seq
from tracker_ros.trackers.base import Frame

#: Colours of the trackers (BGR), in their order; the truth is drawn in white.
COLOURS = (
    (180, 119, 31), (14, 127, 255), (44, 160, 44), (40, 39, 214), (189, 103, 148),
    (75, 86, 140), (194, 119, 227), (127, 127, 127), (34, 189, 188), (207, 190, 23),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _GRID = (60, 60, 60), (225, 225, 225)


def draw_curves(
    title: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    size: tuple[int, int] = (900, 640),
    x_max: float | None = None,
) -> Frame:
    """Draw curves whose y lies in ``[0, 1]``; one that has a single point is drawn as a dot.

    Args:
        title, x_label, y_label: texts (ASCII).
        curves: legend text -> x and y values (of one length; points with a NaN are left out), drawn in this order.
        size: width and height of the picture in pixels.
        x_max: end of the x axis; None: the largest x.

    Returns:
        HxWx3 uint8, BGR.
    """
    width, height = size
    left, top, right, bottom = 80, 50, width - 30, height - 70
    # Drawn at twice the size and then shrunk: OpenCV's own smoothing leaves thin lines ragged.
    image = np.full((2 * height, 2 * width, 3), 255, np.uint8)
    x_max = x_max or max((float(np.nanmax(x)) for x, _ in curves.values()), default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[int, int]:
        return round(2 * (left + x / x_max * (right - left))), round(2 * (bottom - y * (bottom - top)))

    def text(words: str, x: float, y: float, scale: float = 0.5, anchor: float = 0.0) -> None:
        (w, h), _ = cv2.getTextSize(words, _FONT, 2 * scale, 2)
        cv2.putText(
            image, words, (round(2 * x - anchor * w), round(2 * y + h / 2)), _FONT, 2 * scale, _INK, 2, cv2.LINE_AA
        )

    for i in range(11):
        cv2.line(image, place(x_max * i / 10, 0), place(x_max * i / 10, 1), _GRID, 2)
        cv2.line(image, place(0, i / 10), place(x_max, i / 10), _GRID, 2)
        text(f"{x_max * i / 10:g}", left + (right - left) * i / 10, bottom + 18, 0.45, 0.5)
        text(f"{i / 10:g}", left - 10, bottom - (bottom - top) * i / 10, 0.45, 1.0)
    cv2.rectangle(image, place(0, 1), place(x_max, 0), _INK, 2)
    text(title, (left + right) / 2, 25, 0.65, 0.5)
    text(x_label, (left + right) / 2, height - 22, 0.5, 0.5)
    text(y_label, 12, top - 22)

    drawn = []
    for number, curve in enumerate(curves.values()):
        known = np.isfinite(curve).all(0)
        points = np.array([place(float(a), float(b)) for a, b in np.transpose(curve)[known]], np.int32)
        points = points.reshape(-1, 2)
        drawn.append(points)
        cv2.polylines(image, [points.reshape(-1, 1, 2)], False, COLOURS[number % len(COLOURS)], 5, cv2.LINE_AA)
        if len(points) == 1:
            cv2.circle(image, tuple(points[0].tolist()), 14, COLOURS[number % len(COLOURS)], -1, cv2.LINE_AA)
    if curves:
        box = max(cv2.getTextSize(label, _FONT, 0.9, 2)[0][0] for label in curves) / 2 + 60, 22 * len(curves) + 8
        # The legend goes where it hides least.
        corners = [(x, y) for x in (right - box[0] - 10, left + 10) for y in (top + 10, bottom - box[1] - 10)]
        spots = np.concatenate(drawn) / 2
        hidden = [((spots > (x, y)) & (spots < (x + box[0], y + box[1]))).all(1).sum() for x, y in corners]
        x0, y0 = corners[int(np.argmin(hidden))]
        corner = round(2 * (x0 + box[0])), round(2 * (y0 + box[1]))
        cv2.rectangle(image, (round(2 * x0), round(2 * y0)), corner, (255, 255, 255), -1)
        cv2.rectangle(image, (round(2 * x0), round(2 * y0)), corner, _GRID, 2)
        for number, label in enumerate(curves):
            y = y0 + 15 + 22 * number
            begin, end = (round(2 * (x0 + 10)), round(2 * y)), (round(2 * (x0 + 40)), round(2 * y))
            cv2.line(image, begin, end, COLOURS[number % len(COLOURS)], 5, cv2.LINE_AA)
            text(label, x0 + 48, y, 0.45)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def draw_bars(title: str, counts: Sequence[Sequence[int]], size: tuple[int, int] = (900, 180)) -> Frame:
    """Draw counts as bars with their numbers: a group a bin, a bar a curve, below a picture of `draw_curves`.

    Args:
        title: text (ASCII).
        counts: for each curve, its counts in bins of equal width.
        size: width and height of the picture in pixels.

    Returns:
        HxWx3 uint8, BGR.
    """
    width, height = size
    left, top, right, bottom = 80, 40, width - 30, height - 15
    image = np.full((height, width, 3), 255, np.uint8)
    highest = max((max(own, default=0) for own in counts), default=0) or 1
    for number, own in enumerate(counts):
        for k, count in enumerate(own):
            group = (right - left) / len(own)
            x1 = left + group * (k + 0.1 + 0.8 * number / len(counts))
            x2 = left + group * (k + 0.1 + 0.8 * (number + 1) / len(counts))
            # The root lets rare scores be seen beside frequent ones; the numbers say how many there are.
            y = round(bottom - (bottom - top) * (count / highest) ** 0.5)
            cv2.rectangle(image, (round(x1), y), (round(x2) - 1, bottom), COLOURS[number % len(COLOURS)], -1)
            if len(counts) <= 3 and count:
                words = str(count)
                w = cv2.getTextSize(words, _FONT, 0.33, 1)[0][0]
                at = round((x1 + x2 - w) / 2), y - 4
                cv2.putText(image, words, at, _FONT, 0.33, _INK, 1, cv2.LINE_AA)
    cv2.line(image, (left, bottom), (right, bottom), _INK, 1)
    w = cv2.getTextSize(title, _FONT, 0.5, 1)[0][0]
    cv2.putText(image, title, ((left + right - w) // 2, 16), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
    return image


def draw_strip(
    sequence: seq.Sequence, boxes: Mapping[str, NDArray[np.float64]], count: int = 8, height: int = 200
) -> Frame:
    """A row of frames of `sequence`, evenly spaced, with the boxes of the trackers and the truth (white).

    Args:
        sequence: the frames.
        boxes: a tracker's label -> Nx4 boxes.
        count: number of frames.
        height: of the frames, in pixels.

    Returns:
        The picture (uint8, BGR), with a legend above.
    """
    tiles = []
    for index in np.unique(np.linspace(0, len(sequence) - 1, count).round().astype(int)):
        try:
            frame = sequence.frame(int(index))
        except seq.InvalidSequence:
            frame = np.full((height, height, 3), 40, np.uint8)  # It can't be read.
        scale = height / frame.shape[0]
        tile = cv2.resize(frame, (max(1, round(frame.shape[1] * scale)), height), interpolation=cv2.INTER_AREA)
        _box(tile, sequence.truth[index] * scale, (255, 255, 255))
        for number, rows in enumerate(boxes.values()):
            _box(tile, rows[index] * scale, COLOURS[number % len(COLOURS)])
        _write(tile, str(index), 5, height - 7, (255, 255, 255))
        tiles += [tile, np.full((height, 3, 3), 255, np.uint8)]
    row = np.hstack(tiles[:-1])
    legend = np.full((24, row.shape[1], 3), 40, np.uint8)
    x = 5
    entries = [(sequence.name, (255, 255, 255)), *((b, COLOURS[i % len(COLOURS)]) for i, b in enumerate(boxes))]
    for label, colour in entries:
        _write(legend, label, x, 17, colour)
        x += cv2.getTextSize(label, _FONT, 0.5, 1)[0][0] + 20
    return np.vstack([legend, row])


def _box(image: Frame, box: NDArray[np.float64], colour: Sequence[int]) -> None:
    if not np.isfinite(box).all():
        return
    x1, y1, x2, y2 = (round(float(v)) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    cv2.rectangle(image, (x1, y1), (x2, y2), tuple(colour), 2, cv2.LINE_AA)


def _write(image: Frame, words: str, x: int, y: int, colour: Sequence[int]) -> None:
    width = cv2.getTextSize(words, _FONT, 0.5, 1)[0][0]
    cv2.rectangle(image, (x - 2, y - 13), (x + width + 2, y + 5), (40, 40, 40), -1)
    cv2.putText(image, words, (x, y), _FONT, 0.5, tuple(colour), 1, cv2.LINE_AA)
