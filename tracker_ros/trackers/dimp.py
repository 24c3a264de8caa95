"""DiMP: a discriminative filter learned in the first frame and kept up to date, boxes by IoU maximisation.

Bhat et al., "Learning Discriminative Model Prediction for Tracking", ICCV 2019: the network is
`tracker_ros.networks.dimp`, this file is section 3.7. What the paper leaves open follows the published tracker's
settings; its sub-pixel conventions differ from ours by half a pixel here and there and are reproduced with
``compat=published``.

Inside, positions are continuous image coordinates (a pixel's centre lies at .5), and a crop is described by its
`Window`. A frame goes: cut windows (uint8) - upload - backbone - scores - localise - refine boxes - one transfer
back; everything between upload and transfer runs on the device, for all targets at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window, cut, window
from tracker_ros.geometry.scan import scan_places
from tracker_ros.networks.dimp import STRIDE, BackboneFeatures, DiMPNet
from tracker_ros.networks.filter_optimizer import apply_filter
from tracker_ros.networks.iou_net import BoxRefiner, IoUFeatures, Modulation
from tracker_ros.networks.resnet import normalise
from tracker_ros.trackers.appearance import ColourModel
from tracker_ros.trackers.base import Estimate, Frame, InvalidOption, TrackerOptions, TrackState, option
from tracker_ros.trackers.deep import NetworkOptions, NetworkTracker
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues

#: Outcomes of `localize`, in the order of their codes.
NORMAL, HARD_NEGATIVE, UNCERTAIN, NOT_FOUND = range(4)
FLAGS = ("normal", "hard_negative", "uncertain", "not_found")

#: First-frame augmentation (section 3.7): blurs (sigma y, x in pixels), rotations (degrees), shifts (of half a crop).
_BLURS = ((3, 1), (1, 3), (2, 2))
_ROTATIONS = (10, -10, 45, -45)
_SHIFTS = ((0.6, 0.6), (-0.6, 0.6), (0.6, -0.6), (-0.6, -0.6))

#: Frames whose sizes say how large a target is that is being covered.
_TRUSTED_FRAMES = 30
#: Frames in a row without the target after which it must look as it used to in order to be found.
_VANISHED = 2
#: Rate at which the target's recent colours follow it.
_COLOUR_RATE = 0.02


@dataclass(frozen=True, kw_only=True)
class DiMPOptions(NetworkOptions):
    """Options of DiMP. The defaults are the published settings of DiMP-18 and DiMP-50."""

    network: str = option("dimp18", "architecture of the network", choices=("dimp18", "dimp50"))
    optimizer: str = option(
        "steepest",
        "how the filter is learned: steepest descent; gradient descent of a fixed step length; none: the initializer's "
        "filter is used as it is and never updated (table 1 of the paper)",
        choices=("steepest", "gradient", "none"),
    )
    gradient_step: float = option(0.1, "step length of optimizer=gradient", low=0.0, high=10.0)
    update: str = option("dimp", "online learning: none, or dimp (memory and filter updates)", choices=("none", "dimp"))
    compat: str = option(
        "off",
        "published: the published tracker's half-pixel conventions, and none of our rules for sizes and look-alikes; "
        "published-2019: those of its first release; off: exact boxes and our rules",
        choices=("off", "published", "published-2019"),
    )
    seed: int = option(0, "seed of the augmentation and of the box proposals", low=0)

    image_size: int = option(288, "side of the crop that the network sees, pixels (a multiple of 16)", low=96, high=960)
    search_area_scale: float = option(5.0, "side of the search region over the target's size", low=2.0, high=12.0)
    augmentation: bool = option(True, "learn the first filter from 15 augmented samples rather than one")
    augmentation_expansion: int = option(2, "how far beyond the crop augmentations may reach", low=1, high=4)
    random_shift: float = option(1 / 3, "random shift of augmented samples, over the crop's side", low=0.0, high=1.0)
    dropout: float = option(0.2, "channel dropout of two augmented samples", low=0.0, high=0.9)

    init_iterations: int = option(10, "steepest-descent steps on the first frame", low=0, high=100)
    update_iterations: int = option(2, "steps of a regular update", low=0, high=20)
    hard_negative_iterations: int = option(1, "steps after a distractor was seen", low=0, high=20)
    update_interval: int = option(20, "frames between regular updates", low=1, high=1000)
    memory_size: int = option(50, "samples in memory", low=16, high=500)
    learning_rate: float = option(0.01, "weight of a new sample", low=1e-4, high=0.5)
    hard_negative_learning_rate: float = option(0.02, "weight of a sample with a distractor", low=1e-4, high=0.5)
    init_samples_weight: float = option(0.25, "the first frame's samples never weigh less than this", low=0.0, high=1.0)

    not_found_threshold: float = option(0.25, "score below which the target is not found in a frame", low=0.0, high=1.0)
    distractor_threshold: float = option(0.8, "second peak over first: the two are in doubt", low=0.0, high=1.0)
    hard_negative_threshold: float = option(0.5, "second peak over first: learn from the distractor", low=0.0, high=1.0)
    neighbourhood_scale: float = option(2.2, "size of the peak's neighbourhood over the target's", low=0.5, high=6.0)
    displacement_scale: float = option(0.8, "how far a target moves in a frame, over half the map", low=0.1, high=2.0)
    inside_ratio: float = option(0.2, "part of the target that stays inside the image", low=0.0, high=1.0)

    proposals: int = option(9, "random boxes around the predicted one", low=0, high=64)
    proposal_jitter_position: float = option(0.1, "their spread in position, over the target's size", low=0.0, high=1.0)
    proposal_jitter_size: float = option(0.5, "their spread in size, over the target's size", low=0.0, high=1.0)
    refinement_iterations: int = option(5, "gradient-ascent steps of the boxes; 0: the size stays", low=0, high=50)
    refinement_step: float = option(1.0, "step length of the boxes", low=0.0, high=10.0)
    refinement_average: int = option(3, "boxes that are averaged", low=1, high=64)
    size_rate: float = option(0.35, "how much of a change in size a frame makes; 1: all of it", low=0.01, high=1.0)
    maximal_aspect_ratio: float = option(6.0, "boxes more elongated than this are discarded", low=1.0, high=50.0)

    good_score: float = option(0.35, "score of a frame in which the target is surely seen", low=0.0, high=1.0)
    regain_score: float = option(0.45, "score that a lost target must reach to be regained", low=0.0, high=1.0)
    regain_ratio: float = option(0.8, "the same, over the score that it typically had", low=0.0, high=1.0)
    regain_colour: float = option(0.5, "similarity in colour that it must have then (0 to 1)", low=0.0, high=1.0)
    regain_after: int = option(3, "frames in a row that it must do so", low=1, high=30)
    lost_after: int = option(5, "frames without the target until it is lost", low=1, high=300)
    jump: float = option(
        1.5, "a peak further away than this, in target sizes, must be as high as a lost target's", low=0.1, high=100.0
    )
    redetect_after: int = option(15, "frames lost until the whole image is searched", low=0, high=1000)
    redetect_windows: int = option(
        2, "windows searched a frame while the target is lost; 0: its last place only", low=0, high=16
    )

    def __post_init__(self) -> None:
        """Check the options; see `TrackerOptions`."""
        super().__post_init__()
        if self.image_size % STRIDE:
            raise InvalidOption(f"option 'image_size' must be a multiple of {STRIDE}, got {self.image_size}")


PRESETS: dict[str, DiMPOptions] = {"dimp18": DiMPOptions(), "dimp50": DiMPOptions(network="dimp50")}


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


@dataclass
class DiMPTarget:
    """Everything that DiMP knows of one target.

    Attributes:
        position: centre (x, y), continuous image pixels.
        size: width and height, pixels.
        base_size: size of the first frame's target in crop pixels.
        scale: image pixels a crop pixel of the search region.
        filter: CxKxK.
        modulation: IoU-Net's vectors, C each.
        memory: training samples; None without updates.
        monitor: its state machine.
        draws: its random numbers.
        colours: what tells it from look-alikes when it was lost.
        frame_number: frames seen; the first is 1.
        scan: windows of a lost target's search that were already looked at.
        missing: frames in a row in which it was not found.
        candidate: a lost target is being confirmed at `position`.
        sizes: sizes of the last frames in which it was surely seen. A target that is being covered shrinks to the part
            that shows, so a lost one is looked for at the median of these.
        anchor: position, size and scale where it was lost, to which a failed candidate returns.
    """

    position: NDArray[np.float64]
    size: NDArray[np.float64]
    base_size: NDArray[np.float64]
    scale: float
    filter: Tensor
    modulation: Modulation
    memory: SampleMemory | None
    monitor: ConfidenceMonitor
    draws: RandomDraws
    colours: ColourModel
    frame_number: int = 1
    scan: int = 0
    missing: int = 0
    candidate: bool = False
    sizes: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=_TRUSTED_FRAMES))
    anchor: tuple[NDArray[np.float64], NDArray[np.float64], float] | None = None


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
        options: thresholds.
    """
    _, height, width = scores.shape
    center = scores.new_tensor([(width - 1) / 2, (height - 1) / 2])
    columns, rows = torch.arange(width, device=scores.device), torch.arange(height, device=scores.device)

    def maximum(maps: Tensor) -> tuple[Tensor, Tensor]:
        value, index = maps.flatten(1).max(1)
        return value, torch.stack([index % width, index // width], 1).to(scores.dtype)

    first, at = maximum(scores)
    half = options.neighbourhood_scale * target / 2
    low, high = torch.round(at - half), torch.round(at + half)
    inside = ((columns >= low[:, :1]) & (columns <= high[:, :1]))[:, None, :] & (
        (rows >= low[:, 1:]) & (rows <= high[:, 1:])
    )[:, :, None]
    second, at2 = maximum(scores.masked_fill(inside, 0.0))
    cell1, cell2 = at - center, at2 - center
    moved1, moved2 = (cell1 - previous).norm(dim=1), (cell2 - previous).norm(dim=1)
    limit = options.displacement_scale * math.sqrt(width * height) / 2

    rivals = second > options.distractor_threshold * first
    keep = rivals & (moved2 > limit) & (moved1 < limit)
    swap = rivals & (moved2 < limit) & (moved1 > limit)
    hard = (second > options.hard_negative_threshold * first) & (second > options.not_found_threshold)
    flag = torch.where(hard, HARD_NEGATIVE, NORMAL)
    flag = torch.where(rivals, UNCERTAIN, flag)
    flag = torch.where(keep | swap, HARD_NEGATIVE, flag)
    missing = first < options.not_found_threshold
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


class DiMP(NetworkTracker[DiMPTarget]):
    """DiMP tracker.

    Args:
        name: name in the registry.
        options: see `DiMPOptions`.
        network: a network to use instead of loading ``options.weights``; it is copied.

    Raises:
        WeightsError: the weights cannot be loaded.
        DeviceError: the device is not there.
    """

    options_class: ClassVar[type[TrackerOptions]] = DiMPOptions
    options: DiMPOptions

    def __init__(self, name: str, options: DiMPOptions, network: DiMPNet | None = None) -> None:
        super().__init__(name, options)
        self.network = cast(DiMPNet, self.load(network))
        self._refiner = BoxRefiner(self.network.iou_net)
        self._half_pixel = 0.0 if options.compat == "off" else 0.5

    # --- first frame ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[DiMPTarget]:
        """Learn a filter for every box; see `Tracker.start`."""
        return [self.begin(frame, box, RandomDraws(self.options.seed)) for box in boxes]

    @torch.inference_mode()
    def begin(self, frame: Frame, box: Box, draws: RandomDraws) -> DiMPTarget:
        """Learn the filter of one target with given random numbers; `start` draws them from the seed."""
        o, net = self.options, self.network
        position, size = np.array(box.center), np.array([box.w, box.h])
        scale = math.sqrt(size.prod()) * o.search_area_scale / o.image_size
        with self.timer.stage("crop"):
            expanded = o.image_size * (o.augmentation_expansion if o.augmentation else 1)
            if o.compat == "off":
                w = window(position[0], position[1], scale * expanded, expanded)
                patch, scale, origin = self._upload(cut(frame, w), expanded), w.scale, np.array(w.center)
            else:  # centred on the rounded position
                origin = np.round(position - 0.5) + 0.5
                patch, _ = self._published_patch(frame, origin - 0.5, scale * expanded, expanded)
            crops, shifts = self._augment(patch, draws)
        base = size / scale
        center = (position - origin) / scale + o.image_size / 2
        crop_box = self._tensor(np.concatenate([center - base / 2, base]))
        sample_boxes = crop_box.repeat(len(crops), 1)
        sample_boxes[:, :2] += self._tensor(shifts)
        with self.timer.stage("backbone"):
            features = self._extract(crops)
        with self.timer.stage("classify"):
            samples = net.classification_features(features)
        if o.augmentation and o.dropout > 0:
            masks = draws.dropout(2, samples.shape[1], o.dropout).to(samples)
            samples = torch.cat([samples, samples[:1] * masks[:, :, None, None]])
            sample_boxes = torch.cat([sample_boxes, crop_box.expand(2, 4)])
        with self.timer.stage("update"):
            initial = net.classifier.initializer(samples[None], sample_boxes[None])
            filters = self._optimize(initial, samples[None], sample_boxes[None], o.init_iterations)
        with self.timer.stage("refine"):
            identity = BackboneFeatures(*(maps[:1].float() for maps in features))
            modulation = net.iou_net.modulation(*identity, crop_box[None])
        learns = o.update != "none" and o.optimizer != "none"
        memory = SampleMemory.start(samples, sample_boxes, o.memory_size) if learns else None
        return DiMPTarget(
            position,
            size,
            base,
            scale,
            filters[0],
            Modulation(*(v[0] for v in modulation)),
            memory,
            ConfidenceMonitor(self._thresholds()),
            draws,
            ColourModel(frame, box),
        )

    def _thresholds(self) -> ConfidenceThresholds:
        o = self.options
        return ConfidenceThresholds(
            good_score=o.good_score,
            bad_score=o.not_found_threshold,
            max_distractor=o.distractor_threshold,
            min_sharpness=0.25,
            regain_score=o.regain_score,
            regain_ratio=o.regain_ratio,
            regain_after=o.regain_after,
            lost_after=float(o.lost_after),
        )

    def _augment(self, patch: Tensor, draws: RandomDraws) -> tuple[Tensor, NDArray[np.float64]]:
        """First-frame samples from an expanded patch: Sx3xNxN and the shift (x, y) of the target in each, Sx2."""
        o = self.options
        if not o.augmentation:
            return patch, np.zeros((1, 2))
        relative = (np.array(_SHIFTS) * o.image_size / 2).astype(int)
        count = 1 + len(_BLURS) + len(_ROTATIONS)
        random = ((draws.shifts(count) - 0.5) * o.image_size * o.random_shift).long().numpy()
        images = [patch] * 5 + [patch.flip(-1)]
        images += [_blur(patch, *sigma) for sigma in _BLURS]
        images += [_rotate(patch, degrees) for degrees in _ROTATIONS]
        shifts = np.concatenate([np.zeros((1, 2), int), relative, random])  # (y, x)
        crops = [_crop_center(image, o.image_size, shift) for image, shift in zip(images, shifts, strict=True)]
        return torch.cat(crops), shifts[:, ::-1].astype(float)

    # --- later frames --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, frame: Frame, targets: Sequence[DiMPTarget]) -> list[Estimate]:
        """Find every target in one batched pass; see `Tracker.step`."""
        if not targets:
            return []
        o, net = self.options, self.network
        height, width = frame.shape[:2]
        owners: list[int] = []
        windows: list[Window] = []
        patches: list[Tensor] = []
        with self.timer.stage("crop"):
            for i, target in enumerate(targets):
                target.frame_number += 1
                for place in self._search_centers(frame, target):
                    patch, w = self._patch(frame, place, target.scale)
                    owners.append(i)
                    windows.append(w)
                    patches.append(patch)
            crops = patches[0] if len(patches) == 1 else torch.cat(patches)
        with self.timer.stage("backbone"):
            features = self._extract(crops)
        with self.timer.stage("classify"):
            samples = net.classification_features(features)
            filters = torch.stack([targets[i].filter for i in owners])
            scores = apply_filter(samples[:, None], filters)[:, 0]
            geometry = self._tensor(_geometry(windows, [targets[i] for i in owners]))
            origin, scale, position, size = geometry.split([2, 1, 2, 2], 1)
            cell = scale * STRIDE
            found = localize(scores, (position - origin) / cell, size / cell, o)
        with self.timer.stage("refine"):
            extent = scores.new_tensor([width, height])
            margin = (o.inside_ratio - 0.5) * size
            # A part of the target stays inside the image.
            center = torch.maximum(torch.minimum(found.cell * cell + origin, extent - margin), margin)
            crop_size = size / scale
            corner = (center - origin) / scale + o.image_size / 2 - crop_size / 2
            vectors = Modulation(
                torch.stack([targets[i].modulation.stride8 for i in owners]),
                torch.stack([targets[i].modulation.stride16 for i in owners]),
            )
            jitter = torch.stack([targets[i].draws.jitter(o.proposals) for i in owners])
            refined, overlap = self._refine(
                features, vectors, torch.cat([corner, crop_size], 1), self._to_device(jitter)
            )
            numbers = torch.stack([found.flag, found.peak, found.second, found.focus, overlap], 1)
            packed = torch.cat([numbers, center, refined, scores.flatten(1)], 1)
            host = packed.double().cpu().numpy()  # the frame's one transfer back
        estimates: list[Estimate] = []
        learners: list[tuple[DiMPTarget, int]] = []
        for i, target in enumerate(targets):
            rows = [r for r, owner in enumerate(owners) if owner == i]
            best = rows[0]
            if len(rows) > 1:  # a scan: anything may score high on what the filter has never seen
                best = max(
                    rows, key=lambda r: (self._alike(frame, targets[owners[r]], windows[r], host[r]), host[r, 1])
                )
            estimate, flag = self._conclude(frame, target, windows[best], host[best], scores.shape[1:])
            estimates.append(estimate)
            learn = flag in (NORMAL, HARD_NEGATIVE) and estimate.state is not TrackState.LOST
            if target.memory is not None and learn:
                w = windows[best]
                at_crop = (target.position - np.array(w.center)) / w.scale + o.image_size / 2
                crop_size = target.size / w.scale
                box = self._tensor(np.concatenate([at_crop - crop_size / 2, crop_size]))
                rate = o.hard_negative_learning_rate if flag == HARD_NEGATIVE else o.learning_rate
                target.memory.add(samples[best], box, rate, o.init_samples_weight)
            if target.memory is not None:
                steps = 0
                if learn and flag == HARD_NEGATIVE:
                    steps = o.hard_negative_iterations
                elif learn and (target.frame_number - 1) % o.update_interval == 0:
                    steps = o.update_iterations
                if steps:
                    learners.append((target, steps))
        with self.timer.stage("update"):
            self._update(learners)
        return estimates

    def _search_centers(self, frame: Frame, target: DiMPTarget) -> list[NDArray[np.float64]]:
        """Where to look: around the target; for one lost for a while also where its colours are, and all over."""
        centers = [target.position]
        count = self.options.redetect_windows
        # At first a hidden target is expected where it vanished: elsewhere there are only look-alikes.
        if target.candidate or target.monitor.frames_lost <= self.options.redetect_after or count == 0:
            return centers
        height, width = frame.shape[:2]
        side = target.scale * self.options.image_size
        places = scan_places(width, height, side, float(target.size.max()), target.position)
        coloured = target.colours.propose(frame, (float(target.size[0]), float(target.size[1])), count - count // 2)
        centers += [np.array(place) for place in coloured]
        for _ in range(min(count // 2, len(places))):
            centers.append(places[target.scan % len(places)])
            target.scan += 1
        return centers

    def _found_box(self, target: DiMPTarget, w: Window, row: NDArray[np.float64]) -> Box:
        """The refined box of one window in image pixels; one of the target's size where there is none."""
        center, box = row[5:7], row[7:11]
        if not np.isfinite(box).all():
            return Box.from_center(float(center[0]), float(center[1]), float(target.size[0]), float(target.size[1]))
        middle = (box[:2] + box[2:] / 2 - self.options.image_size / 2 + self._half_pixel) * w.scale + np.array(w.center)
        return Box.from_center(*(float(v) for v in (*middle, *(box[2:] * w.scale))))

    def _alike(self, frame: Frame, target: DiMPTarget, w: Window, row: NDArray[np.float64]) -> bool:
        """Whether what was found in one window has the target's colours."""
        found = self._found_box(target, w, row)
        return target.colours.similarity(frame, found) >= self.options.regain_colour

    def _refine(
        self, features: BackboneFeatures, vectors: Modulation, boxes: Tensor, jitter: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refine a box a target by maximising the predicted overlap (section 3.5).

        Args:
            features: backbone maps of B crops.
            vectors: modulation of their targets.
            boxes: Bx4 (x, y, w, h in crop pixels).
            jitter: BxPx4 in [0, 1), the proposals' random numbers.

        Returns:
            The mean of the best boxes, Bx4 (NaN where none is left), and its predicted overlap, B in [0, 1].
        """
        o = self.options
        if o.refinement_iterations == 0:
            return boxes, torch.full_like(boxes[:, 0], 0.5)
        maps = IoUFeatures(*(m.float() for m in self.network.iou_net.features(*features)))
        sizes, corner = boxes[:, None, 2:], boxes[:, None, :2]
        factor = sizes.prod(-1, keepdim=True).sqrt() * boxes.new_tensor(
            [o.proposal_jitter_position] * 2 + [o.proposal_jitter_size] * 2
        )
        offset = (jitter - 0.5) * factor
        new_sizes = torch.maximum(sizes + offset[..., 2:], sizes.amin(-1, keepdim=True) / 3)
        new_centers = corner + sizes / 2 + offset[..., :2]
        proposals = torch.cat([boxes[:, None], torch.cat([new_centers - new_sizes / 2, new_sizes], -1)], 1)
        for _ in range(o.refinement_iterations):
            overlap, gradient = self._refiner(vectors, maps, proposals)
            proposals = proposals + o.refinement_step * gradient * proposals[..., 2:].repeat(1, 1, 2)
        proposals = torch.cat([proposals[..., :2], proposals[..., 2:].clamp_min(1)], -1)
        ratio = proposals[..., 2] / proposals[..., 3]
        valid = (ratio < o.maximal_aspect_ratio) & (ratio > 1 / o.maximal_aspect_ratio)
        ranked = overlap.masked_fill(~valid, -math.inf)
        best, index = ranked.topk(min(o.refinement_average, ranked.shape[1]), 1)
        kept = torch.isfinite(best)
        weight = kept / kept.sum(1, keepdim=True)  # 0 / 0 where no box is left
        chosen = proposals.gather(1, index[..., None].expand(-1, -1, 4))
        mean = (chosen * weight[..., None]).sum(1)
        quality = (torch.where(kept, best, 0.0) * weight).sum(1)
        return mean, (quality.nan_to_num(-1.0).clamp(-1, 1) + 1) / 2

    def _conclude(
        self, frame: Frame, target: DiMPTarget, w: Window, row: NDArray[np.float64], shape: Sequence[int]
    ) -> tuple[Estimate, int]:
        """Move the target to what was found in one window, and decide its state."""
        o = self.options
        height, width = frame.shape[:2]
        flag, peak, second, focus, overlap = int(row[0]), *row[1:5]
        center, scores = row[5:7], row[11:].reshape(*shape)
        found = self._found_box(target, w, row)
        score = float(np.clip(peak, 0, 1))
        was_lost = target.monitor.state is TrackState.LOST
        exact = o.compat == "off"
        moved = float(np.linalg.norm(center - target.position)) / math.sqrt(target.size.prod())
        suspicious = exact and not was_lost and (moved > o.jump or target.missing >= _VANISHED)
        if (suspicious and score < o.regain_ratio * target.monitor.typical) or (
            (suspicious or was_lost) and flag != NOT_FOUND and not self._alike(frame, target, w, row)
        ):
            # Where a target is covered or leaves, the next best peak is a look-alike's.
            flag, score = NOT_FOUND, min(score, o.not_found_threshold / 2)
        target.missing = target.missing + 1 if flag == NOT_FOUND else 0
        if flag != NOT_FOUND and (not was_lost or score >= target.monitor.needed):
            target.position = np.array(found.center)
            target.size = target.size + (o.size_rate if exact else 1.0) * (np.array(found[2:]) - target.size)
            target.scale = self._scale(target, width, height)
            target.candidate = was_lost
        elif target.candidate and target.anchor is not None:
            # The candidate did not hold: go on looking where the target was last seen.
            target.position, target.size, target.scale = target.anchor
            target.candidate = False
        estimate_box = Box.from_center(*map(float, target.position), *map(float, target.size))
        visible = estimate_box.clip(width, height).area / max(estimate_box.area, 1e-9)
        cues = Cues(
            score=score if visible > o.inside_ratio + 0.05 else min(score, o.not_found_threshold),
            distractor=float(np.clip(second / peak, 0, 1)) if peak > 0 else 1.0,
            sharpness=float(focus),
        )
        state = target.monitor.update(cues)
        if state is not TrackState.LOST:
            target.candidate = False
            if target.monitor.frames_since_seen == 0:
                target.sizes.append(target.size)
                target.colours.learn(frame, estimate_box, _COLOUR_RATE)
        elif not was_lost:
            if target.sizes:
                target.size = np.median(target.sizes, 0)
                target.scale = self._scale(target, width, height)
            target.anchor = (target.position, target.size, target.scale)
        region = Box.from_center(*w.center, shape[1] * STRIDE * w.scale, shape[0] * STRIDE * w.scale)
        heatmap = np.clip(scores, 0, 1).astype(np.float32) if o.heatmap else None
        named = {
            "peak": float(peak),
            "second_peak": float(second),
            "distractor": cues.distractor,
            "sharpness": cues.sharpness,
            "overlap": float(overlap),
            "visible": float(visible),
            "moved": moved,
        }
        return Estimate(estimate_box, score, state, region, heatmap, named), flag

    def _scale(self, target: DiMPTarget, width: int, height: int) -> float:
        """Image pixels a crop pixel for the target's size; the search region stays between 10 px and three images."""
        scale = math.sqrt(target.size.prod() / target.base_size.prod())
        return min(max(scale, 10 / self.options.image_size), 3 * max(width, height) / self.options.image_size)

    def _update(self, learners: Sequence[tuple[DiMPTarget, int]]) -> None:
        """Optimise the filters of targets on their memories; those that take as many steps go together."""
        for steps in sorted({s for _, s in learners}):
            group = [t for t, s in learners if s == steps]
            memories = [t.memory for t in group if t.memory is not None]
            count = max(m.count for m in memories)
            if len(memories) == 1:
                features, boxes = memories[0].features[None, :count], memories[0].boxes[None, :count]
            else:
                features = torch.stack([m.features[:count] for m in memories])
                boxes = torch.stack([m.boxes[:count] for m in memories])
            sample_weights = self._tensor(np.stack([m.weights[:count] for m in memories]))
            filters = torch.stack([t.filter for t in group])
            filters = self._optimize(filters, features, boxes, steps, sample_weights)
            for target, new in zip(group, filters, strict=True):
                target.filter = new

    def _optimize(
        self, filters: Tensor, features: Tensor, boxes: Tensor, steps: int, sample_weights: Tensor | None = None
    ) -> Tensor:
        """Filters after `steps` of the chosen optimizer; arguments as in `FilterOptimizer.forward`."""
        o = self.options
        if o.optimizer == "none":
            return filters
        length = o.gradient_step if o.optimizer == "gradient" else None
        iterates: list[Tensor] = self.network.classifier.optimizer(
            filters, features, boxes, steps, sample_weights, step_length=length
        )
        return iterates[-1]

    # --- crops ---------------------------------------------------------------------------------------------------

    def _patch(self, frame: Frame, center: NDArray[np.float64], scale: float) -> tuple[Tensor, Window]:
        """RGB crop 1x3xNxN in [0, 255] around `center`, and its window."""
        o = self.options
        if o.compat == "off":
            w = window(center[0], center[1], scale * o.image_size, o.image_size)
            return self._upload(cut(frame, w), o.image_size), w
        return self._published_patch(frame, np.trunc(center - 0.5), scale * o.image_size, o.image_size)

    def _published_patch(
        self, frame: Frame, index: NDArray[np.float64], side: float, output: int
    ) -> tuple[Tensor, Window]:
        """The published crop: corners by (s - 1) / 2, cut at fractions of pixels that padding truncates."""
        step = max(int(side / output - 0.1), 1)
        offset = (index % step).astype(int)
        middle = (index - offset) / step
        size = max(round(side / step), 2)
        before = (size - 1) // 2 if self.options.compat == "published-2019" else (size - 1) / 2
        after = size // 2 if self.options.compat == "published-2019" else size / 2
        low, high = middle - before, middle + after + 1
        grid = frame[offset[1] :: step, offset[0] :: step]
        # Padding by -low and by high - extent truncates both towards zero.
        left, top = (math.trunc(v) for v in low)
        right, bottom = (n + math.trunc(v - n) for v, n in zip(high, grid.shape[1::-1], strict=True))
        columns = np.clip(np.arange(left, right), 0, grid.shape[1] - 1)
        rows = np.clip(np.arange(top, bottom), 0, grid.shape[0] - 1)
        patch = self._upload(grid[rows[:, None], columns], output)
        # Its centre in index coordinates is (low + high - 1) / 2; ours lie half a pixel further.
        extent = float(high[0] - low[0]) * step
        cx, cy = (step * (low + high) - 1) / 2 + 0.5
        corner = (cx - extent / 2, cy - extent / 2)
        return patch, Window(*corner, extent, left, top, size, step, int(offset[0]), int(offset[1]), output)

    def _upload(self, patch: NDArray[np.uint8], output: int) -> Tensor:
        """A BGR uint8 patch to the device, as RGB float32 in [0, 255] of `output` pixels a side: 1x3xNxN."""
        image = self._to_device(torch.from_numpy(np.ascontiguousarray(patch)))
        image = image.permute(2, 0, 1).flip(0)[None].float()
        if image.shape[-2:] != (output, output):
            image = F.interpolate(image, (output, output), mode="bilinear", align_corners=False)
        return image

    def _extract(self, crops: Tensor) -> BackboneFeatures:
        return self.network.extract(normalise(crops).to(self._dtype, memory_format=torch.channels_last))


def _geometry(windows: Sequence[Window], targets: Sequence[DiMPTarget]) -> NDArray[np.float64]:
    """Centre (x, y) and scale of each window, position (x, y) and size (w, h) of the target sought in it: Bx7."""
    rows = [[*w.center, w.scale, *t.position, *t.size] for w, t in zip(windows, targets, strict=True)]
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
