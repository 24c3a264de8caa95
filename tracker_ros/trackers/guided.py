"""Detectors as trackers: target-guided SSD and Faster R-CNN whose heads are adapted to the target while it is tracked.

Huang et al., "Bridging the Gap Between Detection and Tracking", ICCV 2019, section 3.4; the networks are
`tracker_ros.networks.ssd` and `faster_rcnn`, adaptation is `tracker_ros.networks.adaptation`. The exemplar guides the
detector to what looks like the target; five gradient steps on augmented samples of the first frame then turn its head
into one that tells the target from what is around it. Later frames that surely show the target become samples, and
every `update_interval` frames the head takes a step on them, anchored at what the first frame left (eq. 4).

The paper leaves open the interval T, the weight lambda of the anchor, which samples an update sees and what counts as
confident; the options say what we chose. A frame goes: cut windows (uint8) - upload - backbone - guidance - heads -
select - one transfer back, for all targets at once; then the updates that are due.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker_ros.geometry.anchors import overall_size, overlap
from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window, window
from tracker_ros.geometry.detection import cosine_window
from tracker_ros.networks.adaptation import adapt, anchored_update, call, head_parameters
from tracker_ros.networks.detection import Candidates, Detections, GuidedDetector
from tracker_ros.networks.detection_loss import Samples, around, concatenate, make_samples, support_loss
from tracker_ros.trackers.base import Estimate, Frame, TrackerOptions, TrackState, option
from tracker_ros.trackers.deep import Best, SearchOptions, SearchTarget, SearchTracker
from tracker_ros.trackers.state import ConfidenceMonitor

#: How far crops of the first frame are shifted, over the target's size, and deviation of the logarithm of their zoom.
INIT_SHIFT, INIT_SCALE = 1.0, 0.15
#: Cells a side of the heatmap.
_HEATMAP_CELLS = 16
#: Boxes around the target that a sample of a two-stage detector has beside its proposals.
_EXTRA_BOXES = 16


@dataclass(frozen=True, kw_only=True)
class GuidedOptions(SearchOptions):
    """Options of the guided detectors.

    The paper's ablations are options too: ``update=maml`` is "no anchored updating", ``adapt_regression=false`` "no
    regression fine-tuning", ``network=guided_ssd18_single`` "no multi-resolution", and `weights` of the recipe's
    conventionally trained head make it "brute-force gradient descent".
    """

    network: str = option(
        "guided_ssd18",
        "architecture of the network",
        choices=("guided_ssd18", "guided_ssd18_single", "guided_frcnn18", "guided_ssd_vgg16", "guided_frcnn_r50"),
    )
    update: str = option(
        "maml_anchored",
        "online learning: none (the first frame only), maml (continuous), or maml_anchored (eq. 4)",
        choices=("none", "maml", "maml_anchored"),
    )
    seed: int = option(0, "seed of the first frame's augmentation", low=0)

    inner_rate: float = option(1.0, "factor of the step lengths, which are learned", low=0.0, high=100.0)
    gradient_limit: float = option(
        10.0, "longest gradient of a step; with the anchor it bounds how far a head can drift", low=1e-3, high=1e6
    )
    adapt_regression: bool = option(True, "adapt the regression along with the classification")
    update_regression: bool = option(
        True, "adapt it in updates too; false: on the first frame only, the one whose box is not the tracker's own"
    )
    init_samples: int = option(16, "augmented samples of the first frame", low=1, high=64)
    init_shift: float = option(INIT_SHIFT, "largest offset of the target in them, over its size", low=0.0, high=2.0)
    init_scale: float = option(INIT_SCALE, "deviation of the logarithm of their zoom", low=0.0, high=0.5)
    init_iterations: int = option(5, "gradient steps on the first frame; 0: guidance alone", low=0, high=50)
    update_interval: int = option(5, "frames between updates, T; 1: each frame", low=1, high=1000)
    update_iterations: int = option(1, "gradient steps of an update", low=1, high=20)
    update_samples: int = option(4, "samples of an update, the newest always among them", low=1, high=64)
    memory_size: int = option(16, "samples in memory", low=1, high=500)
    anchor_weight: float = option(0.3, "weight lambda of the first frame's parameters (eq. 4)", low=0.0, high=1.0)
    learn_score: float = option(0.7, "score of a frame that is learned from", low=0.0, high=1.0)

    window_influence: float = option(0.3, "share of the cosine window in the ranking", low=0.0, high=1.0)
    penalty_scale: float = option(0.55, "sigma of the penalty of changes of size and ratio", low=0.01, high=100.0)
    size_rate: float = option(0.275, "how fast the size follows", low=0.0, high=1.0)


PRESETS: dict[str, GuidedOptions] = {
    # Scores of the compact detectors' adapted heads are close to 0 or 1; what was chosen how is in the models' cards.
    "guided_ssd": GuidedOptions(score_scale=0.6, score_shift=-0.2, learn_score=0.8, update_samples=8),
    "guided_frcnn": GuidedOptions(network="guided_frcnn18", score_scale=0.6, score_shift=-0.6, learn_score=0.6),
    "guided_ssd18_single": GuidedOptions(network="guided_ssd18_single"),
    "guided_ssd_vgg16": GuidedOptions(network="guided_ssd_vgg16"),
    "guided_frcnn_r50": GuidedOptions(network="guided_frcnn_r50"),
}


@dataclass(kw_only=True)
class GuidedTarget(SearchTarget):
    """Everything that a guided detector knows of one target.

    Attributes:
        guidance: D, what the exemplar tells the detector.
        parameters: of the target's own head, theta_t.
        anchor: those that the first frame left, theta_0 of eq. 4; the same for the whole track.
        memory: samples of frames that surely showed the target, one crop each, newest last.
        fresh: samples since the last update.
        frame_number: frames seen; the first is 1.
        updates: updates made since the first frame.
    """

    guidance: Tensor
    parameters: dict[str, Tensor]
    anchor: dict[str, Tensor]
    memory: deque[Samples] = field(default_factory=deque)
    fresh: int = 0
    frame_number: int = 1
    updates: int = 0


class Selection(NamedTuple):
    """The best box in each of B crops.

    Attributes:
        box: Bx4 (cx, cy, w, h in crop pixels).
        score: B, its probability of being the target.
        second: B, the best score of another object.
        focus: B, share of the squared scores that belongs to boxes of the same object.
    """

    box: Tensor
    score: Tensor
    second: Tensor
    focus: Tensor


def change_penalty(boxes: Tensor, sizes: Tensor, sigma: float) -> Tensor:
    """Laplace penalty of a change of size and ratio (eq. 5): ``exp(-|d_r + d_s - 1| / sigma)``.

    d_r and d_s are the changes of ratio and scale as factors of at least one. Without a change the equation gives
    ``exp(-1 / sigma)``; this is divided out, so that the penalty then is 1 and a mixture with a window means the same
    for every sigma.

    Args:
        boxes: BxNx4 (cx, cy, w, h).
        sizes: Bx2 (w, h), the target's size in the last frame.
        sigma: the scaling factor.

    Returns:
        BxN in (0, 1].
    """
    scale = overall_size(boxes[..., 2:]) / overall_size(sizes)[:, None]
    ratio = (boxes[..., 2] / boxes[..., 3]) / (sizes[:, 0] / sizes[:, 1])[:, None]
    change = torch.maximum(ratio, 1 / ratio) + torch.maximum(scale, 1 / scale) - 1
    return torch.exp(-(change - 1).abs() / sigma)


def select(
    scores: Tensor, boxes: Tensor, sizes: Tensor, influence: Tensor, side: float, options: GuidedOptions
) -> Selection:
    """Rank the detections before any suppression and find the best (section 3.4, target localization).

    Args:
        scores: BxN probabilities of being the target; 0 where there is no candidate.
        boxes: BxNx4 (cx, cy, w, h in crop pixels).
        sizes: Bx2 (w, h) of the targets in the last frame, crop pixels.
        influence: B, share of the cosine window.
        side: of the crop, pixels.
        options: the rest.
    """
    scores = scores.nan_to_num(0.0)
    penalty = change_penalty(boxes, sizes, options.penalty_scale).nan_to_num(0.0)
    share = influence[:, None]
    ranking = scores * penalty * (1 - share) + cosine_window(boxes, side).nan_to_num(0.0) * share * (scores > 0)
    best = ranking.argmax(1, keepdim=True)
    box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    same = overlap(boxes, box) >= options.suppression_overlap
    energy = scores.square()
    return Selection(
        box[:, 0],
        scores.gather(1, best)[:, 0],
        scores.masked_fill(same, 0.0).amax(1),
        (energy * same).sum(1) / energy.sum(1).clamp_min(1e-12),
    )


def response_map(scores: Tensor, boxes: Tensor, side: float, cells: int = _HEATMAP_CELLS) -> Tensor:
    """The highest score of the boxes centred in each cell of a grid over the crop: Bx`cells`x`cells`.

    Args:
        scores: BxN.
        boxes: BxNx4 (cx, cy, w, h in crop pixels).
        side: of the crop, pixels.
        cells: cells a side.
    """
    at = (boxes[..., :2] * (cells / side)).nan_to_num(0.0).floor().clamp(0, cells - 1).long()
    index = at[..., 1] * cells + at[..., 0]
    grid = scores.new_zeros(len(scores), cells * cells).scatter_reduce(1, index, scores, "amax")
    return grid.unflatten(1, (-1, cells))


class GuidedTracker(SearchTracker[GuidedTarget]):
    """A guided detector as a tracker.

    Args:
        name: name in the registry.
        options: see `GuidedOptions`.
        network: a network to use instead of loading ``options.weights``; it is copied.

    Raises:
        WeightsError: the weights cannot be loaded.
        DeviceError: the device is not there.
    """

    options_class: ClassVar[type[TrackerOptions]] = GuidedOptions
    options: GuidedOptions

    def __init__(self, name: str, options: GuidedOptions, network: GuidedDetector | None = None) -> None:
        super().__init__(name, options)
        self.network = cast(GuidedDetector, self.load(network))
        self._theta = {name: value.detach() for name, value in head_parameters(self.network.head).items()}
        self._rates = {name: float(rate) for name, rate in self.network.inner_rates(options.inner_rate).items()}
        self._regression = 1.0 if options.adapt_regression else 0.0
        self._update_regression = self._regression if options.update_regression else 0.0

    # --- first frame ---------------------------------------------------------------------------------------------

    # Not `inference_mode`: tensors made under it cannot take part in the gradients of the adaptation.
    @torch.no_grad()
    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[GuidedTarget]:
        """Embed every box's exemplar and adapt a head to it; see `Tracker.start`."""
        return [self._begin(frame, box) for box in boxes]

    def _begin(self, frame: Frame, box: Box) -> GuidedTarget:
        o, net = self.options, self.network
        position, size = np.array(box.center), np.array([box.w, box.h])
        with self.timer.stage("crop"):
            exemplar = self._exemplar_window(position, size)
            image = self._pixels([self._crop(frame, exemplar)])
            inside = self._tensor(_inside(exemplar, position, size)[None])
        with self.timer.stage("backbone"):
            guidance = net.embed(image, inside)
        theta = self._theta
        if o.init_iterations:
            with self.timer.stage("crop"):
                crops, targets = self._augment(frame, position, size)
            with self.timer.stage("backbone"):
                maps = net.features(crops)
            with self.timer.stage("guide"):
                guided = net.guided(maps, guidance.expand(len(crops), -1))
                candidates = net.candidates(guided, self._around(targets))
            with self.timer.stage("update"):
                loss = support_loss(net.head, make_samples(net, candidates, targets), self._regression)
                theta = adapt(loss, theta, self._rates, o.init_iterations, limit=o.gradient_limit)
        return GuidedTarget(
            position=position,
            size=size,
            guidance=guidance[0],
            parameters=theta,
            anchor=theta,
            monitor=ConfidenceMonitor(o.thresholds()),
            memory=deque(maxlen=o.memory_size),
        )

    def _augment(self, frame: Frame, position: NDArray[np.float64], size: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """First-frame samples by random flips and crops: Sx3xNxN, and the target in each, Sx4 (cx, cy, w, h).

        The first is the search crop as it is.
        """
        o, side = self.options, self.network.config.search
        rng = np.random.default_rng(o.seed)
        extent = self._search_side(size)
        crops, targets = [], []
        for number in range(o.init_samples):
            zoom, shift, flip = 1.0, np.zeros(2), False
            if number:
                zoom = math.exp(rng.normal(0.0, o.init_scale))
                shift = rng.uniform(-o.init_shift, o.init_shift, 2) * math.sqrt(size.prod())
                flip = bool(rng.random() < 0.5)
            w = _window(position + shift, extent * zoom, side)
            patch, target = self._crop(frame, w), _inside(w, position, size)
            if flip:
                patch, target[0] = patch[:, ::-1], side - target[0]
            crops.append(patch)
            targets.append(target)
        return self._pixels(crops), self._tensor(np.stack(targets))

    # --- later frames --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, frame: Frame, targets: Sequence[GuidedTarget]) -> list[Estimate]:
        """Find every target in one batched pass, then make the updates that are due; see `Tracker.step`."""
        if not targets:
            return []
        o, net = self.options, self.network
        height, width = frame.shape[:2]
        owners: list[int] = []
        windows: list[Window] = []
        influence: list[float] = []
        with self.timer.stage("crop"):
            for i, target in enumerate(targets):
                target.frame_number += 1
                side = self._search_side(target.size)
                for place in self._search_centers(target, side, width, height):
                    owners.append(i)
                    windows.append(_window(place, side, net.config.search))
                    # A lost target can be anywhere in the region.
                    influence.append(0.0 if target.lost and o.redetect_windows else o.window_influence)
            batch = self._pixels([self._crop(frame, w) for w in windows])
        with self.timer.stage("backbone"):
            maps = net.features(batch)
        with self.timer.stage("guide"):
            guided = net.guided(maps, torch.stack([targets[i].guidance for i in owners]))
            candidates = net.candidates(guided)
        with self.timer.stage("head"):
            found = self._detect(candidates, [targets[i] for i in owners])
        with self.timer.stage("select"):
            extent = float(net.config.search)
            scores = self._calibrated((found.scores.float() * candidates.valid).nan_to_num(0.0))
            boxes = net.decode(found.loc.float(), candidates.boxes)
            sizes = np.stack([targets[i].size / w.scale for i, w in zip(owners, windows, strict=True)])
            best = select(scores, boxes, self._tensor(sizes), self._tensor(np.array(influence)), extent, o)
            parts = [torch.stack([best.score, best.second, best.focus], 1), best.box]
            if o.heatmap:
                parts.append(response_map(scores, boxes, extent).flatten(1))
            host = torch.cat(parts, 1).double().cpu().numpy()  # the frame's one transfer back
        estimates = []
        for i, target in enumerate(targets):
            rows = [r for r, owner in enumerate(owners) if owner == i]
            row = max(rows, key=lambda r: float(host[r, 0]))
            estimates.append(self._conclude(target, windows[row], host[row], (width, height)))
            if o.update != "none" and self._confident(target, estimates[-1]):
                self._remember(target, [part[row : row + 1] for part in guided], windows[row])
        with self.timer.stage("update"):
            for target in targets:
                if target.fresh and (target.frame_number - 1) % o.update_interval == 0:
                    self._learn(target)
        return estimates

    def _detect(self, candidates: Candidates, owners: Sequence[GuidedTarget]) -> Detections:
        """Every crop's candidates by the head of its own target."""
        parts = []
        start = 0
        while start < len(owners):
            stop = start + 1
            while stop < len(owners) and owners[stop] is owners[start]:
                stop += 1
            inputs = (part[start:stop] for part in candidates.inputs)
            found = call(self.network.head, owners[start].parameters, *inputs)
            assert isinstance(found, Detections)
            parts.append(found)
            start = stop
        if len(parts) == 1:
            return parts[0]
        return Detections(torch.cat([part.cls for part in parts]), torch.cat([part.loc for part in parts]))

    def _conclude(self, target: GuidedTarget, w: Window, row: NDArray[np.float64], image: tuple[int, int]) -> Estimate:
        """Move the target to the box found in one window, and decide its state."""
        score, second, focus = (float(v) for v in row[:3])
        box = np.concatenate([np.array([w.x, w.y]) + row[3:5] * w.scale, row[5:7] * w.scale])
        heatmap = None
        if self.options.heatmap:
            heatmap = np.clip(row[7:].reshape(_HEATMAP_CELLS, -1), 0, 1).astype(np.float32)
        return self._settle(target, Best(box, score, self.options.size_rate, second, focus), image, w.box, heatmap)

    # --- online learning -----------------------------------------------------------------------------------------

    def _confident(self, target: GuidedTarget, estimate: Estimate) -> bool:
        """Whether a frame is learned from: the state machine trusts the track and took the frame for a good one."""
        trusted = estimate.state is TrackState.TRACKING and target.monitor.frames_since_seen == 0
        return trusted and estimate.score >= self.options.learn_score

    def _remember(self, target: GuidedTarget, guided: Sequence[Tensor], w: Window) -> None:
        """Store a crop's guided maps, labelled by the box that was found, as a sample."""
        box = self._tensor(_inside(w, target.position, target.size)[None])
        candidates = self.network.candidates(guided, self._around(box))
        target.memory.append(make_samples(self.network, candidates, box).clone())
        target.fresh = min(target.fresh + 1, self.options.memory_size)

    def _around(self, boxes: Tensor) -> Tensor | None:
        """Boxes around the targets, for a two-stage detector to learn from."""
        if not self.network.two_stage:
            return None
        generator = torch.Generator(self._torch_device).manual_seed(self.options.seed)
        return around(boxes, _EXTRA_BOXES, generator)

    def _learn(self, target: GuidedTarget) -> None:
        """One update: the newest sample and others spread over the memory (section 3.4; eq. 4 where anchored)."""
        o = self.options
        count = len(target.memory)
        chosen = np.unique(np.linspace(0, count - 1, min(o.update_samples, count)).round().astype(int))
        if o.update_samples == 1:
            chosen = np.array([count - 1])
        samples = concatenate([target.memory[int(i)] for i in chosen])
        loss = support_loss(self.network.head, samples, self._update_regression)
        weight = o.anchor_weight if o.update == "maml_anchored" else 0.0
        target.parameters = anchored_update(
            loss, target.anchor, target.parameters, self._rates, weight, o.update_iterations, limit=o.gradient_limit
        )
        target.fresh = 0
        target.updates += 1

    # --- crops ---------------------------------------------------------------------------------------------------

    def _search_side(self, size: NDArray[np.float64]) -> float:
        """Side of the search region of a target of `size`, image pixels."""
        return self.network.config.search_context * math.sqrt(size.prod())

    def _exemplar_window(self, position: NDArray[np.float64], size: NDArray[np.float64]) -> Window:
        config = self.network.config
        return _window(position, config.exemplar_context * math.sqrt(size.prod()), config.exemplar)


def _window(center: NDArray[np.float64], side: float, output: int) -> Window:
    return window(float(center[0]), float(center[1]), side, output)


def _inside(w: Window, position: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """A target's box in the crop of a window: (cx, cy, w, h in crop pixels)."""
    return np.concatenate([(position - np.array([w.x, w.y])) / w.scale, size / w.scale])
