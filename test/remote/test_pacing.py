"""Pictures over links of all kinds: none queues up, and size and quality follow what the link carries."""

from __future__ import annotations

import math

import pytest

from tracker_ros.remote.page.pacing import GONE, LEVELS, WINDOW, Level, Pacer


def picture_bytes(level: Level) -> int:
    """About what a JPEG of an aerial image takes."""
    return int(level.side * level.side * 0.75 * (0.04 + 0.0016 * level.quality))


class Link:
    """Carries `bandwidth` bytes a second, one message after the other, and takes `delay` seconds there and back."""

    def __init__(self, bandwidth: float, delay: float) -> None:
        self.bandwidth, self.delay = bandwidth, delay
        self.pacer = Pacer(15.0)
        self.now = self.free = 0.0
        self.ages: list[float] = []
        self.way: list[tuple[float, int]] = []
        self.number = 0
        self.send(500)

    def send(self, size: int) -> None:
        self.number += 1
        self.pacer.sent(self.number, self.now)
        self.free = max(self.free, self.now) + size / self.bandwidth
        self.way.append((self.free + self.delay, self.number))
        self.ages.append(self.free + self.delay / 2 - self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            while self.way and self.way[0][0] <= self.now:
                self.pacer.seen(self.way.pop(0)[1], self.now)
            if self.pacer.wait(self.now) == 0:
                self.send(picture_bytes(self.pacer.level))
            assert len(self.way) <= WINDOW
            self.now += 0.002


def test_a_good_link_gets_the_best_pictures_at_the_full_rate():
    link = Link(bandwidth=1e8, delay=0.004)
    link.run(10)
    assert link.pacer.level == LEVELS[-1]
    before = link.number
    link.run(10)
    assert 140 <= link.number - before <= 151


@pytest.mark.parametrize("bandwidth", [2e4, 5e4, 1e5, 3e5, 1e6])
def test_a_slow_link_gets_small_pictures_that_are_not_old(bandwidth: float):
    link = Link(bandwidth, delay=0.05)
    link.run(30)
    count = len(link.ages)
    link.run(60)
    ages = sorted(link.ages[count:])
    # The smallest picture takes as long as it takes; two of them are on the way.
    least = 2 * picture_bytes(LEVELS[0]) / bandwidth
    assert ages[int(0.9 * len(ages))] < max(0.45, least + 0.1)
    assert len(ages) / 60 > 0.8 * min(15, bandwidth / picture_bytes(LEVELS[0])) or link.pacer.level != LEVELS[0]


def test_a_link_that_is_only_far_away_keeps_its_quality():
    link = Link(bandwidth=1e7, delay=0.6)
    link.run(60)
    assert link.pacer.level.side >= 640


def test_follows_a_link_that_becomes_worse_and_better():
    link = Link(bandwidth=1e7, delay=0.02)
    link.run(10)
    assert link.pacer.level == LEVELS[-1]
    link.bandwidth = 3e4
    link.run(20)
    assert link.pacer.level in LEVELS[:2]
    link.bandwidth = 1e7
    link.run(120)
    assert link.pacer.level == LEVELS[-1]


def test_waits_for_acknowledgements_and_gives_up_on_a_browser_that_sends_none():
    pacer = Pacer(10.0)
    assert pacer.wait(0.0) == 0
    pacer.sent(1, 0.0)
    assert pacer.wait(0.05) == pytest.approx(0.05)
    pacer.sent(2, 0.1)
    assert pacer.wait(0.3) == math.inf
    assert not pacer.gone(0.0 + GONE)
    assert pacer.gone(0.1 + GONE)
    pacer.seen(2, 1.0)
    assert pacer.wait(1.0) == 0
    assert not pacer.gone(1000.0)  # Nothing is on the way: a camera that is silent is no reason.


def test_ignores_acknowledgements_of_what_was_not_sent():
    pacer = Pacer(10.0)
    pacer.sent(1, 0.0)
    pacer.sent(2, 0.1)
    for number in (0, 3, 10**15):
        pacer.seen(number, 0.2)
    assert pacer.wait(1.0) == math.inf
    pacer.seen(2, 0.3)
    pacer.seen(1, 0.3)  # Late, and already done with.
    assert pacer.wait(0.3) == 0
