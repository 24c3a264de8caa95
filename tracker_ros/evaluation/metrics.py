"""How well boxes agree with the truth: the measures of the OTB, LaSOT and GOT-10k benchmarks.

Boxes are Nx4 float64 (x, y, w, h in pixels). Frames without truth (a NaN row: the target is absent) count in none of
the overlap measures; `lost_decisions` is about them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker_ros.geometry.boxes import pairwise_iou
from tracker_ros.trackers.base import TrackState

Array = NDArray[np.float64]

#: Overlaps at which the success curve is taken (Wu et al., "Online object tracking: a benchmark", CVPR 2013).
SUCCESS_THRESHOLDS: Array = np.linspace(0, 1, 21)
#: Distances between centres at which the precision curve is taken, pixels.
PRECISION_THRESHOLDS: Array = np.arange(51, dtype=np.float64)
#: The same in sizes of the target (Müller et al., "TrackingNet", ECCV 2018).
NORMALIZED_THRESHOLDS: Array = np.linspace(0, 0.5, 51)


def overlaps(boxes: Array, truth: Array) -> Array:
    """IoU of matching rows, for the frames with truth only: M values in ``[0, 1]``."""
    present = ~np.isnan(truth).any(1)
    return np.clip(pairwise_iou(boxes[present], truth[present]), 0, 1)


def center_errors(boxes: Array, truth: Array, *, normalized: bool = False) -> Array:
    """Distances between the centres of matching rows, in pixels, for the frames with truth only.

    Args:
        boxes, truth: Nx4.
        normalized: measure x in widths and y in heights of the true box.
    """
    present = ~np.isnan(truth).any(1)
    boxes, truth = boxes[present], truth[present]
    offset = boxes[:, :2] + boxes[:, 2:] / 2 - truth[:, :2] - truth[:, 2:] / 2
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
        auc: mean of the success curve.
        precision: part of the frames whose centre is at most 20 px off.
        normalized_precision: part of the frames whose centre is at most 0.2 target sizes off (LaSOT).
        op50, op75: parts of the frames with an IoU above 0.5 and 0.75.
        ao, sr50, sr75: mean IoU, and parts above 0.5 and 0.75, as GOT-10k counts: without the first frame, boxes cut
            at the image's border.
        success, precisions, normalized_precisions: the curves over the module's thresholds.
    """

    frames: int
    auc: float
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


def evaluate(boxes: Array, truth: Array, size: tuple[int, int]) -> Scores:
    """All measures of one sequence.

    Args:
        boxes: Nx4, what the tracker said; the first row is the box that it was given, and counts (as in OTB).
        truth: Nx4, NaN rows where the target is absent; the first row is not.
        size: width and height of the images in pixels.
    """
    ious = overlaps(boxes, truth)
    precisions = precision_curve(center_errors(boxes, truth))
    normalized = precision_curve(center_errors(boxes, truth, normalized=True), NORMALIZED_THRESHOLDS)
    success = success_curve(ious)
    later = overlaps(clip(boxes[1:], size), clip(truth[1:], size))
    return Scores(
        frames=len(ious),
        auc=float(success.mean()),
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


def clip(boxes: Array, size: tuple[int, int]) -> Array:
    """The parts of Nx4 boxes inside an image of `size` (width, height); NaN rows stay."""
    bounds = np.array(size, np.float64)
    corner = np.clip(boxes[:, :2], 0, bounds)
    # As the GOT-10k toolkit does: the corner moves in, the size stays unless it reaches beyond the border.
    return np.concatenate([corner, np.clip(boxes[:, 2:], 0, bounds - corner)], 1)


@dataclass(frozen=True)
class LostDecisions:
    """How often LOST was said, and was right. The first frame does not count.

    Attributes:
        absent: frames without the target.
        lost: frames in which the tracker said LOST.
        right: frames that are both.
        hits_called_lost: frames in which it said LOST although its box overlapped the target by more than 0.5.
    """

    absent: int
    lost: int
    right: int
    hits_called_lost: int

    @property
    def precision(self) -> float:
        """Part of the LOST frames in which the target was absent; NaN if there are none."""
        return self.right / self.lost if self.lost else float("nan")

    @property
    def recall(self) -> float:
        """Part of the absent frames in which the tracker said LOST; NaN if there are none."""
        return self.right / self.absent if self.absent else float("nan")

    def __add__(self, other: LostDecisions) -> LostDecisions:
        return LostDecisions(
            self.absent + other.absent,
            self.lost + other.lost,
            self.right + other.right,
            self.hits_called_lost + other.hits_called_lost,
        )


def lost_decisions(boxes: Array, states: NDArray[np.int64], truth: Array) -> LostDecisions:
    """Count the LOST decisions of one sequence.

    Args:
        boxes: Nx4, what the tracker said.
        states: N values of `TrackState`.
        truth: Nx4, NaN rows where the target is absent.
    """
    absent = np.isnan(truth[1:]).any(1)
    lost = states[1:] == TrackState.LOST
    with np.errstate(invalid="ignore"):
        hit = pairwise_iou(boxes[1:], truth[1:]) > 0.5
    return LostDecisions(int(absent.sum()), int(lost.sum()), int((absent & lost).sum()), int((hit & lost).sum()))


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else float("nan")
