"""Drawing a track on its image. Knows nothing of ROS."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import Estimate, Frame, TrackState

Colour = tuple[int, int, int]

#: BGR colours of the states.
COLOURS: dict[TrackState, Colour] = {
    TrackState.IDLE: (190, 190, 190),
    TrackState.TRACKING: (96, 220, 60),
    TrackState.UNCERTAIN: (40, 190, 255),
    TrackState.LOST: (70, 70, 245),
}
#: BGR colours that tell several targets apart; none of them is a state's.
PALETTE: tuple[Colour, ...] = (
    (255, 178, 84), (208, 96, 255), (236, 232, 72), (120, 150, 255),
    (255, 110, 130), (160, 225, 190), (200, 180, 255), (110, 190, 205),
)  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PANEL: Colour = (24, 20, 18)
_TEXT: Colour = (240, 240, 240)
#: Levels of the response, of 255, that are not worth drawing: less than one part in a hundred of opacity.
_FAINT = 16


@dataclass(frozen=True, slots=True)
class Caption:
    """What the line of text says besides state and score; empty or NaN leaves a part out.

    Attributes:
        tracker: name of the tracker.
        target_id: name of the target.
        fps: processed images a second.
        latency: from the image's stamp to the result, seconds.
        note: shown instead of the state, for instance a failure.
    """

    tracker: str = ""
    target_id: str = ""
    fps: float = math.nan
    latency: float = math.nan
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """One of several targets.

    Attributes:
        estimate: in pixels of the image.
        name: of the target.
        slot: says which colour of `PALETTE` it has.
        note: shown instead of the state, for instance a failure.
        selected: its heatmap and search region are drawn too.
    """

    estimate: Estimate
    name: str
    slot: int
    note: str = ""
    selected: bool = False


def draw(frame: Frame, estimate: Estimate | None, caption: Caption | None = None, heat: float = 0.55) -> Frame:
    """Draw box, state, score, search region and heatmap on a copy of `frame`; see `draw_on`."""
    image = frame.copy()
    draw_on(image, estimate, caption, heat)
    return image


def draw_on(image: Frame, estimate: Estimate | None, caption: Caption | None = None, heat: float = 0.55) -> None:
    """Draw box, state, score, search region and heatmap.

    Args:
        image: HxWx3 uint8, BGR; is drawn on.
        estimate: what to draw, in pixels of `image`; None while there is no target.
        caption: the rest of the line of text.
        heat: opacity of the heatmap at its peak, 0 for none.
    """
    height, width = image.shape[:2]
    unit = min(width, height) / 480  # Strokes and text grow with the image.
    state = TrackState.IDLE if estimate is None else estimate.state
    colour = COLOURS[state]
    if estimate is not None:
        if estimate.heatmap is not None and heat > 0:
            _blend(image, estimate.heatmap, estimate.search_region, heat)
        if estimate.search_region != estimate.box:
            _rectangle(image, estimate.search_region, (225, 225, 225), max(1, round(unit)), 0.45)
        if state is TrackState.LOST:
            _dashed(image, estimate.box, colour, max(1, round(1.6 * unit)))
        else:
            _brackets(image, estimate.box, colour, max(1, round(2.4 * unit)))
    caption = caption or Caption()
    main = caption.note or state.name
    if estimate is not None and not caption.note:
        main += f" {estimate.score:.2f}"
    _panel(image, main, caption, colour)


def draw_targets_on(image: Frame, marks: Sequence[Mark], caption: Caption | None = None, heat: float = 0.55) -> None:
    """Draw several targets: each box in its target's colour, with its name, state and score.

    Args:
        image: HxWx3 uint8, BGR; is drawn on.
        marks: the targets, in pixels of `image`.
        caption: the line of text.
        heat: opacity of the heatmap at its peak, 0 for none.
    """
    unit = min(image.shape[:2]) / 480
    for mark in (mark for mark in marks if mark.selected):
        estimate = mark.estimate
        if estimate.heatmap is not None and heat > 0:
            _blend(image, estimate.heatmap, estimate.search_region, heat)
        if estimate.search_region != estimate.box:
            _rectangle(image, estimate.search_region, (225, 225, 225), max(1, round(unit)), 0.45)
    for mark in marks:
        colour = PALETTE[mark.slot % len(PALETTE)]
        if mark.estimate.state is TrackState.LOST:
            _dashed(image, mark.estimate.box, colour, max(1, round(1.6 * unit)))
        else:
            _brackets(image, mark.estimate.box, colour, max(1, round(2.4 * unit)))
    count = len(marks)
    lost = sum(mark.estimate.state is TrackState.LOST for mark in marks)
    main = ("no target", "1 target")[count] if count < 2 else f"{count} targets"
    _panel(image, main + (f", {lost} LOST" if lost else ""), caption or Caption(), COLOURS[_worst(marks)])
    for mark in marks:  # Last, as they must be read.
        _tag(image, mark)


def _worst(marks: Sequence[Mark]) -> TrackState:
    return max((mark.estimate.state for mark in marks), default=TrackState.IDLE)


def _tag(image: Frame, mark: Mark) -> None:
    """A target's name, state and score above its box, or below where there is no room."""
    height, width = image.shape[:2]
    estimate, state = mark.estimate, mark.estimate.state
    scale = min(max(min(width, height) / 480 * 0.42, 0.3), 2.4)
    thickness = max(1, round(scale * 1.4))
    said = f" {mark.note or state.name}" + ("" if mark.note else f" {estimate.score:.2f}")
    (_, line), base = cv2.getTextSize("Ag", _FONT, scale, thickness)
    pad = max(2, round(line * 0.4))
    room = width - 2 * pad - _width(said, scale, thickness)
    name = mark.name
    while name and _width(name, scale, thickness) > room:
        name = name[:-1]
    first = _width(name, scale, thickness)
    wide, high = first + _width(said, scale, thickness) + 2 * pad, line + base // 2 + 2 * pad
    x1, y1, _, y2 = _corners(estimate.box)
    above = y1 - high - pad
    top = above if above >= _bar(image) else y2 + pad
    left, top = min(max(x1, 0), max(width - wide, 0)), min(max(top, _bar(image)), max(height - high, 0))
    _tint(image[top : top + high, left : left + wide], _PANEL, 0.7)
    y = top + pad + line
    cv2.putText(image, name, (left + pad, y), _FONT, scale, PALETTE[mark.slot % len(PALETTE)], thickness, cv2.LINE_AA)
    cv2.putText(image, said, (left + pad + first, y), _FONT, scale, COLOURS[state], thickness, cv2.LINE_AA)


def _blend(image: Frame, heatmap: NDArray[np.float32], region: Box, heat: float) -> None:
    """Colour the response over `region`; its opacity follows the response, so that a flat map hides nothing.

    All in bytes, and only where the response would change a pixel by more than a grey level or two.
    """
    rows, columns = heatmap.shape
    # Cubic between the cells, which is what makes it smooth; the rest of the way to the image's pixels is linear.
    fine = max(1, min(8, round(256 / max(rows, columns, 1))))
    values = np.clip(np.nan_to_num(heatmap), 0, 1).astype(np.float32)
    map_ = cv2.resize(values, (columns * fine, rows * fine), interpolation=cv2.INTER_CUBIC)
    levels = np.rint(np.clip(map_, 0, 1) * 255).astype(np.uint8)
    # Fine cells that lie in the image, and of these the rectangle around all that can be seen, with one more around it.
    sx, sy = region.w / levels.shape[1], region.h / levels.shape[0]
    height, width = image.shape[:2]
    x0, y0 = max(math.floor(-region.x / sx), 0), max(math.floor(-region.y / sy), 0)
    x1, y1 = math.ceil((width - region.x) / sx), math.ceil((height - region.y) / sy)
    x, y, w, h = cv2.boundingRect((levels[y0 : max(y1, 0), x0 : max(x1, 0)] >= _FAINT).astype(np.uint8))
    if not w:
        return
    y1, x1 = min(y0 + y + h + 1, levels.shape[0]), min(x0 + x + w + 1, levels.shape[1])
    y0, x0 = max(y0 + y - 1, 0), max(x0 + x - 1, 0)
    left, top = round(region.x + x0 * sx), round(region.y + y0 * sy)
    right, bottom = round(region.x + x1 * sx), round(region.y + y1 * sy)
    inside = slice(max(-top, 0), height - top), slice(max(-left, 0), width - left)
    if right <= left or bottom <= top:
        return
    colours, rest = (
        cv2.resize(table[levels[y0:y1, x0:x1]], (right - left, bottom - top))[inside] for table in _heat_tables(heat)
    )
    patch = image[max(top, 0) : bottom, max(left, 0) : right]
    cv2.add(cv2.multiply(patch, rest, scale=1 / 255), colours, dst=patch)


@functools.cache
def _heat_tables(heat: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For each level of the response: its colour times its opacity, and 255 times what is left of the image."""
    levels = np.arange(256) / 255
    # The upper end of the colour map is a dark red that would read as a low value on a dark image.
    turbo = cv2.applyColorMap((levels * 222).astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0]
    alpha = (levels**1.5 * heat)[:, None]
    alpha[:_FAINT] = 0
    rest = np.repeat(255 * (1 - alpha), 3, axis=1)
    return np.rint(turbo * alpha).astype(np.uint8), np.rint(rest).astype(np.uint8)


def _corners(box: Box) -> tuple[int, int, int, int]:
    limit = 1 << 15  # OpenCV draws with 16.16 fixed-point coordinates.
    x1, y1, x2, y2 = (box.x, box.y, box.x + box.w - 1, box.y + box.h - 1)
    x1, y1, x2, y2 = (min(max(v, -limit), limit) for v in (x1, y1, x2, y2))
    return round(x1), round(y1), round(x2), round(y2)


def _rectangle(image: Frame, box: Box, colour: Colour, thickness: int, alpha: float) -> None:
    """A thin translucent outline."""
    x1, y1, x2, y2 = _corners(box)
    height, width = image.shape[:2]
    for a, b, c, d in ((x1, y1, x2, y1), (x1, y2, x2, y2), (x1, y1, x1, y2), (x2, y1, x2, y2)):
        left, right = max(a - thickness // 2, 0), min(c + (thickness + 1) // 2, width)
        top, bottom = max(b - thickness // 2, 0), min(d + (thickness + 1) // 2, height)
        if left < right and top < bottom:
            _tint(image[top:bottom, left:right], colour, alpha)


def _tint(patch: Frame, colour: Colour, alpha: float) -> None:
    """Lay a colour over a part of an image."""
    flat = np.empty_like(patch)
    flat[:] = colour
    cv2.addWeighted(patch, 1 - alpha, flat, alpha, 0, dst=patch)


def _brackets(image: Frame, box: Box, colour: Colour, thickness: int) -> None:
    """A thin box with strong corners, on a dark edge that keeps it visible on any ground."""
    x1, y1, x2, y2 = _corners(box)
    arm = max(2, round(0.25 * min(x2 - x1, y2 - y1)))
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
    shadow = [(_PANEL, thickness + 2)] if thickness > 1 else []  # There is no room for it on a small image.
    for ink, stroke in (*shadow, (colour, thickness)):
        for x, y, dx, dy in ((x1, y1, arm, arm), (x2, y1, -arm, arm), (x1, y2, arm, -arm), (x2, y2, -arm, -arm)):
            cv2.line(image, (x, y), (x + dx, y), ink, stroke, cv2.LINE_AA)
            cv2.line(image, (x, y), (x, y + dy), ink, stroke, cv2.LINE_AA)


def _dashed(image: Frame, box: Box, colour: Colour, thickness: int) -> None:
    """A dashed outline: where the target was seen last."""
    x1, y1, x2, y2 = _corners(box)
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        pieces = min(200, max(1, round(math.hypot(bx - ax, by - ay) / (6 + 3 * thickness))))
        for k in range(pieces):
            p, q = k / pieces, (k + 0.55) / pieces
            start = round(ax + (bx - ax) * p), round(ay + (by - ay) * p)
            end = round(ax + (bx - ax) * q), round(ay + (by - ay) * q)
            cv2.line(image, start, end, colour, thickness, cv2.LINE_AA)


def _panel(image: Frame, main: str, caption: Caption, colour: Colour) -> None:
    """The line of text at the top: a dot and `main` in a colour, and whatever else has room."""
    height, width = image.shape[:2]
    scale, thickness, line, pad = _type_size(image)
    bar = _bar(image)
    dot = max(2, round(line * 0.42))

    # In the order of importance: where the image is narrow, parts at the end give way first.
    extras = [
        caption.tracker,
        "" if math.isnan(caption.latency) else f"{caption.latency * 1e3:.0f} ms",
        "" if math.isnan(caption.fps) else f"{caption.fps:.0f} fps",
        caption.target_id,
    ]
    left = 2 * pad + 2 * dot
    room = width - left - pad - _width(main, scale, thickness)
    gap = 2 * pad
    shown: list[str] = []
    for text in filter(None, extras):
        need = _width(text, scale, thickness) + gap
        if need <= room:
            shown.append(text)
            room -= need

    _tint(image[: min(bar, height)], _PANEL, 0.65)
    middle = bar // 2
    y = middle + line // 2
    cv2.circle(image, (pad + dot, middle), dot, colour, -1, cv2.LINE_AA)
    cv2.putText(image, main, (left, y), _FONT, scale, colour, thickness, cv2.LINE_AA)
    x = width - pad
    for text in reversed(shown):
        x -= _width(text, scale, thickness)
        cv2.putText(image, text, (x, y), _FONT, scale, _TEXT, thickness, cv2.LINE_AA)
        x -= gap


def _type_size(image: Frame) -> tuple[float, int, int, int]:
    """Of the line at the top: scale and thickness of its text, height of a letter, and the space around it."""
    scale = min(max(min(image.shape[:2]) / 480 * 0.55, 0.3), 3.0)
    thickness = max(1, round(scale * 1.6))
    line = int(cv2.getTextSize("Ag", _FONT, scale, thickness)[0][1])
    return scale, thickness, line, max(2, round(line * 0.55))


def _bar(image: Frame) -> int:
    """Height of the line at the top."""
    scale, thickness, line, pad = _type_size(image)
    base = int(cv2.getTextSize("Ag", _FONT, scale, thickness)[1])
    return line + base // 2 + 2 * pad


def _width(text: str, scale: float, thickness: int) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, thickness)[0][0])
