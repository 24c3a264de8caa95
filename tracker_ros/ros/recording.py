"""What came of each image, put together by its stamp; pictures of it and the summary. Knows nothing of ROS."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.files import opencv_path
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.images import write_file
from tracker_ros.ros import overlay
from tracker_ros.ros.diagnostics import CLOCK_MISMATCH, percentile
from tracker_ros.simulation.score import TrackReport, regain_report
from tracker_ros.trackers.base import Estimate, Frame, TrackState

_TRUTH_COLOUR = (255, 255, 255)
_GREY = (150, 150, 150)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Result:
    """What the tracker said of one image.

    Attributes:
        state, score, search_region, tracker: as in ``TrackStatus``.
        latency: from the image's stamp to the result as the tracker measured it, seconds.
        counts: images received, processed and dropped until then.
    """

    state: TrackState
    score: float
    search_region: Box
    tracker: str
    latency: float
    counts: tuple[int, int, int]


@dataclass(slots=True)
class Entry:
    """All that belongs to one image; None for what has not come.

    Attributes:
        stamp: nanoseconds.
        image: HxWx3 uint8, BGR; let go once it was drawn.
        heatmap: response over the whole image, one value for each cell of some pixels.
        truth, truth_known: the true box (None: out of view), if `truth_known`.
        box: the tracker's.
        latency: from the stamp until the box arrived here, seconds.
        result: the tracker's word on this image; None if it was not processed.
        frame: number of the picture in the video, -1 while it has none.
    """

    stamp: int
    image: Frame | None = None
    heatmap: NDArray[np.float32] | None = None
    truth: Box | None = None
    truth_known: bool = False
    box: Box | None = None
    latency: float = math.nan
    result: Result | None = None
    frame: int = -1

    @property
    def overlap(self) -> float | None:
        """IoU of the box with the truth; None without both, or where the box is not meant (LOST)."""
        if self.box is None or self.truth is None or self.result is None or self.result.state is TrackState.LOST:
            return None
        return iou(self.box, self.truth)


class Timeline:
    """Entries by their stamps. Nothing is lost that comes late, and nothing is drawn before it is settled.

    Args:
        delay: an entry is settled when results that are so many seconds newer have come.
        limit: most images that wait to be settled; beyond it the oldest is settled as it is.
    """

    def __init__(self, delay: float = 1.0, limit: int = 64) -> None:
        self.delay = delay
        self.limit = limit
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._waiting: list[Entry] = []
        self._newest_result = -1
        self.last_image = -1

    def at(self, stamp: int) -> Entry:
        """The entry of a stamp (nanoseconds), made if there is none."""
        return self._entries.setdefault(stamp, Entry(stamp))

    def add_image(self, stamp: int, image: Frame) -> None:
        """An image came; one with a stamp that is already there is left out."""
        entry = self.at(stamp)
        if entry.image is None and entry.frame < 0:
            entry.image = image
            self._waiting.append(entry)
            self.last_image = max(self.last_image, stamp)

    def add_result(self, stamp: int, result: Result) -> None:
        """The tracker's status of an image came."""
        self.at(stamp).result = result
        self._newest_result = max(self._newest_result, stamp)

    @property
    def complete(self) -> bool:
        """Whether the newest image has its result."""
        return self.last_image >= 0 and self._newest_result >= self.last_image

    def settled(self, all_of_them: bool = False) -> list[Entry]:
        """Entries with an image that nothing more will come for, oldest first; each is handed out once."""
        self._waiting.sort(key=lambda entry: entry.stamp)
        count = 0
        for entry in self._waiting:
            late = self._newest_result - entry.stamp > self.delay * 1e9
            if not (all_of_them or late or len(self._waiting) - count > self.limit):
                break
            count += 1
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return ready

    def entries(self) -> list[Entry]:
        """All entries in the order of their stamps."""
        return sorted(self._entries.values(), key=lambda entry: entry.stamp)


class Artist:
    """Draws entries one after the other; one that was not processed has the last box in grey dashes."""

    def __init__(self) -> None:
        self._last: tuple[Box | None, Result] | None = None

    def draw(self, entry: Entry) -> Frame:
        """The entry's image (which must be there) with box, state, heatmap and truth; HxWx3 uint8, BGR."""
        assert entry.image is not None
        result, box = entry.result, entry.box
        if result is not None:
            self._last = box, result
            if box is None or result.state is TrackState.IDLE:
                note = "" if result.state is TrackState.IDLE else "NO RESULT"
                picture = overlay.draw(entry.image, None, overlay.Caption(tracker=result.tracker, note=note))
            else:
                heat = None if entry.heatmap is None else crop_heatmap(entry.heatmap, entry.image, result.search_region)
                estimate = Estimate(box, result.score, result.state, result.search_region, heat)
                caption = overlay.Caption(tracker=result.tracker, latency=result.latency)
                picture = overlay.draw(entry.image, estimate, caption)
        elif self._last is not None and self._last[1].state is not TrackState.IDLE:
            box, result = self._last
            note = f"NOT PROCESSED (was {result.state.name})"
            picture = overlay.draw(entry.image, None, overlay.Caption(tracker=result.tracker, note=note))
            if box is not None:
                _dashes(picture, box, _GREY)
        else:
            picture = overlay.draw(entry.image, None, overlay.Caption(note="waiting for the tracker"))
        if entry.truth_known:
            self._draw_truth(picture, entry)
        return picture

    @staticmethod
    def _draw_truth(picture: Frame, entry: Entry) -> None:
        unit = min(picture.shape[:2]) / 480
        if entry.truth is None:
            text = "truth: not in view"
        else:
            _outline(picture, entry.truth, _TRUTH_COLOUR)
            text = "truth: white"
            if entry.overlap is not None:
                text += f", IoU {entry.overlap:.2f}"
        scale, pad = max(0.3, 0.5 * unit), round(6 * unit) + 1
        (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
        bottom = picture.shape[0]
        strip = picture[bottom - height - 2 * pad :, : width + 2 * pad]
        strip[:] = strip * 0.35
        cv2.putText(picture, text, (pad, bottom - pad), _FONT, scale, _TRUTH_COLOUR, 1, cv2.LINE_AA)


def _outline(picture: Frame, box: Box, colour: tuple[int, int, int], thickness: int = 1) -> None:
    corner = round(box.x), round(box.y)
    thickness = max(1, round(thickness * min(picture.shape[:2]) / 480))
    cv2.rectangle(picture, corner, (round(box.x + box.w) - 1, round(box.y + box.h) - 1), colour, thickness)


def _dashes(picture: Frame, box: Box, colour: tuple[int, int, int]) -> None:
    """The outline of a box that is older than its picture: nobody may take it for the truth, or for the target's."""
    unit = min(picture.shape[:2]) / 480
    thickness, dash = max(1, round(2 * unit)), max(3.0, 7 * unit)
    x1, y1, x2, y2 = box.x, box.y, box.x + box.w - 1, box.y + box.h - 1
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    for a, b in itertools.pairwise(corners):
        length = float(np.linalg.norm(b - a))
        for start in np.arange(0, length, 2 * dash):
            ends = [a + (b - a) * min(part / max(length, 1e-6), 1.0) for part in (start, start + dash)]
            first, last = ((round(float(x)), round(float(y))) for x, y in ends)
            cv2.line(picture, first, last, colour, thickness)


def crop_heatmap(heatmap: NDArray[np.float32], image: Frame, region: Box) -> NDArray[np.float32] | None:
    """The part of a heatmap over the whole image that lies in `region` (pixels), stretched over it."""
    stride = image.shape[1] / heatmap.shape[1]
    columns, rows = (max(2, round(side / stride)) for side in (region.w, region.h))
    if region.w <= 0 or region.h <= 0 or max(columns, rows) > 4096:
        return None
    x = ((region.x + (np.arange(columns) + 0.5) / columns * region.w) / stride - 0.5).astype(np.float32)
    y = ((region.y + (np.arange(rows) + 0.5) / rows * region.h) / stride - 0.5).astype(np.float32)
    grid_x, grid_y = np.meshgrid(x, y)
    values = np.ascontiguousarray(heatmap, np.float32)
    part: NDArray[np.float32] = cv2.remap(values, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return part


class VideoFile:
    """An mp4 file; the first picture sets its size, others are scaled to it.

    Raises:
        OSError: OpenCV can't write it.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.count = 0
        self._writer: Any = None
        self._size = (0, 0)

    def write(self, picture: Frame) -> int:
        """Append a picture; returns its number."""
        if self._writer is None:
            # An odd side is more than some players take.
            self._size = picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2
            self._writer = cv2.VideoWriter(
                opencv_path(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, self._size
            )
            if not self._writer.isOpened():
                raise OSError(f"OpenCV can't write the video '{self.path}': is the folder writable?")
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(picture)
        self.count += 1
        return self.count - 1

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None


def track_report(entries: Sequence[Entry]) -> TrackReport | None:
    """The track against the truth, frames counted in `entries`; None unless the truth of every one is known."""
    if not entries or not all(e.truth_known for e in entries):
        return None
    states = [None if e.result is None else e.result.state for e in entries]
    return regain_report(states, [e.box for e in entries], [e.truth for e in entries])


def key_moments(entries: Sequence[Entry], count: int) -> list[tuple[int, str]]:
    """Which of `entries` tell the story: changes of state, leaving and return, the worst overlap; evenly filled up.

    What fell between two processed images is shown on the later one: a picture without a result tells nothing of the
    tracker.

    Returns:
        at most `count` pairs of an index and what there is to see, in order.
    """
    moments: dict[int, str] = {}
    report = track_report(entries)
    states = [None if e.result is None else e.result.state for e in entries]

    processed = [k for k, state in enumerate(states) if state is not None] or list(range(len(entries)))

    def add(index: int, text: str) -> None:
        shown = next((k for k in processed if k >= index), None)
        if index >= 0 and shown is not None:
            moments.setdefault(shown, text)

    tracked = [k for k, s in enumerate(states) if s is not None and s is not TrackState.IDLE]
    if tracked:
        add(tracked[0], "start")
    for absence in report.absences if report is not None else ():
        add(absence.first, "target leaves")
        if absence.lost_after is not None:
            add(absence.first + absence.lost_after, "LOST")
        add(absence.last + 1, "target returns")
        if absence.regained_after is not None:
            add(absence.last + 1 + absence.regained_after, "regained")
    overlaps = [(value, k) for k in tracked if (value := entries[k].overlap) is not None]
    if overlaps:
        add(min(overlaps)[1], "smallest overlap")
    told = set(moments)
    for before, k in itertools.pairwise(tracked):
        state = states[k]
        if state is not None and (state is TrackState.LOST) != (states[before] is TrackState.LOST):
            add(k, state.name)
    chosen = sorted(moments.items())
    while len(chosen) > max(1, count * 2 // 3):  # leave room for the ordinary; a flickering state goes first
        gaps = [(b[0] in told, b[0] - a[0], k) for k, (a, b) in enumerate(itertools.pairwise(chosen))]
        chosen.pop(min(gaps)[2] + 1)
    taken = {k for k, _ in chosen}
    for k in np.linspace(0, len(entries) - 1, max(0, count - len(chosen)) + 2)[1:-1].round().astype(int):
        free = min((j for j in processed if j not in taken), key=lambda j: abs(j - int(k)), default=None)
        if free is not None:
            taken.add(free)
            chosen.append((free, ""))
    return sorted(chosen)[:count]


def contact_sheet(tiles: Sequence[tuple[Frame, str]], columns: int = 4, width: int = 400) -> Frame:
    """Pictures with a line of text each, side by side, `width` pixels each."""
    drawn = []
    height = max(1, round(width * tiles[0][0].shape[0] / tiles[0][0].shape[1]))
    for picture, text in tiles:
        tile = np.full((height + 26, width, 3), 24, np.uint8)
        tile[26:] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        cv2.putText(tile, text, (8, 18), _FONT, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
        drawn.append(cv2.copyMakeBorder(tile, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(10, 10, 10)))
    columns = min(columns, len(drawn))
    while len(drawn) % columns:
        drawn.append(np.full_like(drawn[0], 10))
    rows = [np.hstack(drawn[k : k + columns]) for k in range(0, len(drawn), columns)]
    sheet: Frame = np.vstack(rows)
    return sheet


def write_sheet(path: Path, video: VideoFile, entries: Sequence[Entry]) -> None:
    """Write the contact sheet of the entries that are in `video` (which must be closed).

    Raises:
        OSError: it can't be written.
    """
    moments = key_moments(entries, 16)
    wanted = {entries[k].frame: k for k, _ in moments}
    texts = dict(moments)
    start = entries[0].stamp
    tiles = []
    capture = cv2.VideoCapture(opencv_path(video.path))
    for number in range(video.count):
        if not capture.grab():
            break
        if number in wanted:
            good, picture = capture.retrieve()
            k = wanted[number]
            if good:
                seconds = (entries[k].stamp - start) / 1e9
                what = f"  {texts[k]}" if texts[k] else ""
                if (value := entries[k].overlap) is not None:
                    what += f"  IoU {value:.2f}"
                tiles.append((np.asarray(picture, np.uint8), f"image {number}  {seconds:.1f} s{what}"))
    capture.release()
    if not tiles:
        raise OSError(f"the contact sheet '{path}' can't be made: '{video.path}' can't be read again")
    write_file(path, contact_sheet(tiles))


@dataclass(slots=True)
class Sent:
    """What the source says that it sent: nominal rate (Hz) and the index and stamp (ns) of each image.

    Attributes:
        expected: images that it should have had; None where nobody knows.
        unreadable: images that could not be read, and were left out.
    """

    source: str = ""
    fps: float = math.nan
    frames: list[tuple[int, int]] = field(default_factory=list)
    expected: int | None = None
    unreadable: int = 0

    @property
    def shown(self) -> int:
        """Images that were sent; one that was sent several times counts once."""
        return len({index for index, _ in self.frames})

    @classmethod
    def load(cls, path: Path) -> Sent:
        """Read a source's report.

        Raises:
            ValueError: the file is not one.
        """
        try:
            data = json.loads(path.read_text())
            frames = [(int(f["index"]), int(f["stamp"])) for f in data["frames"]]
            if len({stamp for _, stamp in frames}) < len(frames):
                raise ValueError("several images have one stamp, so nobody can tell them apart")
            expected = data.get("frames_expected")
            counts = None if expected is None else int(expected), int(data.get("frames_unreadable", 0))
            return cls(str(data["source"]), float(data["fps"]), frames, *counts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is not the report of an image source: {error}") from error


def summarize(entries: Sequence[Entry], sent: Sent | None) -> dict[str, Any]:
    """The figures of a run.

    Latencies are from an image's stamp to the arrival of its detection. ``mean_iou`` is over the processed images with
    the target in view; LOST counts as 0.
    """
    results = [e for e in entries if e.result is not None]
    tracked = [e for e in results if e.result is not None and e.result.state is not TrackState.IDLE]
    latencies = sorted(e.latency for e in entries if not math.isnan(e.latency))
    own = sorted(e.result.latency for e in tracked if e.result is not None and not math.isnan(e.result.latency))
    received, processed, dropped = (max((e.result.counts[k] for e in results if e.result), default=0) for k in range(3))
    span = (tracked[-1].stamp - tracked[0].stamp) / 1e9 if len(tracked) > 1 else 0.0
    report = track_report([e for e in entries if e.truth_known])
    index_of = {stamp: index for index, stamp in sent.frames} if sent is not None else {}
    start = entries[0].stamp if entries else 0
    changes: list[dict[str, Any]] = []
    for entry in results:
        assert entry.result is not None
        name = entry.result.state.name
        if not changes or changes[-1]["state"] != name:
            changes.append({"time_s": round((entry.stamp - start) / 1e9, 3), "state": name})

    def number(value: float | None, digits: int = 3) -> float | None:
        return None if value is None or math.isnan(value) else round(value, digits)

    summary: dict[str, Any] = {
        "tracker": next((e.result.tracker for e in reversed(results) if e.result), None),
        "frames_expected": None if sent is None else sent.expected,
        "frames_shown": None if sent is None else sent.shown,
        "frames_unreadable": None if sent is None else sent.unreadable,
        "frames_sent": None if sent is None else len(sent.frames),
        "frames_received": received,
        "frames_processed": processed,
        "frames_dropped": dropped,
        "frames_recorded": sum(e.frame >= 0 for e in entries),
        "mean_iou": number(report.mean_iou if report else None, 4),
        "latency_ms_p50": number(percentile(latencies, 0.5) * 1e3, 2),
        "latency_ms_p99": number(percentile(latencies, 0.99) * 1e3, 2),
        "tracker_latency_ms_p50": number(percentile(own, 0.5) * 1e3, 2),
        "tracker_latency_ms_p99": number(percentile(own, 0.99) * 1e3, 2),
        "fps": number((len(tracked) - 1) / span if span > 0 else None, 2),
        "absences": [
            {
                "first_image": a.first,
                "last_image": a.last,
                "lost_after_images": a.lost_after,
                "regained_after_images": a.regained_after,
            }
            for a in (report.absences if report else ())
        ],
        "states": changes,
        "frames": [
            {
                "index": index_of.get(e.stamp, k if sent is None else None),
                "stamp": e.stamp,
                "state": e.result.state.name if e.result else None,
                "score": number(e.result.score) if e.result else None,
                "box": [round(v, 2) for v in e.box] if e.box else None,
                "truth": [round(v, 2) for v in e.truth] if e.truth else None,
                "iou": number(e.overlap),
                "latency_ms": number(e.latency * 1e3, 2),
            }
            for k, e in enumerate(entries)
        ],
    }
    return summary


def believable(latency: float) -> float:
    """A latency in seconds; NaN for one that compares the clocks of two worlds, as with stamps of a recording."""
    return latency if 0 <= latency < CLOCK_MISMATCH else math.nan


def nominal_rate(stamps: Sequence[int]) -> float:
    """Images a second from their stamps (ns); 30 where they don't tell."""
    steps = [b - a for a, b in itertools.pairwise(stamps) if b > a]
    return 1e9 / statistics.median(steps) if steps else 30.0


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary as JSON: the figures indented, the frames one a line."""
    head = {key: value for key, value in summary.items() if key != "frames"}
    text = json.dumps(head, indent=2)
    lines = ",\n".join("    " + json.dumps(frame) for frame in summary.get("frames", []))
    path.write_text(f'{text[:-2]},\n  "frames": [\n{lines}\n  ]\n}}\n')
