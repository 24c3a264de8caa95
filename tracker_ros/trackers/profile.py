"""Where the time of a frame goes: stages that a tracker names and a benchmark switches on.

A tracker writes ``with self.timer.stage("backbone"): ...``. Its `timer` is `NULL_TIMER`, which costs nothing, until a
benchmark sets a `StageTimer`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class NullTimer:
    """Measures nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return _NOTHING


#: The timer that every tracker starts with.
NULL_TIMER = NullTimer()


class StageTimer(NullTimer):
    """Adds up the wall time of named stages, frame by frame.

    A stage that opens inside another one is taken out of the outer one, so the stages of a frame never count a moment
    twice.

    Args:
        synchronize: called before every reading of the clock (``torch.cuda.synchronize``), so that a stage on a GPU
            is charged with its own kernels; None on the CPU.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self._inner: list[float] = []
        self._current: dict[str, float] = {}
        #: One dict a finished frame: stage -> milliseconds.
        self.frames: list[dict[str, float]] = []

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the body of the context to stage `name`."""
        self._inner.append(0.0)
        begin = self._now()
        try:
            yield
        finally:
            elapsed = self._now() - begin
            own = elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed
            self._current[name] = self._current.get(name, 0.0) + own * 1e3

    def end_frame(self) -> dict[str, float]:
        """Close the frame and return its stages in milliseconds."""
        frame, self._current = self._current, {}
        self.frames.append(frame)
        return frame
