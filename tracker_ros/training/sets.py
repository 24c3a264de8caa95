"""Pairs of sets (M_train, M_test) for DiMP's offline training (section 3.6), also from single images.

A still image becomes a short sequence by synthetic motion: every frame is its own crop with a random translation,
scale, aspect, rotation and illumination; blur, occluders and look-alikes cut from other images are added. Frames of a
video use the same machinery with different frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracker_ros.training.augment import FramePlan, Layer, View, colour_matrix, draw_photometric, map_box, render
from tracker_ros.training.data import ImagePool, TrainingImage


@dataclass(frozen=True)
class SetOptions:
    """How sets are drawn.

    Attributes:
        size: side of a crop in pixels.
        area: side of the shown square relative to the square root of the target's area.
        train_frames, test_frames: frames of a set.
        train_shift, test_shift: largest offset of the target from the middle, in target sizes.
        train_scale, test_scale: standard deviation of the logarithm of the zoom.
        aspect: standard deviation of the logarithm of the change of shape, per frame.
        angle: standard deviation of the rotation in radians, on half of the frames.
        distractors: probability that look-alikes are pasted into the frames of a set.
        transplant: probability that the target is moved to another background in each frame of a set.
        occluder: probability that a test frame's target is partly covered.
        absent: probability that a test frame does not show the target.
        photometric: strength of each frame's own changes of light, colour and sharpness.
        convention: standard deviation of how a set's boxes differ from the annotation: the logarithm of their size, and
            half of it as the shift of their middle over the size; the same in all frames of a set.
        videos: share of sets that are drawn from the videos of the pool.
        segment: length of the video segment that a set is drawn from, in frames of the pool.
        smallest, largest: limits of the target's size (square root of the area), in pixels and as share of the image's.
    """

    size: int = 288
    area: float = 5.0
    train_frames: int = 2
    test_frames: int = 2
    train_shift: float = 1.5
    test_shift: float = 2.0
    train_scale: float = 0.2
    test_scale: float = 0.3
    aspect: float = 0.1
    angle: float = 0.12
    distractors: float = 0.4
    transplant: float = 0.15
    occluder: float = 0.15
    absent: float = 0.06
    photometric: float = 0.6
    convention: float = 0.0
    videos: float = 0.1
    segment: int = 30
    smallest: float = 16.0
    largest: float = 0.5


@dataclass
class SetPlan:
    """One pair of sets before its pixels are made; the first `train_frames` entries are M_train, the others M_test.

    Attributes:
        frames: N plans.
        boxes: Nx4 float32, (x, y, w, h) in pixels of the crop.
        present: N bool; False where the target is not in the crop (its box means nothing).
    """

    frames: list[FramePlan]
    boxes: NDArray[np.float32]
    present: NDArray[np.bool_]


@dataclass
class FrameSet:
    """A `SetPlan` with pixels.

    Attributes:
        crops: NxSxSx3 uint8, BGR.
        boxes, present: as in `SetPlan`.
    """

    crops: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    present: NDArray[np.bool_]


class _Targets(NamedTuple):
    """An image (its index in the pool), its usable boxes and the probability of each."""

    image: int
    boxes: NDArray[np.float32]
    weights: NDArray[np.float64]


def _wholeness(image: TrainingImage, box: NDArray[np.float32]) -> float:
    """1 for a box inside the image; little for one that the image's edge cuts, where only padding is beyond."""
    x, y, w, h = (float(value) for value in box)
    width, height = image.size
    return 1.0 if min(x, y, width - x - w, height - y - h) > 2 else 0.15


class SetSampler:
    """Draws sets from a pool; `plan` and `draw` are functions of the generator alone.

    Args:
        pool: the images.
        options: how sets are drawn.
        tight: leave out what has loose boxes.

    Raises:
        ValueError: the pool has no box that a set can be drawn from.
    """

    def __init__(self, pool: ImagePool, options: SetOptions, tight: bool = False) -> None:
        self.pool, self.options = pool, options
        in_video = {index for sequence in pool.sequences for index in sequence}
        self.targets: list[_Targets] = []
        for index, image in enumerate(pool.images):
            if index in in_video or (tight and image.source in pool.loose):
                continue
            keep = [number for number, box in enumerate(image.boxes) if self._usable(image, box)]
            if keep:
                weights = np.array([_wholeness(image, image.boxes[number]) for number in keep])
                self.targets.append(_Targets(index, image.boxes[keep], weights / weights.sum()))
        self.videos: list[list[int]] = []
        for sequence in pool.sequences:
            kept = [i for i in sequence if len(pool.images[i].boxes)]
            if len(kept) >= 2 and not (tight and pool.images[kept[0]].source in pool.loose):
                self.videos.append(kept)
        if not self.targets and not self.videos:
            raise ValueError("no image of the pool has a usable box: check boxes.csv and the limits of SetOptions")

    def _usable(self, image: TrainingImage, box: NDArray[np.float32]) -> bool:
        size = math.sqrt(max(float(box[2] * box[3]), 0.0))
        width, height = image.size
        shape = float(box[2] / max(box[3], 1e-3))
        return (
            self.options.smallest <= size <= self.options.largest * math.sqrt(width * height)
            and 0.2 <= shape <= 5.0
            and float(min(box[2], box[3])) >= 6
        )

    def draw(self, rng: np.random.Generator) -> FrameSet:
        """One random pair of sets."""
        plan = self.plan(rng)
        crops = [render(self.pool.images, frame, self.options.size) for frame in plan.frames]
        return FrameSet(np.stack(crops), plan.boxes, plan.present)

    def plan(self, rng: np.random.Generator) -> SetPlan:
        """One random pair of sets, without its pixels."""
        o = self.options
        if self.videos and (not self.targets or rng.random() < o.videos):
            frames = self._from_video(rng)
        else:
            frames = [self._target(rng)] * (o.train_frames + o.test_frames)
        if o.convention:
            frames = self._boxed_anew(frames, rng)
        flip = bool(rng.random() < 0.5)
        illumination = colour_matrix(rng) if rng.random() < 0.5 else None
        transplant = bool(rng.random() < o.transplant)
        looks = self._look_alikes(rng) if transplant or rng.random() < o.distractors else []
        plans, places, present = [], [], []
        for number, (image, box) in enumerate(frames):
            test = number >= o.train_frames
            absent = bool(test and self.targets and rng.random() < o.absent)
            if absent:
                image, box = self._target(rng)
            view = self._view(box, test, flip, rng)
            place = map_box(box, view, o.size)
            target = Layer.whole(image, view, o.size)
            layers = self._transplanted(target, place, rng) if transplant and not absent else [target]
            for look in looks:
                layers += self._place_look_alike(look, place, rng)
            if test and not absent and rng.random() < o.occluder:
                layers.append(self._occluder(place, rng))
            plans.append(FramePlan(tuple(layers), illumination, draw_photometric(rng, o.photometric)))
            places.append(place)
            present.append(not absent)
        return SetPlan(plans, np.stack(places).astype(np.float32), np.asarray(present))

    def _target(self, rng: np.random.Generator) -> tuple[int, NDArray[np.float32]]:
        """A random image and one of its boxes."""
        found = self.targets[int(rng.integers(len(self.targets)))]
        return found.image, found.boxes[int(rng.choice(len(found.boxes), p=found.weights))]

    def _from_video(self, rng: np.random.Generator) -> list[tuple[int, NDArray[np.float32]]]:
        """Frames of the first half of a random segment for training, of the second half for testing."""
        o = self.options
        video = self.videos[int(rng.integers(len(self.videos)))]
        length = min(o.segment, len(video))
        start = int(rng.integers(len(video) - length + 1))
        half = max(length // 2, 1)
        first = rng.integers(start, start + half, o.train_frames)
        second = rng.integers(start + half, start + length, o.test_frames) if length > half else first[:1]
        indices = [video[int(i)] for i in [*first, *np.resize(second, o.test_frames)]]
        return [(index, self.pool.images[index].boxes[0]) for index in indices]

    def _boxed_anew(
        self, frames: list[tuple[int, NDArray[np.float32]]], rng: np.random.Generator
    ) -> list[tuple[int, NDArray[np.float32]]]:
        """The frames as somebody else would have boxed the target: more of it, less, or another part."""
        factor = np.exp(rng.normal(0.0, self.options.convention, 2))
        shift = rng.normal(0.0, 0.5 * self.options.convention, 2)

        def boxed(box: NDArray[np.float32]) -> NDArray[np.float32]:
            size = box[2:] * factor
            return np.concatenate([box[:2] + box[2:] * (0.5 + shift) - size / 2, size]).astype(np.float32)

        return [(image, boxed(box)) for image, box in frames]

    def _view(self, box: NDArray[np.float32], test: bool, flip: bool, rng: np.random.Generator) -> View:
        o = self.options
        x, y, w, h = (float(value) for value in box)
        size = math.sqrt(w * h)
        side = o.area * size * math.exp(rng.normal(0.0, o.test_scale if test else o.train_scale))
        side = float(np.clip(side, 0.55 * o.area * size, 1.8 * o.area * size))
        reach = min(o.test_shift if test else o.train_shift, 0.42 * side / size)
        # Most of the time a tracked target is close to the middle.
        near = rng.random() < 0.5
        shift = np.clip(rng.normal(0.0, 0.4, 2), -reach, reach) if near else rng.uniform(-reach, reach, 2)
        return View(
            centre=(x + w / 2 + float(shift[0]) * size, y + h / 2 + float(shift[1]) * size),
            side=side,
            aspect=math.exp(rng.normal(0.0, o.aspect)),
            angle=float(rng.normal(0.0, o.angle)) if rng.random() < 0.5 else 0.0,
            flip=flip,
        )

    def _any_image(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Index, width and height of a random image."""
        index = int(rng.integers(len(self.pool)))
        return index, *self.pool.images[index].size

    def _transplanted(self, target: Layer, place: NDArray[np.float32], rng: np.random.Generator) -> list[Layer]:
        """The target on another place or image."""
        size = self.options.size
        image, width, height = self._any_image(rng)
        if rng.random() < 0.3:
            image = target.image
            width, height = self.pool.images[image].size
        side = math.sqrt(width * height) * float(rng.uniform(0.4, 1.1))
        centre = (float(rng.uniform(0.25, 0.75)) * width, float(rng.uniform(0.25, 0.75)) * height)
        ground = View(centre, side, flip=bool(rng.random() < 0.5))
        x, y, w, h = (round(float(v)) for v in place)
        if min(x + w, size) - max(x, 0) < 4 or min(y + h, size) - max(y, 0) < 4:
            return [target]
        return [Layer.whole(image, ground, size), Layer(target.image, target.matrix, (x, y, w, h), ellipse=True)]

    def _look_alikes(self, rng: np.random.Generator) -> list[tuple[int, View, float]]:
        """One or two objects: image, the view that their box fills, and the zoom relative to the target."""
        found = []
        for _ in range(int(rng.integers(1, 3))):
            if not self.targets:
                break
            image, box = self._target(rng)
            x, y, w, h = (float(value) for value in box)
            side = math.sqrt(w * h)
            view = View((x + w / 2, y + h / 2), side, aspect=math.sqrt(w / h), flip=bool(rng.random() < 0.5))
            found.append((image, view, math.exp(rng.normal(0.0, 0.25))))
        return found

    def _place_look_alike(
        self, look: tuple[int, View, float], place: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Layer]:
        """A look-alike of about the target's size beside the target, not over its middle; none if there is no room."""
        image, view, zoom = look
        w, h = (max(8, round(float(v) * zoom)) for v in place[2:])
        centre = place[:2] + place[2:] / 2
        for _ in range(8):
            at = rng.uniform(0.08, 0.92, 2) * self.options.size
            gap = np.abs(at - centre) / (0.5 * (place[2:] + np.array([w, h])))
            if gap.max() > 0.9:
                region = (round(float(at[0] - w / 2)), round(float(at[1] - h / 2)), w, h)
                return [Layer.piece(image, view, region, ellipse=True)]
        return []

    def _occluder(self, place: NDArray[np.float32], rng: np.random.Generator) -> Layer:
        """A piece of another image that covers 20 to 55 % of the target from one side."""
        image, width, height = self._any_image(rng)
        share = float(rng.uniform(0.2, 0.55))
        x, y, w, h = (float(value) for value in place)
        side = int(rng.integers(4))
        if side < 2:
            size = (max(4, round(w * share)), max(4, round(h * 1.3)))
            corner = (x if side == 0 else x + w - size[0], y - 0.15 * h)
        else:
            size = (max(4, round(w * 1.3)), max(4, round(h * share)))
            corner = (x - 0.15 * w, y if side == 2 else y + h - size[1])
        centre = (float(rng.uniform(0.2, 0.8)) * width, float(rng.uniform(0.2, 0.8)) * height)
        view = View(centre, 0.3 * math.sqrt(width * height))
        return Layer.piece(image, view, (round(corner[0]), round(corner[1]), *size), ellipse=False)
