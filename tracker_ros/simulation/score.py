"""How a track went, against the truth: overlap, and how fast a target was given up and found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.simulation.flight import Flight
from tracker_ros.trackers.base import Estimate, Tracker, TrackState


@dataclass(frozen=True, slots=True)
class Absence:
    """One time that the target was out of view.

    Attributes:
        first, last: the frames without the target (both included).
        lost_after: frames from `first` to the first LOST among them; None where the tracker never said so.
        regained_after: frames from the target's return (frame ``last + 1``) to the first frame that is not LOST and
            overlaps the truth; None where that did not happen before the target left again or the frames ended.
    """

    first: int
    last: int
    lost_after: int | None
    regained_after: int | None


@dataclass(frozen=True, slots=True)
class TrackReport:
    """A track against the truth.

    Attributes:
        mean_iou: mean overlap over the frames that were processed and have the target in view, LOST counting as 0;
            None where there are none.
        absences: the times out of view, in order.
    """

    mean_iou: float | None
    absences: tuple[Absence, ...]


def regain_report(
    states: Sequence[TrackState | int | None],
    boxes: Sequence[Box | None],
    truth: Sequence[Box | None],
    *,
    overlap: float = 0.3,
) -> TrackReport:
    """Compare a track with the truth, frame by frame.

    Args:
        states: what the tracker said in each frame; None where the frame was not processed.
        boxes: its boxes (pixels), None where there is none.
        truth: the target's boxes (pixels), None where it is out of view.
        overlap: the IoU that counts as found again.

    Raises:
        ValueError: the three are not of the same length.
    """
    if not len(states) == len(boxes) == len(truth):
        raise ValueError(f"one entry a frame is needed: {len(states)} states, {len(boxes)} boxes, {len(truth)} truths")
    seen = (TrackState.TRACKING, TrackState.UNCERTAIN)
    overlaps: list[float] = []
    found: list[bool] = []
    for state, box, real in zip(states, boxes, truth, strict=True):
        value = iou(box, real) if box is not None and real is not None and state in seen else 0.0
        found.append(value > overlap)
        if real is not None and state is not None and state != TrackState.IDLE:
            overlaps.append(value)
    absences = []
    frame = 0
    while frame < len(truth):
        if truth[frame] is not None:
            frame += 1
            continue
        first = frame
        while frame < len(truth) and truth[frame] is None:
            frame += 1
        end = next((k for k in range(frame, len(truth)) if truth[k] is None), len(truth))
        lost = next((k - first for k in range(first, frame) if states[k] == TrackState.LOST), None)
        regained = next((k - frame for k in range(frame, end) if found[k]), None)
        absences.append(Absence(first, frame - 1, lost, regained))
    return TrackReport(sum(overlaps) / len(overlaps) if overlaps else None, tuple(absences))


def track_flight(tracker: Tracker[Any], flight: Flight) -> tuple[list[Estimate], TrackReport]:
    """Run a tracker over all frames of a flight, started on the true box of the first one.

    Returns:
        the estimates of frames 1 and later, and the report on them (frame numbers are the flight's).
    """
    first, truth = flight.render(0)
    assert truth.box is not None  # a flight begins with its target in view
    tracker.initialize(first, truth.box)
    estimates, truths = [], []
    for index in range(1, len(flight)):
        frame, truth = flight.render(index)
        estimates.append(tracker.track(frame))
        truths.append(truth.box)
    report = regain_report(
        [TrackState.IDLE, *(e.state for e in estimates)],
        [None, *(e.box for e in estimates)],
        [flight.truth_at(0).box, *truths],
    )
    return estimates, report
