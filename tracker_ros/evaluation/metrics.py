"""How well boxes agree with the truth: the measures of the OTB, LaSOT and GOT-10k benchmarks.

Boxes are Nx4 float64 (x, y, w, h in pixels). Frames without truth (a NaN row: the target is absent) count in none of
the overlap measures; `state_decisions` is about them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import pairwise_iou
from tracker_ros.trackers.base import TrackState

Array = NDArray[np.float64]
#: Width and height of all images in pixels, or Nx2 where they differ.
Sizes = tuple[int, int] | Array

#: Overlaps at which the success curve is taken (Wu et al., "Online object tracking: a benchmark", CVPR 2013).
SUCCESS_THRESHOLDS: Array = np.linspace(0, 1, 21)
#: Distances between centres at which the precision curve is taken, pixels.
PRECISION_THRESHOLDS: Array = np.arange(51, dtype=np.float64)
#: The same in sizes of the target (Müller et al., "TrackingNet", ECCV 2018).
NORMALIZED_THRESHOLDS: Array = np.linspace(0, 0.5, 51)


def overlaps(boxes: Array, truth: Array) -> Array:
    """IoU of matching rows, for the frames with truth only: M values in ``[0, 1]``."""
    present = ~_absent(truth)
    return np.clip(pairwise_iou(boxes[present], truth[present]), 0, 1)


def visible_overlaps(boxes: Array, truth: Array, size: Sizes) -> Array:
    """IoU of the parts of matching rows inside an image of `size`, as VOT measures.

    Returns:
        N values in ``[0, 1]``; NaN where a row has a NaN.
    """
    bounds = np.array(size, np.float64)

    def visible(rows: Array) -> Array:
        begin, end = np.clip(rows[:, :2], 0, bounds), np.clip(rows[:, :2] + rows[:, 2:], 0, bounds)
        return np.concatenate([begin, end - begin], 1)

    return np.clip(pairwise_iou(visible(boxes), visible(truth)), 0, 1)


def center_errors(boxes: Array, truth: Array, *, normalized: bool = False) -> Array:
    """Distances between the centres of matching rows, in pixels, for the frames with truth only.

    Args:
        boxes, truth: Nx4.
        normalized: measure x in widths and y in heights of the true box.
    """
    present = ~_absent(truth)
    boxes, truth = boxes[present], truth[present]
    offset = (boxes[:, :2] + boxes[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
    if normalized:
        offset = offset / truth[:, 2:]
    return np.hypot(offset[:, 0], offset[:, 1])


def success_curve(ious: Array, thresholds: Array = SUCCESS_THRESHOLDS) -> Array:
    """Part of the frames whose IoU is above (not at) each threshold. Its mean is the AUC."""
    return (ious[:, None] > thresholds[None, :]).mean(0)


def precision_curve(errors: Array, thresholds: Array = PRECISION_THRESHOLDS) -> Array:
    """Part of the frames whose centre error is at most each threshold."""
    return (errors[:, None] <= thresholds[None, :]).mean(0)


@dataclass(frozen=True)
class Scores:
    """Measures of one tracker on one sequence; parts in ``[0, 1]``.

    Attributes:
        frames: frames with truth.
        auc: mean of the success curve; the first frame, whose box is given, counts, as in OTB.
        auc_later: the same without the first frame.
        precision: part of the frames whose centre is at most 20 px off.
        normalized_precision: part of the frames whose centre is at most 0.2 target sizes off (LaSOT).
        op50, op75: parts of the frames with an IoU above 0.5 and 0.75.
        ao, sr50, sr75: mean IoU, and parts above 0.5 and 0.75, as GOT-10k counts: without the first frame, boxes cut
            at the image's border.
        success, precisions, normalized_precisions: the curves over the module's thresholds.
    """

    frames: int
    auc: float
    auc_later: float
    precision: float
    normalized_precision: float
    op50: float
    op75: float
    ao: float
    sr50: float
    sr75: float
    success: Array
    precisions: Array
    normalized_precisions: Array


def evaluate(boxes: Array, truth: Array, size: Sizes) -> Scores:
    """All measures of one sequence.

    Args:
        boxes: Nx4, what the tracker said; the first row is the box that it was given, and counts (as in OTB).
        truth: Nx4, NaN rows where the target is absent; the first row is not.
        size: of the images.
    """
    ious = overlaps(boxes, truth)
    precisions = precision_curve(center_errors(boxes, truth))
    normalized = precision_curve(center_errors(boxes, truth, normalized=True), NORMALIZED_THRESHOLDS)
    success = success_curve(ious)
    bounds = np.broadcast_to(np.array(size, np.float64), (len(boxes), 2))
    later = overlaps(clip(boxes[1:], bounds[1:]), clip(truth[1:], bounds[1:]))
    return Scores(
        frames=len(ious),
        auc=float(success.mean()),
        auc_later=float(success_curve(ious[1:]).mean()) if len(ious) > 1 else float("nan"),
        precision=float(precisions[20]),
        normalized_precision=float(normalized[20]),
        op50=float((ious > 0.5).mean()),
        op75=float((ious > 0.75).mean()),
        ao=_mean(later),
        sr50=_mean(later > 0.5),
        sr75=_mean(later > 0.75),
        success=success,
        precisions=precisions,
        normalized_precisions=normalized,
    )


def clip(boxes: Array, size: Sizes) -> Array:
    """The parts of Nx4 boxes inside an image of `size`; NaN rows stay."""
    bounds = np.array(size, np.float64)
    corner = np.clip(boxes[:, :2], 0, bounds)
    # As the GOT-10k toolkit does: the corner moves in, the size stays unless it reaches beyond the border.
    return np.concatenate([corner, np.clip(boxes[:, 2:], 0, bounds - corner)], 1)


@dataclass(frozen=True)
class StateDecisions:
    """How often the state was true to what happened. The first frame does not count.

    Attributes:
        absent: frames without the target.
        lost: frames in which the tracker said LOST.
        lost_absent: frames that are both.
        hits: frames in which its box overlapped the target by more than 0.5.
        lost_hits: of those, the ones in which it said LOST.
        misses: frames in which its box did not touch the target, or there was none.
        lost_misses: of those, the ones in which it said LOST.
        tracking_misses: of those, the ones in which it said TRACKING.
        frames: all of them.
        tracking_off: frames with the target in which it said TRACKING at an IoU below 0.1.
    """

    absent: int = 0
    lost: int = 0
    lost_absent: int = 0
    hits: int = 0
    lost_hits: int = 0
    misses: int = 0
    lost_misses: int = 0
    tracking_misses: int = 0
    frames: int = 0
    tracking_off: int = 0

    @property
    def precision(self) -> float:
        """Part of the LOST frames in which the target was absent; NaN if there are none."""
        return _ratio(self.lost_absent, self.lost)

    @property
    def recall(self) -> float:
        """Part of the absent frames in which the tracker said LOST; NaN if there are none."""
        return _ratio(self.lost_absent, self.absent)

    @property
    def false_alarms(self) -> float:
        """Part of the hits in which the tracker said LOST; NaN if there are none."""
        return _ratio(self.lost_hits, self.hits)

    @property
    def miss_precision(self) -> float:
        """Part of the LOST frames that were misses; NaN if there are none."""
        return _ratio(self.lost_misses, self.lost)

    @property
    def miss_recall(self) -> float:
        """Part of the misses in which the tracker said LOST; NaN if there are none."""
        return _ratio(self.lost_misses, self.misses)

    @property
    def silent_misses(self) -> float:
        """Part of the misses in which the tracker said TRACKING; NaN if there are none."""
        return _ratio(self.tracking_misses, self.misses)

    @property
    def off(self) -> float:
        """Part of the frames in which it said TRACKING of a box elsewhere than the target in view (IoU < 0.1)."""
        return _ratio(self.tracking_off, self.frames)

    @property
    def afraid(self) -> float:
        """Part of the frames in which it said LOST of a hit."""
        return _ratio(self.lost_hits, self.frames)

    def __add__(self, other: StateDecisions) -> StateDecisions:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return StateDecisions(*(a + b for a, b in pairs))


def state_decisions(boxes: Array, states: NDArray[np.int64], truth: Array) -> StateDecisions:
    """Compare the states of one sequence with what happened.

    Args:
        boxes: Nx4, what the tracker said.
        states: N values of `TrackState`.
        truth: Nx4, NaN rows where the target is absent.
    """
    absent = _absent(truth[1:])
    overlap = np.where(absent, 0.0, pairwise_iou(boxes[1:], np.where(absent[:, None], 0.0, truth[1:])))
    lost, tracking = states[1:] == TrackState.LOST, states[1:] == TrackState.TRACKING
    hit, miss = overlap > 0.5, overlap <= 0
    every = np.ones_like(absent)
    off = tracking & ~absent & (overlap < 0.1)
    flags = (absent, lost, absent & lost, hit, hit & lost, miss, miss & lost, miss & tracking, every, off)
    return StateDecisions(*(int(flag.sum()) for flag in flags))


def _absent(truth: Array) -> NDArray[np.bool_]:
    return np.isnan(truth.sum(1))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else float("nan")
