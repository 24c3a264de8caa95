"""What trackers with a network share: how it is loaded, how pixels reach it, and how a lost target is looked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker_ros import weights
from tracker_ros.geometry.boxes import MIN_SIDE, Box
from tracker_ros.geometry.crops import Window, cut
from tracker_ros.geometry.scan import scan_places
from tracker_ros.networks.inference import choose_device, choose_dtype, prepare
from tracker_ros.trackers.base import Estimate, Frame, TargetT, Tracker, TrackerOptions, TrackState, option
from tracker_ros.trackers.profile import NULL_TIMER, NullTimer
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(TrackerOptions):
    """Options that all trackers with a network have."""

    network: str = option("", "architecture of the network")
    precision: str = option(
        "auto",
        "arithmetic of the convolutions: auto (bfloat16 where the CPU has it, float16 on CUDA), or the one named",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


class _Convolving(Protocol):
    """Any of the package's networks."""

    def convolutions(self) -> list[nn.Module]:
        """The parts that may run in half precision."""
        ...


class NetworkTracker(Tracker[TargetT]):
    """Base of the trackers with a network.

    Args:
        name: name in the registry.
        options: see `NetworkOptions` and the tracker's own.

    Raises:
        DeviceError: the device is not there.
    """

    options_class: ClassVar[type[TrackerOptions]] = NetworkOptions
    options: NetworkOptions

    def __init__(self, name: str, options: NetworkOptions) -> None:
        super().__init__(name, options)
        device = choose_device(options.device)
        self.device = str(device)
        self._torch_device = device
        self._dtype = choose_dtype(self.arithmetic(), device)
        self.timer: NullTimer = NULL_TIMER

    def arithmetic(self) -> str:
        """The element type of the convolutions, as the option `precision` names it."""
        return self.options.precision

    def load(self, network: nn.Module | None, fold: bool = True) -> nn.Module:
        """The network, evaluated, on the device and in its arithmetic.

        Args:
            network: is copied; None loads the one that the options name, with their weights.
            fold: fold batch norms and lay convolutions out as they are fastest.

        Raises:
            WeightsError: the weights cannot be loaded.
        """
        if network is None:
            o = self.options
            network = weights.builders()[o.network]()
            weights.load(o.weights or weights.shipped(o.network), network, o.network)
        else:
            network = copy.deepcopy(network)
        if fold:
            prepare(network, self._torch_device)
        else:
            network.eval().requires_grad_(False).to(self._torch_device)
        for module in cast(_Convolving, network).convolutions():
            module.to(self._dtype)
        return network

    def _crop(self, frame: Frame, w: Window, fill: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """The pixels of a window, `output` a side; beyond the image `fill` (BGR), or the image's border."""
        patch = cut(frame, w, fill)
        if w.size == w.output:
            return patch
        return np.asarray(cv2.resize(patch, (w.output, w.output)), np.uint8)

    def _pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """BGR crops to the device: Bx3xSxS uint8. Channels lie last, which is how prepared convolutions want them."""
        stacked = crops[0][None] if len(crops) == 1 else np.stack(crops)
        return self._to_device(torch.from_numpy(np.ascontiguousarray(stacked))).permute(0, 3, 1, 2)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return self._to_device(torch.from_numpy(np.ascontiguousarray(values, np.float32)))

    def _to_device(self, values: Tensor) -> Tensor:
        return values if self._torch_device.type == "cpu" else values.to(self._torch_device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(NetworkOptions):
    """Options of trackers that rank scored boxes in search windows."""

    suppression_overlap: float = option(
        0.1, "overlap with the best box above which another one is the same object", low=0.0, high=1.0
    )
    score_scale: float = option(
        1.0,
        "factor of the log-odds of the network's scores, so that a score is about the chance that the box is right",
        low=0.01,
        high=100.0,
    )
    score_shift: float = option(0.0, "what is added to the scaled log-odds", low=-100.0, high=100.0)
    not_found_threshold: float = option(0.3, "score below which the target is not found in a frame", low=0.0, high=1.0)
    good_score: float = option(0.6, "score of a frame in which the target is surely seen", low=0.0, high=1.0)
    regain_score: float = option(0.8, "score that a lost target must reach to be regained", low=0.0, high=1.0)
    distractor_threshold: float = option(0.9, "second peak over first: the two are in doubt", low=0.0, high=1.0)
    min_sharpness: float = option(0.1, "share of the response in the peak below which it is flat", low=0.0, high=1.0)
    lost_after: int = option(5, "frames without the target until it is lost", low=1, high=300)
    redetect_windows: int = option(
        2, "windows searched a frame while the target is lost; 0: its last place only", low=0, high=16
    )

    def thresholds(self) -> ConfidenceThresholds:
        """What the state machine decides by."""
        return ConfidenceThresholds(
            good_score=self.good_score,
            bad_score=self.not_found_threshold,
            max_distractor=self.distractor_threshold,
            min_sharpness=self.min_sharpness,
            regain_score=self.regain_score,
            lost_after=float(self.lost_after),
        )


@dataclass(kw_only=True)
class SearchTarget:
    """Where a target is, and how it is looked for.

    Attributes:
        position: centre (x, y), pixels of the image.
        size: width and height, pixels.
        monitor: its state machine.
        scan: windows of a lost target's search that were already looked at.
        candidate: a lost target is being confirmed at `position`.
        last_seen: position and size when it was last seen, to which a failed candidate returns.
    """

    position: NDArray[np.float64]
    size: NDArray[np.float64]
    monitor: ConfidenceMonitor
    scan: int = 0
    candidate: bool = False
    last_seen: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def lost(self) -> bool:
        """Whether it is LOST."""
        return self.monitor.state is TrackState.LOST


class Best(NamedTuple):
    """The best box of one target's windows.

    Attributes:
        box: (cx, cy, w, h), pixels of the image.
        score: its probability of being the target.
        rate: how much of its size is taken over.
        second: the best score of another object.
        focus: share of the squared scores that belongs to boxes of the same object.
    """

    box: NDArray[np.float64]
    score: float
    rate: float
    second: float
    focus: float


SearchTargetT = TypeVar("SearchTargetT", bound=SearchTarget)


class SearchTracker(NetworkTracker[SearchTargetT]):
    """Base of the trackers that take the best of many scored boxes.

    Attributes:
        least_side: smallest side of a target, pixels.
    """

    options_class: ClassVar[type[TrackerOptions]] = SearchOptions
    options: SearchOptions
    least_side = float(MIN_SIDE)

    def needed_score(self, lost: bool) -> float:
        """The score from which a box is taken for that of a target that was `lost`, or was not."""
        return self.options.regain_score if lost else self.options.not_found_threshold

    def _calibrated(self, scores: Tensor) -> Tensor:
        """Scores whose log-odds are scaled and shifted as the options say; the order stays, and zero stays zero."""
        o = self.options
        if o.score_scale == 1.0 and o.score_shift == 0.0:
            return scores
        found = torch.sigmoid(o.score_scale * torch.logit(scores, eps=1e-7) + o.score_shift)
        return torch.where(scores > 0, found, scores)

    def _search_centers(self, target: SearchTarget, side: float, width: int, height: int) -> list[NDArray[np.float64]]:
        """Where to look: around the target; for a lost one also at the next places of a scan over the whole image."""
        centers = [target.position]
        count = self.options.redetect_windows
        if not target.lost or target.candidate or not count:
            return centers
        places = scan_places(width, height, side, float(target.size.max()), target.position)
        for _ in range(min(count, len(places))):
            centers.append(places[target.scan % len(places)])
            target.scan += 1
        return centers

    def _settle(
        self,
        target: SearchTarget,
        best: Best,
        image: tuple[int, int],
        region: Box,
        heatmap: NDArray[np.float32] | None,
    ) -> Estimate:
        """Move the target to the best box, or not, and decide its state.

        Args:
            target: is changed.
            best: what was found.
            image: width and height of the image.
            region: the part of the image that the heatmap covers.
            heatmap: of the window that `best` is from.
        """
        was_lost = target.lost
        if was_lost and not target.candidate:
            target.last_seen = (target.position, target.size)
        if best.score >= self.needed_score(was_lost) and np.isfinite(best.box).all():
            extent = np.array(image, float)
            size = target.size * (1 - best.rate) + best.box[2:] * best.rate
            target.position = np.clip(best.box[:2], 0, extent)
            target.size = np.clip(size, self.least_side, np.maximum(extent, self.least_side))
            target.candidate = was_lost
        elif target.candidate and target.last_seen is not None:
            # The candidate did not hold: go on looking where the target was last seen.
            target.position, target.size = target.last_seen
            target.candidate = False
        cues = Cues(
            score=float(np.clip(best.score, 0, 1)),
            distractor=float(np.clip(best.second / best.score, 0, 1)) if best.score > 0 else 1.0,
            sharpness=float(np.clip(best.focus, 0, 1)),
        )
        state = target.monitor.update(cues)
        if state is not TrackState.LOST:
            target.candidate = False
        named = {
            "peak": best.score,
            "second_peak": best.second,
            "distractor": cues.distractor,
            "sharpness": cues.sharpness,
        }
        box = Box.from_center(*map(float, target.position), *map(float, target.size))
        return Estimate(box, cues.score, state, region, heatmap, named)
