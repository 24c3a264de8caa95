"""How much to send to one browser: what it has not acknowledged is never followed by more than one picture.

So nothing queues up on the way: the rate becomes what the link carries, and size and quality follow the time that a
picture takes beyond the link's own delay. Times are seconds of any steady clock, given from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """Longest side in pixels, and JPEG quality."""

    side: int
    quality: int


#: From what a bad link carries to what a good one may.
LEVELS = (Level(240, 35), Level(320, 45), Level(480, 55), Level(640, 65), Level(960, 75), Level(1280, 82))
#: Pictures on the way at a time: one to be drawn while the next one travels.
WINDOW = 2
#: Seconds, beyond the link's own delay, after which a picture was too large, and within which it could be larger.
SLOW, FAST = 0.25, 0.08
#: Quick pictures in a row after which a larger one is tried, and the most of them after tries that failed.
PATIENCE, MOST_PATIENCE = 10, 320
#: Seconds without any acknowledgement after which the browser is taken for gone.
GONE = 15.0


class Pacer:
    """Decides when the next picture goes to a browser, and how large.

    Args:
        rate: most pictures a second.
    """

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._index = 3
        self._sent: dict[int, tuple[float, int]] = {}  # number -> when, and at which level
        self._last = -math.inf
        self._heard = -math.inf
        self._shortest = math.inf  # s: the link's own delay, known from the first message, which is small
        self._quick = 0
        self._patience = PATIENCE
        self._trying = False

    @property
    def level(self) -> Level:
        """What the next picture should be like."""
        return LEVELS[self._index]

    def wait(self, now: float) -> float:
        """Seconds until the next picture may go; infinite while the last ones have not been acknowledged."""
        return math.inf if len(self._sent) >= WINDOW else max(0.0, self._last + self._interval - now)

    def gone(self, now: float) -> bool:
        """Whether pictures have been on the way for so long that nobody can be there."""
        return bool(self._sent) and now - max(self._heard, min(when for when, _ in self._sent.values())) > GONE

    def sent(self, number: int, now: float) -> None:
        """Picture `number` goes now."""
        self._sent[number] = now, self._index
        self._last = now

    def seen(self, number: int, now: float) -> None:
        """The browser has drawn picture `number`, so those before it are done with; unknown numbers are ignored."""
        if number not in self._sent:
            return
        self._heard = now
        when, index = self._sent[number]
        self._sent = {n: sent for n, sent in self._sent.items() if n > number}
        self._shortest = min(self._shortest, now - when)
        if index != self._index:
            return  # It says nothing of the level that holds now.
        excess = now - when - self._shortest
        if excess > SLOW:
            if self._trying:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            # A level takes about half the time of the one above.
            self._change(-math.ceil(math.log2(excess / SLOW)))
        elif excess < FAST:
            self._quick += 1
            if self._quick >= self._patience:
                self._change(1)
        else:
            self._quick = 0

    def _change(self, step: int) -> None:
        index = min(max(self._index + step, 0), len(LEVELS) - 1)
        self._trying = index > self._index
        self._index, self._quick = index, 0
