"""The owner of a frame: windows - crops - look - best window - settle - learn, for any number of targets.

`SearchTracker` is the one frame loop of all trackers with a network. A method brings what its paper says: how a target
is begun, how it is looked for in a batch of crops, and what is learned afterwards. Where to look and what to believe
beyond that is the rule book's (`tracker_ros.trackers.rules`).

Between the upload of the crops and the one transfer back, everything runs on the device.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import registry, weights
from tracker_ros.geometry.anchors import overlap
from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window, cut
from tracker_ros.networks.inference import Link, choose_device, choose_dtype, prepare
from tracker_ros.trackers import rules
from tracker_ros.trackers.base import Design, Estimate, Frame, Tracker, TrackerOptions, TrackState, option
from tracker_ros.trackers.profile import NULL_TIMER, NullTimer
from tracker_ros.trackers.rules import RuleBook
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues
from tracker_ros.trackers.target import Found, Target, View

#: Overlap with the best box above which another one is the same object.
_SAME_OBJECT = 0.1


@dataclass(frozen=True, kw_only=True)
class SearchDesign(Design):
    """Design of all trackers with a network."""

    network: str = option("", "architecture of the network")
    rules: str = option("", "changes to the rules that it keeps: none, -name, +name or name+name (see rules.py)")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(TrackerOptions):
    """Options of all trackers with a network."""

    precision: str = option(
        "auto",
        "arithmetic of the convolutions: auto (bfloat16 where the CPU has it, float16 on CUDA; float32 for published "
        "numbers), or the one named",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    redetect_windows: int = option(
        2,
        "windows searched a frame while the target is LOST; more find it sooner and cost more; 0: its last place only",
        low=0,
        high=16,
        live=True,
    )
    design: SearchDesign = SearchDesign()


class Look(NamedTuple):
    """What a network says of B crops, on the device.

    Attributes:
        score: B, of the best box.
        second: B, the best score of another object.
        focus: B, share of the response's energy that belongs to the best one's object.
        box: Bx4, in the method's own crop coordinates.
        extra: BxE, what else the method wants back.
        response: BxSxS response maps; None where nobody wants them.
        cells: side S of the response maps.
        kept: what stays on the device for learning.
    """

    score: Tensor
    second: Tensor
    focus: Tensor
    box: Tensor
    extra: Tensor
    response: Tensor | None
    cells: int
    kept: Any = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One crop of a `Look` on the host: its `box` of 4, its `extra` numbers, and its SxS response map."""

    score: float
    second: float
    focus: float
    box: NDArray[np.float64]
    extra: NDArray[np.float64]
    response: NDArray[np.float64] | None


TargetT = TypeVar("TargetT", bound=Target)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one target in a frame.

    Attributes:
        target: the target.
        row: its best view's place in the batch.
        view: that view.
        seen: what the network said of it.
        found: what the method made of it; `Found.seen` is false where a rule refused it.
        estimate: what is reported.
    """

    target: Any
    row: int
    view: View
    seen: Seen
    found: Found
    estimate: Estimate


class Selection(NamedTuple):
    """The best box of each of B crops: Bx4 `box`, and B each of `score`, `second` and `focus`; see `Look`."""

    box: Tensor
    score: Tensor
    second: Tensor
    focus: Tensor
    best: Tensor


def select_best(ranking: Tensor, scores: Tensor, boxes: Tensor) -> Selection:
    """The boxes that rank first, and what other objects score.

    Non-maximum suppression keeps the best box in any case; what it leaves next is the strongest other object.

    Args:
        ranking: BxN, scores after penalties and windows.
        scores: BxN, the network's own.
        boxes: BxNx4 (cx, cy, w, h).

    Returns:
        The selection; `best` is Bx1, the index of the box.
    """
    best = ranking.argmax(1, keepdim=True)
    box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    same = overlap(boxes, box) >= _SAME_OBJECT
    energy = scores.square()
    return Selection(
        box[:, 0],
        scores.gather(1, best)[:, 0],
        scores.masked_fill(same, 0.0).amax(1),
        (energy * same).sum(1) / energy.sum(1).clamp_min(1e-12),
        best,
    )


def calibrated(scores: Tensor, scale: float, shift: float) -> Tensor:
    """Scores with their log-odds scaled and shifted; the order stays, and zero stays zero."""
    if scale == 1.0 and shift == 0.0:
        return scores
    found = torch.sigmoid(scale * torch.logit(scores, eps=1e-7) + shift)
    return torch.where(scores > 0, found, scores)


class _Convolving(Protocol):
    """Any of the package's networks."""

    def convolutions(self) -> list[nn.Module]:
        """The parts that may run in half precision."""
        ...


class SearchTracker(Tracker[TargetT]):
    """Base of the trackers with a network: `begin`, `look`, `read` and `learn` are what differs.

    Args:
        name: name in the registry.
        options: see `SearchOptions` and the tracker's own.

    Attributes:
        book: the rules that it keeps.
        link: the way to its device and back.

    Raises:
        DeviceError: the device is not there.
        InvalidOption: the design names a rule that does not exist.
    """

    options: SearchOptions
    #: The rules that a tracker keeps by itself.
    own_rules: ClassVar[tuple[str, ...]] = rules.COMMON
    #: What the device's work runs under.
    no_gradients: ClassVar[type[torch.inference_mode] | type[torch.no_grad]] = torch.inference_mode

    def __init__(self, name: str, options: SearchOptions) -> None:
        super().__init__(name, options)
        device = choose_device(options.device)
        self.device = str(device)
        self._torch_device = device
        self.link = Link(device)
        self._dtype = choose_dtype(self.arithmetic(), device)
        self.book = RuleBook.read(() if self.published else self.own_rules, options.design.rules)
        self.timer: NullTimer = NULL_TIMER

    @property
    def published(self) -> bool:
        """Whether it computes as the published tracker does, which none of our rules belong to."""
        return False

    def arithmetic(self) -> str:
        """The element type of the convolutions, as the option `precision` names it."""
        return self.options.precision

    # --- what a method brings ------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, frame: Frame, box: Box) -> TargetT:
        """Learn the target that the first frame shows in `box`."""

    @abstractmethod
    def side(self, target: TargetT) -> float:
        """Side of a target's search window, pixels of the image."""

    @abstractmethod
    def crop(self, frame: Frame, target: TargetT, place: NDArray[np.float64]) -> tuple[Window, NDArray[np.uint8]]:
        """The search window around `place` (x, y), and its pixels (BGR)."""

    @abstractmethod
    def upload(self, patches: Sequence[NDArray[np.uint8]]) -> Tensor:
        """BGR patches as one batch of crops on the device: Bx3xSxS."""

    @abstractmethod
    def look(self, crops: Tensor, targets: Sequence[TargetT], views: Sequence[View], frame: Frame) -> Look:
        """Look for B targets in B crops; nothing is read back from the device."""

    @abstractmethod
    def read(self, target: TargetT, view: View, seen: Seen, frame: Frame) -> Found:
        """What the method takes for the target in one view, in pixels of the image."""

    def learn(self, settled: Sequence[Settled], kept: Any) -> None:
        """Learn from a frame; `kept` is that of `Look`. Methods that learn nothing leave it."""

    def resized(self, target: TargetT, width: int, height: int) -> None:
        """The size of a target has changed, in an image of `width` x `height` pixels."""

    def region(self, view: View, cells: int) -> Box:
        """The part of the image that a response map of `cells` a side covers."""
        return view.window.box

    def thresholds(self) -> ConfidenceThresholds:
        """What the state machine decides by."""
        o = self.options
        return ConfidenceThresholds(
            good_score=o.good_score,
            bad_score=o.bad_score,
            max_distractor=0.9,
            min_sharpness=0.1,
            regain_score=o.regain_score,
            lost_after=float(o.lost_after),
        )

    # --- the frame -----------------------------------------------------------------------------------------------

    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[TargetT]:
        """Learn every box; see `Tracker.start`."""
        with self.no_gradients():
            return [self.begin(frame, box) for box in boxes]

    def step(self, frame: Frame, targets: Sequence[TargetT]) -> list[Estimate]:
        """Find every target in one batched pass; see `Tracker.step`."""
        if not targets:
            return []
        with self.no_gradients():
            owners: list[int] = []
            views: list[View] = []
            patches: list[NDArray[np.uint8]] = []
            with self.timer.stage("crop"):
                for i, target in enumerate(targets):
                    target.frame_number += 1
                    for place in self._places(frame, target):
                        window, patch = self.crop(frame, target, place)
                        owners.append(i)
                        views.append(View(window, place, self.book.free(target, self.options.redetect_windows)))
                        patches.append(patch)
                crops = self.upload(patches)
            look = self.look(crops, [targets[i] for i in owners], views, frame)
            with self.timer.stage("select"):
                seen = _read(look, self.link)
            settled = []
            for i, target in enumerate(targets):
                rows = [row for row, owner in enumerate(owners) if owner == i]
                found = [self.read(target, views[row], seen[row], frame) for row in rows]
                best = max(range(len(found)), key=lambda n: found[n].score)
                row, view = rows[best], views[rows[best]]
                estimate = self._settle(frame, target, view, found[best], seen[row], look.cells)
                settled.append(Settled(target, row, view, seen[row], found[best], estimate))
            with self.timer.stage("update"):
                self.learn(settled, look.kept)
        return [one.estimate for one in settled]

    def _places(self, frame: Frame, target: TargetT) -> list[NDArray[np.float64]]:
        """Where to look: around the target, and elsewhere for a lost one."""
        windows = self.options.redetect_windows
        return [target.position, *self.book.places(frame, target, self.side(target), windows)]

    def _settle(self, frame: Frame, target: TargetT, view: View, found: Found, seen: Seen, cells: int) -> Estimate:
        """Move the target to what was found, or not, and decide its state."""
        height, width = frame.shape[:2]
        was_lost = target.lost
        cues = found.cues | {
            "peak": found.score,
            "second_peak": found.second,
            "moved": rules.moved(target, found),
        }
        score = float(np.clip(found.score, 0, 1))
        if self.book.refuses(target, found):
            found.seen, score = False, min(score, self.options.bad_score / 2)
        target.missing = 0 if found.seen else target.missing + 1
        if found.seen and (not was_lost or self.book.regains(target, score)):
            target.position, target.size = found.center, found.size
            target.candidate = was_lost and "confirm" in self.book
            self.resized(target, width, height)
        elif target.candidate and target.last_seen is not None:
            # The candidate did not hold: go on looking where the target was last seen.
            target.position, target.size = target.last_seen
            target.candidate = False
            self.resized(target, width, height)
        box = Box.from_center(*map(float, target.position), *map(float, target.size))
        visible = box.clip(width, height).area / max(box.area, 1e-9)
        distractor = float(np.clip(found.second / found.score, 0, 1)) if found.score > 0 else 1.0
        sharpness = float(np.clip(found.focus, 0, 1))
        counted = self.book.counted(score, visible, self.options.bad_score)
        target.monitor.thresholds = self.thresholds()
        state = target.monitor.update(Cues(counted, distractor, sharpness))
        if state is not TrackState.LOST:
            target.candidate = False
            if target.monitor.frames_since_seen == 0:
                self.book.trust(frame, target, box)
        elif not was_lost:
            target.size = self.book.lost_size(target)
            target.last_seen = (target.position, target.size)
            self.resized(target, width, height)
        heatmap = None if seen.response is None else np.clip(seen.response, 0, 1).astype(np.float32)
        cues |= {"distractor": distractor, "sharpness": sharpness, "visible": visible}
        return Estimate(box, score, state, self.region(view, cells), heatmap, cues)

    def monitor(self) -> ConfidenceMonitor:
        """The state machine of a new target."""
        return ConfidenceMonitor(self.thresholds())

    # --- the network and the device ------------------------------------------------------------------------------

    def load(self, network: nn.Module | None, fold: bool = True) -> nn.Module:
        """The network, evaluated, on the device and in its arithmetic.

        Args:
            network: is copied; None loads the one that the design names, with the weights that the options name.
            fold: fold batch norms and lay convolutions out as they are fastest.

        Raises:
            WeightsError: the weights cannot be loaded.
        """
        if network is None:
            name = self.options.design.network
            network = registry.networks()[name].create()
            weights.load(self.options.weights or weights.shipped(name), network, name)
        else:
            network = copy.deepcopy(network)
        if fold:
            prepare(network, self._torch_device)
        else:
            network.eval().requires_grad_(False).to(self._torch_device)
        for module in cast(_Convolving, network).convolutions():
            module.to(self._dtype)
        return network

    def pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """BGR crops to the device: Bx3xSxS uint8. Channels lie last, which is how prepared convolutions want them."""
        stacked = crops[0][None] if len(crops) == 1 else np.stack(crops)
        return self.link.upload(stacked).permute(0, 3, 1, 2)

    def tensor(self, values: NDArray[np.float64]) -> Tensor:
        """Numbers to the device, float32."""
        return self.link.upload(values.astype(np.float32))


def resample(frame: Frame, w: Window, fill: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """The pixels of a window, `output` a side; beyond the image `fill` (BGR), or the image's border."""
    patch = cut(frame, w, fill)
    if w.size == w.output:
        return patch
    return np.asarray(cv2.resize(patch, (w.output, w.output)), np.uint8)


def followed(
    target: Target, frame: Frame, center: NDArray[np.float64], size: NDArray[np.float64], rate: float, seen: bool,
    crop: Seen, least_side: float,
) -> Found:  # fmt: skip
    """A box of a response map as `Found`: the size follows by `rate`, and both stay within the image.

    Args:
        target: what was looked for.
        frame: HxWx3.
        center: of the box, (x, y) pixels of the image.
        size: of the box, (w, h) pixels.
        rate: how much of its size is taken over, 0 to 1.
        seen: whether its score is that of a target; a box without numbers is none.
        crop: what the network said.
        least_side: smallest side of a target, pixels.
    """
    extent = np.array(frame.shape[1::-1], float)
    whole = np.concatenate([center, size])
    return Found(
        box=Box.from_center(*map(float, whole)),
        center=np.clip(center, 0, extent),
        size=np.clip(target.size * (1 - rate) + size * rate, least_side, np.maximum(extent, least_side)),
        peak=center,
        seen=seen and bool(np.isfinite(whole).all()),
        score=crop.score,
        second=crop.second,
        focus=crop.focus,
    )


def _read(look: Look, link: Link) -> list[Seen]:
    """A `Look` on the host, crop by crop: the frame's one transfer back."""
    parts = [torch.stack([look.score, look.second, look.focus], 1), look.box, look.extra]
    shape: tuple[int, ...] = ()
    if look.response is not None:
        shape = tuple(look.response.shape[1:])
        parts.append(look.response.flatten(1))
    extra = look.extra.shape[1]
    seen = []
    for row in link.download(torch.cat(parts, 1)):
        response = row[7 + extra :].reshape(shape) if shape else None
        score, second, focus = (float(v) for v in row[:3])
        seen.append(Seen(score, second, focus, row[3:7], row[7 : 7 + extra], response))
    return seen
