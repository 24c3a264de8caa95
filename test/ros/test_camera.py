"""A camera that dies, freezes, goes dark, or is not the one that was expected: status and diagnostics say so."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2D, Detection2DArray

from tracker_ros.ros import messages
from tracker_ros.ros.node.pipeline import is_blank
from tracker_ros_interfaces.msg import TrackStatus

from .graph import HEIGHT, WIDTH, Graph, diagnosis

pytestmark = pytest.mark.ros


def stale(graph: Graph, after: int = 0) -> TrackStatus | None:
    """The first status from the one numbered `after` on that says STALE, waited for."""
    return graph.until(
        lambda: next((s for s in graph.received["status"][after:] if s.state == TrackStatus.STALE), None)
    )


def value(status: DiagnosticStatus, key: str) -> str:
    return {pair.key: pair.value for pair in status.values}[key]


# -------------------------------------------------------------------------------------------------------- no image


def test_a_camera_that_dies_makes_the_status_stale(graph):
    graph.start("/diagnostics", "detections", silence=0.5)
    graph.process()
    assert graph.init(target_id="car").success
    last = graph.process()
    status = stale(graph, len(graph.received["status"]))
    assert (status.header, status.target_id, status.tracker, status.score) == (last.header, "car", "puppet", 0)
    assert "no image on /image_raw for" in status.reason
    assert status.latency >= 0.5
    report = diagnosis(graph, "no image on /image_raw")
    assert (report.level, value(report, "state")) == (DiagnosticStatus.WARN, "STALE")
    detections = len(graph.received["detections"])
    count = len(graph.received["status"])
    assert graph.until(lambda: len(graph.received["status"]) >= count + 2), "it is said again and again"
    assert len(graph.received["detections"]) == detections
    # It comes back.
    with graph.camera():
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.TRACKING)
        report = diagnosis(graph, "TRACKING")
        assert value(report, "state") == "TRACKING"


def test_images_that_cant_be_decoded_are_no_news(graph):
    graph.start("/diagnostics", silence=0.5)
    graph.process()
    assert graph.init(target_id="car").success
    graph.process()
    count = len(graph.received["status"])

    def broken() -> Image:
        image = graph.image()
        image.data = image.data[:-7]
        return image

    with graph.camera(make=broken):
        status = stale(graph, count)
        assert status.target_id == "car"
        assert "no result for" in status.reason
        assert "can't be decoded: the image has" in status.reason
        assert diagnosis(graph, "can't be decoded").level == DiagnosticStatus.ERROR
    with graph.camera():
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.TRACKING)


def test_a_camera_that_never_came_makes_the_status_stale_too(graph):
    graph.start("/diagnostics", silence=0.5)
    status = stale(graph)
    assert (status.header.stamp.sec, status.target_id, status.frames_received) == (0, "", 0)
    assert diagnosis(graph, "no image on /image_raw").level == DiagnosticStatus.WARN


def test_silence_can_be_set_while_running(graph):
    graph.start(silence=600.0)
    graph.process()
    time.sleep(0.5)
    assert graph.set(silence=0.2)[0].successful
    assert stale(graph)


def test_a_node_that_is_not_active_or_paused_says_nothing(graph):
    graph.start(silence=0.3)
    assert graph.pause(True).success
    count = len(graph.received["status"])
    time.sleep(1.5)
    assert len(graph.received["status"]) == count


# -------------------------------------------------------------------------------------------------- always the same


def frozen(graph: Graph, **changes):
    """Makes an image that is the same each time, but for a stamp of now (`stamp`: that too)."""
    first = graph.image()

    def make() -> Image:
        image = graph.image() if changes.get("living") else Image(**_fields(first))
        image.header = first.header if changes.get("stamp") else graph.header()
        return image

    return make


def _fields(image: Image) -> dict:
    names = ("height", "width", "encoding", "is_bigendian", "step", "data")
    return {name: getattr(image, name) for name in names}


def test_pictures_that_never_change_are_a_warning(graph):
    graph.start("/diagnostics")
    graph.process()
    assert graph.init().success
    with graph.camera(15, frozen(graph)):
        assert diagnosis(graph, "the pictures have been identical for", 15).level == DiagnosticStatus.WARN
        assert graph.until(lambda: "identical" in graph.received["status"][-1].reason)
    with graph.camera(15):
        assert diagnosis(graph, "TRACKING", 15).level == DiagnosticStatus.OK
        assert graph.until(lambda: not graph.received["status"][-1].reason)


def test_stamps_that_never_change_are_a_warning(graph):
    graph.start("/diagnostics")
    with graph.camera(15, frozen(graph, stamp=True, living=True)):
        report = diagnosis(graph, "the stamp of the images has not changed", 15)
    assert report.level == DiagnosticStatus.WARN
    assert "identical" not in report.message


def test_compressed_pictures_that_never_change_are_a_warning(graph):
    graph.start("/diagnostics", image_transport="compressed")
    import cv2

    data = cv2.imencode(".jpg", np.random.RandomState(0).randint(0, 255, (HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    end = time.monotonic() + 15
    while time.monotonic() < end and not any(
        "identical" in array.status[0].message for array in graph.received["/diagnostics"]
    ):
        graph.compressed.publish(CompressedImage(header=graph.header(), format="jpeg", data=data))
        time.sleep(0.07)
    assert time.monotonic() < end


def test_a_still_scene_with_one_pixel_that_changes_is_a_living_camera(graph):
    graph.start("/diagnostics")
    pixels = np.random.RandomState(0).randint(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    count = itertools.count()

    def make() -> Image:
        pixels[123, 211, 1] = next(count) % 256
        return messages.image_to_message(pixels, "bgr8", graph.header())

    with graph.camera(15, make):
        time.sleep(4)
        assert diagnosis(graph, "no target").level == DiagnosticStatus.OK


# ------------------------------------------------------------------------------------------------------------- dark


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 135, 0)], ids=["black", "white", "no signal"])
def test_every_second_image_blank_is_not_in_order(graph, colour):
    graph.start("/diagnostics", "detections")
    graph.process()
    assert graph.init().success
    count = itertools.count()
    blanks = []

    def make() -> Image:
        image = graph.image()
        if next(count) % 2:
            pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
            pixels[:] = colour
            image = messages.image_to_message(pixels, "bgr8", image.header)
            blanks.append(image)
        return image

    with graph.camera(15, make):
        assert diagnosis(graph, "of the images are blank", 15).level == DiagnosticStatus.WARN
    found = [status for status in map(graph.status_of, blanks) if status is not None]
    assert found
    assert all(status.state == TrackStatus.UNCERTAIN and "blank" in status.reason for status in found)


def test_what_is_blank():
    def image(*, width=640, height=480, grey=0):
        return np.full((height, width, 3), grey, np.uint8)

    assert is_blank(image())
    noise = np.random.RandomState(0).randint(0, 9, (480, 640, 3)).astype(np.uint8)
    assert is_blank(noise), "a lens cap, with the sensor's noise"
    target = image(grey=200)
    target[101:105, 203:209] = 90
    assert not is_blank(target), "a small target before an even sky lies between the samples"
    assert not is_blank(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (40, 1, 3)))


# ----------------------------------------------------------------------------------------------- whose topics they are


def test_a_topic_of_another_type_is_named(graph):
    graph.other("wrong_camera").create_publisher(CompressedImage, "image_raw", qos_profile_sensor_data)
    graph.start("/diagnostics", silence=600.0)
    report = diagnosis(graph, "/wrong_camera publishes sensor_msgs/msg/CompressedImage on /image_raw")
    assert report.level == DiagnosticStatus.WARN
    assert "sensor_msgs/msg/Image is expected" in report.message


@pytest.mark.parametrize("kind", [String, Detection2DArray])
def test_an_init_box_of_another_type_is_named(graph, kind):
    graph.client.destroy_publisher(graph.boxes)
    graph.other("wrong_detector").create_publisher(kind, "init_box", 10)
    graph.start("/diagnostics", active=False, silence=600.0)
    assert kind.__name__ in diagnosis(graph, "vision_msgs/msg/Detection2D is expected").message


@pytest.mark.parametrize(
    ("qos", "words"),
    [
        (QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT), "as best effort"),
        (QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL), "latched"),
    ],
)
def test_an_init_box_that_is_not_heard_is_named(graph, qos, words):
    other = graph.client.create_publisher(Detection2D, "init_box", qos)
    graph.start("/diagnostics", silence=600.0)
    report = diagnosis(graph, f"/client publishes /init_box {words}")
    assert report.level == DiagnosticStatus.WARN
    assert graph.client.destroy_publisher(other)


def test_two_cameras_on_one_topic_are_named(graph):
    second = graph.other("second_camera")
    other = second.create_publisher(Image, "image_raw", qos_profile_sensor_data)
    graph.start("/diagnostics", silence=600.0)
    assert "2 publish images on /image_raw: /client, /second_camera" in diagnosis(graph, "publish images on").message
    assert second.destroy_publisher(other)
    assert graph.until(lambda: diagnosis(graph, "no target"))


def test_a_best_effort_camera_before_a_reliable_subscription_is_named(graph):
    graph.start("/diagnostics", active=False, reliability="reliable", silence=600.0)
    assert "as best effort" in diagnosis(graph, "/client publishes /image_raw").message


# ---------------------------------------------------------------------------------------------- more than eight bits


def thermal(graph: Graph, low: int = 7400, high: int = 7655, hot: int = 0) -> Image:
    """A picture of 16 bits that uses a small part of their range; a part of it is `hot`."""
    values = np.tile(np.linspace(low, high, WIDTH), (HEIGHT, 1)).astype(np.uint16)
    values += np.uint16(graph._pictures % 2)
    graph._pictures += 1
    if hot:
        values[: HEIGHT // 3] = hot
    message = messages.image_to_message(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "bgr8", graph.header())
    message.encoding, message.step, message.data = "mono16", WIDTH * 2, values.tobytes()
    return message


@pytest.mark.parametrize(("low", "high"), [(7400, 7655), (0, 1023), (30000, 30080)])
def test_a_camera_of_16_bits_that_uses_few_of_them_is_seen_in_full(graph, low, high):
    graph.start()
    graph.process(thermal(graph, low, high))
    assert graph.init().success
    graph.process(thermal(graph, low, high))
    assert graph.puppet.seen[-1] == pytest.approx(120, abs=12)
    # Something hot comes into view: what the target looks like stays the same.
    graph.process(thermal(graph, low, high, hot=65000))
    assert graph.puppet.seen[-1] == pytest.approx(120 * 2 / 3 + 255 / 3, abs=15)


def test_the_range_of_grey_levels_can_be_given(graph):
    graph.start(grey_scale="0,14800")
    graph.process(thermal(graph))
    assert graph.init().success
    graph.process(thermal(graph))
    assert graph.puppet.seen[-1] == pytest.approx(7527 / 14800 * 255, abs=3)
    for bad in ("5,5", "all", "7655,7400", "1,2,3"):
        (result,) = graph.set(grey_scale=bad)
        assert not result.successful
        assert "low,high" in result.reason or "lower one first" in result.reason
    (result,) = graph.set(grey_scale="auto")
    assert result.successful
    assert graph.init().success, "it holds from the next track on"
    graph.process(thermal(graph))
    assert graph.puppet.seen[-1] == pytest.approx(128, abs=12)
