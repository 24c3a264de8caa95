"""Records a track: an annotated video, a contact sheet, and a summary with what happened to each image.

Everything is matched by the image's stamp. An image that the tracker left out is in the video all the same, with the
last state greyed. ``~/finish`` (Trigger) waits for what is still on its way, writes the files and ends the node, as
does Ctrl-C (without waiting).
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2D

from tracker_ros import images
from tracker_ros.files import clear, note, opencv_path, refuse_overwriting
from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.ros import messages, recording
from tracker_ros.ros.launching import let_images_through
from tracker_ros.ros.parameters import IMAGE_TRANSPORT, InvalidParameter, Spec, declare
from tracker_ros.ros.programs import answered, warn_of_unread
from tracker_ros.ros.recording import Artist, Entry, Result, Sent, Timeline, VideoFile
from tracker_ros.trackers.base import TrackState
from tracker_ros_interfaces.msg import TrackStatus

#: Seconds that ``~/finish`` waits for the result of the last image, and for silence where there is none to come.
PATIENCE = 10.0
_SILENCE = 1.0

SPECS = (
    Spec("out", "out/recording", "folder to write demo.mp4, sheet.png and summary.json to", read_only=True),
    Spec("name", "demo", "name of the video file, without .mp4", read_only=True),
    Spec("fps", 0.0, "images a second of the video; 0: from their stamps", low=0.0, high=1000.0, read_only=True),
    IMAGE_TRANSPORT,
    Spec("heatmap", True, "show the heatmap in the video", read_only=True),
    Spec("source_report", "", "file with what the source sent (its `report` parameter)", read_only=True),
    Spec("metadata", "", "JSON object to add to the summary", read_only=True),
)


class Recorder(Node):
    """See the module's text.

    Raises:
        InvalidParameter: a parameter is of the wrong type or out of range.
        OSError: the folder can't be made.
        NotOurs: a file that would be replaced is none that an earlier recording made.
    """

    def __init__(self) -> None:
        super().__init__("recorder")
        declare(self, {spec.name: spec for spec in SPECS})
        warn_of_unread(self, SPECS)
        self.folder = Path(str(self.get_parameter("out").value)).expanduser()
        opencv_path(self.folder)
        self._names = (f"{self.get_parameter('name').value}.mp4", "sheet.png", "summary.json")
        report = str(self.get_parameter("source_report").value)
        refuse_overwriting([self.folder / name for name in self._names], [Path(report)] if report else [])
        clear(self.folder, self._names)
        try:
            self._metadata: dict[str, Any] = dict(json.loads(str(self.get_parameter("metadata").value) or "{}"))
        except (ValueError, TypeError) as error:
            raise InvalidParameter(f"parameter 'metadata' must be a JSON object: {error}") from error
        self._timeline = Timeline()
        self._scale = images.GreyScale()
        self._artist = Artist()
        self._video: VideoFile | None = None
        self._device: dict[str, str] = {}
        self._lock = threading.Lock()
        self._finishing = False
        self._last_box: Box | None = None
        self._last_news = time.monotonic()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        # Drawing and encoding take as long as half a frame: not in the thread that receives.
        self._scribe = threading.Thread(target=self._write_video, name="video", daemon=True)

        compressed = self.get_parameter("image_transport").value == "compressed"
        topic = "image_raw/compressed" if compressed else "image_raw"
        camera = QoSProfile(depth=30, reliability=ReliabilityPolicy.BEST_EFFORT)
        deep = QoSProfile(depth=100)
        self.create_subscription(CompressedImage if compressed else Image, topic, self._on_image, camera)
        self.create_subscription(Detection2D, "detection", self._on_detection, deep)
        self.create_subscription(TrackStatus, "status", self._on_status, deep)
        self.create_subscription(Detection2D, "ground_truth", self._on_truth, deep)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)
        if self.get_parameter("heatmap").value:
            self.create_subscription(Image, "heatmap", self._on_heatmap, camera)
        self.create_service(Trigger, "~/finish", self._on_finish)

    def run(self) -> None:
        """Record until told to finish; then write the files.

        Raises:
            OSError: a file can't be written.
        """
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        self._scribe.start()
        asked: float | None = None
        try:
            while rclpy.ok() and self._failure is None:
                executor.spin_once(0.1)
                if not self._finishing:
                    continue
                asked = asked or time.monotonic()
                now = time.monotonic()
                with self._lock:
                    complete = self._timeline.complete
                quiet = now - self._last_news > _SILENCE
                if (complete and now - self._last_news > 0.3) or quiet or now - asked > PATIENCE:
                    break
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        self._closed.set()
        self._scribe.join()
        try:
            if self._failure is not None:
                raise self._failure
            self._write_files()
        finally:
            note(self.folder, self._names)

    # ----------------------------------------------------------------- messages

    def _on_image(self, message: Any) -> None:
        self._last_news = time.monotonic()
        try:
            image = images.from_message(message, self._scale)
        except images.InvalidImage as error:
            self.get_logger().error(f"image is not recorded: {error}", throttle_duration_sec=5.0)
            return
        with self._lock:
            self._timeline.add_image(messages.stamp_to_ns(message.header.stamp), image)

    def _on_detection(self, message: Detection2D) -> None:
        self._last_news = time.monotonic()
        stamp = messages.stamp_to_ns(message.header.stamp)
        latency = recording.believable((self.get_clock().now().nanoseconds - stamp) / 1e9)
        try:
            box = messages.box_from_message(message.bbox)
        except InvalidBox as error:
            self.get_logger().error(f"detection is not recorded: {error}", throttle_duration_sec=5.0)
            return
        with self._lock:
            entry = self._timeline.at(stamp)
            entry.box, entry.latency = box, latency
            self._last_box = box

    def _on_status(self, message: TrackStatus) -> None:
        self._last_news = time.monotonic()
        if message.state == TrackStatus.STALE:
            return  # It is about no image of its own.
        result = Result(
            state=TrackState(message.state),
            score=float(message.score),
            search_region=messages.box_from_message(message.search_region),
            tracker=message.tracker,
            latency=recording.believable(float(message.latency)),
            counts=(message.frames_received, message.frames_processed, message.frames_dropped),
        )
        with self._lock:
            stamp = messages.stamp_to_ns(message.header.stamp)
            self._timeline.add_result(stamp, result)
            if result.state is TrackState.LOST:  # Nothing is detected; what is drawn is where it was last.
                self._timeline.at(stamp).box = self._last_box

    def _on_truth(self, message: Detection2D) -> None:
        with self._lock:
            entry = self._timeline.at(messages.stamp_to_ns(message.header.stamp))
            entry.truth_known = True
            entry.truth = messages.box_from_message(message.bbox) if message.results else None

    def _on_heatmap(self, message: Image) -> None:
        if message.encoding != "32FC1":
            return
        values = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        with self._lock:
            self._timeline.at(messages.stamp_to_ns(message.header.stamp)).heatmap = values

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": tracking") and status.hardware_id:
                self._device = {pair.key: pair.value for pair in status.values}

    def _on_finish(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._finishing = True
        self._last_news = time.monotonic()
        response.success, response.message = True, f"writing to {self.folder}"
        return response

    # -------------------------------------------------------------------- files

    def _write_video(self) -> None:
        try:
            while True:
                closed = self._closed.wait(0.05)
                with self._lock:
                    ready = self._timeline.settled(all_of_them=closed)
                for entry in ready:
                    self._append(entry, ready)
                if closed:
                    break
        except Exception as error:
            self._failure = error
        finally:
            if self._video is not None:
                self._video.close()

    def _append(self, entry: Entry, ready: list[Entry]) -> None:
        if self._video is None:
            fps = float(self.get_parameter("fps").value)
            if fps <= 0:
                with self._lock:
                    fps = recording.nominal_rate([e.stamp for e in self._timeline.entries() if e.image is not None])
            self._video = VideoFile(self.folder / self._names[0], fps)
        entry.frame = self._video.write(self._artist.draw(entry))
        entry.image = entry.heatmap = None

    def _write_files(self) -> None:
        path = str(self.get_parameter("source_report").value)
        sent = None
        if path and Path(path).is_file():
            sent = Sent.load(Path(path))
        entries = self._timeline.entries()
        summary = recording.summarize(entries, sent)
        summary = {
            **{key: summary[key] for key in ("tracker",)},
            "device": self._device.get("device"),
            **{key: value for key, value in summary.items() if key not in ("tracker", "frames")},
            "resident_memory_mib": _number(self._device.get("resident memory (MiB)", "")),
            **self._metadata,
            "frames": summary["frames"],
        }
        recording.write_summary(self.folder / "summary.json", summary)
        if self._video is None or self._video.count == 0:
            raise OSError("no image was recorded, so there is no video: check that the source publishes on image_raw")
        recording.write_sheet(self.folder / "sheet.png", self._video, [entry for entry in entries if entry.frame >= 0])
        self.get_logger().info(f"wrote {self._video.count} images to {self.folder}")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to finish. Returns the exit code: 2 for a wrong parameter or an unwritable file."""
    code = answered("recorder", __doc__ or "", SPECS, args)
    if code is not None:
        return code
    let_images_through(os.environ)
    rclpy.init(args=args)
    recorder = None
    try:
        recorder = Recorder()
        recorder.run()
    except (InvalidParameter, OSError, ValueError) as error:
        print(f"recorder: error: {error}", file=sys.stderr)
        return 2
    finally:
        if recorder is not None:
            recorder.destroy_node()
        rclpy.get_default_context().try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
