"""The report on a track, on hand-made tracks whose numbers are known."""

from __future__ import annotations

import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.simulation import Flight, FlightOptions
from tracker_ros.simulation.score import Absence, regain_report, track_flight
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState

HERE = Box(10, 10, 20, 20)
THERE = Box(200, 10, 20, 20)
T, U, L = TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST


def test_lost_and_regained_are_counted_from_leaving_and_return() -> None:
    truth = [HERE] * 3 + [None] * 5 + [HERE] * 4
    states = [T, T, T, T, U, L, L, L, L, U, T, T]
    boxes = [HERE] * 9 + [THERE, HERE, HERE]
    report = regain_report(states, boxes, truth)
    assert report.absences == (Absence(3, 7, 2, 2),)
    assert report.mean_iou == pytest.approx((3 + 0 + 0 + 2) / 7)


def test_a_tracker_that_never_lets_go_is_told_so() -> None:
    truth = [HERE, None, None, HERE]
    report = regain_report([T, T, T, T], [HERE, HERE, HERE, THERE], truth)
    assert report.absences == (Absence(1, 2, None, None),)


def test_frames_that_were_not_processed_do_not_count() -> None:
    report = regain_report([T, None, T], [HERE, None, HERE], [HERE, HERE, HERE])
    assert report.mean_iou == 1
    assert report.absences == ()


def test_regaining_counts_until_the_next_absence_only() -> None:
    truth = [None, HERE, None, HERE]
    report = regain_report([L, L, L, T], [None, None, None, HERE], truth)
    assert report.absences == (Absence(0, 0, 0, None), Absence(2, 2, 0, 0))


def test_no_truth_no_mean() -> None:
    assert regain_report([L], [None], [None]).mean_iou is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 states, 1 boxes, 1 truths"):
        regain_report([T, T], [HERE], [HERE])


class Statue(Tracker):
    """Stays where it was started, and is sure of it."""

    def start(self, frame, boxes):
        return list(boxes)

    def step(self, frame, targets):
        return [Estimate(box, 1.0, TrackState.TRACKING, box) for box in targets]


def test_flight_is_tracked_from_its_first_frame() -> None:
    flight = Flight(FlightOptions(width=160, height=120, duration=0.5))
    estimates, report = track_flight(Statue("statue", TrackerOptions()), flight)
    assert len(estimates) == len(flight) - 1
    assert estimates[0].box == flight.truth_at(0).box
    assert report.mean_iou is not None
    assert 0 < report.mean_iou < 1
