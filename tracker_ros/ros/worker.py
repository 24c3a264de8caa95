"""The thread that owns the tracker and its device: takes the newest item of a mailbox, and runs commands in between."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tracker_ros.ros.mailbox import Counts, Mailbox

T = TypeVar("T")
R = TypeVar("R")


class Worker(Generic[T, R]):
    """One daemon thread. Commands go before items; neither ends the thread by raising an exception.

    Args:
        process: turns an item into whether it was processed (or else dropped) and a result.
        deliver: gets the item, its result and the counts, after the item was counted.
        failed: gets an exception that `process` or `deliver` raised.
    """

    def __init__(
        self,
        process: Callable[[T], tuple[bool, R]],
        deliver: Callable[[T, R, Counts], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._process = process
        self._deliver = deliver
        self._failed = failed
        self._condition = threading.Condition()
        self._commands: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._suspended = True
        self._stopping = False
        self.mailbox: Mailbox[T] = Mailbox(self._condition)
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def submit(self, command: Callable[[], Any]) -> Future[Any]:
        """Run `command` on the worker before its next item; the future has its result or exception."""
        future: Future[Any] = Future()
        with self._condition:
            if self._stopping:
                future.set_exception(RuntimeError("the tracking thread has been stopped"))
                return future
            self._commands.append((future, command))
            self._condition.notify_all()
        return future

    def suspend(self) -> None:
        """Take no more items (commands still run). The mailbox goes on dropping older items for newer ones."""
        with self._condition:
            self._suspended = True

    def resume(self) -> None:
        """Take items again."""
        with self._condition:
            self._suspended = False
            self._condition.notify_all()

    def stop(self, timeout: float) -> bool:
        """End the thread after what it is at now; returns False if that takes longer than `timeout` seconds."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._stopping or self._commands or (self.mailbox.waiting and not self._suspended)):
                    self._condition.wait()
                if self._stopping:
                    for future, _ in self._commands:
                        future.cancel()
                    self._commands.clear()
                    self.mailbox.clear()
                    return
                command = self._commands.popleft() if self._commands else None
                item = self.mailbox.take() if command is None else None
            if command is not None:
                self._execute(*command)
            elif item is not None:
                self._handle(item)
            # Keep nothing alive while waiting: an item may be an image of many megabytes.
            command = item = None

    @staticmethod
    def _execute(future: Future[Any], command: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = command()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _handle(self, item: T) -> None:
        try:
            processed, result = self._process(item)
        except Exception as error:
            self.mailbox.finish(processed=False)
            self._failed(error)
            return
        counts = self.mailbox.finish(processed)
        try:
            self._deliver(item, result, counts)
        except Exception as error:
            self._failed(error)
