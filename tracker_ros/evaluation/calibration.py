"""Thresholds of the state machine from data: how a tracker's cues differ between its target and what is none.

The cues are gathered with all of the tracker's own decisions switched off, so that they do not depend on the
thresholds that they are to give. First it follows its target wherever the response peaks; where it has not touched it
for `PATIENCE` frames, no more is counted until it is started again on the true box. Then it is held in the state LOST
and shown frames without the target, which tells how high the search for a lost target scores by chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker_ros import registry
from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation.process import set_seeds
from tracker_ros.evaluation.runs import can_start
from tracker_ros.evaluation.specs import TrackerSpec
from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.trackers.base import Estimate, Frame

Array = NDArray[np.float64]

#: Frames in a row without overlap after which a track is started again, and that count as misses.
PATIENCE = 10
#: Overlap of a hit.
HIT = 0.5
#: Part of the frames without the target that may reach `regain_score`.
FALSE_REGAINS = 0.02
#: Part of the hits that may be BAD.
BAD_HITS = 0.02

#: Settings, where a tracker has them, with which it decides nothing and moves on every score.
_OPEN: dict[str, Any] = {
    "good_score": 0.0, "bad_score": 0.0, "regain_score": 1.0, "heatmap": False,
    "rules": "-scan-free-confirm-jump-vanished-median-border",
}  # fmt: skip
#: Settings with which everything counts as LOST and nothing as found again.
_SHUT: dict[str, Any] = {
    "good_score": 1.0, "bad_score": 1.0, "regain_score": 1.0, "lost_after": 1, "rules": "-patience", "heatmap": False,
}  # fmt: skip
#: Frames until a tracker with these options is LOST.
_SETTLING = 3


@dataclass
class Samples:
    """Cues of frames, a list each.

    Attributes:
        score, distractor, sharpness: the cues; NaN where the tracker has no such cue.
        overlap: IoU with the truth; 0 where the target is absent.
        absent: the target is not in view.
        lost_scores: scores of the search for a lost target in frames without it.
    """

    score: list[float] = field(default_factory=list)
    distractor: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)
    lost_scores: list[float] = field(default_factory=list)

    def add(self, estimate: Estimate, overlap: float, absent: bool) -> None:
        """Take in what a tracker said of one frame."""
        self.score.append(estimate.score)
        self.distractor.append(estimate.cues.get("distractor", math.nan))
        self.sharpness.append(estimate.cues.get("sharpness", math.nan))
        self.overlap.append(overlap)
        self.absent.append(absent)


def gather(
    spec: TrackerSpec,
    sequences: Sequence[seq.Sequence],
    *,
    seed: int = 0,
    on_frame: Callable[[], object] = lambda: None,
    on_problem: Callable[[str], object] = lambda problem: None,
) -> Samples:
    """Run a tracker twice over sequences, as the module's text says; `on_frame` is called twice a frame.

    Frames that can't be read are left out, a sequence without a readable first frame as a whole; `on_problem` is called
    with what is wrong with each, once.

    Raises:
        InvalidOption: the tracker does not take its options.
    """
    samples = Samples()
    told: set[str] = set()

    def read(sequence: seq.Sequence, index: int) -> Frame | None:
        try:
            return sequence.frame(index)
        except seq.InvalidSequence as error:
            if str(error) not in told:
                told.add(str(error))
                on_problem(str(error))
            return None

    sequences = [sequence for sequence in sequences if read(sequence, 0) is not None]
    tracker = _with(spec, _OPEN).create()
    for sequence in sequences:
        set_seeds(seed)
        misses, running, size = 0, False, (0, 0)
        for index in range(len(sequence)):
            on_frame()
            absent = bool(sequence.absent[index])
            truth = Box(*(float(v) for v in sequence.truth[index]))
            start = not running and not absent and (index == 0 or _whole(truth, size))
            frame = read(sequence, index) if running or start else None
            if frame is None:
                continue
            if running:
                estimate = tracker.track(frame)
                overlap = 0.0 if absent else iou(estimate.box, truth)
                samples.add(estimate, overlap, absent)
                misses = misses + 1 if overlap == 0 else 0
                running = misses < PATIENCE
            else:
                size = frame.shape[1], frame.shape[0]
                if can_start(truth, size):
                    tracker.initialize(frame, truth)
                    running, misses = True, 0
    tracker = _with(spec, _SHUT).create()
    for sequence in sequences:
        set_seeds(seed)
        absent_frames = np.flatnonzero(sequence.absent)
        if len(absent_frames):
            tracker.initialize(sequence.frame(0), sequence.first_box)
            for _ in range(_SETTLING):
                tracker.track(sequence.frame(0))
            shown = (read(sequence, int(i)) for i in absent_frames)
            samples.lost_scores += [tracker.track(frame).score for frame in shown if frame is not None]
        for _ in range(len(sequence)):
            on_frame()
    return samples


def _with(spec: TrackerSpec, settings: Mapping[str, Any]) -> TrackerSpec:
    """The tracker with those of `settings` that it has."""
    preset = registry.get(spec.name).options
    fields = {f.name for f in (*dataclasses.fields(preset), *dataclasses.fields(preset.design))}
    own = {name: value for name, value in settings.items() if name in fields}
    return dataclasses.replace(spec, options=spec.options | own)


def _whole(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box keeps clear of the border, so that all of the target is seen."""
    return box.x > 0 and box.y > 0 and box.x + box.w < size[0] and box.y + box.h < size[1]


def calibrate(spec: TrackerSpec, samples: Samples) -> dict[str, Any]:
    """Thresholds for a tracker, and how well its cues tell hits from misses.

    Hits have an IoU above `HIT`, misses none; frames in between count as neither. The thresholds:

    - ``good_score`` is the score with the highest balanced accuracy (mean of the parts of hits at or above it and of
      misses below it);
    - ``bad_score`` is the score below which `BAD_HITS` of the hits lie, and no more than ``good_score``;
    - ``regain_score`` is the score that `FALSE_REGAINS` of the searches without the target exceed, and no less than
      ``good_score``.

    An option is missing where there is nothing to base it on.

    Returns:
        ``frames`` (``hits``, ``between``, ``misses``, ``absent`` of the misses, ``lost_absent``), ``cues`` (``auroc``,
        the chance that a hit's cue is better than a miss's; ``hits`` and ``misses`` with percentiles of each),
        ``suggested`` and ``current`` (option -> value), ``quality`` (what comes of both, see `quality`), ``set`` (the
        suggestion as arguments of ``evaluate``) and ``chance``: see `chance_of_a_hit`, None without hits or others.
    """
    score, overlap = np.array(samples.score), np.array(samples.overlap)
    hit, miss = overlap > HIT, overlap <= 0
    options = registry.get(spec.name).options.vary(**spec.options)
    suggested: dict[str, float] = {}
    if hit.any() and miss.any():
        good = best_threshold(score[hit], score[miss])
        suggested = {"good_score": good, "bad_score": min(good, float(np.quantile(score[hit], BAD_HITS)))}
        if samples.lost_scores:
            suggested["regain_score"] = max(good, float(np.quantile(samples.lost_scores, 1 - FALSE_REGAINS)))
    suggested = {name: round(value, 3) for name, value in suggested.items()}
    current = {name: getattr(options, name) for name in ("good_score", "bad_score", "regain_score")}
    cues = {}
    for name, sign in (("score", 1.0), ("distractor", -1.0), ("sharpness", 1.0)):
        values = np.array(getattr(samples, name))
        on, off = values[hit], values[miss]
        if len(on) and len(off) and np.isfinite(on).all() and np.isfinite(off).all():
            cues[name] = {"auroc": auroc(sign * on, sign * off), "hits": _percentiles(on), "misses": _percentiles(off)}
    return {
        "frames": {
            "hits": int(hit.sum()), "between": int((~hit & ~miss).sum()), "misses": int(miss.sum()),
            "absent": int(np.sum(samples.absent)), "lost_absent": len(samples.lost_scores),
        },
        "cues": cues,
        "suggested": suggested,
        "current": current,
        "quality": {
            "current": quality(samples, current), "suggested": quality(samples, current | suggested)
        },
        "chance": chance_of_a_hit(score, hit) if hit.any() and not hit.all() else None,
        "set": " ".join(f"--set {spec.name}.{name}={value:g}" for name, value in suggested.items()),
    }  # fmt: skip


def quality(samples: Samples, options: Mapping[str, float]) -> dict[str, float]:
    """What thresholds on the score make of single frames, before any hysteresis.

    Returns:
        ``good_hits``, ``good_misses``, ``bad_hits`` and ``bad_misses`` (parts of the hits and misses that are GOOD and
        BAD), ``regain_hits`` and ``false_regains`` (parts of the hits, and of the searches without the target, that
        reach `regain_score`); NaN where there are no such frames.
    """
    score, overlap = np.array(samples.score), np.array(samples.overlap)
    hit, miss = overlap > HIT, overlap <= 0
    bad, good = score < options["bad_score"], score >= options["good_score"]
    parts = {
        "good_hits": good[hit],
        "good_misses": good[miss],
        "bad_hits": bad[hit],
        "bad_misses": bad[miss],
        "regain_hits": score[hit] >= options["regain_score"],
        "false_regains": np.array(samples.lost_scores) > options["regain_score"],
    }
    return {name: float(part.mean()) if len(part) else math.nan for name, part in parts.items()}


def chance_of_a_hit(score: Array, hit: NDArray[np.bool_]) -> dict[str, float]:
    """Platt's scaling: ``scale`` and ``shift`` of the scores' log-odds that make scores the chance of a hit.

    Fitted by Newton's method to N scores in ``[0, 1]`` and N flags, hits against all other frames; the slight pull
    towards ``scale`` 1 and ``shift`` 0 keeps it finite where scores tell the two apart without error. The shift depends
    on how many of the frames are hits.
    """
    odds = np.clip(score, 1e-4, 1 - 1e-4)
    x = np.stack([np.log(odds / (1 - odds)), np.ones(len(odds))], 1)
    first = np.array([1.0, 0.0])
    weights = first
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (chance - hit) + (weights - first)
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
    return {"scale": round(float(weights[0]), 3), "shift": round(float(weights[1]), 3)}


def best_threshold(positives: Array, negatives: Array) -> float:
    """The threshold with the highest balanced accuracy of "positive if at least it".

    Of several that are as good, the middle of the widest gap without values, so that both sides have the same room.
    """
    values = np.unique(np.concatenate([positives, negatives]))
    # Between neighbouring values every threshold decides alike.
    edges = np.concatenate([values[:1], (values[:-1] + values[1:]) / 2])
    room = np.concatenate([[0.0], np.diff(values)])
    above = 1 - np.searchsorted(np.sort(positives), edges) / len(positives)
    below = np.searchsorted(np.sort(negatives), edges) / len(negatives)
    accuracy = (above + below) / 2
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-12)
    return float(edges[best[np.argmax(room[best])]])


def auroc(positives: Array, negatives: Array) -> float:
    """Chance that a positive's value exceeds a negative's; ties count half."""
    ordered = np.sort(negatives)
    lower, upper = np.searchsorted(ordered, positives, "left"), np.searchsorted(ordered, positives, "right")
    return float((lower + upper).mean() / 2 / len(negatives))


def _percentiles(values: Array) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 4) for p in (2, 5, 25, 50, 75, 95, 98)}


def text(report: Mapping[str, Any]) -> str:
    """The calibrations of several trackers (label -> `calibrate`'s numbers) for people."""
    lines = []
    for label, own in report["trackers"].items():
        f = own["frames"]
        lines.append(
            f"{label}: {f['hits']} hits (IoU > {HIT:g}), {f['between']} in between, {f['misses']} misses, of which "
            f"{f['absent']} without the target; {f['lost_absent']} searches without the target"
        )
        if not own["cues"]:
            lines += ["  hits and misses are both needed for thresholds", ""]
            continue
        for name, cue in own["cues"].items():
            ranges = "   ".join(
                f"{kind} {cue[kind]['p5']:.3f} / {cue[kind]['p50']:.3f} / {cue[kind]['p95']:.3f}"
                for kind in ("hits", "misses")
            )
            lines.append(f"  {name:<11} AUROC {cue['auroc']:.3f}   5 / 50 / 95 %: {ranges}")
        lines.append(f"  {'option':<22}{'now':>8}{'suggested':>11}")
        for name, value in own["current"].items():
            new = own["suggested"].get(name)
            lines.append(f"  {name:<22}{value:>8.3f}" + ("-" if new is None else f"{new:.3f}").rjust(11))
        for name in own["quality"]["current"]:
            now, new = (own["quality"][kind][name] for kind in ("current", "suggested"))
            lines.append(f"  {name.replace('_', ' '):<22}{now:>8.3f}{new:>11.3f}")
        lines.append(f"  {own['set']}")
        if own["chance"] is not None:
            lines.append(
                f"  chance of a hit: log-odds of the score times {own['chance']['scale']:g} plus "
                f"{own['chance']['shift']:g} (thresholds are for the score as it is now)"
            )
        lines.append("")
    return "\n".join(lines).rstrip()
