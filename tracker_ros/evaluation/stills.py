"""Short clips made of still images with boxes: a moving camera, with the target leaving, covered and beside others.

They measure how a tracker's cues tell a target from what is none on images that neither its network nor a benchmark
has seen. In a clip, an object of one image moves over the picture of another one, turns, grows and shrinks. Once the
camera loses it, once an object of a third image covers it, and in every other clip its mirrored double is about.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation.sequences import InvalidSequence, Sequence, read_image
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import Frame

Array = NDArray[np.float64]

#: Of the images in the order of their names, every one with such a number is not trained on (`training.data.split`).
HELD_OUT_EVERY = 12
#: Part of the target that can be seen below which it is absent.
_LEAST_VISIBLE = 0.1
#: Side of the targets in the clips, pixels (the root of the area); images are never enlarged by more than `_MAX_SCALE`.
_SIDES = (36.0, 110.0)
_MAX_SCALE = 1.6
_MIN_OBJECT = 24.0


@dataclass(frozen=True)
class Clip:
    """What a clip is made of; everything else follows from the seed.

    Attributes:
        image, box: where the target comes from, and its box there (pixels).
        ground: the image that surrounds it.
        cover, cover_box: where the object comes from that covers it, and its box there.
        double: whether a double of the target is about.
        seed: of the motion.
        frames: number of frames.
        size: width and height of the picture, pixels.
    """

    image: Path
    box: Box
    ground: Path
    cover: Path
    cover_box: Box
    double: bool
    seed: int
    frames: int = 60
    size: tuple[int, int] = (480, 360)


@dataclass(frozen=True)
class ClipImages:
    """The frames of a clip, drawn when they are asked for; only the last clip's images are kept in memory."""

    clip: Clip

    def __len__(self) -> int:
        return self.clip.frames

    def __getitem__(self, index: int) -> Frame:
        return _scene(self.clip).render(index)


@lru_cache(maxsize=1)
def _scene(clip: Clip) -> Scene:
    return Scene(clip)


class Motion:
    """How the target of a clip moves; arrays have a row a frame.

    Attributes:
        center: Nx2, its centre in the picture, pixels.
        size: Nx2, its width and height in the picture, pixels.
        scale: N, picture pixels a pixel of its image.
        angle: N, its rotation, radians.
        cover: Nx4, the box of what covers it (x, y, w, h in pixels); NaN where nothing does.
        double: Nx4, the box of its double; NaN without one.
        gain: N, brightness.
    """

    def __init__(self, clip: Clip) -> None:
        rng = np.random.default_rng(clip.seed)
        n, extent = clip.frames, np.array(clip.size, float)
        t = np.arange(n)

        def wave(period: tuple[float, float]) -> Array:
            swing: Array = np.sin(2 * np.pi * (t / rng.uniform(*period) + rng.random()))
            return swing

        side = math.sqrt(clip.box.area)
        base = min(rng.uniform(*_SIDES) / side, _MAX_SCALE)
        self.scale = base * np.exp(0.2 * wave((30, 80)))
        self.angle = math.radians(8) * wave((30, 80))
        self.gain = 1 + 0.15 * wave((20, 80))
        # The box of a turned ellipse, which fits most objects better than that of a turned rectangle.
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        w, h = clip.box.w, clip.box.h
        self.size = self.scale[:, None] * np.stack([np.hypot(w * cos, h * sin), np.hypot(w * sin, h * cos)], 1)
        self.center = extent / 2 + 0.2 * extent * np.stack([wave((30, 70)), wave((30, 70))], 1)

        first, second = rng.uniform(0.18, 0.24), rng.uniform(0.58, 0.64)
        away, covered = (first, second) if rng.random() < 0.5 else (second, first)
        # The camera turns away to one of four sides.
        axis, beyond = rng.integers(2), rng.choice([-1, 1])
        outside = self.center.copy()
        reach = extent[axis] / 2 + self.size[:, axis] / 2 + 0.1 * extent[axis]
        outside[:, axis] = extent[axis] / 2 + beyond * reach
        double = self.center + self._around(rng, n) * 1.8 * self.size.max(1, keepdims=True)
        gone = _bump(t / n, away)[:, None]
        self.center = (1 - gone) * self.center + gone * outside

        side_on = rng.uniform(0, 2 * np.pi)
        reach = 1.3 * (self.size.max(1) + 8)
        hidden = _bump(t / n, covered)
        passed = np.where(t / n < covered + _LENGTH / 2, 1, -1)
        offset = (passed * (1 - hidden) * reach)[:, None] * [math.cos(side_on), math.sin(side_on)]
        cover_size = self.size * rng.uniform(1.25, 1.5)
        self.cover = np.concatenate([self.center + offset - cover_size / 2, cover_size], 1)
        self.cover[hidden <= 0] = np.nan
        self.double = np.concatenate([double - self.size / 2, self.size], 1)
        if not clip.double:
            self.double[:] = np.nan

    @staticmethod
    def _around(rng: np.random.Generator, n: int) -> Array:
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-2, 2), n)
        return np.stack([np.cos(angle), np.sin(angle)], 1)

    def truth(self, size: tuple[int, int]) -> Array:
        """The target's boxes inside a picture of `size`: Nx4, NaN where too little of it is seen."""
        rows = np.full((len(self.center), 4), np.nan)
        for i, (center, extent) in enumerate(zip(self.center, self.size, strict=True)):
            whole = Box.from_center(*map(float, center), *map(float, extent))
            inside = whole.clip(*size)
            others = (Box(*map(float, row[i])) for row in (self.cover, self.double) if np.isfinite(row[i]).all())
            hidden = sum(_common(inside, other) for other in others)
            if inside.area - hidden >= _LEAST_VISIBLE * whole.area:
                rows[i] = inside
        return rows


#: Parts of a clip that an absence's beginning, middle and end take.
_RAMP, _HOLD = 1 / 12, 1 / 10
_LENGTH = 2 * _RAMP + _HOLD


def _bump(time: Array, start: float) -> Array:
    """0, rising smoothly to 1 from `start` on, and back to 0; `time` goes from 0 to 1."""
    rise = np.clip((time - start) / _RAMP, 0, 1) * np.clip((start + _LENGTH - time) / _RAMP, 0, 1)
    smooth: Array = rise * rise * (3 - 2 * rise)
    return smooth


def _common(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(w, 0.0) * max(h, 0.0)


class Scene:
    """A clip with its images in memory."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.motion = Motion(clip)
        # Shrunk first to about the size that it is shown in: warping alone would alias.
        self._shrink = min(1.0, float(np.median(self.motion.scale)))
        self._image = _resized(read_image(clip.image), self._shrink)
        ground = read_image(clip.ground)
        self._ground = _resized(ground, 1.2 * max(clip.size) / min(ground.shape[:2]))
        self._cover = _cut(read_image(clip.cover), clip.cover_box)
        self._double = np.ascontiguousarray(_cut(read_image(clip.image), clip.box)[:, ::-1])

    def render(self, index: int) -> Frame:
        """Frame `index`: HxWx3 uint8, BGR."""
        m, clip = self.motion, self.clip
        middle = np.array(clip.box.center) * self._shrink
        matrix = _similarity(m.scale[index] / self._shrink, m.angle[index], middle, m.center[index])
        center = np.array([self._ground.shape[1], self._ground.shape[0]]) / 2
        zoom = m.scale[index] / m.scale[0]
        below = _similarity(zoom, m.angle[index], center, m.center[index])
        frame = cv2.warpAffine(self._ground, below, clip.size, borderMode=cv2.BORDER_REFLECT_101)
        cv2.warpAffine(self._image, matrix, clip.size, dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
        _paste(frame, self._double, m.double[index], oval=True)
        _paste(frame, self._cover, m.cover[index], oval=False)
        noise = np.random.default_rng([clip.seed, index]).standard_normal(frame.shape, np.float32)
        return np.clip(frame * np.float32(m.gain[index]) + 3 * noise, 0, 255).astype(np.uint8)


def _similarity(scale: float, angle: float, origin: Array, place: Array) -> Array:
    """2x3 matrix that scales and turns about `origin` and moves it to `place` (continuous coordinates)."""
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # OpenCV counts from pixels' centres, which lie at .5.
    shift = np.asarray(place) - 0.5 - turn @ (np.asarray(origin) - 0.5)
    return np.concatenate([turn, shift[:, None]], 1)


def _resized(image: Frame, scale: float) -> Frame:
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)


def _cut(image: Frame, box: Box) -> Frame:
    x, y = max(0, math.floor(box.x)), max(0, math.floor(box.y))
    return image[y : max(y + 1, math.ceil(box.y + box.h)), x : max(x + 1, math.ceil(box.x + box.w))]


def _paste(frame: Frame, patch: Frame, box: Array, *, oval: bool) -> None:
    """Draw `patch` into `box` of `frame` (whole pixels), `oval` or as a rectangle; nothing where the box is NaN."""
    if np.isnan(box).any():
        return
    height, width = frame.shape[:2]
    x, y, w, h = (round(float(v)) for v in box)
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x1 >= x2 or y1 >= y2 or w < 1 or h < 1:
        return
    drawn = cv2.resize(patch, (w, h), interpolation=cv2.INTER_AREA)[y1 - y : y2 - y, x1 - x : x2 - x]
    if not oval:
        frame[y1:y2, x1:x2] = drawn
        return
    mask = np.zeros((h, w), np.float32)
    cv2.ellipse(mask, (w // 2, h // 2), (max(1, w // 2 - 1), max(1, h // 2 - 1)), 0, 0, 360, 1.0, -1)
    alpha = cv2.GaussianBlur(mask, (0, 0), max(0.5, 0.03 * (w + h)))[y1 - y : y2 - y, x1 - x : x2 - x, None]
    frame[y1:y2, x1:x2] = (alpha * drawn + (1 - alpha) * frame[y1:y2, x1:x2]).astype(np.uint8)


def held_out(directory: Path, first: int = 0) -> dict[str, list[Box]]:
    """The images of `directory` that are not trained on, and their boxes (pixels).

    Args:
        directory: has ``boxes.csv`` (``image,source,x,y,w,h,label``) and the images in ``jpg/``.
        first: number of the first of them, in the order of their names. Training counts the frames of its videos, n,
            before the images, so it is ``-n % HELD_OUT_EVERY``.

    Raises:
        InvalidSequence: there is no such file, or it lacks a column.
    """
    table = directory / "boxes.csv"
    if not table.is_file():
        raise InvalidSequence(f"there is no '{table}': --stills takes a folder with boxes.csv and jpg/")
    boxes: dict[str, list[Box]] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                own = boxes.setdefault(row["image"], [])
                if row["x"]:
                    own.append(Box(*(float(row[key]) for key in "xywh")))
            except (KeyError, TypeError, ValueError):
                raise InvalidSequence(f"'{table}' has a row that is not image,source,x,y,w,h: {row}") from None
    return {name: boxes[name] for name in sorted(boxes)[first::HELD_OUT_EVERY]}


def load_stills(directory: Path, clips: int = 40, *, first: int = 0, frames: int = 60, seed: int = 0) -> list[Sequence]:
    """Clips made of the images of `directory` that are not trained on, as sequences ``still_<number>``.

    Args:
        directory, first: see `held_out`.
        clips: how many; an image is used again where there are fewer objects.
        frames: of each clip.
        seed: of the choice and of all motion.

    Raises:
        InvalidSequence: see `held_out`; no object that is large enough, fewer than three images, too short clips.
    """
    if frames < 24:
        raise InvalidSequence(f"a clip of still images takes at least 24 frames, got {frames}")
    images = held_out(directory, first)
    objects = [(name, box) for name, own in images.items() for box in own if _usable(box)]
    if len(images) < 3 or not objects:
        raise InvalidSequence(
            f"'{directory}' has {len(objects)} objects in {len(images)} images that are not trained on (every "
            f"{HELD_OUT_EVERY}th); at least 3 images are needed, and an object of {_MIN_OBJECT:g} px a side"
        )
    rng = np.random.default_rng(seed)
    folder = directory / "jpg"
    order = rng.permutation(len(objects))
    sequences = []
    for number in range(clips):
        name, box = objects[order[number % len(order)]]
        ground = rng.choice([other for other in images if other != name])
        others = [entry for entry in objects if entry[0] != name] or objects
        cover, cover_box = others[rng.integers(len(others))]
        own_seed = int(rng.integers(2**31))
        clip = Clip(
            folder / name, box, folder / ground, folder / cover, cover_box, number % 2 == 1, own_seed, frames
        )  # fmt: skip
        sequences.append(Sequence(f"still_{number:03d}", ClipImages(clip), Motion(clip).truth(clip.size)))
    return sequences


def _usable(box: Box) -> bool:
    return (
        math.sqrt(box.area) >= _MIN_OBJECT
        and min(box.w, box.h) >= _MIN_OBJECT / 2
        and max(box.w, box.h) <= 4 * min(box.w, box.h)
    )
