"""Runs of trackers over sequences: one pass from the first frame's true box, offline or against the clock.

Offline, the tracker sees every frame and its answer counts on that frame. Against the clock (`realtime`), frames come
at the camera's rate: the tracker always takes the newest one and skips those that it missed, and its answer counts
from the frame that is current when it is ready (Li, Wang & Ramanan, "Towards streaming perception", ECCV 2020).
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation.specs import TrackerSpec
from tracker_ros.trackers.base import Tracker, TrackState

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """What a tracker said of a sequence of N frames.

    Attributes:
        boxes: Nx4 (x, y, w, h in pixels); the first row is the box that it was given.
        scores: N values in ``[0, 1]``.
        states: N values of `TrackState`.
        seconds: N processing times; NaN for frames that were skipped. The first is the initialisation.
        size: width and height of the images in pixels.
    """

    boxes: Array
    scores: Array
    states: NDArray[np.int64]
    seconds: Array
    size: tuple[int, int]


def track_sequence(
    tracker: Tracker[Any],
    sequence: seq.Sequence,
    *,
    realtime: float | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_frame: Callable[[], object] = lambda: None,
) -> Track:
    """Run `tracker` over `sequence` once.

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
    boxes = np.full((count, 4), np.nan)
    scores, seconds = np.full(count, np.nan), np.full(count, np.nan)
    states = np.full(count, int(TrackState.TRACKING), np.int64)

    begin = clock()
    tracker.initialize(first, sequence.first_box)
    seconds[0] = clock() - begin
    boxes[0], scores[0] = sequence.first_box, 1.0
    on_frame()

    now, done = float(seconds[0]), 0
    while True:
        index, now = (done + 1, 0.0) if realtime is None else _next_frame(now, done, realtime)
        for _ in range(done + 1, min(index, count)):
            on_frame()
        if index >= count:
            break
        frame = sequence.frame(index)
        begin = clock()
        estimate = tracker.track(frame)
        seconds[index] = clock() - begin
        now += float(seconds[index])
        shown = index if realtime is None else max(index, math.ceil(now * realtime - 1e-9) - 1)
        if shown < count:
            boxes[shown], scores[shown], states[shown] = estimate.box, estimate.score, int(estimate.state)
        done = index
        on_frame()

    # Until the next answer is ready, the last one stands.
    latest = np.maximum.accumulate(np.where(np.isnan(boxes[:, 0]), 0, np.arange(count)))
    size = first.shape[1], first.shape[0]
    return Track(boxes[latest], scores[latest], states[latest], seconds, size)


def _next_frame(now: float, done: int, fps: float) -> tuple[int, float]:
    """The newest frame at time `now` if it is newer than `done`, else the next one and the time at which it comes."""
    newest = math.floor(now * fps + 1e-9)
    return (newest, now) if newest > done else (done + 1, (done + 1) / fps)


def set_seeds(seed: int) -> None:
    """Seed every generator that a tracker may draw from (torch's only where it is loaded)."""
    random.seed(seed)
    np.random.seed(seed)
    cv2.setRNGSeed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def run_all(
    specs: Sequence[TrackerSpec],
    sequences: Sequence[seq.Sequence],
    *,
    out: Path | None = None,
    realtime: float | None = None,
    resume: bool = False,
    seed: int = 0,
    jobs: int = 1,
    on_frames: Callable[[str, int], object] = lambda label, frames: None,
) -> dict[str, dict[str, Track]]:
    """Run several trackers over the same sequences.

    Args:
        specs: the trackers.
        sequences: what they run over.
        out: folder for the results, ``<tracker>/<sequence>.json`` and ``.txt`` (boxes only); None: keep them in memory.
        realtime: see `track_sequence`.
        resume: take the results that lie in `out` already, if they were made with the same options.
        seed: see `track_sequence`.
        jobs: number of processes; timings are only meaningful with one.
        on_frames: called with a tracker's label and a number of frames that were finished.

    Returns:
        Tracks by the tracker's label and the sequence's name.
    """
    found: dict[str, dict[str, Track]] = {spec.label: {} for spec in specs}
    todo: list[tuple[TrackerSpec, seq.Sequence]] = []
    for spec in specs:
        for sequence in sequences:
            track = _load(out, spec, sequence, realtime, seed) if resume and out is not None else None
            if track is None:
                todo.append((spec, sequence))
            else:
                found[spec.label][sequence.name] = track
                on_frames(spec.label, len(sequence))

    def keep(spec: TrackerSpec, sequence: seq.Sequence, track: Track) -> None:
        found[spec.label][sequence.name] = track
        if out is not None:
            _save(out, spec, sequence, realtime, seed, track)

    for spec, sequence, track in _run(todo, realtime, seed, jobs, on_frames):
        keep(spec, sequence, track)
    return {label: {s.name: tracks[s.name] for s in sequences} for label, tracks in found.items()}


def _run(
    todo: Iterable[tuple[TrackerSpec, seq.Sequence]],
    realtime: float | None,
    seed: int,
    jobs: int,
    on_frames: Callable[[str, int], object],
) -> Iterator[tuple[TrackerSpec, seq.Sequence, Track]]:
    if jobs > 1:
        # Spawned, since a process with threads of torch or OpenCV must not be forked.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(_job, spec, sequence, realtime, seed): (spec, sequence) for spec, sequence in todo}
            for future in as_completed(waiting):
                spec, sequence = waiting[future]
                on_frames(spec.label, len(sequence))
                yield spec, sequence, future.result()
        return
    tracker, label = None, None
    for spec, sequence in todo:
        if tracker is None or label != spec.label:
            tracker, label = spec.create(), spec.label
            tracker.warm_up()

        def on_frame(label: str = spec.label) -> None:
            on_frames(label, 1)

        yield spec, sequence, track_sequence(tracker, sequence, realtime=realtime, seed=seed, on_frame=on_frame)


def _job(spec: TrackerSpec, sequence: seq.Sequence, realtime: float | None, seed: int) -> Track:
    """One sequence in a process of its own, which shares the machine with others."""
    cv2.setNumThreads(1)
    tracker = spec.create()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return track_sequence(tracker, sequence, realtime=realtime, seed=seed)


def _conditions(spec: TrackerSpec, sequence: seq.Sequence, realtime: float | None, seed: int) -> dict[str, Any]:
    """What a result depends on, as JSON gives it back."""
    conditions = {
        "tracker": spec.name,
        "options": spec.options,
        "sequence": sequence.name,
        "frames": len(sequence),
        "first_box": list(sequence.first_box),
        "realtime": realtime,
        "seed": seed,
    }
    return dict(json.loads(json.dumps(conditions)))


def _save(
    out: Path, spec: TrackerSpec, sequence: seq.Sequence, realtime: float | None, seed: int, track: Track
) -> None:
    folder = out / spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        **_conditions(spec, sequence, realtime, seed),
        "size": list(track.size),
        "boxes": [[round(v, 4) for v in row] for row in track.boxes.tolist()],
        "scores": [round(v, 6) for v in track.scores.tolist()],
        "states": track.states.tolist(),
        "seconds": [None if math.isnan(v) else round(v, 6) for v in track.seconds.tolist()],
    }
    np.savetxt(folder / f"{sequence.name}.txt", track.boxes, fmt="%.4f", delimiter=",")
    # Written under another name first: an interrupted run leaves no half file that a later one would take.
    half = folder / f"{sequence.name}.json.part"
    half.write_text(json.dumps(data))
    half.replace(folder / f"{sequence.name}.json")


def _load(out: Path, spec: TrackerSpec, sequence: seq.Sequence, realtime: float | None, seed: int) -> Track | None:
    """The saved result, or None where there is none that was made under the same conditions."""
    path = out / spec.folder / f"{sequence.name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text())
    if any(data.get(key) != value for key, value in _conditions(spec, sequence, realtime, seed).items()):
        return None
    return Track(
        np.array(data["boxes"], np.float64),
        np.array(data["scores"], np.float64),
        np.array(data["states"], np.int64),
        np.array([math.nan if v is None else v for v in data["seconds"]], np.float64),
        (int(data["size"][0]), int(data["size"][1])),
    )
