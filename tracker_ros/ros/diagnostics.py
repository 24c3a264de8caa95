"""How the node is doing: rates, latencies, errors and memory, and the verdict that goes with them. No ROS in here."""

from __future__ import annotations

import enum
import math
import os
import sys
import threading
from collections import deque
from dataclasses import dataclass

from tracker_ros.ros.mailbox import Counts
from tracker_ros.trackers.base import TrackState

#: Rates, percentiles and errors are those of the last so many seconds.
WINDOW = 5.0
#: An image stream that is silent for so many seconds is reported.
SILENCE = 2.0
#: Latencies above this, or below its negative, mean that stamps and the node's clock do not belong together.
CLOCK_MISMATCH = 60.0


class Level(enum.IntEnum):
    """Severity, with the values of ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Health:
    """What `Monitor` measured over the last `WINDOW` seconds. Times are seconds, rates Hz.

    Attributes:
        input_rate, processed_rate: images that came, and that were processed.
        silence: since the last image, or since the start if none came.
        latency_p50, latency_p99: from stamp to result; NaN while there is none.
        decode_errors, tracker_errors: images that could not be decoded, frames that the tracker failed on.
        last_error: reason of the newest of them.
    """

    input_rate: float
    processed_rate: float
    silence: float
    latency_p50: float
    latency_p99: float
    decode_errors: int
    tracker_errors: int
    last_error: str


class Monitor:
    """Collects events from any thread. Times are seconds of one steady clock."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._start = now
        self._last_arrival: float | None = None
        self._arrivals: deque[float] = deque()
        self._results: deque[tuple[float, float]] = deque()
        self._errors: deque[tuple[float, bool]] = deque()
        self._last_error = ""

    def arrived(self, now: float) -> None:
        """An image came."""
        with self._lock:
            self._last_arrival = now
            self._arrivals.append(now)
            _forget(self._arrivals, now - WINDOW)

    def processed(self, now: float, latency: float) -> None:
        """An image was processed, `latency` seconds after its stamp (NaN: unknown)."""
        with self._lock:
            self._results.append((now, latency))
            while self._results[0][0] < now - WINDOW:
                self._results.popleft()

    def failed(self, now: float, reason: str, decoding: bool) -> None:
        """An image could not be decoded (`decoding`), or the tracker failed on it."""
        with self._lock:
            self._errors.append((now, decoding))
            self._last_error = reason
            while self._errors[0][0] < now - WINDOW:
                self._errors.popleft()

    def silence(self, now: float) -> float:
        """Seconds since the last image, or since the start if none came."""
        with self._lock:
            return now - (self._start if self._last_arrival is None else self._last_arrival)

    def health(self, now: float) -> Health:
        """The figures of the last `WINDOW` seconds."""
        silence = self.silence(now)
        with self._lock:
            span = max(min(WINDOW, now - self._start), 1e-3)
            since = now - span
            results = [latency for at, latency in self._results if at >= since]
            latencies = sorted(value for value in results if not math.isnan(value))
            errors = [decoding for at, decoding in self._errors if at >= since]
            return Health(
                input_rate=sum(at >= since for at in self._arrivals) / span,
                processed_rate=len(results) / span,
                silence=silence,
                latency_p50=percentile(latencies, 0.5),
                latency_p99=percentile(latencies, 0.99),
                decode_errors=sum(errors),
                tracker_errors=len(errors) - sum(errors),
                last_error=self._last_error if errors else "",
            )


def _forget(times: deque[float], before: float) -> None:
    while times and times[0] < before:
        times.popleft()


def percentile(values: list[float], q: float) -> float:
    """Nearest-rank percentile of sorted `values`, `q` in ``[0, 1]``; NaN where there are none."""
    return values[min(len(values) - 1, math.ceil(q * len(values)) - 1 if q > 0 else 0)] if values else math.nan


def assess(health: Health, state: TrackState, topic: str, paused: bool) -> tuple[Level, str]:
    """The verdict on an active node: the worst thing first, in words."""
    if health.decode_errors:
        return Level.ERROR, f"{health.decode_errors} images in {WINDOW:g} s can't be decoded: {health.last_error}"
    if health.tracker_errors:
        return Level.ERROR, f"the tracker failed on {health.tracker_errors} images in {WINDOW:g} s: {health.last_error}"
    if health.silence > SILENCE:
        return Level.WARN, f"no image on {topic} for {health.silence:.1f} s"
    if paused:
        return Level.OK, "paused"
    if state is TrackState.LOST:
        return Level.WARN, "the target is LOST"
    if abs(health.latency_p50) > CLOCK_MISMATCH:
        return Level.WARN, (
            f"image stamps are {health.latency_p50:.0f} s away from the node's clock; with recorded data or a "
            "simulation, set use_sim_time and publish /clock"
        )
    return Level.OK, "no target" if state is TrackState.IDLE else state.name


def values(health: Health, counts: Counts, state: TrackState, tracker: str, device: str) -> dict[str, str]:
    """The key-value pairs of a diagnostic status, numbers with units in the key."""
    return {
        "state": state.name,
        "tracker": tracker,
        "device": device,
        "input rate (Hz)": f"{health.input_rate:.1f}",
        "processed rate (Hz)": f"{health.processed_rate:.1f}",
        "frames received": str(counts.received),
        "frames processed": str(counts.processed),
        "frames dropped": str(counts.dropped),
        "latency p50 (ms)": _milliseconds(health.latency_p50),
        "latency p99 (ms)": _milliseconds(health.latency_p99),
        "decode errors": str(health.decode_errors),
        "tracker errors": str(health.tracker_errors),
        "device memory (MiB)": f"{device_memory(device) / 2**20:.0f}",
        "resident memory (MiB)": f"{resident_memory() / 2**20:.0f}",
    }


def _milliseconds(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:.1f}"


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def device_memory(device: str) -> int:
    """Bytes that torch has allocated on `device`; 0 on the CPU."""
    torch = sys.modules.get("torch")  # Never load torch just to report that it holds nothing.
    if torch is None or not device.startswith("cuda"):
        return 0
    return int(torch.cuda.memory_allocated(device))
