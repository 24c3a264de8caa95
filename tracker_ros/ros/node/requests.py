"""What is asked of the node: start, stop and pause a track. Every request is answered, and in time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from rclpy.callback_groups import CallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import BoundingBox2D, Detection2D

from tracker_ros import images
from tracker_ros.geometry.boxes import InvalidBox, validate_init_box
from tracker_ros.ros import diagnostics, messages
from tracker_ros.ros.frame_buffer import Received, StampNotFound, StampNotYet
from tracker_ros.ros.node.pipeline import Pipeline
from tracker_ros.ros.node.stream import ImageStream
from tracker_ros.ros.node.waiting import Waiting
from tracker_ros.ros.parameters import NodeOptions
from tracker_ros.ros.session import TrackerFailed
from tracker_ros.ros.worker import Command, Superseded
from tracker_ros.text import printable
from tracker_ros_interfaces.srv import InitTarget

#: Name of a target that the request gave none.
DEFAULT_TARGET_ID = "target"
#: Most characters of a target's name.
MAX_TARGET_ID = 128
#: Requests that may wait in the transport: bursts must not push each other out.
_DEPTH = 1000
#: Seconds that a request waits for an image newer than all that have arrived: a request may overtake its image.
_OVERTAKING = 0.5


class Refused(Exception):
    """A request that is not carried out; the message says why and what to do."""


class Host(Protocol):
    """What the requests need to know of the node."""

    @property
    def options(self) -> NodeOptions:
        """The node's parameters."""

    def running(self) -> Pipeline:
        """The pipeline of the active node; raises `Refused` while it is not active."""


class Requests:
    """Services ``init_target``, ``stop_tracking`` and ``pause_tracking``, and the topic ``init_box``.

    Args:
        node: has the services.
        host: the same node, as the requests see it.
        stream: the images.
        waiting: how a request waits for the worker.
        group: reentrant: requests stay in it while they wait.

    Attributes:
        paused: whether tracking is paused.
    """

    def __init__(
        self, node: LifecycleNode, host: Host, stream: ImageStream, waiting: Waiting, group: CallbackGroup
    ) -> None:
        self._node = node
        self._host = host
        self._stream = stream
        self._waiting = waiting
        self._group = group
        self._boxes: Any = None
        self._starts: deque[float] = deque(maxlen=50)
        self.paused = False
        qos = QoSProfile(depth=_DEPTH)
        node.create_service(InitTarget, "init_target", self._on_init_target, qos_profile=qos, callback_group=group)
        node.create_service(Trigger, "stop_tracking", self._on_stop_tracking, qos_profile=qos, callback_group=group)
        node.create_service(SetBool, "pause_tracking", self._on_pause_tracking, qos_profile=qos, callback_group=group)

    def open(self) -> None:
        """Listen to ``init_box``."""
        self._boxes = self._node.create_subscription(
            Detection2D, "init_box", self._on_init_box, QoSProfile(depth=10), callback_group=self._group
        )

    def close(self) -> None:
        """Listen no more."""
        if self._boxes is not None:
            self._node.destroy_subscription(self._boxes)
        self._boxes = None

    @property
    def boxes(self) -> Any:
        """The subscription to ``init_box``; None while the node is not active."""
        return self._boxes

    # ------------------------------------------------------------------------------------------------------- requests

    async def _on_init_target(self, request: InitTarget.Request, response: InitTarget.Response) -> InitTarget.Response:
        target_id = request.target_id or DEFAULT_TARGET_ID
        response.success, response.message = await self._answer(
            "init_target", lambda: self._init("init_target", request.header, request.bbox, target_id)
        )
        response.target_id = target_id if response.success else ""
        return response

    async def _on_init_box(self, message: Detection2D) -> None:
        # A detector may put a label there; a name of its own goes before it.
        target_id = message.id or DEFAULT_TARGET_ID
        await self._answer("init_box", lambda: self._init("init_box", message.header, message.bbox, target_id))

    async def _on_stop_tracking(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def stop() -> Awaitable[str]:
            pipeline = self._host.running()
            # Not a kind of its own: a box that was sent before must not start a track after this.
            return self._carry_out(pipeline, pipeline.worker.submit(pipeline.stop), "tracking was stopped")

        response.success, response.message = await self._answer("stop_tracking", stop)
        return response

    async def _on_pause_tracking(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        pause = self._pause if request.data else self._resume
        response.success, response.message = await self._answer("pause_tracking", pause)
        return response

    async def _pause(self) -> str:
        pipeline = self._host.running()
        self.paused = True
        pipeline.worker.suspend()
        # When this comes back, nothing more is published.
        idle = pipeline.worker.submit(lambda command: None, kind="pause")
        await self._waiting.until(idle.future, self._host.options.service_timeout)
        if not self.paused:
            return "tracking goes on, as another request asked meanwhile"
        pipeline.publishing = False
        if idle.future.done():
            return "paused"
        return f"paused; the result of {_doing(pipeline)}, which is still under way, will not be published"

    async def _resume(self) -> str:
        pipeline = self._host.running()
        self.paused = False
        self._stream.monitor.resumed()
        pipeline.publishing = True
        pipeline.worker.resume()
        return "tracking goes on"

    async def _init(self, kind: str, header: Header, bbox: BoundingBox2D, target_id: str) -> str:
        """Check a request as far as that can be done at once, and hand it to the worker."""
        pipeline = self._host.running()
        if self.paused:
            raise Refused("tracking is paused: call pause_tracking with data: false first")
        _check_target_id(target_id)
        box = messages.box_from_message(bbox)
        stamp = messages.stamp_to_ns(header.stamp)
        first = await self._find(stamp)
        if isinstance(first.message, Image):
            validate_init_box(box, first.message.width, first.message.height)
        age = time.monotonic() - first.arrival
        self._starts.append(time.monotonic())
        command = pipeline.worker.submit(lambda command: pipeline.start(command, first, box, target_id), kind="init")
        try:
            message = await self._carry_out(
                pipeline, command, f"tracking '{target_id}' with {pipeline.session.tracker.name}, catching up"
            )
        except Superseded:
            raise Refused(self._too_fast(kind)) from None
        stale = not stamp and age > diagnostics.SILENCE
        return f"{message}; mind that the newest image came {age:.0f} s ago" if stale else message

    def _too_fast(self, kind: str) -> str:
        now = time.monotonic()
        self._stream.monitor.replaced(now, kind)
        recent = [at for at in self._starts if at > now - diagnostics.WINDOW]
        rate = len(recent) / max(now - recent[0], 0.1) if recent else 0.0
        return (
            f"a newer request came before this one could be carried out ({rate:.1f} a second are more than the tracker "
            "can start on); only the newest box is used"
        )

    async def _find(self, stamp: int) -> Received[Any]:
        """The buffered image with this stamp (nanoseconds; 0: the newest)."""
        deadline = time.monotonic() + _OVERTAKING
        while True:
            newest = self._stream.buffer.newest()
            if newest is None:
                raise Refused(self._stream.absence())
            try:
                return self._stream.buffer.find(stamp) if stamp else newest
            except StampNotYet:
                if time.monotonic() > deadline:
                    raise
            await self._waiting.until(None, 0.02)

    # -------------------------------------------------------------------------------------------------------- answers

    async def _answer(self, what: str, request: Callable[[], Awaitable[str]]) -> tuple[bool, str]:
        """Carry out a request; whatever goes wrong becomes the answer, and never an exception in the executor."""
        log = self._node.get_logger()
        try:
            message = printable(await request())
        except (Refused, InvalidBox, StampNotFound, TrackerFailed, images.InvalidImage) as refusal:
            message = printable(str(refusal))
            log.warning(f"{what} refused: {message}", throttle_duration_sec=0.2)
            return False, message
        except Exception as error:
            message = printable(f"{what} failed unexpectedly: {error} ({type(error).__name__})")
            log.error(message)
            return False, message
        log.info(f"{what}: {message}")
        return True, message

    async def _carry_out(self, pipeline: Pipeline, command: Command, effect: str) -> str:
        """Wait for the worker without blocking the executor, for at most ``service_timeout`` seconds.

        Args:
            pipeline: whose worker has the command.
            command: what it is to do.
            effect: the answer where it has taken effect by then, although it has not ended.

        Raises:
            Refused: the worker is too busy, and the request was withdrawn; or it was stopped.
        """
        timeout = self._host.options.service_timeout
        await self._waiting.until(command.future, timeout)
        if command.future.cancelled():
            raise Refused("the node was deactivated meanwhile")
        if command.future.done():
            return str(command.future.result())
        doing = _doing(pipeline)
        if command.withdraw():
            raise Refused(f"the tracker is still busy with {doing} after {timeout:g} s; the request was withdrawn")
        return f"{effect} (not finished within {timeout:g} s)"


def _doing(pipeline: Pipeline) -> str:
    what, _ = pipeline.worker.doing()
    return {"image": "an image", "init": "the start of a track"}.get(what, "a request")


def _check_target_id(target_id: str) -> None:
    if len(target_id) > MAX_TARGET_ID:
        raise Refused(f"target_id has {len(target_id)} characters; it may have {MAX_TARGET_ID}")
    if not target_id.isprintable():
        raise Refused(f"target_id '{target_id}' has control characters in it")
