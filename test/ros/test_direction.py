"""Directions and places from real messages, good and bad ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tracker_ros.geometry.boxes import Box
from tracker_ros.geometry.camera import NoDirection, NoRange
from tracker_ros.ros.direction import Directions, depth_array

pytestmark = pytest.mark.ros

WIDTH, HEIGHT = SIZE = 320, 240
BOX = Box(200.0, 100.0, 40.0, 20.0)


def header(ms: int = 1000) -> Header:
    return Header(stamp=Time(sec=ms // 1000, nanosec=ms % 1000 * 10**6), frame_id="camera_optical")


def info(**changes) -> CameraInfo:
    values = {
        "width": WIDTH,
        "height": HEIGHT,
        "distortion_model": "plumb_bob",
        "k": [200.0, 0.0, 159.5, 0.0, 200.0, 119.5, 0.0, 0.0, 1.0],
        "d": [0.0] * 5,
        **changes,
    }
    return CameraInfo(**values)


def depth(values: np.ndarray, encoding: str, ms: int = 1000, padding: int = 0, big: bool = False) -> Image:
    values = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    rows = np.pad(np.ascontiguousarray(values).view(np.uint8), ((0, 0), (0, padding)))
    message = Image(header=header(ms), encoding=encoding, height=values.shape[0], width=values.shape[1])
    message.step, message.is_bigendian = rows.shape[1], int(big)
    message.data = rows.tobytes()
    return message


def flat(metres: float, kind: type) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), metres * (1000 if kind is np.uint16 else 1), kind)


@pytest.fixture
def directions() -> Directions:
    directions = Directions()
    directions.on_camera_info(info())
    return directions


def test_a_ray_with_the_header_of_its_image(directions: Directions):
    found = directions.of(header(), BOX, SIZE)
    expected = np.array([60.0, -10.0, 200.0]) / np.linalg.norm([60, -10, 200])
    vector = found.ray.vector
    assert (vector.x, vector.y, vector.z) == pytest.approx(expected, abs=1e-9)
    assert found.ray.header == header()
    assert found.azimuth == pytest.approx(math.atan2(60, 200))
    assert found.elevation == pytest.approx(math.asin(expected[1] * -1))
    assert (found.pose, found.no_pose) == (None, "")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("encoding", "kind"), [("16UC1", np.uint16), ("32FC1", np.float32)])
def test_a_place_from_depth_in_all_layouts(directions: Directions, encoding: str, kind: type, big: bool):
    directions.on_depth(depth(flat(2.5, kind), encoding, padding=6, big=big))
    found = directions.of(header(1010), BOX, SIZE)
    place = found.pose.pose.position
    assert (place.x, place.y, place.z) == pytest.approx((60 / 200 * 2.5, -10 / 200 * 2.5, 2.5))
    assert found.pose.pose.orientation.w == 1.0
    assert found.pose.header == header(1010)


def test_the_depth_image_of_the_same_time_is_taken(directions: Directions):
    for k in range(30):
        directions.on_depth(depth(flat(1 + k, np.float32), "32FC1", 1000 + 33 * k))
    assert directions.of(header(1000 + 33 * 20), BOX, SIZE).pose.pose.position.z == 21
    old = directions.of(header(1000), BOX, SIZE)
    assert old.pose is None
    assert "s away" in old.no_pose


def test_before_any_calibration_and_with_one_that_is_none():
    directions = Directions()
    with pytest.raises(NoDirection, match="no camera_info has come"):
        directions.of(header(), BOX, SIZE)
    for changes, said in (
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"distortion_model": "fov", "d": [0.1]}, "'fov' is not known"),
        ({"width": 0}, "0x240"),
    ):
        directions.on_camera_info(info(**changes))
        assert said in directions.problem
        with pytest.raises(NoDirection, match=said):
            directions.of(header(), BOX, SIZE)
    directions.on_camera_info(info())
    assert directions.problem == ""
    assert directions.of(header(), BOX, SIZE)


def test_depth_that_is_none_says_why_and_the_ray_is_there(directions: Directions):
    whole = depth(flat(2.0, np.float32), "32FC1")
    short = depth(flat(2.0, np.float32), "32FC1")
    short.data = short.data[:-4]
    for message, said in (
        (depth(np.zeros((HEIGHT, WIDTH), np.uint16), "16UC1"), "0 of"),
        (depth(np.ones((10, 10), np.float32), "32FC1"), "aligned"),
        (depth(np.ones((HEIGHT, WIDTH), np.uint8), "mono8"), "16UC1"),
        (short, "bytes"),
    ):
        directions.on_depth(message)
        directions._depths.rotate(1)  # The newest one first: they are of the same time.
        found = directions.of(header(), BOX, SIZE)
        assert found.pose is None
        assert said in found.no_pose
        assert found.ray.vector.z > 0
        directions._depths.clear()
    directions.on_depth(whole)
    assert directions.of(header(), BOX, SIZE).pose is not None


def test_an_empty_depth_image_is_refused():
    with pytest.raises(NoRange, match="0 bytes"):
        depth_array(Image(encoding="32FC1"))
