"""The buffer of recent images, and catching up from one of them."""

import itertools

import pytest

from tracker_ros.ros.frame_buffer import FrameBuffer, Received, StampNotFound, StampNotYet, catch_up

PERIOD = 33_000_000


def image(sequence: int, stamp: int | None = None, size: int = 10) -> Received:
    stamp = sequence * PERIOD if stamp is None else stamp
    return Received(sequence, stamp, sequence * PERIOD / 1e9, f"image {sequence}", size)


def filled(count: int, **arguments) -> FrameBuffer:
    buffer = FrameBuffer(**arguments)
    for sequence in range(1, count + 1):
        assert buffer.push(image(sequence))
    return buffer


def test_keeps_the_last_second():
    buffer = filled(100, seconds=1.0)
    assert len(buffer) == 31
    assert buffer.newest().sequence == 100
    assert [item.sequence for item in buffer.after(97)] == [98, 99, 100]


def test_is_bounded_by_bytes_too_but_always_keeps_the_newest():
    buffer = filled(30, seconds=10.0, max_bytes=55)
    assert len(buffer) == 5
    assert buffer.size == 50
    buffer.push(image(31, size=1000))
    assert [item.sequence for item in buffer.after(0)] == [31]


def test_no_seconds_keep_the_newest_alone():
    assert len(filled(5, seconds=0.0)) == 1


def test_finds_exact_and_nearest_stamp():
    buffer = filled(20)
    assert buffer.find(10 * PERIOD).sequence == 10
    assert buffer.find(10 * PERIOD + PERIOD // 3).sequence == 10
    assert buffer.find(10 * PERIOD - PERIOD // 3).sequence == 10
    assert buffer.find(20 * PERIOD + PERIOD // 3).sequence == 20


def test_says_why_there_is_no_such_stamp():
    buffer = filled(100)
    with pytest.raises(StampNotFound, match=r"too old.*31 images from 2\.310000000 to 3\.300000000.*buffer_seconds"):
        buffer.find(PERIOD)
    with pytest.raises(StampNotYet, match="yet"):
        buffer.find(200 * PERIOD)
    with pytest.raises(StampNotFound, match="no image is in the buffer"):
        FrameBuffer().find(1)
    gap = filled(10)
    gap.push(image(14))
    with pytest.raises(StampNotFound, match="no image has the stamp"):
        gap.find(12 * PERIOD)


def test_time_that_goes_back_starts_anew():
    buffer = filled(10)
    assert not buffer.push(image(11, stamp=PERIOD))
    assert [item.sequence for item in buffer.after(0)] == [11]
    assert buffer.push(image(12, stamp=2 * PERIOD))
    buffer.clear()
    assert (len(buffer), buffer.size, buffer.newest()) == (0, 0, None)


class Clock:
    def __init__(self, seconds_a_step: float) -> None:
        self.now = 100.0
        self.step = seconds_a_step
        self.visited: list[int] = []

    def __call__(self) -> float:
        return self.now

    def visit(self, index: int) -> None:
        self.visited.append(index)
        self.now += self.step


def test_a_fast_tracker_visits_every_image():
    clock = Clock(0.001)
    assert catch_up(30, clock.visit, 0.5, clock) == 30
    assert clock.visited == list(range(30))


@pytest.mark.parametrize("seconds_a_step", [0.03, 0.06, 0.11, 0.2])
def test_a_slow_tracker_skips_evenly_and_ends_with_the_newest(seconds_a_step):
    clock = Clock(seconds_a_step)
    catch_up(30, clock.visit, 0.5, clock)
    assert clock.visited[-1] == 29
    assert clock.visited == sorted(set(clock.visited))
    assert clock.now - 100 <= 0.5 + seconds_a_step
    strides = [b - a for a, b in itertools.pairwise(clock.visited[1:])]
    assert not strides or max(strides) - min(strides) <= 1


def test_a_very_slow_tracker_visits_the_first_and_the_last():
    clock = Clock(3.0)
    assert catch_up(30, clock.visit, 0.5, clock) == 2
    assert clock.visited == [0, 29]
    assert catch_up(0, clock.visit, 0.5, clock) == 0
