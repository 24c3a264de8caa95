"""What every tracker of the registry keeps to. Those whose weights are not there are skipped, and say so."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import tracker_ros
from tracker_ros.errors import WeightsMissing
from tracker_ros.geometry.boxes import Box, InvalidBox, iou
from tracker_ros.trackers.base import InvalidOption, Tracker, TrackState
from tracker_ros.trackers.opencv import OpenCVTrackerMissing

W, H = 320, 240
SIZE = (44, 36)


@pytest.fixture(scope="module", params=tracker_ros.tracker_names())
def tracker(request) -> Tracker[Any]:
    try:
        return tracker_ros.create(request.param, device="cpu")
    except (WeightsMissing, OpenCVTrackerMissing) as error:
        pytest.skip(f"{request.param}: {error}")


def _texture(seed: int, width: int, height: int, cell: int) -> NDArray[np.uint8]:
    small = np.random.RandomState(seed).randint(0, 255, (height // cell + 1, width // cell + 1, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _truth(index: int, lane: int = 0) -> Box:
    return Box(60.0 + 3 * index, 70.0 + 90 * lane + index, *SIZE)


def _scene(index: int) -> NDArray[np.uint8]:
    """Frame `index`: two textured patches that move over a dim background."""
    frame = (_texture(0, W, H, 30) // 4 + 100).astype(np.uint8)
    for lane in range(2):
        x, y = (int(v) for v in _truth(index, lane)[:2])
        frame[y : y + SIZE[1], x : x + SIZE[0]] = _texture(1 + lane, *SIZE, 6)
    return frame


def test_follows_a_moving_patch(tracker: Tracker[Any]) -> None:
    tracker.initialize(_scene(0), _truth(0))
    for index in range(1, 13):
        estimate = tracker.track(_scene(index))
        assert np.isfinite(estimate.box).all()
        assert np.isfinite(estimate.search_region).all()
        assert estimate.box.w > 0
        assert estimate.box.h > 0
        assert 0 <= estimate.score <= 1
        assert estimate.state in (TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST)
        assert all(np.isfinite(value) for value in estimate.cues.values())
        assert iou(estimate.box, _truth(index)) > 0.4
        assert iou(estimate.search_region, estimate.box) > 0


def test_heatmap_is_a_map_over_the_search_region(tracker: Tracker[Any]) -> None:
    tracker.initialize(_scene(0), _truth(0))
    heatmap = tracker.track(_scene(1)).heatmap
    assert heatmap is not None
    assert heatmap.ndim == 2
    assert heatmap.dtype == np.float32
    assert heatmap.min() >= 0
    assert heatmap.max() <= 1
    assert heatmap.max() > heatmap.min()


def test_starts_anew_without_a_trace_of_the_last_track(tracker: Tracker[Any]) -> None:
    def run() -> list[Box]:
        np.random.seed(0)
        tracker.initialize(_scene(0), _truth(0, lane=1))
        return [tracker.track(_scene(index)).box for index in range(1, 5)]

    fresh = run()
    tracker.initialize(_scene(3), _truth(3))
    tracker.track(_scene(4))
    np.testing.assert_allclose(run(), fresh, atol=1e-3)


def test_two_targets_at_once_are_two_single_tracks(tracker: Tracker[Any]) -> None:
    def run(lanes: list[int]) -> NDArray[np.float64]:
        targets = tracker.start(_scene(0), [_truth(0, lane) for lane in lanes])
        return np.array([[e.box for e in tracker.step(_scene(index), targets)] for index in range(1, 5)])

    both = run([0, 1])
    # A batch sums in another order than a single target does, hence the hundredths of a pixel.
    np.testing.assert_allclose(both[:, 0], run([0])[:, 0], atol=0.05)
    np.testing.assert_allclose(both[:, 1], run([1])[:, 0], atol=0.05)


def test_no_targets_no_estimates(tracker: Tracker[Any]) -> None:
    assert tracker.step(_scene(0), []) == []


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(np.zeros((H, W), np.uint8), id="grey"),
        pytest.param(np.zeros((H, W, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((H, W, 3), np.float32), id="float"),
        pytest.param(np.zeros((0, W, 3), np.uint8), id="empty"),
        pytest.param(None, id="none"),
    ],
)
def test_bad_frames_are_named_and_the_track_goes_on(tracker: Tracker[Any], frame: Any) -> None:
    tracker.initialize(_scene(0), _truth(0))
    with pytest.raises(ValueError, match="frame is"):
        tracker.track(frame)
    assert iou(tracker.track(_scene(1)).box, _truth(1)) > 0.4


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 10, float("nan"), 20), "NaN"),
        ((10, 10, 0, 20), "zero or negative"),
        ((10, 10, 3, 3), "too small"),
        ((10, 10, W * 1.5, 20), "larger than the image"),
        ((W + 50, 10, 20, 20), "outside the image"),
        ((10, 10, 20), "four numbers"),
    ],
)
def test_bad_boxes_are_named_and_the_track_goes_on(tracker: Tracker[Any], box: tuple[float, ...], words: str) -> None:
    tracker.initialize(_scene(0), _truth(0))
    with pytest.raises(InvalidBox, match=words):
        tracker.initialize(_scene(1), box)
    assert iou(tracker.track(_scene(1)).box, _truth(1)) > 0.4


def test_unknown_options_are_named(tracker: Tracker[Any]) -> None:
    with pytest.raises(InvalidOption, match="no option 'colour'"):
        tracker_ros.create(tracker.name, colour="red")


def test_track_without_a_box_is_refused(tracker: Tracker[Any]) -> None:
    fresh = tracker_ros.create(tracker.name, device="cpu")
    with pytest.raises(RuntimeError, match="before initialize"):
        fresh.track(_scene(0))


def test_a_threshold_changes_while_a_target_is_tracked(tracker: Tracker[Any]) -> None:
    before = tracker.options
    tracker.initialize(_scene(0), _truth(0))
    assert tracker.track(_scene(1)).state is TrackState.TRACKING
    try:
        assert tracker.reconfigure(before.replace(good_score=1.0, bad_score=1.0, lost_after=2))
        states = [tracker.track(_scene(index)).state for index in (2, 3, 4)]
        assert states[-1] is TrackState.LOST, "it was not built anew, and the track goes by the new thresholds"
        assert not tracker.reconfigure(tracker.options.replace(device="cuda:7"))
        assert tracker.options.device == before.device
    finally:
        assert tracker.reconfigure(before)
