"""One tracker and its one target: what the node's worker thread owns. Knows nothing of ROS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2

from tracker_ros.geometry.boxes import Box, validate_init_box
from tracker_ros.trackers.base import Estimate, Frame, Tracker, TrackState, check_frame


class TrackerFailed(RuntimeError):
    """The tracker raised an exception or returned nonsense on one frame; the target and the track are still there."""


class Session:
    """Runs `tracker` on the target of the moment.

    Images may change their size under a running track: they are resampled to the size of the image that the track
    started on, and the results are scaled back.

    Attributes:
        tracker: the tracker that is in use.
        target_id: name of the target, empty while there is none.
        estimate: what was last said of the target, in pixels of the image that it was said of; None without a target.
        frames_since_seen: frames since the target was last in the state TRACKING.
    """

    def __init__(self, tracker: Tracker[Any]) -> None:
        self.tracker = tracker
        self.target_id = ""
        self.estimate: Estimate | None = None
        self.frames_since_seen = 0
        self._target: Any = None
        self._frame: Frame | None = None
        self._size = (0, 0)

    @property
    def active(self) -> bool:
        """Whether there is a target."""
        return self.estimate is not None

    @property
    def state(self) -> TrackState:
        """State of the target; IDLE where there is none."""
        return TrackState.IDLE if self.estimate is None else self.estimate.state

    @property
    def start_size(self) -> tuple[int, int]:
        """Width and height of the image that the track started on."""
        return self._size

    def start(
        self, frame: Frame, box: Sequence[float], target_id: str, commit: Callable[[], bool] = lambda: True
    ) -> bool:
        """Start on `frame` (HxWx3 uint8, BGR) with `box` (x, y, w, h in pixels), replacing the target before.

        Starting takes a while. `commit` is asked after it, just before the target is replaced: when it says False,
        the request was withdrawn meanwhile, and the target before stays.

        Returns:
            What `commit` said.

        Raises:
            InvalidBox: the box is not one that a track can start on; the target before stays.
            TrackerFailed: the tracker could not start; the target before stays.
        """
        check_frame(frame)
        height, width = frame.shape[:2]
        checked = validate_init_box(box, width, height)
        try:
            target = self.tracker.start(frame, [checked])[0]
        except Exception as error:
            raise TrackerFailed(f"{self.tracker.name} could not start on {_text(checked)}: {_reason(error)}") from error
        if not commit():
            return False
        self._target = target
        self._frame = frame
        self._size = (width, height)
        self.target_id = target_id
        self.frames_since_seen = 0
        self.estimate = Estimate(checked, 1.0, TrackState.TRACKING, checked)
        return True

    def step(self, frame: Frame, plausible: bool = True) -> Estimate:
        """Find the target in the next frame (HxWx3 uint8, BGR).

        Args:
            frame: HxWx3 uint8, BGR.
            plausible: False where the frame can't show any target: then TRACKING becomes UNCERTAIN.

        Returns:
            The estimate in pixels of `frame`.

        Raises:
            TrackerFailed: the tracker failed on this frame; the next one may be tried.
        """
        if self.estimate is None:
            raise RuntimeError("there is no target")
        height, width = frame.shape[:2]
        resized = (width, height) != self._size
        try:
            check_frame(frame)
            seen = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA) if resized else frame
            estimate = self.tracker.step(seen, [self._target])[0]
        except Exception as error:
            self.frames_since_seen += 1
            name = self.tracker.name
            raise TrackerFailed(f"{name} failed on an image of {width}x{height}: {_reason(error)}") from error
        if not all(map(math.isfinite, (*estimate.box, *estimate.search_region, estimate.score))):
            self.frames_since_seen += 1
            raise TrackerFailed(f"{self.tracker.name} returned a value that is not finite: {estimate.box}")
        if resized:
            sx, sy = width / self._size[0], height / self._size[1]
            estimate = Estimate(
                _scale(estimate.box, sx, sy),
                estimate.score,
                estimate.state,
                _scale(estimate.search_region, sx, sy),
                estimate.heatmap,
                estimate.cues,
            )
        if not plausible and estimate.state is TrackState.TRACKING:
            estimate = dataclasses.replace(estimate, state=TrackState.UNCERTAIN)
        self._frame = frame
        self.estimate = estimate
        self.frames_since_seen = 0 if estimate.state is TrackState.TRACKING else self.frames_since_seen + 1
        return estimate

    def stop(self) -> None:
        """Forget the target."""
        self._target = self._frame = self.estimate = None
        self.target_id = ""
        self.frames_since_seen = 0

    def replace_tracker(self, tracker: Tracker[Any]) -> str:
        """Go on with another tracker.

        A target that is not LOST is handed over: the new tracker starts with the last box, on the image that this box
        was found in. A LOST one is dropped, as there is no box to start on.

        Returns:
            What became of the target, for the log; empty where there was none.
        """
        before, self.tracker = self.estimate, tracker
        frame, target_id = self._frame, self.target_id
        if before is None or frame is None:
            return ""
        self.stop()
        if before.state is TrackState.LOST:
            return f"target '{target_id}' was LOST and is dropped: call init_target again"
        try:
            self.start(frame, before.box, target_id)
        except (ValueError, TrackerFailed) as error:
            return f"target '{target_id}' is dropped: {error}"
        return f"target '{target_id}' goes on from its last box"


def _scale(box: Box, sx: float, sy: float) -> Box:
    return Box(box.x * sx, box.y * sy, box.w * sx, box.h * sy)


def _text(box: Box) -> str:
    return f"the box x={box.x:g} y={box.y:g} w={box.w:g} h={box.h:g}"


def _reason(error: Exception) -> str:
    return f"{error} ({type(error).__name__})"
