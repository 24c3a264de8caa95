"""Spinning a node until it is told to end."""

from __future__ import annotations

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from tracker_ros.text import printable


def spin(node: Node, executor: SingleThreadedExecutor) -> None:
    """Execute callbacks until the context is shut down; an exception in one of them is logged and ends nothing."""
    while node.context.ok():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except Exception as error:
            if not node.context.ok():
                return  # Without its context, whatever it was at fails.
            node.get_logger().error(printable(f"a request failed, the node goes on: {error} ({type(error).__name__})"))
