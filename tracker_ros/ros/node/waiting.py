"""Coroutines of services that wait for another thread, or for some time, while the executor goes on."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

#: Seconds by which a wait may end late.
_TICK = 0.02


class Waiting:
    """Waits of one node, all of them on one timer: hundreds of requests may wait at once.

    Args:
        node: the node whose executor runs the coroutines.
        group: its reentrant callback group.
    """

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self._node = node
        self._waits: list[tuple[float, Future]] = []
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(_TICK, self._on_tick, callback_group=group, clock=clock)
        self._timer.cancel()

    async def until(self, work: concurrent.futures.Future[Any] | None, timeout: float) -> None:
        """Return when `work` is done, but after `timeout` seconds at the latest."""
        if work is not None and work.done():
            return
        done, executor = Future(), self._node.executor

        def wake(_: object) -> None:
            try:
                executor.create_task(_finish, done)  # From another thread: resume in the executor's.
            except Exception:
                self._node.get_logger().debug("the executor was shut down before a service could answer")

        if not self._waits:
            self._timer.reset()
        entry = time.monotonic() + timeout, done
        self._waits.append(entry)
        if work is not None:
            work.add_done_callback(wake)
        try:
            await done
        finally:
            self._waits.remove(entry)
            if not self._waits:
                self._timer.cancel()

    def _on_tick(self) -> None:
        now = time.monotonic()
        for deadline, done in list(self._waits):
            if deadline <= now:
                _finish(done)


def _finish(future: Future) -> None:
    if not future.done():
        future.set_result(None)
