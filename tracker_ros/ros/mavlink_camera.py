"""The tracker as a MAVLink camera, as a node and process of its own: a ground station's box starts `init_target`.

It needs the extra `mavlink` of pip: ``pip install tracker_ros[mavlink]``. What it says: `tracker_ros.remote.mavlink`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from tracker_ros import images
from tracker_ros.remote.tracker import Sighting
from tracker_ros.ros.launching import let_images_through
from tracker_ros.ros.parameters import IMAGE_TRANSPORT, InvalidParameter, Spec, declare
from tracker_ros.ros.spinning import spin
from tracker_ros.ros.tracker_client import TrackerClient

SPECS = (
    Spec(
        "connection",
        "udpout:127.0.0.1:14550",
        "to the ground station or a router, as pymavlink writes it: udpout:HOST:PORT, udpin:…, tcp:…, /dev/ttyUSB0",
        read_only=True,
    ),
    Spec("baud", 57600, "of a serial connection", low=1200, high=4_000_000, read_only=True),
    Spec("system_id", 1, "MAVLink system: that of the vehicle", low=1, high=255, read_only=True),
    Spec("component_id", 100, "MAVLink component: 100 to 105 are cameras", low=1, high=255, read_only=True),
    Spec(
        "video_delay",
        0.0,
        "how old the operator's picture is when it is seen, seconds: the track starts on the image of that time, as "
        "far back as the tracker's buffer_seconds",
        low=0.0,
        high=10.0,
        read_only=True,
    ),
    IMAGE_TRANSPORT,
)
#: Seconds between two looks at the link, between tries to open it, and without images after which their size is asked
#: for anew.
_POLL, _RETRY, _PAUSE = 0.005, 1.0, 2.0
#: Datagrams, or pieces of a stream, that are read before anything is sent.
_AT_ONCE = 64


class MavlinkCamera(Node):
    """Feeds a `CameraComponent` from the camera's and the tracker's topics, and the link from that.

    Raises:
        InvalidParameter: a parameter is of the wrong type or out of range.
    """

    def __init__(self, **arguments: Any) -> None:
        from tracker_ros.remote.mavlink import CameraComponent

        super().__init__("mavlink_camera", **arguments)
        declare(self, {spec.name: spec for spec in SPECS})
        self._tracker = TrackerClient(self, self._on_sighting)
        self.component = CameraComponent(
            self._tracker,
            int(self._value("system_id")),
            int(self._value("component_id")),
            float(self._value("video_delay")),
        )
        self._compressed = self._value("image_transport") == "compressed"
        self._quality = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, self._quality)
        self._images: Any = None
        self._newest = 0
        self._heard = 0.0
        self._look_at_image()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def link(self) -> Link:
        """The link that the parameters ask for."""
        return Link(
            str(self._value("connection")),
            int(self._value("baud")),
            int(self._value("system_id")),
            int(self._value("component_id")),
        )

    def _on_sighting(self, sighting: Sighting) -> None:
        now = time.monotonic()
        if sighting.stamp != self._newest:
            if now - self._heard > _PAUSE:
                self._look_at_image()  # Another camera, perhaps.
            self._newest, self._heard = sighting.stamp, now
        self.component.observe(sighting)

    def _look_at_image(self) -> None:
        """Subscribe for a single image: nothing but its size is needed."""
        if self._images is None:
            topic = "image_raw/compressed" if self._compressed else "image_raw"
            kind = CompressedImage if self._compressed else Image
            self._images = self.create_subscription(kind, topic, self._on_image, self._quality)

    def _on_image(self, message: Any) -> None:
        if self._compressed:
            try:
                height, width = images.from_message(message).shape[:2]
            except images.InvalidImage:
                return
        else:
            height, width = int(message.height), int(message.width)
        if width <= 0 or height <= 0:
            return
        self.component.set_image_size(width, height)
        self.destroy_subscription(self._images)
        self._images = None

    def _on_camera_info(self, message: CameraInfo) -> None:
        if message.width > 0 and message.height > 0 and self._images is None:
            self.component.set_image_size(int(message.width), int(message.height))


class Link:
    """Bytes to and from a ground station; a link that fails is opened again.

    pymavlink carries the bytes; reading them is done here, since pymavlink's own connection falls back to MAVLink 1,
    which has no tracking, when the other side begins with that.

    Args:
        connection: as pymavlink writes it.
        baud: of a serial one.
        system, component: MAVLink's numbers of this side.
    """

    def __init__(self, connection: str, baud: int, system: int, component: int) -> None:
        from pymavlink.dialects.v20 import common as mavlink

        self._device, self._baud = connection, baud
        self._protocol = mavlink.MAVLink(None, srcSystem=system, srcComponent=component)
        self._protocol.robust_parsing = True
        self._connection: Any = None
        self._next_try = 0.0
        #: Why there is no connection; empty while there is one.
        self.problem = ""

    def open(self) -> None:
        """Open the connection.

        Raises:
            Exception: of many kinds: the address is none, the device is not there, nobody listens.
        """
        from pymavlink import mavutil

        self._connection = mavutil.mavlink_connection(
            self._device, baud=self._baud, retries=0, autoreconnect=False, source_system=self._protocol.srcSystem
        )
        for name in ("handle_eof", "handle_disconnect"):
            # pymavlink prints a line and goes on with nothing.
            if hasattr(self._connection, name):
                setattr(self._connection, name, _closed)
        self.problem = ""

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def exchange(self, component: Any) -> None:
        """Hand what came to `component`, and send what it has to say."""
        if self._connection is None and not self._reopen():
            component.due()  # What nobody can hear is not kept for later.
            return
        try:
            for _ in range(_AT_ONCE):
                data = self._connection.recv(4096)
                if not data:
                    break
                for message in self._protocol.parse_buffer(bytes(data)) or ():
                    component.receive(message)
            for message in component.due():
                if self._connection.write(message.pack(self._protocol)) == -1:
                    raise ConnectionError("the device is gone")
                self._protocol.seq = (self._protocol.seq + 1) % 256
        except Exception as error:
            self.problem = f"the link {self._device} is lost: {error} ({type(error).__name__}); trying again"
            self._next_try = time.monotonic() + _RETRY
            self.close()

    def _reopen(self) -> bool:
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            self.open()
        except Exception as error:
            self.problem = f"the link {self._device} can't be opened: {error} ({type(error).__name__}); trying again"
            self._next_try = now + _RETRY
        return self._connection is not None


def _closed() -> None:
    raise ConnectionError("closed by the other side")


def main(args: list[str] | None = None) -> int:
    """Run the camera until it is told to end. Returns the exit code: 2 where a parameter or the link is wrong."""
    try:
        import pymavlink  # noqa: F401 - an optional extra
    except ImportError:
        text = "this needs pymavlink: pip install 'tracker_ros[mavlink]', or pymavlink alone"
        print(f"mavlink_camera: error: {text}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, lambda *_: None)  # rclpy shuts its context down, and that ends everything.
    let_images_through(os.environ)
    rclpy.init(args=args)
    node, executor, ended = None, SingleThreadedExecutor(), threading.Event()
    thread: threading.Thread | None = None
    try:
        node = MavlinkCamera()
        link = node.link()
        try:
            link.open()
        except Exception as error:
            # At the start it is more likely a typo than a link that will come.
            raise InvalidParameter(f"parameter 'connection' can't be used: {link._device}: {error}") from error
        executor.add_node(node)
        thread = threading.Thread(target=_exchange, args=(node, link, ended), name="mavlink")
        thread.start()
        spin(node, executor)
    except InvalidParameter as error:
        print(f"mavlink_camera: error: {error}", file=sys.stderr)
        return 2
    finally:
        ended.set()
        if thread is not None:
            thread.join()
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.get_default_context().try_shutdown()
    return 0


def _exchange(node: MavlinkCamera, link: Link, ended: threading.Event) -> None:
    """Serve the link until the node has ended."""
    said = ""
    node.get_logger().info(f"a MAVLink camera on {link._device}")
    while not ended.wait(_POLL):
        try:
            link.exchange(node.component)
        except Exception as error:
            link.problem = f"a message was skipped: {error} ({type(error).__name__})"
        if link.problem != said:
            said = link.problem
            if said:
                node.get_logger().warning(said)
            else:
                node.get_logger().info(f"the link {link._device} is back")
    link.close()


if __name__ == "__main__":
    sys.exit(main())
