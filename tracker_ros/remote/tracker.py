"""The tracker as those see it who command it from another process."""

from __future__ import annotations

import enum
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from tracker_ros.geometry.boxes import Box


class State(enum.IntEnum):
    """What is known of a target; the values are those of ``TrackStatus.msg``."""

    IDLE = 0
    TRACKING = 1
    UNCERTAIN = 2
    LOST = 3
    STALE = 4  # The tracker has no news: no image came, or none was finished.

    @property
    def seen(self) -> bool:
        """Whether the target's box is one of now."""
        return self in (State.TRACKING, State.UNCERTAIN)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What the tracker said of one target in one image.

    Attributes:
        stamp: the image's stamp, nanoseconds.
        target_id: the target's name; empty where there is no target (then the state is IDLE).
        state, score: as in ``TrackStatus``.
        box: x, y, w, h in pixels; None where the tracker gives none, as for a LOST target.
        tracker: name of the tracker's preset.
        reason: why the state should be doubted, in words.
    """

    stamp: int
    target_id: str
    state: State
    score: float
    box: Box | None = None
    tracker: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request; the text is for people and says why, where it was refused."""

    ok: bool
    text: str


class RemoteTracker(Protocol):
    """A tracker that takes requests from any thread.

    Every future gets an `Answer` within a bounded time and never an exception: a tracker that is not there, or says
    nothing, is an answer too.
    """

    def start(self, stamp: int, box: Box, target_id: str) -> Future[Answer]:
        """Track what is in `box` (pixels) on the image with this stamp (nanoseconds; 0: the newest one)."""

    def stop(self, target_id: str = "") -> Future[Answer]:
        """Stop tracking this target; all of them where the name is empty."""

    def pause(self, paused: bool) -> Future[Answer]:
        """Take no more images, or go on."""

    def select(self, tracker: str) -> Future[Answer]:
        """Hand the targets over to another tracker, named by its preset."""
