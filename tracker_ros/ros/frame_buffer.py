"""The last second of images, undecoded, so that a track can start on the image that its box was drawn on."""

from __future__ import annotations

import itertools
import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")

#: Distance in seconds within which a stamp is taken for that of an image when the frame period is not known.
DEFAULT_TOLERANCE = 0.02


class StampNotFound(LookupError):
    """No buffered image has this stamp; the message says which stamps there are and what to do."""


class StampNotYet(StampNotFound):
    """The stamp is newer than all buffered images: its image may still be on its way."""


@dataclass(frozen=True, slots=True)
class Received(Generic[M]):
    """An image as it came.

    Attributes:
        sequence: 1 for the first image, counting up.
        stamp: the image's stamp, nanoseconds.
        arrival: when it arrived, seconds of a steady clock.
        message: the undecoded message.
        size: bytes of its data.
    """

    sequence: int
    stamp: int
    arrival: float
    message: M
    size: int


class FrameBuffer(Generic[M]):
    """Images of the last `seconds` (by arrival), at most `max_bytes` of them; the newest is always kept.

    All methods may be called from any thread.
    """

    def __init__(self, seconds: float = 1.0, max_bytes: int = 512 * 2**20) -> None:
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._items: deque[Received[M]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._items)

    @property
    def size(self) -> int:
        """Bytes of image data in the buffer."""
        with self._lock:
            return self._bytes

    def push(self, item: Received[M]) -> bool:
        """Add the newest image; returns False if time went back (then everything older was thrown away)."""
        with self._lock:
            forward = not self._items or item.stamp >= self._items[-1].stamp
            if not forward:
                self._items.clear()
                self._bytes = 0
            self._items.append(item)
            self._bytes += item.size
            while len(self._items) > 1 and (
                self._items[0].arrival < item.arrival - self.seconds or self._bytes > self.max_bytes
            ):
                self._bytes -= self._items.popleft().size
            return forward

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._items.clear()
            self._bytes = 0

    def newest(self) -> Received[M] | None:
        """The image that came last, or None."""
        with self._lock:
            return self._items[-1] if self._items else None

    def after(self, sequence: int) -> list[Received[M]]:
        """The images that came after the one with this sequence number, oldest first."""
        with self._lock:
            return [item for item in self._items if item.sequence > sequence]

    def find(self, stamp: int) -> Received[M]:
        """The image with this stamp (nanoseconds), or the nearest within half a frame period.

        Raises:
            StampNotFound: there is none.
            StampNotYet: all images are older.
        """
        with self._lock:
            items = list(self._items)
        if not items:
            raise StampNotFound("no image is in the buffer")
        nearest = min(items, key=lambda item: abs(item.stamp - stamp))
        stamps = [item.stamp for item in items]
        steps = [b - a for a, b in itertools.pairwise(stamps) if b > a]
        tolerance = statistics.median(steps) / 2 if steps else DEFAULT_TOLERANCE * 1e9
        if abs(nearest.stamp - stamp) <= tolerance:
            return nearest
        span = f"the buffer holds {len(items)} images from {_seconds(stamps[0])} to {_seconds(stamps[-1])}"
        if stamp > stamps[-1]:
            raise StampNotYet(f"no image has the stamp {_seconds(stamp)} yet: {span}")
        if stamp < stamps[0]:
            raise StampNotFound(
                f"the image with the stamp {_seconds(stamp)} is too old: {span}; "
                f"raise buffer_seconds ({self.seconds:g}) or send the box sooner"
            )
        raise StampNotFound(f"no image has the stamp {_seconds(stamp)}: {span}")


def catch_up(count: int, step: Callable[[int], None], budget: float, clock: Callable[[], float]) -> int:
    """Visit as many of `count` buffered images as fit into `budget` seconds, evenly spread, and the last one always.

    Args:
        count: how many images there are.
        step: processes the image with this index.
        budget: seconds.
        clock: a steady clock, seconds.

    Returns:
        How many images were visited.
    """
    start, index, visited = clock(), -1, 0
    stride = 1
    while index < count - 1:
        index = min(index + stride, count - 1)
        step(index)
        visited += 1
        elapsed = clock() - start
        affordable = max(1, int((budget - elapsed) * visited / max(elapsed, 1e-9) + 1e-6))
        left = count - 1 - index
        stride = max(1, round(left / affordable))
    return visited


def _seconds(stamp: int) -> str:
    return f"{stamp // 10**9}.{stamp % 10**9:09d}"
