"""The node as a process of its own, started as a user starts it; images cross between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from sensor_msgs.msg import Image

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros_interfaces.msg import TrackStatus

from .conftest import ROOT
from .graph import Graph

pytestmark = pytest.mark.ros

PROFILE = ROOT / "config" / "fastdds.xml"


@pytest.fixture
def start_node():
    """Starts ``python -m tracker_ros.ros.tracker_node`` with parameters; ended after the test."""
    started = []

    def start(*parameters: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tracker_ros.ros.tracker_node", "--ros-args"]
        for parameter in parameters:
            command += ["-p", parameter]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_signals
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def hear_signals() -> None:
    """Signals as a terminal's shell leaves them, also where the tests' own shell (`nohup`) ignores some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def output(process: subprocess.Popen) -> str:
    return process.communicate(timeout=30)[0]


@pytest.mark.skipif(
    not PROFILE.exists() and "FASTRTPS_DEFAULT_PROFILES_FILE" not in os.environ,
    reason="needs the Fast DDS profile config/fastdds.xml: without it images of this size don't get through",
)
def test_images_of_a_camera_arrive_and_the_target_is_followed(graph: Graph, start_node):
    """640x480 at 30 Hz, best effort, between two processes: at least 99 % arrive, and every one is accounted for."""
    count, rate = 150, 30
    rng = np.random.RandomState(0)
    ground = np.full((480, 640, 3), 80, np.uint8)
    target = rng.randint(0, 255, (48, 60, 3)).astype(np.uint8)

    def scene(x: int) -> Image:
        frame = ground.copy()
        frame[200:248, x : x + 60] = target
        return messages.image_to_message(frame, "bgr8", graph.header())

    process = start_node("tracker:=kcf")
    graph.listen("status", "detection")
    assert graph.until(graph.images.get_subscription_count), output(process)
    assert graph.until(lambda: graph.client.count_publishers("status") and graph.client.count_publishers("detection"))
    # Both sides must have found each other in both directions before anything can be counted.
    with graph.camera(rate, lambda: scene(40)) as sent:
        assert graph.until(lambda: len(graph.received["status"]) > 3)
    for _ in range(3):
        # Where other programs hold the cores, a frame or two may be late enough to be replaced: then once more.
        assert graph.until(lambda: graph.status_of(sent[-1])), "the last image before counting was lost"
        before = graph.status_of(sent[-1]).frames_received
        assert graph.init(Box(40, 200, 60, 48), stamp=sent[-1].header.stamp, target_id="patch").success
        due = time.monotonic()
        for k in range(1, count + 1):
            sent.append(scene(40 + 2 * k))
            graph.images.publish(sent[-1])
            due = max(due + 1 / rate, time.monotonic() + 0.5 / rate)
            time.sleep(max(0.0, due - time.monotonic()))
        assert graph.until(lambda: graph.status_of(sent[-1]), 5)
        last = graph.received["status"][-1]
        assert last.frames_received == last.frames_processed + last.frames_dropped
        if last.frames_received - before >= 0.99 * count:
            break
        sent.append(scene(40))
        graph.images.publish(sent[-1])
    assert last.frames_received - before >= 0.99 * count
    assert (last.state, last.target_id, last.tracker) == (TrackStatus.TRACKING, "patch", "kcf")
    assert graph.received["detection"][-1].bbox.center.position.x == pytest.approx(40 + 2 * count + 30, abs=6)
    headers = {(i.header.stamp.sec, i.header.stamp.nanosec, i.header.frame_id) for i in sent}
    for message in (*graph.received["status"], *graph.received["detection"]):
        assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) in headers

    process.send_signal(signal.SIGINT)
    text = output(process)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    # The node is gone at once, and not only when its lease ends.
    assert graph.until(lambda: "tracker" not in graph.client.get_node_names(), 5)


def test_two_targets_are_followed_from_another_process(graph: Graph, start_node):
    """Two targets start, are followed on every image, and one of them is stopped."""
    rng = np.random.RandomState(0)
    ground = np.full((240, 320, 3), 80, np.uint8)
    patches = rng.randint(0, 255, (2, 40, 48, 3)).astype(np.uint8)

    def box(name: str, k: int) -> Box:
        return Box(40 + 2 * k, 40, 48, 40) if name == "car" else Box(220 - 2 * k, 150, 48, 40)

    def scene(k: int) -> Image:
        frame = ground.copy()
        for patch, name in zip(patches, ("car", "bus"), strict=True):
            x, y = map(int, box(name, k)[:2])
            frame[y : y + 40, x : x + 48] = patch
        return messages.image_to_message(frame, "bgr8", graph.header())

    def show(k: int, count: int) -> Image:
        """An image that the node speaks about `count` times; sent anew where it was lost on the way."""
        for _ in range(5):
            image = scene(k)
            graph.images.publish(image)
            if graph.until(lambda image=image: len([s for s in spoken() if s.header == image.header]) == count, 2.0):
                return image
        raise AssertionError("the node does not speak of all targets")

    def spoken() -> list[TrackStatus]:
        return [status for status in graph.received["status"] if status.state != TrackStatus.STALE]

    process = start_node("tracker:=kcf", "max_targets:=2")
    graph.listen("status", "detections")
    assert graph.until(graph.images.get_subscription_count), output(process)
    assert graph.until(lambda: graph.client.count_publishers("status") and graph.client.count_publishers("detections"))
    first = show(0, 1)
    for name in ("car", "bus"):
        answer = graph.init(box(name, 0), stamp=first.header.stamp, target_id=name)
        assert answer.success, answer.message
    assert "there are: bus, car" in graph.init(box("car", 0), target_id="van").message
    for k in range(1, 11):
        image = show(k, 2)
        (array,) = graph.of("detections", image)
        centres = {d.id: messages.box_from_message(d.bbox).center for d in array.detections}
        assert centres == {name: pytest.approx(box(name, k).center, abs=4) for name in ("car", "bus")}
    assert graph.stop_target("bus").success
    image = show(11, 1)
    assert graph.status_of(image).target_id == "car"
    process.send_signal(signal.SIGINT)
    text = output(process)
    assert process.returncode == 0, text
    assert "Traceback" not in text


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("tracker", ["kcf", "no_such_tracker"])
def test_signals_end_the_process_cleanly(graph: Graph, start_node, tracker, end):
    process = start_node(f"tracker:={tracker}")
    graph.listen("/diagnostics")
    assert graph.until(lambda: graph.received["/diagnostics"])
    process.send_signal(end)
    text = output(process)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    if tracker != "kcf":
        assert "there is no tracker 'no_such_tracker'" in text


def test_an_impatient_user_ends_the_process_as_cleanly(graph: Graph, start_node):
    process = start_node("tracker:=kcf")
    graph.listen("/diagnostics")
    assert graph.until(lambda: graph.received["/diagnostics"])
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    text = output(process)
    assert process.returncode == 0, text
    assert "Traceback" not in text


def started_python(process: subprocess.Popen) -> bool:
    """Whether the program's own first line has run: before, the interpreter itself answers signals."""
    with open(f"/proc/{process.pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5])
def test_signals_end_the_process_at_once_while_it_starts(start_node, end, wait):
    """In the imports, the node's constructor, the loading of weights: whatever it is at after so many seconds."""
    process = start_node("tracker:=dimp18")
    assert Graph.until(lambda: process.poll() is not None or started_python(process))
    time.sleep(wait)
    process.send_signal(end)
    began = time.monotonic()
    text = output(process)
    assert process.returncode in (0, 130), text
    assert "Traceback" not in text
    assert "terminate" not in text
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("tracker:=5", "tracker"),
        ("heatmap.stride:=1000", "heatmap.stride"),
        ("no value", "no value"),
        ("image_transport:=theora", "must be one of raw, compressed; got 'theora'"),
    ],
)
def test_a_bad_parameter_ends_the_process_with_a_reason(start_node, parameter, words):
    process = start_node(parameter)
    text = output(process)
    assert process.returncode == 2, text
    assert words in text
    assert "Traceback" not in text


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(
    not (ROOT / "models" / "dimp18.safetensors").is_file(), reason="models/dimp18.safetensors is not there"
)
def test_memory_stays_flat_over_ten_thousand_images(graph: Graph, start_node):
    """dimp18 with heatmap and annotated image subscribed: under 1.5 GB, and flat once the sample memory is full."""
    rng = np.random.RandomState(0)
    ground = rng.randint(60, 100, (480, 640, 3)).astype(np.uint8)
    target = rng.randint(0, 255, (8, 10, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)

    def scene(k: int) -> Image:
        frame = ground.copy()
        x, y = int(290 + 200 * np.sin(k / 60)), int(216 + 120 * np.sin(k / 41))
        frame[y : y + 48, x : x + 60] = target
        return messages.image_to_message(frame, "bgr8", graph.header())

    process = start_node("tracker:=dimp18")
    graph.listen("status", "heatmap", "image_annotated")
    assert graph.until(graph.images.get_subscription_count, 60), output(process)
    with graph.camera(20, lambda: scene(0)) as sent:
        assert graph.until(lambda: len(graph.received["status"]) > 3, 30)
    assert graph.init(Box(290, 216, 60, 48), stamp=sent[-1].header.stamp, target_id="patch").success
    used: list[float] = []
    for k in range(1, 10_001):
        image = scene(k)
        graph.images.publish(image)
        assert graph.until(lambda image=image: graph.status_of(image), 10), f"image {k} was not answered"
        if k % 1000 == 0:
            used.append(resident_mb(process.pid))
            for received in graph.received.values():
                received.clear()
    print("resident MB after every 1000 images:", [round(mb) for mb in used])
    assert max(used) < 1500
    assert used[-1] - used[1] < 0.02 * used[1]
