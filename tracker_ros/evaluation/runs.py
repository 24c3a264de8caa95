"""Runs of trackers over sequences: one pass from the first frame's true box, or with new starts after failures.

One pass (OPE) is offline or against the clock. Offline, the tracker sees every frame and its answer counts on that
frame. Against the clock (`realtime`), frames come at the camera's rate: the tracker always takes the newest one and
skips those that it missed, and its answer counts from the frame that is current when it is ready (Li, Wang & Ramanan,
"Towards streaming perception", ECCV 2020).

With new starts (VOT), the tracker is started again on the true box some frames after each failure (Kristan et al., "A
novel performance evaluation methodology for single-target trackers", PAMI 2016).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation.metrics import Sizes, visible_overlaps
from tracker_ros.evaluation.process import set_seeds, set_threads, synchronize
from tracker_ros.evaluation.specs import TrackerSpec
from tracker_ros.geometry.boxes import Box, InvalidBox, validate_init_box
from tracker_ros.trackers.base import Estimate, Frame, Tracker, TrackState

Array = NDArray[np.float64]

PROTOCOLS = ("ope", "vot")
#: VOT: frames from a failure to the new start (Kristan et al., "The VOT2013 challenge results").
RESTART_AFTER = 5


@dataclass(frozen=True)
class Track:
    """What a tracker said of a sequence of N frames.

    Attributes:
        boxes: Nx4 (x, y, w, h in pixels); where it was started, the box that it was given; rows of NaN between a
            failure and the new start.
        scores: N values in ``[0, 1]``; NaN where there is no box.
        states: N values of `TrackState`; IDLE where there is no box.
        seconds: N processing times; NaN for frames that it did not look at. Where it was started, the initialisation.
        size: width and height of the images in pixels; Nx2 where it changes.
        starts: frames on which it was started.
        failures: frames on which it lost the target, by the VOT protocol.
        cues: the named numbers that the states were decided on, N values each (NaN where there is none).
        problems: what was wrong with frames that could not be read; the tracker did not see them.
    """

    boxes: Array
    scores: Array
    states: NDArray[np.int64]
    seconds: Array
    size: Sizes
    starts: tuple[int, ...] = (0,)
    failures: tuple[int, ...] = ()
    cues: dict[str, Array] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How trackers are run over a sequence.

    Attributes:
        name: ``ope``, one pass (`track_sequence`), or ``vot``, new starts after failures (`track_supervised`).
        realtime: frames a second that trackers have to keep up with; None: they may take their time.
        seed: of every random generator, set before each sequence.

    Raises:
        ValueError: no such protocol, a rate that is not above 0, or a rate with ``vot``.
    """

    name: str = "ope"
    realtime: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"there is no protocol '{self.name}' (there are: {', '.join(PROTOCOLS)})")
        if self.realtime is not None and not self.realtime > 0:
            raise ValueError(f"realtime is a frame rate above 0, got {self.realtime:g}")
        if self.realtime is not None and self.name != "ope":
            raise ValueError("realtime goes with the protocol 'ope' only")

    def run(
        self, tracker: Tracker[Any], sequence: seq.Sequence, on_frame: Callable[[], object] = lambda: None
    ) -> Track:
        """Run `tracker` over `sequence`; `on_frame` is called after each frame of it (for progress bars).

        Raises:
            InvalidSequence: the first box is none that a track can start on.
        """
        try:
            if self.name == "vot":
                return track_supervised(tracker, sequence, seed=self.seed, on_frame=on_frame)
            return track_sequence(tracker, sequence, realtime=self.realtime, seed=self.seed, on_frame=on_frame)
        except InvalidBox as error:
            raise seq.InvalidSequence(f"no track can start on sequence '{sequence.name}': {error}") from error


#: One pass, offline.
ONE_PASS = Protocol()


def track_sequence(
    tracker: Tracker[Any],
    sequence: seq.Sequence,
    *,
    realtime: float | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_frame: Callable[[], object] = lambda: None,
) -> Track:
    """Run `tracker` over `sequence` once. A frame that can't be read counts as one that the tracker skipped.

    Args:
        tracker: any tracker.
        sequence: the frames; the track starts on the first true box.
        realtime: frames a second of the camera that it has to keep up with; None: it may take its time.
        seed: of every random generator, set before the track starts.
        clock: seconds; the time between two readings is what the tracker took.
        on_frame: called after each frame of the sequence (for progress bars).
    """
    set_seeds(seed)
    count = len(sequence)
    first = sequence.frame(0)
    seconds = np.full(count, np.nan)
    said = _Said(count)

    begin = clock()
    tracker.initialize(first, sequence.first_box)
    synchronize(tracker)
    seconds[0] = clock() - begin
    said.saw(0, first)
    said.start(0, sequence.first_box)
    on_frame()

    now, done = float(seconds[0]), 0
    while True:
        index, now = (done + 1, 0.0) if realtime is None else _next_frame(now, done, realtime)
        for _ in range(done + 1, min(index, count)):
            on_frame()
        if index >= count:
            break
        done = index
        on_frame()
        frame = said.read(sequence, index)
        if frame is None:
            continue
        begin = clock()
        estimate = tracker.track(frame)
        seconds[index] = clock() - begin
        now += float(seconds[index])
        shown = index if realtime is None else max(index, math.ceil(now * realtime - 1e-9) - 1)
        if shown < count:
            said.take(shown, estimate)

    # Until the next answer is ready, the last one stands.
    latest = np.maximum.accumulate(np.where(np.isnan(said.boxes[:, 0]), 0, np.arange(count)))
    cues = {name: values[latest] for name, values in said.cues.items()}
    return Track(
        said.boxes[latest], said.scores[latest], said.states[latest], seconds, said.size, cues=cues,
        problems=tuple(said.problems),
    )  # fmt: skip


def track_supervised(
    tracker: Tracker[Any],
    sequence: seq.Sequence,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_frame: Callable[[], object] = lambda: None,
) -> Track:
    """Run `tracker` over `sequence`, starting it again after each failure.

    A failure is a frame in which its box and the true one do not overlap inside the image. The next start is
    `RESTART_AFTER` frames later, or on the first frame after that whose true box a track can start on. A frame without
    truth is no failure, nor is one that can't be read. Whether the tracker calls itself LOST plays no part.

    Args:
        tracker: any tracker.
        sequence: the frames and the truth.
        seed: of every random generator, set before the first start.
        clock: seconds; the time between two readings is what the tracker took.
        on_frame: called for each frame of the sequence, also those that are left out.
    """
    set_seeds(seed)
    count = len(sequence)
    seconds = np.full(count, np.nan)
    said = _Said(count)
    starts: list[int] = []
    failures: list[int] = []
    running, earliest = False, 0
    for index in range(count):
        on_frame()
        frame = said.read(sequence, index) if running or index >= earliest else None
        if frame is None:
            continue
        size = frame.shape[1], frame.shape[0]
        if running:
            begin = clock()
            estimate = tracker.track(frame)
            seconds[index] = clock() - begin
            said.take(index, estimate)
            if visible_overlaps(said.boxes[[index]], sequence.truth[[index]], size)[0] == 0:
                failures.append(index)
                running, earliest = False, index + RESTART_AFTER
        else:
            box = Box(*(float(v) for v in sequence.truth[index]))
            # The first box must do; if a later one does not, the next one may.
            if index == 0 or can_start(box, size):
                begin = clock()
                tracker.initialize(frame, box)
                synchronize(tracker)
                seconds[index] = clock() - begin
                said.start(index, box)
                starts.append(index)
                running = True
    return Track(
        said.boxes, said.scores, said.states, seconds, said.size, tuple(starts), tuple(failures), said.cues,
        tuple(said.problems),
    )  # fmt: skip


class _Said:
    """What a tracker says, frame by frame: the fields of a `Track`, NaN and IDLE where nothing was said."""

    def __init__(self, count: int) -> None:
        self.boxes = np.full((count, 4), np.nan)
        self.scores = np.full(count, np.nan)
        self.states = np.full(count, int(TrackState.IDLE), np.int64)
        self.cues: dict[str, Array] = {}
        self.problems: list[str] = []
        self._sizes = np.full((count, 2), np.nan)

    def read(self, sequence: seq.Sequence, index: int) -> Frame | None:
        """A frame of the sequence; None where it can't be read, but for the first, without which there is no track."""
        try:
            frame = sequence.frame(index)
        except seq.InvalidSequence as error:
            if index == 0:
                raise
            self.problems.append(str(error))
            return None
        self.saw(index, frame)
        return frame

    def saw(self, index: int, frame: Frame) -> None:
        self._sizes[index] = frame.shape[1], frame.shape[0]

    @property
    def size(self) -> Sizes:
        """`Track.size`: frames that nobody looked at have the size of the one before."""
        known = ~np.isnan(self._sizes[:, 0])
        if (self._sizes[known] == self._sizes[0]).all():
            return int(self._sizes[0, 0]), int(self._sizes[0, 1])
        return self._sizes[np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))]

    def start(self, index: int, box: Box) -> None:
        self.boxes[index], self.scores[index], self.states[index] = box, 1.0, int(TrackState.TRACKING)

    def take(self, index: int, estimate: Estimate) -> None:
        self.boxes[index], self.scores[index], self.states[index] = estimate.box, estimate.score, int(estimate.state)
        for name, value in estimate.cues.items():
            self.cues.setdefault(name, np.full(len(self.scores), np.nan))[index] = value


def can_start(box: Box, size: tuple[int, int]) -> bool:
    """Whether a track can start on `box` in an image of `size` (width, height)."""
    try:
        validate_init_box(box, *size)
    except InvalidBox:
        return False
    return True


def _next_frame(now: float, done: int, fps: float) -> tuple[int, float]:
    """The newest frame at time `now` if it is newer than `done`, else the next one and the time at which it comes."""
    newest = math.floor(now * fps + 1e-9)
    return (newest, now) if newest > done else (done + 1, (done + 1) / fps)


def run_all(
    specs: Sequence[TrackerSpec],
    sequences: Sequence[seq.Sequence],
    *,
    protocol: Protocol = ONE_PASS,
    out: Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    on_frames: Callable[[str, int], object] = lambda label, frames: None,
    on_problem: Callable[[str], object] | None = None,
) -> dict[str, dict[str, Track]]:
    """Run several trackers over the same sequences.

    Args:
        specs: the trackers.
        sequences: what they run over.
        protocol: how they run.
        out: folder for the results, ``<tracker>/<sequence>.json`` and ``.txt`` (boxes only); None: keep them in memory.
        resume: take the results that lie in `out` already, if they were made under the same conditions.
        jobs: number of processes; timings are only meaningful with one.
        on_frames: called with a tracker's label and a number of frames that were finished.
        on_problem: called with what went wrong: a frame that can't be read, or a tracker's failure on a sequence, whose
            track is missing then; None: the first failure is raised.

    Returns:
        Tracks by the tracker's label and the sequence's name.
    """
    told: set[str] = set()

    def tell(problem: str) -> None:
        if on_problem is not None and problem not in told:
            told.add(problem)
            on_problem(problem)

    found: dict[str, dict[str, Track]] = {spec.label: {} for spec in specs}
    todo: list[tuple[TrackerSpec, seq.Sequence]] = []
    for spec in specs:
        for sequence in sequences:
            track = _load(out, spec, sequence, protocol) if resume and out is not None else None
            if track is None:
                todo.append((spec, sequence))
            else:
                found[spec.label][sequence.name] = track
                on_frames(spec.label, len(sequence))
    for spec, sequence, result in _run(todo, protocol, jobs, on_frames):
        if isinstance(result, Exception):
            if on_problem is None:
                raise result
            tell(f"{spec.label} failed on sequence '{sequence.name}': {result} ({type(result).__name__})")
            continue
        found[spec.label][sequence.name] = result
        if out is not None:
            _save(out, spec, sequence, protocol, result)
    for tracks in found.values():
        for track in tracks.values():
            for problem in track.problems:
                tell(problem)
    return {label: {s.name: tracks[s.name] for s in sequences if s.name in tracks} for label, tracks in found.items()}


def _run(
    todo: Iterable[tuple[TrackerSpec, seq.Sequence]],
    protocol: Protocol,
    jobs: int,
    on_frames: Callable[[str, int], object],
) -> Iterator[tuple[TrackerSpec, seq.Sequence, Track | Exception]]:
    """The tracks, or what went wrong."""
    if jobs > 1:
        # Spawned, since a process with threads of torch or OpenCV must not be forked.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(_job, spec, sequence, protocol): (spec, sequence) for spec, sequence in todo}
            for future in as_completed(waiting):
                spec, sequence = waiting[future]
                on_frames(spec.label, len(sequence))
                yield spec, sequence, _outcome(future.result)
        return
    tracker, label = None, None
    for spec, sequence in todo:
        if tracker is None or label != spec.label:
            tracker, label = spec.create(), spec.label
            tracker.warm_up()

        def on_frame(label: str = spec.label) -> None:
            on_frames(label, 1)

        yield spec, sequence, _outcome(partial(protocol.run, tracker, sequence, on_frame))


def _outcome(run: Callable[[], Track]) -> Track | Exception:
    try:
        return run()
    except Exception as error:
        return error


def _job(spec: TrackerSpec, sequence: seq.Sequence, protocol: Protocol) -> Track:
    """One sequence in a process of its own, which shares the machine with others."""
    tracker = spec.create()
    set_threads(1)  # now that torch is loaded, if it is needed
    return protocol.run(tracker, sequence)


def _conditions(spec: TrackerSpec, sequence: seq.Sequence, protocol: Protocol) -> dict[str, Any]:
    """What a result depends on, as JSON gives it back."""
    conditions = {
        "tracker": spec.name,
        "options": spec.options,
        "files": spec.files,
        "sequence": sequence.name,
        "frames": len(sequence),
        "first_box": list(sequence.first_box),
        "protocol": protocol.name,
        "realtime": protocol.realtime,
        "seed": protocol.seed,
    }
    return dict(json.loads(json.dumps(conditions)))


def _save(out: Path, spec: TrackerSpec, sequence: seq.Sequence, protocol: Protocol, track: Track) -> None:
    folder = out / spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        **_conditions(spec, sequence, protocol),
        "size": np.asarray(track.size, int).tolist(),
        "starts": list(track.starts),
        "failures": list(track.failures),
        "boxes": [_rounded(row, 4) for row in track.boxes],
        "scores": _rounded(track.scores, 6),
        "states": track.states.tolist(),
        "seconds": _rounded(track.seconds, 6),
        "cues": {name: _rounded(values, 6) for name, values in track.cues.items()},
        "problems": list(track.problems),
    }
    if sequence.stamps:
        data["stamps"] = list(sequence.stamps)
    np.savetxt(folder / f"{sequence.name}.txt", track.boxes, fmt="%.4f", delimiter=",")
    # Written under another name first: an interrupted run leaves no half file that a later one would take.
    half = folder / f"{sequence.name}.json.part"
    half.write_text(json.dumps(data))
    half.replace(folder / f"{sequence.name}.json")


def _rounded(values: Array, digits: int) -> list[float | None]:
    """The values with None for NaN, which is no JSON."""
    return [None if math.isnan(v) else round(v, digits) for v in values.tolist()]


def _load(out: Path, spec: TrackerSpec, sequence: seq.Sequence, protocol: Protocol) -> Track | None:
    """The saved result, or None where there is none that was made under the same conditions."""
    path = out / spec.folder / f"{sequence.name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text())
    if any(data.get(key) != value for key, value in _conditions(spec, sequence, protocol).items()):
        return None
    size = data["size"]
    # NumPy reads None as NaN.
    return Track(
        np.array(data["boxes"], np.float64),
        np.array(data["scores"], np.float64),
        np.array(data["states"], np.int64),
        np.array(data["seconds"], np.float64),
        np.array(size, np.float64) if isinstance(size[0], list) else (int(size[0]), int(size[1])),
        tuple(data["starts"]),
        tuple(data["failures"]),
        {name: np.array(values, np.float64) for name, values in data.get("cues", {}).items()},
        tuple(data.get("problems", ())),
    )
