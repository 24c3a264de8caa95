"""What the node publishes about an image, and the thread that draws the annotated pictures."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray

from tracker_ros.ros import diagnostics, heatmap, messages, overlay
from tracker_ros.ros.annotations import ImageAnnotations, annotate
from tracker_ros.ros.direction import Direction
from tracker_ros.ros.mailbox import Counts
from tracker_ros.ros.node.bearings import Bearings, angles
from tracker_ros.ros.session import TargetReport
from tracker_ros.trackers.base import Frame
from tracker_ros_interfaces.msg import TrackStatus


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said of one image.

    Attributes:
        header: of the image.
        targets: what is said of each target, the oldest first.
        selected: name of the one that `detection` and `heatmap` are of.
        tracker: name of the tracker.
        counts: of the images.
        latency: seconds from the image's stamp to the result; NaN where it has no stamp.
        size: width and height of the image; zeros where it was not decoded.
    """

    header: Header
    targets: Sequence[TargetReport]
    selected: str
    tracker: str
    counts: Counts
    latency: float
    size: tuple[int, int] = (0, 0)


class Outputs:
    """The lifecycle publishers of `node`. All methods may be called from any thread.

    Args:
        node: is given the publishers.
        bearings: says where the target is in the world.
        failed: gets an exception of the drawing thread.
    """

    def __init__(self, node: LifecycleNode, bearings: Bearings, failed: Callable[[Exception], None]) -> None:
        self._bearings = bearings
        reliable = QoSProfile(depth=10)
        # Reliable because rviz subscribes so; a depth of 1 because only the newest image is worth sending.
        picture = QoSProfile(depth=1)
        create = node.create_lifecycle_publisher
        self._detection = create(Detection2D, "detection", reliable)
        self._detections = create(Detection2DArray, "detections", reliable)
        self._status = create(TrackStatus, "status", reliable)
        self._heatmap = create(Image, "heatmap", picture)
        self._annotated = create(Image, "image_annotated", picture)
        self._annotations = None if ImageAnnotations is None else create(ImageAnnotations, "annotations", reliable)
        self._artist = Artist(self._annotated, failed)

    @property
    def annotating(self) -> bool:
        """Whether anybody looks at the annotated pictures."""
        return _wanted(self._annotated)

    @property
    def status_wanted(self) -> bool:
        """Whether anybody reads the status."""
        return _wanted(self._status)

    def publish(self, report: Report, several: bool) -> None:
        """Detections, annotations, directions and status of one image; `several` as in `publish_pictures`."""
        header, found = report.header, []
        directions: dict[str, Direction | None] = {}
        # The box of a LOST target is an old one: whoever takes a box without its state must not get it.
        for target in (target for target in report.targets if target.seen):
            found.append(messages.detection(header, target.estimate, target.target_id, target.label))
            if target.target_id == report.selected:
                self._detection.publish(found[-1])
            direction = self._bearings.of(header, target.estimate.box, report.size)
            directions[target.target_id] = direction
            if direction is not None:
                self._bearings.publish(direction, target.target_id, target.target_id == report.selected)
        self._detections.publish(messages.detections(header, found))
        if self._annotations is not None and _wanted(self._annotations):
            self._annotations.publish(annotate(header, report.targets, several))
        for message in _statuses(report, directions):
            self._status.publish(message)

    def publish_stale(self, report: Report, reason: str) -> None:
        """A status of each target that says that there is no news, and why."""
        for message in _statuses(report):
            message.state, message.score, message.reason = TrackStatus.STALE, 0.0, reason
            message.search_region = BoundingBox2D()
            self._status.publish(message)

    def publish_pictures(self, report: Report, frame: Frame, fps: float, stride: int, several: bool) -> None:
        """The expensive outputs, only while someone looks at them.

        Args:
            report: see `Report`.
            frame: HxWx3 uint8, BGR.
            fps: processed images a second, for the caption.
            stride: image pixels for each cell of the heatmap topic.
            several: whether there may be several targets, which are told apart by their colours then.
        """
        height, width = frame.shape[:2]
        selected = next((target for target in report.targets if target.target_id == report.selected), None)
        if selected is not None and _wanted(self._heatmap):
            estimate = selected.estimate
            aligned = heatmap.align(estimate.heatmap, estimate.search_region, width, height, stride)
            self._heatmap.publish(messages.image_to_message(aligned, "32FC1", report.header))
        if not self.annotating:
            return
        latency = report.latency if abs(report.latency) < diagnostics.CLOCK_MISMATCH else math.nan
        caption = overlay.Caption(tracker=report.tracker, fps=fps, latency=latency)
        if several:
            marks = [
                overlay.Mark(
                    target.estimate, target.target_id, target.slot, _note(target), target.target_id == report.selected
                )
                for target in report.targets
            ]
            self._artist.draw(report.header, frame, lambda pixels: overlay.draw_targets_on(pixels, marks, caption))
            return
        target = report.targets[0] if report.targets else None
        if target is not None:
            caption = dataclasses.replace(caption, target_id=target.target_id, note=_note(target))
        only = target.estimate if target is not None else None
        self._artist.draw(report.header, frame, lambda pixels: overlay.draw_on(pixels, only, caption))

    def close(self) -> None:
        """End the drawing thread; afterwards nothing more is drawn."""
        self._artist.close()


class Artist:
    """Draws and publishes in a thread of its own, the newest picture only, so that the tracker need not wait."""

    def __init__(self, publisher: Any, failed: Callable[[Exception], None]) -> None:
        self._publisher = publisher
        self._failed = failed
        self._condition = threading.Condition()
        self._next: tuple[Header, Frame, Callable[[Frame], None]] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def draw(self, header: Header, frame: Frame, paint: Callable[[Frame], None]) -> None:
        """Have a copy of `frame` painted on and published; a picture that still waits to be drawn gives way."""
        with self._condition:
            if self._closed:
                return
            self._next = header, frame, paint
            self._condition.notify()
            if self._thread is None:  # Where nobody ever looks there is no thread.
                self._thread = threading.Thread(target=self._run, name="artist", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread after the picture that it is at."""
        with self._condition:
            self._closed, self._next = True, None
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._next is None and not self._closed:
                    self._condition.wait()
                if self._next is None:
                    return
                header, frame, paint = self._next
                self._next = None
            message: Any = None
            pixels: Any = None
            try:
                message, pixels = messages.new_image(frame.shape[1], frame.shape[0], "bgr8", header)
                pixels[:] = frame
                paint(pixels)
                self._publisher.publish(message)
            except Exception as error:
                if not self._closed:  # Or else the node goes away under the thread.
                    self._failed(error)
            # Keep nothing alive while waiting.
            del header, frame, paint
            message = pixels = None


def _statuses(report: Report, directions: Mapping[str, Direction | None] | None = None) -> list[TrackStatus]:
    """One for each target; one without a name where there is none."""
    fields: dict[str, Any] = {
        "tracker": report.tracker,
        "latency": report.latency,
        "frames_received": report.counts.received,
        "frames_processed": report.counts.processed,
        "frames_dropped": report.counts.dropped,
    }
    if not report.targets:
        return [messages.status(report.header, None, **fields, **angles(None))]
    return [
        messages.status(
            report.header,
            target.estimate,
            target_id=target.target_id,
            reason=target.reason,
            frames_since_seen=target.frames_since_seen,
            **fields,
            **angles((directions or {}).get(target.target_id)),
        )
        for target in report.targets
    ]


def _note(target: TargetReport) -> str:
    return "TRACKER FAILED" if target.failed else ""


def _wanted(publisher: Any) -> bool:
    return bool(publisher.get_subscription_count() > 0)
