"""``tracker_ros figures``: the one table of the shipped trackers' figures, made of reports.

What the table needs of the reports is kept beside it as ``figures.json``, so that it can be made again without them. A
tracker has figures only while its weights are the ones that were measured: with others its cells stay empty.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracker_ros import registry
from tracker_ros.evaluation.report import finite
from tracker_ros.evaluation.sequences import START_MARK
from tracker_ros.evaluation.specs import TrackerSpec

#: What is kept of each tracker of a report: name -> where the report has it.
MEASURES = {
    "auc": ("mean", "auc"),
    "precision": ("mean", "precision"),
    "ao": ("pooled", "ao"),
    "op50": ("mean", "op50"),
    "silent_misses": ("states", "silent_misses"),
    "off": ("states", "off"),
    "afraid": ("states", "afraid"),
    "ece": ("reliability", "ece"),
    "elsewhere": ("vanish", "elsewhere", "tracking"),
    "erased": ("vanish", "erased", "tracking"),
    "never_lost": ("vanish", "erased", "never_lost"),
}
_HEADS = (
    "preset", "network", "AUC", "precision", "AO", "OP50", "misses called TRACKING", "TRACKING off", "LOST on hits",
    "ECE", "TRACKING after the cut", "erased", "never LOST", "ms a frame", "file, MB",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros figures``."""
    parser.add_argument(
        "--report", nargs="+", type=Path, default=[], metavar="FILE",
        help="report.json of `tracker_ros evaluate`; without it, the table is made of the figures.json beside --out",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", nargs="+", type=Path, default=[], metavar="FILE", help="what `tracker_ros benchmark --out` wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("models/README.md"), metavar="FILE", help="the table")


def run(args: argparse.Namespace) -> int:
    """Write the table, and ``figures.json`` where reports are given.

    Raises:
        ValueError: reports that do not go together, see `gather`; a benchmark without a report.
        FileNotFoundError: a report, or without one figures.json, is not there.
    """
    kept = args.out.with_name("figures.json")
    if args.report:
        figures = gather([_read(path) for path in args.report], [_read(path) for path in args.benchmark])
        kept.write_text(text(figures))
    elif args.benchmark:
        raise ValueError("--benchmark goes with --report: give the reports that the times belong to")
    args.out.write_text(table(_read(kept)))
    print(f"figures: {args.out}, made of {kept}")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"'{path}' is no JSON object: {error}") from error


def gather(reports: Sequence[Mapping[str, Any]], benchmarks: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the table needs of reports, as JSON takes it.

    Args:
        reports: of one pass over the same sequences with the same seed, a tracker in one of them only.
        benchmarks: results of `benchmark.run` on one machine and the same frames; trackers without a report are left
            out.

    Returns:
        ``measured`` and ``timed`` (how; None without benchmarks) and ``trackers``: preset -> `MEASURES`, ``ms``
        (median, or None) and ``files`` (name -> digest of the weights that were measured).

    Raises:
        ValueError: a report of another protocol or of several conditions, a tracker that is no preset as it is, or
            that is there twice.
    """
    for report in reports:
        if "protocol" not in report or "origin" not in report:
            raise ValueError("a file given as a report is no report.json of `tracker_ros evaluate`")
        if report["protocol"] != "ope" or report["realtime"] is not None:
            raise ValueError("the table is of one pass that is not against the clock: --protocol ope, no --realtime")
    measured = _one([_measured(report) for report in reports], "reports")
    trackers: dict[str, dict[str, Any]] = {}
    for report in reports:
        for label, own in report["trackers"].items():
            _check(label, trackers)
            values = {key: _round(_find(own, path)) for key, path in MEASURES.items()}
            trackers[label] = {**values, "ms": None, "files": report["origin"]["trackers"][label]["files"]}
    timed: list[dict[str, Any]] = []
    times: dict[str, float] = {}
    for benchmark in benchmarks:
        if "trackers" not in benchmark or "source" not in benchmark:
            raise ValueError("a file given as a benchmark is none of `tracker_ros benchmark --out`")
        for label, own in benchmark["trackers"].items():
            _check(label, times)
            timed.append(_timed(benchmark, own["device"]))
            times[label] = own["ms"]["p50"]
            files = benchmark["origin"]["trackers"][label]["files"]
            if label in trackers and files == trackers[label]["files"]:
                trackers[label]["ms"] = round(times[label], 1)
    order = [name for name in registry.names() if name in trackers]
    return dict(
        finite(
            {
                "measured": measured,
                "timed": _one(timed, "benchmarks") if timed else None,
                "trackers": {name: trackers[name] for name in order},
            }
        )
    )


def _check(label: str, seen: Mapping[str, Any]) -> None:
    if label in seen:
        raise ValueError(f"tracker '{label}' is in two of the files")
    if label not in registry.names():
        raise ValueError(f"'{label}' is no preset as it is; the table has only such: {', '.join(registry.names())}")


def _one(conditions: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """The conditions that all share."""
    for key in conditions[0]:
        values = {json.dumps(own[key]) for own in conditions}
        if len(values) > 1:
            raise ValueError(f"the {what} differ in '{key}', so their figures don't compare: {'; '.join(values)}")
    return conditions[0]


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    some = next(iter(report["trackers"].values()))
    return {
        "sequences": report["sequences"],
        "frames": sum(own["frames"] for own in some["sequences"].values()),
        "seed": report["seed"],
        "processor": report["origin"]["machine"]["processor"],
        "version": report["origin"]["versions"]["tracker_ros"],
    }


def _timed(benchmark: Mapping[str, Any], device: str) -> dict[str, Any]:
    machine = benchmark["origin"]["machine"]
    return {
        "source": benchmark["source"],
        "device": _device(device, machine["gpus"]),
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "threads": benchmark["threads"],
    }


def _device(device: str, gpus: Sequence[str]) -> str:
    # Trackers without torch say "cpu" too; what runs on a GPU and what does not are two tables.
    kind, _, index = device.partition(":")
    return gpus[int(index or 0)] if kind == "cuda" else "CPU"


def _find(numbers: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at the end of `path`; None where the report does not have it."""
    found: Any = numbers
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def text(figures: Mapping[str, Any]) -> str:
    """The figures as JSON, a line a tracker."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(own)}" for name, own in figures["trackers"].items())
    heads = [f' "{key}": {json.dumps(figures[key])}' for key in ("measured", "timed")]
    return "{\n" + ",\n".join(heads) + ',\n "trackers": {\n' + rows + "\n }\n}\n"


def table(figures: Mapping[str, Any]) -> str:
    """The table as Markdown: the presets that have figures or shipped weights, in the register's order."""
    lines = ["# Figures", "", "Made by `tracker_ros figures`; never by hand.", ""]
    lines += ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * 2 + "--:|" * (len(_HEADS) - 2)]
    for name in registry.names():
        row = _row(name, figures["trackers"].get(name))
        if row is not None:
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *_notes(figures)]) + "\n"


def _row(name: str, own: Mapping[str, Any] | None) -> list[str] | None:
    """Cells of one preset; None for one that was not measured and brings no weights."""
    shipped = _shipped(name)
    network, size = "", ""
    if shipped is not None and shipped.is_file():
        network, size = f"[{shipped.stem}]({shipped.stem}.md)", f"{shipped.stat().st_size / 1e6:.1f}"
    elif own is None:
        return None
    if own is None or own["files"] != TrackerSpec(name, name, {}).files:
        return [f"`{name}`", network, *[""] * (len(MEASURES) + 1), size]
    values = [_cell(own.get(key)) for key in MEASURES]
    return [f"`{name}`", network, *values, "" if own["ms"] is None else f"{own['ms']:.1f}", size]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _shipped(name: str) -> Path | None:
    """Where the weights of a preset are, or would be; None for one without a network."""
    network = registry.get(name).network
    if network is None:
        return None
    from tracker_ros import weights  # it loads torch

    return weights.shipped(network.name)


def _notes(figures: Mapping[str, Any]) -> list[str]:
    measured, timed = figures["measured"], figures["timed"]
    names = measured["sequences"]
    whole = {name.partition(START_MARK)[0] for name in names}
    starts = f", from {len(names)} starts" if len(names) > len(whole) else ""
    notes = [
        f"One pass over {len(whole)} real sequences{starts} ({measured['frames']} frames with the target), none of "
        f"which anything was trained on; seed {measured['seed']}, {measured['processor']}. AUC, precision (20 px) and "
        "OP50 are means over sequences and count the first frame, AO is over frames and does not. A miss is a frame "
        "without overlap or without the target, a hit an IoU above 0.5. TRACKING off (IoU below 0.1), LOST on hits: "
        "parts of all frames. After the cut: parts of the frames called TRACKING where another scene follows, and "
        "where the target is painted out; never LOST: clips of the latter ([evaluation](../docs/evaluation.md)). It is "
        "no published benchmark: compare within the table. Close calls hang on rounding: another number of threads "
        "moves AUC by 0.01 to 0.02, and misses called TRACKING by more.",
        "",
    ]
    if timed is not None:
        threads = f", {timed['threads']} threads" if timed["threads"] else ""
        notes += [f"ms a frame: median, {timed['source']}, {timed['device']}, {timed['machine']}{threads}.", ""]
    return [
        *notes,
        "An empty cell was not measured with the weights that are shipped. All networks stand on "
        "[backbone18](backbone18.md), whose file comes on top.",
        "",
        "```bash",
        "OMP_NUM_THREADS=1 tracker_ros evaluate --sequences DIR --vanish --out out/report --tracker \\",
        f"    {' '.join(figures['trackers'])}",
        "tracker_ros benchmark --tracker dimp18 --out out/dimp18.json   # and so on, each tracker alone",
        "tracker_ros figures --report out/report/report.json --benchmark out/*.json",
        "```",
        "",
        "Sequences: " + ", ".join(sorted(whole)) + ".",
    ]
