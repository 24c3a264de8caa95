"""The recorder's bookkeeping: what belongs to which image, when it is complete, and the figures at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros.recording import (
    Artist,
    Entry,
    Result,
    Sent,
    Timeline,
    VideoFile,
    believable,
    contact_sheet,
    crop_heatmap,
    key_moments,
    nominal_rate,
    summarize,
    track_report,
    write_sheet,
    write_summary,
)
from tracker_ros.trackers.base import TrackState

PERIOD = 33_000_000
BOX = Box(40, 30, 20, 20)
T, L, IDLE = TrackState.TRACKING, TrackState.LOST, TrackState.IDLE


def image(value: int = 90) -> np.ndarray:
    return np.full((120, 160, 3), value, np.uint8)


def result(state: TrackState = T, counts: tuple[int, int, int] = (0, 0, 0)) -> Result:
    return Result(state, 0.8, Box(20, 10, 60, 60), "kcf", 0.010, counts)


def entry(k: int, state: TrackState | None = T, truth: Box | None = BOX, box: Box | None = BOX) -> Entry:
    e = Entry(k * PERIOD, truth=truth, truth_known=True, frame=k)
    if state is not None:
        e.result = result(state, (k + 1, k + 1, 0))
        if state is not IDLE:
            e.box, e.latency = box, 0.020 + k / 1000
    return e


def test_messages_meet_by_stamp_in_any_order() -> None:
    timeline = Timeline(delay=0.1)
    timeline.add_result(0, result())
    timeline.at(0).box = BOX
    timeline.add_image(PERIOD, image(2))
    timeline.add_image(0, image(1))
    assert timeline.settled() == []
    assert not timeline.complete
    timeline.add_result(4 * PERIOD, result())
    ready = timeline.settled()
    assert [e.stamp for e in ready] == [0]
    assert ready[0].box == BOX
    assert ready[0].image is not None
    assert timeline.complete
    assert [e.stamp for e in timeline.settled(all_of_them=True)] == [PERIOD]
    assert timeline.settled(all_of_them=True) == []


def test_images_that_were_not_processed_keep_their_place() -> None:
    timeline = Timeline(delay=0.05)
    for k in range(6):
        timeline.add_image(k * PERIOD, image(k))
    for k in (0, 3, 5):
        timeline.add_result(k * PERIOD, result())
    ready = timeline.settled()
    assert [e.stamp // PERIOD for e in ready] == [0, 1, 2, 3]
    assert [e.result is not None for e in ready] == [True, False, False, True]


def test_no_tracker_no_pile_of_images() -> None:
    timeline = Timeline(limit=8)
    handed_out = []
    for k in range(50):
        timeline.add_image(k * PERIOD, image())
        handed_out += timeline.settled()
    assert [e.stamp // PERIOD for e in handed_out] == list(range(42))


def test_same_image_twice_is_one_entry() -> None:
    timeline = Timeline()
    timeline.add_image(7, image(1))
    timeline.add_image(7, image(2))
    assert len(timeline.settled(all_of_them=True)) == 1


def test_artist_shows_box_state_and_truth() -> None:
    artist = Artist()
    plain = artist.draw(Entry(0, image()))
    one = entry(1)
    one.image = image()
    tracked = artist.draw(one)
    assert tracked.shape == plain.shape
    assert np.abs(tracked[30:50, 40:60].astype(int) - plain[30:50, 40:60]).max() > 50
    skipped = artist.draw(Entry(2, image()))
    edge = skipped[30, 42:58]
    assert (edge.max(1) - edge.min(1) == 0).all(), "the last box is drawn in grey"
    drawn = edge[:, 0] != plain[30, 42:58, 0]
    assert 0 < drawn.sum() < len(drawn), "and in dashes, unlike the truth"
    assert not np.array_equal(skipped, tracked)


def test_heatmap_is_cut_to_the_search_region() -> None:
    whole = np.zeros((15, 20), np.float32)  # 160x120 image, 8 pixels a cell
    whole[6, 9] = 1  # pixels x 72-80, y 48-56
    part = crop_heatmap(whole, image(), Box(40, 24, 80, 64))
    assert part is not None
    assert part.shape == (8, 10)
    assert np.unravel_index(part.argmax(), part.shape) == (3, 4)
    assert part.max() == pytest.approx(1)
    assert crop_heatmap(whole, image(), Box(0, 0, 0, 0)) is None


def test_video_file_holds_every_picture(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4", 30)
    assert [video.write(image(k * 20)) for k in range(10)] == list(range(10))
    video.write(np.zeros((60, 80, 3), np.uint8))  # another size is scaled
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            break
        frames.append(frame)
    assert len(frames) == 11
    assert frames[0].shape == (120, 160, 3)
    assert abs(frames[9].mean() - 180) < 4


def test_video_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere.a\.mp4"):
        VideoFile(tmp_path / "nowhere" / "a.mp4", 30).write(image())


def story() -> list[Entry]:
    entries = [entry(0, IDLE)] + [entry(k) for k in range(1, 20)]
    entries += [entry(k, T if k < 23 else L, None) for k in range(20, 40)]
    entries += [entry(k, L if k < 46 else T) for k in range(40, 60)]
    entries[10].result = None
    entries[10].box = None
    return entries


def test_key_moments_tell_the_story() -> None:
    moments = key_moments(story(), 12)
    texts = {text: index for index, text in moments if text}
    assert texts["start"] == 1
    assert texts["target leaves"] == 20
    assert texts["LOST"] == 23
    assert texts["target returns"] == 40
    assert texts["regained"] == 46
    indices = [index for index, _ in moments]
    assert indices == sorted(set(indices))
    assert len(indices) == 12


def test_key_moments_of_a_slow_tracker_are_images_that_it_saw() -> None:
    entries = story()
    for k, one in enumerate(entries):
        if k % 3:
            one.result = one.box = None
    moments = key_moments(entries, 16)
    assert len(moments) == 16
    assert all(index % 3 == 0 for index, _ in moments)
    texts = {text: index for index, text in moments if text}
    assert texts["target leaves"] == 21
    assert texts["target returns"] == 42
    assert len(key_moments([Entry(k, image()) for k in range(20)], 8)) == 8


def test_key_moments_of_a_flickering_track_leave_room(tmp_path: Path) -> None:
    entries = [entry(k, L if k % 2 else T) for k in range(200)]
    moments = key_moments(entries, 16)
    assert len(moments) == 16
    assert sum(text == "" for _, text in moments) >= 5


def test_figures() -> None:
    entries = story()
    sent = Sent("test", 30.0, [(k, k * PERIOD) for k in range(61)])
    summary = summarize(entries, sent)
    assert summary["tracker"] == "kcf"
    assert summary["frames_sent"] == 61
    assert (summary["frames_received"], summary["frames_processed"]) == (60, 60)
    # processed with the target in view: 1-9 and 11-19 (IoU 1), 40-45 LOST (0), 46-59 (1)
    assert summary["mean_iou"] == pytest.approx(32 / 38, abs=1e-4)
    assert summary["latency_ms_p50"] == pytest.approx(50, abs=1)
    assert summary["latency_ms_p99"] == pytest.approx(79, abs=0.01)
    assert summary["absences"] == [
        {"first_image": 20, "last_image": 39, "lost_after_images": 3, "regained_after_images": 6}
    ]
    assert [change["state"] for change in summary["states"]] == ["IDLE", "TRACKING", "LOST", "TRACKING"]
    assert [frame["index"] for frame in summary["frames"]] == list(range(60))
    assert summary["frames"][10]["state"] is None
    assert summary["fps"] == pytest.approx((58 - 1) / (58 * 0.033), abs=0.02)


def test_figures_without_truth_or_report() -> None:
    entries = story()
    for e in entries:
        e.truth, e.truth_known = None, False
    summary = summarize(entries, None)
    assert summary["mean_iou"] is None
    assert summary["absences"] == []
    assert summary["frames_sent"] is None
    assert track_report(entries) is None


def test_figures_of_nothing() -> None:
    summary = summarize([], None)
    assert summary["frames_received"] == 0
    assert summary["latency_ms_p50"] is None
    assert summary["fps"] is None


def test_summary_is_json_with_a_line_a_frame(tmp_path: Path) -> None:
    summary = summarize(story(), None)
    write_summary(tmp_path / "summary.json", summary)
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary
    assert sum('"stamp"' in line for line in text.splitlines()) == 60


def test_sheet_is_written_from_the_video(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4", 30)
    entries = story()
    for k, _ in enumerate(entries):
        video.write(image(k * 4))
    video.close()
    write_sheet(tmp_path / "sheet.png", video, entries)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 4 * 406
    assert sheet.std() > 20


def test_contact_sheet_of_one_picture() -> None:
    assert contact_sheet([(image(), "only")]).shape[1] == 406


def test_report_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "source.json"
    path.write_text(json.dumps({"source": "a", "fps": 30, "frames": [{"index": 0, "stamp": 5}]}))
    assert Sent.load(path).frames == [(0, 5)]
    twice = [{"index": 0, "stamp": 5}, {"index": 0, "stamp": 7}, {"index": 2, "stamp": 9}]
    report = {"source": "a", "fps": 30, "frames": twice, "frames_expected": 9, "frames_unreadable": 1}
    path.write_text(json.dumps(report))
    sent = Sent.load(path)
    assert (sent.shown, sent.expected, sent.unreadable) == (2, 9, 1)
    twice[1]["stamp"] = 5
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match="several images have one stamp"):
        Sent.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"source\.json"):
        Sent.load(path)


def test_rate_from_stamps() -> None:
    assert nominal_rate([0, 40_000_000, 80_000_000, 500_000_000]) == pytest.approx(25)
    assert nominal_rate([5]) == 30


@pytest.mark.parametrize("latency", [-0.2, 61.0, 5e7, -3e8, float("nan")])
def test_a_latency_against_another_clock_is_none(latency: float) -> None:
    assert math.isnan(believable(latency))
    assert believable(0.05) == 0.05
