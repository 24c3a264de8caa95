"""When is a target tracked, doubtful or lost: a state machine with hysteresis over several cues.

A raw peak score alone lies: a look-alike scores high, a flat response scores by chance. Each frame is graded from
three cues, and the grades move the state with inertia in both directions, so that one blurred frame does not lose a
target and one lucky frame does not regain it. A frame in which the target is not seen is never called TRACKING.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tracker_ros.trackers.base import TrackState

#: Rate of the moving average of the score of GOOD frames.
_TYPICAL_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Cues:
    """What one frame says about the target.

    Attributes:
        score: height of the main peak, in ``[0, 1]``.
        distractor: height of the second peak over that of the first, in ``[0, 1]``; 0 where there is none.
        sharpness: how much the peak stands out of the response, in ``[0, 1]``; 1 where a tracker has no response map.
    """

    score: float
    distractor: float = 0.0
    sharpness: float = 1.0


class Grade(enum.Enum):
    """Verdict on one frame."""

    GOOD = "good"
    WEAK = "weak"
    BAD = "bad"


@dataclass(frozen=True)
class ConfidenceThresholds:
    """Where the grades lie and how many frames it takes to change the state.

    Attributes:
        good_score: a frame scoring at least this is GOOD, if the other two cues agree.
        bad_score: a frame scoring below this is BAD.
        max_distractor: above this ratio two places look alike, so the frame is at most WEAK.
        min_sharpness: below this the response is flat, so the frame is at most WEAK; below half of it, BAD.
        regain_score: score that a LOST target must reach to count towards its return.
        regain_ratio: the same, as a share of the score that the target typically had while it was tracked.
        uncertain_after: WEAK or BAD frames in a row that turn TRACKING into UNCERTAIN.
        lost_after: amount of doubt that turns into LOST: a BAD frame adds 1, a WEAK one `weak_doubt`.
        weak_doubt: doubt that a WEAK frame adds.
        recover_after: GOOD frames in a row that turn UNCERTAIN into TRACKING.
        regain_after: frames in a row at `regain_score` that turn LOST into TRACKING.
    """

    good_score: float
    bad_score: float
    max_distractor: float = 0.8
    min_sharpness: float = 0.0
    regain_score: float = 0.5
    regain_ratio: float = 0.0
    uncertain_after: int = 2
    lost_after: float = 5.0
    weak_doubt: float = 0.2
    recover_after: int = 2
    regain_after: int = 2


class ConfidenceMonitor:
    """State of one track. Starts in TRACKING, as the first box is given by the user.

    Attributes:
        state: the current state.
        frames_since_seen: frames since the last GOOD one.
        frames_lost: frames in a row in the state LOST.
        typical: moving average of the score of GOOD frames; 0 before the first.
    """

    def __init__(self, thresholds: ConfidenceThresholds) -> None:
        self.thresholds = thresholds
        self.state = TrackState.TRACKING
        self.frames_since_seen = 0
        self.frames_lost = 0
        self.typical = 0.0
        self._doubt = 0.0
        self._good_run = 0
        self._poor_run = 0

    @property
    def needed(self) -> float:
        """Score that a frame needs to be GOOD; more once the target is LOST, as anything could be it then."""
        t = self.thresholds
        if self.state is not TrackState.LOST:
            return t.good_score
        return max(t.good_score, t.regain_score, t.regain_ratio * self.typical)

    def grade(self, cues: Cues) -> Grade:
        """Judge one frame alone."""
        t = self.thresholds
        if cues.score < t.bad_score or cues.sharpness < t.min_sharpness / 2:
            return Grade.BAD
        if cues.score < self.needed or cues.distractor > t.max_distractor or cues.sharpness < t.min_sharpness:
            return Grade.WEAK
        return Grade.GOOD

    def update(self, cues: Cues) -> TrackState:
        """Take in one frame's cues.

        Returns:
            What to say of this frame: the new state, but UNCERTAIN for a BAD frame of a target that is tracked on.
        """
        t = self.thresholds
        grade = self.grade(cues)
        if grade is Grade.GOOD:
            self.frames_since_seen = 0
            self.typical += (cues.score - self.typical) * (_TYPICAL_RATE if self.typical else 1.0)
            self._good_run += 1
            self._poor_run = 0
            self._doubt = max(0.0, self._doubt - 1.0)
        else:
            self.frames_since_seen += 1
            self._good_run = 0
            self._poor_run += 1
            self._doubt = min(t.lost_after, self._doubt + (1.0 if grade is Grade.BAD else t.weak_doubt))

        if self.state is TrackState.LOST:
            if self._good_run >= t.regain_after:
                self.state = TrackState.TRACKING
                self._doubt = 0.0
        elif self._doubt >= t.lost_after:
            self.state = TrackState.LOST
        elif self._poor_run >= t.uncertain_after:
            self.state = TrackState.UNCERTAIN
        elif self.state is TrackState.UNCERTAIN and self._good_run >= t.recover_after:
            self.state = TrackState.TRACKING
        self.frames_lost = self.frames_lost + 1 if self.state is TrackState.LOST else 0
        if grade is Grade.BAD and self.state is TrackState.TRACKING:
            return TrackState.UNCERTAIN
        return self.state
