"""Where the target is, as the node says it: a ray, a place, a frame, and what is missing where there is none."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from lifecycle_msgs.msg import Transition
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from tracker_ros.trackers.base import TrackState

from .graph import BOX, HEIGHT, WIDTH, Graph, diagnosis

pytestmark = pytest.mark.ros

FOCAL = 250.0
#: Of the box's centre, from the camera's matrix: OpenCV counts from the first pixel's centre.
RAY = np.array([BOX.center[0] - 0.5 - 159.5, BOX.center[1] - 0.5 - 119.5, FOCAL]) / FOCAL


class Rig:
    """The calibration and the depth images that a camera sends beside its images."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.info = graph.client.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self.depth = graph.client.create_publisher(Image, "depth", qos_profile_sensor_data)

    def calibrate(self, **changes) -> None:
        """Send a calibration until the node has it."""
        values = {
            "width": WIDTH,
            "height": HEIGHT,
            "distortion_model": "plumb_bob",
            "k": [FOCAL, 0.0, 159.5, 0.0, FOCAL, 119.5, 0.0, 0.0, 1.0],
            "d": [0.0] * 5,
            **changes,
        }
        assert self.graph.until(self.info.get_subscription_count)
        known = self.graph.node._bearings._directions
        before = known._info

        def send() -> bool:
            self.info.publish(CameraInfo(**values))
            time.sleep(0.02)
            return known._info != before

        assert self.graph.until(send)

    def process(self, metres: float, kind: type = np.uint16) -> Image:
        """A depth image of one distance, then the image of the same time; waits for that one's status."""
        assert self.graph.until(self.depth.get_subscription_count)
        image = self.graph.image()
        deep = np.full((HEIGHT, WIDTH), metres * (1000 if kind is np.uint16 else 1), kind)
        message = Image(header=image.header, width=WIDTH, height=HEIGHT, step=WIDTH * deep.itemsize)
        message.encoding = "16UC1" if kind is np.uint16 else "32FC1"
        message.data = deep.tobytes()
        directions = self.graph.node._bearings._directions
        stamps = {stamp for stamp, _ in directions._depths}

        def send() -> bool:
            self.depth.publish(message)
            time.sleep(0.02)
            return {stamp for stamp, _ in directions._depths} != stamps

        assert self.graph.until(send)
        return self.graph.process(image)


@pytest.fixture
def rig(graph: Graph) -> Rig:
    return Rig(graph)


def test_a_ray_and_the_angles_of_the_status(graph, rig):
    graph.start("target_ray")
    rig.calibrate()
    graph.process()
    assert graph.init().success
    image = graph.process()
    (ray,) = graph.of("target_ray", image)
    direction = np.array([ray.vector.x, ray.vector.y, ray.vector.z])
    assert direction == pytest.approx(RAY / np.linalg.norm(RAY), abs=1e-9)
    status = graph.status_of(image)
    assert status.azimuth == pytest.approx(math.atan2(RAY[0], 1), abs=1e-6)
    assert status.elevation == pytest.approx(math.atan2(-RAY[1], math.hypot(RAY[0], 1)), abs=1e-6)
    graph.puppet.state = TrackState.LOST
    lost = graph.process()
    assert math.isnan(graph.status_of(lost).azimuth)
    assert math.isnan(graph.status_of(lost).elevation)
    graph.puppet.state = TrackState.TRACKING
    seen = graph.process()
    assert graph.of("target_ray", seen)
    assert not [r for r in graph.received["target_ray"] if r.header == lost.header]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_place_from_depth_and_its_frame(graph, rig, kind):
    graph.start("target_pose", "/tf", depth_topic="depth", publish_tf=True)
    rig.calibrate()
    graph.process()
    assert graph.init(target_id="car").success
    image = rig.process(3.25, kind)
    (pose,) = graph.of("target_pose", image)
    place = pose.pose.position
    assert (place.x, place.y, place.z) == pytest.approx(RAY * 3.25)
    assert pose.header.frame_id == "camera_optical"
    assert pose.pose.orientation.w == 1.0
    assert graph.until(lambda: graph.received["/tf"])
    (frame,) = graph.received["/tf"][0].transforms
    assert (frame.header, frame.child_frame_id) == (image.header, "target_car")
    to = frame.transform.translation
    assert (to.x, to.y, to.z) == (place.x, place.y, place.z)
    assert frame.transform.rotation.w == 1.0


def test_nothing_is_subscribed_to_while_nobody_listens(graph, rig):
    graph.start(depth_topic="depth")
    # The client of the tests reads the status, which has the direction; it needs no depth.
    assert graph.until(rig.info.get_subscription_count)
    assert rig.depth.get_subscription_count() == 0
    status = next(s for s in graph.client.subscriptions if s.topic_name == "/status")
    graph.client.destroy_subscription(status)
    assert graph.until(lambda: rig.info.get_subscription_count() == 0)
    graph.listen("target_pose")
    assert graph.until(lambda: rig.info.get_subscription_count() and rig.depth.get_subscription_count())
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert graph.until(lambda: rig.info.get_subscription_count() + rig.depth.get_subscription_count() == 0)
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    assert graph.until(lambda: rig.info.get_subscription_count() and rig.depth.get_subscription_count())


def test_depth_can_be_named_while_the_node_runs(graph, rig):
    graph.start("target_pose", "/diagnostics")
    rig.calibrate()
    graph.process()
    assert graph.init().success
    assert diagnosis(graph, "no target_pose: depth_topic is not set")
    (refused,) = graph.set(depth_topic="no such//topic")
    assert not refused.successful
    assert "depth_topic" in refused.reason
    assert graph.set(depth_topic="depth")[0].successful
    assert diagnosis(graph, "no target_pose: no depth image has come on /depth")
    assert graph.of("target_pose", rig.process(2.0))[0].pose.position.z == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"distortion_model": "fov", "d": [0.1]}, "'fov' is not known"),
        ({"width": 640, "height": 480}, "camera_info is for images of 640x480, they are 320x240"),
        ({"k": [math.nan] * 9}, "nine finite numbers"),
        ({"d": [-20.0, 0.0, 0.0, 0.0, 0.0]}, "no direction for pixel"),
    ],
)
def test_a_calibration_of_no_use_is_said_and_the_track_goes_on(graph, rig, changes, words):
    graph.start("target_ray", "/diagnostics")
    graph.process()
    assert graph.init().success
    assert diagnosis(graph, "no camera_info has come on /camera_info")
    rig.calibrate(**changes)
    image = graph.process()
    assert math.isnan(graph.status_of(image).azimuth)
    assert diagnosis(graph, words)
    rig.calibrate()
    image = graph.process()
    assert graph.of("target_ray", image)


def test_the_part_of_the_sensor_that_is_sent(graph, rig):
    """A region of interest of a sensor twice as large, and every second pixel of it."""
    graph.start("target_ray")
    info = {"width": 1280, "height": 960, "binning_x": 2, "binning_y": 2}
    info["k"] = [2 * FOCAL, 0.0, 639.5, 0.0, 2 * FOCAL, 479.5, 0.0, 0.0, 1.0]
    message = CameraInfo(**info)
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = 320, 240, 640, 480
    rig.calibrate(**info, roi=message.roi)
    graph.process()
    assert graph.init().success
    (ray,) = graph.of("target_ray", graph.process())
    direction = np.array([ray.vector.x, ray.vector.y, ray.vector.z])
    assert direction == pytest.approx(RAY / np.linalg.norm(RAY), abs=1e-9)


def test_camera_info_lies_beside_the_images(graph):
    """As image_transport has it: whoever renames the images need not name it too."""
    graph.client.create_publisher(CameraInfo, "/front/camera_info", 1)
    graph.start(active=False, cli_arguments=["--ros-args", "-r", "image_raw:=/front/image_raw", "-r", "__ns:=/robot"])
    assert graph.until(lambda: graph.client.count_subscribers("/front/image_raw"))
    graph.client.create_subscription(graph.outputs["target_ray"], "/robot/target_ray", print, 1)
    assert graph.until(lambda: graph.client.count_subscribers("/front/camera_info"))
    assert graph.client.count_subscribers("/camera_info") == 0
