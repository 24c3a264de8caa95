"""Recordings written and read with rosbags: mcap and sqlite3, with and without message definitions."""

from __future__ import annotations

import json
import math
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tracker_ros import cli
from tracker_ros.evaluation import bags
from tracker_ros.evaluation.sequences import InvalidSequence
from tracker_ros.geometry.boxes import Box

needs_rosbags = pytest.mark.usefixtures("_rosbags")


@pytest.fixture
def _rosbags() -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed; runs after `pip install rosbags`")


Message = tuple[str, int, Any]  # topic, time of the recording in ns, message


def _types() -> Any:
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(bags._vision_types())
    return store


def _header(ns: int) -> Any:
    types = _types().types
    return types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](ns // 10**9, ns % 10**9), "camera")


def _image(ns: int, grey: int, encoding: str = "bgr8", size: tuple[int, int] = (64, 48)) -> Any:
    channels = 3 if encoding.endswith("gr8") or encoding.endswith("gb8") else 1
    data = np.full(size[0] * size[1] * channels, grey, np.uint8)
    kind = _types().types["sensor_msgs/msg/Image"]
    return kind(_header(ns), size[1], size[0], encoding, 0, size[0] * channels, data)


def _compressed(ns: int, grey: int) -> Any:
    _, data = cv2.imencode(".png", np.full((48, 64, 3), grey, np.uint8))
    return _types().types["sensor_msgs/msg/CompressedImage"](_header(ns), "bgr8; png compressed bgr8", data.ravel())


def _detection(ns: int, box: tuple[float, float, float, float], theta: float = 0.0) -> Any:
    types = _types().types
    x, y, w, h = box
    point = types["vision_msgs/msg/Point2D"](x + w / 2, y + h / 2)
    bbox = types["vision_msgs/msg/BoundingBox2D"](types["vision_msgs/msg/Pose2D"](point, theta), w, h)
    return types["vision_msgs/msg/Detection2D"](_header(ns), [], bbox, "car")


@pytest.fixture
def write_bag(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recording of the given messages."""

    def write(name: str, messages: list[Message], storage: str = "mcap") -> Path:
        from rosbags.rosbag2 import StoragePlugin, Writer

        path, store = tmp_path / name, _types()
        with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
            connections: dict[str, Any] = {}
            for topic, time, message in messages:
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=store)
                writer.write(connections[topic], time, store.serialize_cdr(message, kind))
        return path

    return write


def _flight(image: Callable[..., Any] = _image) -> list[Message]:
    """Six images, 0.1 s apart, each recorded 5 ms late; boxes from the second on, none in the fifth."""
    messages: list[Message] = []
    for i in range(6):
        stamp = 10**9 + i * 10**8
        messages.append(("/camera", stamp + 5 * 10**6, image(stamp, 10 * i)))
        if i in (1, 2, 3, 5):
            messages.append(("/truth", stamp + 7 * 10**6, _detection(stamp, (10.25 + i, 20.5, 8, 6))))
    messages.append(("/truth", 2 * 10**9, _detection(10**9 + 4 * 10**8, (0, 0, 0, 0))))
    return messages


@needs_rosbags
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("image", [_image, _compressed], ids=["raw", "compressed"])
def test_images_and_truth_are_joined_by_stamp(write_bag, storage: str, image) -> None:
    path = write_bag("flight", _flight(image), storage)
    assert bags.is_bag(path)
    sequence = bags.load_bag(path, truth_topic="/truth")
    assert (sequence.name, len(sequence), sequence.known) == ("flight", 5, True)
    assert sequence.first_box == (11.25, 20.5, 8, 6), "the image before the first box is left out"
    assert sequence.absent.tolist() == [False, False, False, True, False]
    assert sequence.stamps == tuple(10**9 + i * 10**8 for i in range(1, 6))
    order = [0, 1, 2, 4, 3, 3, 0]
    assert [int(sequence.frame(i)[0, 0, 0]) for i in order] == [10 * (i + 1) for i in order]
    assert sequence.frame(2).shape == (48, 64, 3)


@needs_rosbags
def test_images_recorded_at_the_same_time_keep_their_order(write_bag) -> None:
    messages = [("/camera", 10**9, _image(10**9 + i, 10 * i)) for i in range(4)]
    messages += [("/truth", 10**9, _detection(10**9 + 1, (1, 2, 8, 8)))]
    sequence = bags.load_bag(write_bag("burst", messages), truth_topic="/truth")
    assert [int(sequence.frame(i)[0, 0, 0]) for i in (0, 1, 2, 1)] == [10, 20, 30, 20]


@needs_rosbags
def test_a_single_file_is_a_recording_and_travels_to_other_processes(write_bag) -> None:
    (file,) = write_bag("flight", _flight()).glob("*.mcap")
    assert bags.is_bag(file)
    sequence = bags.load_bag(file, truth_topic="/truth")
    sequence.frame(0)
    copy = pickle.loads(pickle.dumps(sequence))
    assert [int(copy.frame(i)[0, 0, 0]) for i in (1, 2)] == [20, 30]


@needs_rosbags
def test_a_recording_without_definitions_is_read(write_bag) -> None:
    path = write_bag("humble", _flight(), "sqlite3")
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM message_definitions")
    sequence = bags.load_bag(path, truth_topic="/truth")
    assert sequence.first_box == (11.25, 20.5, 8, 6)
    assert int(sequence.frame(4)[0, 0, 0]) == 50


@needs_rosbags
def test_without_truth_there_is_a_box_to_start_on(write_bag) -> None:
    sequence = bags.load_bag(write_bag("flight", _flight()), box=Box(1, 2, 10, 10))
    assert (len(sequence), sequence.known, sequence.first_box) == (6, False, (1, 2, 10, 10))
    assert np.isnan(sequence.truth[1:]).all()


@needs_rosbags
@pytest.mark.parametrize(
    ("extra", "options", "words"),
    [
        ([], {}, "needs either the topic of the truth"),
        ([], {"truth_topic": "/truth", "box": Box(1, 2, 10, 10)}, "needs either the topic of the truth"),
        ([], {"truth_topic": "/nothing"}, "has no topic '/nothing'; it has: /camera, /truth"),
        ([], {"truth_topic": "/camera"}, "'/camera' .* is a sensor_msgs/msg/Image; expected vision_msgs/msg/Detection"),
        ([], {"image_topic": "/truth", "truth_topic": "/truth"}, "expected sensor_msgs/msg/Image or sensor_msgs"),
        (
            [("/b", 1, _image)],
            {"truth_topic": "/truth"},
            "several image topics, .* --image-topic must choose: /b, /camera",
        ),
        ([("/late", 1, _detection)], {"truth_topic": "/late"}, "none of the 1 detections on '/late'"),
        ([("/turned", 1, _detection)], {"truth_topic": "/turned"}, r"rotated box \(theta=0.5\)"),
    ],
)
def test_what_does_not_fit_is_named(write_bag, extra, options: dict[str, Any], words: str) -> None:
    made = {_image: lambda ns, _: _image(ns, 0), _detection: lambda ns, t: _detection(ns, (1, 1, 8, 8), t)}
    more = [(topic, ns, made[kind](ns, 0.5 if topic == "/turned" else 0.0)) for topic, ns, kind in extra]
    with pytest.raises(InvalidSequence, match=words):
        bags.load_bag(write_bag("flight", _flight() + more), **options)


@needs_rosbags
def test_an_image_that_cannot_be_decoded_is_named(write_bag) -> None:
    messages = [("/camera", 1, _image(1, 0)), ("/camera", 2, _image(2, 0, encoding="strange"))]
    sequence = bags.load_bag(write_bag("odd", messages), box=Box(1, 2, 10, 10))
    assert sequence.frame(0).shape == (48, 64, 3)
    with pytest.raises(InvalidSequence, match=r"image 1 of '/camera' .* encoding 'strange' can't be decoded"):
        sequence.frame(1)


@needs_rosbags
@pytest.mark.parametrize("name", ["broken.db3", "broken.mcap", "metadata.yaml"])
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing")
    path = tmp_path if name == "metadata.yaml" else tmp_path / name
    assert bags.is_bag(path)
    with pytest.raises(InvalidSequence, match=f"{path.name}' can't be read as a rosbag2"):
        bags.load_bag(path, box=Box(1, 2, 10, 10))


@needs_rosbags
def test_a_message_that_is_cut_short_is_named(tmp_path: Path, write_bag) -> None:
    path = write_bag("cut", [("/camera", 1, _image(1, 0))], "sqlite3")
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE messages SET data = substr(data, 1, 40)")
    with pytest.raises(InvalidSequence, match="cut' has a message that can't be read"):
        bags.load_bag(path, box=Box(1, 2, 10, 10))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("old.bag", r"is of ROS 1: run `rosbags-convert --src .*old\.bag --dst .*old`"),
        ("crash.bag.active", r"is of ROS 1: run `rosbag reindex .*crash\.bag\.active` and `rosbags-convert"),
        ("run_0.mcap.zstd", r"is compressed: run `zstd -d .*run_0\.mcap\.zstd`"),
        ("run/run_0.mcap", r"has no metadata\.yaml: run `ros2 bag reindex .*run -s mcap`, or name .*run_0\.mcap"),
        ("run/run_0.db3", r"has no metadata\.yaml: run `ros2 bag reindex .*run -s sqlite3`, or name .*run_0\.db3"),
    ],
)
def test_recordings_that_need_something_first_say_what_to_run(tmp_path: Path, name: str, words: str, capsys) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"#ROSBAG V2.0\n")
    path = file.parent if "/" in name else file
    assert bags.is_bag(path)
    assert cli.main(["evaluate", "--tracker", "csrt", "--sequences", str(path), "--box", "1,2,9,9"]) == 2
    assert re.search(words, capsys.readouterr().err)


@needs_rosbags
def test_stamps_that_are_not_unique_join_nothing(write_bag) -> None:
    still = [("/camera", 10**9 + i, _image(0, 10 * i)) for i in range(3)]  # a camera that does not stamp its images
    path = write_bag("unstamped", [*still, ("/truth", 10**9, _detection(0, (1, 2, 8, 8)))])
    with pytest.raises(InvalidSequence, match=r"3 images on '/camera' .* have the stamp 0 ns"):
        bags.load_bag(path, truth_topic="/truth")
    assert len(bags.load_bag(path, box=Box(1, 2, 10, 10))) == 3, "without a truth there is nothing to join"
    twice = [*_flight(), ("/truth", 2 * 10**9, _detection(10**9 + 10**8, (30, 20, 8, 6)))]
    with pytest.raises(InvalidSequence, match="different boxes with the stamp 1100000000 ns"):
        bags.load_bag(write_bag("two targets", twice), truth_topic="/truth")
    same = [*_flight(), ("/truth", 2 * 10**9, _detection(10**9 + 10**8, (11.25, 20.5, 8, 6)))]
    assert len(bags.load_bag(write_bag("latched", same), truth_topic="/truth")) == 5


@needs_rosbags
def test_the_first_image_of_a_recording_sets_its_grey_scale(write_bag) -> None:
    def thermal(ns: int, shift: int) -> Any:
        message = _image(ns, 0, encoding="mono16", size=(32, 8))
        values = np.arange(7400 + shift, 7656 + shift, dtype="<u2")
        kind = type(message)
        return kind(message.header, 8, 32, "mono16", 0, 64, values.view(np.uint8))

    path = write_bag("thermal", [("/camera", i, thermal(i, 100 * i)) for i in range(3)])
    in_order = [np.array(bags.load_bag(path, box=Box(1, 2, 10, 10)).frame(i)) for i in (0,)]
    sequence = bags.load_bag(path, box=Box(1, 2, 10, 10))
    last, first = sequence.frame(2), sequence.frame(0)
    assert len(np.unique(first)) > 100
    np.testing.assert_array_equal(first, in_order[0])
    assert last.mean() > first.mean() + 20


def test_folders_of_images_are_no_recordings(tmp_path: Path) -> None:
    assert not bags.is_bag(tmp_path)
    assert not bags.is_bag(tmp_path / "missing.mcap")


def test_a_missing_rosbags_is_named(tmp_path: Path) -> None:
    (tmp_path / "bag.mcap").touch()
    code = (
        "import sys; sys.modules['rosbags'] = None; sys.modules['rosbags.highlevel'] = None; "
        "from tracker_ros import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["evaluate", "--tracker", "csrt", "--sequences", str(tmp_path / "bag.mcap"), "--box", "1,2,9,9"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "install the package rosbags: pip install rosbags" in done.stderr


def test_options_of_recordings_are_refused_elsewhere(make_sequence, capsys) -> None:
    folder = make_sequence("s", ["10,10,8,8"] * 3)
    for option in (["--image-topic", "/x"], ["--truth-topic", "/x"], ["--box", "1,2,3,4"]):
        assert cli.main(["evaluate", "--tracker", "csrt", "--sequences", str(folder), *option]) == 2
        assert f"{option[0]} goes with a rosbag2 only" in capsys.readouterr().err


@needs_rosbags
@pytest.mark.ros
def test_what_ros_has_serialized_is_read(tmp_path: Path) -> None:
    serialization = pytest.importorskip("rclpy.serialization", reason="needs ROS 2; runs where rclpy is installed")
    from builtin_interfaces.msg import Time
    from rosbags.rosbag2 import StoragePlugin, Writer
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection2D

    header = Header(stamp=Time(sec=5, nanosec=7), frame_id="camera")
    image = Image(header=header, height=2, width=4, encoding="mono8", step=4, data=list(range(8)))
    detection = Detection2D(header=header, id="car")
    detection.bbox.center.position.x, detection.bbox.center.position.y = 20.5, 10.25
    detection.bbox.size_x, detection.bbox.size_y = 8.0, 6.5
    with Writer(tmp_path / "real", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, message in (("/image", image), ("/truth", detection)):
            kind = f"{type(message).__module__.split('.')[0]}/msg/{type(message).__name__}"
            connection = writer.add_connection(topic, kind, typestore=_types())
            writer.write(connection, 1, serialization.serialize_message(message))
    sequence = bags.load_bag(tmp_path / "real", truth_topic="/truth")
    assert sequence.stamps == (5 * 10**9 + 7,)
    assert sequence.first_box == (16.5, 7.0, 8.0, 6.5)
    np.testing.assert_array_equal(sequence.frame(0)[:, :, 1], np.arange(8).reshape(2, 4))


@needs_rosbags
@pytest.mark.skipif(not hasattr(cv2, "TrackerCSRT_create"), reason="needs OpenCV's contrib modules")
def test_evaluate_takes_a_recording(write_bag, tmp_path: Path, capsys) -> None:
    random = np.random.RandomState(0)
    patch = cv2.resize(random.randint(0, 255, (8, 8, 3)).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)
    messages: list[Message] = []
    for i in range(5):
        frame = np.full((120, 160, 3), 110, np.uint8)
        frame[40:72, 40 + 2 * i : 72 + 2 * i] = patch
        image = _image(i, 0, size=(160, 120))
        image.data[:] = frame.ravel()
        messages += [("/camera", i, image), ("/truth", i, _detection(i, (40 + 2 * i, 40, 32, 32)))]
    path, out = str(write_bag("patch", messages)), tmp_path / "out"
    arguments = ["evaluate", "--tracker", "csrt", "--sequences", path, "--out", str(out)]
    assert cli.main([*arguments, "--truth-topic", "/truth"]) == 0
    assert json.loads((out / "report.json").read_text())["trackers"]["csrt"]["mean"]["auc"] > 0.7
    assert (out / "strips" / "patch.jpg").is_file()

    capsys.readouterr()
    assert cli.main([*arguments, "--out", str(out / "blind"), "--box", "40,40,32,32"]) == 0
    assert "no truth to measure against" in capsys.readouterr().out
    said = json.loads((out / "blind" / "results" / "csrt" / "patch.json").read_text())
    assert said["stamps"] == [0, 1, 2, 3, 4]
    assert said["boxes"][0] == [40, 40, 32, 32]
    assert all(math.isfinite(v) for row in said["boxes"] for v in row)
    assert not (out / "blind" / "report.json").exists()

    assert cli.main([*arguments, "--protocol", "vot", "--box", "40,40,32,32"]) == 2
    assert "--protocol vot needs the truth" in capsys.readouterr().err
    assert cli.main([*arguments, "--box", "40,40,32"]) == 2
    assert "--box is X,Y,W,H in pixels" in capsys.readouterr().err
