"""What the demo asks of the running nodes: are you ready, send the first image, track this box, go, finish."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2D

from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros.ros.recording import believable
from tracker_ros.trackers.base import TrackState
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget

T = TypeVar("T")

#: Seconds that a running node takes at most to answer.
ANSWER = 30.0


class DirectionFailed(RuntimeError):
    """A node did not do what it was asked; the message says which, what, and its reason."""


class Director:
    """A client node beside the demo's processes; use it in a ``with`` statement.

    Args:
        check: called while waiting; raises if a process has ended.
        source: name of the image source's node.
        arguments: of ROS, such as the namespace that the processes are in.
    """

    def __init__(self, check: Callable[[], None], source: str, arguments: Sequence[str] = ()) -> None:
        self._check = check
        rclpy.init(args=["--ros-args", *arguments], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("demo")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        create = self._node.create_client
        self._state = create(GetState, "tracker/get_state")
        self._init = create(InitTarget, "init_target")
        self._first = create(Trigger, f"{source}/first_image")
        self._play = create(SetBool, f"{source}/play")
        self._finish = create(Trigger, "recorder/finish")
        self._truth: dict[int, Box | None] = {}
        self._problem = ""
        self._stamps: set[int] = set()
        #: The newest status of the tracker.
        self.status: TrackStatus | None = None
        subscribe = self._node.create_subscription
        subscribe(Detection2D, "ground_truth", self._on_truth, QoSProfile(depth=10))
        subscribe(TrackStatus, "status", self._on_status, QoSProfile(depth=10))
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10))

    def __enter__(self) -> Director:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.get_default_context().try_shutdown()

    def spin(self, seconds: float) -> None:
        """Let messages come in for a while; raises if a process has ended."""
        end = time.monotonic() + seconds
        while True:
            self._executor.spin_once(max(0.0, min(0.05, end - time.monotonic())))
            self._check()
            if time.monotonic() >= end:
                return

    def _until(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                raise DirectionFailed(f"{what} within {timeout:g} s")
            self.spin(0.05)

    def _call(self, client: Any, request: Any, timeout: float = ANSWER) -> Any:
        name = client.srv_name
        self._until(client.service_is_ready, timeout, f"there is no service {name}")
        future = client.call_async(request)
        self._until(future.done, timeout, f"service {name} did not answer")
        return future.result()

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until the tracker is active, and source and recorder answer.

        Raises:
            DirectionFailed: one of them does not come up; with the tracker's reason.
        """
        end = time.monotonic() + timeout
        while self._call(self._state, GetState.Request(), timeout).current_state.id != State.PRIMARY_STATE_ACTIVE:
            if self._problem:
                raise DirectionFailed(f"the tracker is {self._problem}")
            if time.monotonic() > end:
                raise DirectionFailed(f"the tracker is not active after {timeout:g} s")
            self.spin(0.1)
        for client in (self._first, self._finish):
            self._until(client.service_is_ready, timeout, f"there is no service {client.srv_name}")
        # tracker and recorder
        self._until(lambda: self._node.count_subscribers("image_raw") >= 2, timeout, "nobody subscribes to image_raw")

    def first_image(self) -> int:
        """Have the source send its first image until the tracker has got it; returns its stamp (nanoseconds).

        Raises:
            DirectionFailed: the source refuses, or the image does not get through.
        """
        reason = ""
        for _ in range(10):
            answer = self._call(self._first, Trigger.Request())
            if not answer.success:
                reason = answer.message
                self.spin(0.5)
                continue
            sec, nanosec = json.loads(answer.message)["stamp"]
            stamp = int(sec) * 10**9 + int(nanosec)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                self.spin(0.02)
                if stamp in self._stamps:
                    return stamp
            reason = "the tracker does not receive it (is the Fast DDS profile in use?)"
        raise DirectionFailed(f"the first image can't be shown to the tracker: {reason}")

    def truth(self, stamp: int) -> Box | None:
        """The true box of the image with this stamp, None if the source does not know it."""
        end = time.monotonic() + 2
        while stamp not in self._truth and time.monotonic() < end:
            self.spin(0.02)
        return self._truth.get(stamp)

    def init_target(self, stamp: int, box: Box) -> str:
        """Start the track; returns the tracker's answer.

        Raises:
            DirectionFailed: the tracker refuses; with its reason.
        """
        request = InitTarget.Request(header=Header(), bbox=messages.box_to_message(box), target_id="target")
        request.header.stamp.sec, request.header.stamp.nanosec = divmod(stamp, 10**9)
        answer = self._call(self._init, request)
        if not answer.success:
            raise DirectionFailed(f"init_target was refused: {answer.message}")
        return str(answer.message)

    def play(self) -> None:
        """Let the source send its images."""
        answer = self._call(self._play, SetBool.Request(data=True))
        if not answer.success:
            raise DirectionFailed(f"the source does not play: {answer.message}")

    def finish(self) -> None:
        """Have the recorder write its files and end."""
        self._call(self._finish, Trigger.Request())

    def progress(self) -> tuple[int, str]:
        """Images that the tracker has received, and how it is doing in a few words."""
        status = self.status
        if status is None:
            return 0, ""
        seconds = believable(status.latency)
        latency = "" if math.isnan(seconds) else f" {seconds * 1e3:.0f} ms"
        state = "STALE" if status.state == TrackStatus.STALE else TrackState(status.state).name
        return int(status.frames_received), f"{state} {status.score:.2f}{latency}"

    def _on_truth(self, message: Detection2D) -> None:
        box = messages.box_from_message(message.bbox) if message.results else None
        self._truth = {messages.stamp_to_ns(message.header.stamp): box}

    def _on_status(self, message: TrackStatus) -> None:
        self.status = message
        if message.state == TrackStatus.IDLE:
            self._stamps.add(messages.stamp_to_ns(message.header.stamp))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": tracking"):
                self._problem = status.message if status.message.startswith("not configured:") else ""
