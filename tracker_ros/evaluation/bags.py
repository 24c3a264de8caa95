"""Sequences recorded in a rosbag2 (mcap or sqlite3), read with the package ``rosbags``; no ROS is needed.

The frames are the messages of an image topic (``sensor_msgs/Image`` or ``CompressedImage``) in the order in which they
were recorded. The truth is a topic of ``vision_msgs/Detection2D``: a detection belongs to the image whose header has
the same stamp. Images without one, or with one whose box has no area, show no target; images before the first box are
left out.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tracker_ros.evaluation.sequences import InvalidSequence
from tracker_ros.evaluation.sequences import Sequence as FrameSequence
from tracker_ros.geometry.boxes import Box
from tracker_ros.images import GreyScale, from_message
from tracker_ros.text import printable
from tracker_ros.trackers.base import Frame

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
TRUTH_TYPE = "vision_msgs/msg/Detection2D"


_STORAGE = (".mcap", ".db3")


def is_bag(path: Path) -> bool:
    """Whether `path` is a recording: a folder with a ``metadata.yaml``, or a file ``*.mcap`` or ``*.db3``.

    Also one that `load_bag` refuses with what to do: of ROS 1, compressed as a whole, or without its metadata.
    """
    return (path / "metadata.yaml").is_file() or bool(_remedy(path)) or (path.suffix in _STORAGE and path.is_file())


def _remedy(path: Path) -> str:
    """What to run before a recording can be read; empty where it can be, or is none."""
    if path.is_dir():
        parts = [part for part in sorted(path.iterdir()) if part.suffix in _STORAGE]
        if not parts or (path / "metadata.yaml").is_file():
            return ""
        storage = "mcap" if parts[0].suffix == ".mcap" else "sqlite3"
        return f"has no metadata.yaml: run `ros2 bag reindex {path} -s {storage}`, or name {parts[0]}"
    if path.suffix == ".bag" or path.name.endswith(".bag.active"):
        fix = f"`rosbag reindex {path}` and " if path.suffix == ".active" else ""
        target = path.with_name(path.name.partition(".bag")[0])
        return f"is of ROS 1: run {fix}`rosbags-convert --src {path} --dst {target}` (pip install rosbags)"
    if path.suffix == ".zstd" and path.with_suffix("").suffix in _STORAGE:
        return f"is compressed: run `zstd -d {path}`, or name the folder with its metadata.yaml"
    return ""


class BagImages:
    """The images of one topic, read when they are asked for; fast in their order."""

    def __init__(self, path: Path, topic: str, times: Sequence[int], skip: int = 0) -> None:
        """Take the images of `topic`, recorded at `times` (nanoseconds, ascending), but for the first `skip`."""
        self.path, self.topic, self.times, self.skip = path, topic, tuple(times), skip
        self.scale = GreyScale()
        self._next = -1
        self._messages: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return len(self.times) - self.skip

    def __getitem__(self, index: int) -> Frame:
        if index and not self.scale.pictures:
            self[0]  # The first image sets the grey scale of them all.
        if index != self._next:
            self._messages = self._read(index + self.skip)
        message = next(self._messages, None)
        if message is None:
            raise InvalidSequence(f"'{self.path}' ends before image {index} of '{self.topic}'; did it change?")
        self._next = index + 1
        try:
            return from_message(message, self.scale)
        except ValueError as error:
            raise InvalidSequence(f"image {index} of '{self.topic}' in '{self.path}': {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without the open file."""
        return self.__dict__ | {"_next": -1, "_messages": iter(())}

    def _read(self, first: int) -> Iterator[Any]:
        """The messages from number `first` on."""
        same = self.times[:first].count(self.times[first])  # recorded at the same time as the first, but before it
        with _open(self.path) as reader:
            for _, _, message in itertools.islice(_messages(reader, (self.topic,), self.times[first]), same, None):
                yield message


def load_bag(
    path: Path,
    *,
    image_topic: str | None = None,
    truth_topic: str | None = None,
    box: Box | None = None,
) -> FrameSequence:
    """Load a recording as a sequence.

    Args:
        path: see `is_bag`.
        image_topic: the images; None: the only image topic that there is.
        truth_topic: the truth.
        box: where there is no truth: the box (x, y, w, h in pixels) to start on in the first image.

    Raises:
        ImportError: ``rosbags`` is not installed.
        InvalidSequence: no recording, no such topic, a topic of another type, both or none of `truth_topic` and `box`,
            no image that has a detection's stamp, a stamp that several images or different boxes have, or a rotated
            box.
    """
    remedy = _remedy(path)
    if remedy:
        raise InvalidSequence(f"the recording '{path}' {remedy}")
    if (truth_topic is None) == (box is None):
        raise InvalidSequence(
            f"'{path}' needs either the topic of the truth, a Detection2D (--truth-topic), "
            "or the box in its first image (--box)"
        )
    with _open(path) as reader:
        topics = {c.topic: c.msgtype for c in reader.connections}
        image_topic = _image_topic(path, topics, image_topic)
        if truth_topic is not None:
            _check_topic(path, topics, truth_topic, (TRUTH_TYPE,))
            if TRUTH_TYPE not in reader.typestore.fielddefs:
                raise InvalidSequence(
                    f"'{path}' has no message definitions (few sqlite3 recordings do) and {TRUTH_TYPE} is not known: "
                    "source a ROS that has vision_msgs, or convert the recording to mcap"
                )
        times, stamps = [], []
        boxes: dict[int, tuple[float, ...]] = {}
        for topic, time, message in _messages(reader, (image_topic, truth_topic)):
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if topic == image_topic:
                times.append(time)
                stamps.append(stamp)
            else:
                row = _row(message.bbox, f"'{truth_topic}' in '{path}'")
                if not np.array_equal(boxes.setdefault(stamp, row), row, equal_nan=True):
                    raise InvalidSequence(f"'{truth_topic}' in '{path}' has different boxes with the stamp {stamp} ns")
    if not times:
        raise InvalidSequence(f"'{image_topic}' in '{path}' has no images")
    if box is None:
        stamp, several = Counter(stamps).most_common(1)[0]
        if several > 1:
            raise InvalidSequence(
                f"{several} images on '{image_topic}' in '{path}' have the stamp {stamp} ns, so nobody can tell to "
                "which of them a box belongs: record them with stamps of their own, or give the first box (--box)"
            )
    truth = np.full((len(times), 4), np.nan)
    if box is not None:
        truth[0] = box
    else:
        for index, stamp in enumerate(stamps):
            truth[index] = boxes.get(stamp, truth[index])
    if np.isnan(truth[:, 0]).all():
        raise InvalidSequence(
            f"none of the {len(boxes)} detections on '{truth_topic}' in '{path}' has a box and the stamp of one of the "
            f"{len(times)} images on '{image_topic}'"
        )
    first = int(np.flatnonzero(~np.isnan(truth[:, 0]))[0])
    images = BagImages(path, image_topic, times, skip=first)
    return FrameSequence(
        printable(path.stem), images, truth[first:], known=box is None, stamps=tuple(stamps[first:]), sources=(path,)
    )


def _row(bbox: Any, where: str) -> tuple[float, ...]:
    """x, y, w, h of a ``BoundingBox2D``; NaN where it has no area."""
    if bbox.center.theta != 0 and not math.isnan(bbox.center.theta):
        raise InvalidSequence(f"{where} has a rotated box (theta={bbox.center.theta:g}); only upright ones can be used")
    if not (bbox.size_x > 0 and bbox.size_y > 0):
        return (math.nan,) * 4
    return Box.from_center(bbox.center.position.x, bbox.center.position.y, bbox.size_x, bbox.size_y)


def _image_topic(path: Path, topics: dict[str, str], name: str | None) -> str:
    if name is not None:
        _check_topic(path, topics, name, IMAGE_TYPES)
        return name
    found = sorted(topic for topic, kind in topics.items() if kind in IMAGE_TYPES)
    if len(found) != 1:
        several = f"several image topics, of which --image-topic must choose: {', '.join(found)}"
        raise InvalidSequence(f"'{path}' has {several if found else 'no image topic'}")
    return found[0]


def _check_topic(path: Path, topics: dict[str, str], name: str, kinds: Sequence[str]) -> None:
    if name not in topics:
        raise InvalidSequence(f"'{path}' has no topic '{name}'; it has: {', '.join(sorted(topics))}")
    if topics[name] not in kinds:
        raise InvalidSequence(f"'{name}' in '{path}' is a {topics[name]}; expected {' or '.join(kinds)}")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An open ``rosbags.highlevel.AnyReader``."""
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise ImportError(f"to read '{path}', install the package rosbags: pip install rosbags") from error
    types = get_typestore(Stores.ROS2_HUMBLE)
    types.register(_vision_types())
    try:
        # The types are for recordings without definitions (sqlite3 up to Humble).
        reader = AnyReader([path], default_typestore=types)
        reader.open()
    except Exception as error:  # A broken file can raise anything that its format's reader raises.
        raise InvalidSequence(f"'{path}' can't be read as a rosbag2: {error}") from error
    try:
        yield reader
    except AnyReaderError as error:
        raise InvalidSequence(f"'{path}' has a message that can't be read: {error}") from error
    finally:
        reader.close()


def _messages(reader: Any, topics: Sequence[str | None], start: int | None = None) -> Iterator[tuple[str, int, Any]]:
    """Topic, time of the recording (ns) and message, of some topics and from a time on."""
    connections = [c for c in reader.connections if c.topic in topics]
    # Closed by hand: an sqlite3 file can't be closed before what is read from it.
    with closing(reader.messages(connections=connections, start=start)) as messages:
        for connection, time, data in messages:
            yield connection.topic, time, reader.deserialize(data, connection.msgtype)


def _vision_types() -> dict[str, Any]:
    """The types of vision_msgs as far as their definitions are found: in the sourced ROS, or in the source tree."""
    from rosbags.typesys import get_types_from_msg

    prefixes = filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))
    shares = [Path(prefix) / "share" for prefix in prefixes]
    folders = [share / "vision_msgs" / "msg" for share in (*shares, Path(__file__).parents[2] / "third_party")]
    types: dict[str, Any] = {}
    for folder in filter(Path.is_dir, folders[::-1]):
        for file in folder.glob("*.msg"):
            types |= get_types_from_msg(file.read_text(), f"vision_msgs/msg/{file.stem}")
    return types
