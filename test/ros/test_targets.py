"""Several targets in one node, as its users meet it: added, stopped, chosen, lost, and none at another's cost."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.qos import QoSProfile
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2D

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros.trackers.base import TrackState
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget, StopTarget

from .graph import HEIGHT, WIDTH, Graph, diagnosis

pytestmark = pytest.mark.ros

CAR, BUS, VAN = Box(20, 30, 50, 40), Box(200, 30, 60, 40), Box(100, 150, 40, 40)
BOXES = {"car": CAR, "bus": BUS, "van": VAN}


def track(graph: Graph, *topics: str, names: str = "car bus", **parameters) -> None:
    """Start the node, and tracks of these names."""
    graph.start(*topics, **{"max_targets": 3, **parameters})
    graph.process()
    for name in names.split():
        answer = graph.init(BOXES[name], target_id=name)
        assert answer.success, answer.message


def names_of(graph: Graph) -> list[str]:
    """The targets that the node speaks of."""
    image = graph.process()
    time.sleep(0.05)  # All of an image are published at once.
    return [status.target_id for status in graph.of("status", image)]


# ------------------------------------------------------------------------------------------------------------ outputs


def test_every_output_speaks_of_every_target(graph):
    track(graph, "detection", "detections", "heatmap", "image_annotated", names="car bus van")
    graph.puppet.states[BUS] = TrackState.LOST
    image = graph.process(graph.image(90))
    said = graph.statuses(image, 3)
    assert {name: status.state for name, status in said.items()} == {"car": 1, "bus": 3, "van": 1}
    assert said["bus"].frames_since_seen == 1
    for name, status in said.items():
        assert messages.box_from_message(status.search_region).center == pytest.approx(BOXES[name].center)
        assert status.frames_received == said["car"].frames_received
    (array,) = graph.of("detections", image)
    assert {d.id: messages.box_from_message(d.bbox) for d in array.detections} == {"car": CAR, "van": VAN}
    assert array.detections[0].results[0].hypothesis.class_id == ""
    # One of them alone: the one that was named last.
    assert [d.id for d in graph.of("detection", image)] == ["van"]
    (heatmap,) = graph.of("heatmap", image)
    values = np.frombuffer(heatmap.data, np.float32).reshape(HEIGHT // 8, WIDTH // 8)
    columns = np.nonzero(values)[1]
    assert columns.mean() * 8 == pytest.approx(VAN.center[0], abs=8)
    (annotated,) = graph.of("image_annotated", image)
    pixels = np.frombuffer(annotated.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    drawn = np.abs(pixels.astype(int) - np.frombuffer(image.data, np.uint8).reshape(HEIGHT, WIDTH, 3)).max(2) > 60
    for box in BOXES.values():
        edge = drawn[round(box.y) : round(box.y + box.h), round(box.x) - 2 : round(box.x) + 3]
        assert edge.any(1).mean() > 0.5, box


def test_one_of_them_is_selected(graph):
    track(graph, "detection", "detections", "heatmap", names="car bus")

    def selected() -> list[str]:
        image = graph.process()
        assert len(graph.of("detections", image)[0].detections) == len(graph.node.pipeline.session.tracks)
        time.sleep(0.05)
        found = [m.id for m in graph.received["detection"] if m.header == image.header]
        assert len([m for m in graph.received["heatmap"] if m.header == image.header]) == len(found)
        return found

    assert selected() == ["bus"]
    assert graph.set(selected="car")[0].successful
    assert selected() == ["car"]
    assert graph.init(VAN, target_id="van").success
    assert selected() == ["car"], "what was chosen stays chosen"
    assert graph.stop_target("car").success
    assert selected() == [], "whoever follows one target must not be given another"
    assert graph.set(selected="")[0].successful
    assert selected() == ["van"], "the last one that was started"
    assert graph.init(BUS, target_id="bus").success
    assert selected() == ["bus"]
    assert graph.stop_target("bus").success
    assert selected() == []


def test_a_label_becomes_the_class_and_is_kept(graph):
    track(graph, "detections", names="")
    message = Detection2D(bbox=messages.box_to_message(CAR), id="car")
    message.results = [messages.ObjectHypothesisWithPose()]
    message.results[0].hypothesis.class_id = "vehicle"
    assert graph.until(graph.boxes.get_subscription_count)
    graph.boxes.publish(message)
    assert graph.until(lambda: names_of(graph) == ["car"])
    assert graph.init(BUS, target_id="bus").success
    for tracker in ("puppet", "puppet2"):
        assert graph.set(tracker=tracker)[0].successful
        (array,) = graph.of("detections", graph.process())
        assert {d.id: d.results[0].hypothesis.class_id for d in array.detections} == {"car": "vehicle", "bus": ""}


def test_of_two_tracks_on_one_object_the_younger_is_doubted_and_the_reason_is_said(graph):
    track(graph, "detections", names="car")
    assert graph.init(Box(22, 31, 50, 40), target_id="twin").success
    said = [graph.statuses(graph.process(), 2) for _ in range(6)][-1]
    assert (said["car"].state, said["car"].reason) == (TrackStatus.TRACKING, "")
    assert (said["twin"].state, said["twin"].reason) == (TrackStatus.UNCERTAIN, "its box has become that of 'car'")
    assert graph.stop_target("car").success
    image = graph.process()
    assert (graph.status_of(image).state, graph.status_of(image).reason) == (TrackStatus.TRACKING, "")


def test_one_that_the_tracker_fails_on_takes_no_other_with_it(graph):
    track(graph, "detections", "/diagnostics")
    graph.puppet.failing.append(CAR)
    with graph.camera():
        assert diagnosis(graph, "failed on").level == DiagnosticStatus.ERROR
    image = graph.process()
    said = graph.statuses(image, 2)
    assert (said["car"].state, said["car"].score) == (TrackStatus.UNCERTAIN, 0)
    assert "told to fail" in said["car"].reason
    assert (said["bus"].state, said["bus"].reason) == (TrackStatus.TRACKING, "")
    assert [d.id for d in graph.of("detections", image)[0].detections] == ["bus"]
    counts = said["bus"]
    assert counts.frames_received == counts.frames_processed + counts.frames_dropped
    graph.puppet.failing.clear()
    assert graph.statuses(graph.process(), 2)["car"].state == TrackStatus.TRACKING


def test_diagnostics_and_stale_speak_of_each(graph):
    track(graph, "/diagnostics", silence=0.5)
    graph.puppet.states[BUS] = TrackState.LOST
    with graph.camera():
        assert diagnosis(graph, "LOST: bus").level == DiagnosticStatus.WARN
        found = {v.key: v.value for v in graph.received["/diagnostics"][-1].status[0].values}
        assert found["state"] == "car TRACKING, bus LOST"

    def stale() -> set[str]:
        return {status.target_id for status in graph.received["status"] if status.state == TrackStatus.STALE}

    assert graph.until(lambda: stale() == {"car", "bus"})
    old = next(status for status in graph.received["status"] if status.state == TrackStatus.STALE)
    assert (old.score, old.search_region.size_x) == (0, 0)
    assert "no image on /image_raw" in old.reason
    assert graph.stop().message == "stopped tracking 'car', 'bus'"
    assert graph.until(lambda: graph.received["status"][-1].target_id == "")


# ------------------------------------------------------------------------------------------- adding and stopping them


def test_one_target_replaces_the_other_unless_there_may_be_more(graph):
    track(graph, names="car", max_targets=1)
    assert "in place of 'car'" in graph.init(BUS, target_id="bus").message
    assert names_of(graph) == ["bus"]
    assert graph.set(max_targets=2)[0].successful
    assert graph.init(CAR, target_id="car").success
    assert sorted(names_of(graph)) == ["bus", "car"]
    # Fewer than there are: they go on, and no other one comes.
    assert graph.set(max_targets=3)[0].successful
    assert graph.init(VAN, target_id="van").success
    assert graph.set(max_targets=2)[0].successful
    assert len(names_of(graph)) == 3
    answer = graph.init(VAN, target_id="tram")
    assert not answer.success
    assert "there are: bus, car, van" in answer.message
    assert graph.init(VAN, target_id="van").success, "one of them may still start anew"
    assert len(names_of(graph)) == 3
    for wrong in (0, 17):
        assert not graph.set(max_targets=wrong)[0].successful


def test_one_too_many_is_refused_with_the_names_of_those_that_there_are(graph):
    track(graph, names="car bus van")
    starts = graph.puppet.starts
    for target_id in ("tram", ""):
        answer = graph.init(CAR, target_id=target_id)
        assert (answer.success, answer.target_id) == (False, "")
        assert "there are: bus, car, van, and max_targets is 3" in answer.message
        assert "stop_target" in answer.message
    assert graph.puppet.starts == starts
    assert graph.init(Box(30, 40, 50, 40), target_id="car").success, "the same name starts that one anew"
    image = graph.process()
    assert set(graph.statuses(image, 3)) == {"car", "bus", "van"}
    assert graph.stop_target("bus").success
    assert graph.init(BUS, target_id="tram").success
    assert set(graph.statuses(graph.process(), 3)) == {"car", "tram", "van"}


def test_targets_without_a_name_get_one_each(graph):
    track(graph, names="")
    assert [graph.init(box).target_id for box in (CAR, BUS)] == ["target", "target_2"]
    assert graph.stop_target("target").success
    assert graph.init(VAN).target_id == "target"
    assert sorted(names_of(graph)) == ["target", "target_2"]


@pytest.mark.parametrize(
    ("target_id", "words"),
    [
        ("van", r"there is no target 'van'; there are: bus, car"),
        ("CAR", "there is no target 'CAR'"),
        ("car ", "there is no target 'car '"),
        ("", "target_id is empty.*stop_tracking"),
        ("c\nar", "control characters"),
        ("x" * 129, "129 characters"),
    ],
)
def test_a_stop_of_what_is_not_there_is_refused_and_the_tracks_go_on(graph, target_id, words):
    track(graph)
    answer = graph.stop_target(target_id)
    assert not answer.success
    assert "\n" not in answer.message
    assert re.search(words, answer.message), answer.message
    assert names_of(graph) == ["car", "bus"]


def test_stops_without_a_target_or_an_active_node_are_answered(graph):
    track(graph, names="")
    assert "there is none at all" in graph.stop_target("car").message
    assert graph.init(CAR, target_id="car").success
    assert graph.stop_target("car").message == "stopped tracking 'car'"
    assert names_of(graph) == [""]
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    answer = graph.stop_target("car")
    assert not answer.success
    assert "not active" in answer.message


@pytest.mark.parametrize("box", [Box(0, 0, 3, 50), Box(float("nan"), 0, 50, 50), Box(1000, 1000, 50, 50)])
def test_a_bad_box_leaves_all_of_them_alone(graph, box):
    track(graph)
    assert not graph.init(box, target_id="van").success
    assert not graph.init(box, target_id="car").success
    said = graph.statuses(graph.process(), 2)
    assert {status.state for status in said.values()} == {TrackStatus.TRACKING}


# --------------------------------------------------------------------------------------- many requests, withdrawn ones


def later(graph: Graph, name: str, box: Box | None = None):
    """Ask for a start, or for a stop where there is no box, and do not wait."""
    if box is None:
        return graph.call_later(StopTarget, "stop_target", target_id=name)
    return graph.call_later(InitTarget, "init_target", bbox=messages.box_to_message(box), target_id=name)


def done(graph: Graph, *asked) -> list:
    assert graph.until(lambda: all(one.done() for one in asked))
    return [one.result() for one in asked]


def test_in_a_burst_the_newest_of_each_name_counts(graph):
    track(graph, names="car")
    graph.puppet.hold.clear()  # The worker is at an image while they come.
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    second = Box(40, 50, 50, 40)
    asked = [later(graph, "bus", CAR), later(graph, "van", VAN), later(graph, "bus", BUS), later(graph, "car", second)]
    asked += [later(graph, "tram", BUS)]
    assert graph.until(lambda: asked[0].done() and asked[4].done())
    graph.puppet.release()
    first, van, bus, car, tram = done(graph, *asked)
    assert not first.success
    assert "only the newest box is used" in first.message
    assert van.success
    assert bus.success
    assert car.success
    assert not tram.success, "with those that are about to start there is no room"
    assert "there are: bus, car, van" in tram.message
    image = graph.process()
    said = graph.statuses(image, 3)
    for name, box in {"bus": BUS, "van": VAN, "car": second}.items():
        assert messages.box_from_message(said[name].search_region).center == pytest.approx(box.center)


def test_requests_are_carried_out_in_their_order(graph):
    track(graph, names="car bus", max_targets=2)
    graph.puppet.hold.clear()
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    # Room that a stop is about to make counts, and a stop after a start stops what that starts.
    asked = []
    for order in [("car",), ("van", VAN), ("van",), ("tram", CAR)]:
        asked.append(later(graph, *order))
        # Between two services of ROS there is no order.
        assert graph.until(lambda: len(graph.node.requests._changes) == len(asked))
    graph.puppet.release()
    assert [answer.success for answer in done(graph, *asked)] == [True, True, True, True]
    assert sorted(names_of(graph)) == ["bus", "tram"]


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_stop_counts_for_a_start_that_still_waits_for_its_image(graph, all_of_them):
    track(graph, names="car")
    header = graph.header()
    header.stamp = Time(sec=header.stamp.sec + 1, nanosec=header.stamp.nanosec)  # Not sent yet.
    start = graph.call_later(
        InitTarget, "init_target", header=header, bbox=messages.box_to_message(VAN), target_id="van"
    )
    assert graph.until(lambda: graph.node.requests._looking)
    answer = graph.stop() if all_of_them else graph.stop_target("van")
    assert answer.success, answer.message
    graph.publish(graph.image(header=Header(stamp=header.stamp)))
    (answer,) = done(graph, start)
    assert not answer.success
    assert "stopped before" in answer.message
    assert names_of(graph) == ([""] if all_of_them else ["car"])


@pytest.mark.parametrize("kind", ["start", "stop"])
def test_a_flood_of_requests_that_cannot_be_carried_out_holds_up_nothing(graph, kind):
    track(graph, names="car bus van")
    graph.puppet.seconds = 0.02
    service = InitTarget if kind == "start" else StopTarget
    client = graph.client.create_client(
        service, "init_target" if kind == "start" else "stop_target", qos_profile=QoSProfile(depth=1000)
    )
    assert client.wait_for_service(20)
    with graph.camera():
        before = graph.received["status"][-1].frames_processed
        asked = []
        for k in range(300):
            fields = {"bbox": messages.box_to_message(CAR)} if kind == "start" else {}
            asked.append(client.call_async(service.Request(target_id=f"t{k}", **fields)))
        assert not any(answer.success for answer in done(graph, *asked))
        assert graph.until(lambda: graph.received["status"][-1].frames_processed > before)
    assert sorted(names_of(graph)) == ["bus", "car", "van"]


def test_what_was_withdrawn_takes_no_effect_on_any_of_them(graph):
    track(graph, service_timeout=0.5)
    graph.puppet.hold_start.clear()
    for target_id in ("van", "car"):
        assert "withdrawn" in graph.init(VAN, target_id=target_id).message
    graph.puppet.release()
    said = graph.statuses(graph.process(), 2)
    assert messages.box_from_message(said["car"].search_region).center == pytest.approx(CAR.center)
    graph.puppet.hold.clear()
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    assert "withdrawn" in graph.stop_target("car").message
    graph.puppet.release()
    assert names_of(graph) == ["car", "bus"]


def test_the_new_one_catches_up_alone(graph):
    track(graph, names="car", buffer_seconds=10.0)
    first = graph.publish(graph.image(30))
    for grey in (60, 90, 120):
        graph.process(graph.image(grey))
    graph.puppet.seen.clear()
    assert graph.init(BUS, stamp=first.header.stamp, target_id="bus").success
    assert graph.puppet.seen == pytest.approx([30, 60, 90, 120], abs=1)
    graph.process(graph.image(150))
    assert graph.puppet.seen == pytest.approx([30, 60, 90, 120, 150], abs=1), "both in one pass"


# -------------------------------------------------------------------------------------------- what holds for each one


def test_lifecycle_pause_options_and_another_tracker_keep_all_of_them(graph):
    track(graph, puppet__in_place=True)
    assert graph.pause(True).success
    assert graph.stop_target("bus").success
    assert graph.pause(False).success
    assert names_of(graph) == ["car"]
    assert graph.init(BUS, target_id="bus").success
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        assert graph.change_state(transition)
    graph.connected()
    assert names_of(graph) == ["car", "bus"]
    handles = [track.handle for track in graph.node.pipeline.session.tracks.values()]
    assert graph.set(puppet__gain=0.25)[0].successful
    assert [track.handle for track in graph.node.pipeline.session.tracks.values()] == handles
    assert graph.set(tracker="puppet2")[0].successful
    said = graph.statuses(graph.process(), 2)
    assert {status.tracker for status in said.values()} == {"puppet2"}
    graph.puppet.states[CAR] = TrackState.LOST
    graph.process()
    assert graph.set(tracker="puppet")[0].successful
    assert names_of(graph) == ["bus"], "there is no box of a lost one to go on from"
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert graph.change_state(Transition.TRANSITION_CLEANUP)
    assert graph.node.pipeline is None


def test_all_are_stopped_at_once(graph):
    track(graph, "detections", names="car bus van")
    assert graph.call(Trigger, "stop_tracking").message == "stopped tracking 'car', 'bus', 'van'"
    image = graph.process()
    assert graph.status_of(image).state == TrackStatus.IDLE
    assert graph.of("detections", image)[0].detections == []


def test_real_trackers_follow_each_as_if_it_were_alone(graph):
    """KCF, through the node: every box is the very same as without the other target, which comes and goes."""
    rng = np.random.RandomState(5)
    patches = rng.randint(0, 255, (2, 40, 48, 3)).astype(np.uint8)
    ground = rng.randint(60, 120, (HEIGHT, WIDTH, 3)).astype(np.uint8)

    def scene(k: int):
        frame = ground.copy()
        for patch, (x, y) in zip(patches, ((40 + 2 * k, 60), (220 - 2 * k, 150)), strict=True):
            frame[y : y + 40, x : x + 48] = patch
        return messages.image_to_message(frame, "bgr8", graph.header())

    graph.start("detections", tracker="kcf", max_targets=2)

    def run(*orders: tuple[int, str]) -> dict[str, list[Box]]:
        """Boxes of all targets in 12 images; before these images the targets of these names start, or stop."""
        found: dict[str, list[Box]] = {"car": [], "bus": []}
        for k in range(12):
            image = graph.process(scene(k))
            for detection in graph.of("detections", image)[0].detections:
                found[detection.id].append(messages.box_from_message(detection.bbox))
            for _, name in (order for order in orders if order[0] == k):
                if name in graph.node.pipeline.session.tracks:
                    assert graph.stop_target(name).success
                else:
                    box = Box(40 + 2 * k, 60, 48, 40) if name == "car" else Box(220 - 2 * k, 150, 48, 40)
                    assert graph.init(box, stamp=image.header.stamp, target_id=name).success
        assert graph.stop().success
        return found

    together = run((0, "car"), (3, "bus"), (8, "bus"))
    assert len(together["car"]) == 11
    assert len(together["bus"]) == 5
    assert run((0, "car"))["car"] == together["car"]
    assert run((3, "bus"), (8, "bus"))["bus"] == together["bus"]
    assert together["car"][-1].center == pytest.approx((40 + 22 + 24, 80), abs=2)
