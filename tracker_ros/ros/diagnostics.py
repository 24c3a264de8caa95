"""How the node is doing: rates, latencies, errors and memory, and the verdict that goes with them. No ROS in here."""

from __future__ import annotations

import enum
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracker_ros.ros.mailbox import Counts
from tracker_ros.trackers.base import TrackState

#: Rates, percentiles and errors are those of the last so many seconds.
WINDOW = 5.0
#: An image stream that is silent for so many seconds is reported, unless the node's parameter says otherwise.
SILENCE = 2.0
#: Seconds without a result while images arrive, after which the tracker is slow, and stuck.
SLOW, STUCK = 2.0, 10.0
#: Pictures or stamps that have been the same for so many seconds, on at least so many images, are reported.
SAME_SECONDS, SAME_IMAGES = 2.0, 3
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
        waiting: since the first image that came after the last result; 0 while there is none.
        same_picture, same_stamp: how long the pictures, or the stamps, have been one and the same.
        blank: share of the processed images that show nothing at all, in ``[0, 1]``.
        latency_p50, latency_p99: from stamp to result; NaN while there is none.
        decode_errors, tracker_errors: images that could not be decoded, frames that the tracker failed on.
        last_error: reason of the newest of them.
        replaced: kind of request -> how many gave way to a newer one.
    """

    input_rate: float
    processed_rate: float
    silence: float
    latency_p50: float
    latency_p99: float
    decode_errors: int
    tracker_errors: int
    last_error: str
    waiting: float = 0.0
    same_picture: float = 0.0
    same_stamp: float = 0.0
    blank: float = 0.0
    replaced: dict[str, int] = field(default_factory=dict)


class Monitor:
    """Collects events from any thread. Times are seconds of one steady clock."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._start = now
        self._last_arrival: float | None = None
        self._unanswered: float | None = None
        self._arrivals: deque[float] = deque()
        self._results: deque[tuple[float, float, bool]] = deque()
        self._errors: deque[tuple[float, bool]] = deque()
        self._replaced: deque[tuple[float, str]] = deque()
        self._last_error = ""
        self._picture = _Run()
        self._stamp = _Run()

    def arrived(self, now: float, stamp: int = 0, same_picture: bool = False) -> None:
        """An image came, with this stamp (nanoseconds), which shows the very same as the one before or not."""
        with self._lock:
            same_stamp = self._last_arrival is not None and stamp == self._stamp.value
            self._last_arrival = now
            if self._unanswered is None:
                self._unanswered = now
            self._arrivals.append(now)
            _forget(self._arrivals, now - WINDOW)
            self._picture.add(now, same_picture)
            self._stamp.add(now, same_stamp)
            self._stamp.value = stamp

    def processed(self, now: float, latency: float, blank: bool = False) -> None:
        """An image was processed, `latency` seconds after its stamp (NaN: unknown); `blank`: it shows nothing."""
        with self._lock:
            self._unanswered = None
            self._results.append((now, latency, blank))
            while self._results[0][0] < now - WINDOW:
                self._results.popleft()

    def failed(self, now: float, reason: str, decoding: bool) -> None:
        """An image could not be decoded (`decoding`), which says nothing of the target; or the tracker failed on it."""
        with self._lock:
            if not decoding:
                self._unanswered = None
            self._errors.append((now, decoding))
            self._last_error = reason
            while self._errors[0][0] < now - WINDOW:
                self._errors.popleft()

    def replaced(self, now: float, kind: str) -> int:
        """A request gave way to a newer one; returns how many did within the window."""
        with self._lock:
            self._replaced.append((now, kind))
            while self._replaced[0][0] < now - WINDOW:
                self._replaced.popleft()
            return sum(kind == other for _, other in self._replaced)

    def resumed(self) -> None:
        """Images that came until now are not waited for."""
        with self._lock:
            self._unanswered = None

    def silence(self, now: float) -> float:
        """Seconds since the last image, or since the start if none came."""
        with self._lock:
            return now - (self._start if self._last_arrival is None else self._last_arrival)

    def waiting(self, now: float) -> float:
        """Seconds since the first image that came after the last result; 0 while there is none."""
        with self._lock:
            return 0.0 if self._unanswered is None else now - self._unanswered

    def sameness(self) -> tuple[float, float]:
        """How long the pictures, and the stamps, have been one and the same, in seconds."""
        with self._lock:
            return self._picture.seconds, self._stamp.seconds

    def health(self, now: float) -> Health:
        """The figures of the last `WINDOW` seconds."""
        silence, waiting = self.silence(now), self.waiting(now)
        with self._lock:
            span = max(min(WINDOW, now - self._start), 1e-3)
            since = now - span
            results = [(latency, blank) for at, latency, blank in self._results if at >= since]
            latencies = sorted(value for value, _ in results if not math.isnan(value))
            errors = [decoding for at, decoding in self._errors if at >= since]
            return Health(
                input_rate=sum(at >= since for at in self._arrivals) / span,
                processed_rate=len(results) / span,
                silence=silence,
                waiting=waiting,
                same_picture=self._picture.seconds,
                same_stamp=self._stamp.seconds,
                blank=sum(blank for _, blank in results) / max(len(results), 1),
                latency_p50=percentile(latencies, 0.5),
                latency_p99=percentile(latencies, 0.99),
                decode_errors=sum(errors),
                tracker_errors=len(errors) - sum(errors),
                last_error=self._last_error if errors else "",
                replaced=dict(Counter(kind for at, kind in self._replaced if at >= since)),
            )


class _Run:
    """How long the same thing has come again and again."""

    def __init__(self) -> None:
        self.value = 0
        self._since = self._last = 0.0
        self._count = 0

    def add(self, now: float, same: bool) -> None:
        if not same:
            self._since, self._count = now, 0
        self._last = now
        self._count += 1

    @property
    def seconds(self) -> float:
        return self._last - self._since if self._count >= SAME_IMAGES else 0.0


def _forget(times: deque[float], before: float) -> None:
    while times and times[0] < before:
        times.popleft()


def percentile(values: list[float], q: float) -> float:
    """Nearest-rank percentile of sorted `values`, `q` in ``[0, 1]``; NaN where there are none."""
    return values[min(len(values) - 1, math.ceil(q * len(values)) - 1 if q > 0 else 0)] if values else math.nan


def assess(
    health: Health,
    states: Mapping[str, TrackState],
    topic: str,
    paused: bool,
    *,
    silence: float = SILENCE,
    doing: str = "",
    loading: str = "",
    remarks: Sequence[str] = (),
) -> tuple[Level, str]:
    """The verdict on an active node: everything that is wrong, the worst first, in words.

    Args:
        health: see `Health`.
        states: of the targets, by their names.
        topic: of the images.
        paused: whether the node was told to take no images.
        silence: seconds without an image that are reported.
        doing: what the tracker is at.
        loading: name of the tracker that is being loaded beside it.
        remarks: what else is to be warned of.
    """
    errors, warnings = [], list(remarks)
    if health.decode_errors:
        errors.append(f"{health.decode_errors} images in {WINDOW:g} s can't be decoded: {health.last_error}")
    if health.tracker_errors:
        errors.append(f"the tracker failed on {health.tracker_errors} images in {WINDOW:g} s: {health.last_error}")
    late = "" if paused or health.decode_errors else lateness(health.waiting, doing)
    if late and health.waiting > STUCK:
        errors.append(late)
    elif late:
        warnings.append(late)
    if health.silence > silence:
        warnings.append(f"no image on {topic} for {health.silence:.1f} s")
    else:
        warnings += sameness(health.same_picture, health.same_stamp)
    if not paused and health.blank > 0.1:
        warnings.append(f"{health.blank:.0%} of the images are blank (one even colour)")
    lost = [name for name, state in states.items() if state is TrackState.LOST]
    if not paused and lost:
        warnings.append("the target is LOST" if len(states) == 1 else f"LOST: {', '.join(lost)}")
    for kind, count in health.replaced.items():
        warnings.append(f"{kind} comes faster than it can be carried out: {count} replaced in {WINDOW:g} s")
    if not paused and abs(health.latency_p50) > CLOCK_MISMATCH:
        warnings.append(
            f"image stamps are {health.latency_p50:.0f} s away from the node's clock; with recorded data or a "
            "simulation, set use_sim_time and publish /clock"
        )
    if errors or warnings:
        return Level.ERROR if errors else Level.WARN, "; ".join(errors + warnings)
    text = "paused" if paused else summary(states) or "no target"
    return Level.OK, f"{text}; loading {loading}" if loading else text


def summary(states: Mapping[str, TrackState]) -> str:
    """The targets' states in a few words; empty where there is none."""
    if len(states) == 1:
        return next(iter(states.values())).name
    return ", ".join(f"{name} {state.name}" for name, state in states.items())


def lateness(waiting: float, doing: str) -> str:
    """What to say when images have been waiting for a result for so many seconds; empty while that is in order."""
    if waiting <= SLOW:
        return ""
    busy = f" (the tracker is busy with: {doing})" if doing else ""
    return f"no result for {waiting:.1f} s while images arrive{busy}"


def sameness(picture: float, stamp: float) -> list[str]:
    """What to say of a camera that has sent the same picture, or stamp, for so many seconds."""
    said = []
    if picture > SAME_SECONDS:
        said.append(f"the pictures have been identical for {picture:.1f} s: is the camera frozen?")
    if stamp > SAME_SECONDS:
        said.append(f"the stamp of the images has not changed for {stamp:.1f} s")
    return said


def values(health: Health, counts: Counts, state: str, tracker: str, device: str) -> dict[str, str]:
    """The key-value pairs of a diagnostic status, numbers with units in the key."""
    return {
        "state": state,
        "tracker": tracker,
        "device": device,
        "input rate (Hz)": f"{health.input_rate:.1f}",
        "processed rate (Hz)": f"{health.processed_rate:.1f}",
        "frames received": str(counts.received),
        "frames processed": str(counts.processed),
        "frames dropped": str(counts.dropped),
        "latency p50 (ms)": _milliseconds(health.latency_p50),
        "latency p99 (ms)": _milliseconds(health.latency_p99),
        "waiting for a result (s)": f"{health.waiting:.1f}",
        "blank images (%)": f"{100 * health.blank:.0f}",
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
