"""``tracker_ros rules``: what each of our own rules is worth.

A tracker runs over sequences as it is, with each rule off, with each rule alone, and without any; every form over the
same starts and seeds. What the rules are is in `tracker_ros.trackers.rules`.

A rule that decides nothing on a sequence changes nothing there. So the forms that differ in one rule run only where
that rule acts in the form that they differ from (`WatchedBook`); elsewhere that form's track is theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from tracker_ros.geometry.boxes import Box, pairwise_iou
from tracker_ros.trackers.appearance import ColourModel
from tracker_ros.trackers.base import Frame, InvalidOption, Tracker, TrackState
from tracker_ros.trackers.rules import RuleBook
from tracker_ros.trackers.target import Found, Target

Array = NDArray[np.float64]

#: Frames in a row without the target from which on a track counts as gone, and frames in which it must be back.
GONE, BACK = 10, 30


#: Prefix of the cues in which a track keeps which rules acted.
_ACTED = "acts: "


@dataclass(frozen=True)
class WatchedBook(RuleBook):
    """A rule book that takes note of the rules whose switch would have changed a decision.

    Attributes:
        watched: names of the rules whose switches are tried, kept or not.
        acted: those that would have changed something.
    """

    watched: tuple[str, ...] = ()
    acted: set[str] = field(default_factory=set, compare=False)

    def start(self, frame: Frame, box: Box) -> ColourModel | None:
        """See `RuleBook.start`; rules that are off are asked too, so there are always colours."""
        return ColourModel(frame, box)

    def places(self, frame: Frame, target: Target, side: float, windows: int) -> list[NDArray[np.float64]]:
        """See `RuleBook.places`."""
        if target.lost:
            self.acted.add("confirm")  # what a lost target must score is another
        return self._decide(lambda book, own: RuleBook.places(book, frame, own, side, windows), target)

    def free(self, target: Target, windows: int) -> bool:
        """See `RuleBook.free`."""
        return self._decide(lambda book, own: RuleBook.free(book, own, windows), target)

    def refuses(self, target: Target, found: Found) -> bool:
        """See `RuleBook.refuses`."""
        return self._decide(lambda book, own: RuleBook.refuses(book, own, found), target)

    def counted(self, score: float, visible: float, bad_score: float) -> float:
        """See `RuleBook.counted`."""
        return self._decide(lambda book, _: RuleBook.counted(book, score, visible, bad_score))

    def resized(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `RuleBook.resized`."""
        return self._decide(lambda book, _: RuleBook.resized(book, old, new))

    def lost_size(self, target: Target) -> NDArray[np.float64]:
        """See `RuleBook.lost_size`."""
        return self._decide(lambda book, own: RuleBook.lost_size(book, own), target)

    def may_learn(self, state: TrackState) -> bool:
        """See `RuleBook.may_learn`."""
        return self._decide(lambda book, _: RuleBook.may_learn(book, state))

    def _decide(self, decide: Callable[[RuleBook, Any], Any], target: Target | None = None) -> Any:
        """The decision; the other switch positions decide about copies of the target."""
        copies = {name: dataclasses.replace(target) if target is not None else None for name in self.watched}
        own = decide(self, target)
        for name, copied in copies.items():
            if name not in self.acted and not np.array_equal(own, decide(RuleBook(self.kept ^ {name}), copied)):
                self.acted.add(name)
        return own


@dataclass(frozen=True)
class Watched(Protocol):
    """One pass that notes which rules act; they are cues of the track, 1 in all frames or 0.

    Attributes:
        watched: names of the rules.
    """

    watched: tuple[str, ...] = ()

    def run(
        self, tracker: Tracker[Any], sequence: seq.Sequence, on_frame: Callable[[], object] = lambda: None
    ) -> Track:
        """See `Protocol.run`."""
        own: Any = tracker
        plain: RuleBook = own.book
        # How scores are calibrated is decided inside of the networks' responses.
        book = WatchedBook(plain.kept, self.watched, {"calibrate"} & set(self.watched))
        own.book = book
        try:
            track = super().run(tracker, sequence, on_frame)
        finally:
            own.book = plain
        noted = {f"{_ACTED}{name}": np.full(len(sequence), float(name in book.acted)) for name in self.watched}
        return dataclasses.replace(track, cues=track.cues | noted)


def acts(track: Track, rule: str) -> bool:
    """Whether a rule acted in a track; a track that was not `Watched` for it does not tell."""
    noted = track.cues.get(f"{_ACTED}{rule}")
    return noted is None or bool(noted.any())


@dataclass(frozen=True)
class Worth:
    """What one form of a tracker does over sequences and seeds.

    Attributes:
        auc: mean over seeds of the mean over sequences.
        spread: standard deviation of that over the seeds.
        silent: part of the misses in which it said TRACKING; NaN without misses.
        regained: part of the times it was gone after which it was back; NaN where it never was gone.
        acts: part of the runs in which it decided anything else than the form that it differs from.
    """

    auc: float
    spread: float
    silent: float
    regained: float
    acts: float = 1.0


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


def _rule(form: str) -> str:
    """The rule in which a form differs from its base."""
    return form.replace(" alone", "").replace("without ", "").replace("with ", "")


def _base(form: str) -> str:
    """The form that differs from `form` in one rule; itself for those that are run in any case."""
    if form in ("as it is", "none"):
        return form
    return "none" if form.endswith(" alone") else "as it is"


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
    lines = ["| rules | AUC | seeds | misses called TRACKING | regained | acts in |", "|---|---|---|---|---|---|"]
    for name, w in worths.items():
        auc = f"{w.auc:.3f}" if w is base else f"{w.auc:.3f} ({w.auc - base.auc:+.3f})"
        cells = [name, auc, f"{w.spread:.3f}", *("" if math.isnan(v) else f"{v:.2f}" for v in (w.silent, w.regained))]
        cells.append(f"{w.acts:.0%}")
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
    tracks = _run_forms(args, plain, chosen, seeds, sequences)
    worths = {
        name: dataclasses.replace(
            measure([tracks[name, seed][0] for seed in seeds], sequences),
            acts=float(np.mean([tracks[name, seed][1] for seed in seeds])),
        )
        for name in chosen
    }
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


def _run_forms(
    args: argparse.Namespace,
    plain: TrackerSpec,
    chosen: Mapping[str, str],
    seeds: Sequence[int],
    sequences: Sequence[seq.Sequence],
) -> dict[tuple[str, int], tuple[dict[str, Track], float]]:
    """(form, seed) -> its tracks by the sequence's name, and the part of them that had to be run."""
    done: dict[tuple[str, int], tuple[dict[str, Track], float]] = {}
    with command.progress(len(chosen) * len(seeds) * sum(len(s) for s in sequences)) as bar:

        def run_form(
            name: str, seed: int, chosen_sequences: Sequence[seq.Sequence], protocol: Protocol
        ) -> dict[str, Track]:
            spec = _spec(plain, chosen[name], seed if len(seeds) > 1 else None)
            return run_all(
                [spec], chosen_sequences, protocol=protocol, out=args.out / "results", resume=args.resume,
                jobs=args.jobs, on_frames=lambda _, frames: bar.update(frames),
            )[spec.label]  # fmt: skip

        for seed in seeds:
            for name in chosen:
                base = _base(name)
                if base == name:
                    watched = tuple(_rule(other) for other in chosen if _base(other) == name and other != name)
                    done[name, seed] = run_form(name, seed, sequences, Watched(watched=watched)), 1.0
                    continue
                same = {key: track for key, track in done[base, seed][0].items() if not acts(track, _rule(name))}
                others = [s for s in sequences if s.name not in same]
                bar.update(sum(len(s) for s in sequences if s.name in same))
                done[name, seed] = same | run_form(name, seed, others, Protocol()), len(others) / len(sequences)
    return done


def _spec(plain: TrackerSpec, rules: str, seed: int | None) -> TrackerSpec:
    changes: dict[str, Any] = {"rules": rules} if rules else {}
    if seed is not None:
        changes["seed"] = seed
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    joint = "," if ":" in plain.label else ":"
    return TrackerSpec(f"{plain.label}{joint if text else ''}{text}", plain.name, plain.options | changes)
