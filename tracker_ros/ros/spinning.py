"""Spinning a node whose process does something else besides."""

from __future__ import annotations

import contextlib

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


def spin_until_shutdown(node: Node, executor: SingleThreadedExecutor) -> None:
    """Execute callbacks until the context is shut down; an exception in one of them is logged and ends nothing."""
    while node.context.ok():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except Exception as error:
            with contextlib.suppress(Exception):
                node.get_logger().error(f"a message was skipped: {error} ({type(error).__name__})")
