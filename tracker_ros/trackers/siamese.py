"""What the Siamese trackers share: crops, proposal selection, size smoothing, search for a lost target.

A Siamese tracker compares every search crop with the target of the first frame (SiamRPN, section 4). The template is
embedded once; a frame goes: cut windows (uint8) - resize - upload - network - select the best proposal - one transfer
back, for all targets at once.

With ``compat=off`` positions are continuous image coordinates and every rounding of a crop to whole pixels is known
to what is computed from it, so boxes come out as they went in. ``compat=published`` reproduces the arithmetic of the
published trackers, which imported weights were measured with: centres by ``(w - 1) / 2``, crops that are rounded
without taking note of it, sides of at least ten pixels, and no selection of proposals but penalty, window, maximum.
They never search elsewhere either: with ``redetect_windows=0`` every frame is the published tracker's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import change_penalty, cosine_window, overlap
from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window, template_side
from tracker_ros.geometry.crops import window as crop_window
from tracker_ros.networks.backbones import SharedBackbone
from tracker_ros.networks.siamese import STRIDE, SiameseNet, gather, split
from tracker_ros.trackers.base import Estimate, Frame, InvalidOption, TrackerOptions, option
from tracker_ros.trackers.deep import Best, SearchOptions, SearchTarget, SearchTracker
from tracker_ros.trackers.state import ConfidenceMonitor

#: Smallest side of a target in the published trackers, pixels.
_PUBLISHED_MIN_SIDE = 10.0


@dataclass(frozen=True, kw_only=True)
class SiameseOptions(SearchOptions):
    """Options that all Siamese trackers have. The presets stand beside each tracker."""

    precision: str = option(
        "auto",
        "arithmetic of the convolutions: auto (bfloat16 where the CPU has it, float16 on CUDA; float32 for "
        "compat=published), or the one named",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compat: str = option(
        "off",
        "off: the paper's tracker, exact to the sub-pixel; published: the published tracker's arithmetic",
        choices=("off", "published"),
    )
    plain: bool = option(
        False, "compute the networks as the papers draw them, slower and with the same results: for comparison"
    )

    template_size: int = option(127, "side of the template crop, pixels: 127 +- multiples of 16", low=111, high=255)
    search_size: int = option(255, "side of the search crop, pixels: 127 + multiples of 16", low=127, high=767)
    context: float = option(0.5, "margin around the target, over the mean of its sides", low=0.0, high=2.0)

    penalty: float = option(0.05, "penalty of a sudden change of size or ratio", low=0.0, high=2.0)
    window_influence: float = option(0.42, "share of the cosine window in the ranking", low=0.0, high=1.0)
    size_rate: float = option(0.38, "how fast the size follows", low=0.0, high=1.0)
    center_radius: int = option(0, "cells around the centre whose proposals count; 0: all", low=0, high=64)
    top_k: int = option(0, "proposals with the highest class scores that count; 0: all", low=0, high=100000)

    def __post_init__(self) -> None:
        """Check every field, and that the maps of template and search crops are aligned at their centres.

        Raises:
            InvalidOption: names the option, its value and what was expected.
        """
        super().__post_init__()
        for name in ("template_size", "search_size"):
            if (getattr(self, name) - 127) % (2 * STRIDE):
                raise InvalidOption(f"option '{name}' must be 127 +- a multiple of 16, got {getattr(self, name)}")
        if self.search_size < self.template_size:
            raise InvalidOption(
                f"option 'search_size' must be at least 'template_size' ({self.template_size}), got {self.search_size}"
            )


@dataclass(kw_only=True)
class SiameseTarget(SearchTarget):
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


class Selection(NamedTuple):
    """The best proposal of each of B responses.

    Attributes:
        box: Bx4 (cx, cy, w, h in crop pixels, relative to the crop's centre).
        score: B, its class score.
        rate: B, how much of its size is taken over.
        second: B, the best class score of another object.
        focus: B, share of the squared scores that belongs to proposals of the same object.
    """

    box: Tensor
    score: Tensor
    rate: Tensor
    second: Tensor
    focus: Tensor


def select(response: Response, sizes: Tensor, influence: Tensor, window: Tensor, options: SiameseOptions) -> Selection:
    """Select proposals (SiamRPN, section 4.2 and 4.3).

    The proposals near the centre with the highest class scores are ranked anew, by the penalty on changes of size and
    ratio and a cosine window. Non-maximum suppression then keeps the best one in any case; what it leaves next is the
    strongest other object.

    Args:
        response: of B crops.
        sizes: Bx2 (w, h) of the targets in the last frame, crop pixels.
        influence: B, share of the window.
        window: SxS cosine window over the map.
        options: the rest.
    """
    # Half precision can overflow; a proposal without numbers is none.
    scores, boxes = response.scores.nan_to_num(0.0), response.boxes
    cells = len(window)
    planes = scores.shape[1] // (cells * cells)
    window_map = window.flatten().repeat(planes)
    penalty = change_penalty(boxes, sizes, options.penalty).nan_to_num(0.0)
    ranking = scores * penalty * (1 - influence[:, None]) + window_map * influence[:, None]
    if options.compat == "off":
        if options.center_radius:
            distance = (torch.arange(cells, device=scores.device) - cells // 2).abs()
            near = torch.maximum(distance[:, None], distance).flatten().repeat(planes) <= options.center_radius
            ranking = ranking.masked_fill(~near, -math.inf)
        if 0 < options.top_k < scores.shape[1]:
            least = scores.masked_fill(ranking.isinf(), -math.inf).topk(options.top_k, 1).values[:, -1:]
            ranking = ranking.masked_fill(scores < least, -math.inf)
    best = ranking.argmax(1, keepdim=True)
    box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    score = scores.gather(1, best)
    same = overlap(boxes, box) >= options.suppression_overlap
    energy = scores.square()
    return Selection(
        box[:, 0],
        score[:, 0],
        (penalty.gather(1, best) * score)[:, 0] * options.size_rate,
        scores.masked_fill(same, 0.0).amax(1),
        (energy * same).sum(1) / energy.sum(1).clamp_min(1e-12),
    )


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

    options_class: ClassVar[type[TrackerOptions]] = SiameseOptions
    options: SiameseOptions

    def __init__(self, name: str, options: SiameseOptions, network: SiameseNet | None = None) -> None:
        super().__init__(name, options)
        own = cast(SiameseNet, self.load(network, fold=not options.plain))
        # Beyond the image a crop shows what the network was trained with.
        self._replicates = isinstance(own.backbone, SharedBackbone)
        if options.compat == "published":
            self.least_side = _PUBLISHED_MIN_SIDE
        self._grids: dict[int, Tensor] = {}
        self._windows: dict[int, Tensor] = {}
        self.build(own)

    def arithmetic(self) -> str:
        """See `NetworkTracker.arithmetic`; published numbers are those of float32."""
        exact = self.options.precision == "auto" and self.options.compat == "published"
        return "float32" if exact else self.options.precision

    def needed_score(self, lost: bool) -> float:
        """See `SearchTracker.needed_score`; the published trackers move on every score."""
        if self.options.compat == "published" and not (lost and self.options.redetect_windows):
            return 0.0
        return super().needed_score(lost)

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

    @torch.inference_mode()
    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[SiameseTarget]:
        """Embed every box's template in one pass; see `Tracker.start`."""
        if not boxes:
            return []
        o = self.options
        half = 0.5 if o.compat == "published" else 0.0
        positions = [np.array(box.center) - half for box in boxes]
        sizes = [np.array([box.w, box.h]) for box in boxes]
        fill = frame.mean((0, 1)).astype(np.uint8)
        windows, crops = [], []
        with self.timer.stage("crop"):
            for position, size in zip(positions, sizes, strict=True):
                w = self._window(position, template_side(size, o.context), o.template_size)
                windows.append(w)
                crops.append(self._crop(frame, w, self._beyond(fill)))
            batch = self._upload(crops)
        inside = [self._inside(w, p, s) for w, p, s in zip(windows, positions, sizes, strict=True)]
        with self.timer.stage("backbone"):
            templates = self.embed(batch, self._tensor(np.stack(inside)))
        templates = self.adapt(frame, positions, sizes, fill, templates)
        return [
            SiameseTarget(
                position=position,
                size=size,
                template=template,
                fill=fill,
                monitor=ConfidenceMonitor(o.thresholds()),
            )
            for position, size, template in zip(positions, sizes, split(templates), strict=True)
        ]

    def adapt(
        self,
        frame: Frame,
        positions: Sequence[NDArray[np.float64]],
        sizes: Sequence[NDArray[np.float64]],
        fill: NDArray[np.uint8],
        templates: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Adapt the templates of T targets to the first frame; here, leave them as they are."""
        return templates

    # --- later frames --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, frame: Frame, targets: Sequence[SiameseTarget]) -> list[Estimate]:
        """Find every target in one batched pass; see `Tracker.step`."""
        if not targets:
            return []
        o = self.options
        height, width = frame.shape[:2]
        owners: list[int] = []
        windows: list[Window] = []
        crops: list[NDArray[np.uint8]] = []
        origins: list[NDArray[np.float64]] = []
        scales: list[float] = []
        influence: list[float] = []
        with self.timer.stage("crop"):
            for i, target in enumerate(targets):
                side = self._search_side(target.size)
                for place in self._search_centers(target, side, width, height):
                    w = self._window(place, side, o.search_size)
                    owners.append(i)
                    windows.append(w)
                    crops.append(self._crop(frame, w, self._beyond(target.fill)))
                    origins.append(np.array(w.center) if o.compat == "off" else place)
                    scales.append(self._pixel(w, target.size))
                    # A lost target can be anywhere in the region.
                    influence.append(0.0 if target.lost and o.redetect_windows else o.window_influence)
            batch = self._upload(crops)
        response, cells = self.respond(batch, gather([targets[i].template for i in owners]))
        with self.timer.stage("select"):
            response = response._replace(scores=self._calibrated(response.scores.nan_to_num(0.0)))
            sizes = np.stack([targets[i].size / scale for i, scale in zip(owners, scales, strict=True)])
            found = select(response, self._tensor(sizes), self._tensor(np.array(influence)), self._cosine(cells), o)
            numbers = torch.stack([found.score, found.rate, found.second, found.focus], 1)
            parts = [numbers, found.box]
            if o.heatmap:
                parts.append(response.scores.unflatten(1, (-1, cells * cells)).amax(1))
            host = torch.cat(parts, 1).double().cpu().numpy()  # the frame's one transfer back
        estimates = []
        for i, target in enumerate(targets):
            rows = [r for r, owner in enumerate(owners) if owner == i]
            best = max(rows, key=lambda r: float(host[r, 0]))
            row, w = host[best], windows[best]
            box = np.concatenate([origins[best] + row[4:6] * scales[best], row[6:8] * scales[best]])
            # The map's cells look at the middle of the crop; what lies around it is their context.
            region = Box.from_center(*w.center, cells * STRIDE * w.scale, cells * STRIDE * w.scale)
            heatmap = np.clip(row[8:].reshape(cells, cells), 0, 1).astype(np.float32) if o.heatmap else None
            estimates.append(self._settle(target, Best(box, *map(float, row[:4])), (width, height), region, heatmap))
        return estimates

    # --- crops ---------------------------------------------------------------------------------------------------

    def _search_side(self, size: NDArray[np.float64]) -> float:
        """Side of the search region of a target of `size`, image pixels."""
        return template_side(size, self.options.context) * self.options.search_size / self.options.template_size

    def _window(self, center: NDArray[np.float64], side: float, output: int) -> Window:
        """The window of a crop around `center`."""
        if self.options.compat == "off":
            return crop_window(center[0], center[1], side, output)
        size = max(round(side), 2)
        left, top = (math.floor(c - (size + 1) / 2 + 0.5) for c in center)
        return Window(left, top, size, left, top, size, 1, 0, 0, output)

    def _pixel(self, w: Window, size: NDArray[np.float64]) -> float:
        """Image pixels a crop pixel; the published trackers take the side before it was rounded."""
        if self.options.compat == "off":
            return w.scale
        return template_side(size, self.options.context) / self.options.template_size

    def _inside(self, w: Window, position: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
        """The target's box in its template crop (x, y, w, h in crop pixels)."""
        extent = size / w.scale
        center = np.full(2, w.output / 2)
        if self.options.compat == "off":
            center = (position - np.array([w.x, w.y])) / w.scale
        return np.concatenate([center - extent / 2, extent])

    def _beyond(self, fill: NDArray[np.uint8]) -> list[int] | None:
        """What a crop shows beyond the image: `fill`, or the border for a compact network."""
        return None if self._replicates else fill.tolist()

    def _upload(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """BGR crops to the device, Bx3xSxS in [0, 255]."""
        image = self._pixels(crops).to(self._dtype)
        return image.contiguous() if self.options.plain else image

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
