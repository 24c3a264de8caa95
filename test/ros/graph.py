"""A tracker node in one context and a client in another, as if they were two processes, for tests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from foxglove_msgs.msg import ImageAnnotations
from geometry_msgs.msg import PoseStamped, Vector3Stamped
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection2D, Detection2DArray

from tracker_ros import registry
from tracker_ros.errors import WeightsMissing
from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros.ros.node.tracking import TrackerNode
from tracker_ros.ros.spinning import spin
from tracker_ros.trackers.base import Estimate, Tracker, TrackerOptions, TrackState, option
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget, StopTarget

TIMEOUT = 20.0
WIDTH, HEIGHT = 320, 240
BOX = Box(100.3, 60.7, 50.5, 40.2)


@dataclass
class Puppet:
    """What the tracker `puppet` does from now on, and what it was shown.

    Attributes:
        seconds: how long a step takes.
        state, score: what it says.
        states: the same for the targets that were started on these boxes.
        fails: raise an exception in the next steps.
        failing: raise one in those with a target that was started on one of these boxes.
        hold, hold_start: steps, and starts, wait until this is set; `starting` is set when a start begins.
        hold_load: what is loaded next waits until this is set; `loads` counts the loads that began.
        seen: mean grey of the images that it was shown, starts first.
    """

    seconds: float = 0.0
    state: TrackState = TrackState.TRACKING
    score: float = 0.75
    states: dict[Box, TrackState] = field(default_factory=dict)
    fails: bool = False
    failing: list[Box] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    hold_start: threading.Event = field(default_factory=threading.Event)
    hold_load: threading.Event = field(default_factory=threading.Event)
    starting: threading.Event = field(default_factory=threading.Event)
    seen: list[float] = field(default_factory=list)
    starts: int = 0
    loads: int = 0

    def __post_init__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let everything go on that is held."""
        for event in (self.hold, self.hold_start, self.hold_load):
            event.set()


@dataclass(frozen=True, kw_only=True)
class PuppetOptions(TrackerOptions):
    gain: float = option(1.0, "a number", low=0.0, high=2.0)
    mode: str = option("calm", "a choice", choices=("calm", "wild"))
    count: int = option(3, "a whole number", low=1, high=9)
    update: str = option("none", "update policy", choices=("none", "often"))
    in_place: bool = option(False, "whether options change in place")


class PuppetTracker(Tracker):
    """Stays where it was started; for the rest it does what its puppet says."""

    def __init__(self, name: str, options: PuppetOptions, puppet: Puppet) -> None:
        super().__init__(name, options)
        if options.weights == "missing.safetensors":
            raise WeightsMissing("weights file missing.safetensors is not there")
        self.puppet = puppet
        puppet.loads += 1
        puppet.hold_load.wait(TIMEOUT)

    def reconfigure(self, options: PuppetOptions) -> bool:
        if not (self.options.in_place and options.in_place) or options.mode != self.options.mode:
            return False
        self.options = options
        return True

    def warm_up(self, width: int = 640, height: int = 480) -> None:
        pass

    def start(self, frame, boxes):
        self.puppet.starting.set()
        self.puppet.hold_start.wait(TIMEOUT)
        self.puppet.seen.append(float(frame.mean()))
        self.puppet.starts += 1  # Last: who waits for it looks at the rest next.
        return list(boxes)

    def step(self, frame, targets):
        self.puppet.hold.wait(TIMEOUT)
        time.sleep(self.puppet.seconds)
        if self.puppet.fails or any(box in self.puppet.failing for box in targets):
            raise RuntimeError("the puppet was told to fail")
        self.puppet.seen.append(float(frame.mean()))
        heat = np.linspace(0, 1, 19 * 19, dtype=np.float32).reshape(19, 19)
        puppet = self.puppet
        return [
            Estimate(
                box,
                puppet.score,
                puppet.states.get(box, puppet.state),
                Box.from_center(*box.center, 120, 120),
                heat,
            )
            for box in targets
        ]


class Graph:
    """The node under test (`start`), and a client beside it that publishes, listens and calls.

    Attributes:
        puppet: controls the trackers ``puppet`` and ``puppet2``.
        node: the node under test.
        received: topic -> messages, in order.
    """

    outputs = {
        "detection": Detection2D,
        "detections": Detection2DArray,
        "status": TrackStatus,
        "heatmap": Image,
        "image_annotated": Image,
        "target_ray": Vector3Stamped,
        "annotations": ImageAnnotations,
        "target_pose": PoseStamped,
        "/tf": TFMessage,
        "/diagnostics": DiagnosticArray,
    }

    def __init__(self) -> None:
        self.puppet = Puppet()
        self._pictures = 0
        self.received: dict[str, list[Any]] = {}
        self.node: TrackerNode
        self._stack = contextlib.ExitStack()
        self.client = self._spin(lambda context: Node("client", context=context))
        self.images = self.client.create_publisher(Image, "image_raw", qos_profile_sensor_data)
        self.compressed = self.client.create_publisher(CompressedImage, "image_raw/compressed", qos_profile_sensor_data)
        self.boxes = self.client.create_publisher(Detection2D, "init_box", 10)
        self._clients: dict[str, Any] = {}

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.puppet.release()
        self._stack.close()

    def _spin(self, make: Callable[[Context], Any]) -> Any:
        """Make a node in a context of its own and spin it in a thread of its own, until the end of the test."""
        context = Context()
        rclpy.init(context=context)
        node = make(context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)

        def run() -> None:
            spin(node, executor)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def end() -> None:
            context.try_shutdown()
            thread.join(TIMEOUT)
            assert not thread.is_alive()
            executor.shutdown()
            node.destroy_node()

        self._stack.callback(end)
        return node

    def other(self, name: str) -> Node:
        """A further node in a context of its own."""
        return self._spin(lambda context: Node(name, context=context))

    # ------------------------------------------------------------------------------------------- the node under test

    def start(
        self,
        *topics: str,
        active: bool = True,
        cli_arguments: list[str] | None = None,
        patience: float = TIMEOUT,
        **parameters: Any,
    ) -> TrackerNode:
        """Start the node with `parameters` (``__`` for a dot) and listen to `topics`.

        Waits until it is active, for at most `patience` seconds.
        """

        def make(name: str, options: PuppetOptions) -> PuppetTracker:
            return PuppetTracker(name, options, self.puppet)

        puppets = [registry.Entry(name, "", make, preset=PuppetOptions()) for name in ("puppet", "puppet2")]
        values = {"tracker": "puppet", **{key.replace("__", "."): value for key, value in parameters.items()}}
        overrides = [Parameter(key, value=value) for key, value in values.items()]
        self.node = self._spin(
            lambda context: TrackerNode(
                context=context,
                parameter_overrides=overrides,
                cli_args=cli_arguments,
                trackers=registry.DEFAULT.extended(*puppets),
            )
        )
        self.listen("status", *topics)
        if active:
            assert self.until(lambda: self.state() == "active", patience)
            self.connected()
        return self.node

    def connected(self) -> None:
        """Wait until the active node and the client have found each other, in both directions.

        A camera that has found its subscriber may not have been found by it: what it sends then is lost.
        """
        assert self.until(lambda: self.images.get_subscription_count() + self.compressed.get_subscription_count())
        outputs = {topic for topic in self.received if topic != "/diagnostics"}
        assert self.until(lambda: all(self.node.count_subscribers(topic) for topic in outputs))
        images, boxes = self.node.stream.subscription, self.node.requests.boxes
        if hasattr(images, "get_publisher_count"):
            assert self.until(lambda: images.get_publisher_count() and boxes.get_publisher_count())
        else:
            time.sleep(0.5)

    def listen(self, *topics: str) -> None:
        for topic in topics:
            if topic not in self.received:
                self.received[topic] = []
                self.client.create_subscription(
                    self.outputs[topic], topic, self.received[topic].append, QoSProfile(depth=200)
                )

    # ---------------------------------------------------------------------------------------------------- the client

    @staticmethod
    def until(condition: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
        """Wait until `condition` holds; returns what it gave, or its last (false) value after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return value

    def call(self, kind: Any, name: str, timeout: float = TIMEOUT, **fields: Any) -> Any:
        """Call a service of the node and wait for its answer."""
        future = self.call_later(kind, name, **fields)
        assert self.until(future.done, timeout), f"{name} did not answer within {timeout} s"
        return future.result()

    def call_later(self, kind: Any, name: str, **fields: Any) -> Any:
        if name not in self._clients:
            self._clients[name] = self.client.create_client(kind, name)
        assert self._clients[name].wait_for_service(TIMEOUT)
        return self._clients[name].call_async(kind.Request(**fields))

    def state(self) -> str:
        return str(self.call(GetState, "tracker/get_state").current_state.label)

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, "tracker/change_state", transition=request.transition).success)

    def set(self, **values: Any) -> list[Any]:
        """Set parameters one by one; returns the results."""
        return list(self.call(SetParameters, "tracker/set_parameters", parameters=_parameters(values)).results)

    def set_atomically(self, **values: Any) -> Any:
        name = "tracker/set_parameters_atomically"
        return self.call(SetParametersAtomically, name, parameters=_parameters(values)).result

    def get(self, name: str) -> Any:
        value = self.call(GetParameters, "tracker/get_parameters", names=[name]).values[0]
        return rclpy.parameter.parameter_value_to_python(value)

    def describe(self, *names: str) -> list[Any]:
        return list(self.call(DescribeParameters, "tracker/describe_parameters", names=list(names)).descriptors)

    def init(
        self,
        box: Box = BOX,
        stamp: Time | None = None,
        target_id: str = "",
        theta: float = 0.0,
        patience: float = TIMEOUT,
    ) -> Any:
        bbox = messages.box_to_message(box)
        bbox.center.theta = theta
        header = Header() if stamp is None else Header(stamp=stamp)
        return self.call(InitTarget, "init_target", patience, header=header, bbox=bbox, target_id=target_id)

    def stop(self) -> Any:
        return self.call(Trigger, "stop_tracking")

    def stop_target(self, target_id: str) -> Any:
        return self.call(StopTarget, "stop_target", target_id=target_id)

    def pause(self, data: bool) -> Any:
        return self.call(SetBool, "pause_tracking", data=data)

    def header(self) -> Header:
        """A header with the stamp of an image that was taken now."""
        stamp = self.client.get_clock().now().nanoseconds
        return Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id="camera_optical")

    def image(self, grey: int = 100, width: int = WIDTH, height: int = HEIGHT, header: Header | None = None) -> Image:
        """A picture of this mean grey, with stripes, that differs from the one before as a living camera's does."""
        frame = np.full((height, width, 3), grey, np.uint8)
        contrast = min(30, grey, 255 - grey)
        self._pictures += 1
        frame[:, self._pictures % 2 :: 2] += np.uint8(contrast)
        frame[:, (self._pictures + 1) % 2 :: 2] -= np.uint8(contrast)
        return messages.image_to_message(frame, "bgr8", header or self.header())

    def publish(self, message: Image | None = None) -> Image:
        """Publish an image and wait until it has arrived at the node."""
        message = message or self.image()
        before = self.node_sequence()
        self.images.publish(message)
        assert self.until(lambda: self.node_sequence() > before), "the image did not arrive"
        return message

    def process(self, message: Image | None = None) -> Image:
        """Publish an image and wait for its status."""
        message = self.publish(message)
        assert self.until(lambda: self.status_of(message)), "the image was not processed"
        return message

    def node_sequence(self) -> int:
        newest = self.node.stream.buffer.newest()
        return 0 if newest is None else newest.sequence

    def status_of(self, image: Any) -> TrackStatus | None:
        """The status that was published with the result of `image`."""
        found = (s for s in self.received["status"] if s.header == image.header and s.state != TrackStatus.STALE)
        return next(found, None)

    def statuses(self, image: Any, count: int) -> dict[str, TrackStatus]:
        """What was said of each of `count` targets in `image`, by their names."""
        assert self.until(lambda: len(self.of("status", image)) >= count), "not all targets were spoken of"
        found = self.of("status", image)
        assert len(found) == count
        return {status.target_id: status for status in found}

    def of(self, topic: str, image: Any) -> list[Any]:
        """Messages on `topic` with the header of `image`, waited for."""
        self.until(lambda: any(m.header == image.header for m in self.received[topic]))
        return [m for m in self.received[topic] if m.header == image.header]

    @contextlib.contextmanager
    def camera(self, rate: float = 30.0, make: Callable[[], Image] | None = None) -> Any:
        """Publish images at `rate` Hz from a thread; yields the list of what was published."""
        sent: list[Image] = []
        stop = threading.Event()

        def run() -> None:
            due = time.monotonic()
            while not stop.is_set():
                message = (make or self.image)()
                self.images.publish(message)
                sent.append(message)
                due = max(due + 1 / rate, time.monotonic() + 0.5 / rate)  # A camera sends no bursts.
                stop.wait(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield sent
        finally:
            stop.set()
            thread.join(TIMEOUT)


def diagnosis(graph: Graph, words: str, timeout: float = 10.0) -> DiagnosticStatus | None:
    """The first diagnostic status from now on whose message has `words` in it."""
    seen = len(graph.received["/diagnostics"])

    def find() -> DiagnosticStatus | None:
        new = (array.status[0] for array in graph.received["/diagnostics"][seen:])
        return next((status for status in new if words in status.message), None)

    return graph.until(find, timeout)


def _parameters(values: dict[str, Any]) -> list[Any]:
    return [Parameter(key.replace("__", "."), value=value).to_parameter_msg() for key, value in values.items()]
