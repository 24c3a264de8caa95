"""DiMP: a discriminative filter learned in the first frame and kept up to date, boxes by IoU maximisation.

Bhat et al., "Learning Discriminative Model Prediction for Tracking", ICCV 2019: the network is
`tracker_ros.networks.dimp`, this file is section 3.7; the frame is `tracker_ros.trackers.search`'s. What the paper
leaves open follows the published tracker's settings; its sub-pixel conventions are reproduced with
``compat=published`` (`tracker_ros.trackers.conventions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window
from tracker_ros.networks.dimp import STRIDE, BackboneFeatures, DiMPNet
from tracker_ros.networks.filter_optimizer import apply_filter
from tracker_ros.networks.iou_net import BoxRefiner, IoUFeatures, Modulation
from tracker_ros.trackers import rules
from tracker_ros.trackers.base import Frame, InvalidOption, again, option
from tracker_ros.trackers.conventions import dimp_crops
from tracker_ros.trackers.search import Look, SearchDesign, SearchOptions, SearchTracker, Seen, Settled
from tracker_ros.trackers.state import ConfidenceThresholds
from tracker_ros.trackers.target import Found, Target, View

#: Outcomes of `localize`, in the order of their codes.
NORMAL, HARD_NEGATIVE, UNCERTAIN, NOT_FOUND = range(4)
FLAGS = ("normal", "hard_negative", "uncertain", "not_found")

#: First-frame augmentation (section 3.7): blurs (sigma y, x in pixels), rotations (degrees), shifts (of half a crop),
#: on a patch this many times as large as a crop.
_BLURS = ((3, 1), (1, 3), (2, 2))
_ROTATIONS = (10, -10, 45, -45)
_SHIFTS = ((0.6, 0.6), (-0.6, 0.6), (0.6, -0.6), (-0.6, -0.6))
_EXPANSION = 2

#: Online learning (section 3.7): samples in memory, of which the first frame's never weigh less than a share;
#: steepest-descent steps of a regular update and after a distractor, and the weight of a sample with a distractor.
_MEMORY = 50
_INITIAL_WEIGHT = 0.25
_UPDATE_STEPS = 2
_HARD_NEGATIVE_STEPS = 1
_HARD_NEGATIVE_RATE = 0.02

#: Localisation, as published: second peak over first from which the two are in doubt, and from which the distractor is
#: learned from; size of a peak's neighbourhood over the target's; how far a target moves in a frame, over half the map;
#: the part of it that stays inside the image.
_DISTRACTOR = 0.8
_HARD_NEGATIVE = 0.5
_NEIGHBOURHOOD = 2.2
_DISPLACEMENT = 0.8
_INSIDE = 0.2

#: Boxes (section 3.5): random ones around the predicted one, their spread in position and size over the target's;
#: those that are averaged; those more elongated than this are discarded.
_PROPOSALS = 9
_JITTER = torch.tensor((0.1, 0.1, 0.5, 0.5))
_AVERAGED = 3
_MOST_ELONGATED = 6.0


@dataclass(frozen=True, kw_only=True)
class DiMPDesign(SearchDesign):
    """Design of DiMP: the published settings, and what studies of the method vary."""

    network: str = option("dimp18", "architecture of the network", choices=("dimp18", "dimp_lite0", "dimp50"))
    optimizer: str = option(
        "steepest",
        "how the filter is learned: steepest descent; gradient descent of a fixed step length; none: the initializer's "
        "filter is used as it is and never updated (table 1 of the paper)",
        choices=("steepest", "gradient", "none"),
    )
    gradient_step: float = option(0.1, "step length of optimizer=gradient", low=0.0, high=10.0)
    augmentation: bool = option(True, "learn the first filter from 15 augmented samples rather than one")
    random_shift: float = option(1 / 3, "random shift of augmented samples, over the crop's side", low=0.0, high=1.0)
    dropout: float = option(0.2, "channel dropout of two augmented samples", low=0.0, high=0.9)
    init_iterations: int = option(10, "steepest-descent steps on the first frame", low=0, high=100)


@dataclass(frozen=True, kw_only=True)
class DiMPOptions(SearchOptions):
    """Options of DiMP. The defaults are the published settings of DiMP-18 and DiMP-50."""

    good_score: float = again(SearchOptions, "good_score", 0.35)
    bad_score: float = again(SearchOptions, "bad_score", 0.25)
    regain_score: float = again(SearchOptions, "regain_score", 0.45)
    update: str = option("dimp", "online learning: none, or dimp (memory and filter updates)", choices=("none", "dimp"))
    compat: str = option(
        "off",
        "published: the published tracker's half-pixel conventions, and none of our rules; "
        "published-2019: those of its first release; off: exact boxes and our rules",
        choices=("off", "published", "published-2019"),
    )
    seed: int = option(0, "seed of the augmentation and of the box proposals", low=0)

    image_size: int = option(
        288, "side of the crop that the network sees, pixels (a multiple of 16); larger: finer and slower", low=96,
        high=960,
    )  # fmt: skip
    search_area_scale: float = option(
        5.0, "side of the search region over the target's size; larger: follows faster motion, sees less detail",
        low=2.0, high=12.0,
    )  # fmt: skip
    update_interval: int = option(
        20,
        "frames between regular updates; higher: cheaper, and slower to learn a new look",
        low=1,
        high=1000,
        live=True,
    )
    learning_rate: float = option(
        0.01,
        "weight of a new sample; higher: a new look is learned sooner, an old one forgotten",
        low=1e-4,
        high=0.5,
        live=True,
    )
    refinement_iterations: int = option(
        5, "gradient-ascent steps of the boxes; more: tighter and slower; 0: the size stays", low=0, high=50, live=True
    )
    design: DiMPDesign = DiMPDesign()

    def __post_init__(self) -> None:
        """Check the options; see `Settings`."""
        super().__post_init__()
        if self.image_size % STRIDE:
            raise InvalidOption(f"option 'image_size' must be a multiple of {STRIDE}, got {self.image_size}")


PRESETS: dict[str, DiMPOptions] = {
    "dimp18": DiMPOptions(),
    "dimp50": DiMPOptions(design=DiMPDesign(network="dimp50")),
}


class RandomDraws:
    """Random numbers of one track, reproducible by seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def shifts(self, count: int) -> Tensor:
        """`count` x 2 (y, x) in [0, 1): the shifts of augmented samples."""
        return torch.rand(count, 2, generator=self._generator)

    def dropout(self, count: int, channels: int, probability: float) -> Tensor:
        """`count` x `channels` factors: 0 with `probability`, else 1 / (1 - probability)."""
        keep = torch.rand(count, channels, generator=self._generator) >= probability
        return keep.float() / (1 - probability)

    def jitter(self, count: int) -> Tensor:
        """`count` x 4 in [0, 1): the proposals of one frame."""
        return torch.rand(count, 4, generator=self._generator)


@dataclass
class SampleMemory:
    """Training samples of one target, on the device, and their weights, on the host.

    Attributes:
        features: SxCxHxW classification features.
        boxes: Sx4 target boxes in crop pixels.
        weights: S, summing to one; a little more where the first frame's samples are held at their share, as published.
        initial: number of first-frame samples, which are never replaced.
        count: number of samples stored.
        newest: index of the last sample added, None while there are only initial ones.
    """

    features: Tensor
    boxes: Tensor
    weights: NDArray[np.float64]
    initial: int
    count: int
    newest: int | None = None

    @classmethod
    def start(cls, features: Tensor, boxes: Tensor, size: int) -> SampleMemory:
        """A memory for `size` samples that starts with NxCxHxW features and their Nx4 boxes, weighted alike."""
        count = features.shape[0]
        store = features.new_zeros(max(size, count), *features.shape[1:])
        store[:count] = features
        box_store = boxes.new_ones(max(size, count), 4)
        box_store[:count] = boxes
        sample_weights = np.zeros(max(size, count))
        sample_weights[:count] = 1 / count
        return cls(store, box_store, sample_weights, count, count)

    def add(self, features: Tensor, box: Tensor, rate: float, initial_weight: float) -> None:
        """Store a sample (CxHxW features, box of 4) with learning rate `rate`, in place of the least-weighted one.

        The initial samples together never weigh less than `initial_weight`.
        """
        w = self.weights
        if self.count < len(w):
            index = self.count
            self.count += 1
        else:
            index = self.initial + int(np.argmin(w[self.initial :]))
        if self.newest is None:
            w /= 1 - rate
            w[index] = rate
        else:
            w[index] = w[self.newest] / (1 - rate)
        w /= w.sum()
        if w[: self.initial].sum() < initial_weight:
            w /= initial_weight + w[self.initial :].sum()
            w[: self.initial] = initial_weight / self.initial
        self.newest = index
        self.features[index] = features
        self.boxes[index] = box


@dataclass(kw_only=True)
class DiMPTarget(Target):
    """Everything that DiMP knows of one target.

    Attributes:
        base_size: size of the first frame's target in crop pixels.
        scale: image pixels a crop pixel of the search region.
        filter: CxKxK.
        modulation: IoU-Net's vectors, C each.
        memory: training samples; None without updates.
        draws: its random numbers.
    """

    base_size: NDArray[np.float64]
    scale: float
    filter: Tensor
    modulation: Modulation
    memory: SampleMemory | None
    draws: RandomDraws


@dataclass(frozen=True, slots=True)
class Localization:
    """Where the target is in B score maps.

    Attributes:
        cell: Bx2 (x, y), displacement from the map's centre in cells.
        flag: B, one of `NORMAL`, `HARD_NEGATIVE`, `UNCERTAIN`, `NOT_FOUND`.
        peak: B, the score at `cell`.
        second: B, height of the second peak.
        focus: B, share of the map's positive energy that lies in the peak's neighbourhood.
    """

    cell: Tensor
    flag: Tensor
    peak: Tensor
    second: Tensor
    focus: Tensor


def localize(scores: Tensor, previous: Tensor, target: Tensor, options: DiMPOptions) -> Localization:
    """Find the target in score maps, and say whether a distractor is about.

    Args:
        scores: BxHxW.
        previous: Bx2 (x, y), the target's displacement from the map's centre before this frame, in cells.
        target: Bx2 (width, height) of the target in cells.
        options: gives the score below which there is no target.
    """
    _, height, width = scores.shape
    columns, rows = torch.arange(width, device=scores.device), torch.arange(height, device=scores.device)

    def maximum(maps: Tensor) -> tuple[Tensor, Tensor]:
        value, index = maps.flatten(1).max(1)
        return value, torch.stack([index % width, index // width], 1).to(scores.dtype)

    def displacement(at: Tensor) -> Tensor:
        return torch.stack([at[:, 0] - (width - 1) / 2, at[:, 1] - (height - 1) / 2], 1)

    first, at = maximum(scores)
    half = _NEIGHBOURHOOD * target / 2
    low, high = torch.round(at - half), torch.round(at + half)
    inside = ((columns >= low[:, :1]) & (columns <= high[:, :1]))[:, None, :] & (
        (rows >= low[:, 1:]) & (rows <= high[:, 1:])
    )[:, :, None]
    second, at2 = maximum(scores.masked_fill(inside, 0.0))
    cell1, cell2 = displacement(at), displacement(at2)
    moved1, moved2 = (cell1 - previous).norm(dim=1), (cell2 - previous).norm(dim=1)
    limit = _DISPLACEMENT * math.sqrt(width * height) / 2

    rivals = second > _DISTRACTOR * first
    keep = rivals & (moved2 > limit) & (moved1 < limit)
    swap = rivals & (moved2 < limit) & (moved1 > limit)
    hard = (second > _HARD_NEGATIVE * first) & (second > options.bad_score)
    flag = torch.where(hard, HARD_NEGATIVE, NORMAL)
    flag = torch.where(rivals, UNCERTAIN, flag)
    flag = torch.where(keep | swap, HARD_NEGATIVE, flag)
    missing = first < options.bad_score
    flag = torch.where(missing, NOT_FOUND, flag)
    swap = swap & ~missing
    energy = scores.clamp_min(0).square()
    focus = (energy * inside).sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-12)
    return Localization(
        torch.where(swap[:, None], cell2, cell1),
        flag,
        torch.where(swap, second, first),
        torch.where(swap, first, second),
        focus,
    )


class DiMP(SearchTracker[DiMPTarget]):
    """DiMP tracker.

    Args:
        name: name in the registry.
        options: see `DiMPOptions`.
        network: a network to use instead of loading ``options.weights``; it is copied.

    Raises:
        WeightsError: the weights cannot be loaded.
        DeviceError: the device is not there.
    """

    options: DiMPOptions
    own_rules = tuple(name for name in rules.RULES if name not in ("free", "calibrate"))

    def __init__(self, name: str, options: DiMPOptions, network: DiMPNet | None = None) -> None:
        super().__init__(name, options)
        self.network = cast(DiMPNet, self.load(network))
        self._refiner = BoxRefiner(self.network.iou_net)
        self._crops = dimp_crops(options.compat)

    @property
    def published(self) -> bool:
        """See `SearchTracker.published`."""
        return self.options.compat != "off"

    def thresholds(self) -> ConfidenceThresholds:
        """See `SearchTracker.thresholds`; a filter's scores are lower, and its peaks sharper, than a class score's."""
        return dataclasses.replace(
            super().thresholds(),
            max_distractor=_DISTRACTOR,
            min_sharpness=0.25,
            regain_ratio=self.book.typical_share,
            regain_after=3,
        )

    # --- first frame ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def begin(self, frame: Frame, box: Box, draws: RandomDraws | None = None) -> DiMPTarget:
        """Learn the filter of one target; its random numbers follow from the seed where none are given."""
        o, design, net = self.options, self.options.design, self.network
        draws = draws or RandomDraws(o.seed)
        position, size = np.array(box.center), np.array([box.w, box.h])
        scale = math.sqrt(size.prod()) * o.search_area_scale / o.image_size
        with self.timer.stage("crop"):
            expanded = o.image_size * (_EXPANSION if design.augmentation else 1)
            patch, scale, origin = self._crops.first(frame, position, scale, expanded)
            crops, shifts = self._augment(self._upload(patch, expanded), draws)
        base = size / scale
        center = (position - origin) / scale + o.image_size / 2
        crop_box = self.tensor(np.concatenate([center - base / 2, base]))
        sample_boxes = crop_box.repeat(len(crops), 1)
        sample_boxes[:, :2] += self.tensor(shifts)
        with self.timer.stage("backbone"):
            features = self._extract(crops)
        with self.timer.stage("classify"):
            samples = net.classification_features(features)
        if design.augmentation and design.dropout > 0:
            masks = draws.dropout(2, samples.shape[1], design.dropout).to(samples)
            samples = torch.cat([samples, samples[:1] * masks[:, :, None, None]])
            sample_boxes = torch.cat([sample_boxes, crop_box.expand(2, 4)])
        with self.timer.stage("update"):
            initial = net.classifier.initializer(samples[None], sample_boxes[None])
            filters = self._optimize(initial, samples[None], sample_boxes[None], design.init_iterations)
        with self.timer.stage("refine"):
            identity = BackboneFeatures(*(maps[:1].float() for maps in features))
            modulation = net.iou_net.modulation(*identity, crop_box[None])
        learns = o.update != "none" and design.optimizer != "none"
        return DiMPTarget(
            position=position,
            size=size,
            monitor=self.monitor(),
            colours=self.book.start(frame, box),
            base_size=base,
            scale=scale,
            filter=filters[0],
            modulation=Modulation(*(v[0] for v in modulation)),
            memory=SampleMemory.start(samples, sample_boxes, _MEMORY) if learns else None,
            draws=draws,
        )

    def _augment(self, patch: Tensor, draws: RandomDraws) -> tuple[Tensor, NDArray[np.float64]]:
        """First-frame samples from an expanded patch: Sx3xNxN and the shift (x, y) of the target in each, Sx2."""
        size, design = self.options.image_size, self.options.design
        if not design.augmentation:
            return patch, np.zeros((1, 2))
        relative = (np.array(_SHIFTS) * size / 2).astype(int)
        count = 1 + len(_BLURS) + len(_ROTATIONS)
        random = ((draws.shifts(count) - 0.5) * size * design.random_shift).long().numpy()
        images = [patch] * 5 + [patch.flip(-1)]
        images += [_blur(patch, *sigma) for sigma in _BLURS]
        images += [_rotate(patch, degrees) for degrees in _ROTATIONS]
        shifts = np.concatenate([np.zeros((1, 2), int), relative, random])  # (y, x)
        crops = [_crop_center(image, size, shift) for image, shift in zip(images, shifts, strict=True)]
        return torch.cat(crops), shifts[:, ::-1].astype(float)

    # --- later frames --------------------------------------------------------------------------------------------

    def side(self, target: DiMPTarget) -> float:
        """See `SearchTracker.side`."""
        return target.scale * self.options.image_size

    def crop(self, frame: Frame, target: DiMPTarget, place: NDArray[np.float64]) -> tuple[Window, NDArray[np.uint8]]:
        """See `SearchTracker.crop`; the patch is resampled on the device."""
        patch, w = self._crops.search(frame, place, target.scale, self.options.image_size)
        return w, patch

    def upload(self, patches: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See `SearchTracker.upload`: RGB float32 in [0, 255]."""
        crops = [self._upload(patch, self.options.image_size) for patch in patches]
        return crops[0] if len(crops) == 1 else torch.cat(crops)

    def look(self, crops: Tensor, targets: Sequence[DiMPTarget], views: Sequence[View], frame: Frame) -> Look:
        """See `SearchTracker.look`; `Look.extra` is the flag, the predicted overlap and the peak (x, y, image)."""
        o, net = self.options, self.network
        with self.timer.stage("backbone"):
            features = self._extract(crops)
        with self.timer.stage("classify"):
            samples = net.classification_features(features)
            filters = torch.stack([target.filter for target in targets])
            scores = apply_filter(samples[:, None], filters)[:, 0]
            geometry = self.tensor(_geometry(views, targets, frame))
            origin, scale, position, size, extent = geometry.split([2, 1, 2, 2, 2], 1)
            cell = scale * STRIDE
            found = localize(scores, (position - origin) / cell, size / cell, o)
        with self.timer.stage("refine"):
            margin = (_INSIDE - 0.5) * size
            # A part of the target stays inside the image.
            center = torch.maximum(torch.minimum(found.cell * cell + origin, extent - margin), margin)
            crop_size = size / scale
            corner = (center - origin) / scale + o.image_size / 2 - crop_size / 2
            vectors = Modulation(
                torch.stack([target.modulation.stride8 for target in targets]),
                torch.stack([target.modulation.stride16 for target in targets]),
            )
            jitter = torch.stack([target.draws.jitter(_PROPOSALS) for target in targets])
            around = self.link.upload((jitter - 0.5) * _JITTER)
            refined, overlap = self._refine(features, vectors, torch.cat([corner, crop_size], 1), around)
            extra = torch.cat([torch.stack([found.flag, overlap], 1), center], 1)
        response = scores if o.heatmap else None
        return Look(found.peak, found.second, found.focus, refined, extra, response, scores.shape[-1], samples)

    def read(self, target: DiMPTarget, view: View, seen: Seen, frame: Frame) -> Found:
        """See `SearchTracker.read`; where no refined box is left, the target keeps its size."""
        w, peak = view.window, seen.extra[2:]
        if np.isfinite(seen.box).all():
            middle = seen.box[:2] + seen.box[2:] / 2 - self.options.image_size / 2 + self._crops.half_pixel
            box = Box.from_center(*map(float, (*(middle * w.scale + np.array(w.center)), *(seen.box[2:] * w.scale))))
        else:
            box = Box.from_center(*map(float, (*peak, *target.size)))
        return Found(
            box=box,
            center=np.array(box.center),
            size=self.book.resized(target.size, np.array(box[2:])),
            peak=peak,
            seen=int(seen.extra[0]) != NOT_FOUND,
            score=seen.score,
            second=seen.second,
            focus=seen.focus,
            cues={"overlap": float(seen.extra[1])},
        )

    def resized(self, target: DiMPTarget, width: int, height: int) -> None:
        """Image pixels a crop pixel for a target's size; the search region stays between 10 px and three images."""
        scale = math.sqrt(target.size.prod() / target.base_size.prod())
        size = self.options.image_size
        target.scale = min(max(scale, 10 / size), 3 * max(width, height) / size)

    def region(self, view: View, cells: int) -> Box:
        """See `SearchTracker.region`."""
        side = cells * STRIDE * view.window.scale
        return Box.from_center(*view.window.center, side, side)

    def _refine(
        self, features: BackboneFeatures, vectors: Modulation, boxes: Tensor, around: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refine a box a target by maximising the predicted overlap (section 3.5).

        Args:
            features: backbone maps of B crops.
            vectors: modulation of their targets.
            boxes: Bx4 (x, y, w, h in crop pixels).
            around: BxPx4 random offsets of position (x, y) and size (w, h), over the targets' overall sizes.

        Returns:
            The mean of the best boxes, Bx4 (NaN where none is left), and its predicted overlap, B in [0, 1].
        """
        iterations = self.options.refinement_iterations
        if iterations == 0:
            return boxes, torch.full_like(boxes[:, 0], 0.5)
        maps = IoUFeatures(*(m.float() for m in self.network.iou_net.features(*features)))
        sizes, corner = boxes[:, None, 2:], boxes[:, None, :2]
        offset = around * sizes.prod(-1, keepdim=True).sqrt()
        new_sizes = torch.maximum(sizes + offset[..., 2:], sizes.amin(-1, keepdim=True) / 3)
        new_centers = corner + sizes / 2 + offset[..., :2]
        proposals = torch.cat([boxes[:, None], torch.cat([new_centers - new_sizes / 2, new_sizes], -1)], 1)
        proposals, overlap = self._refiner.ascend(vectors, maps, proposals, iterations)
        proposals = torch.cat([proposals[..., :2], proposals[..., 2:].clamp_min(1)], -1)
        ratio = proposals[..., 2] / proposals[..., 3]
        valid = (ratio < _MOST_ELONGATED) & (ratio > 1 / _MOST_ELONGATED)
        ranked = overlap.masked_fill(~valid, -math.inf)
        best, index = ranked.topk(min(_AVERAGED, ranked.shape[1]), 1)
        kept = torch.isfinite(best)
        weight = kept / kept.sum(1, keepdim=True)  # 0 / 0 where no box is left
        chosen = proposals.gather(1, index[..., None].expand(-1, -1, 4))
        mean = (chosen * weight[..., None]).sum(1)
        quality = (torch.where(kept, best, 0.0) * weight).sum(1)
        return mean, (quality.nan_to_num(-1.0).clamp(-1, 1) + 1) / 2

    # --- online learning -----------------------------------------------------------------------------------------

    def learn(self, settled: Sequence[Settled], kept: Any) -> None:
        """Store the frames that show a target, and update its filter every so often and after a distractor."""
        o = self.options
        due: dict[int, list[DiMPTarget]] = {}
        for one in settled:
            target: DiMPTarget = one.target
            flag = int(one.seen.extra[0]) if one.found.seen else NOT_FOUND
            if target.memory is None or flag not in (NORMAL, HARD_NEGATIVE):
                continue
            if not self.book.may_learn(one.estimate.state):
                continue
            w = one.view.window
            at_crop = (target.position - np.array(w.center)) / w.scale + o.image_size / 2
            crop_size = target.size / w.scale
            box = self.tensor(np.concatenate([at_crop - crop_size / 2, crop_size]))
            rate = _HARD_NEGATIVE_RATE if flag == HARD_NEGATIVE else o.learning_rate
            target.memory.add(kept[one.row], box, rate, _INITIAL_WEIGHT)
            if flag == HARD_NEGATIVE:
                due.setdefault(_HARD_NEGATIVE_STEPS, []).append(target)
            elif (target.frame_number - 1) % o.update_interval == 0:
                due.setdefault(_UPDATE_STEPS, []).append(target)
        for steps, group in sorted(due.items()):
            self._update(group, steps)

    def _update(self, targets: Sequence[DiMPTarget], steps: int) -> None:
        """Optimise the filters of targets on their memories, together."""
        memories = [target.memory for target in targets if target.memory is not None]
        count = max(m.count for m in memories)
        if len(memories) == 1:
            features, boxes = memories[0].features[None, :count], memories[0].boxes[None, :count]
        else:
            features = torch.stack([m.features[:count] for m in memories])
            boxes = torch.stack([m.boxes[:count] for m in memories])
        sample_weights = self.tensor(np.stack([m.weights[:count] for m in memories]))
        filters = torch.stack([target.filter for target in targets])
        filters = self._optimize(filters, features, boxes, steps, sample_weights)
        for target, new in zip(targets, filters, strict=True):
            target.filter = new

    def _optimize(
        self, filters: Tensor, features: Tensor, boxes: Tensor, steps: int, sample_weights: Tensor | None = None
    ) -> Tensor:
        """Filters after `steps` of the chosen optimizer; arguments as in `FilterOptimizer.forward`."""
        design = self.options.design
        if design.optimizer == "none":
            return filters
        length = design.gradient_step if design.optimizer == "gradient" else None
        iterates: list[Tensor] = self.network.classifier.optimizer(
            filters, features, boxes, steps, sample_weights, step_length=length
        )
        return iterates[-1]

    # --- crops ---------------------------------------------------------------------------------------------------

    def _upload(self, patch: NDArray[np.uint8], output: int) -> Tensor:
        """A BGR uint8 patch to the device, as RGB float32 in [0, 255] of `output` pixels a side: 1x3xNxN."""
        image = self.link.upload(patch)
        image = image.permute(2, 0, 1).flip(0)[None].float()
        if image.shape[-2:] != (output, output):
            image = F.interpolate(image, (output, output), mode="bilinear", align_corners=False)
        return image

    def _extract(self, crops: Tensor) -> BackboneFeatures:
        image = self.network.backbone.preprocess(crops)
        return self.network.extract(image.to(self._dtype, memory_format=torch.channels_last))


def _geometry(views: Sequence[View], targets: Sequence[DiMPTarget], frame: Frame) -> NDArray[np.float64]:
    """Centre (x, y) and scale of each window, position and size (x, y, w, h) of its target, the image's size: Bx9."""
    rows = [
        [*view.window.center, view.window.scale, *target.position, *target.size, *frame.shape[1::-1]]
        for view, target in zip(views, targets, strict=True)
    ]
    return np.array(rows, np.float64)


def _blur(image: Tensor, sigma_y: float, sigma_x: float) -> Tensor:
    """Gaussian blur of Bx3xHxW, zero beyond the border."""
    for axis, sigma in enumerate((sigma_y, sigma_x)):
        reach = math.ceil(2 * sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(image).reshape(1, 1, *((-1, 1) if axis == 0 else (1, -1)))
        padding = (reach, 0) if axis == 0 else (0, reach)
        image = F.conv2d(image.flatten(0, 1)[:, None], kernel, padding=padding).reshape(image.shape)
    return image


def _rotate(image: Tensor, degrees: float) -> Tensor:
    """Rotate Bx3xHxW about its centre, counter-clockwise as seen, bilinear, the border replicated."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    theta = image.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(image.shape[0], 2, 3)
    # align_corners: normalised coordinates run from the first to the last pixel's centre, so the centre is (N - 1) / 2.
    grid = F.affine_grid(theta, list(image.shape), align_corners=True)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _crop_center(image: Tensor, size: int, shift: NDArray[np.int64]) -> Tensor:
    """The central `size` x `size` pixels of Bx3xHxW, with the content moved by `shift` (y, x)."""
    top = (image.shape[-2] - size) // 2 - int(shift[0])
    left = (image.shape[-1] - size) // 2 - int(shift[1])
    pad = [max(-left, 0), max(left + size - image.shape[-1], 0), max(-top, 0), max(top + size - image.shape[-2], 0)]
    if any(pad):
        image = F.pad(image, pad, mode="replicate")
        top, left = max(top, 0), max(left, 0)
    return image[..., top : top + size, left : left + size]
