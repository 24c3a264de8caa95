"""What the node publishes about an image, and the thread that draws the annotated pictures."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray

from tracker_ros.ros import diagnostics, heatmap, messages, overlay
from tracker_ros.ros.direction import Direction
from tracker_ros.ros.mailbox import Counts
from tracker_ros.ros.node.bearings import Bearings, angles
from tracker_ros.trackers.base import Estimate, Frame, TrackState
from tracker_ros_interfaces.msg import TrackStatus


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said of one image.

    Attributes:
        header: of the image.
        estimate: of the target; None where there is none.
        target_id, tracker: names of the target and of the tracker.
        frames_since_seen: processed images since the target was last seen.
        counts: of the images.
        latency: seconds from the image's stamp to the result; NaN where it has no stamp.
        reason: why the state should be doubted, in words.
        failed: the tracker failed on the image, and the estimate's box is an older one.
        size: width and height of the image; zeros where it was not decoded.
    """

    header: Header
    estimate: Estimate | None
    target_id: str
    tracker: str
    frames_since_seen: int
    counts: Counts
    latency: float
    reason: str = ""
    failed: bool = False
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
        self._artist = Artist(self._annotated, failed)

    @property
    def annotating(self) -> bool:
        """Whether anybody looks at the annotated pictures."""
        return _wanted(self._annotated)

    @property
    def status_wanted(self) -> bool:
        """Whether anybody reads the status."""
        return _wanted(self._status)

    def publish(self, report: Report) -> None:
        """Detections, direction and status of one image."""
        header, estimate = report.header, report.estimate
        found = []
        direction = None
        # The box of a LOST target is an old one: whoever takes a box without its state must not get it.
        if estimate is not None and not report.failed and estimate.state is not TrackState.LOST:
            found = [messages.detection(header, estimate, report.target_id)]
            self._detection.publish(found[0])
            direction = self._bearings.of(header, estimate.box, report.size)
        self._detections.publish(messages.detections(header, found))
        if direction is not None:
            self._bearings.publish(direction, report.target_id)
        self._status.publish(_status(report, direction))

    def publish_stale(self, report: Report) -> None:
        """A status that says that there is no news; the report's estimate is not used."""
        message = _status(report)
        message.state = TrackStatus.STALE
        self._status.publish(message)

    def publish_pictures(self, report: Report, frame: Frame, fps: float, stride: int) -> None:
        """The expensive outputs, only while someone looks at them.

        Args:
            report: see `Report`.
            frame: HxWx3 uint8, BGR.
            fps: processed images a second, for the caption.
            stride: image pixels for each cell of the heatmap topic.
        """
        height, width = frame.shape[:2]
        estimate = report.estimate
        if estimate is not None and _wanted(self._heatmap):
            aligned = heatmap.align(estimate.heatmap, estimate.search_region, width, height, stride)
            self._heatmap.publish(messages.image_to_message(aligned, "32FC1", report.header))
        if self.annotating:
            caption = overlay.Caption(
                tracker=report.tracker,
                target_id=report.target_id,
                fps=fps,
                latency=report.latency if abs(report.latency) < diagnostics.CLOCK_MISMATCH else math.nan,
                note="TRACKER FAILED" if report.failed else "",
            )
            self._artist.draw(report.header, frame, estimate, caption)

    def close(self) -> None:
        """End the drawing thread; afterwards nothing more is drawn."""
        self._artist.close()


class Artist:
    """Draws and publishes in a thread of its own, the newest picture only, so that the tracker need not wait."""

    def __init__(self, publisher: Any, failed: Callable[[Exception], None]) -> None:
        self._publisher = publisher
        self._failed = failed
        self._condition = threading.Condition()
        self._next: tuple[Header, Frame, Estimate | None, overlay.Caption] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def draw(self, header: Header, frame: Frame, estimate: Estimate | None, caption: overlay.Caption) -> None:
        """Have a picture drawn and published; one that still waits to be drawn gives way."""
        with self._condition:
            if self._closed:
                return
            self._next = header, frame, estimate, caption
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
                header, frame, estimate, caption = self._next
                self._next = None
            message: Any = None
            pixels: Any = None
            try:
                message, pixels = messages.new_image(frame.shape[1], frame.shape[0], "bgr8", header)
                pixels[:] = frame
                overlay.draw_on(pixels, estimate, caption)
                self._publisher.publish(message)
            except Exception as error:
                if not self._closed:  # Or else the node goes away under the thread.
                    self._failed(error)
            # Keep nothing alive while waiting.
            del header, frame, estimate
            message = pixels = None


def _status(report: Report, direction: Direction | None = None) -> TrackStatus:
    return messages.status(
        report.header,
        report.estimate,
        target_id=report.target_id,
        tracker=report.tracker,
        latency=report.latency,
        reason=report.reason,
        frames_since_seen=report.frames_since_seen,
        frames_received=report.counts.received,
        frames_processed=report.counts.processed,
        frames_dropped=report.counts.dropped,
        **angles(direction),
    )


def _wanted(publisher: Any) -> bool:
    return bool(publisher.get_subscription_count() > 0)
