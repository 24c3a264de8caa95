from __future__ import annotations

import time

import pytest

from tracker_ros.trackers.profile import NULL_TIMER, StageTimer


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the timer reads, in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_stages_add_up_within_a_frame(clock: list[float]) -> None:
    timer = StageTimer()
    for took in (0.010, 0.005):
        with timer.stage("crop"):
            clock[0] += took
    with timer.stage("refine"):
        clock[0] += 0.020
    assert timer.end_frame() == pytest.approx({"crop": 15, "refine": 20})
    assert timer.end_frame() == {}
    assert len(timer.frames) == 2


def test_an_inner_stage_is_taken_out_of_the_outer_one(clock: list[float]) -> None:
    timer = StageTimer()
    with timer.stage("update"):
        clock[0] += 0.001
        with timer.stage("backbone"):
            clock[0] += 0.010
        clock[0] += 0.002
    assert timer.end_frame() == pytest.approx({"update": 3, "backbone": 10})


def test_an_error_closes_its_stage(clock: list[float]) -> None:
    timer = StageTimer()

    def fail() -> None:
        with timer.stage("crop"):
            clock[0] += 0.004
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with timer.stage("refine"):
        clock[0] += 0.001
    assert timer.end_frame() == pytest.approx({"crop": 4, "refine": 1})


def test_the_device_is_waited_for_at_both_ends(clock: list[float]) -> None:
    def wait() -> None:
        clock[0] += 0.1

    timer = StageTimer(wait)
    with timer.stage("backbone"):
        clock[0] += 0.01
    assert timer.end_frame() == pytest.approx({"backbone": 110})


def test_the_null_timer_lets_everything_pass() -> None:
    with NULL_TIMER.stage("a"), NULL_TIMER.stage("b"):
        pass
    with pytest.raises(ValueError, match="through"), NULL_TIMER.stage("a"):
        raise ValueError("through")
