#!/usr/bin/env python3
"""Try a tracker node, as a process of its own, on everything that goes wrong, and write docs/reliability.md.

What is tried: inputs that are wrong, a camera that fails, images faster than the tracker, ten thousand of them, and
requests by the thousand. In full it takes about 45 minutes on a machine that nothing else keeps busy; `--quick` tries
all of it, a little. The numbers are written as JSON beside the report.

Runs in a ROS graph of its own, where `tracker_ros` and its interfaces can be imported (`make reliability`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

# Read when the context is made, here and in the node.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tracker_ros import __version__
from tracker_ros.geometry.boxes import Box
from tracker_ros.ros import messages
from tracker_ros.ros.spinning import spin
from tracker_ros_interfaces.msg import TrackStatus
from tracker_ros_interfaces.srv import InitTarget

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, SIDE = 320, 240, 40
LEVELS = {b"\x00": "OK", b"\x01": "WARN", b"\x02": "ERROR", b"\x03": "STALE"}
STATES = {0: "IDLE", 1: "TRACKING", 2: "UNCERTAIN", 3: "LOST", 4: "STALE"}


@dataclass(frozen=True)
class Amount:
    """How much is tried: seconds of each fault and load, frames, re-inits, cycles, switches."""

    seconds: float = 15.0
    frames: int = 10_000
    inits: int = 1_000
    cycles: int = 200
    switches: int = 50


QUICK = Amount(4.0, 200, 20, 4, 4)


class Scene:
    """A textured patch that moves over textured ground, 320x240; every picture differs from the one before."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        ground = rng.integers(60, 120, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        self._ground = cv2.resize(ground, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        patch = rng.integers(0, 255, (8, 8, 3), np.uint8)
        self._patch = cv2.resize(patch, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        self.count = 0

    def box(self) -> Box:
        """Where the target is in the picture that was made last."""
        x, y = 140 + 60 * np.sin(self.count / 60), 100 + 40 * np.sin(self.count / 41)
        return Box(float(int(x)), float(int(y)), SIDE, SIDE)

    def next(self) -> np.ndarray:
        """The next picture, BGR."""
        self.count += 1
        x, y, *_ = (int(v) for v in self.box())
        frame = self._ground.copy()
        frame[y : y + SIDE, x : x + SIDE] = self._patch
        frame[0, 0] = self.count % 256
        return frame


class Bench:
    """A tracker node as a process, and what is around it: camera, client, listener."""

    def __init__(self, log: Path) -> None:
        rclpy.init()
        self._log_path = log
        self.node = Node("reliability")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=spin, args=(self.node, self._executor), daemon=True)
        self._thread.start()
        self.images = self.node.create_publisher(Image, "image_raw", qos_profile_sensor_data)
        self.compressed = self.node.create_publisher(CompressedImage, "image_raw/compressed", qos_profile_sensor_data)
        self.status: list[TrackStatus] = []
        self.diagnostics: list[Any] = []
        deep = QoSProfile(depth=500)
        self.node.create_subscription(TrackStatus, "status", self.status.append, deep)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, deep)
        self._clients: dict[str, Any] = {}
        self.scene = Scene()
        self.process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        rclpy.try_shutdown()
        self._thread.join(30)

    def _diagnosed(self, array: DiagnosticArray) -> None:
        self.diagnostics += [s for s in array.status if "reliability" not in s.name]

    def start(self, tracker: str, **parameters: Any) -> None:
        """Start the node anew and wait until it takes images."""
        self.stop()
        command = [sys.executable, "-m", "tracker_ros.ros.tracker_node", "--ros-args", "-p", f"tracker:={tracker}"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self.until(lambda: self.images.get_subscription_count() or self.compressed.get_subscription_count(), 180)
        self.until(lambda: self.node.count_publishers("status"), 30)
        time.sleep(1)

    def stop(self) -> None:
        """End the node as a user does."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process = None
            self.until(lambda: not self.images.get_subscription_count(), 30, must=False)

    @property
    def alive(self) -> bool:
        """Whether the process runs and answers."""
        if self.process is None or self.process.poll() is not None:
            return False
        answer = self.call(GetState, "tracker/get_state", 20)
        return answer is not None

    @staticmethod
    def until(condition: Callable[[], Any], timeout: float, must: bool = True) -> Any:
        """Wait for a condition."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > end:
                if must:
                    raise TimeoutError(f"waited in vain for {timeout:g} s")
                break
            time.sleep(0.002)
        return value

    def call(self, kind: Any, name: str, timeout: float = 30, **fields: Any) -> Any:
        """Call a service; None where it does not answer."""
        client = self._clients.setdefault(name, self.node.create_client(kind, name))
        if not client.wait_for_service(timeout):
            return None
        future = client.call_async(kind.Request(**fields))
        return future.result() if self.until(future.done, timeout, must=False) else None

    def set(self, name: str, value: Any) -> Any:
        """Set a parameter; the result, or None."""
        parameters = [Parameter(name, value=value).to_parameter_msg()]
        answer = self.call(SetParameters, "tracker/set_parameters", 120, parameters=parameters)
        return None if answer is None else answer.results[0]

    def header(self) -> Header:
        """A header of now."""
        now = time.time_ns()
        return Header(stamp=Time(sec=now // 10**9, nanosec=now % 10**9), frame_id="camera")

    def picture(self) -> Image:
        """The next picture as a message."""
        return messages.image_to_message(self.scene.next(), "bgr8", self.header())

    def init(self, box: Box | None = None, target_id: str = "target") -> Any:
        """Start on a box, else on the target in the newest picture."""
        if box is None:
            self.images.publish(self.picture())
            time.sleep(0.1)
            box = self.scene.box()
        bbox = messages.box_to_message(box)
        return self.call(InitTarget, "init_target", bbox=bbox, target_id=target_id)

    @contextmanager
    def camera(self, hz: float, make: Callable[[], Image | None] | None = None) -> Iterator[list[int]]:
        """A camera in the background; gives the count of its images in a list of one."""
        ended, sent = threading.Event(), [0]

        def run() -> None:
            following = time.monotonic()
            while not ended.is_set():
                message = (make or self.picture)()
                if message is not None:
                    self.images.publish(message)
                    sent[0] += 1
                following = max(following + 1 / hz, time.monotonic() - 0.5)
                ended.wait(max(0.0, following - time.monotonic()))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield sent
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def listening(self) -> Iterator[Callable[[], str]]:
        """Gives a function that tells all that the node has said since, in its log and in diagnostics."""
        at, said = self._log_path.stat().st_size, len(self.diagnostics)

        def told() -> str:
            with self._log_path.open("rb") as log:
                log.seek(at)
                lines = log.read().decode(errors="replace")
            warnings = [s.message for s in self.diagnostics[said:] if s.level != b"\x00"]
            return "\n".join([*warnings, lines])

        yield told

    def resident_mb(self) -> float:
        """Memory of the node."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _words(line: str) -> str:
    """What a line says, without the logger's marks and the folders of this machine."""
    said = re.sub(r"^\[\w+\] \[[\d.]+\] \[\w+\]: ", "", line)
    for folder in (str(ROOT), tempfile.gettempdir()):
        said = re.sub(rf"{re.escape(folder)}/(?:tmp\w+/)?", "", said)
    return said[:160]


# ------------------------------------------------------------------------------------------------------- bad inputs


def bad_images(bench: Bench) -> dict[str, tuple[Any, str]]:
    """Name -> the message, and a pattern of what the node must say of it."""

    def raw(**changes: Any) -> Image:
        message = bench.picture()
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def packed(data: bytes, kind: str = "jpeg") -> CompressedImage:
        return CompressedImage(header=bench.header(), format=kind, data=data)

    jpeg = cv2.imencode(".jpg", bench.scene.next())[1].tobytes()
    png = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    huge = png[:16] + (30000).to_bytes(4, "big") * 2 + png[24:]
    return {
        "unknown encoding": (raw(encoding="rgb1234"), "encoding"),
        "encoding with escape codes": (raw(encoding="\x1b[2Jbgr8"), r"\\x1b|encoding"),
        "no encoding": (raw(encoding=""), "encoding"),
        "another encoding's size": (raw(encoding="bgra8"), "step|bytes"),
        "step of zero": (raw(step=0), "step"),
        "step shorter than a row": (raw(step=WIDTH), "step"),
        "height beyond the data": (raw(height=HEIGHT * 9), "bytes"),
        "size of 0x0": (raw(height=0, width=0), "empty"),
        "no data": (raw(data=b""), "bytes|empty"),
        "data cut short": (raw(data=bench.scene.next().tobytes()[:-7]), "bytes"),
        "one pixel of width 4294967295": (raw(width=(1 << 32) - 1, height=1), "step|bytes|pixels"),
        "JPEG cut short": (packed(jpeg[: len(jpeg) // 2]), "cut short|end"),
        "a text as JPEG": (packed(b"no picture"), "no picture|format|begins"),
        "no bytes as JPEG": (packed(b""), "empty|no picture|no data|0 bytes"),
        "PNG of 30000x30000 in 70 bytes": (packed(huge, "png"), "Mpx"),
        "JPEG of noise": (packed(jpeg[:200] + os.urandom(2000) + jpeg[-2:]), "JPEG|decode|read|picture"),
    }


BOXES = {
    "NaN": Box(float("nan"), 10, 20, 20), "infinite": Box(10, 10, float("inf"), 20), "empty": Box(50, 50, 0, 0),
    "negative size": Box(50, 50, -20, 20), "outside": Box(900, 900, 20, 20), "far outside": Box(-1e30, 0, 20, 20),
    "larger than any number": Box(1e308, 1e308, 1e308, 1e308), "one pixel": Box(50, 50, 1, 1),
    "three quarters outside": Box(-30, 60, 40, 40),
}  # fmt: skip
TEXTS = {"id of 100,000 letters": "x" * 100_000, "id with escape codes": "\x1b[2J", "id with line ends": "a\n[ERROR] b"}
PARAMETERS: dict[str, tuple[str, Any]] = {
    "tracker that is not there": ("tracker", "csrtt"), "tracker of control characters": ("tracker", "\x1b[2J"),
    "parameter that is not there": ("good_scroe", 0.5), "a text for a number": ("silence", "long"),
    "a number below its range": ("silence", -5.0), "NaN": ("silence", float("nan")),
    "update that is not there": ("update", "sometimes"),
}  # fmt: skip


def matrix(bench: Bench) -> list[dict[str, Any]]:
    """Every bad input: whether the node survived, kept its track, and said what was wrong."""
    rows: list[dict[str, Any]] = []

    def row(kind: str, name: str, said: str, pattern: str) -> None:
        found = next((line for line in said.splitlines() if re.search(pattern, line, re.IGNORECASE)), "")
        with bench.camera(15):
            before = len(bench.status)
            kept = bench.until(lambda: any(s.state == 1 for s in bench.status[before:]), 15, must=False)
        words = _words(found)
        row = {"kind": kind, "input": name, "survived": bench.alive, "named": bool(found), "words": words}
        rows.append(row | {"kept": bool(kept)})

    bench.start("kcf")
    bench.init()
    for name, (message, pattern) in bad_images(bench).items():
        if isinstance(message, Image):
            with bench.listening() as told:
                bench.images.publish(message)
                bench.until(lambda: re.search(pattern, told(), re.IGNORECASE), 8, must=False)  # noqa: B023
                row("image", name, told(), pattern)
    for name, box in BOXES.items():
        answer = bench.init(box)
        row("box", name, "" if answer is None or answer.success else answer.message, ".")
    for name, text in TEXTS.items():
        answer = bench.init(bench.scene.box(), text)
        row("target_id", name, "" if answer is None or answer.success else answer.message, ".")
    for name, (parameter, value) in PARAMETERS.items():
        result = bench.set(parameter, value)
        row("parameter", name, "" if result is None or result.successful else result.reason, ".")
    with tempfile.TemporaryDirectory() as folder:
        bench.set("tracker", "siamrpn")
        weights = {name: ("weights", str(path)) for name, path in bad_weights(Path(folder)).items()}
        for name, (parameter, value) in (weights | {"a GPU that is not there": ("device", "cuda:77")}).items():
            with bench.camera(15):
                result = bench.set(parameter, value)
            row(parameter, name, "" if result is None or result.successful else result.reason, ".")
    bench.start("kcf", image_transport="compressed")
    rows += _compressed(bench)
    return rows


def _compressed(bench: Bench) -> list[dict[str, Any]]:
    """The bad pictures among the compressed ones; the node listens to those now."""
    rows = []

    def good() -> None:
        data = cv2.imencode(".jpg", bench.scene.next())[1].tobytes()
        bench.compressed.publish(CompressedImage(header=bench.header(), format="jpeg", data=data))
        time.sleep(0.1)

    good()
    box = messages.box_to_message(bench.scene.box())
    bench.call(InitTarget, "init_target", bbox=box, target_id="target")
    for name, (message, pattern) in bad_images(bench).items():
        if isinstance(message, CompressedImage):
            with bench.listening() as told:
                bench.compressed.publish(message)
                bench.until(lambda: re.search(pattern, told(), re.IGNORECASE), 8, must=False)  # noqa: B023
                found = next((line for line in told().splitlines() if re.search(pattern, line, re.IGNORECASE)), "")
            before = len(bench.status)
            for _ in range(60):
                good()
                kept = any(s.state == 1 for s in bench.status[before:])
                if kept:
                    break
            words = _words(found)
            row = {"kind": "compressed", "input": name, "survived": bench.alive, "named": bool(found), "words": words}
            rows.append(row | {"kept": kept})
    return rows


def bad_weights(folder: Path) -> dict[str, Path]:
    """Name -> a path that is no weights file."""
    made = {name: folder / name.replace(" ", "_") / "w.bin" for name in ("a text", "empty", "LFS pointer", "web page")}
    made |= {name: folder / name.replace(" ", "_") / "w.bin" for name in ("a claim of 5 GB", "noise", "named pipe")}
    for path in made.values():
        path.parent.mkdir()
    made["a text"].write_text("weights")
    made["empty"].touch()
    made["LFS pointer"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    made["web page"].write_text("<!DOCTYPE html><html>Sign in</html>")
    with made["a claim of 5 GB"].open("wb") as file:
        file.write((5 << 30).to_bytes(8, "little") + b"{")
        file.truncate(6 << 30)
    made["noise"].write_bytes(os.urandom(100_000))
    os.mkfifo(made["named pipe"])
    return made | {
        "not there": folder / "models" / "none.bin",
        "a folder": folder / "empty",
        "device": Path("/dev/zero"),
    }


# ---------------------------------------------------------------------------------------------------- camera's faults


def camera_faults(bench: Bench, tracker: str, amount: Amount) -> list[dict[str, Any]]:
    """States and diagnostics while a camera fails, and whether the target is tracked again afterwards."""
    frozen, stamp = bench.scene.next(), bench.header()
    turn = [0]
    rng = np.random.default_rng(1)

    def message(frame: np.ndarray, header: Header | None = None) -> Image:
        return messages.image_to_message(np.ascontiguousarray(frame), "bgr8", header or bench.header())

    def every_second_black() -> Image:
        turn[0] += 1
        return message(bench.scene.next() * (turn[0] % 2))

    def backwards() -> Image:
        turn[0] += 1
        past = time.time_ns() - turn[0] * 10**9
        return message(bench.scene.next(), Header(stamp=Time(sec=past // 10**9, nanosec=past % 10**9)))

    faults: dict[str, Callable[[], Image | None]] = {
        "none": bench.picture,
        "silent": lambda: None,
        "one picture, again and again": lambda: message(frozen),
        "one stamp": lambda: message(bench.scene.next(), stamp),
        "stamps that go backwards": backwards,
        "every second picture black": every_second_black,
        "black": lambda: message(bench.scene.next() * 0),
        "noise": lambda: message(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)),
        "pictures of half the size": lambda: message(bench.scene.next()[::2, ::2]),
        "pictures that can't be decoded": lambda: Image(header=bench.header(), encoding="bgr8", height=9, width=9),
        "ten a second of which nine are cut short": lambda: (
            bench.picture() if bench.scene.count % 10 == 0 else _cut(bench.picture())
        ),
    }
    rows = []
    bench.start(tracker)
    for name, make in faults.items():
        with bench.camera(20):
            time.sleep(0.5)
            bench.init(bench.scene.box())
            time.sleep(2)
        states, said = len(bench.status), len(bench.diagnostics)
        with bench.camera(20, make):
            time.sleep(max(amount.seconds, 8.0))
            seen = Counter(STATES[s.state] for s in bench.status[states:])
            words = Counter((LEVELS[s.level], re.sub(r"[\d.]+", "N", s.message)) for s in bench.diagnostics[said:])
        with bench.camera(20):
            time.sleep(1)
            answer = bench.init(bench.scene.box())
            before = len(bench.status)
            again = bench.until(lambda: any(s.state == 1 for s in bench.status[before:]), 10, must=False)  # noqa: B023
        worst = max(words, key=lambda key: (list(LEVELS.values()).index(key[0]), words[key]), default=("-", ""))
        total = sum(seen.values())
        rows.append(
            {
                "fault": name,
                "states": {state: n / total for state, n in seen.most_common()},
                "level": worst[0],
                "words": worst[1][:140],
                "again": bool(again and answer is not None and answer.success),
                "survived": bench.alive,
            }
        )
    return rows


def _cut(message: Image) -> Image:
    message.data = bytes(message.data)[:1000]
    return message


# --------------------------------------------------------------------------------------- load, memory, many requests


def load(bench: Bench, tracker: str, amount: Amount) -> list[dict[str, Any]]:
    """Latency and dropped images at some rates of the camera."""
    rows = []
    bench.start(tracker)
    for hz in (10.0, 30.0, 60.0, 10_000.0):
        with bench.camera(10):
            time.sleep(0.5)
            bench.init(bench.scene.box())
            time.sleep(1)
        time.sleep(1)
        before, first = len(bench.status), bench.status[-1]
        begin = time.monotonic()
        with bench.camera(hz) as sent:
            time.sleep(amount.seconds)
        took = time.monotonic() - begin
        time.sleep(2)
        own = [s for s in bench.status[before:] if s.state != 4]
        if not own:
            rows.append({"tracker": tracker, "hz": hz, "sent": sent[0], "processed": 0})
            continue
        last, ms = own[-1], np.array([s.latency for s in own]) * 1e3
        rows.append(
            {
                "tracker": tracker,
                "hz": sent[0] / took if hz > 1000 else hz,
                "fast": hz > 1000,
                "sent": sent[0],
                "received": int(last.frames_received - first.frames_received),
                "processed": len(own),
                "dropped": int(last.frames_dropped - first.frames_dropped),
                "hz_out": len(own) / took,
                **{f"p{p:g}": float(np.percentile(ms, p)) for p in (50, 99, 99.9)},
            }
        )
    return rows


def memory(bench: Bench, tracker: str, amount: Amount) -> dict[str, Any]:
    """The node's memory over many frames: its slope after the first tenth."""
    bench.start(tracker)
    bench.init()
    bench.status.clear()
    samples: list[tuple[int, float]] = []
    for k in range(1, amount.frames + 1):
        before = len(bench.status)
        bench.images.publish(bench.picture())
        bench.until(lambda: len(bench.status) > before, 10, must=False)  # noqa: B023
        if k % max(1, amount.frames // 100) == 0:
            samples.append((k, bench.resident_mb()))
            bench.status.clear()
    frames, mb = np.array(samples[len(samples) // 10 :]).T
    return {
        "tracker": tracker, "frames": amount.frames, "mb": float(mb[-1]), "alive": bench.alive,
        "slope": float(np.polyfit(frames, mb, 1)[0] * 1000),
    }  # fmt: skip


def many_inits(bench: Bench, tracker: str, amount: Amount) -> dict[str, Any]:
    """New targets, one after the other, while images come."""
    bench.start(tracker)
    begin, answers, used = time.monotonic(), Counter[str](), []
    with bench.camera(30):
        time.sleep(0.5)
        for k in range(amount.inits):
            answer = bench.init(bench.scene.box(), f"target{k % 7}")
            answers["no answer" if answer is None else "started" if answer.success else "refused"] += 1
            if k >= amount.inits // 10:
                used.append(bench.resident_mb())
    seconds = (time.monotonic() - begin) / amount.inits
    return _repeated(bench, f"re-inits ({tracker})", amount.inits, answers, used, seconds)


def many_cycles(bench: Bench, tracker: str, amount: Amount) -> dict[str, Any]:
    """Deactivated, cleaned up, configured, activated."""
    steps = (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
    steps += (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    bench.start(tracker)
    begin, answers, used = time.monotonic(), Counter[str](), []
    with bench.camera(10):
        for k in range(amount.cycles):
            done = []
            for step in steps:
                transition = Transition(id=step)
                done.append(bench.call(ChangeState, "tracker/change_state", 60, transition=transition))
            answers["done" if all(answer is not None and answer.success for answer in done) else "failed"] += 1
            if k >= amount.cycles // 10:
                used.append(bench.resident_mb())
    seconds = (time.monotonic() - begin) / amount.cycles
    return _repeated(bench, f"lifecycle cycles ({tracker})", amount.cycles, answers, used, seconds)


def many_switches(bench: Bench, trackers: list[str], amount: Amount) -> dict[str, Any]:
    """From one tracker to the next while images come and a target is followed."""
    bench.start(trackers[0])
    begin, answers, used = time.monotonic(), Counter[str](), []
    with bench.camera(15):
        time.sleep(0.5)
        bench.init(bench.scene.box())
        for k in range(amount.switches):
            result = bench.set("tracker", trackers[(k + 1) % len(trackers)])
            answers["done" if result is not None and result.successful else "failed"] += 1
            if k >= amount.switches // 10:
                used.append(bench.resident_mb())
    seconds = (time.monotonic() - begin) / amount.switches
    return _repeated(bench, f"switches ({', '.join(trackers)})", amount.switches, answers, used, seconds)


def _repeated(
    bench: Bench, what: str, count: int, answers: Counter[str], used: list[float], seconds: float
) -> dict[str, Any]:
    slope = float(np.polyfit(np.arange(len(used)), used, 1)[0] * 100) if len(used) > 1 else 0.0
    own = {"what": what, "count": count, "answers": dict(answers), "mb": used[-1], "slope": slope}
    return own | {"seconds": seconds, "survived": bench.alive}


# ------------------------------------------------------------------------------------------------------- the report


#: Parts of the report, in the order in which they are run -> what they are.
PARTS = {
    "matrix": "bad inputs", "faults": "a camera that fails", "load": "load", "memory": "memory",
    "repeated": "again and again",
}  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    yes = {True: "yes", False: "**no**"}
    machine = found["machine"]
    lines = [
        "# How reliable the node is",
        "",
        f"Written by `{found['command']}`. A tracker node runs as a process of its own in a real ROS 2 graph; another",
        "process is its camera and its client. Pictures are 320x240.",
        "",
        f"tracker_ros {found['version']}, {found['date']}, {machine}.",
        *([f"Shortened: {found['shortened']}."] if found["shortened"] else []),
        *([f"Other programs kept {found['busy']:.0f} cores busy: latencies are longer for it."] * (found["busy"] > 1)),
    ]
    if rows := found.get("matrix"):
        good = sum(r["survived"] for r in rows), sum(r["kept"] for r in rows), sum(r["named"] for r in rows)
        lines += [
            "", "## Bad inputs", "",
            f"{len(rows)} inputs; the node survived {good[0]}, its track went on after {good[1]}, and {good[2]} were "
            "named in the answer, the log or `/diagnostics`.",
            "", "| | input | survived | track goes on | named | what it said |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in rows:
            words = r["words"].replace("|", "\\|").replace("`", "'")
            marks = f"{yes[r['survived']]} | {yes[r['kept']]} | {yes[r['named']]}"
            lines.append(f"| {r['kind']} | {r['input']} | {marks} | {words} |")
    if rows := found.get("faults"):
        lines += [
            "", "## A camera that fails", "", f"{found['fault_tracker']}, 20 images a second; states are shares of all "
            "`status` during the fault, the words are the gravest in `/diagnostics`.",
            "", "| fault | states | `/diagnostics` | tracks again |", "|---|---|---|---|",
        ]  # fmt: skip
        for r in rows:
            states = ", ".join(f"{state} {share:.0%}" for state, share in r["states"].items())
            words = r["words"].replace("|", "\\|")
            lines.append(f"| {r['fault']} | {states} | {r['level']}: {words} | {yes[r['again'] and r['survived']]} |")
    if rows := found.get("load"):
        lines += [
            "", "## Load", "", "From an image's stamp to its result, in ms; what comes faster than the tracker is "
            "dropped for the newest image, and what the transport lost never came.",
            "", "| tracker | camera Hz | results Hz | p50 | p99 | p99.9 | sent | received | dropped |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in rows:
            if not r["processed"]:
                lines.append(f"| {r['tracker']} | {r['hz']:.0f} | 0 | - | - | - | {r['sent']} | - | - |")
                continue
            hz = f"as fast as possible ({r['hz']:.0f})" if r["fast"] else f"{r['hz']:.0f}"
            ms = " | ".join(f"{r[key]:.1f}" for key in ("p50", "p99", "p99.9"))
            counts = f"{r['sent']} | {r['received']} | {r['dropped']}"
            lines.append(f"| {r['tracker']} | {hz} | {r['hz_out']:.1f} | {ms} | {counts} |")
    if rows := found.get("memory"):
        few = ["The first hundreds of frames fill caches; their slope says little.", ""] * bool(found["shortened"])
        lines += [
            "",
            "## Memory",
            "",
            *few,
            "| tracker | frames | MB at the end | MB a 1,000 frames |",
            "|---|---|---|---|",
        ]
        lines += [f"| {r['tracker']} | {r['frames']} | {r['mb']:.0f} | {r['slope']:+.2f} |" for r in rows]
    if rows := found.get("repeated"):
        lines += [
            "", "## Again and again", "",
            "| what | times | answers | seconds each | MB at the end | MB a 100 | survived |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in rows:
            answers = ", ".join(f"{n} {what}" for what, n in r["answers"].items())
            numbers = f"{r['seconds']:.2f} | {r['mb']:.0f} | {r['slope']:+.2f} | {yes[r['survived']]}"
            lines.append(f"| {r['what']} | {r['count']} | {answers} | {numbers} |")
    if vanish := found.get("vanish"):
        lines += ["", "## Targets that vanish", "", "From `tracker_ros evaluate --vanish`.", ""]
        lines += ["```json", json.dumps(vanish, indent=1), "```"]
    if missing := [what for part, what in PARTS.items() if part not in found]:
        lines += ["", f"The run was ended before these parts: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _shortened(amount: Amount) -> str:
    """What is less than in full."""
    full = vars(Amount())
    less = {name: value for name, value in vars(amount).items() if value != full[name]}
    return ", ".join(f"{value:g} {name} instead of {full[name]:g}" for name, value in less.items())


def main() -> int:
    """Run what the arguments name, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything, in three minutes")
    parser.add_argument("--trackers", nargs="+", default=["kcf", "csrt", "siamrpn", "dimp18"], help="under load")
    parser.add_argument("--switch", nargs="+", default=["kcf", "siamrpn", "csrt"], help="trackers to switch between")
    parser.add_argument("--fault-tracker", default="kcf", help="tracker behind the camera that fails")
    parser.add_argument("--frames", type=int, help="frames of the test of memory, a tracker")
    parser.add_argument("--vanish", type=Path, metavar="FILE", help="JSON of `tracker_ros evaluate --vanish` to add")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md", metavar="FILE")
    parser.add_argument("--numbers", type=Path, metavar="FILE", help="write the numbers as JSON too")
    args = parser.parse_args()
    amount = QUICK if args.quick else Amount()
    if args.frames is not None and args.frames != amount.frames:
        amount = Amount(amount.seconds, args.frames, amount.inits, amount.cycles, amount.switches)
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in words.splitlines() if line.startswith("model name")), "")
    # What changes the amount; folders of the machine are nobody's business.
    given = [*(["--quick"] * args.quick), *([f"--frames {args.frames}"] if args.frames is not None else [])]
    found: dict[str, Any] = {
        "command": shlex.join(["make", "reliability", *([f"RELIABILITY={' '.join(given)}"] if given else [])]),
        "version": __version__,
        "date": date.today().isoformat(), "fault_tracker": args.fault_tracker, "shortened": _shortened(amount),
        "machine": f"{os.cpu_count()} cores ({model or platform.machine()})",
        "busy": os.getloadavg()[0],
    }  # fmt: skip
    if found["busy"] > 1:
        print(f"reliability: warning: other programs keep {found['busy']:.1f} cores busy, which counts in latencies")
    if args.vanish is not None:
        found["vanish"] = json.loads(args.vanish.read_text())

    def write() -> None:  # After each part, so that an interruption leaves those that were done.
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report(found))
        if args.numbers is not None:
            args.numbers.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        bench = Bench(Path(log.name))
        try:
            parts: list[tuple[str, Callable[[], Any]]] = [
                ("matrix", lambda: matrix(bench)),
                ("faults", lambda: camera_faults(bench, args.fault_tracker, amount)),
                ("load", lambda: [row for name in args.trackers for row in load(bench, name, amount)]),
                ("memory", lambda: [memory(bench, name, amount) for name in args.trackers]),
                ("repeated", lambda: [
                    many_inits(bench, args.fault_tracker, amount), many_cycles(bench, args.fault_tracker, amount),
                    many_switches(bench, args.switch, amount),
                ]),
            ]  # fmt: skip
            for name, part in parts:
                print(f"reliability: {name}", flush=True)
                found[name] = part()
                write()
        finally:
            bench.close()
    print(f"reliability: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
