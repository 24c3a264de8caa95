"""The tracking node: images and a box in; detections, a heatmap and the state of the track out.

The executor's thread only receives: it puts each image into a one-slot mailbox and answers services. A worker thread
owns the tracker and its device, takes the newest image, and publishes. Another one loads trackers. Services that need
either wait for it as coroutines, so that images keep coming in, and answer after ``service_timeout`` at the latest.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from tracker_ros import registry
from tracker_ros.ros import diagnostics, messages, parameters
from tracker_ros.ros.mailbox import Counts
from tracker_ros.ros.node import names
from tracker_ros.ros.node.bearings import Bearings
from tracker_ros.ros.node.endpoints import Endpoints
from tracker_ros.ros.node.loading import Loader
from tracker_ros.ros.node.outputs import Outputs
from tracker_ros.ros.node.pipeline import Pipeline
from tracker_ros.ros.node.requests import Refused, Requests
from tracker_ros.ros.node.rewire import wrap_service
from tracker_ros.ros.node.stream import ImageStream
from tracker_ros.ros.node.waiting import Waiting
from tracker_ros.ros.parameters import InvalidParameter, NodeOptions
from tracker_ros.ros.worker import Superseded
from tracker_ros.text import printable
from tracker_ros.trackers.base import Tracker, TrackState

#: Seconds between two looks at whether there still is news, and between two STALE messages.
_LOOK, _STALE_PERIOD = 0.2, 1.0
#: Seconds that the end of the node waits at most for the image that is being worked on.
_PATIENCE = 1.0

#: What makes one loaded tracker another one: its name and its options.
_Key = tuple[str, dict[str, Any]]
_Transition = Callable[["TrackerNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: _Transition) -> _Transition:
    """Log an exception in a transition: rclpy turns it into ERROR and says nothing of it."""

    @functools.wraps(transition)
    def run(node: TrackerNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(printable(f"{transition.__name__} failed: {error} ({type(error).__name__})"))
            return TransitionCallbackReturn.ERROR

    return run


class TrackerNode(LifecycleNode):
    """Lifecycle node around a `Pipeline`.

    Args:
        trackers: where trackers are looked up by their names.
        arguments: of ``rclpy.node.Node``, such as ``context``, ``namespace`` and ``parameter_overrides``.

    Raises:
        InvalidParameter: a parameter from the command line or a file is of the wrong type or out of range.

    Attributes:
        pipeline: the tracker at work; None while the node is not configured.
        stream: the images.
        requests: what is asked of the node.
    """

    def __init__(self, *, trackers: registry.Registry = registry.DEFAULT, **arguments: Any) -> None:
        super().__init__("tracker", **arguments)
        self._trackers = trackers
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        # Coroutines of services stay in their group while they wait: a group that is exclusive would block the rest.
        self._group = ReentrantCallbackGroup()
        self.stream = ImageStream(self, MutuallyExclusiveCallbackGroup())
        self.pipeline: Pipeline | None = None
        self._loader = Loader()
        self._loaded: tuple[_Key, Tracker[Any] | Refused] | None = None
        self._loading: tuple[_Key, concurrent.futures.Future[Any]] | None = None
        self._built: _Key | None = None
        self._imported: set[str] = set()
        self._left_behind = False
        self._active = False
        self._ended = False
        self._problem = ""
        self._declaring = False
        self._said_stale = 0.0
        self._options = NodeOptions()
        # From here on all is there that `destroy_node` needs: newer contexts call it when this fails half way.

        tracker = parameters.NODE_SPECS["tracker"]
        known = f"{tracker.help} (one of: {', '.join(trackers.names())})"
        parameters.declare(self, {**parameters.NODE_SPECS, "tracker": dataclasses.replace(tracker, help=known)})
        self._options = self._read_options({})
        self.stream.limit(self._options)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._bearings = Bearings(self, MutuallyExclusiveCallbackGroup())
        self._outputs = Outputs(self, self._bearings, self._on_drawing_failed)
        self._waiting = Waiting(self, self._group)
        self.requests = Requests(self, self, self.stream, self._waiting, self._group)
        self._endpoints = Endpoints(
            self, lambda: [self.stream.subscription, self.requests.boxes, *self._bearings.inputs]
        )
        self._unknown = self._say_unknown_names(arguments.get("cli_args") or sys.argv)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        self.create_timer(1.0, self._publish_diagnostics, clock=self._steady)
        self.create_timer(_LOOK, self._look_for_news, clock=self._steady)
        self.create_timer(_LOOK, self._look_for_listeners, clock=self._steady)
        wrap_service(self, "change_state", self._on_change_state, self._group)
        wrap_service(self, "set_parameters", self._on_set_parameters_request, self._group)
        wrap_service(self, "set_parameters_atomically", self._on_set_atomically_request, self._group)
        if self._options.autostart:
            # From a timer, so that it happens in the executor and whoever made the node need not know of it.
            self._autostart = self.create_timer(0.0, self._on_autostart, callback_group=self._group, clock=self._steady)

    @property
    def options(self) -> NodeOptions:
        """The node's own parameters."""
        return self._options

    @property
    def busy(self) -> bool:
        """Whether a thread of the node is at something that can't be interrupted, such as loading a tracker."""
        return self._loader.busy or self._left_behind

    def running(self) -> Pipeline:
        """The pipeline of the active node.

        Raises:
            Refused: the node is not active.
        """
        if not self._active or self.pipeline is None:
            why = f" ({self._problem})" if self._problem else f" (loading {self._what_loads})" if self._loading else ""
            raise Refused(f"the node is not active{why}: configure and activate it first")
        return self.pipeline

    # ------------------------------------------------------------------------------------------------------ lifecycle

    async def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart)
        try:
            await self._load_for_configuration()
            if self.pipeline is not None or self._ended or not self.context.ok():
                return  # Somebody was faster, or has thought better of it.
            if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
                self.get_logger().error(
                    "the node stays unconfigured; correct the parameters, then configure and activate it"
                )
            else:
                self.trigger_activate()
        except Exception as error:
            self.get_logger().error(printable(f"the node could not start by itself: {error}"))

    async def _on_change_state(
        self, original: Callable[[Any, Any], Any], request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        transition = request.transition
        configures = (transition.label or "configure") == "configure"
        try:
            if configures and (transition.label or transition.id == Transition.TRANSITION_CONFIGURE):
                await self._load_for_configuration()
            return original(request, response)
        except Exception as error:
            name = transition.label or transition.id
            self.get_logger().warning(printable(f"transition {name} is not possible now: {error}"))
            response.success = False
            return response

    async def _load_for_configuration(self) -> None:
        """Load in the background what `on_configure` will ask for, so that the transition itself takes no time."""
        loaded = None
        while self.pipeline is None and not self._ended:
            await self._load({})
            if self._loaded is loaded:
                return
            loaded = self._loaded  # Once more: the parameters may have changed meanwhile.

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take over the tracker that was loaded, or load it now; FAILURE with a logged reason if that can't be done."""
        try:
            self._options = self._read_options({})
            key = self._tracker_options(self._options, {})
            tracker = self._obtain(key)
        except (Refused, InvalidParameter) as refusal:
            self._problem = printable(str(refusal))
            self.get_logger().error(f"can't configure: {self._problem}")
            return TransitionCallbackReturn.FAILURE
        self._built = key
        self._problem = ""
        self.requests.paused = False
        self.pipeline = Pipeline(self, tracker, self.stream, self._outputs, lambda: self._options)
        self.get_logger().info(f"tracker {tracker.name} is ready on {tracker.device}")
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        pipeline = self.pipeline
        assert pipeline is not None  # Activation follows configuration.
        result = super().on_activate(state)  # Publishers first, so that no result is lost.
        pipeline.worker.mailbox.reset()
        self.stream.open(self._options, pipeline.worker.mailbox.put)
        self.requests.open()
        self._active = True
        self._look_for_listeners()
        pipeline.publishing = not self.requests.paused
        if not self.requests.paused:
            pipeline.worker.resume()
        self.get_logger().info(f"waiting for images on {self.stream.topic}")
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe. The target is kept: after the next activation the tracker goes on looking for it."""
        self._quiesce(self._options.service_timeout)
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the tracker and its memory."""
        self._release(self._options.service_timeout)
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop everything; the node can't be started again."""
        self._ended = True
        self._release(self._options.service_timeout)
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected exception in a transition: free everything and return to unconfigured."""
        self._release(self._options.service_timeout)
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Stop the worker and destroy the node."""
        self._ended = True
        self._release(min(self._options.service_timeout, _PATIENCE))
        outputs = getattr(self, "_outputs", None)
        if outputs is not None:
            outputs.close()
        super().destroy_node()
        # rclpy leaves this one, and it holds the node: others would see a dead node until its lease ends.
        machine: Any = getattr(self, "_state_machine", None)
        if hasattr(machine, "destroy_when_not_in_use"):
            machine.destroy_when_not_in_use()

    def _quiesce(self, timeout: float) -> bool:
        """No more images come in; returns whether the one that was being worked on is finished in time."""
        self._active = False
        self.stream.close()
        if hasattr(self, "requests"):
            self.requests.close()
            self._bearings.close()
        pipeline = self.pipeline
        if pipeline is None:
            return True
        pipeline.publishing = False
        pipeline.worker.suspend()
        pipeline.worker.mailbox.clear()
        try:
            pipeline.worker.submit(lambda command: None).future.result(timeout)
        except concurrent.futures.TimeoutError:
            self.get_logger().warning("the tracker is still busy with an image; its result will not be published")
            return False
        return True

    def _release(self, timeout: float) -> None:
        self._loader.cancel()
        self._loaded = self._loading = None
        finished = self._quiesce(timeout)
        pipeline, self.pipeline, self._built = self.pipeline, None, None
        if pipeline is None:
            return
        if not pipeline.worker.stop(timeout if finished else 0.0):
            self._left_behind = True
            self.get_logger().warning("the tracker does not come to an end; its thread is left behind")
        on_cuda = pipeline.session.tracker.device.startswith("cuda")
        del pipeline
        if on_cuda:
            sys.modules["torch"].cuda.empty_cache()

    # ----------------------------------------------------------------------------------------------------- parameters

    def _say_unknown_names(self, arguments: Sequence[str]) -> list[str]:
        """Warn of parameters that were set and that nothing will ever read; returns what was said."""
        said = [
            *names.unknown_parameters(names.overrides(self), self._trackers),
            *names.unused_files(arguments, self.get_fully_qualified_name()),
        ]
        for text in map(printable, said):
            self.get_logger().warning(text)
        return said

    def _read_options(self, changes: dict[str, Any]) -> NodeOptions:
        return NodeOptions(**parameters.read(self, parameters.NODE_SPECS, changes))

    def _tracker_options(self, options: NodeOptions, changes: dict[str, Any]) -> _Key:
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

    def _build(self, key: _Key) -> Tracker[Any]:
        """Load a tracker and warm it up.

        Raises:
            Refused: its weights are missing or wrong, its device is not there, or it fails.
        """
        name, options = key
        try:
            tracker = self._trackers.create(name, **options)
            tracker.warm_up()
        except Exception as error:
            raise Refused(f"tracker '{name}' can't be loaded: {error}") from error
        return tracker

    def _obtain(self, key: _Key) -> Tracker[Any]:
        """The tracker that was loaded in the background, or else one that is loaded now; raises `Refused`."""
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded[0] != key:
            return self._build(key)
        if isinstance(loaded[1], Refused):
            raise loaded[1]
        return loaded[1]

    async def _load(self, changes: dict[str, Any]) -> None:
        """Load in the background the tracker that the parameters ask for with `changes` applied, if it is another one.

        What can't be loaded is for `_obtain` to say, and what can't be set for rclpy.

        Raises:
            Superseded: something else is to be loaded now.
        """
        try:
            options = self._read_options(changes)
            entry = self._trackers.get(options.tracker)
            if options.tracker not in self._imported:
                # Its module first: importing torch takes seconds too.
                await self._finished(("", {"import": options.tracker}), lambda: entry.options)
                self._imported.add(options.tracker)
            key = self._tracker_options(options, changes)
        except Superseded:
            raise
        except Exception:
            return
        if key == self._built:
            if self._loading is not None and changes.keys() & {"tracker", *parameters.SHARED}:
                self._loader.cancel()  # Back to what is there: another one is not wanted any more.
            return
        if self._loaded is not None and self._loaded[0] == key:
            return
        if self.pipeline is not None and await self._reconfigured(self.pipeline, key):
            return
        try:
            tracker = await self._finished(key, lambda: self._build(key))
        except Refused as refusal:
            tracker = refusal
        self._loaded = key, tracker

    async def _finished(self, key: _Key, make: Callable[[], Any]) -> Any:
        """What `make` returns, called in the background; who asks for the same at the same time gets the same."""
        if self._loading is None or self._loading[0] != key:
            self._loading = key, self._loader.load(make)
        loading = self._loading
        while not loading[1].done():
            await self._waiting.until(loading[1], 60.0)
        if self._loading is loading:
            self._loading = None
        return loading[1].result()

    @property
    def _what_loads(self) -> str:
        if self._loading is None:
            return ""
        name, options = self._loading[0]
        return name or str(options["import"])

    async def _reconfigured(self, pipeline: Pipeline, key: _Key) -> bool:
        """Have the tracker take over its new options in place, which keeps the track; False: it must be rebuilt."""
        session, built = pipeline.session, self._built
        take_over = getattr(session.tracker, "reconfigure", None)
        if built is None or built[0] != key[0] or take_over is None:
            return False
        preset = self._trackers.get(key[0]).options
        names = {name for name in {*built[1], *key[1]} if built[1].get(name) != key[1].get(name)}
        changes = {name: key[1].get(name, getattr(preset, name)) for name in names}
        tracker = session.tracker

        def run(command: Any) -> bool:
            # Not if it was withdrawn, or the tracker is another one by now.
            return (
                session.tracker is tracker and command.commit() and bool(take_over(tracker.options.replace(**changes)))
            )

        command = pipeline.worker.submit(run)
        await self._waiting.until(command.future, self._options.service_timeout)
        if not command.future.done() and command.withdraw():
            return False
        if command.future.cancelled():
            return False
        while not command.future.done():
            await self._waiting.until(command.future, 60.0)
        if not command.future.result():
            return False
        self._built = key
        self.get_logger().info(f"{key[0]} goes on with {', '.join(f'{k}={v}' for k, v in sorted(changes.items()))}")
        return True

    async def _on_set_parameters_request(
        self, original: Callable[[Any, Any], Any], request: SetParameters.Request, response: Any
    ) -> Any:
        """Parameters one by one, as rclpy does it; what needs another tracker waits until that is loaded."""
        for parameter in request.parameters:
            refusal = await self._prepare([parameter])
            if refusal is None:
                one = original(SetParameters.Request(parameters=[parameter]), SetParameters.Response())
                response.results.extend(one.results)
            else:
                response.results.append(refusal)
        return response

    async def _on_set_atomically_request(self, original: Callable[[Any, Any], Any], request: Any, response: Any) -> Any:
        refusal = await self._prepare(request.parameters)
        if refusal is None:
            return original(request, response)
        response.result = refusal
        return response

    async def _prepare(self, changed: list[Any]) -> SetParametersResult | None:
        """Load what the changed parameters need; returns the answer where they must not be set."""
        if self.pipeline is None:
            return None
        changes = {parameter.name: parameter.value for parameter in map(Parameter.from_parameter_msg, changed)}
        try:
            await self._load(changes)
        except Superseded:
            self.stream.monitor.replaced(time.monotonic(), "parameters")
            return SetParametersResult(successful=False, reason="a newer request came before this one was carried out")
        except Exception as error:
            return SetParametersResult(successful=False, reason=printable(str(error)))
        return None

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        if self._declaring:
            return SetParametersResult(successful=True)
        changes = {parameter.name: parameter.value for parameter in changed}
        try:
            options = self._read_options(changes)
            # Checked even while unconfigured, so that a typo is refused where it is made.
            key = self._tracker_options(options, changes)
            if self.pipeline is not None and self._built != key:
                # The running track goes on with the old tracker until the new one is known to work.
                tracker, pipeline = self._obtain(key), self.pipeline
                self._built = key
                pipeline.worker.submit(lambda command: pipeline.switch(command, tracker), kind="switch")
        except (Refused, InvalidParameter) as error:
            return SetParametersResult(successful=False, reason=printable(str(error)))
        self._options = options
        self.stream.limit(options)
        return SetParametersResult(successful=True)

    # ---------------------------------------------------------------------------------------------------- diagnostics

    def _on_drawing_failed(self, error: Exception) -> None:
        self.get_logger().error(
            printable(f"image_annotated can't be drawn: {error} ({type(error).__name__})"), throttle_duration_sec=5.0
        )

    def _staleness(self, now: float) -> str:
        """Why nothing is known of now; empty while there is news."""
        pipeline, monitor, limit = self.pipeline, self.stream.monitor, self._options.silence
        if not self._active or pipeline is None or self.requests.paused:
            return ""
        if monitor.silence(now) > limit:
            return f"no image on {self.stream.topic} for {monitor.silence(now):.1f} s"
        if monitor.waiting(now) > limit:
            health = monitor.health(now)
            why = f", as they can't be decoded: {health.last_error}" if health.decode_errors else ""
            return f"no result for {monitor.waiting(now):.1f} s while images arrive{why}"
        return ""

    def _look_for_news(self) -> None:
        now = time.monotonic()
        reason = self._staleness(now)
        if not reason:
            self._said_stale = 0.0
        elif now - self._said_stale >= _STALE_PERIOD and self.pipeline is not None:
            self._said_stale = now
            self.pipeline.publish_stale(self.stream.monitor.silence(now), reason)

    def _look_for_listeners(self) -> None:
        if self._active:
            images = self.stream.topic.removesuffix("/compressed")
            self._bearings.look(self._options, images, self._outputs.status_wanted)

    def _publish_diagnostics(self) -> None:
        now = time.monotonic()
        pipeline, stream = self.pipeline, self.stream
        health = stream.monitor.health(now)
        counts = pipeline.worker.mailbox.counts if pipeline is not None else Counts()
        states = pipeline.session.states if pipeline is not None else {}
        loading = self._what_loads
        if self._problem:
            level, text = diagnostics.Level.ERROR, f"not configured: {self._problem}"
        elif not self._active or pipeline is None:
            level, text = diagnostics.Level.OK, f"not active; loading {loading}" if loading else "not active"
        else:
            level, text = diagnostics.assess(
                health,
                states,
                stream.topic,
                self.requests.paused,
                silence=self._options.silence,
                doing=pipeline.worker.doing()[0],
                loading=loading,
                remarks=[*self._unknown, *self._endpoints.remarks(), *self._bearings.remarks()],
            )
        tracker = pipeline.session.tracker if pipeline is not None else None
        name, device = (tracker.name, tracker.device) if tracker is not None else (self._options.tracker, "")
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        said = "STALE" if self._staleness(now) else printable(diagnostics.summary(states)) or TrackState.IDLE.name
        values = diagnostics.values(health, counts, said, name, device)
        full_name = self.get_fully_qualified_name().lstrip("/")
        message.status = [messages.diagnostic(f"{full_name}: tracking", device, level, printable(text), values)]
        self._diagnostics.publish(message)
