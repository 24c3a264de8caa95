"""Boxes, images and estimates as ROS messages, and back."""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray, ObjectHypothesisWithPose

from tracker_ros.geometry.boxes import Box, InvalidBox
from tracker_ros.ros.diagnostics import Level
from tracker_ros.trackers.base import Estimate
from tracker_ros_interfaces.msg import TrackStatus

#: Encodings of outgoing images and what an array must be for them: (channels, type).
_OUTGOING: dict[str, tuple[int, type]] = {
    "bgr8": (3, np.uint8),
    "rgb8": (3, np.uint8),
    "mono8": (1, np.uint8),
    "32FC1": (1, np.float32),
}


#: Variance that stands for "not known": large, because zero would claim certainty.
UNKNOWN_VARIANCE = 1e6


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a stamp."""
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def box_to_message(box: Box) -> BoundingBox2D:
    """x, y, w, h (top-left corner, pixels) to centre and size. Exact to rounding in float64."""
    message = BoundingBox2D()
    message.center.position.x, message.center.position.y = (float(v) for v in box.center)
    message.size_x, message.size_y = float(box.w), float(box.h)
    return message


def box_from_message(message: BoundingBox2D) -> Box:
    """Centre and size to x, y, w, h (top-left corner, pixels).

    Raises:
        InvalidBox: the box is rotated, or nobody can say whether it is.
    """
    theta = message.center.theta
    if theta != 0:
        raise InvalidBox(f"the box is rotated (theta={theta:g}); only upright boxes (theta=0) can be tracked")
    center = message.center.position
    return Box.from_center(center.x, center.y, message.size_x, message.size_y)


def image_to_message(image: NDArray[Any], encoding: str, header: Header) -> Image:
    """An array to ``sensor_msgs/Image``.

    Args:
        image: HxWx3 uint8 for ``bgr8`` and ``rgb8``, HxW uint8 for ``mono8``, HxW float32 for ``32FC1``.
        encoding: one of these four.
        header: copied by reference.

    Raises:
        ValueError: the array is not of the encoding's type or shape.
    """
    if encoding not in _OUTGOING:
        raise ValueError(f"encoding '{encoding}' can't be written; known are: {', '.join(_OUTGOING)}")
    channels, dtype = _OUTGOING[encoding]
    shape = image.shape[2:] if channels > 1 else (1,) * (image.ndim == 2)
    if image.dtype != dtype or shape != (channels,):
        wanted = f"{channels} channel(s) of {np.dtype(dtype)}"
        raise ValueError(f"{encoding} takes {wanted}, got {image.dtype} {image.shape}")
    message, pixels = new_image(image.shape[1], image.shape[0], encoding, header)
    pixels[:] = image
    return message


def new_image(width: int, height: int, encoding: str, header: Header) -> tuple[Image, NDArray[Any]]:
    """A black ``sensor_msgs/Image`` and the array of its pixels, to be drawn on.

    Args:
        width, height: in pixels.
        encoding: ``bgr8``, ``rgb8``, ``mono8`` or ``32FC1``.
        header: copied by reference.

    Returns:
        The message, and a view on its data: HxWx3 or HxW, of the encoding's type.
    """
    channels, dtype = _OUTGOING[encoding]
    message = Image(header=header, encoding=encoding, height=height, width=width)
    message.step = width * channels * np.dtype(dtype).itemsize
    message.is_bigendian = int(sys.byteorder == "big")
    # An array.array is taken as it is or copied at once; an ndarray is converted value by value (100 ms and more).
    message.data = array.array("B", [0]) * (message.step * height)
    pixels: NDArray[Any] = np.frombuffer(message.data, dtype)
    return message, pixels.reshape((height, width, channels) if channels > 1 else (height, width))


def detection(header: Header, estimate: Estimate, target_id: str, label: str = "") -> Detection2D:
    """What an estimate says: the target's name as id, and one hypothesis: its label, the score, how exact the box is.

    The hypothesis' pose is the box's centre in pixels. Its covariance, in square pixels, is that of a centre which
    lies anywhere in the box at a score of 0, and within a tenth of it at a score of 1, each side for itself; what a box
    in an image does not tell (depth, rotations) has the variance `UNKNOWN_VARIANCE`.
    """
    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id = label
    result.hypothesis.score = float(estimate.score)
    position = result.pose.pose.position
    position.x, position.y = (float(v) for v in estimate.box.center)
    # A uniform distribution over a length has the variance length² / 12.
    share = 1.0 - 0.9 * min(max(float(estimate.score), 0.0), 1.0)
    variances = [(share * estimate.box.w) ** 2 / 12, (share * estimate.box.h) ** 2 / 12, *[UNKNOWN_VARIANCE] * 4]
    result.pose.covariance[:: len(variances) + 1] = np.array(variances)
    message = Detection2D(header=header, bbox=box_to_message(estimate.box), id=target_id)
    message.results = [result]
    return message


def detections(header: Header, found: list[Detection2D]) -> Detection2DArray:
    """The detections of one image."""
    return Detection2DArray(header=header, detections=found)


def status(header: Header, estimate: Estimate | None, **fields: Any) -> TrackStatus:
    """``TrackStatus`` from an estimate (None: IDLE) and the remaining fields by name."""
    message = TrackStatus(header=header, **fields)
    if estimate is not None:
        message.state = int(estimate.state)
        message.score = float(estimate.score)
        message.search_region = box_to_message(estimate.search_region)
    return message


def diagnostic(name: str, hardware_id: str, level: Level, message: str, values: dict[str, str]) -> DiagnosticStatus:
    """A ``DiagnosticStatus``."""
    return DiagnosticStatus(
        name=name,
        hardware_id=hardware_id,
        level=bytes([level]),
        message=message,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
