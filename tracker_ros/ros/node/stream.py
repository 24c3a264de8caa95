"""The images as they come in: the last second of them, and whether they are still those of a living camera."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from tracker_ros.ros import messages
from tracker_ros.ros.diagnostics import Monitor
from tracker_ros.ros.frame_buffer import FrameBuffer, Received
from tracker_ros.ros.node.endpoints import name_of
from tracker_ros.ros.parameters import NodeOptions

#: Bytes of each image that are compared first.
_SAMPLE = 4096


class ImageStream:
    """Subscription to the images of `node`, while it is active.

    Args:
        node: subscribes.
        group: callback group of the subscription.

    Attributes:
        topic: resolved name of the images' topic, empty before the first activation.
        buffer: the last second of images.
        monitor: is told of every image.
    """

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self._node = node
        self._group = group
        self._subscription: Any = None
        self._put: Callable[[Received[Any]], None] = lambda received: None
        self._sequence = 0
        self._opened_at = 0.0
        self._reliable = False
        self._sample: NDArray[np.uint8] | None = None
        self._last: Any = None
        self.topic = ""
        self.buffer: FrameBuffer[Any] = FrameBuffer()
        self.monitor = Monitor(time.monotonic())

    @property
    def last(self) -> Any:
        """The message that came last, None before the first."""
        return self._last

    @property
    def subscription(self) -> Any:
        """The subscription; None while the node is not active."""
        return self._subscription

    @property
    def message_type(self) -> str:
        """Name of the type that is subscribed to."""
        kind = "CompressedImage" if self._subscription and self._subscription.msg_type is CompressedImage else "Image"
        return f"sensor_msgs/msg/{kind}"

    def limit(self, options: NodeOptions) -> None:
        """Take over how many images are to be kept."""
        self.buffer.seconds = options.buffer_seconds
        self.buffer.max_bytes = options.buffer_megabytes * 2**20

    def open(self, options: NodeOptions, put: Callable[[Received[Any]], None]) -> None:
        """Subscribe; every image goes into the buffer and to `put`."""
        compressed = options.image_transport == "compressed"
        base = self._node.resolve_topic_name("image_raw")
        self._reliable = options.reliability == "reliable"
        qos = QoSProfile(
            depth=1,
            history=HistoryPolicy.KEEP_LAST,
            durability=DurabilityPolicy.VOLATILE,
            reliability=ReliabilityPolicy.RELIABLE if self._reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        self.buffer.clear()
        self._sample = self._last = None
        self._put = put
        self._opened_at = time.monotonic()
        self.monitor = Monitor(self._opened_at)
        self._subscription = self._node.create_subscription(
            CompressedImage if compressed else Image,
            f"{base}/compressed" if compressed else base,
            self._on_image,
            qos,
            callback_group=self._group,
        )
        self.topic = str(self._subscription.topic_name)

    def close(self) -> None:
        """Unsubscribe, and forget all images."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = self._sample = self._last = None
        self.buffer.clear()

    def _on_image(self, message: Any) -> None:
        if self._subscription is None:
            return
        now = time.monotonic()
        self._sequence += 1
        stamp = messages.stamp_to_ns(message.header.stamp)
        received = Received(self._sequence, stamp, now, message, len(message.data))
        self.monitor.arrived(now, stamp, self._is_same(message))
        self._last = message
        if not self.buffer.push(received):
            self._node.get_logger().warning(
                "image stamps went back in time (a bag that starts again?); the track goes on",
                throttle_duration_sec=5.0,
            )
        self._put(received)

    def _is_same(self, message: Any) -> bool:
        """Whether the picture is, byte for byte, the one before. A real camera's noise makes that impossible."""
        if not message.data:
            self._sample = None
            return False
        data = np.frombuffer(message.data, np.uint8)
        # A few bytes from all over the image tell most pictures apart at no cost.
        sample = data[:: max(1, data.size // _SAMPLE)].copy()
        before, self._sample = self._sample, sample
        if before is None or not np.array_equal(sample, before):
            return False
        return np.array_equal(data, np.frombuffer(self._last.data, np.uint8))

    def absence(self) -> str:
        """Why there is no image yet, as far as one can tell."""
        waited = time.monotonic() - self._opened_at
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        names = ", ".join(sorted({name_of(publisher) for publisher in publishers}))
        if not publishers:
            hint = "nobody publishes there: check the topic's name and that the camera runs"
        elif self._reliable:
            hint = f"{names} may publish as best effort, which a reliable subscription does not hear"
        else:
            hint = (
                f"{names} has announced itself there: it may still be starting, or paused; if it does send "
                f"(ros2 topic hz {self.topic}), its images may be too large for how DDS is set up: see the README, "
                "'No or few images arrive'"
            )
        return f"no image has arrived on {self.topic} in the {waited:.1f} s since the node was activated; {hint}"
