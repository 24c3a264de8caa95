"""``tracker_ros long-run``: whether a tracker gets worse the longer it tracks.

What learns online may forget its target or drift. Long tracks show it: a simulated flight has no end, and a sequence
is played forwards and backwards for as long as wanted. The overlap with the truth is taken over equal spans of time,
so that a tracker that decays shows a falling row. Losing the target once and for all looks the same; the share of
frames in which the target was said to be lost is listed too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tracker_ros.evaluation.flights import load_flights
from tracker_ros.evaluation.metrics import overlaps, success_curve
from tracker_ros.evaluation.runs import Track, track_sequence
from tracker_ros.evaluation.sequences import Images, InvalidSequence, Sequence, load_sequence
from tracker_ros.evaluation.specs import parse_specs
from tracker_ros.trackers.base import Frame, TrackState

#: What the guided detectors' paper compares: without updates, without the anchor, with it.
DEFAULT_TRACKERS = ("guided_ssd:update=none", "guided_ssd:update=maml", "guided_ssd:update=maml_anchored")


@dataclass(frozen=True)
class LoopedImages:
    """Frames by a list of indices into others."""

    images: Images
    order: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Frame:
        return self.images[self.order[index]]


def looped(sequence: Sequence, frames: int) -> Sequence:
    """`sequence` forwards, backwards, forwards ... for `frames` frames; no frame comes twice in a row."""
    count = len(sequence)
    lap = [*range(count), *range(count - 2, 0, -1)]
    order = tuple(lap[i % len(lap)] for i in range(frames))
    return Sequence(f"{sequence.name}_looped", LoopedImages(sequence.images, order), sequence.truth[list(order)])


@dataclass(frozen=True)
class LongRun:
    """One tracker on one long sequence.

    Attributes:
        tracker: how it was written.
        sequence: its name.
        auc: AUC of each span of frames; None where the target is never in view.
        lost: share of the frames of each span in which the tracker said LOST.
        total: AUC of the whole track.
        seconds: median time of a frame.
    """

    tracker: str
    sequence: str
    auc: tuple[float | None, ...]
    lost: tuple[float, ...]
    total: float
    seconds: float


def over_time(label: str, sequence: Sequence, track: Track, span: int) -> LongRun:
    """AUC over spans of `span` frames; what is left at the end makes a shorter one.

    Frames that say LOST count with the box that is reported there, as in all other figures of this package.
    """
    aucs: list[float | None] = []
    lost = []
    for start in range(0, len(track.boxes), span):
        part = slice(start, start + span)
        values = overlaps(track.boxes[part], sequence.truth[part])
        aucs.append(float(success_curve(values).mean()) if len(values) else None)
        lost.append(float((track.states[part] == TrackState.LOST).mean()))
    total = float(success_curve(overlaps(track.boxes, sequence.truth)).mean())
    return LongRun(label, sequence.name, tuple(aucs), tuple(lost), total, float(np.nanmedian(track.seconds[1:])))


def table(results: SequenceOf[LongRun], span: int) -> str:
    """The results as a Markdown table, one row a tracker and sequence, one column a span."""
    spans = max(len(result.auc) for result in results)
    columns = ["tracker", "sequence", *(f"{i * span}-" for i in range(spans)), "all", "lost"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for result in results:
        cells = ["-" if value is None else f"{value:.3f}" for value in result.auc]
        cells += [""] * (spans - len(cells)) + [f"{result.total:.3f}", f"{np.mean(result.lost):.0%}"]
        lines.append("| " + " | ".join([result.tracker, result.sequence, *cells]) + " |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros long-run``."""
    parser.add_argument(
        "--tracker", nargs="+", default=list(DEFAULT_TRACKERS), help="name or name:field=value,... (as for evaluate)"
    )
    parser.add_argument("--sequences", type=Path, nargs="*", default=[], help="sequence folders to play to and fro")
    parser.add_argument("--flights", type=int, nargs="*", default=[0], help="seeds of simulated flights")
    parser.add_argument("--frames", type=int, default=3000, help="frames of each track")
    parser.add_argument("--span", type=int, default=500, help="frames that one figure is taken over")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Track, print the table, write the JSON.

    Raises:
        ValueError: no sequence, a length below 2, or what `parse_specs` refuses.
    """
    if args.frames < 2 or args.span < 1:
        raise ValueError(f"--frames takes at least 2 and --span at least 1, got {args.frames} and {args.span}")
    specs = parse_specs(args.tracker, device=args.device)
    sequences = [looped(load_sequence(folder), args.frames) for folder in args.sequences]
    # Flights run at 30 frames a second.
    sequences += load_flights(args.flights, args.frames / 30)
    if not sequences:
        raise InvalidSequence("nothing to track: give --sequences or --flights")
    results = []
    for sequence in sequences:
        for spec in specs:
            with tqdm(total=len(sequence), desc=f"{spec.label} on {sequence.name}", disable=None) as bar:
                track = track_sequence(spec.create(), sequence, on_frame=bar.update)
            results.append(over_time(spec.label, sequence, track, args.span))
    print(table(results, args.span))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"span": args.span, "results": [asdict(r) for r in results]}, indent=1) + "\n")
    return 0
