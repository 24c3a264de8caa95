"""Detectors as trackers: target-guided SSD and Faster R-CNN whose heads are adapted to the target while it is tracked.

Huang et al., "Bridging the Gap Between Detection and Tracking", ICCV 2019, section 3.4; the networks are
`tracker_ros.networks.ssd` and `faster_rcnn`, adaptation is `tracker_ros.networks.adaptation`. The exemplar guides the
detector to what looks like the target; five gradient steps on augmented samples of the first frame then turn its head
into one that tells the target from what is around it. Later frames that surely show the target become samples, and
every `update_interval` frames the head takes a step on them, anchored at what the first frame left (eq. 4).

The paper leaves open the interval T, the weight lambda of the anchor, which samples an update sees and what counts as
confident; design and options say what we chose. The frame is `tracker_ros.trackers.search`'s.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad

from tracker_ros.geometry.anchors import overall_size
from tracker_ros.geometry.boxes import MIN_SIDE, Box
from tracker_ros.geometry.crops import Window, window
from tracker_ros.geometry.detection import cosine_window
from tracker_ros.networks.adaptation import adapt, anchored_update, call, head_parameters, mean
from tracker_ros.networks.detection import Candidates, Detections, GuidedDetector
from tracker_ros.networks.detection_loss import Samples, around, concatenate, drawn_around, make_samples, support_loss
from tracker_ros.trackers.base import Estimate, Frame, TrackState, option
from tracker_ros.trackers.search import (
    Look,
    SearchDesign,
    SearchOptions,
    SearchTracker,
    Seen,
    Selection,
    Settled,
    calibrated,
    followed,
    resample,
    select_best,
)
from tracker_ros.trackers.target import Found, Target, View

#: How far crops of the first frame are shifted, over the target's size, and deviation of the logarithm of their zoom.
INIT_SHIFT, INIT_SCALE = 1.0, 0.15
#: Sigma of the penalty of changes of size and ratio (eq. 5).
_PENALTY_SCALE = 0.55
#: Cells a side of the heatmap.
_HEATMAP_CELLS = 16
#: Boxes around the target that a sample of a two-stage detector has beside its proposals.
_EXTRA_BOXES = 16


@dataclass(frozen=True, kw_only=True)
class GuidedDesign(SearchDesign):
    """Design of the guided detectors: what we chose where the paper leaves it open, and its ablations.

    ``adapt_regression=false`` is "no regression fine-tuning", ``network=guided_ssd18_single`` "no multi-resolution",
    and the weights of the recipe's conventionally trained head make it "brute-force gradient descent"; ``update=maml``
    (an option) is "no anchored updating".
    """

    network: str = option(
        "guided_ssd18",
        "architecture of the network",
        choices=(
            *("guided_ssd18", "guided_ssd_lite0", "guided_ssd18_single", "guided_ssd_vgg16"),
            *("guided_frcnn18", "guided_frcnn_lite0", "guided_frcnn_r50"),
        ),
    )
    score_scale: float = option(
        1.0, "factor of the log-odds of the network's scores (rule calibrate)", low=0.01, high=100.0
    )
    score_shift: float = option(0.0, "what is added to the scaled log-odds (rule calibrate)", low=-100.0, high=100.0)
    inner_rate: float = option(1.0, "factor of the step lengths, which are learned", low=0.0, high=100.0)
    gradient_limit: float = option(
        10.0, "longest gradient of a step; with the anchor it bounds how far a head can drift", low=1e-3, high=1e6
    )
    adapt_regression: bool = option(True, "adapt the regression along with the classification")
    update_regression: bool = option(
        True, "adapt it in updates too; false: on the first frame only, the one whose box is not the tracker's own"
    )
    init_samples: int = option(16, "augmented samples of the first frame", low=1, high=64)
    init_iterations: int = option(5, "gradient steps on the first frame; 0: guidance alone", low=0, high=50)
    update_iterations: int = option(1, "gradient steps of an update", low=1, high=20)
    update_samples: int = option(4, "samples of an update, the newest always among them", low=1, high=64)
    memory_size: int = option(16, "samples in memory", low=1, high=500)


@dataclass(frozen=True, kw_only=True)
class GuidedOptions(SearchOptions):
    """Options of the guided detectors."""

    update: str = option(
        "maml_anchored",
        "online learning: none (the first frame only), maml (continuous), or maml_anchored (eq. 4)",
        choices=("none", "maml", "maml_anchored"),
    )
    seed: int = option(0, "seed of the first frame's augmentation", low=0)
    update_interval: int = option(
        5, "frames between updates, T; higher: cheaper, and slower to learn a new look", low=1, high=1000, live=True
    )
    learn_score: float = option(
        0.7,
        "score of a frame that is learned from; higher: less is learned, and less that is wrong",
        low=0.0,
        high=1.0,
        live=True,
    )
    anchor_weight: float = option(
        0.3,
        "weight lambda of the first frame (eq. 4); higher: drifts less, follows changes less",
        low=0.0,
        high=1.0,
        live=True,
    )
    window_influence: float = option(
        0.3, "share of the cosine window; higher: look-alikes far away are ignored, fast motion is lost", low=0.0,
        high=1.0, live=True
    )  # fmt: skip
    size_rate: float = option(
        0.275, "how fast the size follows; higher: faster, less steady", low=0.0, high=1.0, live=True
    )
    design: GuidedDesign = GuidedDesign()


#: Scores of the compact detectors' adapted heads are close to 0 or 1; what was chosen how is in docs/notes.
PRESETS: dict[str, GuidedOptions] = {
    "guided_ssd": GuidedOptions(
        learn_score=0.8, design=GuidedDesign(score_scale=0.6, score_shift=-0.2, update_samples=8)
    ),
    "guided_frcnn": GuidedOptions(
        learn_score=0.6, design=GuidedDesign(network="guided_frcnn18", score_scale=0.6, score_shift=-0.6)
    ),
    "guided_ssd18_single": GuidedOptions(design=GuidedDesign(network="guided_ssd18_single")),
    "guided_ssd_vgg16": GuidedOptions(design=GuidedDesign(network="guided_ssd_vgg16")),
    "guided_frcnn_r50": GuidedOptions(design=GuidedDesign(network="guided_frcnn_r50")),
}


@dataclass
class Remembered:
    """A sample of a frame that surely showed the target.

    Attributes:
        samples: one crop's.
        gradient: of its loss at theta_0, which never changes; None until an update asks for it.
    """

    samples: Samples
    gradient: dict[str, Tensor] | None = None


@dataclass(kw_only=True)
class GuidedTarget(Target):
    """Everything that a guided detector knows of one target.

    Attributes:
        guidance: D, what the exemplar tells the detector.
        parameters: of the target's own head, theta_t.
        anchor: those that the first frame left, theta_0 of eq. 4; the same for the whole track.
        memory: of frames that surely showed the target, newest last.
        fresh: samples since the last update.
        updates: updates made since the first frame.
    """

    guidance: Tensor
    parameters: dict[str, Tensor]
    anchor: dict[str, Tensor]
    memory: deque[Remembered] = field(default_factory=deque)
    fresh: int = 0
    updates: int = 0


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


def select(scores: Tensor, boxes: Tensor, sizes: Tensor, influence: Tensor, side: float) -> Selection:
    """Rank the detections before any suppression and find the best (section 3.4, target localization).

    Args:
        scores: BxN probabilities of being the target; 0 where there is no candidate.
        boxes: BxNx4 (cx, cy, w, h in crop pixels).
        sizes: Bx2 (w, h) of the targets in the last frame, crop pixels.
        influence: B, share of the cosine window.
        side: of the crop, pixels.
    """
    scores = scores.nan_to_num(0.0)
    penalty = change_penalty(boxes, sizes, _PENALTY_SCALE).nan_to_num(0.0)
    share = influence[:, None]
    ranking = scores * penalty * (1 - share) + cosine_window(boxes, side).nan_to_num(0.0) * share * (scores > 0)
    return select_best(ranking, scores, boxes)


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

    options: GuidedOptions
    # Not `inference_mode`: tensors made under it cannot take part in the gradients of the adaptation.
    no_gradients = torch.no_grad

    def __init__(self, name: str, options: GuidedOptions, network: GuidedDetector | None = None) -> None:
        super().__init__(name, options)
        design = options.design
        self.network = cast(GuidedDetector, self.load(network))
        self._theta = {name: value.detach() for name, value in head_parameters(self.network.head).items()}
        self._rates = {name: float(rate) for name, rate in self.network.inner_rates(design.inner_rate).items()}
        self._noise: dict[int, Tensor] = {}
        self._regression = 1.0 if design.adapt_regression else 0.0
        self._update_regression = self._regression if design.update_regression else 0.0

    # --- first frame ---------------------------------------------------------------------------------------------

    def begin(self, frame: Frame, box: Box) -> GuidedTarget:
        """Embed the exemplar and adapt a head to it; see `SearchTracker.begin`."""
        design, net = self.options.design, self.network
        position, size = np.array(box.center), np.array([box.w, box.h])
        with self.timer.stage("crop"):
            exemplar = self._exemplar_window(position, size)
            image = self.pixels([resample(frame, exemplar)])
            inside = self.tensor(_inside(exemplar, position, size)[None])
        with self.timer.stage("backbone"):
            guidance = net.embed(image, inside)
        theta = self._theta
        if design.init_iterations:
            with self.timer.stage("crop"):
                crops, targets = self._augment(frame, position, size)
            with self.timer.stage("backbone"):
                maps = net.features(crops)
            with self.timer.stage("guide"):
                guided = net.guided(maps, guidance.expand(len(crops), -1))
                candidates = net.candidates(guided, self._around(targets))
            with self.timer.stage("update"):
                loss = support_loss(net.head, make_samples(net, candidates, targets), self._regression)
                theta = adapt(loss, theta, self._rates, design.init_iterations, limit=design.gradient_limit)
        return GuidedTarget(
            position=position,
            size=size,
            monitor=self.monitor(),
            colours=self.book.start(frame, box),
            guidance=guidance[0],
            parameters=theta,
            anchor=theta,
            memory=deque(maxlen=design.memory_size),
        )

    def _augment(self, frame: Frame, position: NDArray[np.float64], size: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """First-frame samples by random flips and crops: Sx3xNxN, and the target in each, Sx4 (cx, cy, w, h).

        The first is the search crop as it is.
        """
        side = self.network.config.search
        rng = np.random.default_rng(self.options.seed)
        extent = self._search_side(size)
        crops, targets = [], []
        for number in range(self.options.design.init_samples):
            zoom, shift, flip = 1.0, np.zeros(2), False
            if number:
                zoom = math.exp(rng.normal(0.0, INIT_SCALE))
                shift = rng.uniform(-INIT_SHIFT, INIT_SHIFT, 2) * math.sqrt(size.prod())
                flip = bool(rng.random() < 0.5)
            w = _window(position + shift, extent * zoom, side)
            patch, target = resample(frame, w), _inside(w, position, size)
            if flip:
                patch, target[0] = patch[:, ::-1], side - target[0]
            crops.append(patch)
            targets.append(target)
        return self.pixels(crops), self.tensor(np.stack(targets))

    # --- later frames --------------------------------------------------------------------------------------------

    def side(self, target: GuidedTarget) -> float:
        """See `SearchTracker.side`."""
        return self._search_side(target.size)

    def crop(self, frame: Frame, target: GuidedTarget, place: NDArray[np.float64]) -> tuple[Window, NDArray[np.uint8]]:
        """See `SearchTracker.crop`."""
        w = _window(place, self._search_side(target.size), self.network.config.search)
        return w, resample(frame, w)

    def upload(self, patches: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See `SearchTracker.upload`: BGR uint8."""
        return self.pixels(patches)

    def look(self, crops: Tensor, targets: Sequence[GuidedTarget], views: Sequence[View], frame: Frame) -> Look:
        """See `SearchTracker.look`; `Look.kept` is the guided maps."""
        o, net = self.options, self.network
        with self.timer.stage("backbone"):
            maps = net.features(crops)
        with self.timer.stage("guide"):
            guided = net.guided(maps, torch.stack([target.guidance for target in targets]))
            candidates = net.candidates(guided)
        with self.timer.stage("head"):
            detected = self._detect(candidates, targets)
        with self.timer.stage("select"):
            extent = float(net.config.search)
            scores = (detected.scores.float() * candidates.valid).nan_to_num(0.0)
            if "calibrate" in self.book:
                scores = calibrated(scores, o.design.score_scale, o.design.score_shift)
            boxes = net.decode(detected.loc.float(), candidates.boxes)
            sizes = np.stack([t.size / v.window.scale for t, v in zip(targets, views, strict=True)])
            influence = np.array([0.0 if view.free else o.window_influence for view in views])
            best = select(scores, boxes, self.tensor(sizes), self.tensor(influence), extent)
            response = response_map(scores, boxes, extent) if o.heatmap else None
        none = best.box.new_zeros(len(views), 0)
        return Look(best.score, best.second, best.focus, best.box, none, response, _HEATMAP_CELLS, guided)

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

    def read(self, target: GuidedTarget, view: View, seen: Seen, frame: Frame) -> Found:
        """See `SearchTracker.read`; the size follows by linear interpolation."""
        w, o = view.window, self.options
        center, size = np.array([w.x, w.y]) + seen.box[:2] * w.scale, seen.box[2:] * w.scale
        return followed(target, frame, center, size, o.size_rate, seen.score >= o.bad_score, seen, MIN_SIDE)

    # --- online learning -----------------------------------------------------------------------------------------

    def learn(self, settled: Sequence[Settled], kept: Any) -> None:
        """Store the frames that surely show a target, and make the updates that are due."""
        if self.options.update == "none":
            return
        for one in settled:
            if self._confident(one.target, one.estimate):
                self._remember(one.target, [part[one.row : one.row + 1] for part in kept], one.view.window)
        for one in settled:
            if one.target.fresh and (one.target.frame_number - 1) % self.options.update_interval == 0:
                self._update(one.target)

    def _confident(self, target: GuidedTarget, estimate: Estimate) -> bool:
        """Whether a frame is learned from: the state machine trusts the track and took the frame for a good one."""
        trusted = estimate.state is TrackState.TRACKING and target.monitor.frames_since_seen == 0
        return trusted and estimate.score >= self.options.learn_score

    def _remember(self, target: GuidedTarget, guided: Sequence[Tensor], w: Window) -> None:
        """Store a crop's guided maps, labelled by the box that was found, as a sample."""
        box = self.tensor(_inside(w, target.position, target.size)[None])
        candidates = self.network.candidates(guided, self._around(box))
        target.memory.append(Remembered(make_samples(self.network, candidates, box).clone()))
        target.fresh = min(target.fresh + 1, self.options.design.memory_size)

    def _around(self, boxes: Tensor) -> Tensor | None:
        """Boxes around the targets, for a two-stage detector to learn from."""
        if not self.network.two_stage:
            return None
        # The same numbers on every device and in every frame.
        count = len(boxes)
        if count not in self._noise:
            drawn = drawn_around(count, _EXTRA_BOXES, torch.Generator().manual_seed(self.options.seed))
            self._noise[count] = self.link.upload(drawn)
        return around(boxes, self._noise[count])

    def _update(self, target: GuidedTarget) -> None:
        """One update: the newest sample and others spread over the memory (section 3.4; eq. 4 where anchored)."""
        o, design = self.options, self.options.design
        count = len(target.memory)
        chosen = np.unique(np.linspace(0, count - 1, min(design.update_samples, count)).round().astype(int))
        if design.update_samples == 1:
            chosen = np.array([count - 1])
        remembered = [target.memory[int(i)] for i in chosen]
        samples = concatenate([one.samples for one in remembered])
        loss = support_loss(self.network.head, samples, self._update_regression)
        weight = o.anchor_weight if o.update == "maml_anchored" else 0.0
        known = weight > 0 and design.update_iterations == 1
        target.parameters = anchored_update(
            loss,
            target.anchor,
            target.parameters,
            self._rates,
            weight,
            design.update_iterations,
            limit=design.gradient_limit,
            anchor_gradient=mean([self._anchor_gradient(target, one) for one in remembered]) if known else None,
        )
        target.fresh = 0
        target.updates += 1

    def _anchor_gradient(self, target: GuidedTarget, one: Remembered) -> dict[str, Tensor]:
        """The gradient of a sample's loss at theta_0, computed once."""
        if one.gradient is None:
            loss = support_loss(self.network.head, one.samples, self._update_regression)
            one.gradient = {name: value.detach() for name, value in grad(loss)(dict(target.anchor)).items()}
        return one.gradient

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
