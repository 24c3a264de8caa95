"""What trackers with a network know of a target, and of what one frame shows of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.crops import Window
from tracker_ros.trackers.appearance import ColourModel
from tracker_ros.trackers.base import TrackState
from tracker_ros.trackers.state import ConfidenceMonitor

#: Frames whose sizes say how large a target is that is being covered.
TRUSTED_FRAMES = 30


@dataclass(kw_only=True)
class Target:
    """Where a target is, and how it is looked for. What a method has learned of it is added by its own class.

    Attributes:
        position: centre (x, y), continuous pixels of the image.
        size: width and height, pixels.
        monitor: its state machine.
        colours: its first and recent colours; None where no rule asks for them.
        frame_number: frames seen; the first is 1.
        missing: frames in a row in which it was not seen.
        sizes: sizes of the last frames in which it was surely seen.
        scan: windows of a lost target's search that were already looked at.
        candidate: a lost target is being confirmed at `position`.
        last_seen: position and size where it was lost, to which a failed candidate returns.
    """

    position: NDArray[np.float64]
    size: NDArray[np.float64]
    monitor: ConfidenceMonitor
    colours: ColourModel | None = None
    frame_number: int = 1
    missing: int = 0
    sizes: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=TRUSTED_FRAMES))
    scan: int = 0
    candidate: bool = False
    last_seen: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def lost(self) -> bool:
        """Whether it is LOST."""
        return self.monitor.state is TrackState.LOST


@dataclass(frozen=True, slots=True)
class View:
    """One window in which a target is looked for.

    Attributes:
        window: what is cut.
        place: its centre before it was rounded to whole pixels (x, y), pixels of the image.
        free: the target can be anywhere in it, so nothing speaks for its middle.
    """

    window: Window
    place: NDArray[np.float64]
    free: bool


@dataclass(slots=True)
class Found:
    """What a method takes for the target in one view.

    Attributes:
        box: where it is, pixels of the image.
        center: the centre that the track would take over, (x, y) pixels.
        size: the size that it would take over, (w, h) pixels.
        peak: where the response is highest, (x, y) pixels.
        seen: whether the method itself takes it for the target.
        score: how sure it is, 0 to 1 (a little beyond for a regressed response).
        second: the best score of another object.
        focus: share of the response's energy that belongs to this object, 0 to 1.
        cues: further numbers of the method.
    """

    box: Box
    center: NDArray[np.float64]
    size: NDArray[np.float64]
    peak: NDArray[np.float64]
    seen: bool
    score: float
    second: float
    focus: float
    cues: dict[str, float] = field(default_factory=dict)
