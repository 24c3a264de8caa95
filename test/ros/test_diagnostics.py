"""Rates, percentiles and the verdict that goes with them."""

import math
import re

import pytest

from tracker_ros.ros.diagnostics import Health, Level, Monitor, assess, percentile, resident_memory, values
from tracker_ros.ros.mailbox import Counts
from tracker_ros.trackers.base import TrackState


def test_rates_and_latencies_of_a_steady_stream():
    monitor = Monitor(0.0)
    for k in range(300):
        now = k / 30
        monitor.arrived(now)
        if k % 3 == 0:
            monitor.processed(now, 0.01 if k % 30 else 0.2)
    health = monitor.health(10.0)
    assert health.input_rate == pytest.approx(30, abs=0.5)
    assert health.processed_rate == pytest.approx(10, abs=0.5)
    assert health.latency_p50 == 0.01
    assert health.latency_p99 == 0.2
    assert health.silence == pytest.approx(10 - 299 / 30)


def test_what_is_old_is_forgotten():
    monitor = Monitor(0.0)
    monitor.arrived(1.0)
    monitor.processed(1.0, 0.1)
    monitor.failed(1.0, "cut short", decoding=True)
    monitor.failed(1.5, "out of memory", decoding=False)
    health = monitor.health(2.0)
    assert (health.decode_errors, health.tracker_errors, health.last_error) == (1, 1, "out of memory")
    health = monitor.health(20.0)
    assert (health.input_rate, health.processed_rate, health.decode_errors, health.tracker_errors) == (0, 0, 0, 0)
    assert math.isnan(health.latency_p50)
    assert health.last_error == ""
    assert health.silence == 19


def test_rate_is_right_from_the_start_and_without_stamps():
    monitor = Monitor(100.0)
    for k in range(10):
        monitor.arrived(100 + k / 10)
        monitor.processed(100 + k / 10, math.nan)
    health = monitor.health(101.0)
    assert health.input_rate == pytest.approx(10)
    assert health.processed_rate == pytest.approx(10)
    assert math.isnan(health.latency_p99)


def test_percentile_is_nearest_rank():
    data = [float(v) for v in range(1, 101)]
    assert [percentile(data, q) for q in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.5) == 7
    assert math.isnan(percentile([], 0.5))


def healthy(**changes) -> Health:
    fields = dict.fromkeys(Health.__dataclass_fields__, 0) | {"latency_p50": 0.02, "last_error": "", "replaced": {}}
    return Health(**(fields | changes))


@pytest.mark.parametrize(
    ("health", "state", "paused", "level", "words"),
    [
        (healthy(), TrackState.TRACKING, False, Level.OK, "TRACKING"),
        (healthy(), TrackState.UNCERTAIN, False, Level.OK, "UNCERTAIN"),
        (healthy(), TrackState.IDLE, False, Level.OK, "no target"),
        (healthy(), TrackState.LOST, False, Level.WARN, "LOST"),
        (healthy(), TrackState.LOST, True, Level.OK, "paused"),
        (healthy(silence=3.0), TrackState.TRACKING, False, Level.WARN, "no image on /cam for 3.0 s"),
        (healthy(latency_p50=-9e8), TrackState.TRACKING, False, Level.WARN, "use_sim_time"),
        (healthy(latency_p50=math.nan), TrackState.TRACKING, False, Level.OK, "TRACKING"),
        (healthy(decode_errors=2, last_error="cut"), TrackState.LOST, False, Level.ERROR, "2 images.*cut"),
        (healthy(tracker_errors=1, last_error="oom"), TrackState.TRACKING, False, Level.ERROR, "failed on 1.*oom"),
        (healthy(waiting=1.9), TrackState.TRACKING, False, Level.OK, "TRACKING"),
        (healthy(waiting=2.1), TrackState.TRACKING, False, Level.WARN, "no result for 2.1 s while images arrive"),
        (healthy(waiting=11), TrackState.IDLE, False, Level.ERROR, "no result for 11.0 s"),
        (healthy(waiting=11), TrackState.TRACKING, True, Level.OK, "paused"),
        (healthy(waiting=11, silence=9.0), TrackState.TRACKING, False, Level.ERROR, "no result.*no image on /cam"),
        (healthy(same_picture=3.0), TrackState.TRACKING, False, Level.WARN, "identical for 3.0 s"),
        (
            healthy(same_picture=3.0, silence=3.0),
            TrackState.TRACKING,
            False,
            Level.WARN,
            "^no image on /cam for 3.0 s$",
        ),
        (healthy(same_stamp=3.0), TrackState.TRACKING, False, Level.WARN, "stamp of the images has not changed"),
        (healthy(blank=0.5), TrackState.TRACKING, False, Level.WARN, "50% of the images are blank"),
        (healthy(blank=0.05), TrackState.TRACKING, False, Level.OK, "TRACKING"),
        (
            healthy(replaced={"init_box": 7}),
            TrackState.TRACKING,
            False,
            Level.WARN,
            "init_box comes faster.*7 replaced",
        ),
    ],
)
def test_verdicts(health, state, paused, level, words):
    states = {} if state is TrackState.IDLE else {"car": state}
    got, text = assess(health, states, "/cam", paused)
    assert got is level
    assert re.search(words, text)


def test_the_wait_for_a_result_counts_from_the_first_image_that_has_none():
    monitor = Monitor(0.0)
    for k in range(10):
        monitor.arrived(1 + k)
    assert monitor.health(12.0).waiting == 11
    monitor.processed(12.0, 0.1)
    assert monitor.waiting(20.0) == 0
    monitor.arrived(21.0)
    monitor.failed(22.0, "oom", decoding=False)
    assert monitor.waiting(30.0) == 0, "a failure is an answer too"
    monitor.arrived(31.0)
    monitor.resumed()
    assert monitor.waiting(40.0) == 0


def test_pictures_and_stamps_that_stay_the_same():
    monitor = Monitor(0.0)
    for k in range(30):
        monitor.arrived(k / 10, stamp=k, same_picture=k > 10)
    assert monitor.sameness() == pytest.approx((1.9, 0.0))
    monitor.arrived(3.0, stamp=31, same_picture=False)
    assert monitor.sameness() == (0.0, 0.0)
    for k in range(31, 60):
        monitor.arrived(k / 10, stamp=31)
    assert monitor.sameness() == pytest.approx((0.0, 2.9))
    slow = Monitor(0.0)
    slow.arrived(0.0, stamp=5)
    slow.arrived(60.0, stamp=5)
    assert slow.sameness() == (0.0, 0.0), "two images a minute apart are too few to say so"


def test_replaced_requests_are_forgotten_too():
    monitor = Monitor(0.0)
    assert [monitor.replaced(k / 10, "init_box") for k in range(3)] == [1, 2, 3]
    monitor.replaced(0.5, "parameters")
    assert monitor.health(1.0).replaced == {"init_box": 3, "parameters": 1}
    assert monitor.health(9.0).replaced == {}


def test_values_are_text_with_units():
    out = values(healthy(latency_p99=math.nan), Counts(5, 3, 1, 1), "LOST", "kcf", "cpu")
    assert out["latency p50 (ms)"] == "20.0"
    assert out["latency p99 (ms)"] == ""
    assert (out["frames received"], out["frames processed"], out["frames dropped"]) == ("5", "3", "1")
    assert (out["state"], out["tracker"], out["device memory (MiB)"]) == ("LOST", "kcf", "0")
    assert float(out["resident memory (MiB)"]) > 10


def test_resident_memory_sees_what_was_allocated():
    before = resident_memory()
    block = bytearray(64 * 2**20)
    assert resident_memory() - before > 50 * 2**20
    assert len(block) == 64 * 2**20


def test_the_verdict_names_each_of_several_targets():
    states = {"car": TrackState.TRACKING, "bus": TrackState.UNCERTAIN}
    assert assess(healthy(), states, "/cam", False) == (Level.OK, "car TRACKING, bus UNCERTAIN")
    states["bus"] = TrackState.LOST
    assert assess(healthy(), states, "/cam", False) == (Level.WARN, "LOST: bus")
