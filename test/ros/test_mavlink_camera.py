"""The MAVLink camera between a real ground station (pymavlink, another process) and a real node."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")
pytest.importorskip("pymavlink", reason="needs pymavlink (the extra `mavlink`; `make setup` gets it)")

from tracker_ros.ros import messages

from .conftest import ROOT
from .graph import HEIGHT, WIDTH, Graph

pytestmark = pytest.mark.ros

POINT, RECTANGLE, STOP, SET, REQUEST = 2004, 2005, 2010, 511, 512
STATUS = "CAMERA_TRACKING_IMAGE_STATUS"
IDLE, ACTIVE, ERROR = 0, 1, 2


class GroundStation:
    """The process, and what it has heard so far.

    Args:
        link: as pymavlink writes it.
    """

    def __init__(self, link: str = "udpin:127.0.0.1:0") -> None:
        script = Path(__file__).with_name("ground_station.py")
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(script), link], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.heard: list[dict[str, Any]] = []
        line = self.process.stdout.readline()
        assert line, "the ground station did not start"
        self.port = json.loads(line)["ready"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.heard.append({**json.loads(line), "at": time.monotonic()})

    def send(self, **order: Any) -> None:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def next(self, kind: str, since: int, timeout: float = 60.0, **fields: Any) -> dict[str, Any]:
        """The first message of a kind, with these fields, after the first `since` ones."""

        def found() -> dict[str, Any] | None:
            return next(
                (
                    m
                    for m in self.heard[since:]
                    if m["mavpackettype"] == kind and all(m[name] == value for name, value in fields.items())
                ),
                None,
            )

        assert Graph.until(found, timeout), f"no {kind} with {fields}; heard: {self.heard[since:][-5:]}"
        return found()

    def result(self, command: int, *values: float, system: int = 1, component: int = 100) -> int:
        """The result of a command, once it is final."""
        since = len(self.heard)
        self.send(long=[system, component, command, *values])
        for _ in range(3):
            acknowledgement = self.next("COMMAND_ACK", since, command=command)
            if acknowledgement["result"] != 5:
                return acknowledgement["result"]
            since = self.heard.index(acknowledgement) + 1
        raise AssertionError("in progress for ever")

    def status(self, **fields: Any) -> dict[str, Any]:
        """The first status from now on with these fields."""
        return self.next(STATUS, len(self.heard), **fields)

    def said(self) -> list[str]:
        """The texts to the operator."""
        return [message["text"] for message in self.heard if message["mavpackettype"] == "STATUSTEXT"]

    def end(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._reader.join(10)


@pytest.fixture
def station():
    station = GroundStation()
    yield station
    station.end()


@pytest.fixture
def start_camera():
    """Starts the camera with parameters; ended afterwards."""
    started = []

    def start(*parameters: str) -> subprocess.Popen:
        command = [sys.executable, "-u", "-m", "tracker_ros.ros.mavlink_camera", "--ros-args"]
        for parameter in parameters:
            command += ["-p", parameter]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Scene:
    """A patterned target that moves over a quiet ground, until it leaves."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)
        self.ground = cv2.GaussianBlur(rng.randint(60, 120, (HEIGHT, WIDTH, 3)).astype(np.uint8), (0, 0), 3)
        self.target = cv2.GaussianBlur(rng.randint(0, 255, (40, 50, 3)).astype(np.uint8), (0, 0), 2)
        self.moving = self.gone = False
        self.x = 40
        self.truth: dict[int, int] = {}

    def image(self, graph: Graph) -> Any:
        if self.moving and self.x < 200:
            self.x += 1
        frame = self.ground.copy()
        header = graph.header()
        if not self.gone:
            frame[90:130, self.x : self.x + 50] = self.target
        self.truth[messages.stamp_to_ns(header.stamp)] = self.x
        return messages.image_to_message(frame, "bgr8", header)


def test_a_rectangle_is_tracked_lost_and_stopped(graph: Graph, station: GroundStation, start_camera):
    scene = Scene()
    graph.start("detections", tracker="kcf")
    start_camera(f"connection:=udpout:127.0.0.1:{station.port}")
    with graph.camera(15, lambda: scene.image(graph)):
        beat = station.next("HEARTBEAT", 0, type=30)
        assert beat["autopilot"] == 8
        since = len(station.heard)
        assert station.result(REQUEST, 259) == 0
        information = station.next("CAMERA_INFORMATION", since)
        assert information["flags"] & (512 | 1024 | 2048) == 512 | 1024
        assert Graph.until(lambda: station.result(RECTANGLE, -1, 0, 0, 0) == 2)  # DENIED: the size is known by now.
        assert station.result(SET, 275, 100_000) == 0
        assert station.status()["tracking_status"] == IDLE

        corners = (40 / WIDTH, 90 / HEIGHT, 90 / WIDTH, 130 / HEIGHT)
        assert Graph.until(lambda: station.result(RECTANGLE, *corners) == 0, 10), station.said()[-3:]
        status = station.status(tracking_status=ACTIVE)
        assert status["tracking_mode"] == 2
        assert status["target_data"] == 4
        assert places(status) == pytest.approx(corners, abs=0.01)
        scene.moving = True
        assert Graph.until(lambda: scene.x == 200, 90)
        time.sleep(0.5)
        status = station.status(tracking_status=ACTIVE)
        assert places(status) == pytest.approx((200 / WIDTH, 90 / HEIGHT, 250 / WIDTH, 130 / HEIGHT), abs=0.01)
        # Also while it moved: each box that the node published is within 1 % of the truth of its own image.
        boxes = [(messages.stamp_to_ns(m.header.stamp), m.detections[0].bbox) for m in graph.received["detections"]
                 if m.detections]  # fmt: skip
        assert len(boxes) > 50
        for stamp, bbox in boxes:
            assert messages.box_from_message(bbox).x == pytest.approx(scene.truth[stamp], abs=0.01 * WIDTH)

        scene.gone = True
        status = station.status(tracking_status=ERROR)
        assert all(value is None or math.isnan(value) for value in places(status))
        assert station.result(STOP) == 0
        station.status(tracking_status=IDLE)

        # At the rate that was asked for; on a machine that is busy, some come late.
        since = len(station.heard)
        time.sleep(3)
        count = sum(m["mavpackettype"] == STATUS for m in station.heard[since:])
        assert 15 <= count <= 34
        assert station.result(SET, 275, -1) == 0
        since = len(station.heard)
        time.sleep(1)
        assert not any(m["mavpackettype"] == STATUS for m in station.heard[since:])


def places(status: dict[str, Any]) -> tuple[float, ...]:
    return tuple(status[name] for name in ("rec_top_x", "rec_top_y", "rec_bottom_x", "rec_bottom_y"))


def garbage() -> list[str]:
    """Bytes that are no message, or half of one."""
    from pymavlink.dialects.v20 import common as mavlink

    protocol = mavlink.MAVLink(None, srcSystem=255, srcComponent=190)
    whole = mavlink.MAVLink_command_long_message(1, 100, POINT, 0, 0.5, 0.5, 0, 0, 0, 0, 0).pack(protocol)
    wrong = bytearray(whole)
    wrong[-1] ^= 0xFF
    rng = random.Random(0)
    return [
        whole[: len(whole) // 2].hex(),
        bytes(wrong).hex(),
        (b"\xfd" * 300).hex(),
        (b"\xfd\xff\xff\xff" + bytes(400)).hex(),
        rng.randbytes(1400).hex(),
        b"GET / HTTP/1.1\r\n\r\n".hex(),
        rng.randbytes(60_000).hex(),
    ]


def test_bad_input_is_answered_or_survived(graph: Graph, station: GroundStation, start_camera):
    graph.start("detections", tracker="puppet")
    camera = start_camera(f"connection:=udpout:127.0.0.1:{station.port}")
    with graph.camera(15):
        station.next("HEARTBEAT", 0, type=30)
        assert Graph.until(lambda: station.result(RECTANGLE, 0.2, 0.2, 0.5, 0.5) == 0)
        starts = graph.puppet.starts
        for command, result in (
            ((RECTANGLE, math.nan, 0.2, 0.5, 0.5), 2),
            ((RECTANGLE, 0.2, 0.2, 200, 150), 2),
            ((RECTANGLE, 0.5, 0.5, 0.5, 0.5), 2),
            ((POINT, math.inf, 0.5), 2),
            ((SET, 275, math.nan), 2),
            ((SET, 276, 100_000), 3),
            ((42, 1, 2, 3), 3),
        ):
            assert station.result(*command) == result, command
        for line in garbage():
            station.send(hex=line)
        station.send(v1=True)
        since = len(station.heard)
        for system, component in ((2, 100), (1, 1), (77, 0)):
            station.send(long=[system, component, POINT, 0.5, 0.5])
        time.sleep(1)
        assert not any(m["mavpackettype"] == "COMMAND_ACK" for m in station.heard[since:])
        assert graph.puppet.starts == starts
        # It goes on, in MAVLink 2.
        assert station.result(SET, 275, 50_000) == 0
        assert station.status(tracking_status=ACTIVE)

        # The tracker's own refusals reach the operator.
        graph.pause(True)
        since = len(station.heard)
        assert station.result(POINT, 0.5, 0.5) == 4
        assert "paused" in station.next("STATUSTEXT", since)["text"]
        assert station.status(tracking_status=ERROR), "a paused tracker knows nothing of now"
        graph.pause(False)
        assert station.result(POINT, 0.5, 0.5) == 0
    assert camera.poll() is None


def test_a_station_that_comes_late_and_one_that_goes(graph: Graph, start_camera):
    graph.start("detections", tracker="puppet")
    first = GroundStation()
    camera = start_camera(f"connection:=udpout:127.0.0.1:{first.port}")
    with graph.camera(10):
        first.next("HEARTBEAT", 0, type=30)
        assert Graph.until(lambda: first.result(POINT, 0.5, 0.5) == 0)
        first.end()
        time.sleep(1.5)  # Nobody is there: the kernel refuses what is sent.
        assert camera.poll() is None
        second = GroundStation(f"udpin:127.0.0.1:{first.port}")
        try:
            second.next("HEARTBEAT", 0, type=30)
            assert second.result(SET, 275, 100_000) == 0
            second.status(tracking_status=ACTIVE)
            assert graph.puppet.starts == 1, "the track went on"
        finally:
            second.end()


def test_a_stream_that_breaks_is_opened_again(graph: Graph, start_camera):
    import socket

    graph.start("detections", tracker="puppet")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        camera = start_camera(f"connection:=tcp:127.0.0.1:{server.getsockname()[1]}")
        for _ in range(3):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                assert connection.recv(1)[0] == 0xFD
    assert camera.poll() is None


def test_the_tracker_may_come_later(graph: Graph, station: GroundStation, start_camera):
    start_camera(f"connection:=udpout:127.0.0.1:{station.port}")
    station.next("HEARTBEAT", 0, type=30)
    assert station.result(POINT, 0.5, 0.5) == 1  # No image yet.
    with graph.camera(15):
        assert Graph.until(lambda: station.result(POINT, 0.5, 0.5) == 4)
        assert any("the tracker is not there" in m.get("text", "") for m in station.heard)
        graph.start(tracker="puppet")
        assert Graph.until(lambda: station.result(POINT, 0.5, 0.5) == 0)


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("connection:=udpout:127.0.0.1", "connection"),
        ("connection:=tcp:127.0.0.1:1", "connection"),
        ("connection:=/dev/no_such_device", "connection"),
        ("connection:=udpin:127.0.0.1:99999", "connection"),
        ("system_id:=0", "system_id"),
        ("component_id:=256", "component_id"),
        ("video_delay:=-1.0", "video_delay"),
    ],
)
def test_wrong_parameters_are_refused(start_camera, parameter: str, said: str):
    camera = start_camera(parameter)
    output = camera.communicate(timeout=60)[0]
    assert camera.returncode == 2, output
    assert re.search(said, output), output
    assert "Traceback" not in output
