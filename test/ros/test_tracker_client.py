"""What other nodes hear from the tracker and ask it for: words and boxes of one image together, always an answer."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from builtin_interfaces.msg import Time
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray

from tracker_ros.geometry.boxes import Box
from tracker_ros.remote.tracker import Sighting, State
from tracker_ros.ros import messages, tracker_client
from tracker_ros.ros.tracker_client import Sightings, TrackerClient
from tracker_ros_interfaces.msg import TrackStatus

from .graph import BOX, Graph

pytestmark = pytest.mark.ros

CAR, BUS = Box(1, 2, 30, 40), Box(5, 6, 70, 80)


def header(stamp: int) -> Header:
    return Header(stamp=Time(sec=stamp))


def status(stamp: int, name: str = "car", state: int = TrackStatus.TRACKING) -> TrackStatus:
    return TrackStatus(header=header(stamp), target_id=name, state=state, score=0.5, tracker="kcf")


def detections(stamp: int, theta: float = 0.0, **boxes: Box) -> Detection2DArray:
    found = [Detection2D(id=name, bbox=messages.box_to_message(box)) for name, box in boxes.items()]
    for detection in found:
        detection.bbox.center.theta = theta
    return Detection2DArray(header=header(stamp), detections=found)


def sighting(stamp: int, name: str, state: State, box: Box | None) -> Sighting:
    return Sighting(stamp * 10**9, name, state, 0.5, box, "kcf")


@pytest.fixture
def told():
    return []


@pytest.fixture
def sightings(told):
    return Sightings(told.append)


@pytest.mark.parametrize("first", ["status", "detections"])
def test_words_and_boxes_of_one_image_come_together(sightings: Sightings, told: list, first: str):
    if first == "detections":
        sightings.add_detections(detections(7, car=CAR, bus=BUS))
    sightings.add_status(status(7))
    sightings.add_status(status(7, "bus", TrackStatus.UNCERTAIN))
    if first == "status":
        assert told == []
        sightings.add_detections(detections(7, car=CAR, bus=BUS))
    assert told == [sighting(7, "car", State.TRACKING, CAR), sighting(7, "bus", State.UNCERTAIN, BUS)]


def test_what_has_no_box_is_told_at_once(sightings: Sightings, told: list):
    sightings.add_status(status(7, state=TrackStatus.LOST))
    sightings.add_status(status(8, "", TrackStatus.IDLE))
    sightings.add_status(status(9, state=4))
    assert told == [
        sighting(7, "car", State.LOST, None),
        sighting(8, "", State.IDLE, None),
        sighting(9, "car", State.STALE, None),
    ]


def test_boxes_that_never_come_or_are_none(sightings: Sightings, told: list):
    for stamp in range(100):
        sightings.add_status(status(stamp))
    assert told == [sighting(stamp, "car", State.TRACKING, None) for stamp in range(36)]
    sightings.add_detections(detections(99, bus=BUS))  # The tracker failed: there is a word, and no box.
    sightings.add_detections(detections(98, theta=0.3, car=CAR))
    assert told[36:] == [sighting(stamp, "car", State.TRACKING, None) for stamp in (99, 98)]
    for stamp in range(1000, 2000):
        sightings.add_detections(detections(stamp, car=CAR))
    assert len(sightings._boxes) <= 64


def test_a_state_of_another_version_is_left_out(sightings: Sightings, told: list):
    sightings.add_status(status(7, state=200))
    assert told == []


def test_every_request_gets_an_answer(graph: Graph, told: list):
    client = TrackerClient(graph.client, told.append)
    for request in (
        client.start(0, BOX, "car"),
        client.stop(),
        client.stop("car"),
        client.pause(True),
        client.select("kcf"),
    ):
        answer = request.result(5)
        assert not answer.ok
        assert "the tracker is not there" in answer.text

    graph.start("detections", tracker="puppet")
    assert graph.until(lambda: client.ready)
    assert "no image has arrived" in client.start(0, BOX, "car").result(20).text
    image = graph.publish()
    assert client.start(messages.stamp_to_ns(image.header.stamp), BOX, "car").result(20).ok
    graph.process()
    assert graph.until(lambda: any(s.target_id == "car" and s.box == pytest.approx(BOX) for s in told))
    assert "nonsense" in client.select("nonsense").result(20).text
    assert client.hold(3.0).result(20).ok
    assert graph.get("buffer_seconds") == 3.0
    assert client.hold(2.0).result(20).ok
    assert graph.get("buffer_seconds") == 3.0, "what is long enough already is left alone"
    assert client.pause(True).result(20).ok
    assert "paused" in client.start(0, BOX, "car").result(20).text
    assert client.pause(False).result(20).ok

    assert client.stop("bus").result(20).text == "there is no target 'bus'; there are: car"
    assert client.stop("car").result(20).ok
    assert graph.until(lambda: graph.node.pipeline.session.tracks == {})
    assert client.start(0, BOX, "car").result(20).ok

    # A tracker that says nothing for longer than anybody waits.
    graph.puppet.hold.clear()
    graph.publish()
    late = client._ask(client._stop, tracker_client.Trigger.Request(), lambda r: r, timeout=0.5).result(5)
    assert "has not answered" in late.text
    graph.puppet.hold.set()
    assert graph.until(lambda: client._ask(client._stop, tracker_client.Trigger.Request(), answer_of).result(20).ok)


def answer_of(response):
    return tracker_client.Answer(response.success, response.message)
