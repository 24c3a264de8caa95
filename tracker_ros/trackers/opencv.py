"""OpenCV's trackers behind the interface of this package: CSRT, KCF, Nano and Vit.

OpenCV's own "found" flag stays true after the target has left the view, so the state comes from what the box shows
(`tracker_ros.trackers.appearance`) and, for the two networks, from their own score. A target that was LOST is looked
for in the whole frame, and the OpenCV tracker starts anew where it is found.

OpenCV takes and returns whole pixels (CSRT and KCF keep sub-pixel positions inside, but round what they return). The
rounding of the first box is undone in every result; half a pixel of the result's own remains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.files import opencv_path
from tracker_ros.geometry.boxes import MIN_SIDE, Box, InvalidBox
from tracker_ros.trackers.appearance import Appearance, Likeness, search_region
from tracker_ros.trackers.base import Estimate, Frame, InvalidOption, Tracker, TrackerOptions, TrackState, again, option
from tracker_ros.trackers.profile import NULL_TIMER, NullTimer
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues
from tracker_ros.weight_files import check_file

#: Frames between two looks at the whole frame for a LOST target.
_SEARCH_EVERY = 3
#: Colour similarity that a place in the whole frame must have to be the target.
_SEARCH_COLOUR = 0.5
#: Score from which the recent appearance follows the target: surer than what counts as seen, as a wrong patch stays.
_LEARN_SCORE = 0.9


class OpenCVTrackerMissing(ImportError):
    """The installed OpenCV was built without this tracker; the message says what to install."""


@dataclass(frozen=True, kw_only=True)
class OpenCVOptions(TrackerOptions):
    """Options of CSRT and KCF. They run on the CPU whatever `device` says and have no `weights`."""

    bad_score: float = again(TrackerOptions, "bad_score", 0.25)
    regain_score: float = option(
        0.9,
        "score that a lost target must reach anywhere in the frame; higher: look-alikes are taken for it less often; "
        "1: it is looked for at its last place only",
        low=0.0,
        high=1.0,
        live=True,
    )

    def __post_init__(self) -> None:
        """Check the options; see `Settings`."""
        super().__post_init__()
        if self.bad_score > self.good_score:
            raise InvalidOption(f"bad_score {self.bad_score} must not exceed good_score {self.good_score}")


@dataclass(frozen=True, kw_only=True)
class NanoOptions(OpenCVOptions):
    """Options of NanoTrack: your two ONNX files. The scores are the network's own."""

    good_score: float = again(OpenCVOptions, "good_score", 0.5)
    backbone_model: str = option("", "NanoTrack's backbone (.onnx)")
    head_model: str = option("", "NanoTrack's neck and head (.onnx)")


@dataclass(frozen=True, kw_only=True)
class VitOptions(OpenCVOptions):
    """Options of VitTrack: your ONNX file. The scores are the network's own, weighted by its window."""

    good_score: float = again(OpenCVOptions, "good_score", 0.4)
    bad_score: float = again(OpenCVOptions, "bad_score", 0.2)
    model: str = option("", "VitTrack's network (.onnx)")


#: Options of each tracker, by its name in the registry.
PRESETS: dict[str, OpenCVOptions] = {
    "csrt": OpenCVOptions(),
    "kcf": OpenCVOptions(),
    "nano": NanoOptions(),
    "vit": VitOptions(),
}


@dataclass(slots=True)
class OpenCVTarget:
    """One track.

    Attributes:
        tracker: OpenCV's tracker, which carries the model of the target.
        origin: the whole-pixel box that it was started on.
        start: the box that `origin` stands for.
        box: where the target was seen last.
        sure: where it was last seen without doubt; a LOST target is looked for at this size.
        appearance: what it looks like.
        monitor: its state.
        lost_frames: frames since it was LOST; 0 while it is not.
    """

    tracker: Any
    origin: Box
    start: Box
    box: Box
    sure: Box
    appearance: Appearance
    monitor: ConfidenceMonitor
    lost_frames: int = 0

    def exact(self, found: Box) -> Box:
        """The box that OpenCV's whole-pixel `found` stands for, given how the first box was rounded."""
        sx, sy = found.w / self.origin.w, found.h / self.origin.h
        (cx, cy), (ox, oy), (x, y) = found.center, self.origin.center, self.start.center
        return Box.from_center(cx + (x - ox) * sx, cy + (y - oy) * sy, self.start.w * sx, self.start.h * sy)


class OpenCVTracker(Tracker[OpenCVTarget]):
    """One of OpenCV's trackers, by its name: ``csrt``, ``kcf``, ``nano`` or ``vit``.

    Raises:
        OpenCVTrackerMissing: the installed OpenCV was built without it.
        WeightsMissing: an ONNX file is not set or not there.
        WeightsError: OpenCV can't run the network in it.
    """

    options: OpenCVOptions

    def __init__(self, name: str, options: OpenCVOptions) -> None:
        super().__init__(name, options)
        self.timer: NullTimer = NULL_TIMER
        self._make = _maker(name, options)
        self._has_score = isinstance(options, NanoOptions | VitOptions)
        if self._has_score:
            self._try_network()

    def _try_network(self) -> None:
        """Let OpenCV run the user's network once, as it tells only then whether it can."""
        frame = np.random.RandomState(0).randint(0, 255, (128, 128, 3)).astype(np.uint8)
        try:
            tracker = self._make()
            tracker.init(frame, (48, 48, 32, 32))
            tracker.update(frame)
        except cv2.error as error:
            fields = ("backbone_model", "head_model", "model")
            files = [getattr(self.options, field) for field in fields if hasattr(self.options, field)]
            raise WeightsError(
                f"tracker '{self.name}': OpenCV {cv2.__version__} can't run {' and '.join(files)}: {error}"
            ) from error

    def start(self, frame: Frame, boxes: Sequence[Box]) -> list[OpenCVTarget]:
        """Start one OpenCV tracker a box; see `Tracker.start`.

        Raises:
            InvalidBox: OpenCV can't start on a box.
        """
        targets = []
        for box in boxes:
            tracker, origin = self._begin(frame, box)
            targets.append(
                OpenCVTarget(
                    tracker, origin, box, box, box, Appearance(frame, box), ConfidenceMonitor(self.thresholds())
                )
            )
        return targets

    def thresholds(self) -> ConfidenceThresholds:
        """What the state machine decides by."""
        o = self.options
        return ConfidenceThresholds(
            good_score=o.good_score,
            bad_score=o.bad_score,
            regain_score=o.good_score,
            lost_after=float(o.lost_after),
            weak_doubt=0.1,
        )

    def step(self, frame: Frame, targets: Sequence[OpenCVTarget]) -> list[Estimate]:
        """Update every target's OpenCV tracker and judge what it found; see `Tracker.step`."""
        return [self._step(frame, target) for target in targets]

    def _step(self, frame: Frame, target: OpenCVTarget) -> Estimate:
        with self.timer.stage("classify"):
            found, own_score = self._update(target, frame)
        with self.timer.stage("refine"):
            likeness = target.appearance.measure(frame, found or target.box)
            score = _score(found, own_score, likeness)
            if target.lost_frames and target.lost_frames % _SEARCH_EVERY == 0 and score < self.options.good_score:
                again = self._search(frame, target)
                if again is not None:
                    found, likeness, score = again
            target.monitor.thresholds = self.thresholds()
            state = target.monitor.update(Cues(score))
        with self.timer.stage("update"):
            if state is TrackState.LOST:
                target.lost_frames += 1
            else:
                target.lost_frames = 0
                target.box = found or target.box
            if found is not None and state is TrackState.TRACKING and score >= _LEARN_SCORE:
                target.sure = found
                target.appearance.learn(frame, found, rate=0.05)
        return Estimate(
            box=target.box,
            score=score,
            state=state,
            search_region=search_region(found or target.box),
            heatmap=likeness.response if self.options.heatmap else None,
            cues={"first": likeness.first, "recent": likeness.recent, "colour": likeness.colour,
                  "inside": likeness.inside},
        )  # fmt: skip

    def _begin(self, frame: Frame, box: Box) -> tuple[Any, Box]:
        """A new OpenCV tracker on the part of `box` inside the frame, and that part in whole pixels."""
        height, width = frame.shape[:2]
        part = box.clip(width, height)
        least = int(MIN_SIDE)
        x, y = min(round(part.x), width - least), min(round(part.y), height - least)
        w, h = max(least, min(round(part.w), width - x)), max(least, min(round(part.h), height - y))
        tracker = self._make()
        try:
            tracker.init(frame, (x, y, w, h))
        except cv2.error as error:
            raise InvalidBox(f"OpenCV's {self.name} can't start on x={x} y={y} w={w} h={h}: {error}") from error
        return tracker, Box(x, y, w, h)

    def _update(self, target: OpenCVTarget, frame: Frame) -> tuple[Box | None, float | None]:
        """Where OpenCV finds the target (None where it does not), and the network's score if it has one."""
        try:
            ok, rectangle = target.tracker.update(frame)
        except cv2.error:
            # They refuse to look at a patch that has left the image.
            return None, None
        own_score = None
        if self._has_score:
            own_score = float(min(max(target.tracker.getTrackingScore(), 0.0), 1.0))
        if not ok or rectangle[2] <= 0 or rectangle[3] <= 0:
            return None, own_score
        x, y, w, h = map(float, rectangle)
        if self.name == "kcf":
            # KCF keeps its size but cuts the box at the image's border: put back what was cut.
            x, y = (x if x > 0 else x + w - target.origin.w), (y if y > 0 else y + h - target.origin.h)
            w, h = target.origin.w, target.origin.h
        return target.exact(Box(x, y, w, h)), own_score

    def _search(self, frame: Frame, target: OpenCVTarget) -> tuple[Box, Likeness, float] | None:
        """Look for a LOST target in the whole frame and start anew where it is; None where it is not."""
        if self.options.regain_score >= 1:
            return None
        found = target.appearance.find(frame, target.sure)
        if found is None:
            return None
        place, likeness = found
        if likeness.score < self.options.regain_score or likeness.colour < _SEARCH_COLOUR:
            return None
        target.tracker, target.origin = self._begin(frame, place)
        target.start = place
        return place, likeness, likeness.score


def _score(found: Box | None, own_score: float | None, likeness: Likeness) -> float:
    if own_score is not None:
        return own_score
    return 0.0 if found is None else likeness.score


def _maker(name: str, options: OpenCVOptions) -> Callable[[], Any]:
    """What builds OpenCV's tracker called `name`."""
    if isinstance(options, NanoOptions):
        nano, params = _find("TrackerNano_create", "4.7"), _find("TrackerNano_Params", "4.7")()
        params.backbone = _model(name, "backbone_model", options.backbone_model)
        params.neckhead = _model(name, "head_model", options.head_model)
        return lambda: nano(params)
    if isinstance(options, VitOptions):
        vit, params = _find("TrackerVit_create", "4.9"), _find("TrackerVit_Params", "4.9")()
        params.net = _model(name, "model", options.model)
        if (4, 11) <= _version() <= (5, 0):
            # These versions invert the deviations as a quaternion instead of one by one, so the network would see a
            # negative of the image in two channels. A quaternion's inverse is its own inverse: give them that.
            inverse = [1 / deviation for deviation in params.stdvalue[:3]]
            norm = sum(v * v for v in inverse)
            params.stdvalue = (inverse[0] / norm, -inverse[1] / norm, -inverse[2] / norm, 0.0)
        return lambda: vit(params)
    return _find({"csrt": "TrackerCSRT_create", "kcf": "TrackerKCF_create"}[name])


def _find(attribute: str, since: str | None = None) -> Callable[..., Any]:
    """What OpenCV 4.5 to 5 call ``cv2.TrackerX_create`` and builds without the newer interface ``cv2.legacy...``."""
    for module in (cv2, getattr(cv2, "legacy", None)):
        found = getattr(module, attribute, None)
        if found is not None:
            return found
    kind = attribute.partition("_")[0]
    if since is not None:
        raise OpenCVTrackerMissing(f"OpenCV {cv2.__version__} has no {kind}; it came with OpenCV {since}")
    raise OpenCVTrackerMissing(
        f"OpenCV {cv2.__version__} was built without its contrib modules, so it has no {kind}; "
        "install opencv-contrib-python-headless in place of opencv-python-headless, or Debian's python3-opencv"
    )


def _version() -> tuple[int, int]:
    """Major and minor version of OpenCV."""
    major, minor = cv2.__version__.split(".")[:2]
    return int(major), int(minor)


def _model(tracker: str, field: str, path: str) -> str:
    """Check that the ONNX file of option `field` is there."""
    if not path:
        raise WeightsMissing(f"tracker '{tracker}' needs your ONNX file: set its option '{field}'")
    try:
        return opencv_path(check_file(path, "an ONNX file"))
    except WeightsMissing as error:
        raise WeightsMissing(f"tracker '{tracker}': option '{field}': {error}") from error
    except ValueError as error:
        raise WeightsError(f"tracker '{tracker}': option '{field}': {error}") from error
