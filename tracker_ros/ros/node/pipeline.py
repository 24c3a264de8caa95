"""One configured tracker at work: its session and its worker thread, from an image to what is published of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from tracker_ros import images
from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import diagnostics
from tracker_ros.ros.frame_buffer import Received, catch_up
from tracker_ros.ros.mailbox import Counts
from tracker_ros.ros.node.outputs import Outputs, Report
from tracker_ros.ros.node.stream import ImageStream
from tracker_ros.ros.parameters import NodeOptions
from tracker_ros.ros.session import Session, TargetReport
from tracker_ros.ros.worker import Command, Worker
from tracker_ros.text import printable
from tracker_ros.trackers.base import Frame, Tracker

#: Seconds between two log messages of the same kind.
_THROTTLE = 5.0
#: An image whose values, in each channel, all lie within so many grey levels shows nothing: no signal, a lens cap.
_BLANK_RANGE = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the worker found in one image.

    Attributes:
        targets: what is to be said of each target.
        frame: the decoded image, None where nobody needed it.
        blank: whether the image shows nothing at all.
        decoded: whether anything can be said of the image.
    """

    targets: Sequence[TargetReport] = ()
    frame: Frame | None = None
    blank: bool = False
    decoded: bool = True


class Pipeline:
    """From configuration to cleanup. `publishing` is False while the node is not active, or paused.

    A thread that was left behind with a hanging tracker keeps the pipeline that it belongs to, which is closed then:
    nothing that it does later reaches the next one.

    Attributes:
        session: the tracker and its targets; while the worker runs, others only read which targets there are.
        worker: the thread.
        publishing: whether results are published.
    """

    def __init__(
        self,
        node: LifecycleNode,
        tracker: Tracker[Any],
        stream: ImageStream,
        outputs: Outputs,
        options: Callable[[], NodeOptions],
    ) -> None:
        self._node = node
        self._stream = stream
        self._outputs = outputs
        self._options = options
        self._warned_size = (0, 0)
        #: What a target looks like must not change with what else is in view: it stays while there is one.
        self._scale = images.GreyScale.parse(options().grey_scale)
        self.publishing = False
        self.session = Session(tracker)
        self.worker: Worker[Received[Any], Outcome] = Worker(self._process, self._deliver, self._on_failed)

    # ------------------------------------------------------------------------------------------------ on the worker

    def _process(self, received: Received[Any]) -> tuple[bool, Outcome]:
        """Find the target in one image. Returns whether it was processed, and what was found."""
        session = self.session
        idle = not session.tracks
        try:
            if idle and not self._outputs.annotating:
                images.check_message(received.message)  # So that a camera that can't be used is known at once.
                return True, Outcome()
            frame = images.from_message(received.message, self._scale)
        except images.InvalidImage as error:
            self._fail(str(error), decoding=True)
            return False, Outcome(decoded=False)
        blank = is_blank(frame)
        if idle:
            return True, Outcome(frame=frame, blank=blank)
        self._warn_of_size(frame)
        targets = session.step(frame, plausible=not blank)
        failed = [target for target in targets if target.failed]
        if failed:
            name = len(targets) > 1
            self._fail(
                "; ".join(f"target '{t.target_id}': {t.reason}" if name else t.reason for t in failed), decoding=False
            )
        return len(failed) < len(targets), Outcome(targets, frame, blank)

    def _fail(self, reason: str, decoding: bool) -> None:
        if not self.publishing:
            return  # Left behind: it is another one's images that are reported on now.
        self._stream.monitor.failed(time.monotonic(), reason, decoding)
        log, reason = self._node.get_logger(), printable(reason)
        # Two calls: rclpy throttles by the place of the call.
        if decoding:
            log.error(f"image on {self._stream.topic} is skipped: {reason}", throttle_duration_sec=_THROTTLE)
        else:
            log.error(f"{reason}; the track goes on", throttle_duration_sec=_THROTTLE)

    def _warn_of_size(self, frame: Frame) -> None:
        height, width = frame.shape[:2]
        others = {track.size for track in self.session.tracks.values()} - {(width, height)}
        if others and (width, height) != self._warned_size:
            started = ", ".join("{}x{}".format(*size) for size in sorted(others))
            self._node.get_logger().warning(
                f"images are now {width}x{height}, the track started on {started}; they are scaled to that size, "
                "call init_target again to track at the new one"
            )
            self._warned_size = (width, height)

    def _on_failed(self, error: Exception) -> None:
        if self.publishing and self._node.context.ok():
            reason = f"unexpected {type(error).__name__}, the node goes on: {error}"
            self._stream.monitor.failed(time.monotonic(), reason, decoding=False)
            self._node.get_logger().error(printable(reason), throttle_duration_sec=_THROTTLE)

    def _deliver(self, received: Received[Any], outcome: Outcome, counts: Counts) -> None:
        """Publish what was found in one image."""
        if not self.publishing:
            return
        if not outcome.decoded:
            return  # Nothing can be said of an image that can't be decoded.
        monitor = self._stream.monitor
        now = self._node.get_clock().now().nanoseconds
        latency = (now - received.stamp) / 1e9 if received.stamp else math.nan
        if not outcome.targets or not all(target.failed for target in outcome.targets):
            monitor.processed(time.monotonic(), latency, outcome.blank)
        doubts = [*(["the image is blank"] if outcome.blank else []), *diagnostics.sameness(*monitor.sameness())]
        targets = [
            dataclasses.replace(target, reason=printable("; ".join(filter(None, [target.reason, *doubts]))))
            for target in outcome.targets
        ]
        report = self._report(received.message.header, targets, latency, counts)
        if outcome.frame is not None:
            report = dataclasses.replace(report, size=outcome.frame.shape[1::-1])
        options = self._options()
        several = options.max_targets > 1 or len(targets) > 1
        self._outputs.publish(report, several)
        if outcome.frame is not None:
            fps = monitor.health(time.monotonic()).processed_rate if self._outputs.annotating else math.nan
            self._outputs.publish_pictures(report, outcome.frame, fps, options.heatmap_stride, several)

    def _report(self, header: Any, targets: Sequence[TargetReport], latency: float, counts: Counts) -> Report:
        session = self.session
        return Report(
            header=header,
            targets=targets,
            selected=self._options().selected or session.named,
            tracker=session.tracker.name,
            counts=counts,
            latency=latency,
        )

    def start(self, command: Command, first: Received[Any], box: Box, target_id: str, label: str = "") -> str:
        """Start on the image `first`, then catch up with the newest one. Returns what became of it.

        Raises:
            InvalidBox, InvalidImage, TrackerFailed, TargetError: the track can't start; the ones before go on.
        """
        session, limit = self.session, self._options().max_targets
        before = [name for name in session.tracks if name != target_id]
        shared = bool(before) and limit > 1
        scale = self._scale if shared else images.GreyScale.parse(self._options().grey_scale)
        frame = images.from_message(first.message, scale)
        if not session.start(frame, box, target_id, command.commit, label=label, limit=limit):
            return "withdrawn"
        self._scale, self._warned_size = scale, (0, 0)
        if scale.limits is not None and not shared:
            self._node.get_logger().info(str(scale))
        missed = self._stream.buffer.after(first.sequence)
        if missed and self.worker.mailbox.waiting:
            missed.pop()  # The newest one is about to be processed anyway.

        def step(index: int) -> None:
            try:
                found = session.catch_up(target_id, images.from_message(missed[index].message, scale))
            except images.InvalidImage as error:
                self._fail(str(error), decoding=True)
                return
            if found.failed:
                self._fail(found.reason, decoding=False)

        visited = catch_up(len(missed), step, self._options().catch_up_seconds, time.monotonic)
        caught_up = f", caught up over {visited} of {len(missed)} later images" if missed else ""
        replaced = "" if shared or not before else f" in place of '{', '.join(before)}'"
        return f"tracking '{target_id}' with {session.tracker.name}{replaced}{caught_up}"

    def stop(self, command: Command, target_id: str) -> str:
        """Forget one target; raises `TargetError` where there is none of that name."""
        if not command.commit():
            return "withdrawn"
        self.session.stop(target_id)
        return f"stopped tracking '{target_id}'"

    def stop_all(self, command: Command) -> str:
        """Forget all targets."""
        if not command.commit():
            return "withdrawn"
        names = list(self.session.tracks)
        self.session.stop_all()
        return f"stopped tracking {', '.join(map(repr, names))}" if names else "there was no target"

    def switch(self, command: Command, tracker: Tracker[Any]) -> None:
        """Go on with another tracker."""
        session = self.session
        targets = len(session.tracks)
        remarks = session.replace_tracker(tracker)
        text = printable("; ".join([f"now tracking with {tracker.name} on {tracker.device}", *remarks]))
        # Two calls: rclpy does not let one place in the code change its severity.
        if len(session.tracks) < targets:
            self._node.get_logger().warning(text)
        else:
            self._node.get_logger().info(text)

    # ---------------------------------------------------------------------------------------------- in the executor

    def publish_stale(self, age: float, reason: str) -> None:
        """Say that nothing is known of now: `age` seconds since the last image."""
        last = self._stream.last
        header = last.header if last is not None else Header()
        targets = [
            TargetReport(name, track.estimate, frames_since_seen=track.frames_since_seen)
            for name, track in self.session.tracks.items()
        ]
        self._outputs.publish_stale(self._report(header, targets, age, self.worker.mailbox.counts), printable(reason))


def is_blank(frame: Frame) -> bool:
    """Whether an image (HxWx3 uint8) is of one even colour."""
    sample = frame[::16, ::16].reshape(-1, 3)
    if (sample.max(0).astype(int) - sample.min(0)).max() >= _BLANK_RANGE:
        return False
    # A small target on an even ground lies between the samples.
    ranges = (cv2.minMaxLoc(cv2.extractChannel(frame, channel))[:2] for channel in range(3))
    return all(high - low < _BLANK_RANGE for low, high in ranges)
