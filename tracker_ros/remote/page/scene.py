"""What all browsers look at: the newest pictures, and what is known of every target. For any number of threads."""

from __future__ import annotations

import base64
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.images import InvalidImage
from tracker_ros.remote.page.pacing import Level
from tracker_ros.remote.tracker import Sighting
from tracker_ros.trackers.base import Frame

#: Seconds of pictures that are kept, and most of them: the tracker's word on a picture comes after the picture.
_KEPT, _MOST = 1.0, 64
#: Seconds by which the picture that the tracker has spoken about may be behind the newest one to be shown instead.
PATIENCE = 0.6
#: Words on a target that are kept, to find the one on the picture that is shown.
_WORDS = 32
#: Scores of a target that are kept.
SCORES = 900
#: Pictures that the tracker speaks about without naming a target, after which the target is gone.
_FORGOTTEN = 3
#: Seconds between two thumbnails of a target; their longest side in pixels; their margin, as a part of the box.
_REFRESH, _THUMBNAIL, _MARGIN = 1.0, 96, 0.25
#: Opacity of the heatmap at its peak.
_HEAT = 0.55


@dataclass(eq=False)
class Picture:
    """One image of the camera; it is decoded when somebody looks at it.

    Attributes:
        stamp: nanoseconds.
        number: 1 for the first picture, counting up.
        arrival: seconds of a steady clock.
        heatmap: the tracker's response, aligned with the image at a part of its size.
    """

    stamp: int
    number: int
    arrival: float
    _decode: Callable[[], Frame]
    heatmap: NDArray[np.float32] | None = None
    _frame: Frame | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def frame(self) -> Frame:
        """The image, HxWx3 uint8, BGR.

        Raises:
            InvalidImage: it can't be decoded.
        """
        with self._lock:
            if self._frame is None:
                self._frame = self._decode()
            return self._frame


@dataclass
class Target:
    """What is known of a target.

    Attributes:
        last: the last word on it.
        box: where it was seen last, None before that.
        turn: which picture that the tracker spoke about was the last one with a word on it.
        words: the last words on it, each with the box where it was seen last by then.
        scores: (stamp, score, state), newest last.
        count: scores so far, those that are no longer kept included.
        first, now: thumbnails at its start and not long ago, as ``data:`` URLs; empty before there is one.
    """

    last: Sighting
    box: Box | None
    turn: int
    words: deque[tuple[Sighting, Box | None]] = field(default_factory=lambda: deque(maxlen=_WORDS))
    scores: deque[tuple[int, float, int]] = field(default_factory=lambda: deque(maxlen=SCORES))
    count: int = 0
    first: str = ""
    now: str = ""
    refreshed: float = -math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """A target as known on one picture: the word on that picture, or else the last one before it."""

    target: Target
    word: Sighting
    box: Box | None


@dataclass(frozen=True, slots=True)
class View:
    """What a browser is to show: a picture, and the targets as known on it."""

    picture: Picture
    targets: dict[str, Seen]


class Scene:
    """See the module's text.

    Args:
        clock: steady seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pictures: deque[Picture] = deque()
        self._count = 0
        self._answered: Picture | None = None
        self._targets: dict[str, Target] = {}
        self._told = -math.inf
        self._turn, self._turn_stamp = 0, -1
        self.tracker = ""
        self.paused = False
        self.changed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------------------------------------ what comes in

    def add_picture(self, stamp: int, decode: Callable[[], Frame]) -> None:
        """A picture came from the camera."""
        now = self._clock()
        with self._lock:
            self._count += 1
            self._pictures.append(Picture(stamp, self._count, now, decode))
            while len(self._pictures) > _MOST or self._pictures[0].arrival < now - _KEPT:
                self._pictures.popleft()
        self.changed()

    def add_heatmap(self, stamp: int, heatmap: NDArray[np.float32]) -> None:
        """The tracker's response to a picture, rows x columns in [0, 1]."""
        with self._lock:
            picture = self._at(stamp)
            if picture is not None:
                picture.heatmap = heatmap

    def add(self, sighting: Sighting) -> None:
        """The tracker's word on a target in a picture, or (without a name) that there is none."""
        now = self._clock()
        with self._lock:
            self._told = now
            self.tracker = sighting.tracker or self.tracker
            self.paused = False  # A tracker that is paused says nothing.
            picture = self._at(sighting.stamp)
            if picture is not None and (self._answered is None or picture.number > self._answered.number):
                self._answered = picture
            if sighting.stamp != self._turn_stamp:
                self._turn, self._turn_stamp = self._turn + 1, sighting.stamp
            if sighting.target_id:
                self._update(sighting)
            else:
                self._targets.clear()
            for name in [n for n, target in self._targets.items() if self._turn - target.turn >= _FORGOTTEN]:
                del self._targets[name]
            target = self._targets.get(sighting.target_id)
        if target is not None and not target.first and sighting.box is not None and picture is not None:
            target.first = target.now = _thumbnail(picture, sighting.box)
        self.changed()

    def _update(self, sighting: Sighting) -> None:
        target = self._targets.get(sighting.target_id)
        if target is None:
            target = self._targets[sighting.target_id] = Target(sighting, sighting.box, self._turn)
        target.last, target.turn = sighting, self._turn
        target.box = sighting.box or target.box
        target.words.append((sighting, target.box))
        target.scores.append((sighting.stamp, sighting.score, int(sighting.state)))
        target.count += 1

    def renew(self, target_id: str) -> None:
        """The target starts anew: what is known under its name is another one's past."""
        with self._lock:
            old = self._targets.get(target_id)
            if old is not None:
                target = self._targets[target_id] = Target(old.last, old.box, self._turn)
                target.words.append((old.last, old.box))
        self.changed()

    def forget(self, target_id: str) -> None:
        """The target was stopped (all of them where the name is empty)."""
        with self._lock:
            if target_id:
                self._targets.pop(target_id, None)
            else:
                self._targets.clear()
        self.changed()

    def set_paused(self, paused: bool) -> None:
        """The tracker was paused, or goes on."""
        self.paused = paused
        self.changed()

    def _at(self, stamp: int) -> Picture | None:
        return next((picture for picture in reversed(self._pictures) if picture.stamp == stamp), None)

    # ----------------------------------------------------------------------------------------------- what is looked at

    def view(self) -> View | None:
        """What to show now; None before the first picture.

        It is the newest picture that the tracker has spoken about, so that boxes fit; the newest one of all where the
        tracker is too far behind or says nothing.
        """
        with self._lock:
            if not self._pictures:
                return None
            newest, answered = self._pictures[-1], self._answered
            late = answered is None or newest.arrival - answered.arrival > PATIENCE
            picture = newest if late or answered is None else answered
            return View(picture, {name: _on(target, picture.stamp) for name, target in self._targets.items()})

    @property
    def targets(self) -> dict[str, Target]:
        """The targets by their names."""
        with self._lock:
            return dict(self._targets)

    @property
    def silence(self) -> float:
        """Seconds since the last picture came; infinite before the first one."""
        with self._lock:
            return self._clock() - self._pictures[-1].arrival if self._pictures else float("inf")

    @property
    def answering(self) -> bool:
        """Whether the tracker has spoken in the last second."""
        return self._clock() - self._told < 1.0

    def refresh_thumbnails(self) -> None:
        """Make the thumbnails of now that are due; takes milliseconds, so not for a thread that must not wait."""
        now = self._clock()
        with self._lock:
            due = [
                (target, self._at(target.last.stamp), target.last.box)
                for target in self._targets.values()
                if target.last.box is not None and now - target.refreshed >= _REFRESH
            ]
        for target, picture, box in due:
            if picture is not None and box is not None:
                target.refreshed = now
                target.now = _thumbnail(picture, box) or target.now


def _on(target: Target, stamp: int) -> Seen:
    """The target as known on the picture with this stamp."""
    known = next((word for word in reversed(target.words) if word[0].stamp <= stamp), target.words[-1])
    return Seen(target, *known)


def encode(picture: Picture, level: Level, heat: bool) -> tuple[bytes, int, int]:
    """A picture as JPEG, no larger than `level` and never larger than it is, with the heatmap blended in if wanted.

    Returns:
        The JPEG, and the width and height of the whole image in pixels.

    Raises:
        InvalidImage: the picture can't be decoded.
    """
    frame = picture.frame()
    height, width = frame.shape[:2]
    scale = min(1.0, level.side / max(width, height))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if heat and picture.heatmap is not None:
        frame = _blend(frame, picture.heatmap)
    return _jpeg(frame, level.quality), width, height


def _blend(frame: Frame, heatmap: NDArray[np.float32]) -> Frame:
    """The response in colours over the image; its opacity follows the response, so that a flat one hides nothing."""
    size = frame.shape[1], frame.shape[0]
    response = np.clip(cv2.resize(np.nan_to_num(heatmap), size, interpolation=cv2.INTER_LINEAR), 0, 1)
    # The upper end of the colour map is a dark red that would read as a low value on a dark image.
    colours = cv2.applyColorMap((response * 222).astype(np.uint8), cv2.COLORMAP_TURBO)
    alpha = (response**1.5 * _HEAT)[..., None]
    return np.asarray(frame * (1 - alpha) + colours * alpha, np.uint8)


def _thumbnail(picture: Picture, box: Box) -> str:
    """The box with a margin as a ``data:`` URL; empty where there is nothing to see."""
    try:
        frame = picture.frame()
    except InvalidImage:
        return ""
    side = max(box.w, box.h) * (1 + 2 * _MARGIN)
    part = Box.from_center(*box.center, side, side).clip(frame.shape[1], frame.shape[0])
    x1, y1, x2, y2 = int(part.x), int(part.y), round(part.x + part.w), round(part.y + part.h)
    if x2 <= x1 or y2 <= y1:
        return ""
    scale = _THUMBNAIL / max(x2 - x1, y2 - y1)
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    data = _jpeg(cv2.resize(frame[y1:y2, x1:x2], size, interpolation=cv2.INTER_AREA), 75)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _jpeg(frame: Frame, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)
