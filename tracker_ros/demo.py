"""``tracker_ros demo``: a real ROS 2 graph tracks a target, and what it did is recorded.

Starts an image source, the tracker node and a recorder, each in a process of its own; shows the first image to the
tracker and calls its service ``init_target`` with the box and the stamp of this image; then lets the images run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracker_ros import __version__, registry
from tracker_ros.files import clear, note, opencv_path, refuse_overwriting
from tracker_ros.geometry.boxes import Box
from tracker_ros.images import write_file
from tracker_ros.ros.launching import let_images_through

#: Seconds for the nodes to start (importing torch from a cold disk takes most of it), and for the recorder to end.
START_TIMEOUT = 180.0
FINISH_TIMEOUT = 120.0
_PACKAGES = ("numpy", "opencv-contrib-python-headless", "opencv-python-headless", "opencv-python", "torch", "ros-rclpy")
_FIRST_IMAGE = "first_image.png"
_PAGE_PORT = 8080
#: Seconds that the start of a track may take with the page: on a busy laptop it is more than a robot would wait.
_START_PATIENCE = 30.0
_PRODUCTS = (
    "demo.mp4", "sheet.png", "summary.json", "source.json", _FIRST_IMAGE,
    *(f"logs/{name}.log" for name in ("tracker_node", "recorder", "simulated_camera", "video_source", "page")),
)  # fmt: skip


class DemoFailed(RuntimeError):
    """The demo did not work; the message says why."""


def parse_box(text: str) -> Box:
    """``x,y,w,h`` (pixels) as a box.

    Raises:
        argparse.ArgumentTypeError: it is not four numbers.
    """
    try:
        values = [float(v) for v in re.split(r"[,\s]+", text.strip())]
    except ValueError:
        values = []
    if len(values) != 4 or not all(math.isfinite(v) for v in values):
        raise argparse.ArgumentTypeError(f"a box is x,y,w,h in pixels (top-left corner and size), got '{text}'")
    return Box(*values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tracker_ros demo``."""
    parser.add_argument(
        "--video",
        default="",
        help="video, folder of images, webcam number, /dev/video0, rtsp://... (none: simulation)",
    )
    parser.add_argument("--box", type=parse_box, help="x,y,w,h of the target in the first image (none: the true one)")
    parser.add_argument("--tracker", default="", help="preset (none: dimp18 if its weights are there, else csrt)")
    parser.add_argument("--weights", default="", help="weights file of the tracker (none: the shipped ones)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated flight")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for video, contact sheet, summary")
    parser.add_argument("--duration", type=float, help="seconds (none: 20, but all of a video)")
    parser.add_argument("--rate", type=float, default=0.0, help="images a second (0: as recorded)")
    parser.add_argument(
        "--realtime",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send images on time whether or not the tracker keeps up; otherwise every image waits for its turn",
    )
    parser.add_argument(
        "--page", action="store_true", help="draw the box on a page in the browser; nothing is recorded"
    )


@dataclass(frozen=True)
class Plan:
    """What the demo is going to do, checked before anything is started.

    Attributes:
        source: the source's node and module name, ``simulated_camera`` or ``video_source``.
        parameters: of the source.
        fps: images a second of the source, as recorded.
        count: images to come, None where that is not known.
        box: to start on; None: the source's truth.
        tracker, weights, device, out: as in the arguments.
        realtime: whether images are sent on time.
        page: whether the box is drawn on the page, and nothing recorded.
        metadata: for the summary.
    """

    source: str
    parameters: dict[str, Any]
    fps: float
    count: int | None
    box: Box | None
    tracker: str
    weights: str
    device: str
    out: Path
    realtime: bool
    page: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


def default_tracker() -> tuple[str, str]:
    """The best tracker that can run with what is there, and why it was taken."""
    try:
        from tracker_ros.weights import shipped

        if shipped("dimp18").is_file():
            return "dimp18", "its weights are there"
        return "csrt", f"there are no weights for dimp18 at {shipped('dimp18')}"
    except ImportError as error:
        return "csrt", f"dimp18 can't run here: {error}"


def make_plan(args: argparse.Namespace) -> Plan:
    """Check the arguments and open the source once.

    Raises:
        DemoFailed: ROS is not there.
        ValueError: an argument that can't be used.
    """
    if importlib.util.find_spec("rclpy") is None:
        raise DemoFailed("rclpy can't be imported: source a ROS 2 (. /opt/ros/jazzy/setup.bash), or use `make demo`")
    try:
        found = importlib.util.find_spec("tracker_ros_interfaces.msg")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise DemoFailed("tracker_ros_interfaces can't be imported: build it with colcon, or use `make demo`")
    if args.duration is not None and not args.duration > 0:
        raise ValueError(f"--duration must be positive, got {args.duration:g}")
    if args.page:
        given = {"box": args.box, "duration": args.duration, "no-realtime": not args.realtime}
        for name in (name for name, value in given.items() if value):
            raise ValueError(f"--{name} is not for --page: the box is drawn there, and it goes on until Ctrl-C")
        if importlib.util.find_spec("aiohttp") is None:
            raise DemoFailed("--page needs aiohttp: pip install 'aiohttp>=3.9', or use `make demo PAGE=1`")
    if not 0 <= args.rate <= 1000:
        raise ValueError(f"--rate must lie in [0, 1000], got {args.rate:g}")
    tracker, reason = args.tracker, ""
    if tracker:
        registry.get(tracker)
    else:
        tracker, reason = default_tracker()
        print(f"tracker {tracker}: {reason}")
    out = args.out.expanduser()
    for name in (out, args.video, args.weights):
        opencv_path(name)
    metadata: dict[str, Any] = {"versions": versions()}
    parameters: dict[str, Any] = {"rate": args.rate}
    if args.video:
        from tracker_ros.ros.clips import NO_TRUTH, InvalidTruth, open_clip

        try:
            clip = open_clip(args.video)
        except InvalidTruth as error:
            if args.box is None:
                raise
            print(f"tracker_ros demo: warning: {error}; going on with --box alone", file=sys.stderr)
            parameters["truth"] = NO_TRUTH
            clip = open_clip(args.video, NO_TRUTH)
        refuse_overwriting(
            [out, *(out / name for name in _PRODUCTS)], [*clip.sources, *map(Path, filter(None, [args.weights]))]
        )
        try:
            box = args.box or clip.first_box()
            picture = clip.read(0)  # A source that does not start should say so now.
            if box is None and not args.page:
                hint = ""
                if picture is not None:
                    clear(out, [_FIRST_IMAGE])
                    write_file(out / _FIRST_IMAGE, picture.frame)
                    note(out, [_FIRST_IMAGE])
                    height, width = picture.frame.shape[:2]
                    hint = f"; its first image is now in {out / _FIRST_IMAGE} ({width}x{height})"
                raise ValueError(f"'{args.video}' does not say where the target is: give --box x,y,w,h{hint}")
            duration = 20.0 if clip.live and args.duration is None and not args.page else args.duration
            count = clip.length
            fps, live = clip.fps, clip.live
        finally:
            clip.close()
        if duration is not None:
            wanted = max(2, math.ceil(duration * fps))
            count = wanted if count is None else min(count, wanted)
            parameters["limit"] = count
        parameters["video"] = args.video if live else str(Path(args.video).expanduser().resolve())
        source = "video_source"
        metadata["video"] = args.video
    else:
        from tracker_ros.simulation.flight import FlightOptions

        options = FlightOptions(seed=args.seed, duration=args.duration or FlightOptions.duration)
        parameters |= {"seed": args.seed, "duration": options.duration, "wait_for_target": False}
        fps, count = options.fps, max(2, round(options.duration * options.fps))
        source, box = "simulated_camera", args.box
        metadata["seed"] = args.seed
    return Plan(
        source=source,
        parameters=parameters,
        fps=args.rate or fps,
        count=count,
        box=box,
        tracker=tracker,
        weights=str(Path(args.weights).expanduser().resolve()) if args.weights else "",
        device=args.device,
        out=out,
        realtime=args.realtime,
        page=args.page,
        metadata=metadata,
    )


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {"tracker_ros": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if os.environ.get("ROS_DISTRO"):
        found["ros"] = os.environ["ROS_DISTRO"]
    return found


def environment() -> dict[str, str]:
    """The environment of the processes: images get through, and nobody else hears them.

    The user's settings stay, but for the domain: the one that ``ROS_DOMAIN_ID`` names may hold somebody's robot.
    """
    env = dict(os.environ)
    package = Path(__file__).resolve().parent
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package.parent), env.get("PYTHONPATH"))))
    env["PYTHONUNBUFFERED"] = "1"
    let_images_through(env)
    if env.get("ROS_DISTRO") == "humble":
        env.setdefault("ROS_LOCALHOST_ONLY", "1")
    elif env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST") == "LOCALHOST":
        env.pop("ROS_LOCALHOST_ONLY", None)  # Humble's name for the same; where both are set, Jazzy warns
    env["ROS_DOMAIN_ID"] = str(free_domain())
    return env


def free_domain() -> int:
    """A ROS domain that nobody on this machine uses: the port of its first participant can be bound."""
    # The ports of these lie outside Linux's ephemeral range. The upper ones first: people and tests choose low numbers.
    upper, lower = list(range(215, 232)), list(range(1, 101))
    for numbers in (upper, lower):
        random.SystemRandom().shuffle(numbers)
    for domain in (*upper, *lower):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise DemoFailed("all ROS domains of this machine are in use")


def remappings(namespace: str) -> list[str]:
    """Arguments that put a node and all its topics, /diagnostics too, into `namespace`."""
    return ["-r", f"__ns:={namespace}", "-r", f"/diagnostics:={namespace}/diagnostics"]


class Process:
    """A node in a process of its own, with a log file.

    Args:
        name: of the module in ``tracker_ros.ros``.
        parameters: ROS parameters.
        folder: for the log.
        env: environment.
        namespace: of the node.
    """

    def __init__(
        self, name: str, parameters: dict[str, Any], folder: Path, env: dict[str, str], namespace: str
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", f"tracker_ros.ros.{name}", "--ros-args", *remappings(namespace)]
        for key, value in parameters.items():
            # JSON is YAML: strings stay strings whatever is in them
            command += ["-p", f"{key}:={json.dumps(value)}"]
        with self.log.open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches the demo alone, which then ends things in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {line}" for line in text) or "    (its log is empty)"

    def signal(self) -> None:
        """Ask it to end, as Ctrl-C does."""
        if self.code is None:
            self._process.send_signal(signal.SIGINT)

    def stop(self, patience: float = 8.0) -> None:
        """End it: ask, then insist."""
        self.signal()
        for insist in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                insist()
            patience = 3.0
        self._process.wait()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False if it still runs after `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True


class Progress:
    """A progress bar, or a line every few seconds where there is no terminal."""

    def __init__(self, total: int | None) -> None:
        from tqdm import tqdm

        self._total = total
        self._bar = tqdm(total=total, unit="image", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._told = time.monotonic()

    def show(self, done: int, note: str) -> None:
        """So many images are done; `note` says how it goes."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(max(0, min(done, self._total or done) - self._bar.n))
        elif time.monotonic() - self._told > 4:
            self._told = time.monotonic()
            print(f"  {done}{f'/{self._total}' if self._total else ''} images  {note}", flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo in order, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back to the end of the block, lest a process is started that nobody will end."""
    held: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # One that is ignored, as in a background job, stays so.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in before:
            signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def perform(plan: Plan) -> tuple[dict[str, Any], bool]:
    """Carry out the plan; returns the summary, and whether Ctrl-C ended it early.

    Raises:
        DemoFailed: something did not work; with the end of the log of the process that it is about.
    """
    out = plan.out.expanduser().resolve()
    logs = out / "logs"
    clear(out, _PRODUCTS)
    logs.mkdir(exist_ok=True)
    env = environment()
    # Nobody else knows this name, so whoever answers under it is one of ours, whatever else the domain holds.
    namespace = f"/demo_{secrets.token_hex(4)}"
    for key in {*os.environ, *env}:  # what is done in this process must be in the same graph
        if key.startswith(("ROS_", "FASTRTPS_", "FASTDDS_")):
            if key in env:
                os.environ[key] = env[key]
            else:
                del os.environ[key]
    print(f"ROS domain {env['ROS_DOMAIN_ID']}, namespace {namespace}; logs in {logs}", flush=True)
    processes: dict[str, Process] = {}
    try:
        with _terminated_as_interrupted():
            for name, parameters in _parameters(plan, out).items():
                with _uninterrupted():
                    processes[name] = Process(name, parameters, logs, env, namespace)
            interrupted = _direct(plan, processes, namespace)
    finally:
        for process in processes.values():
            process.signal()
        for process in processes.values():
            process.stop()
        note(out, _PRODUCTS)
    return _check_results(out, processes), interrupted


def _parameters(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    report = str(out / "source.json")
    return {
        "tracker_node": {"tracker": plan.tracker, "weights": plan.weights, "device": plan.device},
        "recorder": {
            "out": str(out),
            "fps": float(plan.fps),
            "source_report": report,
            "metadata": json.dumps(plan.metadata),
        },
        plan.source: {
            **plan.parameters,
            "start": "paused",
            "wait_for_tracker": not plan.realtime,
            "report": report,
        },
    }


def _page_parameters(plan: Plan) -> dict[str, dict[str, Any]]:
    # The flight waits for a track by itself, and has no end; a video begins again.
    own: dict[str, Any] = {"loop": True}
    if plan.source == "simulated_camera":
        own = {"duration": 0.0, "wait_for_target": True}
    tracker = {"tracker": plan.tracker, "weights": plan.weights, "device": plan.device}
    return {
        "tracker_node": {**tracker, "service_timeout": _START_PATIENCE},
        "page": {"port": _PAGE_PORT if _is_free(_PAGE_PORT) else 0},
        plan.source: {**plan.parameters, **own},
    }


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def show_page(plan: Plan) -> None:
    """Carry out a plan with a page: print its address, and go on until Ctrl-C.

    Raises:
        DemoFailed: a process ended; with the end of its log.
    """
    logs = plan.out.expanduser().resolve() / "logs"
    clear(logs.parent, _PRODUCTS)
    logs.mkdir(exist_ok=True)
    env = environment()
    namespace = f"/demo_{secrets.token_hex(4)}"
    print(f"ROS domain {env['ROS_DOMAIN_ID']}, namespace {namespace}; logs in {logs}", flush=True)
    processes: dict[str, Process] = {}
    told = False
    try:
        with _terminated_as_interrupted():
            for name, parameters in _page_parameters(plan).items():
                with _uninterrupted():
                    processes[name] = Process(name, parameters, logs, env, namespace)
            print("starting; the tracker may take some seconds to load", flush=True)
            while True:
                for process in processes.values():
                    if process.code is not None:
                        raise DemoFailed(
                            f"{process.name} ended with code {process.code}; its last words:\n{process.tail()}"
                        )
                address = None if told else re.search(r"open (http://\S+) in a browser", processes["page"].tail())
                if address is not None:
                    told = True
                    print(f"open {address[1]} in a browser and draw a box around a car; Ctrl-C ends it", flush=True)
                time.sleep(0.2)
    except KeyboardInterrupt:
        print("\nended")
    finally:
        for process in processes.values():
            process.signal()
        for process in processes.values():
            process.stop()
        note(logs.parent, _PRODUCTS)


def _direct(plan: Plan, processes: dict[str, Process], namespace: str) -> bool:
    from tracker_ros.ros.director import DirectionFailed, Director

    source, recorder = processes[plan.source], processes["recorder"]
    done: set[str] = set()  # processes that may end by now
    interrupted = False

    def check() -> None:
        for process in processes.values():
            if process.code is not None and process.name not in done:
                raise DemoFailed(f"{process.name} ended with code {process.code}; its last words:\n{process.tail()}")

    try:
        with Director(check, plan.source, remappings(namespace)) as director:
            print(f"starting {', '.join(processes)}", flush=True)
            director.wait_until_ready(START_TIMEOUT)
            stamp = director.first_image()
            box = plan.box or director.truth(stamp)
            if box is None:
                raise DemoFailed("the source does not say where the target is in the first image: give --box x,y,w,h")
            print(f"init_target: {director.init_target(stamp, box)}", flush=True)
            done.add(plan.source)
            progress = Progress(plan.count)
            try:
                director.play()
                while source.code is None:
                    director.spin(0.1)
                    progress.show(*director.progress())
            except KeyboardInterrupt:
                interrupted = True
                print("\nstopping; what was recorded so far is kept", file=sys.stderr)
                source.stop()
            finally:
                progress.close()
            if source.code:
                raise DemoFailed(f"{source.name} ended with code {source.code}; its last words:\n{source.tail()}")
            done.add(recorder.name)
            director.finish()
        if not recorder.wait(FINISH_TIMEOUT):
            raise DemoFailed(f"the recorder is not done after {FINISH_TIMEOUT:g} s; its last words:\n{recorder.tail()}")
        if recorder.code:
            raise DemoFailed(f"recorder ended with code {recorder.code}; its last words:\n{recorder.tail()}")
        return interrupted
    except DirectionFailed as error:
        raise DemoFailed(f"{error}\n  the tracker's last words:\n{processes['tracker_node'].tail()}") from error


def _check_results(out: Path, processes: dict[str, Process]) -> dict[str, Any]:
    for name in ("demo.mp4", "sheet.png", "summary.json"):
        path = out / name
        if not path.is_file() or path.stat().st_size == 0:
            raise DemoFailed(f"there is no {path}; the recorder's last words:\n{processes['recorder'].tail()}")
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    if not any(frame["box"] for frame in summary["frames"]):
        raise DemoFailed(
            f"the tracker gave no box for any of {summary['frames_received']} images; its last words:\n"
            f"{processes['tracker_node'].tail()}"
        )
    return summary


def describe(summary: dict[str, Any], out: Path) -> str:
    """A summary in a few lines for people."""

    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    sent, received = summary["frames_sent"], summary["frames_received"]
    share = f" ({100 * min(received, sent) / sent:.1f} %)" if sent else ""
    where = f" on {summary['device']}" if summary.get("device") else ""
    lines = [
        f"{summary['tracker']}{where}: {received} of {sent or '?'} images received{share}, "
        f"{summary['frames_processed']} processed, {summary['frames_dropped']} dropped",
        f"from stamp to detection: {show(summary['latency_ms_p50'], 1)} ms median, "
        f"{show(summary['latency_ms_p99'], 1)} ms 99th percentile; {show(summary['fps'], 1)} results a second",
    ]
    if summary["mean_iou"] is not None:
        lines.append(f"overlap with the truth: mean IoU {summary['mean_iou']:.3f}")
    for absence in summary["absences"]:
        lost, regained = absence["lost_after_images"], absence["regained_after_images"]
        said = "never reported LOST" if lost is None else f"LOST after {lost} images"
        found = "not found again" if regained is None else f"found again {regained} images after its return"
        lines.append(f"target away in images {absence['first_image']}-{absence['last_image']}: {said}, {found}")
    if sent and received < 0.99 * sent:
        lines.append("fewer than 99 % of the images arrived: is the machine busy, or another Fast DDS profile in use?")
    expected, shown, unreadable = (summary.get(f"frames_{key}") or 0 for key in ("expected", "shown", "unreadable"))
    if unreadable:
        lines.append(f"{unreadable} images could not be read and were left out")
    if shown + unreadable < expected:
        lines.append(f"the source ended after {shown + unreadable} of {expected} images")
    lines.append(f"see {out / 'demo.mp4'}, {out / 'sheet.png'} and {out / 'summary.json'}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0 if it worked, 1 if not or not to the end, 130 if interrupted (what there is is kept)."""
    plan = make_plan(args)
    try:
        if plan.page:
            show_page(plan)
            return 0
        summary, interrupted = perform(plan)
    except DemoFailed as error:
        print(f"tracker_ros demo: {error}", file=sys.stderr)
        return 1
    print(describe(summary, args.out))
    if interrupted:
        return 130
    # A container's count may be off by a little; what is missing beyond that is a fault.
    come = summary["frames_shown"] + summary["frames_unreadable"]
    return int(come < 0.98 * (summary["frames_expected"] or 0))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m tracker_ros.demo``."""
    parser = argparse.ArgumentParser(prog="tracker_ros demo", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
