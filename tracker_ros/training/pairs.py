"""Scenes for the Siamese trackers: templates and search crops of one object, cut as those trackers cut them.

A crop's side follows from the target's box and its context (SiamRPN, eq. 15): 127 pixels show the template region,
255 the search region. The frames of a scene are drawn like DiMP's sets (`tracker_ros.training.sets`), so a still image
makes a short sequence by synthetic motion, and look-alikes stay in all frames of a scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.crops import template_side
from tracker_ros.training.augment import View, render
from tracker_ros.training.data import ImagePool
from tracker_ros.training.sets import SetOptions, SetSampler

#: Sides of the crops, pixels.
TEMPLATE_SIZE, SEARCH_SIZE = 127, 255
#: Margin around the target over the mean of its sides.
CONTEXT = 0.5


@dataclass(frozen=True)
class PairOptions:
    """How scenes are drawn.

    Attributes:
        templates, searches: frames of a scene that are templates, and further ones that are searched.
        shift: largest offset of the target from the middle of a search crop, pixels of the crop.
        scale: standard deviation of the logarithm of the zoom of search crops.
        template_scale: the same for templates, whose box is the user's.
        aspect, angle, distractors, transplant, occluder, absent, photometric, videos: see `SetOptions`.
    """

    templates: int = 2
    searches: int = 3
    shift: float = 64.0
    scale: float = 0.2
    template_scale: float = 0.04
    aspect: float = 0.1
    angle: float = 0.12
    distractors: float = 0.45
    transplant: float = 0.15
    occluder: float = 0.12
    absent: float = 0.06
    photometric: float = 0.6
    videos: float = 0.35


@dataclass
class Scene:
    """Templates and search crops of one object.

    Attributes:
        templates: TxAxAx3 uint8 BGR, A = 127, the target in the middle.
        template_boxes: Tx4 float32 (x, y, w, h), pixels of the template crop.
        searches: SxBxBx3 uint8 BGR, B = 255. The first is the frame of the first template, centred on the target like
            it: what an adaptation to the first frame sees.
        boxes: Sx4 float32 (x, y, w, h), pixels of the search crop.
        present: S bool; False where the target is not in the crop.
        images: the images of the pool that any of the crops shows a part of.
    """

    templates: NDArray[np.uint8]
    template_boxes: NDArray[np.float32]
    searches: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    present: NDArray[np.bool_]
    images: frozenset[int] = frozenset()


class PairSampler(SetSampler):
    """Draws scenes from a pool; `scene` is a function of the generator alone."""

    def __init__(self, pool: ImagePool, options: PairOptions, tight: bool = False) -> None:
        self.pairs = options
        layout = SetOptions(
            size=SEARCH_SIZE,
            train_frames=options.templates,
            test_frames=options.searches,
            aspect=options.aspect,
            angle=options.angle,
            distractors=options.distractors,
            transplant=options.transplant,
            occluder=options.occluder,
            absent=options.absent,
            photometric=options.photometric,
            videos=options.videos,
        )
        super().__init__(pool, layout, tight)

    def _view(self, box: NDArray[np.float32], test: bool, flip: bool, rng: np.random.Generator) -> View:
        """A search region around the target; centred on it for templates."""
        o = self.pairs
        x, y, w, h = (float(value) for value in box)
        shown = template_side(np.array([w, h]), CONTEXT) * SEARCH_SIZE / TEMPLATE_SIZE
        side = shown * math.exp(np.clip(rng.normal(0.0, 1.0), -2.5, 2.5) * (o.scale if test else o.template_scale))
        shift = np.zeros(2)
        if test:
            # Most of the time a tracked target is close to the middle.
            near = rng.random() < 0.4
            shift = rng.normal(0.0, 0.2 * o.shift, 2) if near else rng.uniform(-o.shift, o.shift, 2)
        shift = shift * side / SEARCH_SIZE
        return View(
            centre=(x + w / 2 - float(shift[0]), y + h / 2 - float(shift[1])),
            side=side,
            aspect=math.exp(rng.normal(0.0, o.aspect if test else 0.3 * o.aspect)),
            angle=float(rng.normal(0.0, o.angle)) if test and rng.random() < 0.5 else 0.0,
            flip=flip,
        )

    def scene(self, rng: np.random.Generator) -> Scene:
        """One random scene."""
        plan = self.plan(rng)
        crops = np.stack([render(self.pool.images, frame, SEARCH_SIZE) for frame in plan.frames])
        count = self.pairs.templates
        margin = (SEARCH_SIZE - TEMPLATE_SIZE) // 2
        inner = slice(margin, margin + TEMPLATE_SIZE)
        searched = [0, *range(count, len(crops))]
        return Scene(
            crops[:count, inner, inner],
            plan.boxes[:count] - np.array([margin, margin, 0, 0], np.float32),
            crops[searched],
            plan.boxes[searched],
            plan.present[searched],
            frozenset(layer.image for frame in plan.frames for layer in frame.layers),
        )
