"""The image sources as processes of their own, seen by a client."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tracker_ros import demo
from tracker_ros.geometry.boxes import Box
from tracker_ros.simulation import Flight, FlightOptions

ROOT = Path(__file__).parents[1]
SMALL = FlightOptions(seed=4, width=160, height=120, duration=1.0)
FLIGHT = ["simulated_camera", "seed:=4", "width:=160", "height:=120", "duration:=1.0"]


def lacking() -> str:
    for name in ("rclpy", "vision_msgs", "tracker_ros_interfaces.msg"):
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return ""


pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(bool(lacking()), reason=f"needs a ROS 2: {lacking()} can't be imported (`make setup`)"),
]


class Client:
    """Listens to a source in a context of its own, and calls its services."""

    def __init__(self, domain: int) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image
        from std_srvs.srv import SetBool, Trigger
        from vision_msgs.msg import Detection2D

        self.images: list[Any] = []
        self.truths: list[Any] = []
        self.compressed: list[Any] = []
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node("client", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._types = SetBool, Trigger
        self._jpeg = CompressedImage
        deep = QoSProfile(depth=100)
        many = QoSProfile(depth=100, reliability=qos_profile_sensor_data.reliability)
        self.node.create_subscription(Image, "image_raw", self.images.append, many)
        self.node.create_subscription(Detection2D, "ground_truth", self.truths.append, deep)

    def listen_to_jpeg(self) -> None:
        from rclpy.qos import qos_profile_sensor_data

        self.node.create_subscription(
            self._jpeg, "image_raw/compressed", self.compressed.append, qos_profile_sensor_data
        )

    def wait(self, done: Callable[[], bool], seconds: float = 30) -> bool:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            self._executor.spin_once(0.02)
        return done()

    def call(self, service: str, value: bool | None = None) -> Any:
        kind = self._types[1] if value is None else self._types[0]
        client = self.node.create_client(kind, service)
        assert self.wait(client.service_is_ready), f"there is no {service}"
        future = client.call_async(kind.Request() if value is None else kind.Request(data=value))
        assert self.wait(future.done), f"{service} does not answer"
        return future.result()

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()


class Scene:
    """A client, and the processes that a test starts."""

    def __init__(self) -> None:
        self.environment = {**demo.environment(), "OMP_NUM_THREADS": "1"}
        self.environment["ROS_DOMAIN_ID"] = str(demo.free_domain())
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
            if name in self.environment:
                os.environ.setdefault(name, self.environment[name])
        self.client = Client(int(self.environment["ROS_DOMAIN_ID"]))
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, module: str, *parameters: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"tracker_ros.ros.{module}", "--ros-args"]
        for parameter in parameters:
            command += ["-p", parameter]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.client.close()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.delenv("ROS_LOCALHOST_ONLY", raising=False)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    scene = Scene()
    yield scene
    scene.close()


def pixels(message: Any) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def nanoseconds(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def box_of(message: Any) -> Box:
    center = message.bbox.center.position
    return Box.from_center(center.x, center.y, message.bbox.size_x, message.bbox.size_y)


def test_simulated_camera_publishes_the_flight_and_its_truth(scene: Scene, tmp_path: Path) -> None:
    report = tmp_path / "source.json"
    process = scene.start(*FLIGHT, "reliability:=reliable", f"report:={report}", "frame_id:=front")
    assert scene.client.wait(lambda: len(scene.client.images) >= 30 and len(scene.client.truths) >= 30)
    assert process.wait(30) == 0
    flight = Flight(SMALL)
    sent = json.loads(report.read_text())
    assert sent["frames_sent"] == 30
    stamps = [f["stamp"] for f in sent["frames"]]
    assert [f["index"] for f in sent["frames"]] == list(range(30))
    assert [nanoseconds(m) for m in scene.client.images] == stamps
    assert 25 < (len(stamps) - 1) / ((stamps[-1] - stamps[0]) / 1e9) < 31
    for k in (0, 17, 29):
        frame, truth = flight.render(k)
        image = scene.client.images[k]
        assert (image.encoding, image.header.frame_id, image.step) == ("bgr8", "front", 480)
        assert np.array_equal(pixels(image), frame)
        message = next(m for m in scene.client.truths if nanoseconds(m) == stamps[k])
        assert message.header == image.header
        assert truth.box is not None
        assert np.allclose(box_of(message), truth.box, atol=1e-9)
        assert message.results[0].hypothesis.score == pytest.approx(truth.in_view * (1 - truth.hidden))


def test_first_image_is_shown_on_request_until_it_plays(scene: Scene) -> None:
    process = scene.start(*FLIGHT, "start:=paused")
    client = scene.client
    answer = client.call("simulated_camera/first_image")
    while not answer.success:
        assert "nobody subscribes" in answer.message
        answer = client.call("simulated_camera/first_image")
    assert client.wait(lambda: len(client.images) > 0)
    sec, nanosec = json.loads(answer.message)["stamp"]
    assert nanoseconds(client.images[0]) == sec * 10**9 + nanosec
    again = client.call("simulated_camera/first_image")
    assert again.success
    assert client.wait(lambda: len(client.images) > 1)
    assert np.array_equal(pixels(client.images[0]), pixels(client.images[1]))
    assert not client.wait(lambda: len(client.images) > 2, 0.5), "it is paused"
    assert client.call("simulated_camera/play", True).success
    assert client.wait(lambda: len(client.images) >= 6)
    assert client.call("simulated_camera/play", False).success
    client.wait(lambda: False, 0.3)
    count = len(client.images)
    assert count < 31
    assert not client.wait(lambda: len(client.images) > count, 0.5), "it is paused again"
    assert "already" in client.call("simulated_camera/first_image").message
    client.call("simulated_camera/play", True)
    assert process.wait(30) == 0
    client.wait(lambda: False, 0.5)
    flight = Flight(SMALL)
    shown = [pixels(m) for m in client.images]
    assert np.array_equal(shown[-1], flight.render(29)[0])
    assert np.array_equal(shown[2], flight.render(1)[0])


def test_video_source_publishes_a_folder_also_compressed_and_over_again(scene: Scene, tmp_path: Path) -> None:
    for k in range(5):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((40, 60, 3), 40 * k, np.uint8))
    (tmp_path / "groundtruth.txt").write_text("1,2,30,20\n1,2,30,20\nnan,nan,nan,nan\n1,2,30,20\n1,2,30,20\n")
    scene.client.listen_to_jpeg()
    process = scene.start("video_source", f"video:={tmp_path}", "loop:=true", "rate:=20.0", "limit:=13")
    client = scene.client
    assert process.wait(60) == 0
    client.wait(lambda: False, 0.5)
    assert len(client.images) >= 11  # best effort: the first may come before the subscriber is known
    order = [int(pixels(m)[0, 0, 0]) // 40 for m in client.images]
    assert order == [k % 5 for k in range(13)][-len(order) :]
    assert len(client.compressed) >= 5
    message = client.compressed[-1]
    assert "jpeg" in message.format
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (40, 60, 3)
    absent = [m for m in client.truths if not m.results]
    present = [m for m in client.truths if m.results]
    assert absent
    assert present
    assert box_of(present[0]) == Box(1, 2, 30, 20)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        (("video_source",), "no source is given"),
        (("video_source", "video:=nothing.mp4"), "nothing.mp4"),
        (("video_source", "rate:=-5.0"), "rate"),
        (("video_source", "video:=a.mp4", "webcam:=0"), "both"),
        (("simulated_camera", "width:=10"), "width"),
        (("simulated_camera", "start:=later"), "start"),
    ],
)
def test_wrong_parameters_end_the_source_with_a_reason(
    scene: Scene, parameters: tuple[str, ...], complaint: str
) -> None:
    process = scene.start(*parameters)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert complaint in output
    assert "Traceback" not in output


@pytest.mark.parametrize("program", ["recorder", "video_source", "simulated_camera"])
def test_programs_help_and_name_what_they_do_not_know(scene: Scene, program: str, tmp_path: Path) -> None:
    def say(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"tracker_ros.ros.{program}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=scene.environment, capture_output=True, text=True, timeout=120)

    helped = say("--help")
    assert helped.returncode == 0
    assert f"usage: ros2 run tracker_ros {program}" in helped.stdout
    assert {"recorder": "  fps = 0.0", "video_source": "  video = ''"}.get(program, "  seed = 0") in helped.stdout
    refused = say("clip.mp4", "--ros-args", "-p", "a:=1")
    assert refused.returncode == 2
    assert "'clip.mp4' is no argument; parameters are set with --ros-args -p" in refused.stderr


def test_a_misspelt_parameter_is_named(scene: Scene, tmp_path: Path) -> None:
    process = scene.start("video_source", "vidoe:=clip.mp4")
    output, _ = process.communicate(timeout=60)
    assert "there is no parameter 'vidoe'; did you mean 'video'?" in output


def test_ctrl_c_ends_a_source_and_leaves_its_report(scene: Scene, tmp_path: Path) -> None:
    report = tmp_path / "source.json"
    process = scene.start(*FLIGHT[:-1], "duration:=0.0", f"report:={report}")
    assert scene.client.wait(lambda: len(scene.client.images) > 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert json.loads(report.read_text())["frames_sent"] >= len(scene.client.images)
