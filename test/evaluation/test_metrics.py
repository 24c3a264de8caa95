from __future__ import annotations

import math

import numpy as np
import pytest

from tracker_ros.evaluation import metrics
from tracker_ros.evaluation.metrics import StateDecisions
from tracker_ros.trackers.base import TrackState

NAN = [math.nan] * 4
TRUTH = np.array([[10, 10, 20, 10], [10, 10, 20, 10], NAN, [10, 10, 20, 10], [10, 10, 20, 10]], float)
# Exact; half of the width shifted out (IoU 1/3); anything; 30 px right (IoU 0); half as wide (IoU 1/2).
BOXES = np.array([[10, 10, 20, 10], [20, 10, 20, 10], [0, 0, 5, 5], [40, 10, 20, 10], [10, 10, 10, 10]], float)


def test_overlaps_leave_absent_frames_out() -> None:
    np.testing.assert_allclose(metrics.overlaps(BOXES, TRUTH), [1, 1 / 3, 0, 0.5])


def test_center_errors_in_pixels_and_in_target_sizes() -> None:
    np.testing.assert_allclose(metrics.center_errors(BOXES, TRUTH), [0, 10, 30, 5])
    np.testing.assert_allclose(metrics.center_errors(BOXES, TRUTH, normalized=True), [0, 0.5, 1.5, 0.25])
    moved = np.array([[13, 14, 20, 10]], float)
    np.testing.assert_allclose(metrics.center_errors(moved, TRUTH[:1]), [5])
    np.testing.assert_allclose(metrics.center_errors(moved, TRUTH[:1], normalized=True), [math.hypot(3 / 20, 4 / 10)])


def test_success_counts_overlaps_above_not_at_the_threshold() -> None:
    curve = metrics.success_curve(np.array([1, 1 / 3, 0, 0.5]))
    assert len(curve) == 21
    assert curve[0] == 0.75, "an overlap of 0 is no success at threshold 0"
    assert curve[10] == 0.25, "an overlap of 0.5 is no success at threshold 0.5"
    assert curve[20] == 0, "no overlap is above 1"
    # 1 passes 20 thresholds (0 to 0.95), 1/3 seven (0 to 0.3), 0 none, 0.5 ten (0 to 0.45).
    assert curve.mean() == pytest.approx((20 + 7 + 0 + 10) / (4 * 21))


def test_a_perfect_track_scores_20_of_21() -> None:
    assert metrics.success_curve(np.ones(5)).mean() == pytest.approx(20 / 21)


def test_precision_counts_errors_up_to_the_threshold() -> None:
    curve = metrics.precision_curve(np.array([0, 10, 20, 20.5]))
    assert len(curve) == 51
    assert curve[0] == 0.25
    assert curve[10] == 0.5
    assert curve[20] == 0.75
    assert curve[21] == 1


def test_all_measures_of_a_sequence() -> None:
    scores = metrics.evaluate(BOXES, TRUTH, (100, 100))
    assert scores.frames == 4
    assert scores.auc == pytest.approx(37 / 84)
    assert scores.auc_later == pytest.approx(17 / 63)
    assert scores.precision == 0.75
    assert scores.normalized_precision == 0.25
    assert scores.op50 == 0.25
    assert scores.op75 == 0.25
    # Without the first frame: 1/3, 0, 1/2.
    assert scores.ao == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    assert scores.sr50 == 0
    assert scores.sr75 == 0


def test_got10k_measures_only_what_lies_in_the_image() -> None:
    # Half of the target is outside; the box covers just the half inside.
    truth = np.array([[0, 0, 10, 10], [90, 0, 20, 10]], float)
    boxes = np.array([[0, 0, 10, 10], [90, 0, 10, 10]], float)
    scores = metrics.evaluate(boxes, truth, (100, 50))
    assert scores.ao == 1
    assert scores.op75 == 0.5


def test_one_frame_has_no_got10k_measures() -> None:
    scores = metrics.evaluate(TRUTH[:1], TRUTH[:1], (100, 100))
    assert math.isnan(scores.ao)
    assert math.isnan(scores.auc_later)
    assert scores.auc == pytest.approx(20 / 21)


def test_state_decisions() -> None:
    states = np.array([TrackState.TRACKING, TrackState.LOST, TrackState.LOST, TrackState.TRACKING, TrackState.TRACKING])
    truth, boxes = TRUTH.copy(), BOXES.copy()
    boxes[1], boxes[4], truth[4] = truth[1], BOXES[0], math.nan
    # Frames 1 to 4: a hit called LOST, an absence called LOST, a miss and an absence both called TRACKING.
    counts = metrics.state_decisions(boxes, states, truth)
    assert counts == StateDecisions(
        absent=2, lost=2, lost_absent=1, hits=1, lost_hits=1, misses=3, lost_misses=1, tracking_misses=2,
        frames=4, tracking_off=1,
    )  # fmt: skip
    assert counts.precision == 0.5
    assert counts.recall == 0.5
    assert counts.false_alarms == 1
    assert counts.silent_misses == pytest.approx(2 / 3)
    assert (counts.miss_precision, counts.miss_recall) == (0.5, pytest.approx(1 / 3))
    assert (counts.off, counts.afraid) == (0.25, 0.25)
    assert counts + counts == StateDecisions(4, 4, 2, 2, 2, 6, 2, 4, 8, 2)


def test_state_decisions_of_a_perfect_track() -> None:
    perfect = metrics.state_decisions(BOXES, np.ones(5, np.int64), BOXES)
    assert perfect == StateDecisions(hits=4, frames=4)
    assert perfect.false_alarms == 0
    assert all(math.isnan(v) for v in (perfect.precision, perfect.recall, perfect.silent_misses))
