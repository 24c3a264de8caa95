"""What runs of trackers amount to: numbers as JSON and as a table, plots and strips of frames."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import metrics
from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation.plots import draw_curves, draw_strip
from tracker_ros.evaluation.runs import Track

#: Measures that are averaged over the sequences.
MEASURES = ("auc", "auc_later", "precision", "normalized_precision", "op50", "op75")
#: Measures over the frames of all sequences, as the GOT-10k toolkit pools them.
POOLED = ("ao", "sr50", "sr75")
#: How true the states are; see `metrics.StateDecisions`.
STATES = ("precision", "recall", "false_alarms", "silent_misses")
CURVES = ("success", "precisions", "normalized_precisions")

_LEGEND = (
    "AUC*: AUC without the first frame, whose box is given.\n"
    "LostP, LostR: precision and recall of LOST on frames without the target. LostHit: hits (IoU > 0.5) called LOST.\n"
    "SilMiss: misses (no overlap, or no target) called TRACKING. skip: frames that the tracker did not look at."
)


def summarize(
    tracks: Mapping[str, Mapping[str, Track]], sequences: Sequence[seq.Sequence], realtime: float | None = None
) -> dict[str, Any]:
    """All numbers of an evaluation, as JSON takes them.

    Args:
        tracks: what each tracker said, by its label and the sequence's name.
        sequences: what they ran over.
        realtime: frames a second that they had to keep up with, for the record.

    Returns:
        ``sequences``, ``realtime`` and ``trackers``: label -> ``mean`` (`MEASURES` and `CURVES` over sequences),
        ``pooled`` (`POOLED` over frames), ``states`` (`STATES` and what they count), ``reliability`` (mean IoU a
        score bin), ``milliseconds`` and ``skipped`` (part of the frames that were not looked at), and ``sequences``
        with the numbers of each.
    """
    trackers = {label: _summarize(own, sequences) for label, own in tracks.items()}
    return {"sequences": [s.name for s in sequences], "realtime": realtime, "trackers": trackers}


def _summarize(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence]) -> dict[str, Any]:
    scores = {s.name: metrics.evaluate(tracks[s.name].boxes, s.truth, tracks[s.name].size) for s in sequences}
    states = {s.name: metrics.state_decisions(tracks[s.name].boxes, tracks[s.name].states, s.truth) for s in sequences}
    # GOT-10k weighs every frame alike; a sequence's part is its frames but the first.
    weights = {name: own.frames - 1 for name, own in scores.items()}
    frames = max(1, sum(weights.values()))
    total = sum(states.values(), start=metrics.StateDecisions())
    seconds = np.concatenate([tracks[s.name].seconds[1:] for s in sequences])
    taken = seconds[~np.isnan(seconds)] * 1e3
    per_sequence = {}
    for name, own in scores.items():
        numbers = {key: getattr(own, key) for key in ("frames", *MEASURES, *POOLED)}
        per_sequence[name] = {**numbers, "states": _decisions(states[name])}
    return {
        "mean": {
            **{key: float(np.nanmean([getattr(own, key) for own in scores.values()])) for key in MEASURES},
            **{key: np.mean([getattr(own, key) for own in scores.values()], axis=0).tolist() for key in CURVES},
        },
        "pooled": {
            key: sum(weights[name] * getattr(own, key) for name, own in scores.items() if weights[name]) / frames
            for key in POOLED
        },
        "states": _decisions(total),
        "reliability": reliability(tracks, sequences),
        "milliseconds": {
            "mean": float(taken.mean()) if len(taken) else math.nan,
            "p50": float(np.percentile(taken, 50)) if len(taken) else math.nan,
            "p99": float(np.percentile(taken, 99)) if len(taken) else math.nan,
            "init_p50": float(np.median([tracks[s.name].seconds[0] for s in sequences])) * 1e3,
        },
        "skipped": float(np.isnan(seconds).mean()) if len(seconds) else 0.0,
        "sequences": per_sequence,
    }


def _decisions(states: metrics.StateDecisions) -> dict[str, float]:
    return {**dataclasses.asdict(states), **{key: getattr(states, key) for key in STATES}}


def reliability(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence], bins: int = 10) -> dict[str, Any]:
    """How true the scores are: frames sorted by score into `bins` of equal width.

    Returns:
        ``score`` (middle of the bin), ``iou`` (mean; 0 for frames without the target; None in empty bins) and
        ``frames``, a list each.
    """
    said = np.concatenate([tracks[s.name].scores[1:] for s in sequences])
    ious = []
    for s in sequences:
        own = np.zeros(len(s) - 1)
        own[~s.absent[1:]] = metrics.overlaps(tracks[s.name].boxes[1:], s.truth[1:])
        ious.append(own)
    iou = np.concatenate(ious)
    index = np.clip((said * bins).astype(int), 0, bins - 1)
    means = [float(iou[index == k].mean()) if (index == k).any() else None for k in range(bins)]
    middles = [round((k + 0.5) / bins, 4) for k in range(bins)]
    return {"score": middles, "iou": means, "frames": [int((index == k).sum()) for k in range(bins)]}


def table(report: Mapping[str, Any], *, per_sequence: bool = True) -> str:
    """The report as text: a row a tracker, best AUC first, then the AUC of every sequence."""
    ranked = sorted(report["trackers"].items(), key=lambda item: -item[1]["mean"]["auc"])
    width = max([len("tracker"), *(len(label) for label, _ in ranked)]) + 2
    heads = [
        "AUC",
        "AUC*",
        "Prec",
        "NPrec",
        "OP50",
        "OP75",
        "AO",
        "SR50",
        "SR75",
        "LostP",
        "LostR",
        "LostHit",
        "SilMiss",
    ]
    heads += ["ms p50", "ms p99", "skip"]
    lines = ["tracker".ljust(width) + "".join(head.rjust(8) for head in heads)]
    for label, own in ranked:
        numbers = [own["mean"][key] for key in MEASURES] + [own["pooled"][key] for key in POOLED]
        numbers += [own["states"][key] for key in STATES]
        cells = [_cell(v, 3) for v in numbers]
        cells += [_cell(own["milliseconds"]["p50"], 1), _cell(own["milliseconds"]["p99"], 1), _cell(own["skipped"], 3)]
        lines.append(label.ljust(width) + "".join(cell.rjust(8) for cell in cells))
    if per_sequence:
        names = report["sequences"]
        name_width = max(len(name) for name in [*names, "AUC by sequence"]) + 2
        columns = [max(8, len(label) + 2) for label, _ in ranked]
        rows = {"AUC by sequence": [label for label, _ in ranked]}
        rows |= {name: [_cell(own["sequences"][name]["auc"], 3) for _, own in ranked] for name in names}
        lines.append("")
        for name, cells in rows.items():
            row = (cell.rjust(column) for cell, column in zip(cells, columns, strict=True))
            lines.append(name.ljust(name_width) + "".join(row))
    lines += ["", _LEGEND]
    if report["realtime"]:
        lines += ["", f"against the clock: frames came at {report['realtime']:g} Hz"]
    return "\n".join(lines)


def _cell(value: float, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def write(
    out: Path,
    report: Mapping[str, Any],
    tracks: Mapping[str, Mapping[str, Track]],
    sequences: Sequence[seq.Sequence],
    *,
    strips: bool = True,
) -> list[Path]:
    """Write ``report.json``, ``report.txt``, the plots and ``strips/<sequence>.jpg`` into `out`; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "report.json", out / "report.txt"]
    files[0].write_text(json.dumps(_finite(report), indent=1) + "\n")
    files[1].write_text(table(report) + "\n")
    for name, picture in plots(report).items():
        files.append(out / f"{name}.png")
        cv2.imwrite(str(files[-1]), picture)
    if strips:
        (out / "strips").mkdir(exist_ok=True)
        for s in sequences:
            files.append(out / "strips" / f"{s.name}.jpg")
            cv2.imwrite(str(files[-1]), draw_strip(s, {label: own[s.name].boxes for label, own in tracks.items()}))
    return files


def plots(report: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """The report's curves: ``success``, ``precision``, ``normalized_precision`` and ``reliability``."""
    ranked = sorted(report["trackers"].items(), key=lambda item: -item[1]["mean"]["auc"])

    def curves(key: str, x: NDArray[np.float64], measure: str) -> dict[str, Any]:
        return {f"{label} [{own['mean'][measure]:.3f}]": (x, np.array(own["mean"][key])) for label, own in ranked}

    count = len(report["sequences"])
    trust = {
        label: (np.array(own["reliability"]["score"]), np.array(own["reliability"]["iou"], np.float64))
        for label, own in ranked
    }
    return {
        "success": draw_curves(
            f"Success, {count} sequences [AUC]", "overlap threshold", "success rate",
            curves("success", metrics.SUCCESS_THRESHOLDS, "auc"),
        ),
        "precision": draw_curves(
            f"Precision, {count} sequences [at 20 px]", "centre error threshold (pixels)", "precision",
            curves("precisions", metrics.PRECISION_THRESHOLDS, "precision"),
        ),
        "normalized_precision": draw_curves(
            f"Normalised precision, {count} sequences [at 0.2]", "centre error threshold (target sizes)", "precision",
            curves("normalized_precisions", metrics.NORMALIZED_THRESHOLDS, "normalized_precision"),
        ),
        "reliability": draw_curves("Reliability of the score", "score", "mean IoU", trust, x_max=1.0),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """The value with None for NaN, which is no JSON."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
