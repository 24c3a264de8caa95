"""Starts after failures, accuracy and robustness on cases that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tracker_ros.evaluation import vot
from tracker_ros.evaluation.runs import Protocol, Track, track_supervised
from tracker_ros.evaluation.sequences import Sequence, load_sequence
from tracker_ros.evaluation.vot import VotScores
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState

NAN = math.nan
ROW = "20,10,10,10"


class Player(Tracker):
    """Plays boxes by the number of the frame (its grey level) and notes where it is started."""

    def __init__(self, boxes: dict[int, Box]) -> None:
        super().__init__("player", TrackerOptions())
        self.boxes = boxes
        self.started: list[tuple[int, Box]] = []
        self.seen: list[int] = []

    def start(self, frame, boxes):
        self.started.append((int(frame[0, 0, 0]), boxes[0]))
        return list(boxes)

    def step(self, frame, targets):
        self.seen.append(int(frame[0, 0, 0]))
        box = self.boxes.get(self.seen[-1], HIT)
        return [Estimate(box, 0.5, TrackState.UNCERTAIN, box) for _ in targets]


def _sequence(make_sequence, rows: list[str]) -> Sequence:
    return load_sequence(make_sequence("s", rows))


HIT = Box(20, 10, 10, 10)
AWAY = Box(40, 30, 10, 10)
HALF = Box(20, 10, 10, 5)


def test_a_failure_is_followed_by_a_start_five_frames_later(make_sequence) -> None:
    sequence = _sequence(make_sequence, [ROW] * 30)
    player = Player({3: AWAY, 20: AWAY})
    calls: list[None] = []
    track = track_supervised(player, sequence, on_frame=lambda: calls.append(None))
    assert (track.starts, track.failures) == ((0, 8, 25), (3, 20))
    assert player.started == [(start, HIT) for start in (0, 8, 25)]
    assert player.seen == [1, 2, 3, *range(9, 21), *range(26, 30)]
    assert np.isnan(track.boxes[:, 0]).nonzero()[0].tolist() == [4, 5, 6, 7, 21, 22, 23, 24]
    assert track.boxes[3].tolist() == list(AWAY), "the box that failed is kept"
    assert np.isnan(track.seconds).nonzero()[0].tolist() == [4, 5, 6, 7, 21, 22, 23, 24]
    assert track.states[[0, 3, 4, 8]].tolist() == [1, 2, 0, 1]
    assert len(calls) == 30


def test_any_overlap_is_no_failure(make_sequence) -> None:
    touching, barely = Box(30, 10, 10, 10), Box(29.9, 10, 10, 10)
    sequence = _sequence(make_sequence, [ROW] * 4)
    assert track_supervised(Player({2: barely}), sequence).failures == ()
    assert track_supervised(Player({2: touching}), sequence).failures == (2,)


def test_only_what_lies_in_the_image_overlaps(make_sequence) -> None:
    # Both reach beyond the right border (at 64) and overlap only there.
    sequence = _sequence(make_sequence, [ROW, "58,10,12,10", "58,10,12,10"])
    assert track_supervised(Player({1: Box(66, 10, 10, 10), 2: Box(60, 10, 10, 10)}), sequence).failures == (1,)


def test_frames_without_truth_are_neither_failures_nor_starts(make_sequence) -> None:
    rows = [ROW] * 3 + ["nan,nan,nan,nan"] * 2 + [ROW] + ["nan,nan,nan,nan"] * 6 + [ROW] * 3
    sequence = _sequence(make_sequence, rows)
    track = track_supervised(Player({3: AWAY, 4: AWAY, 5: AWAY}), sequence)
    # Frame 10 would be the next start; the target is back on frame 12.
    assert (track.starts, track.failures) == ((0, 12), (5,))
    scores = vot.evaluate(track, sequence.truth)
    assert (scores.frames, scores.failures, scores.judged) == (7, 1, 0)


def test_a_box_that_no_track_can_start_on_is_passed_over(make_sequence) -> None:
    sequence = _sequence(make_sequence, [ROW, ROW, *["20,10,2,2"] * 6, ROW])
    assert track_supervised(Player({1: AWAY}), sequence).starts == (0, 8)


def test_a_failure_near_the_end_ends_the_run(make_sequence) -> None:
    track = track_supervised(Player({7: AWAY}), _sequence(make_sequence, [ROW] * 10))
    assert (track.starts, track.failures) == ((0,), (7,))


def test_accuracy_leaves_out_burn_in_failures_and_gaps(make_sequence) -> None:
    # Starts on 0 and 20, failure on 15: judged are 10 to 14 and 30 to 39.
    sequence = _sequence(make_sequence, [ROW] * 40)
    boxes = dict.fromkeys(range(5, 15), HALF) | {15: AWAY}
    track = track_supervised(Player(boxes), sequence)
    assert (track.starts, track.failures) == ((0, 20), (15,))
    scores = vot.evaluate(track, sequence.truth)
    assert scores == VotScores(frames=40, failures=1, judged=15, overlap=5 * 0.5 + 10)
    assert scores.accuracy == pytest.approx(12.5 / 15)
    assert scores.failure_rate == 2.5
    assert scores.robustness == pytest.approx(math.exp(-30 * 1 / 40))


def test_accuracy_is_of_what_lies_in_the_image() -> None:
    # The truth has 6 of its 12 columns inside the image, the box 4 of them and nothing else.
    truth = np.array([[58, 10, 12, 10]] * 11, float)
    track = Track(np.array([[60, 10, 20, 10]] * 11, float), np.ones(11), np.ones(11, int), np.ones(11), (64, 48))
    assert vot.evaluate(track, truth).accuracy == pytest.approx(4 / 6)


def test_scores_of_sequences_are_pooled() -> None:
    pooled = VotScores(100, 1, 80, 40.0) + VotScores(300, 0, 290, 290.0)
    assert pooled.accuracy == pytest.approx(330 / 370)
    assert pooled.robustness == pytest.approx(math.exp(-30 / 400))


def test_nothing_judged_has_no_accuracy() -> None:
    assert math.isnan(VotScores(5, 0).accuracy)
    assert VotScores(5, 0).robustness == 1
    assert math.isnan(VotScores().robustness)


def test_protocols_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match="there is no protocol 'vot2020'"):
        Protocol("vot2020")
    with pytest.raises(ValueError, match="realtime goes with the protocol 'ope' only"):
        Protocol("vot", realtime=30)
    with pytest.raises(ValueError, match="above 0"):
        Protocol(realtime=0)
