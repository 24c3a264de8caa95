"""The path without a camera: the simulated one waits, and the call that it prints ends in a followed car."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2D

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.ros import messages
from tracker_ros.ros.launching import PROFILES, config_folder, let_images_through

from .conftest import ROOT
from .graph import Graph

pytestmark = pytest.mark.ros


class Camera:
    """The program in a process of its own, as a user starts it: without any profile of Fast DDS."""

    def __init__(self, log: Path) -> None:
        self._log = log
        env = {name: value for name, value in os.environ.items() if name not in PROFILES}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tracker_ros.ros.simulated_camera"], cwd=ROOT, env=env, stdout=out, stderr=out
            )

    def calls(self) -> list[Box]:
        """The boxes of the calls that were printed, read as a shell and ROS read them."""
        boxes = []
        for line in re.findall(r"^ros2 .*$", self._log.read_text(), re.MULTILINE):
            *words, fields = shlex.split(line)
            assert words == ["ros2", "service", "call", "/init_target", "tracker_ros_interfaces/srv/InitTarget"]
            request = yaml.safe_load(fields)
            bbox, place = request["bbox"], request["bbox"]["center"]["position"]
            boxes.append(Box.from_center(place["x"], place["y"], bbox["size_x"], bbox["size_y"]))
        return boxes


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    camera = Camera(tmp_path / "camera.log")
    yield camera
    camera.process.terminate()
    camera.process.wait(20)


def test_the_printed_call_ends_in_a_followed_car(graph: Graph, camera: Camera):
    truths: dict[tuple[int, int], Box] = {}
    moments = []

    def on_truth(message: Detection2D) -> None:
        if message.results:
            moments.append(messages.box_from_message(message.bbox))
            truths[(message.header.stamp.sec, message.header.stamp.nanosec)] = moments[-1]

    graph.client.create_subscription(Detection2D, "ground_truth", on_truth, 100)
    graph.start("detection", active=False, tracker="kcf")
    assert graph.until(camera.calls, 120), "no call was printed"
    (box,) = camera.calls()
    assert graph.until(lambda: len(moments) > 5)
    assert all(iou(moment, box) > 0.95 for moment in moments[-5:])  # It stands.
    news = graph.received["status"]
    assert graph.until(lambda: news and not news[-1].reason)  # What stands has the noise of a living camera.

    assert graph.init(box, target_id="car").success
    assert graph.until(lambda: iou(moments[-1], box) < 0.6, 60)  # It flies on.
    assert graph.until(lambda: len(graph.received["detection"]) > 12, 60)
    found = {
        (m.header.stamp.sec, m.header.stamp.nanosec): messages.box_from_message(m.bbox)
        for m in graph.received["detection"]
    }
    overlaps = [iou(found[stamp], truths[stamp]) for stamp in found.keys() & truths.keys()]
    assert len(overlaps) > 5
    assert min(overlaps) > 0.4

    assert graph.stop().success
    assert graph.until(lambda: len(camera.calls()) == 2, 60)  # And it stands again, with a call for where the car is.
    assert graph.until(lambda: all(iou(moment, camera.calls()[1]) > 0.95 for moment in moments[-5:]))


def test_nobody_to_wait_for(graph: Graph, camera: Camera):
    """Without a tracker it is a camera like any other."""
    seen = []
    graph.client.create_subscription(Image, "image_raw", lambda m: seen.append(m.header), qos_profile_sensor_data)
    moments = []
    graph.client.create_subscription(Detection2D, "ground_truth", moments.append, 100)
    assert graph.until(lambda: len(moments) > 20, 120)
    assert camera.calls() == []
    assert moments[0].bbox.center != moments[-1].bbox.center


def test_a_refusal_names_the_camera_and_does_not_blame_the_transport_alone(graph: Graph):
    graph.start()
    answer = graph.init()
    assert not answer.success
    assert "/client has announced itself there: it may still be starting, or paused" in answer.message


def test_the_profile_of_the_user_stays():
    env: dict[str, str] = {}
    let_images_through(env)
    assert env == dict.fromkeys(PROFILES, str(config_folder() / "fastdds.xml"))
    for name in PROFILES:
        env = {name: "/mine.xml"}
        let_images_through(env)
        assert env == {name: "/mine.xml"}
