"""Scenes as the frozen backbone sees them, kept in memory so that each trains the heads more than once.

Making a crop and its features costs more than one step of a small head. A replay draws a few fresh scenes a step and
lets the heads learn from many earlier ones; scene ``i`` is a function of the seed and ``i`` alone, so a resumed run
draws the present content again and goes on exactly as it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.training.pairs import PairSampler


class Maps(NamedTuple):
    """What `SharedBackbone.maps` gives for N crops: NxC2xHxW at stride 8 and NxC3xH/2xW/2 at stride 16."""

    stage2: Tensor
    stage3: Tensor


class SceneFeatures(NamedTuple):
    """N scenes.

    Attributes:
        templates: maps of their templates, (N T) rows, scene by scene.
        template_boxes: NxTx4 (x, y, w, h), pixels of the template crop.
        searches: maps of their search crops, (N S) rows, scene by scene.
        boxes: NxSx4 (x, y, w, h), pixels of the search crop.
        present: NxS bool.
    """

    templates: Maps
    template_boxes: Tensor
    searches: Maps
    boxes: Tensor
    present: Tensor


def embed(sampler: PairSampler, backbone: SharedBackbone, rng: np.random.Generator) -> SceneFeatures:
    """Draw one scene and compute its maps in the backbone's arithmetic and on its device."""
    scene = sampler.scene(rng)
    like = next(backbone.parameters())

    def maps(crops: NDArray[np.uint8]) -> Maps:
        images = torch.from_numpy(np.ascontiguousarray(crops)).to(like.device).permute(0, 3, 1, 2).to(like.dtype)
        with torch.no_grad():
            return Maps(*backbone.maps(images))

    return SceneFeatures(
        maps(scene.templates),
        torch.from_numpy(scene.template_boxes)[None].to(like.device),
        maps(scene.searches),
        torch.from_numpy(scene.boxes)[None].to(like.device),
        torch.from_numpy(scene.present)[None].to(like.device),
    )


def stack(scenes: list[SceneFeatures]) -> SceneFeatures:
    """Several scenes as one batch."""
    return SceneFeatures(
        Maps(*(torch.cat([s.templates[i] for s in scenes]) for i in range(2))),
        torch.cat([s.template_boxes for s in scenes]),
        Maps(*(torch.cat([s.searches[i] for s in scenes]) for i in range(2))),
        torch.cat([s.boxes for s in scenes]),
        torch.cat([s.present for s in scenes]),
    )


T = TypeVar("T")


class Window(Generic[T]):
    """The last `capacity` items of an endless sequence.

    Args:
        draw: makes an item; a function of the generator alone.
        capacity: items that are kept.
        key: what items are a function of, with their number (seed, rank).
    """

    def __init__(self, draw: Callable[[np.random.Generator], T], capacity: int, key: tuple[int, ...]) -> None:
        self.draw, self.capacity, self.key = draw, capacity, key
        self._drawn = 0
        self._items: dict[int, T] = {}

    def advance(self, count: int) -> None:
        """Make the content the last `capacity` of the first `count` items; only missing ones are drawn."""
        for number in range(max(self._drawn if self._items else 0, count - self.capacity), count):
            self._items[number % self.capacity] = self.draw(np.random.default_rng([*self.key, number]))
        self._drawn = max(count, self._drawn)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, slot: int) -> T:
        """The item in a slot, 0 up to the number of items."""
        return self._items[slot]


class Replay(Window[SceneFeatures]):
    """A window of scenes.

    Args:
        sampler: draws scenes.
        backbone: frozen, in the arithmetic that it is to compute in.
        capacity: scenes that are kept; about 1.5 MB each in half precision.
        key: see `Window`.
    """

    def __init__(self, sampler: PairSampler, backbone: SharedBackbone, capacity: int, key: tuple[int, ...]) -> None:
        super().__init__(lambda rng: embed(sampler, backbone, rng), capacity, key)

    def take(self, slots: NDArray[np.int64]) -> SceneFeatures:
        """The scenes in `slots` (0 up to the number of scenes)."""
        return stack([self[int(slot)] for slot in slots])
