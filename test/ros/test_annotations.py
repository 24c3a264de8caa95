"""`annotations`: what Foxglove draws over the raw image."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("foxglove_msgs.msg", reason="needs foxglove_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from foxglove_msgs.msg import ImageAnnotations, PointsAnnotation
from sensor_msgs.msg import Image

from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import TrackState

from .conftest import ROOT
from .graph import BOX, Graph

pytestmark = pytest.mark.ros

CAR, BUS = Box(20, 30, 50, 40), Box(200, 4, 60, 40)


def _of(graph: Graph, image: Image) -> list[ImageAnnotations]:
    """The annotations of one image."""
    received = graph.received["annotations"]
    graph.until(lambda: any(message.timestamp == image.header.stamp for message in received))
    return [message for message in received if message.timestamp == image.header.stamp]


def _colours(message: ImageAnnotations) -> list[tuple[float, float, float]]:
    return [(line.outline_color.r, line.outline_color.g, line.outline_color.b) for line in message.points]


def test_a_target_is_drawn_where_it_is_with_what_is_said_of_it(graph: Graph) -> None:
    graph.start("annotations")
    idle = graph.process()
    (nothing,) = _of(graph, idle)
    assert not nothing.points and not nothing.texts  # noqa: PT018
    assert graph.init(target_id="car").success
    image = graph.process()
    (message,) = _of(graph, image)
    (line,), (text,) = message.points, message.texts
    assert line.type == PointsAnnotation.LINE_LOOP
    right, bottom = BOX.x + BOX.w, BOX.y + BOX.h
    assert [p.x for p in line.points] == pytest.approx([BOX.x, right, right, BOX.x])
    assert [p.y for p in line.points] == pytest.approx([BOX.y, BOX.y, bottom, bottom])
    assert text.text == "car TRACKING 0.75"
    assert line.timestamp == text.timestamp == image.header.stamp
    graph.puppet.state = TrackState.LOST
    (lost,) = _of(graph, graph.process())
    assert lost.points[0].type == PointsAnnotation.LINE_LIST, "an old box does not look like one of this image"
    assert len(lost.points[0].points) % 2 == 0
    assert lost.texts[0].text.startswith("car LOST")
    assert _colours(lost) != _colours(message)


def test_several_targets_keep_their_colours_and_text_stays_in_the_image(graph: Graph) -> None:
    graph.start("annotations", max_targets=2)
    graph.process()
    for name, box in (("car", CAR), ("bus", BUS)):
        assert graph.init(box, target_id=name).success
    (first,) = _of(graph, graph.process())
    graph.puppet.states[BUS] = TrackState.LOST
    (second,) = _of(graph, graph.process())
    assert [text.text.split()[:2] for text in second.texts] == [["car", "TRACKING"], ["bus", "LOST"]]
    assert _colours(first) == _colours(second)
    assert len(set(_colours(first))) == 2
    assert all(text.position.y >= text.font_size for text in first.texts)


def test_nothing_is_built_while_nobody_listens(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker_ros.ros.node.outputs.annotate", lambda *_: pytest.fail("nobody listens"))
    graph.start("status")
    graph.process()
    assert graph.init().success
    assert graph.of("status", graph.process())


def test_the_layout_shows_topics_that_there_are(graph: Graph) -> None:
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text())
    panels = layout["configById"]
    graph.start("status")
    topics = {name for name, _ in graph.node.get_topic_names_and_types()}
    image = panels["Image!tracker"]["imageMode"]
    shown = [image["imageTopic"], *image["annotations"], panels["DiagnosticSummary!health"]["topicToRender"]]
    shown += [panels["RawMessages!status"]["topicPath"]]
    shown += [
        path["value"].partition(".")[0]
        for panel in ("Plot!score", "StateTransitions!state")
        for path in panels[panel]["paths"]
    ]
    assert set(shown) <= topics

    def named(part: object) -> set[str]:
        return {part} if isinstance(part, str) else named(part["first"]) | named(part["second"])

    assert named(layout["layout"]) == set(panels)
