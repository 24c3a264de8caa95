"""The demo as a user runs it: real processes, and the reasons that it gives when it does not work."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros import demo
from tracker_ros.geometry.boxes import Box
from tracker_ros.simulation import Flight, FlightOptions

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TRACKER_ROS_SHARED", ROOT.parent / "shared"))


def lacking() -> str:
    for name in ("rclpy", "vision_msgs", "tracker_ros_interfaces.msg"):
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return ""


needs_ros = pytest.mark.skipif(bool(lacking()), reason=f"needs a ROS 2: {lacking()} can't be imported (`make setup`)")


def environment(**changes: str) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if k != "ROS_DOMAIN_ID" and not k.startswith(("FASTRTPS", "FASTDDS"))}
    return {**keep, "OMP_NUM_THREADS": "1", **changes}


def run_demo(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracker_ros", "demo", *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=240,
    )


def left_behind(mark: str) -> list[str]:
    """Command lines of the processes that have `mark` in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and "tracker_ros.ros" in line:
            found.append(line)
    return found


def check_outputs(out: Path, images: int) -> dict:
    capture = cv2.VideoCapture(str(out / "demo.mp4"))
    count, frame = 0, None
    while True:
        good, picture = capture.read()
        if not good:
            break
        count, frame = count + 1, picture
    assert frame is not None
    assert frame.std() > 10
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[1] > 1000
    summary = json.loads((out / "summary.json").read_text())
    assert count == summary["frames_recorded"]
    # Every image goes out once and in order; the first is repeated until the tracker has answered it.
    indices = [f["index"] for f in json.loads((out / "source.json").read_text())["frames"]]
    assert indices[indices.count(0) - 1 :] == list(range(images))
    assert summary["frames_sent"] == len(indices)
    assert summary["frames_received"] == summary["frames_processed"] + summary["frames_dropped"]
    assert summary["frames_received"] <= summary["frames_sent"]
    stamps = [f["stamp"] for f in summary["frames"]]
    assert stamps == sorted(set(stamps))
    return summary


@needs_ros
@pytest.mark.ros
def test_demo_tracks_the_simulated_flight(tmp_path: Path) -> None:
    done = run_demo("--tracker", "kcf", "--duration", "6", "--seed", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = check_outputs(tmp_path, 180)
    assert summary["tracker"] == "kcf"
    assert summary["seed"] == 2
    assert summary["device"] == "cpu"
    assert summary["versions"]["python"] == sys.version.split()[0]
    assert summary["frames_received"] >= 0.9 * 180
    assert summary["mean_iou"] > 0.1
    assert 0 < summary["latency_ms_p50"] <= summary["latency_ms_p99"] < 5000
    assert summary["fps"] > 1
    # the truth that travelled is the flight's own, to the sixth digit and at the right image
    flight = Flight(FlightOptions(seed=2, duration=6))
    by_index = {f["index"]: f for f in summary["frames"]}
    for k in (0, 50, 179):
        if k in by_index:
            box = flight.truth_at(k).box
            assert box is not None
            assert np.allclose(by_index[k]["truth"], box, atol=0.0051)
    assert "mean IoU" in done.stdout
    assert not left_behind(str(tmp_path))


@needs_ros
@pytest.mark.ros
def test_every_image_is_processed_when_they_wait_for_the_tracker(tmp_path: Path) -> None:
    done = run_demo("--tracker", "csrt", "--duration", "2", "--no-realtime", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = check_outputs(tmp_path, 60)
    assert summary["frames_processed"] == 60
    assert summary["frames_dropped"] == 0
    assert all(f["state"] is not None for f in summary["frames"])


@needs_ros
@pytest.mark.ros
def test_demo_of_a_folder_of_images_starts_on_its_first_box(tmp_path: Path) -> None:
    flight = Flight(FlightOptions(seed=5, duration=1, width=320, height=240))
    clip = tmp_path / "clip"
    clip.mkdir()
    rows = []
    for k, (frame, truth) in enumerate(flight):
        cv2.imwrite(str(clip / f"{k:03d}.png"), frame)
        rows.append(",".join(f"{v:.3f}" for v in truth.box) if truth.box else "nan,nan,nan,nan")
    (clip / "groundtruth.txt").write_text("\n".join(rows))
    done = run_demo("--video", str(clip), "--tracker", "kcf", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = check_outputs(tmp_path / "out", 30)
    assert summary["mean_iou"] > 0.5


@needs_ros
@pytest.mark.ros
def test_refused_box_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    done = run_demo("--tracker", "kcf", "--duration", "2", "--box", "9000,10,20,20", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "init_target was refused" in done.stderr
    assert "outside" in done.stderr
    assert not left_behind(str(tmp_path))


@needs_ros
@pytest.mark.ros
def test_tracker_that_cannot_be_loaded_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    done = run_demo(
        "--tracker", "dimp18", "--duration", "2", "--out", str(tmp_path), TRACKER_ROS_MODELS=str(tmp_path / "none")
    )
    assert done.returncode == 1
    assert "dimp18" in done.stderr
    assert "the tracker is not configured" in done.stderr
    assert not left_behind(str(tmp_path))


@needs_ros
@pytest.mark.ros
def test_process_that_dies_is_named_with_its_log(tmp_path: Path) -> None:
    def kill_the_recorder() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if b"tracker_ros.ros.recorder" in line and str(tmp_path).encode() in line:
                    os.kill(int(path.parent.name), 9)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_the_recorder)
    thread.start()
    done = run_demo("--tracker", "kcf", "--duration", "20", "--out", str(tmp_path))
    thread.join()
    assert done.returncode == 1
    assert "recorder ended with code -9" in done.stderr
    assert not left_behind(str(tmp_path))


def _started(*arguments: str) -> subprocess.Popen[str]:
    """A demo of KCF that hears Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "tracker_ros", "demo", "--tracker", "kcf", *arguments],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@needs_ros
@pytest.mark.ros
def test_ctrl_c_ends_everything_and_keeps_what_there_is(tmp_path: Path) -> None:
    process = _started("--duration", "60", "--out", str(tmp_path))
    assert process.stdout is not None
    for line in process.stdout:
        if "images" in line:  # it plays
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "what was recorded so far is kept" in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    frames = json.loads((tmp_path / "source.json").read_text())["frames"]
    check_outputs(tmp_path, len({f["index"] for f in frames}))
    assert 10 < summary["frames_sent"] < 1800
    assert not left_behind(str(tmp_path))


def test_a_signal_between_start_and_noting_a_process_is_held_back() -> None:
    noted = []

    def start() -> None:
        with demo._terminated_as_interrupted(), demo._uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            noted.append("process")

    def wait() -> None:
        with demo._terminated_as_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            noted.append("nothing ended it")

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for call in (start, wait):
        with pytest.raises(KeyboardInterrupt):
            call()
    assert noted == ["process"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@needs_ros
@pytest.mark.ros
def test_termination_while_starting_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tracker_ros", "demo", "--tracker", "kcf", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while len(left_behind(str(tmp_path))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not left_behind(str(tmp_path))


@needs_ros
def test_video_without_a_box_gets_its_first_image_written(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((60, 80, 3), np.uint8))
    done = run_demo("--video", str(tmp_path), "--tracker", "kcf", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "--box" in done.stderr
    assert "80x60" in done.stderr
    assert cv2.imread(str(tmp_path / "out" / "first_image.png")).shape == (60, 80, 3)


@needs_ros
@pytest.mark.ros
def test_the_page_of_the_demo_is_served_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    process = _started("--page", "--out", str(tmp_path))
    assert process.stdout is not None
    found = None
    for line in process.stdout:
        found = re.search(r"open (http://localhost:\d+/) in a browser", line)
        if found:
            break
    assert found is not None
    with urllib.request.urlopen(found[1], timeout=20) as page:
        assert b"<canvas" in page.read()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert not left_behind(str(tmp_path))


@needs_ros
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--video", "nothing.mp4"), "nothing.mp4"),
        (("--tracker", "kfc"), "did you mean 'kcf'"),
        (("--duration", "-1"), "--duration"),
        (("--rate", "-3"), "--rate"),
        (("--seed", "-4"), "seed"),
        (("--box", "1,2,3"), "x,y,w,h"),
        (("--page", "--box", "1,2,3,4"), "--box is not for --page"),
        (("--page", "--no-realtime"), "--no-realtime is not for --page"),
    ],
)
def test_wrong_arguments_are_refused_at_once(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    chosen = arguments if "--tracker" in arguments else (*arguments, "--tracker", "kcf")
    done = run_demo(*chosen, "--out", str(tmp_path))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "logs").exists()


def test_boxes_are_read_from_text() -> None:
    assert demo.parse_box("1,2.5,30,40") == Box(1, 2.5, 30, 40)
    assert demo.parse_box(" 1, 2  3 4 ") == Box(1, 2, 3, 4)
    for text in ("", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            demo.parse_box(text)


def test_free_domain_is_one_that_nobody_uses() -> None:
    domain = demo.free_domain()
    assert 1 <= domain <= 231
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 7400 + 250 * domain + 10))


def test_environment_keeps_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE", "ROS_DOMAIN_ID"):
        monkeypatch.delenv(name, raising=False)
    fresh = demo.environment()
    assert Path(fresh["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
    assert 1 <= int(fresh["ROS_DOMAIN_ID"]) <= 231
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/mine.xml")
    monkeypatch.setenv("ROS_DOMAIN_ID", "77")
    kept = demo.environment()
    assert kept["FASTDDS_DEFAULT_PROFILES_FILE"] == "/mine.xml"
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" not in kept
    assert kept["ROS_DOMAIN_ID"] != "77", "that is the domain of somebody's robot"


def test_default_tracker_is_one_that_can_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("TRACKER_ROS_MODELS", str(tmp_path))
    name, reason = demo.default_tracker()
    assert name == "csrt"
    assert str(tmp_path) in reason
    (tmp_path / "dimp18.safetensors").write_bytes(b"")
    assert demo.default_tracker()[0] == "dimp18"


def test_summary_in_words(tmp_path: Path) -> None:
    summary = {
        "tracker": "kcf",
        "device": "cpu",
        "frames_sent": 100,
        "frames_received": 90,
        "frames_processed": 80,
        "frames_dropped": 10,
        "mean_iou": 0.5,
        "latency_ms_p50": 10.0,
        "latency_ms_p99": None,
        "fps": 25.0,
        "absences": [
            {"first_image": 5, "last_image": 9, "lost_after_images": 3, "regained_after_images": None},
        ],
    }
    text = demo.describe(summary, tmp_path)
    assert "kcf on cpu: 90 of 100 images received (90.0 %), 80 processed, 10 dropped" in text
    assert "fewer than 99 %" in text
    assert "images 5-9: LOST after 3 images, not found again" in text


@needs_ros
@pytest.mark.ros
def test_demo_keeps_to_its_own_domain_and_namespace_and_deletes_its_own_files_only(tmp_path: Path) -> None:
    arguments = ("--tracker", "kcf", "--duration", "2", "--out", str(tmp_path))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.log").write_text("mine")
    domain = demo.free_domain()
    strangers = subprocess.Popen(
        [sys.executable, "-m", "tracker_ros.ros.tracker_node", "--ros-args", "-p", "tracker:=kcf"],
        cwd=ROOT,
        env={**demo.environment(), "ROS_DOMAIN_ID": str(domain)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        first = run_demo(*arguments, ROS_DOMAIN_ID=str(domain))
    finally:
        strangers.send_signal(signal.SIGINT)
        said, _ = strangers.communicate(timeout=60)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"ROS domain {domain}," not in first.stdout
    assert "namespace /demo_" in first.stdout
    assert "tracking 'target'" not in said, "the tracker of somebody else was started"
    check_outputs(tmp_path, 60)

    again = run_demo(*arguments)  # its own files are replaced
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "logs" / "mine.log").read_text() == "mine"
    (tmp_path / "summary.json").write_text("mine")
    refused = run_demo(*arguments)
    assert refused.returncode == 2
    assert "summary.json' would be replaced" in refused.stderr
    assert (tmp_path / "summary.json").read_text() == "mine"
    assert (tmp_path / "demo.mp4").is_file()


@needs_ros
@pytest.mark.parametrize("argument", ["--video", "--out", "--weights"])
def test_names_that_opencv_and_ros_cannot_take_are_refused(tmp_path: Path, argument: str) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.mkdir()
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((60, 80, 3), np.uint8))
    (tmp_path / "1.png").rename(path / "1.png")
    done = run_demo("--out", str(tmp_path / "out"), "--tracker", "kcf", "--box", "1,2,30,30", argument, str(path))
    assert done.returncode == 2
    assert "UTF-8" in done.stderr


@needs_ros
@pytest.mark.ros
def test_what_can_be_read_of_a_damaged_source_is_tracked_and_the_rest_counted(tmp_path: Path) -> None:
    flight = Flight(FlightOptions(seed=5, duration=2, width=320, height=240))
    clip, video = tmp_path / "clip", tmp_path / "cut.avi"
    clip.mkdir()
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 30, (320, 240))
    for k, (frame, _) in enumerate(flight):
        writer.write(frame)
        if k < 20:
            cv2.imwrite(str(clip / f"{k:03d}.png"), frame)
    writer.release()
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    box = flight.truth_at(0).box
    assert box is not None
    start = ",".join(f"{v:.2f}" for v in box)
    done = run_demo("--video", str(video), "--box", start, "--tracker", "kcf", "--out", str(tmp_path / "a"))
    assert done.returncode == 1, done.stdout + done.stderr
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["frames_expected"] == 60
    assert 0 < summary["frames_shown"] < 60
    assert f"the source ended after {summary['frames_shown']} of 60 images" in done.stdout

    (clip / "004.png").write_text("no picture")
    (clip / "010.png").write_bytes((clip / "010.png").read_bytes()[:-30])
    (clip / "groundtruth.txt").write_text(f"{start}\n" * 3)
    done = run_demo("--video", str(clip), "--box", start, "--tracker", "kcf", "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 images could not be read and were left out" in done.stdout
    assert "3 boxes for 20 images; expected" in done.stderr
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert {f["index"] for f in summary["frames"]} == set(range(20)) - {4, 10}
