"""Boxes and images as messages, and back."""

import array
import math

import numpy as np
import pytest

pytest.importorskip("vision_msgs", reason="needs the ROS 2 messages (`make setup` gets them)")

from std_msgs.msg import Header

from tracker_ros import images
from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.ros import messages
from tracker_ros.ros.diagnostics import Level
from tracker_ros.trackers.base import Estimate, TrackState

pytestmark = pytest.mark.ros


def test_boxes_make_the_round_trip_exactly():
    rng = np.random.RandomState(0)
    for values in rng.uniform(-500, 5000, (500, 4)):
        box = Box(*values)
        message = messages.box_to_message(box)
        assert message.center.position.x == box.x + box.w / 2
        assert np.abs(np.subtract(messages.box_from_message(message), box)).max() < 1e-9


def test_rotated_boxes_are_refused():
    message = messages.box_to_message(Box(1, 2, 30, 40))
    message.center.theta = 0.3
    with pytest.raises(InvalidBox, match=r"rotated \(theta=0\.3\)"):
        messages.box_from_message(message)


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "mono8", "32FC1"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_arrays_become_images(encoding, contiguous):
    shape = (6, 10, 3) if encoding in ("bgr8", "rgb8") else (6, 10)
    image = np.random.RandomState(0).randint(0, 255, shape).astype(np.float32 if encoding == "32FC1" else np.uint8)
    image = image if contiguous else np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    header = Header(frame_id="camera")
    message = messages.image_to_message(image, encoding, header)
    assert (message.height, message.width, message.encoding, message.header) == (6, 10, encoding, header)
    assert message.step == 10 * image.itemsize * (3 if image.ndim == 3 else 1)
    assert isinstance(message.data, array.array)
    assert np.array_equal(np.frombuffer(message.data, image.dtype).reshape(shape), image)
    if encoding == "bgr8":
        assert np.array_equal(images.from_message(message), image)


@pytest.mark.parametrize(
    ("image", "encoding", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "bgr8", "uint8"),
        (np.zeros((4, 4), np.uint8), "bgr8", "3 channel"),
        (np.zeros((4, 4, 3), np.uint8), "mono8", "1 channel"),
        (np.zeros((4, 4), np.float32), "64FC1", "known are"),
    ],
)
def test_other_arrays_are_refused(image, encoding, words):
    with pytest.raises(ValueError, match=words):
        messages.image_to_message(image, encoding, Header())


def test_detection_and_status_carry_the_estimate():
    header = Header(frame_id="camera")
    estimate = Estimate(Box(10, 20, 30, 40), 0.25, TrackState.UNCERTAIN, Box(0, 0, 100, 120))
    detection = messages.detection(header, estimate, "car", "vehicle")
    assert (detection.header, detection.id) == (header, "car")
    assert (detection.results[0].hypothesis.class_id, detection.results[0].hypothesis.score) == ("vehicle", 0.25)
    assert (detection.bbox.center.position.x, detection.bbox.size_y) == (25, 40)
    status = messages.status(header, estimate, tracker="kcf", latency=0.5, frames_received=7)
    assert (status.state, status.score, status.tracker, status.frames_received) == (status.UNCERTAIN, 0.25, "kcf", 7)
    assert (status.search_region.center.position.y, status.search_region.size_x) == (60, 100)
    idle = messages.status(header, None, latency=math.nan)
    assert (idle.state, idle.score, idle.header) == (idle.IDLE, 0, header)


def test_state_and_level_values_are_those_of_the_messages():
    from diagnostic_msgs.msg import DiagnosticStatus

    from tracker_ros_interfaces.msg import TrackStatus

    for state in TrackState:
        assert getattr(TrackStatus, state.name) == state
    for level in Level:
        assert getattr(DiagnosticStatus, level.name) == bytes([level])
    status = messages.diagnostic("a: b", "cpu", Level.WARN, "LOST", {"state": "LOST"})
    assert (status.level, status.message, status.values[0].key) == (DiagnosticStatus.WARN, "LOST", "state")
