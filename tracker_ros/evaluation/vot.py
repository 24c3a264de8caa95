"""Accuracy and robustness with new starts after failures, as the VOT challenges measured until 2019.

Kristan et al., "A novel performance evaluation methodology for single-target trackers", PAMI 2016; the challenges from
VOT2013 to VOT2018 differ only in how they put sequences together. Boxes stand in for regions; see `evaluate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tracker_ros.evaluation.metrics import Array, visible_overlaps
from tracker_ros.evaluation.runs import Track

#: Frames from each start on whose overlap does not count, since it owes much to the box that was given.
BURN_IN = 10
#: Length in frames of the stretch that `VotScores.robustness` speaks of.
SENSITIVITY = 30


@dataclass(frozen=True)
class VotScores:
    """What one tracker achieved on one or more sequences; scores of several are added.

    Attributes:
        frames: frames with truth.
        failures: frames in which the box did not overlap the target.
        judged: frames that count for the accuracy.
        overlap: sum of the IoU of these.
    """

    frames: int = 0
    failures: int = 0
    judged: int = 0
    overlap: float = 0.0

    @property
    def accuracy(self) -> float:
        """Mean IoU of the judged frames, in ``[0, 1]``; NaN if there are none."""
        return self.overlap / self.judged if self.judged else math.nan

    @property
    def failure_rate(self) -> float:
        """Failures in 100 frames; NaN if there are no frames."""
        return 100 * self.failures / self.frames if self.frames else math.nan

    @property
    def robustness(self) -> float:
        """Chance of no failure in `SENSITIVITY` frames, ``exp(-SENSITIVITY * failures / frames)``."""
        return math.exp(-SENSITIVITY / 100 * self.failure_rate)

    def __add__(self, other: VotScores) -> VotScores:
        return VotScores(
            self.frames + other.frames,
            self.failures + other.failures,
            self.judged + other.judged,
            self.overlap + other.overlap,
        )


def evaluate(track: Track, truth: Array) -> VotScores:
    """Measure a run of `runs.track_supervised`.

    The IoU is that of the boxes' parts inside the image. Judged are the frames with truth in which the tracker ran
    and did not fail, without the `BURN_IN` frames from each start on, the first start included.

    Args:
        track: what the tracker said of N frames.
        truth: Nx4 (x, y, w, h in pixels), NaN rows where the target is absent.
    """
    ious = visible_overlaps(track.boxes, truth, track.size)
    judged = ~np.isnan(ious)
    judged[list(track.failures)] = False
    for start in track.starts:
        judged[start : start + BURN_IN] = False
    return VotScores(
        frames=int((~np.isnan(truth[:, 0])).sum()),
        failures=len(track.failures),
        judged=int(judged.sum()),
        overlap=float(ious[judged].sum()),
    )
