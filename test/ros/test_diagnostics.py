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
    fields = dict.fromkeys(Health.__dataclass_fields__, 0) | {"latency_p50": 0.02, "last_error": ""}
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
    ],
)
def test_verdicts(health, state, paused, level, words):
    got, text = assess(health, state, "/cam", paused)
    assert got is level
    assert re.search(words, text)


def test_values_are_text_with_units():
    out = values(healthy(latency_p99=math.nan), Counts(5, 3, 1, 1), TrackState.LOST, "kcf", "cpu")
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
