"""The tracker node as other nodes of this package use it: its words on every target, and requests with an answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from builtin_interfaces.msg import Time
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2DArray

from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.remote.tracker import Answer, Sighting, State
from tracker_ros.ros import messages
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget, StopTarget

#: Seconds that a request may take: the node's own `service_timeout` and a little; loading a tracker takes longer.
_ANSWER, _LOADING = 8.0, 60.0
#: Images whose `status` and `detections` are waited for at a time.
_WAITING = 64


class Sightings:
    """Puts `status` and `detections` of the same image together, in whichever order they come.

    Args:
        tell: called with every `Sighting`.
    """

    def __init__(self, tell: Callable[[Sighting], None]) -> None:
        self._tell = tell
        self._boxes: OrderedDict[int, dict[str, Box]] = OrderedDict()
        self._waiting: OrderedDict[int, list[TrackStatus]] = OrderedDict()

    def add_status(self, status: TrackStatus) -> None:
        """What is said of one target in an image."""
        stamp = messages.stamp_to_ns(status.header.stamp)
        seen = status.state in (State.TRACKING, State.UNCERTAIN)
        if seen and stamp not in self._boxes:
            self._waiting.setdefault(stamp, []).append(status)
            if len(self._waiting) > _WAITING:
                for late in self._waiting.popitem(last=False)[1]:
                    self._emit(late, {})
            return
        self._emit(status, self._boxes.get(stamp, {}) if seen else {})

    def add_detections(self, detections: Detection2DArray) -> None:
        """All boxes in an image."""
        stamp = messages.stamp_to_ns(detections.header.stamp)
        boxes = {}
        for detection in detections.detections:
            try:
                boxes[detection.id] = messages.box_from_message(detection.bbox)
            except InvalidBox:
                continue  # Not from our node, then; the state is worth telling all the same.
        self._boxes[stamp] = boxes
        if len(self._boxes) > _WAITING:
            self._boxes.popitem(last=False)
        for status in self._waiting.pop(stamp, []):
            self._emit(status, boxes)

    def _emit(self, status: TrackStatus, boxes: dict[str, Box]) -> None:
        try:
            state = State(status.state)
        except ValueError:
            return  # Another version's state.
        name = str(status.target_id)
        stamp = messages.stamp_to_ns(status.header.stamp)
        reason = str(getattr(status, "reason", ""))  # Older interfaces have none.
        self._tell(Sighting(stamp, name, state, float(status.score), boxes.get(name), str(status.tracker), reason))


class TrackerClient:
    """A `RemoteTracker` behind the services of a tracker node.

    Args:
        node: creates the clients and subscriptions; its executor must be spinning.
        tell: called in the executor's thread with every `Sighting`.
        tracker_node: name of the tracker node, for its parameters.
    """

    def __init__(self, node: Node, tell: Callable[[Sighting], None], tracker_node: str = "tracker") -> None:
        sightings = Sightings(tell)
        deep = QoSProfile(depth=50)
        node.create_subscription(Detection2DArray, "detections", sightings.add_detections, deep)
        node.create_subscription(TrackStatus, "status", sightings.add_status, deep)
        self._init = node.create_client(InitTarget, "init_target")
        self._stop = node.create_client(Trigger, "stop_tracking")
        self._stop_one = node.create_client(StopTarget, "stop_target")
        self._pause = node.create_client(SetBool, "pause_tracking")
        self._get = node.create_client(GetParameters, f"{tracker_node}/get_parameters")
        self._set = node.create_client(SetParameters, f"{tracker_node}/set_parameters")

    def start(self, stamp: int, box: Box, target_id: str) -> Future[Answer]:
        """See `RemoteTracker.start`."""
        header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9))
        request = InitTarget.Request(header=header, bbox=messages.box_to_message(box), target_id=target_id)
        return self._ask(self._init, request, lambda r: Answer(r.success, r.message))

    def stop(self, target_id: str = "") -> Future[Answer]:
        """See `RemoteTracker.stop`."""
        if target_id:
            request = StopTarget.Request(target_id=target_id)
            return self._ask(self._stop_one, request, lambda r: Answer(r.success, r.message))
        return self._ask(self._stop, Trigger.Request(), lambda r: Answer(r.success, r.message))

    def pause(self, paused: bool) -> Future[Answer]:
        """See `RemoteTracker.pause`."""
        return self._ask(self._pause, SetBool.Request(data=paused), lambda r: Answer(r.success, r.message))

    def select(self, tracker: str) -> Future[Answer]:
        """See `RemoteTracker.select`."""
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=tracker)
        return self._set_parameter("tracker", value, f"now tracking with {tracker}")

    def hold(self, seconds: float) -> Future[Answer]:
        """Have the tracker keep images for at least this long, so that a box may be drawn that slowly."""
        answer: Future[Answer] = Future()

        def read(response: Any) -> Answer:
            return Answer(bool(response.values), str(response.values[0].double_value) if response.values else "")

        def compare(found: Future[Answer]) -> None:
            if not found.result().ok or float(found.result().text) >= seconds:
                answer.set_result(found.result())
                return
            value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=seconds)
            change = self._set_parameter("buffer_seconds", value, f"the tracker now keeps images for {seconds:g} s")
            change.add_done_callback(lambda changed: answer.set_result(changed.result()))

        self._ask(self._get, GetParameters.Request(names=["buffer_seconds"]), read).add_done_callback(compare)
        return answer

    @property
    def ready(self) -> bool:
        """Whether there is a tracker node."""
        return bool(self._init.service_is_ready() and self._get.service_is_ready())

    def _set_parameter(self, name: str, value: ParameterValue, done: str) -> Future[Answer]:
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])

        def read(response: Any) -> Answer:
            (result,) = response.results
            return Answer(result.successful, done if result.successful else result.reason)

        return self._ask(self._set, request, read, _LOADING)

    def _ask(
        self, client: Any, request: Any, read: Callable[[Any], Answer], timeout: float = _ANSWER
    ) -> Future[Answer]:
        """Call a service; the answer comes in time, whatever happens to the tracker."""
        answer: Future[Answer] = Future()
        lock = threading.Lock()

        def give(value: Answer) -> None:
            with lock:  # The clock and the service may speak at the same time, from different threads.
                if not answer.done():
                    answer.set_running_or_notify_cancel()
                    answer.set_result(value)

        if not client.service_is_ready():
            give(Answer(False, f"the tracker is not there: nobody offers the service {client.srv_name}"))
            return answer
        call = client.call_async(request)

        def late() -> None:
            client.remove_pending_request(call)
            give(Answer(False, f"the tracker has not answered {client.srv_name} within {timeout:g} s"))

        def done(finished: Any) -> None:
            timer.cancel()
            try:
                give(read(finished.result()))
            except Exception as error:
                give(Answer(False, f"{client.srv_name} failed: {error} ({type(error).__name__})"))

        timer = threading.Timer(timeout, late)
        timer.daemon = True
        timer.start()
        call.add_done_callback(done)
        return answer
