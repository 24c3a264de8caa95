"""A mailbox with one slot in which the newest item replaces one that nobody has taken yet."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the items: always ``received == processed + dropped + pending``.

    Attributes:
        received: items put in.
        processed: items that were taken and finished well.
        dropped: items that a newer one replaced, or that were taken and given up.
        pending: items waiting in the slot or being worked on (at most 2).
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    pending: int = 0


class Mailbox(Generic[T]):
    """One slot, newest wins. Any thread may `put`; one thread takes, and says how it ended with `finish`.

    Args:
        condition: notified at every `put`; share one to wait for the mailbox and for something else at once.
    """

    def __init__(self, condition: threading.Condition | None = None) -> None:
        self._condition = condition or threading.Condition()
        self._slot: T | None = None
        self._working = False
        self._counts = Counts()

    def put(self, item: T) -> None:
        """Leave `item` (not None) for the taker; an item that still waits is dropped."""
        with self._condition:
            replaced = self._slot is not None
            self._slot = item
            self._count(received=1, dropped=int(replaced), pending=int(not replaced))
            self._condition.notify_all()

    def take(self) -> T | None:
        """The waiting item, or None. The taker must call `finish` before it takes the next one."""
        with self._condition:
            if self._working:
                raise RuntimeError("the item that was taken before is not finished")
            item, self._slot = self._slot, None
            self._working = item is not None
            return item

    def finish(self, processed: bool) -> Counts:
        """Count the taken item as processed or dropped; returns the new counts."""
        with self._condition:
            if not self._working:
                raise RuntimeError("no item was taken")
            self._working = False
            self._count(processed=int(processed), dropped=int(not processed), pending=-1)
            return self._counts

    def clear(self) -> None:
        """Drop the waiting item."""
        with self._condition:
            if self._slot is not None:
                self._slot = None
                self._count(dropped=1, pending=-1)

    def reset(self) -> None:
        """Start counting anew; an item that waits or is being worked on counts as received."""
        with self._condition:
            pending = self._counts.pending
            self._counts = Counts(received=pending, pending=pending)

    @property
    def waiting(self) -> bool:
        """Whether an item waits to be taken."""
        with self._condition:
            return self._slot is not None

    @property
    def counts(self) -> Counts:
        """The counts at one moment."""
        with self._condition:
            return self._counts

    def _count(self, received: int = 0, processed: int = 0, dropped: int = 0, pending: int = 0) -> None:
        c = self._counts
        self._counts = Counts(c.received + received, c.processed + processed, c.dropped + dropped, c.pending + pending)
