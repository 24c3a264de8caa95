"""``tracker_ros gpu-check``: what a GPU makes of every tracker, in a few minutes and one command.

For every tracker with weights: the boxes of the GPU against those of the CPU on the same images, the time of a frame
with its stages, and what a frame asks of the device (waits, launches, copies), counted by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracker_ros import registry
from tracker_ros.errors import WeightsMissing
from tracker_ros.evaluation import benchmark, provenance
from tracker_ros.evaluation.specs import parse_specs
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.trackers.base import Frame

#: Calls of the CUDA runtime that wait for the device, those that launch a kernel or a graph, and those that copy.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
COPIES = ("cudaMemcpyAsync", "cudaMemcpy2DAsync")
#: Waits that a frame may have: the transfer back.
ALLOWED_WAITS = 1.0
#: Overlap of the GPU's box with the CPU's that every frame must have in float32.
LEAST_OVERLAP = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros gpu-check``."""
    parser.add_argument("--tracker", nargs="*", default=[], metavar="NAME", help="these only; none: all with weights")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--frames", type=int, default=60, help="frames to time; a third of them are compared")
    parser.add_argument("--tests", type=Path, metavar="DIR", help="run the tests marked `gpu` of this folder first")
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check"), metavar="DIR", help="numbers and table")


def outputs(args: argparse.Namespace) -> list[Path]:
    """The files that it writes."""
    return [args.out / "gpu_check.json", args.out / "gpu_check.txt"]


def run(args: argparse.Namespace) -> int:
    """Check, write ``gpu_check.json`` and ``gpu_check.txt``, print the table; 1 where something is wrong."""
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: there is no CUDA device here (torch.cuda.is_available() is false); nothing was checked",
              file=sys.stderr)  # fmt: skip
        return 1
    if args.frames < 3:
        raise ValueError(f"--frames must be at least 3, got {args.frames}")
    tests = None
    if args.tests is not None:
        tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(args.tests)]).returncode
    names = args.tracker or [entry.name for entry in registry.DEFAULT if entry.network is not None]
    frames, box = flight(args.frames)
    trackers: dict[str, Any] = {}
    for name in names:
        try:
            trackers[name] = check(name, args.device, frames, box)
        except WeightsMissing as error:
            if args.tracker:
                raise
            print(f"gpu-check: {name} is left out: {error}", file=sys.stderr)
    result = {
        "device": torch.cuda.get_device_name(args.device),
        "tests": tests,
        "trackers": trackers,
        "origin": provenance.describe(args.command_line, {n: {"device": args.device, "files": {}} for n in trackers}),
    }
    text = table(result)
    args.out.mkdir(parents=True, exist_ok=True)
    written = outputs(args)
    written[0].write_text(json.dumps(result, indent=1) + "\n")
    written[1].write_text(text + "\n")
    print(text)
    return 1 if faults(result) else 0


def flight(count: int) -> tuple[list[Frame], Box]:
    """`count` + 1 frames of the simulated flight, whose target stays in view, and its box in the first one."""
    from tracker_ros.simulation import Flight, FlightOptions

    made = Flight(FlightOptions(width=640, height=480, duration=10.0, seed=0, leaves_view=False))
    first = made.truth_at(0).box
    assert first is not None
    return [made.render(i)[0] for i in range(min(count + 1, len(made)))], first


def check(name: str, device: str, frames: Sequence[Frame], box: Box) -> dict[str, Any]:
    """One tracker's figures: ``overlap`` (least, GPU with CPU, float32), ``ms``, ``stages_ms``, ``a_frame``."""
    compared = frames[: 1 + max(len(frames) // 3, 1)]
    found = [boxes(name, where, compared, box) for where in ("cpu", device)]
    (spec,) = parse_specs([name], (), device)
    timed = benchmark.measure([spec], frames, box, count=len(frames) - 1, stages=False)[spec.label]
    staged = benchmark.measure([spec], frames, box, count=len(frames) - 1)[spec.label]
    return {
        "overlap": min(iou(a, b) for a, b in zip(*found, strict=True)),
        "ms": timed["ms"],
        "stages_ms": staged["stages_ms"],
        "device_memory_mib": timed["device_memory_mib"],
        "a_frame": profiled(name, device, frames[: 1 + min(len(frames) - 1, 12)], box),
    }


def boxes(name: str, device: str, frames: Sequence[Frame], box: Box) -> list[Box]:
    """The boxes of a tracker in float32."""
    tracker = registry.create(name, device=device, precision="float32")
    tracker.initialize(frames[0], box)
    return [tracker.track(frame).box for frame in frames[1:]]


def profiled(name: str, device: str, frames: Sequence[Frame], box: Box) -> dict[str, float]:
    """Waits, launches and copies a frame, once warm; see `count`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    tracker = registry.create(name, device=device)
    tracker.initialize(frames[0], box)
    warm = len(frames) // 2
    for frame in frames[1:warm]:
        tracker.track(frame)
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for frame in frames[warm:]:
            tracker.track(frame)
    calls = count((event.name for event in profiler.events()), len(frames) - warm)
    # The profiler itself waits for the device when it ends.
    calls["waits"] = max(0.0, calls["waits"] - 1 / (len(frames) - warm))
    return calls


def count(names: Iterable[str], frames: int) -> dict[str, float]:
    """Calls of the CUDA runtime a frame: ``waits``, ``launches`` and ``copies`` among the names of events."""
    found = Counter(names)
    kinds = {"waits": WAITS, "launches": LAUNCHES, "copies": COPIES}
    return {kind: sum(found[call] for call in calls) / frames for kind, calls in kinds.items()}


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong, in words."""
    said = [f"tests marked gpu end with code {result['tests']}"] if result["tests"] else []
    for name, own in result["trackers"].items():
        if not own["overlap"] >= LEAST_OVERLAP:
            said.append(f"{name}: boxes of CPU and GPU overlap by {own['overlap']:.3f} only")
        if own["a_frame"]["waits"] > ALLOWED_WAITS:
            said.append(f"{name}: {own['a_frame']['waits']:.1f} waits a frame, {ALLOWED_WAITS:g} expected")
    if not result["trackers"]:
        said.append("no tracker was checked")
    return said


def table(result: dict[str, Any]) -> str:
    """The figures as text: a row a tracker, a row a tracker's stages, and what is wrong."""
    trackers = result["trackers"]
    width = max([len("mean ms by stage"), *map(len, trackers)]) + 2
    heads = ("p50 ms", "p99 ms", "waits", "launches", "copies", "overlap", "GPU MiB")
    lines = [f"device: {result['device']}", "", "tracker".ljust(width) + "".join(head.rjust(10) for head in heads)]
    for name, own in trackers.items():
        calls, memory = own["a_frame"], own["device_memory_mib"]
        cells = [f"{own['ms']['p50']:.2f}", f"{own['ms']['p99']:.2f}"]
        cells += [f"{calls[kind]:.1f}" for kind in ("waits", "launches", "copies")]
        cells += [f"{own['overlap']:.4f}", "-" if memory is None else f"{memory:.0f}"]
        lines.append(name.ljust(width) + "".join(cell.rjust(10) for cell in cells))
    stages = list(dict.fromkeys(stage for own in trackers.values() for stage in own["stages_ms"]))
    lines += ["", "mean ms by stage".ljust(width) + "".join(stage.rjust(10) for stage in stages)]
    for name, own in trackers.items():
        means = [own["stages_ms"].get(stage, {}).get("mean", math.nan) for stage in stages]
        lines.append(name.ljust(width) + "".join(("-" if np.isnan(m) else f"{m:.2f}").rjust(10) for m in means))
    return "\n".join(
        [*lines, "", *(f"WRONG: {fault}" for fault in faults(result) or []), provenance.text(result["origin"])]
    )
