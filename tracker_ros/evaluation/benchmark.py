"""``tracker_ros benchmark``: time and memory of a tracker, stage by stage, alone or against another one.

Two trackers take turns frame by frame in one process, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tracker_ros.evaluation import provenance
from tracker_ros.evaluation.process import set_seeds, set_threads, synchronize
from tracker_ros.evaluation.sequences import InvalidSequence, check_start, load_sequence
from tracker_ros.evaluation.specs import TrackerSpec, parse_specs
from tracker_ros.geometry.boxes import Box
from tracker_ros.trackers.base import Frame, Tracker
from tracker_ros.trackers.profile import NULL_TIMER, StageTimer

#: The order in which stages are listed; others follow.
STAGES = ("crop", "backbone", "classify", "refine", "update")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros benchmark``."""
    parser.add_argument(
        "--tracker", required=True, metavar="NAME", help="tracker; NAME:field=value,... changes options"
    )
    parser.add_argument("--against", metavar="NAME", help="second tracker, which takes turns with the first")
    parser.add_argument("--device", help="where they run: cpu, cuda, cuda:N")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE", help="an option")
    parser.add_argument("--sequence", type=Path, metavar="DIR", help="frames to take instead of the simulated flight")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="size of the simulated flight's images")
    parser.add_argument("--frames", type=int, default=200, help="frames to measure")
    parser.add_argument("--warm-up", type=int, default=10, help="frames before the measured ones")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch and OpenCV; 0: their own choice")
    parser.add_argument("--no-stages", action="store_true", help="whole frames only (on a GPU, stages wait for it)")
    parser.add_argument("--seed", type=int, default=0, help="of all random generators and of the flight")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table."""
    if args.frames < 1 or args.warm_up < 0 or args.threads < 0:
        raise ValueError("--frames must be at least 1, --warm-up and --threads at least 0")
    labels = [args.tracker] if args.against is None else [args.tracker, args.against]
    specs = parse_specs(labels, args.settings, args.device)
    frames, box, source = load_frames(args)
    with tqdm(total=(args.warm_up + args.frames) * len(specs), unit="frame", disable=not sys.stderr.isatty()) as bar:
        numbers = measure(
            specs, frames, box, warm_up=args.warm_up, count=args.frames, threads=args.threads, seed=args.seed,
            stages=not args.no_stages, on_frame=bar.update,
        )  # fmt: skip
    built = {spec.label: {"device": numbers[spec.label]["device"], "files": spec.files} for spec in specs}
    result = {
        "source": source,
        "frames": args.frames,
        "threads": args.threads or None,
        "seed": args.seed,
        "trackers": numbers,
        "origin": provenance.describe(args.command_line, built),
    }
    print(table(result))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\nnumbers: {args.out}")
    return 0


def load_frames(args: argparse.Namespace) -> tuple[list[Frame], Box, str]:
    """The frames to measure on, the first box, and what they are."""
    count = 1 + args.warm_up + args.frames
    if args.sequence is not None:
        sequence = load_sequence(args.sequence)
        check_start(sequence)
        frames, unread = [sequence.frame(0)], 0
        for index in range(1, min(count, len(sequence))):
            try:
                frames.append(sequence.frame(index))
            except InvalidSequence as error:
                unread += 1
                print(f"tracker_ros benchmark: warning: {error}; it is left out", file=sys.stderr)
        if unread:
            total = len(frames) + unread
            print(f"tracker_ros benchmark: warning: {unread} of {total} images could not be read", file=sys.stderr)
        return frames, sequence.first_box, sequence.name
    try:
        width, height = (int(v) for v in args.size.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size is WIDTHxHEIGHT, got '{args.size}'") from None
    from tracker_ros.simulation import Flight, FlightOptions

    # A flight that never leaves the view: a LOST target would change what a frame costs. 10 s of it are repeated.
    flight = Flight(FlightOptions(width=width, height=height, duration=10.0, seed=args.seed, leaves_view=False))
    frames = [flight.render(i)[0] for i in range(min(count, len(flight)))]
    box = flight.truth_at(0).box
    if box is None:
        raise ValueError(f"the flight with seed {args.seed} starts without its target; take another --seed")
    return frames, box, f"simulated flight {width}x{height}, seed {args.seed}"


def measure(
    specs: Sequence[TrackerSpec],
    frames: Sequence[Frame],
    box: Box,
    *,
    count: int,
    warm_up: int = 10,
    threads: int = 0,
    seed: int = 0,
    stages: bool = True,
    on_frame: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time trackers that take turns frame by frame.

    Args:
        specs: the trackers.
        frames: HxWx3 uint8, BGR; after the last one they run back to the first, and so on.
        box: the target in the first frame.
        count: frames to measure.
        warm_up: frames before those.
        threads: of torch; 0: its own choice.
        seed: of every random generator.
        stages: time the tracker's stages (on a GPU this waits for it at each one).
        on_frame: called after each frame of each tracker.

    Returns:
        By label: ``device``, ``load_ms``, ``init_ms``, ``ms`` (mean, p50, p99, min), ``stages_ms`` (mean and p50
        a frame of each stage, ``other`` for what no stage covers) and memory in MiB: ``memory_mib`` is what the
        process grew by while the tracker was loaded and started, ``device_memory_mib`` the peak on its GPU (both
        trackers' where both use it).
    """
    set_seeds(seed)
    found: dict[str, dict[str, Any]] = {}
    trackers: dict[str, Tracker[Any]] = {}
    for spec in specs:
        before, begin = resident_mib(), time.perf_counter()
        tracker = spec.create()
        if threads:
            set_threads(threads)
        loaded = time.perf_counter() - begin
        tracker.warm_up(frames[0].shape[1], frames[0].shape[0])
        init = []
        for _ in range(3):
            begin = time.perf_counter()
            tracker.initialize(frames[0], box)
            synchronize(tracker)
            init.append(time.perf_counter() - begin)
        trackers[spec.label] = tracker
        found[spec.label] = {
            "device": tracker.device,
            "load_ms": loaded * 1e3,
            "init_ms": float(np.median(init)) * 1e3,
            "memory_mib": resident_mib() - before,
        }
    seconds: dict[str, list[float]] = {label: [] for label in trackers}
    timers = {label: StageTimer(partial(synchronize, tracker)) for label, tracker in trackers.items()}
    # Forwards and backwards, so that the target never jumps.
    order = list(range(1, len(frames))) + list(range(len(frames) - 2, -1, -1)) or [0]
    for step in range(warm_up + count):
        frame = frames[order[step % len(order)]]
        for label, tracker in trackers.items():
            measured = step >= warm_up
            if stages and hasattr(tracker, "timer"):
                tracker.timer = timers[label] if measured else NULL_TIMER
            begin = time.perf_counter()
            tracker.track(frame)
            synchronize(tracker)
            if measured:
                seconds[label].append(time.perf_counter() - begin)
                timers[label].end_frame()
            on_frame()
    for label, tracker in trackers.items():
        ms = np.array(seconds[label]) * 1e3
        own = found[label]
        own["ms"] = {
            "mean": float(ms.mean()),
            "p50": float(np.percentile(ms, 50)),
            "p99": float(np.percentile(ms, 99)),
            "min": float(ms.min()),
        }
        own["stages_ms"] = _stages(timers[label].frames, ms)
        own["device_memory_mib"] = device_memory_mib(tracker)
    return found


def _stages(frames: Sequence[dict[str, float]], ms: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    present = {name for frame in frames for name in frame}
    names = [name for name in STAGES if name in present] + sorted(present.difference(STAGES))
    if not names:
        return {}
    columns = {name: np.array([frame.get(name, 0.0) for frame in frames]) for name in names}
    columns["other"] = np.maximum(0, ms - sum(columns.values()))
    return {name: {"mean": float(v.mean()), "p50": float(np.median(v))} for name, v in columns.items()}


def resident_mib() -> float:
    """Memory of this process now, in MiB (its peak where the system does not tell)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_memory_mib(tracker: Tracker[Any]) -> float | None:
    """Peak of the memory on the tracker's GPU, in MiB; None on the CPU."""
    if not tracker.device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(tracker.device) / 2**20


def table(result: dict[str, Any]) -> str:
    """The numbers as text: a row a tracker, then a row a stage; with two trackers, how they compare."""
    numbers = result["trackers"]
    width = max([len("mean ms by stage"), *(len(label) for label in numbers)]) + 2
    heads = ("device", "p50 ms", "p99 ms", "mean", "min", "init ms", "load ms", "MiB", "GPU MiB")
    lines = [f"{result['source']}, {result['frames']} frames", ""]
    lines.append("tracker".ljust(width) + "".join(head.rjust(10) for head in heads))
    for label, own in numbers.items():
        values = [own["ms"]["p50"], own["ms"]["p99"], own["ms"]["mean"], own["ms"]["min"]]
        cells = [own["device"], *(f"{v:.2f}" for v in values), f"{own['init_ms']:.1f}", f"{own['load_ms']:.0f}"]
        gpu = own["device_memory_mib"]
        cells += [f"{own['memory_mib']:.0f}", "-" if gpu is None else f"{gpu:.0f}"]
        lines.append(label.ljust(width) + "".join(cell.rjust(10) for cell in cells))
    names = list(dict.fromkeys(name for own in numbers.values() for name in own["stages_ms"]))
    if names:
        lines += ["", "mean ms by stage".ljust(width) + "".join(name.rjust(10) for name in names)]
        for label, own in numbers.items():
            means = [own["stages_ms"].get(name, {}).get("mean", math.nan) for name in names]
            lines.append(label.ljust(width) + "".join(("-" if math.isnan(m) else f"{m:.2f}").rjust(10) for m in means))
    if len(numbers) == 2:
        (first, a), (second, b) = numbers.items()
        lines += ["", f"{first} takes {a['ms']['p50'] / b['ms']['p50']:.2f} times the median of {second}"]
    lines += ["", provenance.text(result["origin"])]
    return "\n".join(lines)
