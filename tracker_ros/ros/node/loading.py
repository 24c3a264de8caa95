"""Loading in the background: seconds of reading and warming up in a thread, while the node goes on. No ROS in here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tracker_ros.ros.worker import Superseded


class Loader:
    """Calls one function after another in a thread. What was asked for last replaces what is still under way.

    All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: tuple[Callable[[], Any], Future[Any]] | None = None
        self._current: Future[Any] | None = None
        self._running = False

    @property
    def busy(self) -> bool:
        """Whether the thread is at something, which may be something that nobody waits for any more."""
        with self._lock:
            return self._running

    def load(self, make: Callable[[], Any]) -> Future[Any]:
        """Call `make` in the thread; the future of what was asked for before ends with `Superseded`."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            old = self._forget()
            self._next = make, future
            start = not self._running
            self._running = True
        _end(old)
        if start:
            threading.Thread(target=self._run, name="loader", daemon=True).start()
        return future

    def cancel(self) -> None:
        """Whatever was asked for ends with `Superseded`; a call that has begun runs on, and its result is dropped."""
        with self._lock:
            old = self._forget()
        _end(old)

    def _forget(self) -> list[Future[Any]]:
        waiting = [] if self._next is None else [self._next[1]]
        current = [] if self._current is None else [self._current]
        self._next = self._current = None
        return waiting + current

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._next is None:
                    self._running = False
                    return
                make, future = self._next
                self._next, self._current = None, future
            result: Any = None
            error: Exception | None = None
            try:
                result = make()
            except Exception as raised:
                error = raised
            with self._lock:
                wanted = self._current is future
                if wanted:
                    self._current = None
            if wanted and error is not None:
                future.set_exception(error)
            elif wanted:
                future.set_result(result)
            # Keep nothing alive: what was loaded may be gigabytes.
            make, result, future, error = _nothing, None, Future(), None


def _nothing() -> None:
    return None


def _end(futures: list[Future[Any]]) -> None:
    for future in futures:
        future.set_exception(Superseded())
