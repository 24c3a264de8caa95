"""The node answers in time, whatever its tracker and its clients do: a hanging tracker, floods, slow loading."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 (`make setup` gets one)")
pytest.importorskip("vision_msgs", reason="needs vision_msgs (`make setup` gets it)")
pytest.importorskip("tracker_ros_interfaces.msg", reason="needs tracker_ros_interfaces (`make setup` builds it)")

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2D

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget

from .graph import BOX, Graph, diagnosis

pytestmark = pytest.mark.ros


def track(graph: Graph, *topics: str, **parameters) -> None:
    """Start the node, and a track called "first"."""
    graph.start(*topics, **parameters)
    graph.process()
    assert graph.init(target_id="first").success


# ----------------------------------------------------------------------------------------------------- a stuck tracker


@pytest.mark.parametrize("stuck_in", ["step", "start"])
def test_a_stuck_tracker_is_warned_of_then_an_error_and_status_is_stale(graph, stuck_in):
    track(graph, "/diagnostics", service_timeout=0.5)
    (graph.puppet.hold if stuck_in == "step" else graph.puppet.hold_start).clear()
    if stuck_in == "start":
        assert not graph.init(target_id="second").success
    with graph.camera():
        warned = diagnosis(graph, "no result for", 15)
        assert warned.level == DiagnosticStatus.WARN
        assert ("image" if stuck_in == "step" else "init") in warned.message
        assert {pair.key: pair.value for pair in warned.values}["state"] == "STALE"
        stale = graph.until(lambda: next((s for s in graph.received["status"] if s.state == TrackStatus.STALE), None))
        assert "no result for" in stale.reason
        assert (stale.target_id, stale.score) == ("first", 0)
        assert graph.until(lambda: diagnosis(graph, "no result for").level == DiagnosticStatus.ERROR, 30), (
            "after ten seconds it is an error"
        )
        graph.puppet.release()
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.TRACKING)
        assert diagnosis(graph, "TRACKING", 15).level == DiagnosticStatus.OK


def test_a_very_slow_tracker_is_a_warning_but_no_error(graph):
    track(graph, "/diagnostics")
    graph.puppet.seconds = 3.5
    with graph.camera():
        assert diagnosis(graph, "no result for", 15).level == DiagnosticStatus.WARN
        seen = len(graph.received["/diagnostics"])
        time.sleep(8)
    levels = {array.status[0].level for array in graph.received["/diagnostics"][seen:]}
    assert DiagnosticStatus.ERROR not in levels


def test_paused_tracking_is_not_taken_for_a_stuck_tracker(graph):
    track(graph, "/diagnostics", silence=1.0)
    assert graph.pause(True).success
    with graph.camera():
        time.sleep(4)
        assert diagnosis(graph, "paused").level == DiagnosticStatus.OK
        assert graph.pause(False).success
        assert graph.until(lambda: graph.received["status"][-1].state == TrackStatus.TRACKING)
    assert TrackStatus.STALE not in {s.state for s in graph.received["status"]}


# ------------------------------------------------------------------------------------- requests faster than the tracker


def slow_starts(graph: Graph, seconds: float) -> None:
    """From now on a start takes so long."""
    tracker = graph.node.pipeline.session.tracker
    start = tracker.start

    def slow(frame, boxes):
        time.sleep(seconds)
        return start(frame, boxes)

    tracker.start = slow


def test_a_detector_that_floods_init_box_does_not_starve_the_images(graph):
    track(graph, "detection", "/diagnostics")
    slow_starts(graph, 0.4)
    assert graph.until(graph.boxes.get_subscription_count)
    with graph.camera():
        seen, end, k = len(graph.received["detection"]), time.monotonic() + 5, 0
        while time.monotonic() < end:
            k += 1
            box = Box(10 + k, 20, 40, 40)
            graph.boxes.publish(Detection2D(bbox=messages.box_to_message(box), id=f"box{k}"))
            time.sleep(0.05)
        found = graph.received["detection"][seen:]
        report = diagnosis(graph, "init_box comes faster")
    assert len(found) >= 5, "images must get their turn"
    assert report.level == DiagnosticStatus.WARN
    assert graph.until(lambda: graph.node.pipeline.session.named == f"box{k}"), "the newest box is the one that counts"
    assert graph.puppet.starts < k / 2, "boxes that wait give way to newer ones"


def test_init_target_from_a_script_gives_way_to_the_newest_and_names_the_rate(graph):
    track(graph)
    slow_starts(graph, 0.4)
    with graph.camera():
        answers = []
        for k in range(20):
            answers.append(
                graph.call_later(InitTarget, "init_target", bbox=messages.box_to_message(BOX), target_id=f"{k}")
            )
            time.sleep(0.05)
        assert graph.until(lambda: all(answer.done() for answer in answers))
    replies = [answer.result() for answer in answers]
    assert replies[-1].success
    replaced = [reply for reply in replies if not reply.success]
    assert replaced
    assert all("a newer request came" in reply.message and "a second" in reply.message for reply in replaced)
    assert graph.status_of(graph.process()).target_id == "19"


def test_a_flood_of_parameters_loads_the_newest_and_answers_all(graph):
    track(graph, "/diagnostics")
    graph.puppet.hold_load.clear()
    names = ["puppet2", "puppet"] * 10 + ["puppet2"]
    answers = []
    for name in names:
        message = [Parameter("tracker", value=name).to_parameter_msg()]
        answers.append(graph.call_later(SetParameters, "tracker/set_parameters", parameters=message))
        time.sleep(0.02)
    with graph.camera():
        seen = len(graph.received["status"])
        assert graph.until(lambda: len(graph.received["status"]) > seen + 5), "the track goes on meanwhile"
        graph.puppet.release()
        assert graph.until(lambda: all(answer.done() for answer in answers))
        assert answers[-1].result().results[0].successful
        assert graph.until(lambda: graph.received["status"][-1].tracker == "puppet2")
    refused = [a.result().results[0].reason for a in answers if not a.result().results[0].successful]
    assert refused
    assert all("a newer request" in reason for reason in refused)
    assert graph.puppet.loads <= 4
    assert graph.get("tracker") == "puppet2"


@pytest.mark.parametrize("kind", ["init_target", "stop_tracking", "pause_tracking", "set_parameters"])
def test_of_a_burst_of_500_every_request_is_answered(graph, kind):
    track(graph)
    services = {
        "init_target": (InitTarget, InitTarget.Request(bbox=messages.box_to_message(BOX), target_id="burst")),
        "stop_tracking": (Trigger, Trigger.Request()),
        "pause_tracking": (SetBool, SetBool.Request(data=True)),
        "set_parameters": (
            SetParameters, SetParameters.Request(parameters=[Parameter("puppet.gain", value=0.5).to_parameter_msg()])
        ),
    }  # fmt: skip
    service, request = services[kind]
    name = "tracker/set_parameters" if kind == "set_parameters" else kind
    client = graph.client.create_client(service, name, qos_profile=QoSProfile(depth=1000))
    assert client.wait_for_service(20)
    with graph.camera():
        answers = [client.call_async(request) for _ in range(500)]
        assert graph.until(lambda: all(answer.done() for answer in answers), 60), (
            f"{sum(answer.done() for answer in answers)} of 500 were answered"
        )
    last = answers[-1].result()
    assert last.results[0].successful if kind == "set_parameters" else last.success
    assert graph.state() == "active"


# ---------------------------------------------------------------------------------- what was refused takes no effect


def test_a_start_that_was_refused_for_its_time_never_replaces_the_target(graph):
    track(graph, service_timeout=0.5)
    graph.puppet.hold_start.clear()
    answer = graph.init(target_id="second")
    assert not answer.success
    assert "the request was withdrawn" in answer.message
    graph.puppet.release()
    assert graph.until(lambda: graph.puppet.starts == 2), "the tracker did start on it, for nothing"
    assert graph.status_of(graph.process()).target_id == "first"


def test_a_box_on_the_topic_that_took_too_long_never_replaces_the_target(graph):
    track(graph, service_timeout=0.3)
    graph.puppet.hold_start.clear()
    graph.puppet.starting.clear()
    assert graph.until(graph.boxes.get_subscription_count)
    graph.boxes.publish(Detection2D(bbox=messages.box_to_message(BOX), id="second"))
    assert graph.until(graph.puppet.starting.is_set)
    time.sleep(0.8)
    graph.puppet.release()
    assert graph.status_of(graph.process()).target_id == "first"


def test_a_start_that_has_taken_effect_in_time_says_so_although_it_still_catches_up(graph):
    graph.start(service_timeout=0.5, catch_up_seconds=10.0, buffer_seconds=10.0)
    sent = [graph.process() for _ in range(6)]
    graph.puppet.hold.clear()  # The start succeeds, and catching up hangs.
    answer = graph.init(stamp=sent[0].header.stamp, target_id="car")
    assert answer.success
    assert "not finished within 0.5 s" in answer.message
    graph.puppet.release()
    assert graph.status_of(graph.process()).target_id == "car"


def test_a_stop_that_was_refused_for_its_time_does_not_stop_later(graph):
    track(graph, service_timeout=0.5)
    graph.puppet.hold.clear()
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    assert not graph.stop().success
    graph.puppet.release()
    assert graph.status_of(graph.process()).target_id == "first"


def test_a_pause_takes_effect_although_the_tracker_hangs(graph):
    track(graph, service_timeout=0.5)
    graph.puppet.hold.clear()
    image = graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    answer = graph.pause(True)
    assert answer.success
    assert "will not be published" in answer.message
    graph.puppet.release()
    assert graph.until(lambda: not graph.node.pipeline.worker.doing()[0])
    time.sleep(0.3)
    assert graph.status_of(image) is None
    assert graph.pause(False).success
    assert graph.status_of(graph.process()).target_id == "first"


# ------------------------------------------------------------------------------------------ loading in the background


def test_everything_goes_on_while_a_tracker_is_loaded(graph):
    track(graph, "detection", "/diagnostics")
    graph.puppet.hold_load.clear()
    message = [Parameter("tracker", value="puppet2").to_parameter_msg()]
    with graph.camera():
        answer = graph.call_later(SetParameters, "tracker/set_parameters", parameters=message)
        assert graph.until(lambda: graph.puppet.loads == 2)
        report = diagnosis(graph, "loading puppet2")
        assert report.level == DiagnosticStatus.OK
        assert "TRACKING" in report.message
        seen = len(graph.received["detection"])
        assert graph.until(lambda: len(graph.received["detection"]) > seen + 5)
        assert graph.init(target_id="new").success
        assert graph.get("tracker") == "puppet"
        assert graph.set(buffer_seconds=2.0)[0].successful, "what needs no loading does not wait for it"
        assert not answer.done()
        graph.puppet.release()
        assert graph.until(answer.done)
        assert answer.result().results[0].successful
        assert graph.until(lambda: graph.received["status"][-1].tracker == "puppet2")
        assert graph.received["status"][-1].target_id == "new"


def test_a_tracker_that_cannot_be_loaded_is_refused_and_the_track_goes_on(graph):
    track(graph)
    graph.puppet.hold_load.clear()
    message = [Parameter("weights", value="missing.safetensors").to_parameter_msg()]
    answer = graph.call_later(SetParameters, "tracker/set_parameters", parameters=message)
    assert graph.until(answer.done), "what fails before it loads fails at once"
    result = answer.result().results[0]
    assert not result.successful
    assert "missing.safetensors is not there" in result.reason
    assert graph.get("weights") == ""
    assert graph.status_of(graph.process()).target_id == "first"


def test_going_back_to_the_tracker_in_use_cancels_the_loading(graph):
    track(graph)
    graph.puppet.hold_load.clear()
    message = [Parameter("tracker", value="puppet2").to_parameter_msg()]
    answer = graph.call_later(SetParameters, "tracker/set_parameters", parameters=message)
    assert graph.until(lambda: graph.puppet.loads == 2)
    assert graph.set(tracker="puppet")[0].successful
    assert graph.until(answer.done)
    assert not answer.result().results[0].successful
    graph.puppet.release()
    assert graph.until(lambda: not graph.node.busy)
    status = graph.status_of(graph.process())
    assert (status.tracker, status.target_id) == ("puppet", "first")


def test_services_and_diagnostics_answer_while_the_node_configures(graph):
    graph.puppet.hold_load.clear()
    graph.start("/diagnostics", active=False)
    assert graph.until(lambda: graph.puppet.loads == 1)
    assert graph.state() == "unconfigured"
    assert "loading puppet" in diagnosis(graph, "not active").message
    answer = graph.init()
    assert not answer.success
    assert "loading puppet" in answer.message
    # A manager that configures meanwhile waits for the same tracker, and takes over from the node's own start.
    request = Transition(id=Transition.TRANSITION_CONFIGURE)
    configured = graph.call_later(ChangeState, "tracker/change_state", transition=request)
    time.sleep(0.3)
    assert not configured.done()
    graph.puppet.release()
    assert graph.until(configured.done)
    assert configured.result().success
    assert graph.change_state(Transition.TRANSITION_ACTIVATE)
    assert graph.puppet.loads == 1


def test_parameters_that_change_while_the_node_configures_count(graph):
    graph.puppet.hold_load.clear()
    graph.start(active=False)
    assert graph.until(lambda: graph.puppet.loads == 1)
    assert graph.set(tracker="puppet2")[0].successful
    graph.puppet.release()
    assert graph.until(lambda: graph.state() == "active")
    graph.connected()
    assert graph.status_of(graph.process()).tracker == "puppet2"


# ------------------------------------------------------------------------------------------------- options in place


def test_an_option_that_can_change_in_place_keeps_the_track(graph):
    track(graph, puppet__in_place=True)
    tracker, target = graph.node.pipeline.session.tracker, graph.node.pipeline.session.tracks["first"].handle
    for values, options in [
        ({"puppet__gain": 0.25}, (0.25, 3)),
        ({"puppet__count": 5}, (0.25, 5)),
        ({"puppet__gain": 1.0}, (1.0, 5)),  # Back to the preset's.
    ]:
        assert graph.set(**values)[0].successful
        assert (tracker.options.gain, tracker.options.count) == options
    assert graph.set_atomically(**{"puppet.gain": 0.5, "puppet.count": 2}).successful
    assert (tracker.options.gain, tracker.options.count) == (0.5, 2)
    assert not graph.set(puppet__gain=7.0)[0].successful
    assert graph.node.pipeline.session.tracker is tracker
    assert graph.node.pipeline.session.tracks["first"].handle is target
    assert (graph.puppet.loads, graph.puppet.starts) == (1, 1)
    assert graph.status_of(graph.process()).target_id == "first"
    # What needs another tracker still makes one.
    assert graph.set(puppet__mode="wild")[0].successful
    assert graph.until(lambda: graph.node.pipeline.session.tracker.options.mode == "wild")
    assert graph.node.pipeline.session.tracker.options.gain == 0.5
    assert (graph.puppet.loads, graph.puppet.starts) == (2, 2)


def test_a_tracker_that_takes_no_options_in_place_is_rebuilt(graph):
    track(graph)
    assert graph.set(puppet__gain=0.25)[0].successful
    assert graph.until(lambda: graph.puppet.starts == 2)
    assert graph.puppet.loads == 2
    status = graph.status_of(graph.process())
    assert (status.state, status.target_id) == (TrackStatus.TRACKING, "first")


def test_options_change_in_place_while_images_flow(graph):
    track(graph, puppet__in_place=True)
    with graph.camera():
        for k in range(20):
            assert graph.set(puppet__gain=k / 10)[0].successful
        assert graph.until(lambda: len(graph.received["status"]) > 20)
    assert graph.puppet.starts == 1
    assert graph.node.pipeline.session.tracker.options.gain == pytest.approx(1.9)


def test_an_option_for_a_tracker_that_hangs_is_answered_in_time(graph):
    track(graph, puppet__in_place=True, service_timeout=0.5)
    graph.puppet.hold.clear()
    graph.publish()
    assert graph.until(lambda: graph.node.pipeline.worker.doing()[0] == "image")
    began = time.monotonic()
    graph.set(puppet__gain=0.25)
    assert time.monotonic() - began < 10
    graph.puppet.release()
    assert graph.until(lambda: graph.node.pipeline.session.tracker.options.gain == 0.25)
    assert graph.status_of(graph.process()).target_id == "first"


# ---------------------------------------------------------------------------------------------------------- lifecycle

ACTIVE = [
    Transition(id=Transition.TRANSITION_CONFIGURE),
    Transition(id=Transition.TRANSITION_ACTIVATE),
    Transition(id=Transition.TRANSITION_CLEANUP),
    Transition(id=Transition.TRANSITION_UNCONFIGURED_SHUTDOWN),
    Transition(label="configure"),
    Transition(label="cleanup"),
    Transition(label="fly"),
    Transition(id=77),
    Transition(id=Transition.TRANSITION_DESTROY),
]


def test_a_transition_that_is_not_possible_is_answered_with_no(graph):
    track(graph)
    for transition in ACTIVE:
        answer = graph.call(ChangeState, "tracker/change_state", transition=transition)
        assert not answer.success, transition
        assert graph.state() == "active"
    assert graph.status_of(graph.process()).target_id == "first"
    assert graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert not graph.change_state(Transition.TRANSITION_DEACTIVATE)
    assert not graph.change_state(Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(Transition.TRANSITION_CLEANUP)
    assert not graph.change_state(Transition.TRANSITION_ACTIVATE)
    assert graph.change_state(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN):
        assert not graph.change_state(transition)
    assert graph.state() == "finalized"
