"""``tracker_ros rules``: what each of our own rules is worth.

A tracker runs over sequences as it is, with each rule off, with each rule alone, and without any; every form over the
same starts and seeds. What the rules are is in `tracker_ros.trackers.rules`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import command, provenance
from tracker_ros.evaluation import report as reports
from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation.metrics import StateDecisions, evaluate, state_decisions
from tracker_ros.evaluation.runs import Protocol, Track, run_all
from tracker_ros.evaluation.specs import TrackerSpec, parse_specs
from tracker_ros.files import refuse_overwriting
from tracker_ros.geometry.boxes import pairwise_iou
from tracker_ros.trackers.base import InvalidOption

Array = NDArray[np.float64]

#: Frames in a row without the target from which on a track counts as gone, and frames in which it must be back.
GONE, BACK = 10, 30


@dataclass(frozen=True)
class Worth:
    """What one form of a tracker does over sequences and seeds.

    Attributes:
        auc: mean over seeds of the mean over sequences.
        spread: standard deviation of that over the seeds.
        silent: part of the misses in which it said TRACKING; NaN without misses.
        regained: part of the times it was gone after which it was back; NaN where it never was gone.
    """

    auc: float
    spread: float
    silent: float
    regained: float


def forms(kept: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Name of each form -> the rules that it has, as the design's ``rules`` takes them.

    Args:
        kept: the rules that the tracker keeps by itself.
        names: the rules that are measured; those that it does not keep are added rather than left out.
    """
    table = {"as it is": ""}
    table |= {
        f"{'without' if name in kept else 'with'} {name}": f"{'-' if name in kept else '+'}{name}" for name in names
    }
    table["none"] = "none"
    return table | {f"{name} alone": name for name in names}


def returns(overlap: Array) -> tuple[int, int]:
    """How often a track was gone, and how often it was back.

    It is gone after `GONE` frames in a row without overlap (NaN: the target is not in view, which continues a run),
    and back if one of the next `BACK` frames that show the target after that has an IoU above 0.5. A target that never
    shows again counts in neither.

    Args:
        overlap: N values of IoU; NaN where there is no target.
    """
    gone = back = run = 0
    waiting: int | None = None
    for value in overlap:
        if waiting is not None and not math.isnan(value):
            waiting += 1
            if value > 0.5 or waiting >= BACK:
                gone, back = gone + 1, back + (value > 0.5)
                waiting, run = None, 0
                continue
        run = run + 1 if math.isnan(value) or value == 0 else 0
        if run == GONE and waiting is None:
            waiting = 0
    return gone, back


def measure(tracks: Sequence[Mapping[str, Track]], sequences: Sequence[seq.Sequence]) -> Worth:
    """The worth of one form; `tracks` by the sequence's name, a mapping a seed."""
    aucs, decisions, gone, back = [], StateDecisions(), 0, 0
    for own in tracks:
        values = []
        for sequence in sequences:
            track = own[sequence.name]
            values.append(evaluate(track.boxes, sequence.truth, track.size).auc)
            decisions += state_decisions(track.boxes, track.states, sequence.truth)
            overlap = np.where(sequence.absent, np.nan, pairwise_iou(track.boxes, np.nan_to_num(sequence.truth)))
            counts = returns(overlap)
            gone, back = gone + counts[0], back + counts[1]
        aucs.append(float(np.mean(values)))
    return Worth(float(np.mean(aucs)), float(np.std(aucs)), decisions.silent_misses, back / gone if gone else math.nan)


def table(worths: Mapping[str, Worth]) -> str:
    """A Markdown table: the first form's figures, and the others' differences from them."""
    base = next(iter(worths.values()))
    lines = ["| rules | AUC | seeds | misses called TRACKING | regained |", "|---|---|---|---|---|"]
    for name, w in worths.items():
        auc = f"{w.auc:.3f}" if w is base else f"{w.auc:.3f} ({w.auc - base.auc:+.3f})"
        cells = [name, auc, f"{w.spread:.3f}", *("" if math.isnan(v) else f"{v:.2f}" for v in (w.silent, w.regained))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros rules``."""
    parser.add_argument("--tracker", required=True, metavar="NAME", help="the tracker, as for evaluate")
    command.add_sequence_arguments(parser)
    parser.set_defaults(seed=0)
    parser.add_argument("--rules", nargs="+", default=[], metavar="RULE", help="rules to measure; all of the tracker's")
    parser.add_argument("--no-alone", action="store_true", help="leave out the forms with one rule alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the tracker, where it has one")
    parser.add_argument("--out", type=Path, default=Path("out/rules"), metavar="DIR", help="where results go")
    parser.add_argument("--resume", action="store_true", help="take results of the same options that --out has already")
    parser.add_argument("--device", help="where the tracker runs: cpu, cuda, cuda:N")
    parser.add_argument("--jobs", type=int, default=1, help="processes")


def run(args: argparse.Namespace) -> int:
    """Measure; prints the table and writes ``rules.json`` and ``rules.md`` into ``--out``."""
    (plain,) = parse_specs([args.tracker], device=args.device)
    tracker: Any = plain.create()
    if not hasattr(tracker, "book"):
        raise InvalidOption(f"tracker '{plain.name}' keeps no rules of ours")
    kept = sorted(tracker.book.kept)
    chosen = forms(kept, args.rules or kept)
    if args.no_alone:
        chosen = {name: rules for name, rules in chosen.items() if not name.endswith(" alone")}
    seeds = args.seeds if hasattr(tracker.options, "seed") else args.seeds[:1]
    sequences = command.load_starts(args)
    refuse_overwriting([args.out, args.out / "results"], {path for s in sequences for path in s.sources})
    labels = {
        (name, seed): _spec(plain, rules, seed if len(seeds) > 1 else None)
        for name, rules in chosen.items()
        for seed in seeds
    }
    with command.progress(len(labels) * sum(len(s) for s in sequences)) as bar:
        tracks = run_all(
            list(labels.values()), sequences, protocol=Protocol(), out=args.out / "results", resume=args.resume,
            jobs=args.jobs, on_frames=lambda label, frames: bar.update(frames),
        )  # fmt: skip
    worths = {name: measure([tracks[labels[name, seed].label] for seed in seeds], sequences) for name in chosen}
    report = {
        "tracker": plain.label, "kept": kept, "seeds": list(seeds), "sequences": [s.name for s in sequences],
        "forms": {name: vars(worth) | {"rules": chosen[name]} for name, worth in worths.items()},
        "origin": provenance.describe(args.command_line, {plain.label: {"files": plain.files}}),
    }  # fmt: skip
    (args.out / "rules.json").write_text(json.dumps(reports.finite(report), indent=1) + "\n")
    words = table(worths)
    (args.out / "rules.md").write_text(words + "\n")
    print(words)
    return 0


def _spec(plain: TrackerSpec, rules: str, seed: int | None) -> TrackerSpec:
    changes: dict[str, Any] = {"rules": rules} if rules else {}
    if seed is not None:
        changes["seed"] = seed
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    joint = "," if ":" in plain.label else ":"
    return TrackerSpec(f"{plain.label}{joint if text else ''}{text}", plain.name, plain.options | changes)
