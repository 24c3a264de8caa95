from __future__ import annotations

from tracker_ros.trackers.base import TrackState
from tracker_ros.trackers.state import ConfidenceMonitor, ConfidenceThresholds, Cues, Grade

THRESHOLDS = ConfidenceThresholds(good_score=0.4, bad_score=0.2, regain_score=0.6, min_sharpness=0.3, lost_after=5)
GOOD, WEAK, BAD = Cues(0.8), Cues(0.3), Cues(0.1)


def _after(*frames: Cues) -> list[TrackState]:
    monitor = ConfidenceMonitor(THRESHOLDS)
    return [monitor.update(cues) for cues in frames]


def test_one_bad_frame_is_not_called_tracking_and_changes_nothing_else() -> None:
    assert _after(GOOD, BAD, GOOD) == [TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.TRACKING]
    assert _after(GOOD, WEAK, GOOD) == [TrackState.TRACKING] * 3


def test_doubt_comes_before_loss() -> None:
    states = _after(*[BAD] * 6)
    assert states[:4] == [TrackState.UNCERTAIN] * 4
    assert states[4:] == [TrackState.LOST] * 2


def test_weak_frames_lose_a_target_more_slowly() -> None:
    assert TrackState.LOST not in _after(*[WEAK] * 20)
    assert _after(*[WEAK] * 30)[-1] is TrackState.LOST


def test_a_lost_target_must_show_more_and_twice() -> None:
    middling = Cues(0.5)  # good enough to stay tracked, not to be regained
    assert _after(*[BAD] * 5, *[middling] * 10)[-1] is TrackState.LOST
    assert _after(*[BAD] * 5, GOOD)[-1] is TrackState.LOST
    assert _after(*[BAD] * 5, GOOD, BAD, GOOD)[-1] is TrackState.LOST
    assert _after(*[BAD] * 5, GOOD, GOOD)[-1] is TrackState.TRACKING


def test_every_cue_can_veto() -> None:
    monitor = ConfidenceMonitor(THRESHOLDS)
    assert monitor.grade(Cues(0.9)) is Grade.GOOD
    assert monitor.grade(Cues(0.9, distractor=0.95)) is Grade.WEAK
    assert monitor.grade(Cues(0.9, sharpness=0.2)) is Grade.WEAK
    assert monitor.grade(Cues(0.9, sharpness=0.1)) is Grade.BAD


def test_frames_since_seen_counts_from_the_last_good_frame() -> None:
    monitor = ConfidenceMonitor(THRESHOLDS)
    for cues in (GOOD, WEAK, BAD, WEAK):
        monitor.update(cues)
    assert monitor.frames_since_seen == 3
    monitor.update(GOOD)
    assert monitor.frames_since_seen == 0


def test_a_lost_target_must_look_as_it_used_to() -> None:
    monitor = ConfidenceMonitor(
        ConfidenceThresholds(good_score=0.4, bad_score=0.2, regain_score=0.5, regain_ratio=0.8, lost_after=3)
    )
    for _ in range(50):
        monitor.update(Cues(0.9))
    assert monitor.typical > 0.85
    for expected in (0, 0, 1, 2):
        monitor.update(BAD)
        assert monitor.frames_lost == expected
    assert [monitor.update(Cues(0.65)) for _ in range(5)] == [TrackState.LOST] * 5, "a look-alike"
    assert [monitor.update(Cues(0.85)) for _ in range(2)][-1] is TrackState.TRACKING
    assert monitor.frames_lost == 0
