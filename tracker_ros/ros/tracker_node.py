"""The tracking node: images and a box in; detections, a heatmap and the state of the track out.

The executor's thread only receives: it puts each image into a one-slot mailbox and answers services. A worker thread
owns the tracker and its device, takes the newest image, and publishes. Services that need the worker wait for it as
coroutines, so that images keep coming in, and answer after ``service_timeout`` at the latest.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray

from tracker_ros import images, registry
from tracker_ros.geometry.boxes import Box, InvalidBox, validate_init_box
from tracker_ros.ros import diagnostics, heatmap, messages, overlay, parameters
from tracker_ros.ros.frame_buffer import FrameBuffer, Received, StampNotFound, StampNotYet, catch_up
from tracker_ros.ros.mailbox import Counts
from tracker_ros.ros.parameters import InvalidParameter, NodeOptions
from tracker_ros.ros.session import Session, TrackerFailed
from tracker_ros.ros.worker import Worker
from tracker_ros.trackers.base import Estimate, Frame, Tracker, TrackState
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget

#: Name of a target that the request gave none.
DEFAULT_TARGET_ID = "target"
#: Seconds between two log messages of the same kind.
_THROTTLE = 5.0
#: Seconds that a request waits for an image newer than all that have arrived: a request may overtake its image.
_OVERTAKING = 0.5


class Refused(Exception):
    """A request that is not carried out; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """What the worker found in one image.

    Attributes:
        estimate: of the target; None where there is none.
        failure: why the tracker or the decoder failed, empty if they did not.
        frame: the decoded image, None where nobody needed it.
    """

    estimate: Estimate | None = None
    failure: str = ""
    frame: Frame | None = None


_Image = Received[Any]


_Transition = Callable[["TrackerNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: _Transition) -> _Transition:
    """Log an exception in a transition: rclpy turns it into ERROR and says nothing of it."""

    @functools.wraps(transition)
    def run(node: TrackerNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(f"{transition.__name__} failed: {error} ({type(error).__name__})")
            return TransitionCallbackReturn.ERROR

    return run


class TrackerNode(LifecycleNode):
    """Lifecycle node around a `Session`.

    Args:
        trackers: where trackers are looked up by their names.
        arguments: of ``rclpy.node.Node``, such as ``context``, ``namespace`` and ``parameter_overrides``.

    Raises:
        InvalidParameter: a parameter from the command line or a file is of the wrong type or out of range.
    """

    def __init__(self, *, trackers: registry.Registry = registry.DEFAULT, **arguments: Any) -> None:
        super().__init__("tracker", **arguments)
        self._trackers = trackers
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        # Coroutines of services stay in their group while they wait: a group that is exclusive would block the rest.
        self._services_group = ReentrantCallbackGroup()
        self._image_group = MutuallyExclusiveCallbackGroup()

        self._worker: Worker[_Image, _Outcome] | None = None
        self._session: Session | None = None
        self._built: tuple[str, dict[str, Any]] | None = None
        self._monitor = diagnostics.Monitor(time.monotonic())
        self._subscriptions_when_active: list[Any] = []
        self._active = False
        self._paused = False
        self._problem = ""
        self._topic = ""
        self._sequence = 0
        self._activated_at = 0.0
        self._warned_size = (0, 0)
        self._declaring = False
        self._options = NodeOptions()
        self._buffer: FrameBuffer[Any] = FrameBuffer()
        # From here on all is there that `destroy_node` needs: newer contexts call it when this fails half way.

        tracker = parameters.NODE_SPECS["tracker"]
        known = f"{tracker.help} (one of: {', '.join(trackers.names())})"
        parameters.declare(self, {**parameters.NODE_SPECS, "tracker": dataclasses.replace(tracker, help=known)})
        self._options = self._read_options({})
        self._apply_buffer_limits()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._create_endpoints()
        if self._options.autostart:
            # From a timer, so that it happens in the executor and whoever made the node need not know of it.
            self._autostart = self.create_timer(0.0, self._on_autostart, clock=self._steady)

    def _create_endpoints(self) -> None:
        reliable = QoSProfile(depth=10)
        # Reliable because rviz subscribes so; a depth of 1 because only the newest image is worth sending.
        picture = QoSProfile(depth=1)
        create = self.create_lifecycle_publisher
        self._detection = create(Detection2D, "detection", reliable)
        self._detections = create(Detection2DArray, "detections", reliable)
        self._status = create(TrackStatus, "status", reliable)
        self._heatmap = create(Image, "heatmap", picture)
        self._annotated = create(Image, "image_annotated", picture)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", reliable)
        self.create_timer(1.0, self._publish_diagnostics, clock=self._steady)
        group = self._services_group
        self.create_service(InitTarget, "init_target", self._on_init_target, callback_group=group)
        self.create_service(Trigger, "stop_tracking", self._on_stop_tracking, callback_group=group)
        self.create_service(SetBool, "pause_tracking", self._on_pause_tracking, callback_group=group)

    # ---------------------------------------------------------------- lifecycle

    def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart)
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            self.get_logger().error(
                "the node stays unconfigured; correct the parameters, then configure and activate it"
            )
        elif self.context.ok():  # Loading takes a while, in which one may think better of it.
            self.trigger_activate()

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the tracker and warm it up; FAILURE with a logged reason if that can't be done."""
        try:
            self._options = self._read_options({})
            name, options = self._tracker_options(self._options, {})
            tracker = self._build(name, options)
        except Refused as refusal:
            self._problem = str(refusal)
            self.get_logger().error(f"can't configure: {refusal}")
            return TransitionCallbackReturn.FAILURE
        self._built = name, options
        self._problem = ""
        self._paused = False
        # Bound to its session: a thread that was left behind with a hanging tracker must not touch the next one.
        session = self._session = Session(tracker)
        self._worker = Worker(
            functools.partial(self._process, session),
            functools.partial(self._deliver, session),
            self._on_worker_failed,
        )
        self._monitor = diagnostics.Monitor(time.monotonic())
        self.get_logger().info(f"tracker {name} is ready on {tracker.device}")
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        assert self._worker is not None  # Activation follows configuration.
        result = super().on_activate(state)  # Publishers first, so that no result is lost.
        compressed = self._options.image_transport == "compressed"
        base = self.resolve_topic_name("image_raw")
        self._topic = f"{base}/compressed" if compressed else base
        self._buffer.clear()
        self._worker.mailbox.reset()
        self._activated_at = time.monotonic()
        self._monitor = diagnostics.Monitor(self._activated_at)
        qos = QoSProfile(
            depth=1,
            history=HistoryPolicy.KEEP_LAST,
            durability=DurabilityPolicy.VOLATILE,
            reliability=ReliabilityPolicy.RELIABLE
            if self._options.reliability == "reliable"
            else ReliabilityPolicy.BEST_EFFORT,
        )
        kind = CompressedImage if compressed else Image
        self._subscriptions_when_active = [
            self.create_subscription(kind, self._topic, self._on_image, qos, callback_group=self._image_group),
            self.create_subscription(
                Detection2D, "init_box", self._on_init_box, QoSProfile(depth=10), callback_group=self._services_group
            ),
        ]
        self._topic = self._subscriptions_when_active[0].topic_name
        self._active = True
        if not self._paused:
            self._worker.resume()
        self.get_logger().info(f"waiting for images on {self._topic}")
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe. The target is kept: after the next activation the tracker goes on looking for it."""
        self._quiesce()
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the tracker and its memory."""
        self._release()
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop everything; the node can't be started again."""
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected exception in a transition: free everything and return to unconfigured."""
        self._release()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Stop the worker and destroy the node."""
        self._release()
        super().destroy_node()
        # rclpy leaves this one, and it holds the node: others would see a dead node until its lease ends.
        machine: Any = getattr(self, "_state_machine", None)
        if hasattr(machine, "destroy_when_not_in_use"):
            machine.destroy_when_not_in_use()

    def _quiesce(self) -> bool:
        """No more images come in; returns whether the one that was being worked on is finished in time."""
        self._active = False
        for subscription in self._subscriptions_when_active:
            self.destroy_subscription(subscription)
        self._subscriptions_when_active = []
        self._buffer.clear()
        if self._worker is None:
            return True
        self._worker.suspend()
        self._worker.mailbox.clear()
        try:
            self._worker.submit(lambda: None).result(self._options.service_timeout)
        except concurrent.futures.TimeoutError:
            self.get_logger().warning("the tracker is still busy with an image; its result will not be published")
            return False
        return True

    def _release(self) -> None:
        finished = self._quiesce()
        worker, self._worker, self._session, self._built = self._worker, None, None, None
        if worker is not None and not worker.stop(self._options.service_timeout if finished else 0.0):
            self.get_logger().warning("the tracker does not come to an end; its thread is left behind")
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    # --------------------------------------------------------------- parameters

    def _read_options(self, changes: dict[str, Any]) -> NodeOptions:
        return NodeOptions(**parameters.read(self, parameters.NODE_SPECS, changes))

    def _apply_buffer_limits(self) -> None:
        self._buffer.seconds = self._options.buffer_seconds
        self._buffer.max_bytes = self._options.buffer_megabytes * 2**20

    def _tracker_options(self, options: NodeOptions, changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Name and checked options of the tracker that the parameters ask for, with `changes` applied.

        Raises:
            Refused: unknown tracker, or a value that one of its options does not take.
        """
        try:
            preset = self._trackers.get(options.tracker).options
            specs = parameters.tracker_specs(options.tracker, preset)
            self._declaring = True
            try:
                parameters.declare(self, specs)
            finally:
                self._declaring = False
            own = parameters.read(self, specs, changes)
            return options.tracker, parameters.build_options(preset, options, own, options.tracker)
        except (registry.UnknownTracker, InvalidParameter) as error:
            raise Refused(str(error)) from error
        except Exception as error:
            raise Refused(f"tracker '{options.tracker}' can't be used: {error}") from error

    def _build(self, name: str, options: dict[str, Any]) -> Tracker[Any]:
        """Load a tracker and warm it up.

        Raises:
            Refused: its weights are missing or wrong, its device is not there, or it fails.
        """
        try:
            tracker = self._trackers.create(name, **options)
            tracker.warm_up()
        except Exception as error:
            raise Refused(f"tracker '{name}' can't be loaded: {error}") from error
        return tracker

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        if self._declaring:
            return SetParametersResult(successful=True)
        changes = {parameter.name: parameter.value for parameter in changed}
        try:
            options = self._read_options(changes)
            # Checked even while unconfigured, so that a typo is refused where it is made.
            name, tracker_options = self._tracker_options(options, changes)
            if self._worker is not None and self._session is not None and self._built != (name, tracker_options):
                # Loaded here and not on the worker: the running track goes on with the old tracker until the new one
                # is known to work. Images that come meanwhile wait outside.
                tracker = self._build(name, tracker_options)
                self._built = name, tracker_options
                session = self._session
                self._worker.submit(lambda: self._switch(session, tracker))
        except (Refused, InvalidParameter) as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._options = options
        self._apply_buffer_limits()
        return SetParametersResult(successful=True)

    def _switch(self, session: Session, tracker: Tracker[Any]) -> None:
        """On the worker: go on with another tracker."""
        had_target = session.active
        remark = session.replace_tracker(tracker)
        text = f"now tracking with {tracker.name} on {tracker.device}" + (f"; {remark}" if remark else "")
        # Two calls: rclpy does not let one place in the code change its severity.
        if had_target and not session.active:
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    # ------------------------------------------------------------ images, worker

    def _on_image(self, message: Any) -> None:
        worker = self._worker
        if not self._active or worker is None:
            return
        now = time.monotonic()
        self._sequence += 1
        stamp = messages.stamp_to_ns(message.header.stamp)
        received = Received(self._sequence, stamp, now, message, len(message.data))
        self._monitor.arrived(now)
        if not self._buffer.push(received):
            self.get_logger().warning(
                "image stamps went back in time (a bag that starts again?); the track goes on",
                throttle_duration_sec=_THROTTLE,
            )
        worker.mailbox.put(received)

    def _process(self, session: Session, received: _Image) -> tuple[bool, _Outcome]:
        """On the worker: find the target in one image. Returns whether it was processed, and what was found."""
        idle = not session.active
        try:
            if idle and not self._wanted(self._annotated):
                images.check_message(received.message)  # So that a camera that can't be used is known at once.
                return True, _Outcome()
            frame = images.from_message(received.message)
        except images.InvalidImage as error:
            self._fail(str(error), decoding=True)
            return False, _Outcome(failure=str(error))
        if idle:
            return True, _Outcome(frame=frame)
        self._warn_of_size(session, frame)
        try:
            return True, _Outcome(session.step(frame), frame=frame)
        except TrackerFailed as error:
            self._fail(str(error), decoding=False)
            return False, _Outcome(session.estimate, str(error), frame)

    def _fail(self, reason: str, decoding: bool) -> None:
        self._monitor.failed(time.monotonic(), reason, decoding)
        # Two calls: rclpy throttles by the place of the call.
        if decoding:
            self.get_logger().error(f"image on {self._topic} is skipped: {reason}", throttle_duration_sec=_THROTTLE)
        else:
            self.get_logger().error(f"{reason}; the track goes on", throttle_duration_sec=_THROTTLE)

    def _warn_of_size(self, session: Session, frame: Frame) -> None:
        height, width = frame.shape[:2]
        if (width, height) not in (session.start_size, self._warned_size):
            started = "{}x{}".format(*session.start_size)
            self.get_logger().warning(
                f"images are now {width}x{height}, the track started on {started}; they are scaled to that size, "
                "call init_target again to track at the new one"
            )
            self._warned_size = (width, height)

    def _on_worker_failed(self, error: Exception) -> None:
        if self._active and self.context.ok():
            self.get_logger().error(
                f"unexpected {type(error).__name__}, the node goes on: {error}", throttle_duration_sec=_THROTTLE
            )

    def _deliver(self, session: Session, received: _Image, outcome: _Outcome, counts: Counts) -> None:
        """On the worker: publish what was found in one image."""
        if session is not self._session or not self._active:
            return
        header, estimate = received.message.header, outcome.estimate
        latency = (self.get_clock().now().nanoseconds - received.stamp) / 1e9 if received.stamp else math.nan
        if not outcome.failure:
            self._monitor.processed(time.monotonic(), latency)
        elif outcome.frame is None:
            return  # Nothing can be said of an image that can't be decoded.
        else:
            # The last box says nothing of this image: the state must not be TRACKING, nor the score the last one.
            state = TrackState.LOST if session.state is TrackState.LOST else TrackState.UNCERTAIN
            estimate = estimate and dataclasses.replace(estimate, score=0.0, state=state, heatmap=None)

        found = []
        if estimate is not None and not outcome.failure:
            detection = messages.detection(header, estimate, session.target_id)
            self._detection.publish(detection)
            if estimate.state is not TrackState.LOST:
                found.append(detection)
        self._detections.publish(messages.detections(header, found))
        self._status.publish(
            messages.status(
                header,
                estimate,
                target_id=session.target_id,
                tracker=session.tracker.name,
                latency=latency,
                frames_since_seen=session.frames_since_seen,
                frames_received=counts.received,
                frames_processed=counts.processed,
                frames_dropped=counts.dropped,
            )
        )
        if outcome.frame is not None:
            self._publish_pictures(header, outcome, estimate, session, latency)

    def _publish_pictures(
        self, header: Header, outcome: _Outcome, estimate: Estimate | None, session: Session, latency: float
    ) -> None:
        """The expensive outputs, only while someone looks at them."""
        assert outcome.frame is not None
        height, width = outcome.frame.shape[:2]
        if estimate is not None and self._wanted(self._heatmap):
            stride = self._options.heatmap_stride
            aligned = heatmap.align(estimate.heatmap, estimate.search_region, width, height, stride)
            self._heatmap.publish(messages.image_to_message(aligned, "32FC1", header))
        if self._wanted(self._annotated):
            health = self._monitor.health(time.monotonic())
            caption = overlay.Caption(
                tracker=session.tracker.name,
                target_id=session.target_id,
                fps=health.processed_rate,
                latency=latency if abs(latency) < diagnostics.CLOCK_MISMATCH else math.nan,
                note="TRACKER FAILED" if outcome.failure else "",
            )
            picture = overlay.draw(outcome.frame, estimate, caption)
            self._annotated.publish(messages.image_to_message(picture, "bgr8", header))

    @staticmethod
    def _wanted(publisher: Any) -> bool:
        return bool(publisher.get_subscription_count() > 0)

    # ------------------------------------------------------------------ services

    async def _on_init_target(self, request: InitTarget.Request, response: InitTarget.Response) -> InitTarget.Response:
        target_id = request.target_id or DEFAULT_TARGET_ID
        response.success, response.message = await self._answer(
            "init_target", lambda: self._init(request.header, request.bbox, target_id)
        )
        response.target_id = target_id if response.success else ""
        return response

    async def _on_init_box(self, message: Detection2D) -> None:
        # A detector may put a label there; a name of its own goes before it.
        target_id = message.id or DEFAULT_TARGET_ID
        await self._answer("init_box", lambda: self._init(message.header, message.bbox, target_id))

    async def _on_stop_tracking(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def stop(worker: Worker[_Image, _Outcome], session: Session) -> concurrent.futures.Future[str]:
            def run() -> str:
                if not session.active:
                    return "there was no target"
                stopped = f"stopped tracking '{session.target_id}'"
                session.stop()
                return stopped

            return worker.submit(run)

        response.success, response.message = await self._answer(
            "stop_tracking", lambda: self._wait_for(stop(*self._running()))
        )
        return response

    async def _on_pause_tracking(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def pause() -> Awaitable[str]:
            worker, _ = self._running()
            self._paused = bool(request.data)
            if self._paused:
                worker.suspend()
            else:
                worker.resume()
            # When this comes back, nothing more is published (or images are taken again).
            return self._wait_for(worker.submit(lambda: "paused" if request.data else "tracking goes on"))

        response.success, response.message = await self._answer("pause_tracking", pause)
        return response

    async def _answer(self, what: str, request: Callable[[], Awaitable[str]]) -> tuple[bool, str]:
        """Carry out a request; whatever goes wrong becomes the answer, and never an exception in the executor."""
        try:
            message = await request()
        except (Refused, InvalidBox, StampNotFound, TrackerFailed, images.InvalidImage) as refusal:
            self.get_logger().warning(f"{what} refused: {refusal}")
            return False, str(refusal)
        except Exception as error:
            self.get_logger().error(f"{what} failed unexpectedly: {error} ({type(error).__name__})")
            return False, f"{what} failed unexpectedly: {error} ({type(error).__name__})"
        self.get_logger().info(f"{what}: {message}")
        return True, message

    def _running(self) -> tuple[Worker[_Image, _Outcome], Session]:
        """Raises `Refused` while the node is not active."""
        if not self._active or self._worker is None or self._session is None:
            why = f" ({self._problem})" if self._problem else ""
            raise Refused(f"the node is not active{why}: configure and activate it first")
        return self._worker, self._session

    async def _init(self, header: Header, bbox: BoundingBox2D, target_id: str) -> str:
        """Check a request as far as that can be done at once, and hand it to the worker."""
        worker, session = self._running()
        if self._paused:
            raise Refused("tracking is paused: call pause_tracking with data: false first")
        box = messages.box_from_message(bbox)
        stamp = messages.stamp_to_ns(header.stamp)
        first = await self._find(stamp)
        if isinstance(first.message, Image):
            validate_init_box(box, first.message.width, first.message.height)
        age = time.monotonic() - first.arrival
        message = await self._wait_for(worker.submit(lambda: self._start(worker, session, first, box, target_id)))
        stale = not stamp and age > diagnostics.SILENCE
        return f"{message}; mind that the newest image came {age:.0f} s ago" if stale else message

    async def _find(self, stamp: int) -> _Image:
        """The buffered image with this stamp (nanoseconds; 0: the newest)."""
        deadline = time.monotonic() + _OVERTAKING
        while True:
            newest = self._buffer.newest()
            if newest is None:
                raise Refused(self._no_image())
            try:
                return self._buffer.find(stamp) if stamp else newest
            except StampNotYet:
                if time.monotonic() > deadline:
                    raise
            await self._wait(0.02)

    def _no_image(self) -> str:
        waited = time.monotonic() - self._activated_at
        publishers = self.count_publishers(self._topic)
        if publishers == 0:
            hint = "nobody publishes there: check the topic's name and that the camera runs"
        elif self._options.reliability == "reliable":
            hint = f"{publishers} publish there: a reliable subscription hears nothing from a best-effort camera"
        else:
            hint = f"{publishers} publish there: check that the images get through (size limits of the transport)"
        return f"no image has arrived on {self._topic} in the {waited:.1f} s since the node was activated; {hint}"

    def _start(
        self, worker: Worker[_Image, _Outcome], session: Session, first: _Image, box: Box, target_id: str
    ) -> str:
        """On the worker: start on the image `first`, then catch up with the newest one."""
        session.start(images.from_message(first.message), box, target_id)
        self._warned_size = (0, 0)
        missed = self._buffer.after(first.sequence)
        if missed and worker.mailbox.waiting:
            missed.pop()  # The newest one is about to be processed anyway.

        def step(index: int) -> None:
            try:
                session.step(images.from_message(missed[index].message))
            except images.InvalidImage as error:
                self._fail(str(error), decoding=True)
            except TrackerFailed as error:
                self._fail(str(error), decoding=False)

        visited = catch_up(len(missed), step, self._options.catch_up_seconds, time.monotonic)
        caught_up = f", caught up over {visited} of {len(missed)} later images" if missed else ""
        return f"tracking '{target_id}' with {session.tracker.name}{caught_up}"

    async def _wait_for(self, work: concurrent.futures.Future[str]) -> str:
        """Wait for the worker without blocking the executor, for at most ``service_timeout`` seconds.

        Raises:
            Refused: the worker is too busy, or was stopped.
        """
        executor, timeout = self.executor, self._options.service_timeout
        done: Future = Future()

        def wake(_: object) -> None:
            try:
                executor.create_task(_finish, done)  # From the worker's thread: resume in the executor's.
            except Exception:
                self.get_logger().debug("the executor was shut down before a service could answer")

        work.add_done_callback(wake)
        await self._wait(timeout, done)
        if work.cancelled():
            raise Refused("the node was deactivated meanwhile")
        if not work.done():
            if work.cancel():
                raise Refused(f"the tracker is still busy with an image after {timeout:g} s; the request was withdrawn")
            raise Refused(f"the tracker has not finished this request within {timeout:g} s; it may still take effect")
        return work.result()

    async def _wait(self, timeout: float, done: Future | None = None) -> None:
        """Let the executor go on until `done` is done, but for at most `timeout` seconds."""
        done = done or Future()
        timer = self.create_timer(
            timeout, lambda: _finish(done), callback_group=self._services_group, clock=self._steady
        )
        try:
            await done
        finally:
            self.destroy_timer(timer)

    # --------------------------------------------------------------- diagnostics

    def _publish_diagnostics(self) -> None:
        session, worker = self._session, self._worker
        health = self._monitor.health(time.monotonic())
        counts = worker.mailbox.counts if worker is not None else Counts()
        state = session.state if session is not None else TrackState.IDLE
        if self._problem:
            level, text = diagnostics.Level.ERROR, f"not configured: {self._problem}"
        elif not self._active:
            level, text = diagnostics.Level.OK, "not active"
        else:
            level, text = diagnostics.assess(health, state, self._topic, self._paused)
        name = session.tracker.name if session is not None else self._options.tracker
        device = session.tracker.device if session is not None else ""
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        values = diagnostics.values(health, counts, state, name, device)
        full_name = self.get_fully_qualified_name().lstrip("/")
        message.status = [messages.diagnostic(f"{full_name}: tracking", device, level, text, values)]
        self._diagnostics.publish(message)


def _finish(future: Future) -> None:
    if not future.done():
        future.set_result(None)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end (SIGINT, SIGTERM, shutdown of the context). Returns the exit code.

    It is all that a process does: afterwards SIGINT is ignored.
    """
    # rclpy shuts the context down on SIGINT. Python's KeyboardInterrupt besides would hit anywhere, even a destructor.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        rclpy.init(args=args)
    except Exception as error:
        print(f"tracker_node: {error}", file=sys.stderr)
        return 2
    node = None
    executor = SingleThreadedExecutor()
    try:
        node = TrackerNode()
        executor.add_node(node)
        spin(node, executor)
    except ExternalShutdownException:
        pass
    except InvalidParameter as error:
        rclpy.logging.get_logger("tracker").fatal(str(error))
        return 2
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.get_default_context().try_shutdown()
        # An impatient second Ctrl-C must not hit the interpreter on its way out, which gives handlers of its own up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def spin(node: TrackerNode, executor: SingleThreadedExecutor) -> None:
    """Execute callbacks until the context is shut down; an exception in one of them is logged and ends nothing.

    Raises:
        ExternalShutdownException: the context was shut down.
    """
    while node.context.ok():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            raise
        except Exception as error:
            if not node.context.ok():
                raise ExternalShutdownException from error
            # For instance a lifecycle transition that is not possible now: rclpy raises it out of its own callback.
            node.get_logger().error(f"a request failed, the node goes on: {error} ({type(error).__name__})")


if __name__ == "__main__":
    sys.exit(main())
