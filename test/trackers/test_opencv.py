"""The OpenCV trackers: what their wrapper adds. What all trackers have in common is in test_all_trackers.py."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import onnx_files
import pytest
from numpy.typing import NDArray

from tracker_ros.errors import WeightsError, WeightsMissing
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.trackers import opencv
from tracker_ros.trackers.appearance import Appearance
from tracker_ros.trackers.base import InvalidOption, TrackState
from tracker_ros.trackers.opencv import PRESETS, OpenCVTracker, OpenCVTrackerMissing

needs_contrib = pytest.mark.skipif(
    not hasattr(cv2, "TrackerCSRT_create"),
    reason="this OpenCV has no contrib modules; runs with opencv-contrib-python-headless or Debian's python3-opencv",
)
W, H = 320, 240
SIDE = 40


def _texture(seed: int, width: int, height: int, cell: int) -> NDArray[np.uint8]:
    small = np.random.RandomState(seed).randint(0, 255, (height // cell, width // cell, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _scene(x: float | None, y: float = 100.0) -> NDArray[np.uint8]:
    """A patch with its corner at x, y (None: it is not there) over a background that looks otherwise."""
    frame = (_texture(0, W, H, 20) // 3 + 120).astype(np.uint8)
    if x is not None:
        shift = np.array([[1, 0, x], [0, 1, y]], np.float64)
        patch = _texture(1, SIDE, SIDE, 5)
        mask = cv2.warpAffine(np.full((SIDE, SIDE), 255, np.uint8), shift, (W, H)) > 127
        frame[mask] = cv2.warpAffine(patch, shift, (W, H), borderMode=cv2.BORDER_REPLICATE)[mask]
    return frame


@needs_contrib
@pytest.mark.parametrize("name", ["csrt", "kcf"])
def test_lost_when_the_target_leaves_and_found_when_it_returns(name: str) -> None:
    tracker = OpenCVTracker(name, PRESETS[name])
    tracker.initialize(_scene(100), (100, 100, SIDE, SIDE))
    for x in range(104, 200, 4):
        estimate = tracker.track(_scene(x))
        assert estimate.state is TrackState.TRACKING
        assert iou(estimate.box, Box(x, 100, SIDE, SIDE)) > 0.7
    away = [tracker.track(_scene(None)) for _ in range(20)]
    assert [e.state for e in away[15:]] == [TrackState.LOST] * 5
    assert all(e.box == away[-1].box for e in away[15:]), "the last known box stays while it is lost"
    assert away[-1].score < 0.25
    # It comes back somewhere else, where neither tracker would look by itself.
    back = [tracker.track(_scene(30, 20)) for _ in range(8)]
    assert back[-1].state is TrackState.TRACKING
    assert iou(back[-1].box, Box(30, 20, SIDE, SIDE)) > 0.7


@needs_contrib
def test_a_look_at_the_whole_frame_can_be_turned_off() -> None:
    tracker = OpenCVTracker("kcf", PRESETS["kcf"].replace(regain_score=1.0))
    tracker.initialize(_scene(100), (100, 100, SIDE, SIDE))
    for _ in range(10):
        tracker.track(_scene(None))
    assert [tracker.track(_scene(30, 20)).state for _ in range(8)] == [TrackState.LOST] * 8


@needs_contrib
@pytest.mark.parametrize("name", ["csrt", "kcf"])
def test_the_rounding_of_the_first_box_is_undone(name: str) -> None:
    tracker = OpenCVTracker(name, PRESETS[name])
    first = Box(100.4, 99.7, SIDE + 0.3, SIDE - 0.45)
    tracker.initialize(_scene(100), first)
    box = tracker.track(_scene(100)).box
    np.testing.assert_allclose(box, first, atol=0.51 if name == "csrt" else 1e-6)


@needs_contrib
@pytest.mark.parametrize("box", [(-15, 100, SIDE, SIDE), (W - 30, H - 30, SIDE, SIDE), (317, 237, 4, 4), (0, 0, W, H)])
def test_boxes_at_the_border_start_and_stay_finite(box: tuple[float, ...]) -> None:
    for name in ("csrt", "kcf"):
        tracker = OpenCVTracker(name, PRESETS[name])
        tracker.initialize(_scene(100), box)
        for _ in range(5):
            estimate = tracker.track(_scene(100))
            assert np.isfinite(estimate.box).all()
            assert 0 <= estimate.score <= 1


def test_onnx_files_that_are_not_given_or_not_there_are_named(tmp_path) -> None:
    with pytest.raises(WeightsMissing, match="'nano' needs your ONNX file: set its option 'backbone_model'"):
        OpenCVTracker("nano", PRESETS["nano"])
    backbone = tmp_path / "backbone.onnx"
    backbone.write_bytes(b"\x08\x07")
    with pytest.raises(WeightsMissing, match="'head_model'"):
        OpenCVTracker("nano", PRESETS["nano"].replace(backbone_model=str(backbone)))
    with pytest.raises(WeightsMissing, match=r"option 'model': weights missing: /nowhere/vit\.onnx does not exist"):
        OpenCVTracker("vit", PRESETS["vit"].replace(model="/nowhere/vit.onnx"))


def _lamp(x: int | None) -> NDArray[np.uint8]:
    """A bright square on dark ground: what the networks of onnx_files.py look for."""
    frame = np.full((H, W, 3), 40, np.uint8)
    if x is not None:
        frame[100:140, x : x + 40] = 230
    return frame


@pytest.fixture(params=["nano", "vit"])
def network(request, tmp_path) -> OpenCVTracker:
    name = request.param
    if not hasattr(cv2, f"Tracker{name.capitalize()}_create"):
        pytest.skip(f"OpenCV {cv2.__version__} has no {name}; it runs with OpenCV 4.9 and later")
    if name == "nano":
        backbone, head = onnx_files.write_nano(tmp_path)
        return OpenCVTracker(name, PRESETS[name].replace(backbone_model=str(backbone), head_model=str(head)))
    return OpenCVTracker(name, PRESETS[name].replace(model=str(onnx_files.write_vit(tmp_path))))


def test_networks_get_their_files_and_their_scores_come_through(network: OpenCVTracker) -> None:
    network.initialize(_lamp(100), (100, 100, 40, 40))
    seen = [network.track(_lamp(100)) for _ in range(3)]
    assert all(e.score > 0.85 for e in seen), "bright is near 1; OpenCV 4.11 to 5.0 would show the negative"
    assert seen[-1].state is TrackState.TRACKING
    assert iou(seen[0].box, Box(100, 100, 40, 40)) > 0.3
    dark = [network.track(_lamp(None)) for _ in range(8)]
    assert all(e.score < 0.5 for e in dark)
    assert dark[-1].state is not TrackState.TRACKING


def test_a_network_that_opencv_cannot_run_is_named(tmp_path) -> None:
    if not hasattr(cv2, "TrackerVit_create"):
        pytest.skip(f"OpenCV {cv2.__version__} has no vit; it runs with OpenCV 4.9 and later")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07no network")
    with pytest.raises(WeightsError, match=r"OpenCV .* can't run .*broken\.onnx"):
        OpenCVTracker("vit", PRESETS["vit"].replace(model=str(broken)))
    backbone, _ = onnx_files.write_nano(tmp_path)
    with pytest.raises(WeightsError, match=r"can't run .*backbone\.onnx"):
        OpenCVTracker("vit", PRESETS["vit"].replace(model=str(backbone)))


@pytest.mark.parametrize("name", ["csrt", "kcf"])
def test_an_opencv_without_contrib_says_what_to_install(name: str, monkeypatch) -> None:
    monkeypatch.setattr(opencv, "cv2", SimpleNamespace(__version__="4.10.0"))
    with pytest.raises(OpenCVTrackerMissing, match=r"4\.10\.0 was built without.*opencv-contrib-python-headless"):
        OpenCVTracker(name, PRESETS[name])


@needs_contrib
def test_the_older_interface_serves_where_the_newer_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(opencv, "cv2", SimpleNamespace(__version__="4.5.0", legacy=cv2.legacy, error=cv2.error))
    tracker = OpenCVTracker("kcf", PRESETS["kcf"])
    tracker.initialize(_scene(100), (100, 100, SIDE, SIDE))
    assert iou(tracker.track(_scene(103)).box, Box(103, 100, SIDE, SIDE)) > 0.8


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"bad_score 0\.7 must not exceed good_score 0\.6"):
        OpenCVTracker("kcf", PRESETS["kcf"].replace(bad_score=0.7))


def test_appearance_knows_its_target_from_the_background() -> None:
    box = Box(100, 100, SIDE, SIDE)
    look = Appearance(_scene(100), box)
    same, moved = look.measure(_scene(100), box), look.measure(_scene(102, 101), box)
    gone, cut = look.measure(_scene(None), box), look.measure(_scene(W - 20), Box(W - 20, 100, SIDE, SIDE))
    assert same.first == pytest.approx(1, abs=1e-4)
    assert same.colour == pytest.approx(1, abs=1e-4)
    assert same.inside == 1
    assert moved.first > 0.8
    assert gone.score < 0.25 < 0.6 < moved.score <= same.score
    assert cut.inside == 0.5
    assert same.response.shape == (60, 60)
    assert np.unravel_index(same.response.argmax(), same.response.shape) == (30, 30)


def test_appearance_finds_its_target_anywhere() -> None:
    look = Appearance(_scene(100), Box(100, 100, SIDE, SIDE))
    found = look.find(_scene(217, 33), Box(100, 100, SIDE, SIDE))
    assert found is not None
    place, likeness = found
    assert likeness.score > 0.95
    assert iou(place, Box(217, 33, SIDE, SIDE)) > 0.85
    nowhere = look.find(_scene(None), Box(100, 100, SIDE, SIDE))
    assert nowhere is not None
    assert nowhere[1].score < 0.5
    assert look.find(_scene(None), Box(0, 0, W + 1, 10)) is None


def test_appearance_of_a_flat_patch_is_no_match() -> None:
    flat = np.full((H, W, 3), 90, np.uint8)
    found = Appearance(flat, Box(100, 100, SIDE, SIDE)).measure(flat, Box(100, 100, SIDE, SIDE))
    assert found.first == 0
    assert np.isfinite(found.response).all()
