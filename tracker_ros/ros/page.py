"""The page to draw a box on, as a node and process of its own. The web server is `tracker_ros.remote.page`.

It needs the extra `page` of pip: ``pip install tracker_ros[page]``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import sys
import threading
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from tracker_ros import images, registry
from tracker_ros.remote.page.scene import Scene
from tracker_ros.ros import messages
from tracker_ros.ros.launching import let_images_through
from tracker_ros.ros.parameters import IMAGE_TRANSPORT, InvalidParameter, Spec, declare
from tracker_ros.ros.spinning import spin
from tracker_ros.ros.tracker_client import TrackerClient

SPECS = (
    Spec(
        "host",
        "127.0.0.1",
        "address to listen on; any other than a loopback one, such as 0.0.0.0, lets others in who have the token",
        read_only=True,
    ),
    Spec("port", 8080, "port to listen on; 0: any that is free", low=0, high=65535, read_only=True),
    Spec(
        "token",
        "",
        "what a browser must bring, 16 characters and more; empty: none on a loopback address, else one is made up and "
        "printed",
        read_only=True,
    ),
    Spec("rate", 15.0, "most pictures a second for each browser", low=0.5, high=60.0, read_only=True),
    IMAGE_TRANSPORT,
    Spec("tracker_node", "tracker", "name of the tracker's node, for its parameters", read_only=True),
    Spec(
        "drawing_seconds",
        5.0,
        "how long drawing a box may take: the tracker's buffer_seconds is raised to this (0: left alone)",
        low=0.0,
        high=10.0,
        read_only=True,
    ),
)
#: Seconds between two looks for the tracker's node.
_LOOK = 1.0


class PageNode(Node):
    """Feeds a `Scene` from the camera's and the tracker's topics. See the module's text.

    Raises:
        InvalidParameter: a parameter is of the wrong type or out of range.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__("page", **arguments)
        declare(self, {spec.name: spec for spec in SPECS})
        self.scene = Scene()
        self.tracker = TrackerClient(self, self.scene.add, str(self.get_parameter("tracker_node").value))
        compressed = self.get_parameter("image_transport").value == "compressed"
        topic = "image_raw/compressed" if compressed else "image_raw"
        self._camera = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(CompressedImage if compressed else Image, topic, self._on_image, self._camera)
        self._heatmaps: Any = None
        self._wanted = False
        self._held: Any = None
        self.create_timer(_LOOK, self._look)
        # In the executor's thread: the browsers' wishes come from another one.
        self.create_timer(0.2, self._follow_wishes)

    def watch_heatmap(self, wanted: bool) -> None:
        """Subscribe to the heatmap, or don't: the tracker builds it only for those who look. From any thread."""
        self._wanted = wanted

    def _follow_wishes(self) -> None:
        if self._wanted and self._heatmaps is None:
            self._heatmaps = self.create_subscription(Image, "heatmap", self._on_heatmap, self._camera)
        elif not self._wanted and self._heatmaps is not None:
            self.destroy_subscription(self._heatmaps)
            self._heatmaps = None

    def _look(self) -> None:
        """A tracker that has come, for the first time or again, is asked to keep its images for long enough."""
        seconds = float(self.get_parameter("drawing_seconds").value)
        if not self.tracker.ready:
            self._held = None
        elif seconds > 0 and (self._held is None or (self._held.done() and not self._held.result().ok)):
            # Again and again: one that is still loading may take longer than an answer may.
            self._held = self.tracker.hold(seconds)

    def _on_image(self, message: Any) -> None:
        self.scene.add_picture(
            messages.stamp_to_ns(message.header.stamp), functools.partial(images.from_message, message)
        )

    def _on_heatmap(self, message: Image) -> None:
        if message.encoding == "32FC1" and message.step == 4 * message.width:
            values = np.frombuffer(message.data, ">f4" if message.is_bigendian else "<f4")
            if values.size == message.height * message.width > 0:
                aligned = values.reshape(message.height, message.width).astype(np.float32)
                self.scene.add_heatmap(messages.stamp_to_ns(message.header.stamp), aligned)


async def _serve(node: PageNode, ended: threading.Event) -> None:
    """Serve the page until the node has ended.

    Raises:
        OSError: the address can't be had.
        InvalidParameter: a token is too short.
    """
    from tracker_ros.remote.page.server import PageServer, is_loopback

    def value(name: str) -> Any:
        return node.get_parameter(name).value

    host, token = str(value("host")), str(value("token"))
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    try:
        server = PageServer(
            node.scene,
            node.tracker,
            tuple(registry.names()),
            host=host,
            port=int(value("port")),
            token=token,
            rate=float(value("rate")),
            watch_heatmap=node.watch_heatmap,
        )
    except ValueError as error:
        raise InvalidParameter(str(error)) from error
    await server.start()
    try:
        node.get_logger().info(f"open {server.address} in a browser")
        if not is_loopback(host):
            node.get_logger().warning(
                "others can reach this page, and its connection is not encrypted: whoever listens can read it all. "
                "Where you do not trust the network, leave host alone and forward the port with ssh"
            )
        while not ended.is_set():
            await asyncio.sleep(0.1)
    finally:
        await server.stop()


def main(args: list[str] | None = None) -> int:
    """Run the page until it is told to end. Returns the exit code: 2 where a parameter or the address is wrong."""
    try:
        import aiohttp  # noqa: F401 - an optional extra
    except ImportError:
        print("page: error: this needs aiohttp: pip install 'tracker_ros[page]', or aiohttp alone", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, lambda *_: None)  # rclpy shuts its context down, and that ends everything.
    let_images_through(os.environ)
    rclpy.init(args=args)
    node, executor, ended = None, SingleThreadedExecutor(), threading.Event()
    thread: threading.Thread | None = None
    try:
        node = PageNode()
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(node, executor, ended), name="ros")
        thread.start()
        asyncio.run(_serve(node, ended))
    except (OSError, InvalidParameter) as error:
        print(f"page: error: {error}", file=sys.stderr)
        return 2
    finally:
        rclpy.get_default_context().try_shutdown()
        if thread is not None:
            thread.join()
        executor.shutdown()
        if node is not None:
            node.destroy_node()
    return 0


def _spin(node: PageNode, executor: SingleThreadedExecutor, ended: threading.Event) -> None:
    try:
        spin(node, executor)
    finally:
        ended.set()


if __name__ == "__main__":
    sys.exit(main())
