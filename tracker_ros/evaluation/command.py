"""``tracker_ros evaluate``: measure trackers on sequences with known boxes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tracker_ros.evaluation import calibration, provenance
from tracker_ros.evaluation import report as reports
from tracker_ros.evaluation.bags import is_bag, load_bag
from tracker_ros.evaluation.flights import load_flights
from tracker_ros.evaluation.runs import PROTOCOLS, Protocol, run_all
from tracker_ros.evaluation.sequences import STARTS, Sequence, check_start, find_sequences, with_starts
from tracker_ros.evaluation.specs import TrackerSpec, parse_specs
from tracker_ros.evaluation.stills import HELD_OUT_EVERY, load_stills
from tracker_ros.evaluation.vanish import summarize as summarize_vanish
from tracker_ros.evaluation.vanish import vanish
from tracker_ros.files import refuse_overwriting
from tracker_ros.geometry.boxes import Box


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros evaluate``."""
    parser.add_argument(
        "--tracker", nargs="+", required=True, metavar="NAME",
        help="trackers; NAME:field=value,... changes options, so that one tracker can run in several forms",
    )  # fmt: skip
    add_sequence_arguments(parser)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="ope",
        help="ope: one pass from the first box; vot: new starts after failures, accuracy and robustness",
    )  # fmt: skip
    parser.add_argument(
        "--realtime", type=float, metavar="FPS",
        help="frames come at this rate: a result counts on the frame that is current when it is ready (ope only)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", action="store_true",
        help="suggest thresholds for the trackers' states instead of measuring them: calibration.json and .txt",
    )  # fmt: skip
    parser.add_argument(
        "--vanish", action="store_true",
        help="also run clips of the sequences in which the target is gone from one frame on (another scene, or painted "
        "out), and count how often trackers go on saying TRACKING (ope only)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), metavar="DIR", help="where results go")
    parser.add_argument("--resume", action="store_true", help="take results of the same options that --out has already")
    parser.add_argument("--device", help="where the trackers run: cpu, cuda, cuda:N")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE",
        help="option of every tracker that has it, or NAME.FIELD=VALUE; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all random generators")
    parser.add_argument("--jobs", type=int, default=1, help="processes (timings need 1)")
    parser.add_argument("--no-strips", action="store_true", help="no pictures of frames with boxes")


def add_sequence_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what to run over."""
    parser.add_argument("--sequences", type=Path, metavar="PATH", help="folder of sequences, one of them, or a rosbag2")
    parser.add_argument(
        "--flights", nargs="+", type=int, default=[], metavar="SEED",
        help="simulated flights with these seeds, 20 s each, in which the target leaves and is hidden",
    )  # fmt: skip
    parser.add_argument(
        "--stills", type=Path, metavar="DIR",
        help="clips made of the images that are not trained on, of a folder with boxes.csv and jpg/",
    )  # fmt: skip
    parser.add_argument("--clips", type=int, default=40, help="number of clips made of --stills")
    parser.add_argument(
        "--first-still", type=int, default=0, metavar="N", choices=range(HELD_OUT_EVERY),
        help="number of the first image that is not trained on: after n frames of videos in training, -n modulo 12",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="sequences to take (otb_*)")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="sequences to leave out")
    parser.add_argument("--one-based", action="store_true", help="the truth counts pixels from 1 (OTB and UAV123)")
    parser.add_argument("--image-topic", metavar="TOPIC", help="rosbag2: the images, where it has several such topics")
    parser.add_argument("--truth-topic", metavar="TOPIC", help="rosbag2: the truth (vision_msgs/Detection2D)")
    parser.add_argument(
        "--box", metavar="X,Y,W,H", help="rosbag2 without truth: the box to start on in the first image, pixels"
    )
    parser.add_argument(
        "--starts", type=int, default=1, metavar="N", choices=range(1, len(STARTS) + 2),
        help="starts of each sequence: from its first box, and from N - 1 that are shifted or scaled a little, as in "
        "OTB's SRE (13: all of it); one start on few sequences says little about two trackers that are close",
    )  # fmt: skip


def load_starts(args: argparse.Namespace, on_problem: Callable[[str], object] | None = None) -> list[Sequence]:
    """The sequences that the arguments name, once a start; see `load_sequences`."""
    return [start for sequence in load_sequences(args, on_problem) for start in with_starts(sequence, args.starts)]


def run(args: argparse.Namespace) -> int:
    """Run the evaluation; prints the table and writes the report into ``--out``."""
    protocol = Protocol(args.protocol, args.realtime, args.seed)
    if args.jobs < 1 or (args.realtime is not None and args.jobs != 1):
        raise ValueError("--jobs must be at least 1, and exactly 1 with --realtime, as processes slow each other")
    if args.starts > 1 and protocol.name != "ope":
        raise ValueError("--starts goes with the protocol 'ope' only: with vot, failures bring new starts")
    if args.vanish and (protocol.name != "ope" or protocol.realtime is not None or args.calibrate):
        raise ValueError("--vanish goes without --protocol vot, --realtime and --calibrate")
    specs = parse_specs(args.tracker, args.settings, args.device)
    problems: list[str] = []

    def on_problem(text: str) -> None:
        problems.append(text)
        tqdm.write(f"tracker_ros evaluate: warning: {text}", file=sys.stderr)

    sequences = load_starts(args, on_problem)
    written = [args.out, args.out / "results", args.out / "strips"]
    refuse_overwriting(written, {path for sequence in sequences for path in sequence.sources})
    if args.calibrate:
        return _calibrate(args, specs, _with_truth(sequences, "--calibrate", on_problem), problems, on_problem)
    if protocol.name == "vot":
        sequences = _with_truth(sequences, "--protocol vot", on_problem)
    # One that can't be built should say so now, not after the others have run.
    built = {spec.label: {"device": spec.create().device, "files": spec.files} for spec in specs}
    gone = vanish([s for s in sequences if s.known and s.start is None], args.seed) if args.vanish else []
    with progress(len(specs) * sum(len(s) for s in [*sequences, *gone])) as bar:

        def on_frames(label: str, frames: int) -> None:
            bar.set_description(label, refresh=False)
            bar.update(frames)

        tracks = run_all(
            specs, [*sequences, *gone], protocol=protocol, out=args.out / "results", resume=args.resume, jobs=args.jobs,
            on_frames=on_frames, on_problem=on_problem,
        )  # fmt: skip
    if not any(tracks.values()):
        raise ValueError("no tracker got through any sequence; the warnings above say why")
    known = [sequence for sequence in sequences if sequence.known]
    if len(known) < len(sequences):
        names = ", ".join(sequence.name for sequence in sequences if not sequence.known)
        print(f"no truth to measure against ({names}); what the trackers said: {args.out / 'results'}")
    # Trackers are compared on the same sequences; one that failed on all of them is left out instead.
    tracks = {label: own for label, own in tracks.items() if own}
    measured = [s for s in known if all(s.name in own for own in tracks.values())]
    if not measured:
        return 2 if known else 0
    report = reports.summarize(tracks, measured, protocol)
    for label, own in tracks.items() if gone else ():
        ran = [clip for clip in gone if clip.name in own]
        report["trackers"][label]["vanish"] = summarize_vanish(own, ran)
    report["problems"] = problems
    report["origin"] = provenance.describe(args.command_line, built)
    reports.write(args.out, report, tracks, measured, strips=not args.no_strips)
    print(reports.table(report))
    print(f"\nreport, plots and results: {args.out}")
    return 0


def _calibrate(
    args: argparse.Namespace,
    specs: list[TrackerSpec],
    sequences: list[Sequence],
    problems: list[str],
    on_problem: Callable[[str], object],
) -> int:
    if args.protocol != "ope" or args.realtime is not None or args.jobs != 1 or args.resume:
        raise ValueError("--calibrate goes without --protocol, --realtime, --jobs and --resume")
    built = {spec.label: {"device": spec.create().device, "files": spec.files} for spec in specs}
    report: dict[str, Any] = {"seed": args.seed, "sequences": [s.name for s in sequences], "trackers": {}}
    report["origin"] = provenance.describe(args.command_line, built)
    report["problems"] = problems
    args.out.mkdir(parents=True, exist_ok=True)

    def tell(problem: str) -> None:
        if problem not in problems:
            on_problem(problem)

    with progress(2 * len(specs) * sum(len(s) for s in sequences)) as bar:
        for spec in specs:
            bar.set_description(spec.label, refresh=False)
            samples = calibration.gather(spec, sequences, seed=args.seed, on_frame=bar.update, on_problem=tell)
            report["trackers"][spec.label] = calibration.calibrate(spec, samples)
            # After each tracker, so that an interruption leaves those that were done.
            (args.out / "calibration.json").write_text(json.dumps(reports.finite(report), indent=1) + "\n")
    words = calibration.text(report)
    origin = provenance.text(report["origin"]) + f"\nseed: {args.seed}"
    (args.out / "calibration.txt").write_text(f"{words}\n\n{origin}\n")
    if problems:
        print(f"left out, as the warnings above say: {len(problems)} frames or sequences", file=sys.stderr)
    print(f"{words}\n\ncalibration: {args.out / 'calibration.json'}")
    return 0


def progress(frames: int) -> Any:
    """A bar over a number of frames."""
    # In a log file, where a bar cannot be drawn over, one line every ten seconds is enough.
    return tqdm(total=frames, unit="frame", smoothing=0.05, mininterval=0.1 if sys.stderr.isatty() else 10.0)


def _with_truth(sequences: list[Sequence], what: str, on_problem: Callable[[str], object]) -> list[Sequence]:
    """Those whose truth is known."""
    known = [sequence for sequence in sequences if sequence.known]
    if not known:
        raise ValueError(f"{what} needs the truth, to see failures; give --truth-topic")
    for sequence in sequences:
        if not sequence.known:
            on_problem(f"sequence '{sequence.name}' has no truth but its first box, and is left out")
    return known


def load_sequences(args: argparse.Namespace, on_problem: Callable[[str], object] | None = None) -> list[Sequence]:
    """The sequences that the arguments name; `on_problem` is called with what is wrong with those that are left out.

    Raises:
        ValueError: none, or options that do not go with what they name.
    """
    made = load_flights(args.flights)
    if args.stills is not None:
        made += load_stills(args.stills, args.clips, first=args.first_still, seed=args.seed)
    if args.sequences is not None:
        return [*_read_sequences(args, on_problem), *made]
    if not made:
        raise ValueError("nothing to run over: give --sequences, --flights or --stills")
    for name in ("image_topic", "truth_topic", "box", "only", "exclude", "one_based"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} goes with --sequences only")
    return made


def _read_sequences(args: argparse.Namespace, on_problem: Callable[[str], object] | None) -> list[Sequence]:
    if is_bag(args.sequences):
        box = None if args.box is None else _box(args.box)
        topics = {"image_topic": args.image_topic, "truth_topic": args.truth_topic}
        sequence = load_bag(args.sequences, box=box, **topics)
        check_start(sequence)
        return [sequence]
    for name in ("image_topic", "truth_topic", "box"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with a rosbag2 only; '{args.sequences}' is none")
    return find_sequences(args.sequences, args.only, args.exclude, one_based=args.one_based, on_problem=on_problem)


def _box(text: str) -> Box:
    try:
        return Box(*(float(v) for v in text.split(",")))
    except (TypeError, ValueError):
        raise ValueError(f"--box is X,Y,W,H in pixels, got '{text}'") from None
