"""The thread that owns the tracker and its device: takes the newest item of a mailbox, and runs commands in between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tracker_ros.ros.mailbox import Counts, Mailbox

T = TypeVar("T")
R = TypeVar("R")


class Superseded(RuntimeError):
    """What was asked for is not done, because something newer of its kind was asked for."""

    def __init__(self) -> None:
        super().__init__("a newer request took its place")


class Command:
    """Something for the worker to do, which may be withdrawn until it takes effect.

    Attributes:
        kind: what sort of command it is; a newer one replaces one of the same kind that waits. Empty: none does.
        future: has the result or the exception; cancelled if it never ran.
    """

    def __init__(self, run: Callable[[Command], Any], kind: str = "") -> None:
        self.kind = kind
        self.future: Future[Any] = Future()
        self._run = run
        self._lock = threading.Lock()
        self._committed = False
        self._withdrawn = False

    def commit(self) -> bool:
        """Called by what runs, just before it changes anything; False: it was withdrawn and must change nothing."""
        with self._lock:
            self._committed = not self._withdrawn
            return self._committed

    def withdraw(self) -> bool:
        """Give the command up; False: too late, it has taken effect."""
        with self._lock:
            if self._committed:
                return False
            self._withdrawn = True
        self.future.cancel()
        return True

    def execute(self) -> None:
        """Run it, unless it was withdrawn before."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._run(self)
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def supersede(self) -> None:
        """A newer one of its kind takes its place."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(Superseded())


class Worker(Generic[T, R]):
    """One daemon thread. Commands and items take turns while both wait; neither ends the thread by an exception.

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
        self._commands: deque[Command] = deque()
        self._suspended = True
        self._stopping = False
        self._items_turn = False
        self._doing = ("", 0.0)
        self.mailbox: Mailbox[T] = Mailbox(self._condition)
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[Command], Any], kind: str = "") -> Command:
        """Have `run` called on the worker before its next item, or after one item if a command has just run.

        A waiting command of the same `kind` ends with `Superseded`: however fast requests come, one of a kind waits.
        """
        command = Command(run, kind)
        replaced: list[Command] = []
        with self._condition:
            if self._stopping:
                command.future.set_exception(RuntimeError("the tracking thread has been stopped"))
                return command
            if kind:
                replaced = [waiting for waiting in self._commands if waiting.kind == kind]
                for waiting in replaced:
                    self._commands.remove(waiting)
            self._commands.append(command)
            self._condition.notify_all()
        for waiting in replaced:
            waiting.supersede()
        return command

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
            waiting = list(self._commands)
            self._commands.clear()
            self._condition.notify_all()
        for command in waiting:
            command.future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def doing(self) -> tuple[str, float]:
        """What the thread is at: the kind of a command, "image", or nothing, and for how many seconds."""
        what, since = self._doing
        return what, time.monotonic() - since if what else 0.0

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._stopping or self._commands or self._item_ready()):
                    self._condition.wait()
                if self._stopping:
                    self.mailbox.clear()
                    return
                take_item = self._item_ready() and (self._items_turn or not self._commands)
                item = self.mailbox.take() if take_item else None
                command = None if take_item else self._commands.popleft()
                self._items_turn = command is not None
            self._doing = ("image" if command is None else command.kind or "request", time.monotonic())
            if command is not None:
                command.execute()
            elif item is not None:
                self._handle(item)
            self._doing = ("", 0.0)
            # Keep nothing alive while waiting: an item may be an image of many megabytes.
            command = item = None

    def _item_ready(self) -> bool:
        return self.mailbox.waiting and not self._suspended

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
