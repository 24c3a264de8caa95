"""What is asked of the node: start, stop and pause a track. Every request is answered, and in time."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
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
from tracker_ros.ros.session import TargetError, TrackerFailed, check_known, check_room
from tracker_ros.ros.worker import Command, Superseded
from tracker_ros.text import printable
from tracker_ros_interfaces.srv import InitTarget, StopTarget

#: Name of a target that the request gave none; further ones get a number.
DEFAULT_TARGET_ID = "target"
#: Most characters of a target's name, and of its label.
MAX_NAME = 128
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


@dataclass(eq=False)
class _Start:
    """A start that is asked for.

    Attributes:
        target_id: the target's name; empty until the node has made one up.
        label: what the target is.
        stopped: the target was stopped before the start came to the worker.
    """

    target_id: str
    label: str = ""
    stopped: bool = False


class Requests:
    """Services ``init_target``, ``stop_target``, ``stop_tracking`` and ``pause_tracking``, and the topic ``init_box``.

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
        #: Starts that still look for their image; and what the commands that the worker has not answered will make of
        #: the names of the targets, in order.
        self._looking: list[_Start] = []
        self._changes: list[Callable[[set[str]], set[str]]] = []
        self.paused = False
        qos = QoSProfile(depth=_DEPTH)
        node.create_service(InitTarget, "init_target", self._on_init_target, qos_profile=qos, callback_group=group)
        node.create_service(StopTarget, "stop_target", self._on_stop_target, qos_profile=qos, callback_group=group)
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
        start = _Start(request.target_id)
        response.success, response.message = await self._answer(
            "init_target", lambda: self._init("init_target", request.header, request.bbox, start)
        )
        response.target_id = start.target_id if response.success else ""
        return response

    async def _on_init_box(self, message: Detection2D) -> None:
        start = _Start(message.id, message.results[0].hypothesis.class_id if message.results else "")
        await self._answer("init_box", lambda: self._init("init_box", message.header, message.bbox, start))

    async def _on_stop_target(self, request: StopTarget.Request, response: StopTarget.Response) -> StopTarget.Response:
        response.success, response.message = await self._answer("stop_target", lambda: self._stop(request.target_id))
        return response

    async def _stop(self, target_id: str) -> str:
        pipeline = self._host.running()
        if not target_id:
            raise Refused("target_id is empty: name the target, or call stop_tracking to stop all")
        _check_name("target_id", target_id)
        begun = [start for start in self._looking if start.target_id == target_id]
        for start in begun:
            start.stopped = True
        names = self._expected(pipeline)
        if begun and target_id not in names:
            return f"'{target_id}' will not be started"
        # Here too, and not only where it is carried out: a flood of these must not wait between the images.
        check_known(names, target_id)
        # Not a kind of its own: a box that was sent before must not start a track after this.
        command = pipeline.worker.submit(lambda command: pipeline.stop(command, target_id))
        return await self._carry_out(pipeline, command, f"'{target_id}' was stopped", lambda names: names - {target_id})

    async def _on_stop_tracking(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def stop() -> Awaitable[str]:
            pipeline = self._host.running()
            for start in self._looking:
                start.stopped = True
            command = pipeline.worker.submit(pipeline.stop_all)
            return self._carry_out(pipeline, command, "tracking was stopped", lambda names: set())

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

    async def _init(self, kind: str, header: Header, bbox: BoundingBox2D, start: _Start) -> str:
        """Check a request as far as that can be done at once, and hand it to the worker."""
        pipeline = self._host.running()
        if self.paused:
            raise Refused("tracking is paused: call pause_tracking with data: false first")
        _check_name("target_id", start.target_id)
        _check_name("class_id", start.label)
        box = messages.box_from_message(bbox)
        stamp = messages.stamp_to_ns(header.stamp)
        self._looking.append(start)
        try:
            first = await self._find(stamp)
        finally:
            self._looking.remove(start)
        if start.stopped:
            raise Refused("it was stopped before the image of its box had come")
        if isinstance(first.message, Image):
            validate_init_box(box, first.message.width, first.message.height)
        limit, names = self._host.options.max_targets, self._expected(pipeline)
        target_id = start.target_id = start.target_id or _unused_name(names if limit > 1 else ())
        check_room(names, target_id, limit)
        age = time.monotonic() - first.arrival
        self._starts.append(time.monotonic())
        command = pipeline.worker.submit(
            lambda command: pipeline.start(command, first, box, target_id, start.label),
            # A newer box for the same target takes the place of one that waits.
            kind="init" if limit == 1 else f"init {target_id}",
        )
        try:
            message = await self._carry_out(
                pipeline,
                command,
                f"tracking '{target_id}' with {pipeline.session.tracker.name}, catching up",
                lambda names: {*names, target_id} if limit > 1 else {target_id},
            )
        except Superseded:
            raise Refused(self._too_fast(kind)) from None
        stale = not stamp and age > diagnostics.SILENCE
        return f"{message}; mind that the newest image came {age:.0f} s ago" if stale else message

    def _expected(self, pipeline: Pipeline) -> set[str]:
        """Names of the targets that there will be when the worker has done all that it was told."""
        names = set(pipeline.session.tracks)
        for change in self._changes:
            names = change(names)
        return names

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
        except (Refused, TargetError, InvalidBox, StampNotFound, TrackerFailed, images.InvalidImage) as refusal:
            message = printable(str(refusal))
            log.warning(f"{what} refused: {message}", throttle_duration_sec=0.2)
            return False, message
        except Exception as error:
            message = printable(f"{what} failed unexpectedly: {error} ({type(error).__name__})")
            log.error(message)
            return False, message
        log.info(f"{what}: {message}")
        return True, message

    async def _carry_out(
        self, pipeline: Pipeline, command: Command, effect: str, change: Callable[[set[str]], set[str]]
    ) -> str:
        """Wait for the worker without blocking the executor, for at most ``service_timeout`` seconds.

        Args:
            pipeline: whose worker has the command.
            command: what it is to do.
            effect: the answer where it has taken effect by then, although it has not ended.
            change: what it makes of the names of the targets.

        Raises:
            Refused: the worker is too busy, and the request was withdrawn; or it was stopped.
        """
        timeout = self._host.options.service_timeout
        self._changes.append(change)
        try:
            await self._waiting.until(command.future, timeout)
        finally:
            self._changes.remove(change)
        if command.future.cancelled():
            raise Refused("the node was deactivated meanwhile")
        if command.future.done():
            return str(command.future.result())
        doing = _doing(pipeline)
        if command.withdraw():
            raise Refused(f"the tracker is still busy with {doing} after {timeout:g} s; the request was withdrawn")
        return f"{effect} (not finished within {timeout:g} s)"


def _doing(pipeline: Pipeline) -> str:
    what = pipeline.worker.doing()[0].partition(" ")[0]
    return {"image": "an image", "init": "the start of a track"}.get(what, "a request")


def _unused_name(names: Collection[str]) -> str:
    """A name that is none of these."""
    numbered = (f"{DEFAULT_TARGET_ID}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([DEFAULT_TARGET_ID], numbered) if name not in names)


def _check_name(field: str, name: str) -> None:
    if len(name) > MAX_NAME:
        raise Refused(f"{field} has {len(name)} characters; it may have {MAX_NAME}")
    if not name.isprintable():
        raise Refused(f"{field} '{name}' has control characters in it")
