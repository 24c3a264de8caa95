"""What runs of trackers amount to: numbers as JSON and as a table, plots and strips of frames."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker_ros.evaluation import metrics, provenance, vot
from tracker_ros.evaluation import sequences as seq
from tracker_ros.evaluation import vanish as vanishing
from tracker_ros.evaluation.plots import draw_bars, draw_curves, draw_strip
from tracker_ros.evaluation.runs import ONE_PASS, Protocol, Track
from tracker_ros.images import write_file

#: Measures that are averaged over the sequences.
MEASURES = ("auc", "auc_later", "precision", "normalized_precision", "op50", "op75")
#: Measures over the frames of all sequences, as the GOT-10k toolkit pools them.
POOLED = ("ao", "sr50", "sr75")
#: How true the states are; see `metrics.StateDecisions`.
STATES = ("precision", "recall", "miss_precision", "miss_recall", "false_alarms", "silent_misses", "off", "afraid")
CURVES = ("success", "precisions", "normalized_precisions")

#: Columns of the tables: head, where the report has the number, digits.
_COLUMNS = {
    "ope": (
        ("AUC", "mean.auc", 3), ("AUC*", "mean.auc_later", 3), ("Prec", "mean.precision", 3),
        ("NPrec", "mean.normalized_precision", 3), ("OP50", "mean.op50", 3), ("OP75", "mean.op75", 3),
        ("AO", "pooled.ao", 3), ("SR50", "pooled.sr50", 3), ("SR75", "pooled.sr75", 3),
        ("LostP", "states.precision", 3), ("LostR", "states.recall", 3), ("MissP", "states.miss_precision", 3),
        ("MissR", "states.miss_recall", 3), ("LostHit", "states.false_alarms", 3),
        ("SilMiss", "states.silent_misses", 3), ("Off", "states.off", 3), ("Afraid", "states.afraid", 3),
        ("ECE", "reliability.ece", 3), ("ms p50", "milliseconds.p50", 1),
        ("ms p99", "milliseconds.p99", 1), ("skip", "skipped", 3),
    ),
    "vot": (
        ("A", "accuracy", 3), ("R", "robustness", 3), ("fail", "failures", 0), ("f/100", "failure_rate", 2),
        ("frames", "frames", 0), ("ms p50", "milliseconds.p50", 1), ("ms p99", "milliseconds.p99", 1),
    ),
}  # fmt: skip

_LEGENDS = {
    "ope": (
        "AUC*: AUC without the first frame, whose box is given.\n"
        "LostP, LostR: precision and recall of LOST on frames without the target. MissP, MissR: the same on all misses "
        "(no overlap, or no\ntarget). LostHit: hits (IoU > 0.5) called LOST. SilMiss: misses called TRACKING. "
        "Off, Afraid: parts of all frames: called\nTRACKING at an IoU below 0.1 with the target in view, and LOST at "
        "one above 0.5. ECE: expected calibration error, how far the\nscore is from the chance of a hit. "
        "skip: frames that the tracker did not look at."
    ),
    "vot": (
        f"A: mean IoU without the {vot.BURN_IN} frames from each start on. fail: frames without overlap; each is "
        "followed by a new start.\nf/100: failures in 100 frames. "
        f"R: chance of no failure in {vot.SENSITIVITY} frames, exp(-{vot.SENSITIVITY} failures / frames)."
    ),
}


def summarize(
    tracks: Mapping[str, Mapping[str, Track]],
    sequences: Sequence[seq.Sequence],
    protocol: Protocol = ONE_PASS,
) -> dict[str, Any]:
    """All numbers of an evaluation, as JSON takes them (but for NaN, see `write`).

    Args:
        tracks: what each tracker said, by its label and the sequence's name.
        sequences: what they ran over; their truth must be known.
        protocol: how they ran.

    Returns:
        ``protocol``, ``realtime``, ``seed``, ``sequences`` (names) and ``trackers``: label -> ``milliseconds``
        (``mean``, ``p50``, ``p99`` a frame and ``init_p50``), ``sequences`` with the numbers of each, and

        - for ``ope``: ``mean`` (`MEASURES` and `CURVES` over sequences), ``pooled`` (`POOLED` over frames), ``states``
          (`STATES` and what they count), ``reliability`` (see `reliability`) and ``skipped`` (part of the frames that
          were not looked at);
        - for ``vot``: ``accuracy``, ``robustness``, ``failure_rate``, ``failures``, ``frames`` and ``judged``, of all
          sequences together; see `vot.VotScores`.
    """
    summary = _summarize_vot if protocol.name == "vot" else _summarize
    return {
        "protocol": protocol.name,
        "realtime": protocol.realtime,
        "seed": protocol.seed,
        "sequences": [s.name for s in sequences],
        "trackers": {label: summary(own, sequences) for label, own in tracks.items()},
    }


def _summarize_vot(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence]) -> dict[str, Any]:
    scores = {s.name: vot.evaluate(tracks[s.name], s.truth) for s in sequences}
    return {
        **_vot_numbers(sum(scores.values(), start=vot.VotScores())),
        "milliseconds": _milliseconds(tracks, sequences),
        "sequences": {name: _vot_numbers(own) for name, own in scores.items()},
    }


def _vot_numbers(scores: vot.VotScores) -> dict[str, float]:
    keys = ("accuracy", "robustness", "failure_rate", "failures", "frames", "judged")
    return {key: getattr(scores, key) for key in keys}


def _summarize(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence]) -> dict[str, Any]:
    scores = {s.name: metrics.evaluate(tracks[s.name].boxes, s.truth, tracks[s.name].size) for s in sequences}
    states = {s.name: metrics.state_decisions(tracks[s.name].boxes, tracks[s.name].states, s.truth) for s in sequences}
    # GOT-10k weighs every frame alike; a sequence's part is its frames but the first.
    weights = {name: own.frames - 1 for name, own in scores.items()}
    frames = max(1, sum(weights.values()))
    total = sum(states.values(), start=metrics.StateDecisions())
    seconds = np.concatenate([tracks[s.name].seconds[1:] for s in sequences])
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
        "milliseconds": _milliseconds(tracks, sequences),
        "skipped": float(np.isnan(seconds).mean()) if len(seconds) else 0.0,
        "sequences": per_sequence,
    }


def _milliseconds(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence]) -> dict[str, float]:
    starts = np.concatenate([tracks[s.name].seconds[list(tracks[s.name].starts)] for s in sequences]) * 1e3
    steps = np.concatenate([np.delete(tracks[s.name].seconds, tracks[s.name].starts) for s in sequences]) * 1e3
    steps = steps[~np.isnan(steps)]
    return {
        "mean": float(steps.mean()) if len(steps) else math.nan,
        "p50": float(np.percentile(steps, 50)) if len(steps) else math.nan,
        "p99": float(np.percentile(steps, 99)) if len(steps) else math.nan,
        "init_p50": float(np.median(starts)),
    }


def _decisions(states: metrics.StateDecisions) -> dict[str, float]:
    return {**dataclasses.asdict(states), **{key: getattr(states, key) for key in STATES}}


def reliability(tracks: Mapping[str, Track], sequences: Sequence[seq.Sequence], bins: int = 10) -> dict[str, Any]:
    """How true the scores are: frames sorted by score into `bins` of equal width.

    Returns:
        ``score`` (middle of the bin), ``iou`` (mean; 0 for frames without the target; None in empty bins), ``hits``
        (part with an IoU above 0.5) and ``frames``, a list each; and ``ece``, the expected calibration error (Guo et
        al., "On calibration of modern neural networks", ICML 2017, eq. 3): the mean over frames of the distance
        between the mean score of their bin and its hits.
    """
    said = np.concatenate([tracks[s.name].scores[1:] for s in sequences])
    ious = []
    for s in sequences:
        own = np.zeros(len(s) - 1)
        own[~s.absent[1:]] = metrics.overlaps(tracks[s.name].boxes[1:], s.truth[1:])
        ious.append(own)
    iou = np.concatenate(ious)
    index = np.clip((said * bins).astype(int), 0, bins - 1)
    inside = [index == k for k in range(bins)]
    gaps = [own.sum() * abs(said[own].mean() - (iou[own] > 0.5).mean()) for own in inside if own.any()]
    return {
        "score": [round((k + 0.5) / bins, 4) for k in range(bins)],
        "iou": [float(iou[own].mean()) if own.any() else None for own in inside],
        "hits": [float((iou[own] > 0.5).mean()) if own.any() else None for own in inside],
        "frames": [int(own.sum()) for own in inside],
        "ece": float(sum(gaps) / len(said)) if len(said) else math.nan,
    }


def table(report: Mapping[str, Any], *, per_sequence: bool = True) -> str:
    """The report as text: a row a tracker, the best first, then the main number of every sequence."""
    columns = _COLUMNS[report["protocol"]]
    ranked = _ranked(report)
    width = max([len("tracker"), *(len(label) for label, _ in ranked)]) + 2
    lines = ["tracker".ljust(width) + "".join(head.rjust(8) for head, _, _ in columns)]
    for label, own in ranked:
        cells = [_cell(_find(own, path), digits) for _, path, digits in columns]
        lines.append(label.ljust(width) + "".join(cell.rjust(8) for cell in cells))
    if per_sequence:
        names = report["sequences"]
        title = "A (failures) by sequence" if report["protocol"] == "vot" else "AUC by sequence"
        name_width = max(len(name) for name in [*names, title]) + 2
        widths = [max(10, len(label) + 2) for label, _ in ranked]
        rows = {title: [label for label, _ in ranked]}
        starts: dict[str, list[str]] = {}
        for name in names:
            whole, _, change = name.rpartition(seq.START_MARK)
            starts.setdefault(whole if change in seq.STARTS and whole in starts else name, []).append(name)
        for name, members in starts.items():
            rows[name] = [_sequence_cell([own["sequences"][member] for member in members]) for _, own in ranked]
        lines.append("")
        for name, cells in rows.items():
            row = (cell.rjust(column) for cell, column in zip(cells, widths, strict=True))
            lines.append(name.ljust(name_width) + "".join(row))
    lines += ["", _LEGENDS[report["protocol"]]]
    if any("vanish" in own for _, own in ranked):
        lines += ["", *_vanish_rows(ranked, width)]
    if report.get("problems"):
        lines += ["", f"{len(report['problems'])} problems, with frames and sequences left out:", *report["problems"]]
    if report["realtime"]:
        lines += ["", f"against the clock: frames came at {report['realtime']:g} Hz"]
    if "origin" in report:
        lines += ["", provenance.text(report["origin"]) + f"\nseed: {report['seed']}"]
    return "\n".join(lines)


def _vanish_rows(ranked: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> list[str]:
    """The table of what was said after the target had vanished."""
    heads = [f"{word}: {what}" for word in vanishing.WAYS.values() for what in ("TRACKING", "late", "never LOST")]
    lines = ["tracker".ljust(width) + "".join(head.rjust(len(head) + 2) for head in heads)]
    for label, own in ranked:
        cells = []
        for way in vanishing.WAYS:
            said = own["vanish"][way]
            cells += [
                _cell(said["tracking"], 3),
                _cell(said["tracking_late"], 3),
                f"{said['never_lost']}/{said['clips']}",
            ]
        row = (cell.rjust(len(head) + 2) for cell, head in zip(cells, heads, strict=True))
        lines.append(label.ljust(width) + "".join(row))
    return [
        *lines, "",
        "The target vanishes: another scene, or painted out. TRACKING: part of the frames after that; late: the same "
        f"without the first\n{vanishing.GRACE} of each clip. never LOST: clips in which LOST was not said once.",
    ]  # fmt: skip


def _ranked(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The trackers, the best first: by AUC, or by failures and then accuracy (NaN last)."""

    def key(item: tuple[str, dict[str, Any]]) -> tuple[float, ...]:
        own = item[1]
        if report["protocol"] == "vot":
            return own["failures"], -np.nan_to_num(own["accuracy"])
        return (-own["mean"]["auc"],)

    return sorted(report["trackers"].items(), key=key)


def _find(numbers: Mapping[str, Any], path: str) -> float:
    """``numbers["a"]["b"]`` for the path ``a.b``."""
    found: Any = numbers
    for key in path.split("."):
        found = found[key]
    return float(found)


def _sequence_cell(starts: Sequence[Mapping[str, Any]]) -> str:
    first = starts[0]
    if "failures" in first:
        return f"{_cell(first['accuracy'], 3)} ({first['failures']})"
    return _cell(float(np.nanmean([own["auc"] for own in starts])), 3)


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def write(
    out: Path,
    report: Mapping[str, Any],
    tracks: Mapping[str, Mapping[str, Track]],
    sequences: Sequence[seq.Sequence],
    *,
    strips: bool = True,
) -> list[Path]:
    """Write ``report.json`` (null for NaN), ``report.txt``, the plots and ``strips/<sequence>.jpg`` into `out`.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "report.json", out / "report.txt"]
    files[0].write_text(json.dumps(finite(report), indent=1) + "\n")
    files[1].write_text(table(report) + "\n", errors="backslashreplace")
    for name, picture in plots(report).items():
        files.append(out / f"{name}.png")
        write_file(files[-1], picture)
    if strips:
        (out / "strips").mkdir(exist_ok=True)
        tracks = {label: tracks[label] for label, _ in _ranked(report)}  # for the colours that the plots give them
        for s in sequences:
            files.append(out / "strips" / f"{s.name}.jpg")
            write_file(files[-1], draw_strip(s, {label: own[s.name].boxes for label, own in tracks.items()}))
    return files


def plots(report: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """The report's pictures (HxWx3 uint8, BGR) by name.

    ``success``, ``precision``, ``normalized_precision`` and ``reliability`` for ``ope``; ``accuracy_robustness`` for
    ``vot``.
    """
    ranked = _ranked(report)
    if report["protocol"] == "vot":
        points = {label: (np.array([own["robustness"]]), np.array([own["accuracy"]])) for label, own in ranked}
        axis = f"robustness (no failure in {vot.SENSITIVITY} frames)"
        title = f"Accuracy and robustness, {len(report['sequences'])} sequences"
        return {"accuracy_robustness": draw_curves(title, axis, "accuracy", points, x_max=1.0)}

    def curves(key: str, x: NDArray[np.float64], measure: str) -> dict[str, Any]:
        return {f"{label} [{own['mean'][measure]:.3f}]": (x, np.array(own["mean"][key])) for label, own in ranked}

    count = len(report["sequences"])
    trust = {
        f"{label} [{own['reliability']['ece']:.3f}]": (
            np.array(own["reliability"]["score"]), np.array(own["reliability"]["iou"], np.float64)
        )
        for label, own in ranked
    }  # fmt: skip
    counts = [own["reliability"]["frames"] for _, own in ranked]
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
        "reliability": np.vstack([
            draw_curves("Reliability of the score [ECE]", "score", "mean IoU", trust, x_max=1.0),
            draw_bars("frames in each tenth of the score", counts),
        ]),
    }  # fmt: skip


def finite(value: Any) -> Any:
    """The value with None for NaN, which is no JSON."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
