"""One tracker and its targets: what the node's worker thread owns. Knows nothing of ROS."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracker_ros.geometry.boxes import Box, validate_init_box
from tracker_ros.ros.drift import Drift
from tracker_ros.trackers.base import Estimate, Frame, Tracker, TrackState, check_frame, fit


class TrackerFailed(RuntimeError):
    """The tracker raised an exception or returned nonsense on one frame; the target and the track are still there."""


class TargetError(ValueError):
    """There is no target of that name, or no room for another one; the message names those that there are."""


@dataclass
class Track:
    """One target.

    Attributes:
        target_id: its name.
        label: what it is, such as a detector's class; empty where nobody said.
        slot: the lowest number that no other target had at its start; it stays the target's.
        handle: what the tracker keeps of it.
        size: width and height of the image that it started on.
        frame: the image that `estimate` is of.
        estimate: what was last said of it, in pixels of `frame`.
        frames_since_seen: frames since it was last in the state TRACKING.
    """

    target_id: str
    label: str
    slot: int
    handle: Any
    size: tuple[int, int]
    frame: Frame
    estimate: Estimate
    frames_since_seen: int = 0


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What is to be said of one target in one image.

    Attributes:
        target_id, label, slot, frames_since_seen: see `Track`.
        estimate: in pixels of the image.
        reason: why its state should be doubted, in words.
        failed: the tracker failed on the image, and the estimate's box is an older one.
    """

    target_id: str
    estimate: Estimate
    label: str = ""
    slot: int = 0
    frames_since_seen: int = 0
    reason: str = ""
    failed: bool = False

    @property
    def seen(self) -> bool:
        """Whether the box is one of this image. That of a LOST target is not."""
        return not self.failed and self.estimate.state is not TrackState.LOST


class Session:
    """Runs `tracker` on the targets of the moment, all of them in one pass a frame.

    Images may change their size under a running track: they are resampled to the size of the image that the track
    started on, and the results are scaled back.

    Attributes:
        tracker: the tracker that is in use.
        tracks: the targets by their names, the oldest first. It is replaced and never changed, so that other threads
            may read which ones there are.
        named: the target that was started last, whether it is still there or not; empty before the first.
    """

    def __init__(self, tracker: Tracker[Any]) -> None:
        self.tracker = tracker
        self.tracks: Mapping[str, Track] = {}
        self.named = ""
        self._drift = Drift()

    @property
    def states(self) -> dict[str, TrackState]:
        """State of each target by its name."""
        return {name: track.estimate.state for name, track in self.tracks.items()}

    def start(
        self,
        frame: Frame,
        box: Sequence[float],
        target_id: str,
        commit: Callable[[], bool] = lambda: True,
        *,
        label: str = "",
        limit: int = 1,
    ) -> bool:
        """Start on `frame` (HxWx3 uint8, BGR) with `box` (x, y, w, h in pixels).

        A target of the same name is replaced; where there may be one alone, any other one too. Starting takes a while.
        `commit` is asked after it, just before anything changes: when it says False, the request was withdrawn
        meanwhile, and all stays as it was.

        Args:
            frame: HxWx3 uint8, BGR.
            box: x, y, w, h in pixels.
            target_id: its name.
            commit: see above.
            label: what it is.
            limit: most targets that there may be.

        Returns:
            What `commit` said.

        Raises:
            InvalidBox: the box is not one that a track can start on; the targets stay as they are.
            TrackerFailed: the tracker could not start; the targets stay as they are.
            TargetError: there is no room for another target.
        """
        check_room(self.tracks, target_id, limit)
        begun = self._begin(frame, box, target_id, label)
        if not commit():
            return False
        others = {name: track for name, track in self.tracks.items() if name != target_id} if limit > 1 else {}
        taken = {track.slot for track in others.values()}
        before = self.tracks.get(target_id)
        begun.slot = before.slot if before else next(slot for slot in itertools.count() if slot not in taken)
        self.tracks = {**others, target_id: begun}
        self.named = target_id
        return True

    def _begin(self, frame: Frame, box: Sequence[float], target_id: str, label: str) -> Track:
        """A new track, which is not among the targets yet."""
        check_frame(frame)
        height, width = frame.shape[:2]
        checked = validate_init_box(box, width, height)
        try:
            (handle,) = self.tracker.start(frame, [checked])
        except Exception as error:
            raise TrackerFailed(f"{self.tracker.name} could not start on {_text(checked)}: {_reason(error)}") from error
        estimate = Estimate(checked, 1.0, TrackState.TRACKING, checked)
        return Track(target_id, label, 0, handle, (width, height), frame, estimate)

    def step(self, frame: Frame, plausible: bool = True) -> list[TargetReport]:
        """Find all targets in the next frame, in one pass of the tracker.

        A target that two tracks have drifted onto is the older one's, and the younger one is UNCERTAIN. One that the
        tracker failed on has its last box with a score of 0; the next frame may be tried.

        Args:
            frame: HxWx3 uint8, BGR.
            plausible: False where the frame can't show any target: then TRACKING becomes UNCERTAIN.

        Returns:
            A report for each target, the oldest first, in pixels of `frame`.
        """
        found = self._find(frame, list(self.tracks.values()))
        seen = {
            name: estimate.box
            for name, estimate in found.items()
            if isinstance(estimate, Estimate) and estimate.state is not TrackState.LOST
        }
        drifted = self._drift.update(seen)
        return [
            self._settle(track, frame, found[name], plausible, drifted.get(name, ""))
            for name, track in self.tracks.items()
        ]

    def catch_up(self, target_id: str, frame: Frame) -> TargetReport:
        """Find one target in a frame that the others have seen or will see by themselves; see `step`."""
        track = self.tracks[target_id]
        return self._settle(track, frame, self._find(frame, [track])[target_id], True, "")

    def stop(self, target_id: str) -> None:
        """Forget a target.

        Raises:
            TargetError: there is none of that name.
        """
        check_known(self.tracks, target_id)
        self.tracks = {name: track for name, track in self.tracks.items() if name != target_id}

    def stop_all(self) -> None:
        """Forget all targets."""
        self.tracks = {}

    def replace_tracker(self, tracker: Tracker[Any]) -> list[str]:
        """Go on with another tracker.

        A target that is not LOST is handed over: the new tracker starts with its last box, on the image that this box
        was found in. A LOST one is dropped, as there is no box to start on.

        Returns:
            What became of each target, for the log.
        """
        self.tracker = tracker
        remarks, tracks = [], {}
        for name, before in self.tracks.items():
            if before.estimate.state is TrackState.LOST:
                remarks.append(f"target '{name}' was LOST and is dropped: call init_target again")
                continue
            try:
                track = self._begin(before.frame, before.estimate.box, name, before.label)
            except (ValueError, TrackerFailed) as error:
                remarks.append(f"target '{name}' is dropped: {error}")
                continue
            track.slot = before.slot
            tracks[name] = track
            remarks.append(f"target '{name}' goes on from its last box")
        self.tracks = tracks
        return remarks

    # ------------------------------------------------------------------------------------------------- one frame

    def _find(self, frame: Frame, tracks: Sequence[Track]) -> dict[str, Estimate | TrackerFailed]:
        """What the tracker says of each target, by its name, in pixels of `frame`."""
        found: dict[str, Estimate | TrackerFailed] = {}
        # All of one size in one pass: as good as always all that there are.
        for size in dict.fromkeys(track.size for track in tracks):
            group = [track for track in tracks if track.size == size]
            found |= {
                track.target_id: result for track, result in zip(group, self._ask(frame, size, group), strict=True)
            }
        return found

    def _ask(self, frame: Frame, size: tuple[int, int], group: Sequence[Track]) -> list[Estimate | TrackerFailed]:
        try:
            check_frame(frame)
            seen, sx, sy = fit(frame, size)
            estimates = self.tracker.step(seen, [track.handle for track in group])
            return [self._checked(estimate.scaled(sx, sy)) for estimate in estimates]
        except Exception as error:
            if len(group) > 1:
                # One that the tracker can't bear must not end the others: each alone, then.
                return [result for track in group for result in self._ask(frame, size, [track])]
            height, width = frame.shape[:2]
            return [TrackerFailed(f"{self.tracker.name} failed on an image of {width}x{height}: {_reason(error)}")]

    def _checked(self, estimate: Estimate) -> Estimate | TrackerFailed:
        if all(map(math.isfinite, (*estimate.box, *estimate.search_region, estimate.score))):
            return estimate
        return TrackerFailed(f"{self.tracker.name} returned a value that is not finite: {estimate.box}")

    @staticmethod
    def _settle(
        track: Track, frame: Frame, found: Estimate | TrackerFailed, plausible: bool, drifted: str
    ) -> TargetReport:
        """Take over what was found of a target, and report it."""
        failed = isinstance(found, TrackerFailed)
        if isinstance(found, TrackerFailed):
            reason = str(found)
            # The last box says nothing of this image: the state must not be TRACKING, nor the score the last one.
            lost = track.estimate.state is TrackState.LOST
            state = TrackState.LOST if lost else TrackState.UNCERTAIN
            said = dataclasses.replace(track.estimate, score=0.0, state=state, heatmap=None)
        else:
            reason = f"its box has become that of '{drifted}'" if drifted else ""
            doubtful = found.state is TrackState.TRACKING and (bool(drifted) or not plausible)
            said = dataclasses.replace(found, state=TrackState.UNCERTAIN) if doubtful else found
            track.frame, track.estimate = frame, said
        track.frames_since_seen = 0 if said.state is TrackState.TRACKING else track.frames_since_seen + 1
        return TargetReport(track.target_id, said, track.label, track.slot, track.frames_since_seen, reason, failed)


def check_room(names: Collection[str], target_id: str, limit: int) -> None:
    """Check that a target may be started beside those of these names. A limit of 1 means that it replaces them.

    Raises:
        TargetError: names those that there are.
    """
    if target_id not in names and len(names) >= limit > 1:
        raise TargetError(
            f"no room for '{target_id}': {_there_are(names)}, and max_targets is {limit}; stop one with stop_target, "
            "or name one to start it anew"
        )


def check_known(names: Collection[str], target_id: str) -> None:
    """Check that there is a target of this name.

    Raises:
        TargetError: names those that there are.
    """
    if target_id not in names:
        raise TargetError(f"there is no target '{target_id}'; {_there_are(names)}")


def _there_are(names: Collection[str]) -> str:
    return f"there are: {', '.join(sorted(names))}" if names else "there is none at all"


def _text(box: Box) -> str:
    return f"the box x={box.x:g} y={box.y:g} w={box.w:g} h={box.h:g}"


def _reason(error: Exception) -> str:
    return f"{error} ({type(error).__name__})"
