"""A tracker as a server of the TraX protocol, so that vot-toolkit can run it; see ``docs/evaluation.md``.

``python -m tracker_ros.evaluation.trax --tracker NAME`` is the command of a tracker in ``trackers.ini``. The toolkit
starts it, gives it image files and a box, and reads its answers. Čehovin, "TraX: The visual Tracking eXchange protocol
and library", Neurocomputing 2017; spoken here by that library's Python package (``pip install vot-trax``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tracker_ros
from tracker_ros.evaluation.process import set_seeds
from tracker_ros.evaluation.sequences import InvalidSequence, read_image
from tracker_ros.evaluation.specs import parse_specs
from tracker_ros.images import GreyScale
from tracker_ros.trackers.base import Tracker, TrackState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the server."""
    parser.add_argument("--tracker", required=True, metavar="NAME", help="NAME:field=value,... changes options")
    parser.add_argument("--device", help="where it runs: cpu, cuda, cuda:N")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE", help="an option")
    parser.add_argument("--seed", type=int, default=0, help="of all random generators, set at each start of a track")


def serve(tracker: Tracker[Any], seed: int = 0) -> None:
    """Answer a TraX client on standard input and output (or ``TRAX_SOCKET``) until it quits.

    Images come as paths, boxes as rectangles (x, y, w, h in pixels). Each answer is the tracker's box with the
    properties ``confidence`` (its score) and ``state``. A picture that can't be read is passed over: the answer is the
    last box again, not TRACKING, with a warning on standard error, and their count at the end. Any other error ends the
    conversation with its text as the reason, as does a first picture that can't be read.

    Args:
        tracker: any tracker.
        seed: of every random generator, set at each start.

    Raises:
        ImportError: ``vot-trax`` is not installed.
    """
    try:
        import trax
    except ImportError as error:
        raise ImportError("to speak TraX, install the package vot-trax: pip install vot-trax") from error

    server = trax.Server(
        [trax.Region.RECTANGLE], [trax.Image.PATH], tracker_name=tracker.name,
        tracker_description=f"tracker_ros {tracker_ros.__version__}",
    )  # fmt: skip

    def answer(box: Sequence[float], properties: dict[str, Any]) -> None:
        server.status([(trax.Rectangle.create(*box), properties)])

    scale = GreyScale()
    last: tuple[Sequence[float], dict[str, Any]] = ((), {})
    frames = unread = 0
    try:
        while (request := server.wait()).type != trax.TraxStatus.QUIT:
            if request.type == trax.TraxStatus.INITIALIZE:
                scale = GreyScale()
            frames += 1
            try:
                frame = read_image(Path(request.image["color"].path()), scale)
            except InvalidSequence as error:
                if request.type == trax.TraxStatus.INITIALIZE or not last[0]:
                    raise
                unread += 1
                print(f"tracker_ros trax: warning: {error}; it is passed over", file=sys.stderr)
                lost = last[1].get("state") == TrackState.LOST.name
                answer(last[0], {"confidence": "0.000000", "state": "LOST" if lost else "UNCERTAIN"})
                continue
            if request.type == trax.TraxStatus.INITIALIZE:
                if len(request.objects) != 1:
                    raise ValueError(f"{len(request.objects)} targets were given; this tracker follows one")
                set_seeds(seed)
                box = request.objects[0][0].bounds()
                tracker.initialize(frame, box)
                last = box, {}
            else:
                estimate = tracker.track(frame)
                last = estimate.box, {"confidence": f"{estimate.score:.6f}", "state": estimate.state.name}
            answer(*last)
    except Exception as error:
        server.quit(str(error))
        raise
    finally:
        if unread:
            print(f"tracker_ros trax: warning: {unread} of {frames} images could not be read", file=sys.stderr)
    server.quit()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one client; returns the exit code."""
    description = "Let a TraX client, such as vot-toolkit, run a tracker."
    parser = argparse.ArgumentParser(prog="python -m tracker_ros.evaluation.trax", description=description)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        (spec,) = parse_specs([args.tracker], args.settings, args.device)
        tracker = spec.create()
        tracker.warm_up()
        serve(tracker, args.seed)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"tracker_ros trax: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
