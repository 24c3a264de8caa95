"""What the image sources have in common: a node that publishes a clip in real time, with its truth."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2D, ObjectHypothesisWithPose

from tracker_ros.files import refuse_overwriting
from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros.ros.clips import Clip, InvalidSource, Picture, UnreadableImage
from tracker_ros.ros.launching import let_images_through
from tracker_ros.ros.parameters import InvalidParameter, Spec, declare
from tracker_ros.ros.programs import answered, warn_of_unread
from tracker_ros.trackers.base import Frame
from tracker_ros_interfaces.msg import TrackStatus

#: Seconds for which an image waits for the result of the one before, with ``wait_for_tracker``.
PATIENCE = 10.0
#: Seconds between the last image and the end: what was sent last is still on its way.
_LINGER = 0.5
#: Seconds between the first subscriber and the first image: its other subscriptions become known a moment later.
_SETTLE = 0.3
#: Smallest part of the target that is seen in an image that waits for a track to be started on it.
_IN_VIEW = 0.95

SPECS = (
    Spec("rate", 0.0, "images a second; 0: as the source was recorded", low=0.0, high=1000.0),
    Spec("loop", False, "begin again after the last image"),
    Spec("limit", 0, "images to send; 0: all", low=0, high=2**31 - 1, read_only=True),
    Spec("frame_id", "camera", "frame_id of the images"),
    Spec(
        "reliability",
        "best_effort",
        "of the image publishers; best_effort is what cameras do",
        choices=("best_effort", "reliable"),
        read_only=True,
    ),
    Spec(
        "start",
        "subscribed",
        "when the first image is sent: subscribed (once somebody subscribes), now, or paused (when ~/play is called)",
        choices=("subscribed", "now", "paused"),
        read_only=True,
    ),
    Spec(
        "wait_for_tracker",
        False,
        "send an image only after `status` has come for the one before, so that a slow tracker gets every image",
        read_only=True,
    ),
    Spec("jpeg_quality", 90, "quality of image_raw/compressed", low=1, high=100),
    Spec("report", "", "file to write what was sent to, at the end (JSON)", read_only=True),
)


class ImageSource(Node):
    """Publishes a clip: ``image_raw``, ``image_raw/compressed`` (while somebody subscribes) and ``ground_truth``.

    ``~/play`` (SetBool) starts and pauses. ``~/first_image`` (Trigger) sends the first image, alone and as often as it
    is called, while the source is paused; the reply's message is ``{"stamp": [sec, nanosec]}``.

    Args:
        name: of the node.
        specs: the parameters that `open_clip` reads.
        open_clip: makes the clip. It is called when the publishers exist, so that they are known to others by the time
            that it is ready.

    Raises:
        InvalidParameter: a parameter is of the wrong type or out of range.
        InvalidSource: the clip can't be opened.
    """

    def __init__(self, name: str, specs: tuple[Spec, ...], open_clip: Callable[[Node], Clip]) -> None:
        super().__init__(name)
        declare(self, {spec.name: spec for spec in (*SPECS, *specs)})
        warn_of_unread(self, (*SPECS, *specs))
        reliable = self.get_parameter("reliability").value == "reliable"
        quality = QoSProfile(
            depth=5, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        )
        self._raw = self.create_publisher(Image, "image_raw", quality)
        self._compressed = self.create_publisher(CompressedImage, f"{self._raw.topic_name}/compressed", quality)
        self._truth = self.create_publisher(Detection2D, "ground_truth", QoSProfile(depth=10))
        self._clip = open_clip(self)
        report = str(self.get_parameter("report").value)
        refuse_overwriting([Path(report)] if report else [], self._clip.sources)
        rate = float(self.get_parameter("rate").value)
        self.period = 1 / (rate if rate > 0 else self._clip.fps)
        self._wait_for_tracker = bool(self.get_parameter("wait_for_tracker").value)
        self._playing = self.get_parameter("start").value != "paused"
        self._sent: list[tuple[int, int]] = []  # index in the clip and stamp (ns) of each image
        self._unreadable: list[int] = []
        self._reports = bool(report)
        self._answered = -1
        self._followed = False
        self._wait_for_target = self.has_parameter("wait_for_target") and bool(
            self.get_parameter("wait_for_target").value
        )
        if self._wait_for_tracker or self._wait_for_target:
            self.create_subscription(TrackStatus, "status", self._on_status, QoSProfile(depth=50))
        self.create_service(SetBool, "~/play", self._on_play)
        self.create_service(Trigger, "~/first_image", self._on_first_image)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def run(self) -> None:
        """Publish until the clip ends (or for ever, with ``loop``), then write the report.

        Raises:
            InvalidSource: the first image can't be read, or no other one.
        """
        images = f"{self._clip.length} images" if self._clip.length else "images"
        self.get_logger().info(f"{self._clip.name}: {images} at {1 / self.period:.4g} Hz on {self._raw.topic_name}")
        try:
            if self.get_parameter("start").value == "subscribed":
                self._spin_until(self._heard)
                self._spin_for(_SETTLE)
            index = 1 if self._sent else 0
            limit, laps = int(self.get_parameter("limit").value), 0
            due: float | None = None  # from the first image that is ready on
            while True:
                if not self._playing:
                    self._spin_until(lambda: self._playing)
                    # the first image may have been sent meanwhile, on request
                    index = max(index, 1 if self._sent else 0)
                    due = None
                if 0 < limit <= laps + index:
                    break
                try:
                    picture = self._clip.read(index)  # made ready ahead of its time
                except UnreadableImage as error:
                    if not self._sent and not index:
                        raise  # There is nothing to start on.
                    self.get_logger().warning(f"left out: {error}")
                    self._unreadable.append(index)
                    index += 1
                    continue
                if picture is None:
                    whole = self._clip.length
                    if whole is not None and index < whole:
                        self.get_logger().warning(f"{self._clip.name} ended after {index} of {whole} images")
                    if index == 0 or not self.get_parameter("loop").value or self._clip.live:
                        break
                    laps, index = laps + index, 0
                    continue
                if due is None:
                    due = time.monotonic()
                if not self._clip.live:
                    self._spin_for(due - time.monotonic())
                if self._wait_for_tracker and self._sent:
                    self._spin_until(lambda: self._answered >= self._sent[-1][1], PATIENCE)
                if not self._playing:
                    continue
                if self._waits(picture):
                    self._stand(index, picture)
                    due = time.monotonic()
                    continue
                self._publish(index, picture)
                self._spin_for(0)
                index += 1
                # A source that is late goes on from now: it slows down and leaves no image out.
                due = max(due + self.period, time.monotonic() - self.period)
            self._spin_for(_LINGER)
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        except Exception:
            # Told to end in the middle of a call to ROS, which fails then in ways of its own.
            if rclpy.ok():
                raise
        finally:
            self._report()
            self._clip.close()

    def _waits(self, picture: Picture) -> bool:
        """Whether the clip stands still: a tracker is there that follows nothing, and the target is in full view."""
        if not self._wait_for_target or self._followed or not self._playing:
            return False
        return picture.truth is not None and picture.visible > _IN_VIEW and self.count_publishers("status") > 0

    def _stand(self, index: int, picture: Picture) -> None:
        """Show one moment until somebody follows something, and say how to."""
        assert picture.truth is not None
        self.get_logger().info("standing still until something is followed; this follows the car:")
        print(init_target_call(self.resolve_service_name("init_target"), picture.truth), flush=True)
        count, due = 0, time.monotonic()
        while self._waits(picture):
            self._publish(index, picture if count == 0 else self._clip.still(picture, index, count))
            count += 1
            due = max(due + self.period, time.monotonic() - self.period)
            self._spin_for(due - time.monotonic())

    def _heard(self) -> bool:
        return self._raw.get_subscription_count() + self._compressed.get_subscription_count() > 0

    def _spin_for(self, seconds: float) -> None:
        self._spin_until(lambda: False, seconds)

    def _spin_until(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while rclpy.ok():
            left = 0.05 if end is None else min(0.05, end - time.monotonic())
            self._executor.spin_once(max(left, 0.0))
            if done() or (end is not None and time.monotonic() >= end):
                return
        raise ExternalShutdownException

    def _on_status(self, message: TrackStatus) -> None:
        self._answered = max(self._answered, messages.stamp_to_ns(message.header.stamp))
        self._followed = bool(message.target_id)

    def _on_play(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._playing = bool(request.data)
        response.success, response.message = True, "playing" if request.data else "paused"
        return response

    def _on_first_image(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._playing or any(index > 0 for index, _ in self._sent):
            response.message = "the source is already playing"
            return response
        if not self._heard():
            response.message = f"nobody subscribes to {self._raw.topic_name} yet"
            return response
        try:
            picture = self._clip.read(0)
        except InvalidSource as error:
            response.message = str(error)
            return response
        if picture is None:
            response.message = f"{self._clip.name} has no image"
            return response
        stamp = self._publish(0, picture)
        response.success = True
        response.message = json.dumps({"stamp": [stamp // 10**9, stamp % 10**9]})
        return response

    def _publish(self, index: int, picture: Picture) -> int:
        header = Header(frame_id=str(self.get_parameter("frame_id").value))
        now = self.get_clock().now()
        header.stamp = now.to_msg()
        # Counted first: a signal in between must not leave an image out that somebody has received.
        if not self._reports:
            self._sent.clear()  # Of a source without an end there is nothing to be told at the end.
        self._sent.append((index, now.nanoseconds))
        if self._raw.get_subscription_count() > 0:
            self._raw.publish(messages.image_to_message(picture.frame, "bgr8", header))
        if self._compressed.get_subscription_count() > 0:
            self._compressed.publish(self._encode(picture.frame, header))
        if picture.known:
            self._truth.publish(_truth_message(header, picture))
        return int(now.nanoseconds)

    def _encode(self, frame: Frame, header: Header) -> CompressedImage:
        quality = int(self.get_parameter("jpeg_quality").value)
        _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
        message = CompressedImage(header=header, format="bgr8; jpeg compressed bgr8")
        message.data.frombytes(data.tobytes())
        return message

    def _expected(self) -> int | None:
        """Images that one pass should have had; None where nobody knows."""
        limit = int(self.get_parameter("limit").value)
        counts = [count for count in (self._clip.length, limit) if count]
        return min(counts) if counts else None

    def _report(self) -> None:
        path = str(self.get_parameter("report").value)
        if not path:
            return
        report = {
            "source": self._clip.name,
            "fps": 1 / self.period,
            "frames_expected": self._expected(),
            "frames_unreadable": len(set(self._unreadable)),
            "frames_sent": len(self._sent),
            "frames": [{"index": index, "stamp": stamp} for index, stamp in self._sent],
        }
        # Renamed when it is complete, so that whoever waits for it never reads half of it.
        part = Path(f"{path}.part")
        part.write_text(json.dumps(report))
        os.replace(part, path)


def init_target_call(service: str, box: Box, target_id: str = "car") -> str:
    """The command line that starts a track on a box (x, y, w, h in pixels) of the newest image."""
    x, y = box.center
    bbox = f"{{center: {{position: {{x: {x:.1f}, y: {y:.1f}}}}}, size_x: {box.w:.1f}, size_y: {box.h:.1f}}}"
    return (
        f'ros2 service call {service} tracker_ros_interfaces/srv/InitTarget "{{bbox: {bbox}, target_id: {target_id}}}"'
    )


def _truth_message(header: Header, picture: Picture) -> Detection2D:
    """The true box with the visible part of the target as score; no results where it is out of view."""
    message = Detection2D(header=header)
    if picture.truth is not None:
        message.bbox = messages.box_to_message(picture.truth)
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = "target"
        result.hypothesis.score = picture.visible if picture.visible == picture.visible else 1.0
        message.results = [result]
    return message


def run_source(name: str, specs: tuple[Spec, ...], open_clip: Callable[[Node], Clip], args: list[str] | None) -> int:
    """The ``main`` of a source. Returns the exit code: 2 where the source or a parameter is wrong."""
    about = "Publishes images, as they would come from a camera, on image_raw and image_raw/compressed."
    code = answered(name, about, (*SPECS, *specs), args)
    if code is not None:
        return code
    let_images_through(os.environ)
    rclpy.init(args=args)
    source = None
    try:
        source = ImageSource(name, specs, open_clip)
        source.run()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (InvalidSource, InvalidParameter, ValueError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    finally:
        if source is not None:
            source.destroy_node()
        rclpy.get_default_context().try_shutdown()
    return 0
