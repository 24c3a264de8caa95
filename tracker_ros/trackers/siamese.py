"""What the Siamese trackers share: crops, selection of proposals, size smoothing.

A Siamese tracker compares every search crop with the target of the first frame (SiamRPN, section 4). The template is
embedded once; the frame is `tracker_ros.trackers.search`'s. ``compat=published`` reproduces the published trackers,
which imported weights were measured with: their crops (`tracker_ros.trackers.conventions`), and no selection of
proposals but penalty, window, maximum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import change_penalty, cosine_window
from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window, template_side
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.siamese import STRIDE, SiameseNet, gather, split
from tracker_ros.trackers.base import Frame, InvalidOption, option
from tracker_ros.trackers.conventions import siamese_crops
from tracker_ros.trackers.search import (
    Look,
    SearchDesign,
    SearchOptions,
    SearchTracker,
    Seen,
    Selection,
    calibrated,
    followed,
    resample,
    select_best,
)
from tracker_ros.trackers.target import Found, Target, View

#: Side of the template crop, pixels, and margin around the target over the mean of its sides (section 4.1).
TEMPLATE_SIZE = 127
CONTEXT = 0.5


@dataclass(frozen=True, kw_only=True)
class SiameseDesign(SearchDesign):
    """Design of all Siamese trackers. The presets stand beside each tracker."""

    score_scale: float = option(
        1.0, "factor of the log-odds of the network's scores (rule calibrate)", low=0.01, high=100.0
    )
    score_shift: float = option(0.0, "what is added to the scaled log-odds (rule calibrate)", low=-100.0, high=100.0)
    center_radius: int = option(0, "cells around the centre whose proposals count; 0: all", low=0, high=64)
    top_k: int = option(0, "proposals with the highest class scores that count; 0: all", low=0, high=100000)
    plain: bool = option(
        False, "compute the networks as the papers draw them, slower and with the same results: for comparison"
    )


@dataclass(frozen=True, kw_only=True)
class SiameseOptions(SearchOptions):
    """Options of all Siamese trackers."""

    compat: str = option(
        "off",
        "off: the paper's tracker, exact to the sub-pixel, and our rules; published: the published tracker's "
        "arithmetic, and none of our rules",
        choices=("off", "published"),
    )
    search_size: int = option(
        255, "side of the search crop, pixels: 127 + a multiple of 16; larger: follows faster motion, slower", low=127,
        high=767,
    )  # fmt: skip
    penalty: float = option(
        0.05, "penalty of a sudden change of size or ratio; higher: steadier boxes", low=0.0, high=2.0, live=True
    )
    window_influence: float = option(
        0.42, "share of the cosine window; higher: look-alikes far away are ignored, fast motion is lost", low=0.0,
        high=1.0, live=True
    )  # fmt: skip
    size_rate: float = option(
        0.38, "how fast the size follows; higher: faster, less steady", low=0.0, high=1.0, live=True
    )
    design: SiameseDesign = SiameseDesign()

    def __post_init__(self) -> None:
        """Check every field, and that the maps of template and search crops are aligned at their centres.

        Raises:
            InvalidOption: names the option, its value and what was expected.
        """
        super().__post_init__()
        if (self.search_size - TEMPLATE_SIZE) % (2 * STRIDE):
            raise InvalidOption(f"option 'search_size' must be 127 + a multiple of 16, got {self.search_size}")


@dataclass(kw_only=True)
class SiameseTarget(Target):
    """Everything that a Siamese tracker knows of one target.

    Attributes:
        template: what the network keeps of it (a named tuple of tensors without the targets' axis).
        fill: mean colour of the first frame, BGR, which published networks see where a crop reaches beyond the image.
    """

    template: tuple[Tensor, ...]
    fill: NDArray[np.uint8]


class Response(NamedTuple):
    """What a network says of B search crops.

    Attributes:
        scores: BxN probabilities of being the target, anchor by anchor, row by row.
        boxes: BxNx4 proposals (cx, cy, w, h in crop pixels, relative to the crop's centre).
    """

    scores: Tensor
    boxes: Tensor


def select(
    response: Response, sizes: Tensor, influence: Tensor, window: Tensor, options: SiameseOptions
) -> tuple[Selection, Tensor]:
    """Select proposals (SiamRPN, section 4.2 and 4.3).

    The proposals near the centre with the highest class scores are ranked anew, by the penalty on changes of size and
    ratio and a cosine window.

    Args:
        response: of B crops.
        sizes: Bx2 (w, h) of the targets in the last frame, crop pixels.
        influence: B, share of the window.
        window: SxS cosine window over the map.
        options: the rest.

    Returns:
        The best proposals, and how much of each one's size is taken over (B).
    """
    # Half precision can overflow; a proposal without numbers is none.
    scores, boxes = response.scores.nan_to_num(0.0), response.boxes
    cells, design = len(window), options.design
    planes = scores.shape[1] // (cells * cells)
    window_map = window.flatten().repeat(planes)
    penalty = change_penalty(boxes, sizes, options.penalty).nan_to_num(0.0)
    ranking = scores * penalty * (1 - influence[:, None]) + window_map * influence[:, None]
    if options.compat == "off":
        if design.center_radius:
            distance = (torch.arange(cells, device=scores.device) - cells // 2).abs()
            near = torch.maximum(distance[:, None], distance).flatten().repeat(planes) <= design.center_radius
            ranking = ranking.masked_fill(~near, -math.inf)
        if 0 < design.top_k < scores.shape[1]:
            least = scores.masked_fill(ranking.isinf(), -math.inf).topk(design.top_k, 1).values[:, -1:]
            ranking = ranking.masked_fill(scores < least, -math.inf)
    found = select_best(ranking, scores, boxes)
    return found, penalty.gather(1, found.best)[:, 0] * found.score * options.size_rate


class SiameseTracker(SearchTracker[SiameseTarget]):
    """Base of the Siamese trackers: `embed` and `respond` are what differs.

    Args:
        name: name in the registry.
        options: see `SiameseOptions` and the tracker's own.
        network: a network to use instead of loading ``options.weights``; it is copied.

    Raises:
        WeightsError: the weights cannot be loaded.
        DeviceError: the device is not there.
    """

    options: SiameseOptions

    def __init__(self, name: str, options: SiameseOptions, network: SiameseNet | None = None) -> None:
        super().__init__(name, options)
        own = cast(SiameseNet, self.load(network, fold=not options.design.plain))
        # Beyond the image a crop shows what the network was trained with.
        self._replicates = isinstance(own.backbone, SharedBackbone)
        self.crops = siamese_crops(options.compat)
        self._grids: dict[int, Tensor] = {}
        self._windows: dict[int, Tensor] = {}
        self.build(own)

    @property
    def published(self) -> bool:
        """See `SearchTracker.published`."""
        return self.options.compat != "off"

    def arithmetic(self) -> str:
        """See `SearchTracker.arithmetic`; published numbers are those of float32."""
        return "float32" if self.published and self.options.precision == "auto" else self.options.precision

    @abstractmethod
    def build(self, network: SiameseNet) -> None:
        """Take the evaluated network, on its device."""

    @abstractmethod
    def embed(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """Templates of T targets (a named tuple of tensors, the targets' axis first).

        Args:
            crops: Tx3xSxS template crops.
            boxes: Tx4, the targets in them (x, y, w, h in crop pixels).
        """

    @abstractmethod
    def respond(self, crops: Tensor, template: tuple[Tensor, ...]) -> tuple[Response, int]:
        """Scores and proposals of B search crops Bx3xSxS for the templates of B targets; and the side of the map."""

    @abstractmethod
    def grid(self, cells: int) -> NDArray[np.float32]:
        """Anchors or points of a map of `cells` x `cells`: what proposals are relative to."""

    # --- first frame ---------------------------------------------------------------------------------------------

    def begin(self, frame: Frame, box: Box) -> SiameseTarget:
        """Embed a target's template; see `SearchTracker.begin`."""
        position, size = self.crops.position(box), np.array([box.w, box.h])
        fill = frame.mean((0, 1)).astype(np.uint8)
        with self.timer.stage("crop"):
            w = self.crops.window(position, template_side(size, CONTEXT), TEMPLATE_SIZE)
            crop = self.upload([resample(frame, w, self._beyond(fill))])
        with self.timer.stage("backbone"):
            templates = self.embed(crop, self.tensor(self.crops.inside(w, position, size)[None]))
        (template,) = split(self.adapt(frame, position, size, fill, templates))
        return SiameseTarget(
            position=position,
            size=size,
            monitor=self.monitor(),
            colours=self.book.start(frame, box),
            template=template,
            fill=fill,
        )

    def adapt(
        self,
        frame: Frame,
        position: NDArray[np.float64],
        size: NDArray[np.float64],
        fill: NDArray[np.uint8],
        templates: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Adapt the template of one target (the targets' axis first) to its frame; here, leave it as it is."""
        return templates

    # --- later frames --------------------------------------------------------------------------------------------

    def side(self, target: SiameseTarget) -> float:
        """See `SearchTracker.side`."""
        return self._search_side(target.size)

    def crop(self, frame: Frame, target: SiameseTarget, place: NDArray[np.float64]) -> tuple[Window, NDArray[np.uint8]]:
        """See `SearchTracker.crop`."""
        return self.search_crop(frame, place, target.size, target.fill)

    def search_crop(
        self, frame: Frame, place: NDArray[np.float64], size: NDArray[np.float64], fill: NDArray[np.uint8]
    ) -> tuple[Window, NDArray[np.uint8]]:
        """The search window of a target of `size` around `place`, and its pixels; `fill` as in `SiameseTarget`."""
        w = self.crops.window(place, self._search_side(size), self.options.search_size)
        return w, resample(frame, w, self._beyond(fill))

    def upload(self, patches: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See `SearchTracker.upload`: BGR in [0, 255]."""
        image = self.pixels(patches).to(self._dtype)
        return image.contiguous() if self.options.design.plain else image

    def look(self, crops: Tensor, targets: Sequence[SiameseTarget], views: Sequence[View], frame: Frame) -> Look:
        """See `SearchTracker.look`; `Look.extra` is how much of the size is taken over."""
        o = self.options
        response, cells = self.respond(crops, gather([target.template for target in targets]))
        with self.timer.stage("select"):
            scores = response.scores.nan_to_num(0.0)
            if "calibrate" in self.book:
                scores = calibrated(scores, o.design.score_scale, o.design.score_shift)
            sizes = np.stack([t.size / self.pixel(v.window, t.size) for t, v in zip(targets, views, strict=True)])
            influence = np.array([0.0 if view.free else o.window_influence for view in views])
            found, rate = select(
                Response(scores, response.boxes), self.tensor(sizes), self.tensor(influence), self._cosine(cells), o
            )
            maps = scores.unflatten(1, (-1, cells * cells)).amax(1).unflatten(1, (cells, cells)) if o.heatmap else None
        return Look(found.score, found.second, found.focus, found.box, rate[:, None], maps, cells)

    def read(self, target: SiameseTarget, view: View, seen: Seen, frame: Frame) -> Found:
        """See `SearchTracker.read`; the size follows by linear interpolation (section 4.3)."""
        scale, rate = self.pixel(view.window, target.size), float(seen.extra[0])
        origin = self.crops.origin(view.window, view.place)
        center, size = origin + seen.box[:2] * scale, seen.box[2:] * scale
        there = self.published or seen.score >= self.options.bad_score
        return followed(target, frame, center, size, rate, there, seen, self.crops.least_side)

    def region(self, view: View, cells: int) -> Box:
        """See `SearchTracker.region`. The map's cells look at the middle of the crop; what lies around is context."""
        side = cells * STRIDE * view.window.scale
        return Box.from_center(*view.window.center, side, side)

    # --- crops ---------------------------------------------------------------------------------------------------

    def _search_side(self, size: NDArray[np.float64]) -> float:
        """Side of the search region of a target of `size`, image pixels."""
        return template_side(size, CONTEXT) * self.options.search_size / TEMPLATE_SIZE

    def pixel(self, w: Window, size: NDArray[np.float64]) -> float:
        """Image pixels a crop pixel of a target of `size`."""
        return self.crops.pixel(w, template_side(size, CONTEXT) / TEMPLATE_SIZE)

    def _beyond(self, fill: NDArray[np.uint8]) -> list[int] | None:
        """What a crop shows beyond the image: `fill`, or the border for a compact network."""
        return None if self._replicates else fill.tolist()

    def _grid(self, cells: int) -> Tensor:
        """`grid` on the device."""
        if cells not in self._grids:
            self._grids[cells] = torch.from_numpy(self.grid(cells)).to(self._torch_device)
        return self._grids[cells]

    def _cosine(self, cells: int) -> Tensor:
        """The cosine window on the device."""
        if cells not in self._windows:
            self._windows[cells] = torch.from_numpy(cosine_window(cells)).to(self._torch_device)
        return self._windows[cells]
